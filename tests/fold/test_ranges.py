"""Float16 ends at 65504: what is finite in the original stays so, and what cannot outgrow it folds all the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from harness import assert_same, check_fold, check_refusal, folded, initializers, model, op_types
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from normdeploy.errors import InputError
from normdeploy.fold import fold

UP = {  # what stands between the convolution and the scale, and makes large values small
    "average": "p = AveragePool <kernel_shape=[2,2], strides=[2,2]> (c)",
    "global": "p = GlobalAveragePool (c)",
    "mean": "p = ReduceMean (c, axes)",
    "sum": "u = Transpose <perm=[0,1,3,2]> (x) n = Conv (u, minus) p = Add (c, n)",
    "difference": "n = Conv (x, w) p = Sub (c, n)",
    "resize": "p = Resize <mode = \"linear\"> (c, , half)",
    "positive": "a = GlobalAveragePool (c) p = Relu (a)",
}  # fmt: skip
SHOWS = {  # what stands between, and shows what is too large
    "nothing": "p = Identity (c)",
    "largest": "p = MaxPool <kernel_shape=[2,2]> (c)",
    "positive": "p = Relu (c)",
    "moved": "t = Transpose <perm=[0,1,3,2]> (c) p = Reshape (t, shape)",
    "beside": "n = Conv (x, minus) p = Concat <axis=0> (c, n)",
}
WEIGHTS = (
    "{dtype}[4,3,1,1] w, {dtype}[4,3,1,1] minus, {dtype}[4,1,1] s, {dtype} k, int64[2] axes = {{2,3}}, "
    "float[4] half = {{1,1,0.5,0.5}}, int64[4] shape = {{2,4,8,8}}"
)


def scaled(between: str, scale: float, dtype: str = "float16") -> onnx.ModelProto:
    """A convolution, what stands ``between``, and a scale."""
    body = f"c = Conv (x, w) {between} y = Mul (p, s)"
    proto = model(f"{dtype}[2,3,8,8] x", WEIGHTS.format(dtype=dtype), body, outputs=f"{dtype}[] y", opset=22)
    weights = initializers(proto)
    return with_values(proto, s=np.linspace(scale / 2, scale, 4).reshape(4, 1, 1), minus=-weights["w"])


def with_values(proto: onnx.ModelProto, **values: np.ndarray) -> onnx.ModelProto:
    for tensor in proto.graph.initializer:
        if tensor.name in values:
            dtype = numpy_helper.to_array(tensor).dtype
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name].astype(dtype), tensor.name))
    return proto


def in_float16(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """What kernels that compute in float16 give, each operator rounded."""
    with np.errstate(all="ignore"):
        (result,) = ReferenceEvaluator(proto).run(None, {"x": x})
    assert result.dtype == np.float16
    return result.astype(np.float64)


def large(proto: onnx.ModelProto) -> np.ndarray:
    """An input whose convolution is about 1000, and whose mean over each plane, and over each pair, is about 0."""
    size = [dim.dim_value for dim in proto.graph.input[0].type.tensor_type.shape.dim]
    signs = np.tile([[1.0, -1.0], [-1.0, 1.0]], (size[2] // 2, size[3] // 2))
    return np.asarray(np.random.default_rng(1).uniform(500, 1000, (2, 3, 1, 1)) * signs, np.float16)


@pytest.mark.parametrize("between", UP)
def test_what_was_finite_stays_finite(between: str) -> None:
    proto = scaled(UP[between], 300)
    check_refusal(proto, "NF022")
    assert np.isfinite(in_float16(proto, large(proto))).all()


@pytest.mark.parametrize("between", UP)
def test_scales_of_most_norms_still_fold(between: str) -> None:
    proto = scaled(UP[between], 10)
    new, ledger = folded(proto)
    assert "Mul" not in op_types(new), [str(entry) for entry in ledger]
    assert_same(proto, new)
    assert np.isfinite(in_float16(new, large(proto))).all()


@pytest.mark.parametrize("between", SHOWS)
def test_what_shows_a_value_that_is_too_large_passes_any_scale(between: str) -> None:
    proto = scaled(SHOWS[between], 300)
    new, ledger = folded(proto)
    assert "Mul" not in op_types(new), [str(entry) for entry in ledger]
    x = large(proto) / np.float16(40)
    np.testing.assert_allclose(in_float16(new, x), in_float16(proto, x), rtol=2**-7, atol=2**-3)


@pytest.mark.parametrize("dtype", ["float", "bfloat16", "double"])
def test_other_types_fold_at_any_scale(dtype: str) -> None:
    assert "Mul" not in op_types(folded(scaled(UP["global"], 300, dtype))[0])


def test_what_one_plan_after_the_other_enlarges_is_counted_together() -> None:
    pool = "AveragePool <kernel_shape=[2,2], strides=[2,2]>"
    proto = scaled(f"a = {pool} (c) b = Mul (a, k) p = {pool} (b)", 10)
    new, ledger = folded(with_values(proto, k=np.array(10.0)))
    assert op_types(new)["Mul"] == 1, [str(entry) for entry in ledger]
    assert [entry.codes for entry in ledger if entry.outcome == "left"] == [("NF022", "NF002")]
    assert np.isfinite(in_float16(new, large(proto))).all()


def small(data: str, scale: float) -> onnx.ModelProto:
    """A small scale on its way down to a MatMul, through what ``data`` spells."""
    proto = model(
        "float16[2,8,8] x",
        "float16 s, float16[8,5] w, int64[1] axes = {1}",
        f"r = Relu (x) m = Mul (r, s) {data} y = MatMul (p, w)",
        outputs="float16[] y",
    )
    return with_values(proto, s=np.array(scale))


def test_a_small_scale_is_not_taken_off_in_front_of_a_product() -> None:
    proto = small("p = MatMul (m, r)", 2.0**-9)
    check_refusal(proto, "NF022")
    assert np.isfinite(in_float16(proto, np.full((2, 8, 8), 300, np.float16))).all()
    check_fold(small("p = MatMul (m, r)", 0.1), "Relu MatMul MatMul", onnxruntime=False)


@pytest.mark.parametrize("data", ["p = Relu (m)", "p = ReduceMean (m, axes)", "p = Add (m, m)"])
def test_a_small_scale_is_taken_off_where_nothing_outgrows_what_it_acted_on(data: str) -> None:
    proto = small(data, 2.0**-9)
    new, ledger = folded(proto)
    assert "Mul" not in op_types(new), [str(entry) for entry in ledger]
    assert_same(proto, new)


def test_a_model_that_will_be_float16_is_held_to_it() -> None:
    proto = scaled(UP["global"], 300, "float")
    assert "Mul" not in op_types(folded(proto)[0])
    assert "Mul" not in op_types(folded(proto, precision="bf16")[0])
    new, ledger = folded(proto, precision="fp16")
    assert "Mul" in op_types(new)
    assert "NF022" in next(iter(ledger)).codes


def test_weights_that_float16_will_not_hold_are_not_made() -> None:
    proto = scaled(SHOWS["nothing"], 1e-7, "float")
    assert "Mul" not in op_types(folded(proto, precision="bf16")[0])
    new, ledger = folded(proto, precision="fp16")
    assert "Mul" in op_types(new)
    assert "NF112" in next(iter(ledger)).codes


def test_a_dead_channel_is_told_and_folds() -> None:
    proto = with_values(scaled(SHOWS["nothing"], 1, "float"), s=np.array([1, 1e-9, 2, 3]).reshape(4, 1, 1))
    new, ledger = folded(proto, precision="fp16")
    assert "Mul" not in op_types(new)
    (note,) = (note for note in ledger.notes if note.code == "NF410")
    assert "w: the folded weight underflows float16 in 3 elements" in note.text


def test_a_precision_that_there_is_not_is_refused() -> None:
    with pytest.raises(InputError, match="precision must be one of fp32, fp16, bf16"):
        fold(scaled(SHOWS["nothing"], 1), precision="int4")  # type: ignore[arg-type]


@pytest.mark.parametrize("between", ["p = Identity (m)", "p = Transpose <perm=[0,1,3,2]> (m)"])
def test_a_scale_of_zero_goes_down_where_the_value_is_what_it_was_before(between: str) -> None:
    """It was refused, as one that "would become up to nan times larger"."""
    body = f"r = Relu (x) m = Mul (r, s) {between} y = Conv (p, w)"
    proto = model("float16[2,3,8,8] x", "float16[3,1,1] s, float16[4,3,1,1] w", body, outputs="float16[] y", opset=22)
    proto = with_values(proto, s=np.array([0.0, 0.5, 2.0]).reshape(3, 1, 1))
    new, _ = folded(proto)
    assert op_types(new)["Mul"] == 0
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float16)
    np.testing.assert_allclose(in_float16(new, x), in_float16(proto, x), atol=0.02, rtol=0)
