"""What every fold test needs: graphs from ONNX text, an independent float64 truth, and the comparison.

The truth is onnx's reference evaluator on the model with everything in float64, with PyTorch in the place of
its convolutions (it has no grouped ConvTranspose). Nothing of normdeploy takes part in it.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from normdeploy.fold import FoldResult, Ledger, fold
from normdeploy.fold.ledger import METADATA_KEY

Arrays = dict[str, np.ndarray]

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

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}


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


# -- the truth -------------------------------------------------------------------------------------


def truth(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> Arrays:
    """The outputs of ``proto`` with all its numbers in float64."""
    wide = in_float64(proto)
    evaluator = ReferenceEvaluator(wide, new_ops=OPERATORS)
    inputs = {name: array.astype(np.float64) if is_float(array) else array for name, array in feeds.items()}
    with np.errstate(all="ignore"):
        results = evaluator.run(None, inputs)
    return {info.name: np.asarray(array) for info, array in zip(proto.graph.output, results, strict=True)}


def is_float(array: np.ndarray) -> bool:
    """Whether ``array`` holds floating-point numbers, bfloat16 included."""
    return array.dtype.kind == "f" or array.dtype == ml_dtypes.bfloat16


def in_float64(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of ``proto`` with every float tensor, type and cast in float64."""
    wide = copy.deepcopy(proto)
    for graph in (wide.graph, *wide.functions):
        _widen(graph)
    return wide


def _widen(graph: onnx.GraphProto | onnx.FunctionProto) -> None:
    if isinstance(graph, onnx.GraphProto):
        for tensor in graph.initializer:
            _widen_tensor(tensor)
        for info in (*graph.input, *graph.output):
            if info.type.tensor_type.elem_type in _FLOATS:
                info.type.tensor_type.elem_type = TensorProto.DOUBLE
    del graph.value_info[:]
    for node in graph.node:
        for attr in node.attribute:
            if attr.HasField("t"):
                _widen_tensor(attr.t)
            elif node.op_type == "Constant" and attr.name in ("value_float", "value_floats"):
                value = np.array(attr.f if attr.name == "value_float" else attr.floats, np.float64)
                attr.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(value)))
            elif node.op_type == "Cast" and attr.name == "to" and attr.i in _FLOATS:
                attr.i = TensorProto.DOUBLE
            for body in (*([attr.g] if attr.HasField("g") else []), *attr.graphs):
                _widen(body)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _FLOATS:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


def _windows(x: torch.Tensor, spans: list[int], strides: list[int], auto_pad: str, pads: list[int]) -> list[int]:
    """The pads of a Conv, resolved: first cell of every axis, then the last of every axis."""
    if auto_pad in ("NOTSET", "", None):
        return pads or [0] * 2 * len(spans)
    if auto_pad == "VALID":
        return [0] * 2 * len(spans)
    lows, highs = [], []
    for size, span, stride in zip(x.shape[2:], spans, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + span - size, 0)
        small, large = total // 2, total - total // 2
        lows.append(small if auto_pad == "SAME_UPPER" else large)
        highs.append(large if auto_pad == "SAME_UPPER" else small)
    return lows + highs


