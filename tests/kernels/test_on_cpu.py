"""The kernel's source on the CPU against float64: every path, dtype, fusion, and rows that are hard."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from on_cpu import DTYPES, needs_compiler, run

from normdeploy.kernels.reference import inputs_of, norm_of
from normdeploy.kernels.variants import DType, Norm, Variant, variant, vectors_of

pytestmark = needs_compiler
EPS32 = float(np.finfo(np.float32).eps)

ROWS = ("normal", "mean 1e4", "outlier", "constant", "inf", "nan", "denormal", "zeros")
# 1e4 would be 65,536 deviations of bfloat16's own rounding: what is stored would be constant.
LARGE_MEAN = {"float32": 1e4, "float16": 1e3, "bfloat16": 1e2}


def rows_of(features: int, dtype: DType) -> np.ndarray:
    """Return one row of each of ``ROWS``."""
    random = np.random.default_rng(features)
    x = random.standard_normal((len(ROWS), features))
    x[1] += LARGE_MEAN[dtype]
    x[2, features // 2] = 1e4
    x[3] = 3.7
    x[4, features // 3] = np.inf
    x[5, features // 3] = np.nan
    x[6] *= float(ml_dtypes.finfo(DTYPES[dtype]).smallest_subnormal) * 20
    x[7] = 0.0
    return x.astype(DTYPES[dtype])


def given(norm: Norm, x: np.ndarray) -> dict[str, np.ndarray]:
    """Return the kernel's inputs for ``x``, whose residual leaves the constant rows constant."""
    random = np.random.default_rng(1)
    kinds = {"float32": np.dtype(np.float32), "storage": DTYPES[norm.dtype]}
    inputs = {"x": x}
    if norm.residual:
        residual = random.standard_normal(x.shape)
        residual[[row for row in (3, 6, 7) if row < len(x)]] = 0.0
        inputs["residual"] = residual.astype(x.dtype)
    count = 1 if norm.uniform else norm.features
    if norm.gamma != "none":
        inputs["gamma"] = random.uniform(-2, 2, count).astype(kinds[norm.gamma])
    if norm.beta != "none":
        inputs["beta"] = random.uniform(-2, 2, count).astype(kinds[norm.beta])
    if norm.output != "storage":
        inputs["scale"] = np.array([0.037], np.float32)
    return inputs


