"""The kernel as PyTorch operators, for eager code, torch.compile and exporters: ``torch.ops.normdeploy.*``.

On a GPU the kernel runs; elsewhere the same in float64, rounded once. Both take float32, float16 and bfloat16, and on
a CPU float64 too. They have no gradients. Under autocast 16-bit inputs stay so: statistics are float32 all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from normdeploy.errors import InputError
from normdeploy.kernels.launch import launch
from normdeploy.kernels.variants import DType, Norm, OutputType, WeightType, variant

_DTYPES: dict[torch.dtype, DType] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
_QUANTIZED: dict[torch.dtype, OutputType] = {torch.int8: "int8", torch.float8_e4m3fn: "float8_e4m3fn"}


@torch.library.custom_op("normdeploy::layer_norm", mutates_args=())
def layer_norm(x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float) -> Tensor:
    """Return LayerNorm over the last axis of ``x``, in its dtype; ``gamma`` and ``beta`` are ``(features,)``."""
    return _normed(_Call(x, gamma, eps, beta))[0]


@torch.library.custom_op("normdeploy::rms_norm", mutates_args=())
def rms_norm(x: Tensor, gamma: Tensor | None, eps: float) -> Tensor:
    """Return RMSNorm over the last axis of ``x``, in its dtype; ``gamma`` is ``(features,)``."""
    return _normed(_Call(x, gamma, eps, centre=False))[0]


@torch.library.custom_op("normdeploy::add_layer_norm", mutates_args=())
def add_layer_norm(
    x: Tensor, residual: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Return LayerNorm of ``x + residual``, rounded to their dtype first, and that sum."""
    y, total = _normed(_Call(x, gamma, eps, beta, residual))
    assert total is not None, "a residual was given"
    return y, total


@torch.library.custom_op("normdeploy::layer_norm_quantize", mutates_args=())
def layer_norm_quantize(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, scale: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """Return LayerNorm of ``x``, rounded to its dtype and quantized to ``dtype`` (int8 or float8_e4m3fn).

    ONNX QuantizeLinear with zero point 0: ``saturate(round_to_even(y / scale))``; ``scale`` has one float32.
    """
    return _normed(_Call(x, gamma, eps, beta, scale=scale, quantized=dtype))[0]


@dataclass(frozen=True)
class _Call:
    """One call of an operator: its tensors, None where there is none, and what it computes of them."""

    x: Tensor
    gamma: Tensor | None
    eps: float
    beta: Tensor | None = None
    residual: Tensor | None = None
    scale: Tensor | None = None
    centre: bool = True
    quantized: torch.dtype | None = None


def _normed(call: _Call) -> tuple[Tensor, Tensor | None]:
    if call.quantized is not None and call.quantized not in _QUANTIZED:
        raise InputError(f"a norm is quantized to int8 or float8_e4m3fn, not to {call.quantized}", where="dtype")
    return _on_gpu(call) if call.x.is_cuda else _on_cpu(call)


def _on_gpu(call: _Call) -> tuple[Tensor, Tensor | None]:
    x, residual, gamma, beta = call.x, call.residual, call.gamma, call.beta
    if x.dtype not in _DTYPES:
        raise InputError(f"the kernel takes float32, float16 and bfloat16, not {x.dtype}", where="x")
    kind = x.dtype if (gamma is not None and gamma.dtype == x.dtype) else torch.float32
    weight: WeightType = "storage" if kind == x.dtype else "float32"
    norm = Norm(
        features=x.shape[-1],
        eps=call.eps,
        dtype=_DTYPES[x.dtype],
        centre=call.centre,
        residual=residual is not None,
        keep_sum=residual is not None,
        gamma="none" if gamma is None else weight,
        beta="none" if beta is None else weight,
        output="storage" if call.quantized is None else _QUANTIZED[call.quantized],
    )
    tensors = {"x": x, "residual": residual, "scale": call.scale}
    tensors |= {name: None if w is None else w.to(kind) for name, w in (("gamma", gamma), ("beta", beta))}
    given = {name: _aligned(tensor) for name, tensor in tensors.items() if tensor is not None}
    y = torch.empty_like(given["x"], dtype=call.quantized or x.dtype)
    total = torch.empty_like(given["x"]) if residual is not None else None
    _launched(norm, given | {"y": y} | ({} if total is None else {"sum": total}))
    return y, total


def _launched(norm: Norm, tensors: Mapping[str, Tensor]) -> None:
    x = tensors["x"]
    major, minor = torch.cuda.get_device_capability(x.device)
    sm, addresses = 10 * major + minor, {name: tensor.data_ptr() for name, tensor in tensors.items()}
    with torch.cuda.device(x.device):
        stream = torch.cuda.current_stream(x.device).cuda_stream
        launch(variant(norm, sm), sm, x.device.index, addresses, x.numel() // norm.features, stream)


def _aligned(tensor: Tensor) -> Tensor:
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % 16 else tensor


def _on_cpu(call: _Call) -> tuple[Tensor, Tensor | None]:
    x, gamma, beta, scale = call.x, call.gamma, call.beta, call.scale
    total = None if call.residual is None else x + call.residual
    wide = (x if total is None else total).double()
    if call.centre:
        wide = wide - wide.mean(-1, keepdim=True)
    y = wide / torch.sqrt(wide.square().mean(-1, keepdim=True) + call.eps)
    y = y if gamma is None else y * gamma.double()
    y = (y if beta is None else y + beta.double()).to(x.dtype)
    if call.quantized is None:
        return y, total
    assert scale is not None, "what is quantized has a scale"
    quotient = y.to(scale.dtype) / scale
    if call.quantized == torch.int8:
        return quotient.round().clamp(-128, 127).to(torch.int8), total
    return quotient.clamp(-448, 448).to(call.quantized), total


@layer_norm.register_fake
def _(x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float) -> Tensor:
    return x.new_empty(x.shape)


@rms_norm.register_fake
def _(x: Tensor, gamma: Tensor | None, eps: float) -> Tensor:
    return x.new_empty(x.shape)


@add_layer_norm.register_fake
def _(x: Tensor, residual: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


@layer_norm_quantize.register_fake
def _(x: Tensor, gamma: Tensor | None, beta: Tensor | None, scale: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


# The operator that quantizes has none: its scale must stay float32.
for _operator in (layer_norm, rms_norm, add_layer_norm):
    for _device, _type in (("cuda", torch.float16), ("cpu", torch.bfloat16)):
        _operator.register_autocast(_device, _type)
