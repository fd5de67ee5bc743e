"""Weights in 16 bits and 64: folded in float64, rounded once, refused where the result does not fit its dtype."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from harness import assert_same, bn, check_fold, check_refusal, folded, initializers, model, norm
from onnx import numpy_helper

from normdeploy.fold import Note

DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "double": np.float64, "float": np.float32}


def conv_norm(dtype: str, *, statistics: str | None = None) -> onnx.ModelProto:
    moments = ", ".join(f"{statistics or dtype}[5] {name}" for name in ("mean", "var"))
    return model(
        f"{dtype}[2,3,8,11] x",
        f"{dtype}[5,3,3,3] w, {dtype}[5] b, {dtype}[5] gamma, {dtype}[5] beta, {moments}",
        "c = Conv (x, w, b)\n" + norm("c", "y"),
        outputs=f"{dtype}[] y",
        opset=22,  # the first with a bfloat16 Conv
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_folds_and_keeps_its_dtype(dtype: str) -> None:
    proto = conv_norm(dtype)
    # onnxruntime has no Conv in bfloat16 and float64
    check_fold(proto, "Conv", onnxruntime=dtype in ("float", "float16"))
    new, _ = folded(proto)
    assert {array.dtype for array in initializers(new).values()} == {np.dtype(DTYPES[dtype])}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_float32_statistics_on_a_16_bit_convolution(dtype: str) -> None:
    check_fold(conv_norm(dtype, statistics="float"), "Conv", onnxruntime=False)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_fold_rounds_once(dtype: str) -> None:
    """The stored weight is the float64 product, rounded to nearest; a product in 16 bits would be rounded twice."""
    proto = conv_norm(dtype)
    old = {name: array.astype(np.float64) for name, array in initializers(proto).items()}
    new = initializers(folded(proto)[0])
    scale = old["gamma"] / np.sqrt(old["var"] + np.float64(np.float32(1e-5)))
    bias = (old["b"] - old["mean"]) * scale + old["beta"]
    np.testing.assert_array_equal(new["w"], (old["w"] * scale.reshape(-1, 1, 1, 1)).astype(DTYPES[dtype]))
    np.testing.assert_allclose(new["b"].astype(np.float64), bias, rtol=float(ml_dtypes.finfo(DTYPES[dtype]).eps))


def set_values(proto: onnx.ModelProto, **values: float) -> onnx.ModelProto:
    """Fill initializers with one number each."""
    for tensor in proto.graph.initializer:
        if tensor.name in values:
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(array, values[tensor.name]), tensor.name))
    return proto


def scaled_twice(first: float, second: float, dtype: str = "float16", largest: float = 1.0) -> onnx.ModelProto:
    """A convolution, a Mul and a norm without shift, all in ``dtype``."""
    proto = model(
        f"{dtype}[2,3,8,11] x",
        f"{dtype}[5,3,3,3] w, {dtype}[5,1,1] s, {bn(5, dtype=dtype)}",
        "c = Conv (x, w)\n m = Mul (c, s)\n" + norm("m", "y"),
        outputs=f"{dtype}[] y",
    )
    weight = np.random.default_rng(3).uniform(0.5, 1.0, (5, 3, 3, 3)) * largest
    (stored,) = (tensor for tensor in proto.graph.initializer if tensor.name == "w")
    stored.CopyFrom(numpy_helper.from_array(weight.astype(DTYPES[dtype]), "w"))
    return set_values(proto, s=first, gamma=second, beta=0.0, mean=0.0, var=1.0)


def test_what_overflows_only_in_between_is_folded() -> None:
    proto = scaled_twice(6e4, 1e-4, largest=10.0)  # 10 * 6e4 is beyond the largest float16, 65504
    check_fold(proto, "Conv", onnxruntime=False)


def test_what_underflows_only_in_between_is_folded() -> None:
    proto = scaled_twice(1e-7, 6e4, largest=1e-2)  # 1e-2 * 1e-7 is below the smallest float16, 6e-8
    check_fold(proto, "Conv", onnxruntime=False)


def test_what_overflows_in_the_end_is_refused() -> None:
    proto = conv_norm("float16")
    set_values(proto, gamma=6e4, var=1e-3)
    check_refusal(proto, "NF111")


def test_what_underflows_in_the_end_is_refused() -> None:
    proto = conv_norm("float16")
    set_values(proto, gamma=6e-8, mean=0.0, beta=0.0)
    check_refusal(proto, "NF112")


def test_one_channel_that_overflows_refuses_the_plan() -> None:
    proto = conv_norm("float16")
    (gamma,) = (tensor for tensor in proto.graph.initializer if tensor.name == "gamma")
    gamma.CopyFrom(numpy_helper.from_array(np.array([1, 1, 6e4, 1, 1], np.float16), "gamma"))
    set_values(proto, var=1e-3)
    check_refusal(proto, "NF111")


def test_subnormal_float32_weights_are_flushed_and_noted() -> None:
    proto = conv_norm("float")
    (weight,) = (tensor for tensor in proto.graph.initializer if tensor.name == "w")
    values = numpy_helper.to_array(weight).copy()
    values[:, 0] = 1e-39  # subnormal beside channels of about 1: it means nothing, and is slow
    weight.CopyFrom(numpy_helper.from_array(values, "w"))
    new, ledger = folded(proto)
    assert not np.any(initializers(new)["w"][:, 0])
    assert Note("NF410", "45 elements of w became 0 in float") in ledger.notes
    assert_same(proto, new)


def test_a_channel_of_zeros_folds() -> None:
    proto = conv_norm("float16")
    (gamma,) = (tensor for tensor in proto.graph.initializer if tensor.name == "gamma")
    gamma.CopyFrom(numpy_helper.from_array(np.array([1, 0, -2, 0, 1], np.float16), "gamma"))
    check_fold(proto, "Conv", onnxruntime=False)


def with_cast(source: str, target: str, *, upward: bool) -> onnx.ModelProto:
    code = {"float16": onnx.TensorProto.FLOAT16, "float": onnx.TensorProto.FLOAT}
    conv, scale = (source, target) if upward else (target, source)
    body = f"c = Conv (x, w)\n t = Cast <to={code[target]}> (c)\n y = Mul (t, s)"
    if not upward:
        body = f"t = Mul (x, s)\n u = Cast <to={code[target]}> (t)\n y = Conv (u, w)"
    channels = 5 if upward else 3
    return model(
        f"{source}[2,3,8,11] x",
        f"{conv}[5,3,3,3] w, {scale}[{channels},1,1] s",
        body,
        outputs=f"{target}[] y",
    )


@pytest.mark.parametrize(("source", "target", "upward"), [("float", "float16", True), ("float16", "float", False)])
def test_a_map_passes_a_cast_into_the_wider_dtype(source: str, target: str, upward: bool) -> None:
    check_fold(with_cast(source, target, upward=upward), "Conv Cast", onnxruntime=False)


@pytest.mark.parametrize(("source", "target", "upward"), [("float16", "float", True), ("float", "float16", False)])
def test_a_map_does_not_pass_a_cast_into_the_narrower_dtype(source: str, target: str, upward: bool) -> None:
    """Its values would have to fit the narrower dtype, where nothing says that they do."""
    check_refusal(with_cast(source, target, upward=upward), "NF212")
