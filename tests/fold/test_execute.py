"""The proof's own executors against PyTorch in float64, onnx's reference and onnxruntime.

onnxruntime runs in float32, so it is met to float32's precision only: it knows what PyTorch does not spell
(auto_pad, output_shape, ceil_mode with pads on one side).
"""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper
from reference64 import Arrays

from normdeploy.fold.float64 import products
from normdeploy.fold.operators import table

RNG = np.random.default_rng(17)
EXACT = 1e-12
SINGLE = 1e-5


def draw(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def torched(*arrays: np.ndarray | None) -> list[Any]:
    return [None if a is None else torch.from_numpy(a) for a in arrays]


def run(op: str, attributes: dict[str, Any], *inputs: np.ndarray | None, outputs: int = 1, opset: int = 21) -> Any:
    results = table.run(op, attributes, list(inputs), opset, outputs)
    return results[0] if outputs == 1 else results


def in_onnxruntime(
    op: str, attributes: dict[str, Any], x: np.ndarray, *constants: np.ndarray | None, outputs: int = 1, opset: int = 21
) -> list[np.ndarray]:
    """One operator in float32."""
    stored: Arrays = {f"i{k}": c.astype(np.float32) if c.dtype == np.float64 else c
                      for k, c in enumerate(constants) if c is not None}  # fmt: skip
    names = ["x", *(f"i{k}" if c is not None else "" for k, c in enumerate(constants))]
    outs = [f"o{k}" for k in range(outputs)]
    graph = helper.make_graph(
        [helper.make_node(op, names, outs, **attributes)], "one",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x.shape)],
        [helper.make_empty_tensor_value_info(name) for name in outs],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    inferred = onnx.shape_inference.infer_shapes(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(inferred.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results: list[np.ndarray] = session.run(None, {"x": x.astype(np.float32)})
    return results


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float = EXACT) -> None:
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max(initial=0.0) <= tolerance * max(1.0, np.abs(expected).max(initial=0.0))


# -- Conv ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_conv_is_pytorchs(spatial: int, groups: int, bias: bool) -> None:
    sizes, kernel = (9, 8, 7)[:spatial], (3, 2, 4)[:spatial]
    x, w = draw(2, 6, *sizes), draw(12, 6 // groups, *kernel)
    b = draw(12) if bias else None
    strides, dilations, pads = [2, 1, 3][:spatial], [1, 2, 1][:spatial], [1, 2, 0][:spatial]
    conv = (F.conv1d, F.conv2d, F.conv3d)[spatial - 1]
    expected = conv(*torched(x, w, b), stride=strides, padding=pads, dilation=dilations, groups=groups)
    attributes = {"strides": strides, "dilations": dilations, "pads": pads * 2, "group": groups}
    assert_close(run("Conv", attributes, x, w, b), expected.numpy())


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_conv_of_a_stored_weight_is_computed_in_float64_in_parts(
    block: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_BLOCK", block)
    x, w = draw(2, 4, 5, 6), draw(6, 4 // groups, 2, 3)
    for stored in (w.astype(np.float32), w.astype(np.float16), w.astype(ml_dtypes.bfloat16)):
        expected = F.conv2d(*torched(x, stored.astype(np.float64)), groups=groups)
        assert_close(run("Conv", {"group": groups}, x, stored), expected.numpy())


@pytest.mark.parametrize("block", [1, 20, 1 << 20])
@pytest.mark.parametrize(
    ("left", "right"),
    [((5, 3), (3, 4)), ((3,), (3, 4)), ((2, 5, 3), (3, 4)), ((2, 5, 3), (3,)), ((2, 5, 3), (2, 3, 4)),
     ((3,), (3,)), ((4, 1, 5, 3), (2, 3, 4)), ((2, 0, 3), (3, 4))],
)  # fmt: skip
def test_matmul_is_pytorchs(
    left: tuple[int, ...], right: tuple[int, ...], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_BLOCK", block)
    a, b = draw(*left), draw(*right)
    for stored in (b, b.astype(np.float32), b.astype(np.float16), b.astype(ml_dtypes.bfloat16)):
        expected = torch.matmul(*torched(a, stored.astype(np.float64))).numpy()
        assert_close(run("MatMul", {}, a, stored), expected)
        assert_close(run("MatMul", {}, a * 0, stored), expected * 0)


def test_operators_that_differ_in_an_attribute_do_not_meet() -> None:
    x = draw(2, 3, 4)
    for perm in ([0, 2, 1], [2, 0, 1], [0, 2, 1]):
        np.testing.assert_array_equal(run("Transpose", {"perm": perm}, x), x.transpose(perm))
    for axis in (0, 1, 0):
        np.testing.assert_array_equal(run("Concat", {"axis": axis}, x, x), np.concatenate([x, x], axis))


def test_conv_with_no_attributes() -> None:
    x, w = draw(2, 3, 7, 8), draw(5, 3, 2, 3)
    assert_close(run("Conv", {}, x, w), F.conv2d(*torched(x, w)).numpy())


def test_conv_with_pads_on_one_side() -> None:
    x, w = draw(2, 3, 7, 8), draw(5, 3, 2, 3)
    padded = F.pad(torch.from_numpy(x), (0, 2, 1, 0))  # last axis first: columns (0, 2), rows (1, 0)
    assert_close(run("Conv", {"pads": [1, 0, 0, 2]}, x, w), F.conv2d(padded, torch.from_numpy(w)).numpy())


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize(("size", "strides"), [((7, 8), [1, 1]), ((7, 8), [2, 3]), ((9, 6), [3, 2])])
def test_conv_with_auto_pad(auto_pad: str, size: tuple[int, int], strides: list[int]) -> None:
    x, w = draw(2, 3, *size), draw(5, 3, 4, 3)
    attributes = {"auto_pad": auto_pad, "strides": strides}
    assert_close(run("Conv", attributes, x, w), in_onnxruntime("Conv", attributes, x, w)[0], SINGLE)


# -- ConvTranspose ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_conv_transpose_is_pytorchs(spatial: int, groups: int, bias: bool) -> None:
    sizes, kernel = (5, 4, 3)[:spatial], (3, 2, 4)[:spatial]
    x, w = draw(2, 6, *sizes), draw(6, 4, *kernel)
    b = draw(4 * groups) if bias else None
    strides, dilations = [2, 3, 2][:spatial], [1, 2, 1][:spatial]
    pads, extra = [1, 0, 2][:spatial], [1, 0, 1][:spatial]
    conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[spatial - 1]
    expected = conv(
        *torched(x, w, b), stride=strides, padding=pads, output_padding=extra, groups=groups, dilation=dilations
    )
    attributes = {
        "strides": strides, "dilations": dilations, "pads": pads * 2, "output_padding": extra, "group": groups
    }  # fmt: skip
    assert_close(run("ConvTranspose", attributes, x, w, b), expected.numpy())


def test_conv_transpose_with_no_attributes() -> None:
    x, w = draw(2, 3, 4, 5), draw(3, 5, 2, 3)
    assert_close(run("ConvTranspose", {}, x, w), F.conv_transpose2d(*torched(x, w)).numpy())


@pytest.mark.parametrize(
    "attributes",
    [
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [3, 2]},
        {"auto_pad": "VALID", "strides": [2, 3]},
        {"output_shape": [9, 11], "strides": [2, 2]},
        {"output_shape": [8, 10], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"pads": [1, 0, 2, 1], "strides": [2, 3]},
        {"pads": [1, 0, 2, 1], "strides": [2, 3], "output_padding": [1, 2]},
    ],
    ids=str,
)
def test_conv_transpose_as_onnxruntime_places_it(attributes: dict[str, Any]) -> None:
    x, w = draw(2, 3, 4, 5), draw(3, 5, 4, 3)
    assert_close(run("ConvTranspose", attributes, x, w), in_onnxruntime("ConvTranspose", attributes, x, w)[0], SINGLE)


# -- pools -----------------------------------------------------------------------------------------

WINDOWS = [
    {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "ceil_mode": ceil, **pads}
    for kernel, strides, dilations, ceil, pads in itertools.product(
        [[2, 3], [3, 3]],
        [[1, 1], [2, 3]],
        [[1, 1], [2, 1]],
        [0, 1],
        [{}, {"pads": [1, 1, 0, 1]}, {"pads": [1, 2, 1, 0]}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}],
    )
    # onnxruntime's auto_pad forgets the dilation, and contradicts the shape that onnx infers
    if "auto_pad" not in pads or dilations == [1, 1]
]


@pytest.mark.parametrize("attributes", WINDOWS, ids=str)
def test_pools_are_onnxruntimes(attributes: dict[str, Any]) -> None:
    x = draw(2, 3, 6, 9)
    for order in (0, 1):
        named = attributes | {"storage_order": order}
        values, indices = run("MaxPool", named, x, outputs=2)
        expected, places = in_onnxruntime("MaxPool", named, x, outputs=2)
        assert_close(values, expected, SINGLE)
        np.testing.assert_array_equal(indices, places)
    for counted in (0, 1):
        named = attributes | {"count_include_pad": counted}
        assert_close(run("AveragePool", named, x), in_onnxruntime("AveragePool", named, x)[0], SINGLE)


def test_max_pool_of_negative_numbers_never_takes_a_pad() -> None:
    x = -np.abs(draw(1, 2, 4, 4)) - 1.0
    assert run("MaxPool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, x).max() < 0


@pytest.mark.parametrize("spatial", [1, 3])
def test_pools_in_other_dimensions_are_pytorchs(spatial: int) -> None:
    x, kernel = draw(2, 3, *(7, 6, 5)[:spatial]), [2, 3, 2][:spatial]
    attributes = {"kernel_shape": kernel, "strides": [2, 1, 2][:spatial]}
    for name, pools in (
        ("MaxPool", (F.max_pool1d, F.max_pool3d)),
        ("AveragePool", (F.avg_pool1d, F.avg_pool3d)),
    ):
        result = table.run(name, attributes, [x], 21, 1)[0]
        expected = pools[spatial // 2](torch.from_numpy(x), kernel, attributes["strides"])
        assert_close(result, expected.numpy())


# -- norms -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_batch_normalization_is_pytorchs(rank: int) -> None:
    x = draw(2, 5, *(3, 4, 2)[: rank - 2])
    scale, bias, mean, var = draw(5), draw(5), draw(5), np.abs(draw(5)) + 0.1
    eps = float(np.float32(1e-3))
    x_, mean_, var_, scale_, bias_ = torched(x, mean, var, scale, bias)
    expected = F.batch_norm(x_, mean_, var_, scale_, bias_, training=False, eps=eps)
    assert_close(run("BatchNormalization", {"epsilon": 1e-3}, x, scale, bias, mean, var), expected.numpy())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("axis", [-1, -2, 1])
def test_layer_normalization_is_pytorchs(axis: int, bias: bool) -> None:
    x = draw(2, 3, 4, 5)
    shape = x.shape[axis:]
    scale, shift = draw(*shape), draw(*shape) if bias else None
    expected = F.layer_norm(torch.from_numpy(x), shape, *torched(scale, shift), eps=float(np.float32(1e-5)))
    assert_close(run("LayerNormalization", {"axis": axis}, x, scale, shift), expected.numpy())


# -- movers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["edge", "reflect", "wrap", "constant"])
def test_pad_is_the_references(mode: str) -> None:
    x, pads = draw(2, 3, 6, 7), np.array([0, 0, 1, 2, 0, 1, 3, 0])
    node = helper.make_node("Pad", ["x", "p", "k"], ["y"], mode=mode)
    inputs = [helper.make_empty_tensor_value_info(name) for name in ("x", "p", "k")]
    graph = helper.make_graph([node], "one", inputs, [helper.make_empty_tensor_value_info("y")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    feeds = {"x": x, "p": pads, "k": np.array(1.5)}
    if mode != "constant":
        pads[5] = 0  # no channel to reflect onto
    expected = onnx.reference.ReferenceEvaluator(model).run(None, feeds)[0]
    np.testing.assert_array_equal(run("Pad", {"mode": mode}, x, pads, np.array(1.5)), expected)


def test_negative_pads_cut() -> None:
    x = draw(2, 3, 6, 7)
    cut = run("Pad", {}, x, np.array([0, 0, -1, 2, 0, 0, 0, -3]), np.array(9.0))
    assert cut.shape == (2, 3, 5, 6)
    np.testing.assert_array_equal(cut[..., :2], 9.0)
    np.testing.assert_array_equal(cut[..., 2:], x[:, :, 1:, :4])


def test_pad_of_named_axes_and_with_attributes() -> None:
    x = draw(2, 3, 6, 7)
    named = run("Pad", {}, x, np.array([1, 2]), None, np.array([-1]))
    np.testing.assert_array_equal(named, np.pad(x, [(0, 0)] * 3 + [(1, 2)]))
    old = run("Pad", {"pads": [0, 0, 0, 1, 0, 0, 0, 2], "value": 2.0}, x, opset=2)
    np.testing.assert_array_equal(old, np.pad(x, [(0, 0)] * 3 + [(1, 2)], constant_values=2.0))


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize_weights_sum_to_one_in_float64(mode: str) -> None:
    ones = run("Resize", {"mode": mode}, np.ones((1, 2, 5, 6)), None, np.array([1.0, 1.0, 1.5, 2.0]))
    assert_close(ones, np.ones_like(ones), 1e-14)


def test_resize_is_pytorchs() -> None:
    x = draw(1, 2, 5, 6)
    scales = np.array([1.0, 1.0, 3.0, 2.0])
    for mode, theirs in (("linear", "bilinear"), ("cubic", "bicubic")):
        expected = F.interpolate(torch.from_numpy(x), scale_factor=(3, 2), mode=theirs, align_corners=False)
        assert_close(run("Resize", {"mode": mode}, x, None, scales), expected.numpy())


@pytest.mark.parametrize("opset", [7, 9])
def test_upsample_repeats(opset: int) -> None:
    x, scales = draw(1, 2, 3, 4), [1.0, 1.0, 2.0, 3.0]
    y = run("Upsample", {"scales": scales}, x, opset=7) if opset == 7 else run("Upsample", {}, x, np.array(scales))
    np.testing.assert_array_equal(y, x.repeat(2, 2).repeat(3, 3))


# -- what is no arithmetic -------------------------------------------------------------------------


def test_casts_and_dropout_are_the_identity_on_real_numbers() -> None:
    x = draw(3, 4)
    for name, attributes in (("Cast", {"to": 10}), ("Dropout", {}), ("Identity", {})):
        np.testing.assert_array_equal(run(name, attributes, x), x)


def test_everything_else_is_the_references() -> None:
    x = draw(2, 8, 3, 3)
    expected = F.pixel_shuffle(torch.from_numpy(x), 2).numpy()
    np.testing.assert_array_equal(run("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, x), expected)
