"""What the tests of reduced norms need: graphs from ONNX text, hard rows, float64 truth, and the comparison.

The rows that norms get wrong: a mean far larger than the deviation, rows that are constant, single outliers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import helper, numpy_helper
from reference64 import FLOATS, Arrays, truth

from normdeploy.fold import Entry, FoldResult, Ledger, fold

SIZES = {"N": 2, "T": 7, "H": 8, "W": 11}
"""What the named dimensions of a test graph stand for: distinct from each other and from the features."""

# A weight is rounded once, to half an ulp; 64 of those, because sums add up and a Softmax amplifies.
TOLERANCE = {"float16": 2.0**-5, "bfloat16": 2.0**-2, "float32": 2.0**-18, "float64": 2.0**-47}

CONTRIB = frozenset({"SimplifiedLayerNormalization"})
"""Operators that onnxruntime adds to the default domain; onnx knows nothing of them."""


# -- models ----------------------------------------------------------------------------------------


def model(inputs: str, weights: str, body: str, *, outputs: str = "float[] y", opset: int = 21) -> onnx.ModelProto:
    """A model from ONNX text; weights that are declared without a value are drawn (``pos…`` positive)."""
    head = f'<ir_version: 10, opset_import: ["": {opset}]>'
    proto = onnx.parser.parse_model(f"{head} g ({inputs}) => ({outputs}) <{weights}> {{ {body} }}")
    _fill(proto.graph)
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    for info, found in zip(proto.graph.output, inferred.graph.output, strict=True):
        if not info.type.tensor_type.HasField("shape"):  # the checker asks for the rank of every output
            info.CopyFrom(found)
    return proto


def _fill(graph: onnx.GraphProto) -> None:
    """Turn every declared value that no node makes into an initializer with seeded random values."""
    random = np.random.default_rng(0)
    made = {name for node in graph.node for name in node.output}
    for info in [info for info in graph.value_info if info.name not in made]:
        graph.value_info.remove(info)
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        values = random.uniform(0.5, 2.0, shape) if info.name.startswith("pos") else random.standard_normal(shape)
        dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        graph.initializer.append(numpy_helper.from_array(np.asarray(values, dtype), info.name))


def with_values(proto: onnx.ModelProto, **arrays: object) -> onnx.ModelProto:
    """``proto`` with other values in the named initializers, their dtypes kept."""
    for tensor in proto.graph.initializer:
        if tensor.name in arrays:
            dtype = numpy_helper.to_array(tensor).dtype
            tensor.CopyFrom(numpy_helper.from_array(np.array(arrays[tensor.name], dtype), tensor.name))
    return proto


def initializers(proto: onnx.ModelProto) -> Arrays:
    """The initializers of the main graph."""
    return {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}


def counts(proto: onnx.ModelProto) -> Counter[str]:
    """How often each operator stands in ``proto``; Constant is no operator."""
    return Counter(node.op_type for node in proto.graph.node if node.op_type != "Constant")


def parameters(proto: onnx.ModelProto, op_type: str) -> list[tuple[np.ndarray, ...]]:
    """The scale, and the bias where there is one, of every ``op_type`` node."""
    arrays = initializers(proto)
    return [tuple(arrays[name] for name in node.input[1:]) for node in proto.graph.node if node.op_type == op_type]


def unchanged(new: onnx.ModelProto, old: onnx.ModelProto) -> bool:
    """Whether nodes and initializers are the same, bit for bit."""
    return _skeleton(new) == _skeleton(old)


def _skeleton(proto: onnx.ModelProto) -> object:
    nodes = [(n.op_type, *n.input, "to", *n.output, str(n.attribute)) for n in proto.graph.node]
    return nodes, {name: array.tobytes() for name, array in initializers(proto).items()}


# -- rows ------------------------------------------------------------------------------------------

_Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def _constant_rows(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Equal along every axis but the first: whichever others are normalized, there is no deviation at all."""
    rows = random.integers(-9, 9, (*shape[:1], *(1,) * (len(shape) - 1)))
    return np.broadcast_to(rows, shape).astype(np.float64)


