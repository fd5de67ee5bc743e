"""Run a compiled kernel on addresses of GPU memory, by the CUDA driver: on an NVIDIA GPU, and on none so far."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from typing import Any

from normdeploy.errors import NormdeployError
from normdeploy.kernels.compile import ENTRY, ptx
from normdeploy.kernels.variants import Variant


def launch(path: Variant, sm: int, device: int, addresses: Mapping[str, int], rows: int, stream: int) -> None:
    """Enqueue the kernel of ``path`` on ``stream`` of the current context.

    Args:
        path: the kernel, as :func:`normdeploy.kernels.variants.variant` gives it for ``sm``.
        sm: the compute capability of the device, such as 90.
        device: its number; a module is loaded once for each.
        addresses: by name, of each parameter but ``rows``: multiples of 16 bytes, of arrays that are contiguous.
        rows: the number of rows.
        stream: the handle of a CUDA stream.

    Raises:
        UnavailableError: NVRTC is not installed.
        NormdeployError: the driver refuses the kernel or its launch.
    """
    if rows == 0:
        return
    names = path.norm.parameters
    values = tuple(rows if name == "rows" else addresses[name] for name in names)
    types = tuple(ctypes.c_int if name == "rows" else ctypes.c_void_p for name in names)
    grid, block = (path.blocks(rows), 1, 1), (path.threads, 1, 1)
    _call("cuLaunchKernel", _loaded(path, sm, device), *grid, *block, 0, stream, (values, types), 0)


def current_device() -> int:
    """Return the number of the device whose context is current."""
    return int(_call("cuCtxGetDevice"))


@functools.cache
def _loaded(path: Variant, sm: int, device: int) -> Any:
    """Return the function in the driver; ``device`` keeps those of several contexts apart."""
    module = _call("cuModuleLoadData", ptx(path, sm))
    return _call("cuModuleGetFunction", module, ENTRY.encode())


def _call(name: str, *arguments: Any) -> Any:
    from cuda.bindings import driver

    status, *values = getattr(driver, name)(*arguments)
    if status != driver.CUresult.CUDA_SUCCESS:
        raise NormdeployError(f"{name} failed: {driver.cuGetErrorString(status)[1]}")
    return values[0] if values else None
