from __future__ import annotations

from dataclasses import replace

import pytest

from normdeploy.engine.audit import require_precision
from normdeploy.engine.layers import EngineLayer
from normdeploy.errors import VerdictError


def layer(
    operators: str, precision: str, *, kind: str = "gemm", statistics: str = "", module: str = "fc", profile: int = 0
) -> EngineLayer:
    names = tuple(operators.split())
    nodes = tuple(f"{module}.{name}" for name in names)
    return EngineLayer("layer", kind, (module,), names, precision, statistics, "", (), (), nodes, profile)


def test_an_engine_in_the_precision_that_was_asked_passes() -> None:
    layers = [
        layer("Conv Relu", "fp16", kind="correlation"),
        layer("Conv Cast", "fp32", kind="kgen"),  # moves the input of the same convolution
        layer("MatMul Softmax", "fp16", kind="kgen", module="attention"),
        layer("Add LayerNormalization", "fp16", kind="kgen", statistics="fp32", module="norm"),
        layer("Relu", "fp32", kind="kgen", module="act"),
        layer("Resize", "fp32", kind="kgen", module="up"),
    ]
    assert require_precision(layers, "fp16", {}) == ()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_16_bit_engine_that_is_really_float32_is_refused_by_module_name(precision: str) -> None:
    layers = [layer("Gemm", "fp32"), layer("Conv", precision, module="stem"), layer("MatMul", "fp32", module="deep.fc")]
    with pytest.raises(VerdictError, match=r"not compute in \w+16(.|\n)*fc: fp32; deep\.fc: fp32") as caught:
        require_precision(layers, precision, {})  # type: ignore[arg-type]
    assert caught.value.exit_code == 1
    assert "stem" not in str(caught.value)


def test_a_float32_engine_that_multiplies_in_16_bits_is_refused() -> None:
    with pytest.raises(VerdictError, match="fc: fp16"):
        require_precision([layer("Gemm", "fp16")], "fp32", {})


def test_an_operator_inside_generated_kernels_only_is_judged_by_them() -> None:
    wrong = [layer("MatMul", "fp32", kind="kgen"), layer("MatMul", "fp32", kind="kgen")]
    with pytest.raises(VerdictError, match="fc: fp32"):
        require_precision(wrong, "fp16", {})
    require_precision([*wrong, layer("MatMul", "fp16", kind="kgen")], "fp16", {})


def test_one_profile_in_another_precision_is_refused() -> None:
    with pytest.raises(VerdictError, match="fc: fp32"):
        require_precision([layer("Gemm", "fp16"), layer("Gemm", "fp32", profile=1)], "fp16", {})


def test_a_norm_that_averages_in_16_bits_is_refused() -> None:
    with pytest.raises(VerdictError, match="norm: statistics in fp16"):
        require_precision([layer("LayerNormalization", "fp16", statistics="fp16", module="norm")], "fp16", {})
    spelled_out = layer("ReduceMean Sub", "fp16", kind="kgen", statistics="fp16", module="norm")
    require_precision([spelled_out], "fp16", {})  # a mean that belongs to no norm
    with pytest.raises(VerdictError, match="norm: statistics in fp16"):
        require_precision([spelled_out], "fp16", {}, norm_nodes=["norm.Sub"])


def test_a_norm_whose_kernel_does_not_say_is_noted() -> None:
    (note,) = require_precision([layer("InstanceNormalization", "fp16", kind="kgen", module="norm")], "fp16", {})
    assert "norm" in note


def test_an_engine_without_a_table_cannot_be_asserted() -> None:
    nameless = replace(layer("Gemm", "fp16"), nodes=(), operators=(), modules=())
    typeless = layer("Gemm", "")
    for layers in ([], [nameless], [typeless]):
        with pytest.raises(VerdictError, match="no table of its layers"):
            require_precision(layers, "fp16", {"fc.Gemm": "fc"})


def test_operators_that_the_table_lacks_are_noted() -> None:
    (note,) = require_precision([layer("Gemm", "fp16")], "fp16", {"fc.Gemm": "fc", "const.Gemm": "const"})
    assert note == "the layer table lacks: const"


def test_int8_passes_only_in_a_graph_that_was_quantized() -> None:
    layers = [layer("Conv", "int8", kind="correlation")]
    require_precision(layers, "fp16", {}, quantized=True)
    with pytest.raises(VerdictError, match="int8"):
        require_precision(layers, "fp16", {})


def test_a_long_list_is_cut_with_its_length() -> None:
    layers = [layer("Gemm", "fp32", module=f"fc{index}") for index in range(15)]
    with pytest.raises(VerdictError, match="and 5 more"):
        require_precision(layers, "fp16", {})
