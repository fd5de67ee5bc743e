"""What every fold test needs: graphs from ONNX text, folding with its invariants, and the comparison."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import onnxruntime
from onnx import helper, numpy_helper
from reference64 import FLOATS, Arrays, is_float, truth
from support import says

from normdeploy.fold import FoldResult, Ledger, fold
from normdeploy.fold.ledger import METADATA_KEY

OPSET = 21
SIZES = {"N": 2, "H": 8, "W": 11, "T": 7, "L": 13}
"""What the named dimensions of a test graph stand for: odd, distinct from each other and from the channels."""

# A weight is rounded once, to half an ulp; sums of a few hundred such products stay within 16 of them.
TOLERANCE = {
    "float16": 16 * 2.0**-11,
    "bfloat16": 16 * 2.0**-8,
    "float32": 16 * 2.0**-24,
    "float64": 16 * 2.0**-53,
}


# -- models ----------------------------------------------------------------------------------------


def model(
    inputs: str, weights: str, body: str, *, outputs: str = "float[] y", opset: int = OPSET, ir_version: int = 10
) -> onnx.ModelProto:
    """A model from ONNX text; weights that are declared without a value are drawn (``var…`` and ``pos…`` positive)."""
    head = f'<ir_version: {ir_version}, opset_import: ["": {opset}]>'
    return parsed(f"{head} g ({inputs}) => ({outputs}) <{weights}> {{ {body} }}")


def parsed(text: str) -> onnx.ModelProto:
    """The model that ``text`` spells, its missing weights drawn."""
    proto = onnx.parser.parse_model(text)
    fill(proto.graph)
    _name_output_shapes(proto)
    return proto


def _name_output_shapes(proto: onnx.ModelProto) -> None:
    """The checker asks for the rank of every output."""
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    for info, found in zip(proto.graph.output, inferred.graph.output, strict=True):
        if not info.type.tensor_type.HasField("shape"):
            info.CopyFrom(found)


def fill(graph: onnx.GraphProto, seed: int = 0) -> None:
    """Turn every declared value that no node makes into an initializer with seeded random values."""
    rng = np.random.default_rng(seed)
    made = {name for node in graph.node for name in node.output}
    for info in [info for info in graph.value_info if info.name not in made]:
        graph.value_info.remove(info)
        tensor = info.type.tensor_type
        shape = [dim.dim_value for dim in tensor.shape.dim]
        positive = info.name.startswith(("var", "pos"))
        values = rng.uniform(0.5, 2.0, shape) if positive else rng.standard_normal(shape)
        array = np.asarray(values, helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        graph.initializer.append(numpy_helper.from_array(array, info.name))


def bn(channels: int, suffix: str = "", dtype: str = "float") -> str:
    """The declaration of a BatchNormalization's parameters."""
    return ", ".join(f"{dtype}[{channels}] {name}{suffix}" for name in ("gamma", "beta", "mean", "var"))


def norm(data: str, result: str, suffix: str = "") -> str:
    """A BatchNormalization in ONNX text."""
    return f"{result} = BatchNormalization ({data}, gamma{suffix}, beta{suffix}, mean{suffix}, var{suffix})\n"


def initializers(proto: onnx.ModelProto) -> Arrays:
    """The initializers of the main graph."""
    return {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}


# -- folding ---------------------------------------------------------------------------------------


def folded(proto: onnx.ModelProto, **options: object) -> tuple[onnx.ModelProto, Ledger]:
    """``proto`` folded, with the ledger; it must come out valid, and ``proto`` as it was."""
    before = proto.SerializeToString(deterministic=True)
    result: FoldResult = fold(proto, **options)  # type: ignore[arg-type]
    after = ir.to_proto(result.model)
    assert proto.SerializeToString(deterministic=True) == before, "the given model was changed"
    onnx.checker.check_model(after, full_check=True)
    if options.get("validate", True):
        assert_runs_as_before(proto, after)
    return after, result.ledger


