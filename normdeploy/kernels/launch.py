"""Run a compiled kernel on PyTorch's tensors, on PyTorch's stream. Needs an NVIDIA GPU; it has run on none so far."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from typing import Any

import torch

from normdeploy.errors import InputError, NormdeployError
from normdeploy.kernels.compile import ENTRY, ptx
from normdeploy.kernels.variants import Norm, Variant, variant


def launch(norm: Norm, tensors: Mapping[str, torch.Tensor]) -> None:
    """Run ``norm`` on ``tensors``, which has one for each of its parameters but ``rows``.

    Args:
        norm: what is computed.
        tensors: on one CUDA device, contiguous, at addresses that are multiples of 16 bytes. ``x``, ``residual``,
            ``y`` and ``sum`` are ``(..., features)``, ``gamma`` and ``beta`` ``(features,)``; ``scale`` is one float32.

    Raises:
        InputError: a tensor does not lie as it must.
        UnavailableError: NVRTC is not installed.
    """
    x = tensors["x"]
    for name, tensor in tensors.items():
        if not tensor.is_contiguous() or tensor.data_ptr() % 16 or tensor.device != x.device:
            raise InputError("a tensor is not contiguous, not aligned to 16 bytes or on another device", where=name)
    rows = x.numel() // norm.features
    if rows == 0:
        return
    with torch.cuda.device(x.device):
        capability = torch.cuda.get_device_capability(x.device)
        path, function = _loaded(norm, 10 * capability[0] + capability[1], x.device.index)
        values = [rows if name == "rows" else tensors[name].data_ptr() for name in norm.parameters]
        types = [ctypes.c_int if name == "rows" else ctypes.c_void_p for name in norm.parameters]
        stream = torch.cuda.current_stream(x.device).cuda_stream
        grid, block = (path.blocks(rows), 1, 1), (path.threads, 1, 1)
        _call("cuLaunchKernel", function, *grid, *block, 0, stream, (tuple(values), tuple(types)), 0)


@functools.cache
def _loaded(norm: Norm, sm: int, device: int) -> tuple[Variant, Any]:
    """Return the kernel for the GPU at hand; one per device, since a module belongs to its context."""
    path = variant(norm, sm)
    module = _call("cuModuleLoadData", ptx(path, sm))
    return path, _call("cuModuleGetFunction", module, ENTRY.encode())


def _call(name: str, *arguments: Any) -> Any:
    from cuda.bindings import driver

    status, *values = getattr(driver, name)(*arguments)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise NormdeployError(f"{name} failed: {driver.cuGetErrorString(status)[1]}")
    return values[0] if values else None