def require_right(variant: Variant, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Run ``variant`` and hold its y to float64.

    Computed in float32: within 8 of its eps of what is added up. Stored in 16 bits: half an ulp (0.51 eps) more.
    """
    norm = variant.norm
    y, *sums = outputs = run(variant, inputs)
    x, gamma, beta = inputs_of(norm, inputs)
    reference, _ = norm_of(norm, x, gamma, beta)
    plain, _ = norm_of(norm, x)
    factors = 1.0 if gamma is None else np.abs(gamma)
    sizes = factors * np.maximum(np.abs(plain), 1.0) + (0.0 if beta is None else np.abs(beta))
    np.testing.assert_array_equal(np.isnan(y.astype(np.float64)), np.isnan(reference))
    finite = np.isfinite(reference)
    error = np.abs(y.astype(np.float64) - reference)[finite]
    bound = 8 * EPS32 * sizes[finite]
    if norm.dtype != "float32":
        limits = ml_dtypes.finfo(DTYPES[norm.dtype])
        bound = bound + 0.51 * float(limits.eps) * np.abs(reference)[finite] + 0.5 * float(limits.smallest_subnormal)
    worst = (error / bound).max(initial=0.0)
    assert worst <= 1.0, f"{worst:.2f} times the bound"
    if sums:
        np.testing.assert_array_equal(sums[0].astype(np.float64), x)
    return outputs


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("features", [1, 7, 384, 768, 1000, 1023, 4095, 4096, 12288, 40000])
def test_layer_norm_is_within_its_bound(features: int, dtype: DType) -> None:
    norm = Norm(features, dtype=dtype)
    for path in {on_few_threads(variant(norm, sm)) for sm in (80, 90)}:
        inputs = given(norm, rows_of(features, dtype))
        y, *_ = require_right(path, inputs)
        for row in ("constant", "zeros"):
            expected = np.broadcast_to(inputs["beta"].astype(y.dtype), features)
            np.testing.assert_array_equal(y[ROWS.index(row)], expected, err_msg=f"a row of {row} gives beta")


def on_few_threads(path: Variant) -> Variant:
    """Return the same path with fewer threads, each of which holds more: a CPU has no thousand at once."""
    if path.threads <= 64 or path.rows > 1:
        return path
    lanes = max(32, 64 // path.cluster)
    held = -(-vectors_of(path.norm) // (lanes * path.cluster))
    return replace(path, lanes=lanes, vectors=held if path.vectors else 0)


FUSIONS = {
    "no weights": Norm(200, gamma="none", beta="none"),
    "gamma alone": Norm(200, gamma="storage", beta="none", dtype="float16"),
    "beta alone": Norm(200, gamma="none", beta="float32", dtype="bfloat16"),
    "weights as stored": Norm(2056, gamma="storage", beta="storage", dtype="float16"),
    "sum kept": Norm(2056, residual=True, keep_sum=True, dtype="bfloat16"),
    "sum dropped": Norm(777, residual=True, dtype="float16"),
    "rms": Norm(1024, centre=False, beta="none", dtype="bfloat16"),
    "rms of a sum": Norm(515, centre=False, residual=True, keep_sum=True, beta="none"),
    "one element for all": Norm(200, uniform=True, dtype="float16"),
    "one element for all, as stored": Norm(515, uniform=True, gamma="storage", beta="storage", dtype="bfloat16"),
    "weights as stored, askew": Norm(1001, gamma="storage", beta="storage", dtype="float16"),
    "gamma as stored, askew": Norm(1002, gamma="storage", beta="none", dtype="bfloat16"),
    "no eps": Norm(64, eps=0.0, gamma="none", beta="none"),
}


@pytest.mark.parametrize("name", FUSIONS)
def test_every_fusion_is_within_its_bound(name: str) -> None:
    norm = FUSIONS[name]
    x = rows_of(norm.features, norm.dtype)
    if norm.eps == 0.0:
        x = x[:3]  # what has no deviation has no norm
    require_right(on_few_threads(variant(norm, 80)), given(norm, x))


@pytest.mark.parametrize("features", [4096, 4099])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cluster_joins_its_sums(features: int, dtype: DType) -> None:
    norm = Norm(features, dtype=dtype, residual=True, keep_sum=True)
    held = -(-vectors_of(norm) // 256)
    require_right(Variant(norm, 64, 1, 4, held), given(norm, rows_of(features, dtype)))


@pytest.mark.parametrize("features", [4096, 4099])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_part_of_a_row_in_shared_memory_is_as_exact(features: int, dtype: DType) -> None:
    norm = Norm(features, dtype=dtype, residual=True, keep_sum=True, gamma="storage", beta="storage")
    held = -(-vectors_of(norm) // 128)
    require_right(Variant(norm, 64, 1, 2, held, held // 4), given(norm, rows_of(features, dtype)))


@pytest.mark.parametrize("features", [4096, 4099])
@pytest.mark.parametrize("keep_sum", [False, True])
def test_a_streamed_row_is_as_exact(features: int, keep_sum: bool) -> None:
    norm = Norm(features, residual=True, keep_sum=keep_sum)
    require_right(Variant(norm, 128, 1, 1, 0), given(norm, rows_of(features, "float32")))


def test_a_streamed_row_whose_begin_is_no_example() -> None:
    norm = Norm(65536, gamma="none", beta="none")
    x = np.random.default_rng(0).standard_normal((3, norm.features)).astype(np.float32)
    x[0, 1024:] += 1000.0
    x[1, 0] = 1e4
    x[2] += np.linspace(0, 1000, norm.features, dtype=np.float32)
    require_right(Variant(norm, 128, 1, 1, 0), {"x": x})


@pytest.mark.parametrize("output", ["int8", "float8_e4m3fn"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("features", [512, 333])
def test_quantized_output_is_what_quantizing_the_stored_output_gives(output: str, dtype: DType, features: int) -> None:
    norm = Norm(features, dtype=dtype, output=output)  # type: ignore[arg-type]  # parametrized
    x = np.delete(rows_of(features, dtype), ROWS.index("nan"), axis=0)
    x = np.delete(x, ROWS.index("inf"), axis=0)
    inputs = given(norm, x)
    (got,) = run(variant(norm, 80), inputs)
    (stored,) = run(variant(replace(norm, output="storage"), 80), {k: v for k, v in inputs.items() if k != "scale"})
    # ONNX, QuantizeLinear: y = saturate(round_to_even(x / scale)), in float32
    quotient = stored.astype(np.float32) / inputs["scale"]
    if output == "int8":
        expected = np.clip(np.rint(quotient), -128, 127).astype(np.int8)
    else:
        expected = np.clip(quotient, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    np.testing.assert_array_equal(got.view(np.uint8), expected.view(np.uint8))
    assert len(np.unique(got.view(np.uint8))) > 50, "the scale spreads the values over the type"


@pytest.mark.parametrize("output", ["int8", "float8_e4m3fn"])
def test_quantized_output_saturates(output: str) -> None:
    norm = Norm(8, gamma="float32", beta="float32", output=output)  # type: ignore[arg-type]  # parametrized
    beta = np.array([np.inf, -np.inf, 1e30, -1e30, 3.0, 0.0, -0.0, 1e-9], np.float32)
    inputs = {"x": np.zeros((1, 8), np.float32), "gamma": np.zeros(8, np.float32), "beta": beta}
    (got,) = run(variant(norm, 80), inputs | {"scale": np.array([0.5], np.float32)})
    most, least = (127, -128) if output == "int8" else (448, -448)
    assert got[0].astype(np.float32).tolist() == [most, least, most, least, 6.0, 0.0, 0.0, 0.0]


def test_the_last_rows_of_a_block_that_are_not_there_are_not_written() -> None:
    norm = Norm(64, dtype="float16")
    path = variant(norm, 80)
    assert path.rows > 1
    for rows in (1, path.rows - 1, path.rows + 1):
        x = np.random.default_rng(rows).standard_normal((rows, 64)).astype(np.float16)
        require_right(path, given(norm, x))
