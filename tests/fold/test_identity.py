"""A norm that is the identity, gamma = sqrt(var + eps) and beta = mean: folding it must change (almost) nothing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from harness import bn, folded, initializers, model, op_types
from onnx import numpy_helper

LAYERS = {
    "Conv": ("float[2,3,8,11] x", "float[5,3,3,3] w, float[5] b", "c = Conv (x, w, b)"),
    "Conv grouped": ("float[2,6,8,11] x", "float[15,2,3,3] w, float[15] b", "c = Conv <group=3> (x, w, b)"),
    "ConvTranspose": ("float[2,3,8,11] x", "float[3,5,3,3] w, float[5] b", "c = ConvTranspose (x, w, b)"),
    "Gemm": ("float[7,3] x", "float[3,5] w, float[5] b", "c = Gemm (x, w, b)"),
}


def with_identity(layer: str, var: np.ndarray, epsilon: float) -> onnx.ModelProto:
    """``layer`` with a norm behind it that should do nothing; all parameters float32."""
    inputs, weights, body = LAYERS[layer]
    channels = var.size
    norm = f"y = BatchNormalization <epsilon={epsilon!r}> (c, gamma, beta, mean, var)"
    proto = model(inputs, f"{weights}, {bn(channels)}", f"{body}\n{norm}")
    mean = np.random.default_rng(23).standard_normal(channels).astype(np.float32)
    eps = np.float64(np.float32(epsilon))
    values = {"var": var, "mean": mean, "beta": mean, "gamma": np.sqrt(var.astype(np.float64) + eps).astype(np.float32)}
    for tensor in proto.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name].astype(np.float32), tensor.name))
    return proto


def channels(layer: str) -> int:
    return 15 if layer == "Conv grouped" else 5


@pytest.mark.parametrize("layer", LAYERS)
def test_where_gamma_is_exact_no_bit_changes(layer: str) -> None:
    proto = with_identity(layer, np.full(channels(layer), 3.5), 0.5)  # var + eps = 4, its root 2
    new, ledger = folded(proto)
    assert op_types(new) == {layer.split()[0]: 1}
    assert [entry.outcome for entry in ledger] == ["folded"]
    old, stored = initializers(proto), initializers(new)
    assert stored.keys() == {"w", "b"}
    assert all(stored[name].tobytes() == old[name].tobytes() for name in stored)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("seed", range(5))
def test_elsewhere_a_weight_changes_by_at_most_one_ulp(layer: str, seed: int) -> None:
    var = np.random.default_rng(seed).uniform(1e-3, 10.0, channels(layer)).astype(np.float32)
    proto = with_identity(layer, var, 1e-5)
    new, _ = folded(proto)
    assert op_types(new) == {layer.split()[0]: 1}
    old, stored = initializers(proto), initializers(new)
    assert np.all(np.abs(stored["w"] - old["w"]) <= np.spacing(np.abs(old["w"])))
    # The bias also takes beta - s mean, which is the rounding of gamma times the mean.
    allowed = np.spacing(np.abs(old["b"])) + np.spacing(np.abs(old["mean"]))
    assert np.all(np.abs(stored["b"] - old["b"]) <= allowed)