def _outliers(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    x = random.standard_normal(shape)
    x[random.random(shape) < 0.05] = 1e4
    return x


ROWS: dict[str, _Draw] = {
    "zero": lambda random, shape: np.zeros(shape),
    "random": lambda random, shape: random.standard_normal(shape),
    "huge mean": lambda random, shape: 1e4 + random.standard_normal(shape),
    "constant rows": _constant_rows,
    "outliers": _outliers,
}


def hard_feeds(proto: onnx.ModelProto) -> Iterator[tuple[str, Arrays]]:
    """A name and an array an input, for each kind of row; integer inputs are indices below 4."""
    for name, draw in ROWS.items():
        random = np.random.default_rng(11)
        feeds: Arrays = {}
        for info in proto.graph.input:
            tensor = info.type.tensor_type
            shape = tuple(SIZES[dim.dim_param] if dim.dim_param else dim.dim_value for dim in tensor.shape.dim)
            if tensor.elem_type in FLOATS:
                feeds[info.name] = draw(random, shape).astype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
            else:
                feeds[info.name] = random.integers(0, 4, shape)
        yield name, feeds


# -- folding and comparing -------------------------------------------------------------------------


def reduced(proto: onnx.ModelProto, **options: object) -> tuple[onnx.ModelProto, Ledger]:
    """``proto`` folded, with the ledger; it comes out valid, and ``proto`` as it was."""
    before = proto.SerializeToString(deterministic=True)
    result: FoldResult = fold(proto, **options)  # type: ignore[arg-type]
    new = ir.to_proto(result.model)
    assert proto.SerializeToString(deterministic=True) == before, "the given model was changed"
    if not CONTRIB & set(counts(new)):
        onnx.checker.check_model(new, full_check=True)
    assert not result.ledger.dropped, "a rule asked for what its proof refuses"
    return new, result.ledger


def norm_entries(ledger: Ledger) -> list[Entry]:
    """The entries of norms, in the order of the graph."""
    return list(ledger.norms())


def deviation(old: onnx.ModelProto, new: onnx.ModelProto) -> float:
    """The largest difference in float64 on any hard feed, relative to the largest value of its channel."""
    worst = 0.0
    for _, feed in hard_feeds(old):
        expected, actual = truth(old, feed), truth(new, feed)
        worst = max(worst, *(_channel_error(want, actual[name]) for name, want in expected.items()))
    return worst


def assert_exact(old: onnx.ModelProto, new: onnx.ModelProto) -> None:
    """Both compute the same in float64 on every hard feed, up to one rounding of each weight."""
    error, bound = deviation(old, new), TOLERANCE[coarsest(old)]
    assert error <= bound, f"relative error {error:.3g}, bound {bound:.3g}"


def _channel_error(expected: np.ndarray, actual: np.ndarray) -> float:
    assert expected.shape == actual.shape, f"shape {expected.shape} became {actual.shape}"
    assert np.isfinite(expected).all(), "the test is of no use: its truth is not finite"
    assert np.isfinite(actual).all(), "not finite"
    # Where a channel is nothing but rounding (a constant row, normalized), it is measured against the whole.
    others = tuple(range(expected.ndim - 1))
    error, size = np.abs(expected - actual).max(axis=others), np.abs(expected).max(axis=others)
    return float(np.max(error / np.maximum(size, 1e-6 * np.abs(expected).max(initial=1e-6)), initial=0.0))


def coarsest(proto: onnx.ModelProto) -> str:
    """The float dtype of the fewest bits among inputs and initializers."""
    kinds = {info.type.tensor_type.elem_type for info in proto.graph.input}
    kinds |= {tensor.data_type for tensor in proto.graph.initializer}
    names = {np.dtype(helper.tensor_dtype_to_np_dtype(kind)).name for kind in kinds & FLOATS}
    return max(names, key=lambda name: TOLERANCE[name])


def run(proto: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What onnxruntime makes of ``feed``, in the model's own dtype."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feed)))


def assert_runs(proto: onnx.ModelProto, reference: onnx.ModelProto) -> None:
    """onnxruntime runs ``proto`` near the truth of ``reference``, on zero, random and constant rows."""
    for name, feed in hard_feeds(reference):
        if name not in ("zero", "random", "constant rows"):
            continue  # what float32 itself loses at huge means is no matter of the graph
        for want, actual in zip(truth(reference, feed).values(), run(proto, feed), strict=True):
            error = np.abs(actual.astype(np.float64) - want).max()
            assert error <= TOLERANCE[coarsest(reference)] * np.abs(want).max(initial=1.0), f"{name}: {error:.3g}"
