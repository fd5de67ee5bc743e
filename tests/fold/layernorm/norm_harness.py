"""What the tests of reduced norms need beside the fold harness: hard rows, and truth for contrib operators.

The rows that norms get wrong: a mean far larger than the deviation, rows that are constant, single outliers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from harness import SIZES, TOLERANCE, channel_error, coarsest, op_types
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from truth import Arrays, Conv, in_float64, is_float

from normdeploy.fold import Entry, FoldResult, Ledger, fold

CONTRIB = frozenset({"SimplifiedLayerNormalization"})
"""Operators that onnxruntime adds to the default domain; onnx knows nothing of them."""


class GroupNormalization(OpRun):  # type: ignore[misc]
    """Wu & He 2018, arXiv 1803.08494 (onnx's reference computes its statistics in float32)."""

    op_domain = ""

    def _run(self, x, scale, bias, epsilon=None, num_groups=None, stash_type=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        groups = x.reshape(x.shape[0], num_groups, -1)
        groups = groups - groups.mean(-1, keepdims=True)
        groups = groups / np.sqrt((groups**2).mean(-1, keepdims=True) + epsilon)
        channels = (1, -1, *(1,) * (x.ndim - 2))
        return (groups.reshape(x.shape) * scale.reshape(channels) + bias.reshape(channels),)


class SimplifiedLayerNormalization(OpRun):  # type: ignore[misc]
    """onnxruntime's name of RMSNormalization (Zhang & Sennrich 2019, arXiv 1910.07467)."""

    op_domain = ""

    def _run(self, x, scale, axis=None, epsilon=None, stash_type=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        axes = tuple(range(axis % x.ndim, x.ndim))
        return (x / np.sqrt((x**2).mean(axis=axes, keepdims=True) + epsilon) * scale,)


def truth(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> Arrays:
    """The outputs of ``proto`` with all its numbers in float64."""
    own = [Conv, GroupNormalization, SimplifiedLayerNormalization]
    evaluator = ReferenceEvaluator(in_float64(proto), new_ops=own)
    inputs = {name: array.astype(np.float64) if is_float(array) else array for name, array in feeds.items()}
    with np.errstate(all="ignore"):
        results = evaluator.run(None, inputs)
    return {info.name: np.asarray(array) for info, array in zip(proto.graph.output, results, strict=True)}


# -- rows ------------------------------------------------------------------------------------------

_Fill = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def _constant_rows(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Along every axis but one: whichever is normalized, whole rows of it are equal."""
    rows = random.integers(-9, 9, (*shape[:1], *(1,) * (len(shape) - 1)))
    return np.broadcast_to(rows, shape).astype(np.float64)


def _outliers(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    x = random.standard_normal(shape)
    x[random.random(shape) < 0.05] = 1e4
    return x


FILLS: dict[str, _Fill] = {
    "zero": lambda random, shape: np.zeros(shape),
    "random": lambda random, shape: random.standard_normal(shape),
    "huge mean": lambda random, shape: 1e4 + random.standard_normal(shape),
    "constant rows": _constant_rows,
    "outliers": _outliers,
}


def hard_feeds(proto: onnx.ModelProto) -> Iterator[tuple[str, Arrays]]:
    """A name and an array an input, for each kind of hard row; integer inputs are indices below 4."""
    for name, fill in FILLS.items():
        random = np.random.default_rng(11)
        feeds: Arrays = {}
        for info in proto.graph.input:
            tensor = info.type.tensor_type
            shape = tuple(SIZES[dim.dim_param] if dim.dim_param else dim.dim_value for dim in tensor.shape.dim)
            dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
            values = fill(random, shape)
            feeds[info.name] = (values if is_float(np.empty(0, dtype)) else np.abs(values) % 4).astype(dtype)
        yield name, feeds


# -- folding and comparing -------------------------------------------------------------------------


def reduced(proto: onnx.ModelProto, **options: object) -> tuple[onnx.ModelProto, Ledger]:
    """``proto`` folded, with the ledger; it comes out valid, and ``proto`` as it was."""
    before = proto.SerializeToString(deterministic=True)
    result: FoldResult = fold(proto, **options)  # type: ignore[arg-type]
    new = ir.to_proto(result.model)
    assert proto.SerializeToString(deterministic=True) == before, "the given model was changed"
    if not CONTRIB & set(op_types(new)):
        onnx.checker.check_model(new, full_check=True)
    assert not result.ledger.dropped, "a rule asked for what its proof refuses"
    return new, result.ledger


def assert_exact(old: onnx.ModelProto, new: onnx.ModelProto) -> None:
    """Both compute the same in float64 on every hard feed, per channel, up to one rounding of each weight."""
    for name, feed in hard_feeds(old):
        expected, actual = truth(old, feed), truth(new, feed)
        for output, want in expected.items():
            error = channel_error(want, actual[output]) if is_float(want) else float(np.any(want != actual[output]))
            # Four times what a weight alone may lose: a Softmax amplifies it.
            assert error <= 4 * TOLERANCE[coarsest(old)], f"{name}: {output} is off by {error:.3g}"


def runs(proto: onnx.ModelProto, reference: onnx.ModelProto) -> None:
    """onnxruntime runs ``proto`` in its own dtype, near the truth of ``reference``, on random and constant rows."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for name, feed in hard_feeds(reference):
        if name not in ("random", "constant rows"):
            continue
        expected = truth(reference, feed)
        for info, actual in zip(session.get_outputs(), session.run(None, feed), strict=True):
            want = expected[info.name]
            error = np.abs(actual.astype(np.float64) - want).max()
            # A run in the model's own dtype sums its own rounding errors: 64 times those of the weights alone.
            assert error <= 64 * TOLERANCE[coarsest(reference)] * np.abs(want).max(initial=1e-3), f"{name}: {error:.3g}"


def counts(proto: onnx.ModelProto) -> Counter[str]:
    """How often each operator stands in ``proto``."""
    return op_types(proto)


def norm_entries(ledger: Ledger) -> list[Entry]:
    """The entries of norms, in the order of the graph."""
    return list(ledger.norms())


def parameters(proto: onnx.ModelProto, op_type: str) -> list[tuple[np.ndarray, ...]]:
    """The scale, and the bias where there is one, of every ``op_type`` node."""
    arrays = {item.name: onnx.numpy_helper.to_array(item) for item in proto.graph.initializer}
    return [tuple(arrays[name] for name in node.input[1:]) for node in proto.graph.node if node.op_type == op_type]


def unchanged(new: onnx.ModelProto, old: onnx.ModelProto) -> bool:
    """Whether nodes and initializers are the same, bit for bit."""
    return _skeleton(new) == _skeleton(old)


def _skeleton(proto: onnx.ModelProto) -> object:
    nodes = [(n.op_type, *n.input, "to", *n.output, str(n.attribute)) for n in proto.graph.node]
    return nodes, {item.name: onnx.numpy_helper.to_array(item).tobytes() for item in proto.graph.initializer}