class Conv(OpRun):  # type: ignore[misc]
    """PyTorch's convolution under the ONNX name."""

    op_domain = ""

    def _run(self, x, w, b=None, auto_pad=None, dilations=None, group=None, kernel_shape=None, pads=None, strides=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        spatial = x.ndim - 2
        x, w, b = (None if a is None else torch.from_numpy(np.array(a)) for a in (x, w, b))
        strides, dilations = list(strides or [1] * spatial), list(dilations or [1] * spatial)
        spans = [d * (k - 1) + 1 for d, k in zip(dilations, w.shape[2:], strict=True)]
        pads = _windows(x, spans, strides, auto_pad, list(pads or []))
        x = F.pad(x, [p for i in reversed(range(spatial)) for p in (pads[i], pads[spatial + i])])
        conv = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
        return (conv(x, w, b, stride=strides, dilation=dilations, groups=group or 1).numpy(),)


class ConvTranspose(OpRun):  # type: ignore[misc]
    """PyTorch's transposed convolution under the ONNX name: full, then cut."""

    op_domain = ""

    def _run(  # type: ignore[no-untyped-def]
        self, x, w, b=None, auto_pad=None, dilations=None, group=None, kernel_shape=None, output_padding=None,  # noqa: ANN001
        output_shape=None, pads=None, strides=None,  # noqa: ANN001
    ):  # noqa: ANN202 # fmt: skip
        spatial = x.ndim - 2
        x, w, b = (None if a is None else torch.from_numpy(np.array(a)) for a in (x, w, b))
        strides, dilations = list(strides or [1] * spatial), list(dilations or [1] * spatial)
        assert output_shape is None, "no test needs it"
        assert auto_pad in (None, "NOTSET", "VALID"), "no test needs it"
        conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
        y = conv(x, w, None, stride=strides, dilation=dilations, groups=group or 1)
        extra, pads = list(output_padding or [0] * spatial), list(pads or [0] * 2 * spatial)
        cut = [p for i in reversed(range(spatial)) for p in (-pads[i], extra[i] - pads[spatial + i])]
        y = F.pad(y, cut)
        return ((y if b is None else y + b.reshape(-1, *[1] * spatial)).numpy(),)


class MaxPool(OpRun):  # type: ignore[misc]
    """PyTorch's max pool under the ONNX name (onnx's reference confuses the axes of pads)."""

    op_domain = ""

    def _run(  # type: ignore[no-untyped-def]
        self, x, auto_pad=None, ceil_mode=None, dilations=None, kernel_shape=None, pads=None, storage_order=None,  # noqa: ANN001
        strides=None,  # noqa: ANN001
    ):  # noqa: ANN202 # fmt: skip
        assert auto_pad in (None, "NOTSET") and not ceil_mode and not storage_order, "no test needs it"
        spatial = x.ndim - 2
        pads = list(pads or [0] * 2 * spatial)
        padding = [p for i in reversed(range(spatial)) for p in (pads[i], pads[spatial + i])]
        wide = F.pad(torch.from_numpy(np.array(x)), padding, value=-float("inf"))
        places = F.pad(torch.arange(x.size, dtype=torch.float64).reshape(x.shape), padding)
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[spatial - 1]
        y, i = pool(wide, kernel_shape, strides or 1, 0, dilations or 1, return_indices=True)
        indices = places.flatten(2).gather(2, i.flatten(2)).reshape(i.shape).to(torch.int64)
        return y.numpy(), indices.numpy()


class Pad(OpRun):  # type: ignore[misc]
    """PyTorch's constant padding, which may cut (onnx's reference cannot), else numpy's."""

    op_domain = ""

    def _run(self, x, pads=None, value=None, axes=None, mode=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        assert axes is None, "no test needs it"
        pairs = np.asarray(pads).reshape(2, -1).T
        if mode not in (None, "constant"):
            return (np.pad(x, pairs, mode=mode),)
        fill = 0.0 if value is None else float(np.asarray(value).reshape(()))
        flat = [int(p) for pair in reversed(pairs.tolist()) for p in pair]
        return (F.pad(torch.from_numpy(np.array(x)), flat, value=fill).numpy(),)


OPERATORS = [Conv, ConvTranspose, MaxPool, Pad]


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
        if tensor.elem_type not in _FLOATS:
            values = np.abs(np.round(values)) % 4
        result[info.name] = values.astype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
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
    names = {np.dtype(helper.tensor_dtype_to_np_dtype(kind)).name for kind in kinds & _FLOATS}
    return max(names, key=lambda name: TOLERANCE[name])


def runs_in_onnxruntime(proto: onnx.ModelProto, reference: onnx.ModelProto) -> None:
    """onnxruntime accepts ``proto``, and what it computes in the model's own dtype is near the truth of ``reference``."""
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
    """Nothing of ``proto`` changes, and the ledger gives ``reason``; no reason: nothing in it is a map at all."""
    new, ledger = folded(proto)
    left = [entry for entry in ledger if entry.outcome == "left"]
    if reason:
        assert any(reason in entry.reason for entry in left), [str(entry) for entry in ledger]
    assert not ledger.dropped, "a rule asked for what its proof refuses"
    assert skeleton(new) == skeleton(proto)
    assert len(left) == len(ledger.entries)
    return ledger