def without_ledger(proto: onnx.ModelProto) -> bytes:
    """The bytes of ``proto`` but for the ledger that travels in it."""
    bare = copy.deepcopy(proto)
    kept = [prop for prop in bare.metadata_props if prop.key != METADATA_KEY]
    del bare.metadata_props[:]
    bare.metadata_props.extend(kept)
    return bytes(bare.SerializeToString(deterministic=True))


def skeleton(proto: onnx.ModelProto) -> tuple[list[bytes], dict[str, bytes]]:
    """The nodes and the initializers, bit for bit, as onnx_ir writes them."""
    proto = ir.to_proto(ir.from_proto(proto))
    nodes = [node.SerializeToString(deterministic=True) for node in proto.graph.node]
    return nodes, {name: array.tobytes() for name, array in initializers(proto).items()}


def op_types(proto: onnx.ModelProto) -> Counter[str]:
    """How often each operator stands in the model, bodies and functions included; Constant is no operator."""
    graphs = [proto.graph, *proto.functions]
    return Counter(node.op_type for graph in graphs for node in _nodes(graph) if node.op_type != "Constant")


def _nodes(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attr in node.attribute:
            for body in (*([attr.g] if attr.HasField("g") else []), *attr.graphs):
                yield from _nodes(body)


# -- comparing -------------------------------------------------------------------------------------


def feeds(proto: onnx.ModelProto, fill_with: Callable[[tuple[int, ...]], np.ndarray]) -> Arrays:
    """An array an input (not the initializers that old models list as inputs); integers below 4."""
    constants = {item.name for item in proto.graph.initializer}
    result = {}
    for info in proto.graph.input:
        if info.name in constants:
            continue
        tensor = info.type.tensor_type
        shape = tuple(SIZES[dim.dim_param] if dim.dim_param else dim.dim_value for dim in tensor.shape.dim)
        values = fill_with(shape)
        if tensor.elem_type not in FLOATS:
            values = np.abs(np.round(values)) % 4
        result[info.name] = np.asarray(values, helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    return result


def probes(proto: onnx.ModelProto) -> tuple[Arrays, ...]:
    """Zero, which exposes padding mistakes, and random inputs."""
    rng = np.random.default_rng(7)
    return feeds(proto, np.zeros), feeds(proto, lambda shape: rng.standard_normal(shape))


def assert_same(original: onnx.ModelProto, new: onnx.ModelProto, *, exactly: bool = False) -> None:
    """Both models compute the same in float64, per channel, up to the one rounding of each stored weight."""
    pairs = [(truth(original, feed), truth(new, feed)) for feed in probes(original)]
    for name in pairs[0][0]:
        olds, news = ([np.asarray(pair[side][name]) for pair in pairs] for side in (0, 1))
        if exactly or not is_float(olds[0]):
            np.testing.assert_array_equal(news, olds)
            continue
        error = channel_error(np.stack(olds), np.stack(news))
        assert error <= TOLERANCE[coarsest(original)], f"{name}: relative error {error:.3g} in some channel"


def channel_error(expected: np.ndarray, actual: np.ndarray) -> float:
    """The largest error of a channel (of any axis), relative to the largest value of that channel."""
    assert expected.shape == actual.shape, f"shape {expected.shape} became {actual.shape}"
    assert np.isfinite(expected).all(), "the test is of no use: its truth is not finite"
    assert np.isfinite(actual).all(), "not finite"
    worst = 0.0
    for axis in range(1, expected.ndim):
        others = tuple(i for i in range(expected.ndim) if i != axis)
        error, size = np.abs(expected - actual).max(axis=others), np.abs(expected).max(axis=others)
        worst = max(worst, float(np.max(np.divide(error, size, out=np.zeros_like(error), where=error > 0), initial=0)))
    return worst


def coarsest(proto: onnx.ModelProto) -> str:
    """The float dtype of the fewest bits among inputs and initializers."""
    kinds = {info.type.tensor_type.elem_type for info in proto.graph.input}
    kinds |= {tensor.data_type for tensor in proto.graph.initializer}
    names = {np.dtype(helper.tensor_dtype_to_np_dtype(kind)).name for kind in kinds & FLOATS}
    return max(names, key=lambda name: TOLERANCE[name])


def assert_runs_as_before(original: onnx.ModelProto, new: onnx.ModelProto) -> None:
    """Where onnxruntime runs ``original``, it runs ``new`` and computes nearly the same, in the model's own dtype."""
    before, after = _session(original), _session(new)
    if isinstance(before, str) or skeleton(original) == skeleton(new):
        return
    assert not isinstance(after, str), f"onnxruntime loads the original, and not the folded model: {after}"
    try:
        feed = probes(original)[1]
        expected = before.run(None, {item.name: feed[item.name] for item in before.get_inputs()})
    except Exception:  # a dimension that has no size here, or a size at which onnxruntime fails
        return
    actual = after.run(None, {item.name: feed[item.name] for item in after.get_inputs()})
    for info, want, got in zip(before.get_outputs(), expected, actual, strict=True):
        if info.type in ("tensor(float)", "tensor(double)", "tensor(float16)"):
            most = 128 * TOLERANCE[coarsest(new)] * np.abs(want.astype(np.float64)).max(initial=1e-30)
            if _distance(got, want) > most:  # unless sums cancel, in the original too
                exact = truth(original, feed)[info.name]
                assert _distance(got, exact) <= most + 4 * _distance(want, exact), info.name


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(np.float64) - b).max(initial=0.0))


def _session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession | str:
    """A session that runs ``proto`` as it is written, or why there is none."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    flat = onnx.inliner.inline_local_functions(proto) if proto.functions else proto  # some functions end the process
    try:
        return onnxruntime.InferenceSession(flat.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        return str(error)


def runs_in_onnxruntime(proto: onnx.ModelProto, reference: onnx.ModelProto) -> None:
    """onnxruntime accepts ``proto``; in the model's own dtype it computes nearly the truth of ``reference``."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feed = probes(proto)[1]
    given = {item.name: feed[item.name] for item in session.get_inputs()}
    expected = truth(reference, feed)
    for info, actual in zip(session.get_outputs(), session.run(None, given), strict=True):
        want = expected[info.name]
        size = np.abs(want).max(initial=1e-30)
        # A float32 run sums its own rounding errors: 64 times the tolerance for the weights alone.
        assert np.abs(actual.astype(np.float64) - want).max(initial=0.0) <= 64 * TOLERANCE[coarsest(proto)] * size


# -- checking a case -------------------------------------------------------------------------------


def check_fold(proto: onnx.ModelProto, becomes: str, *, onnxruntime: bool = True) -> Ledger:
    """``proto`` folds to the operators ``becomes``, stays right and valid, and folds no further."""
    new, ledger = folded(proto)
    assert op_types(new) == Counter(becomes.split()), "\n".join(f"{e.module} {e.kind}: {e}" for e in ledger)
    assert not ledger.dropped, "a rule asked for what its proof refuses"
    assert_same(proto, new)
    if onnxruntime:
        runs_in_onnxruntime(new, proto)
    again, _ = folded(new)
    assert without_ledger(again) == without_ledger(new), "folding twice changes something"
    return ledger


def check_refusal(proto: onnx.ModelProto, reason: str) -> Ledger:
    """Nothing of ``proto`` changes, and the ledger gives ``reason``, a code and perhaps a node; none: it has no map."""
    new, ledger = folded(proto)
    left = [entry for entry in ledger if entry.outcome == "left"]
    if reason:
        assert any(says(entry, reason) for entry in left), [str(entry) for entry in ledger]
    assert all(entry.codes for entry in left)
    assert not ledger.dropped, "a rule asked for what its proof refuses"
    assert skeleton(new) == skeleton(proto)
    assert len(left) == len(ledger.entries)
    return ledger
