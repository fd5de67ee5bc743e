"""Compile the kernel to PTX or to machine code, by NVRTC; neither a GPU nor a CUDA toolkit is needed.

Sums and products are contracted nowhere but where the source says ``fmaf``: the same source gives the same bits on
every GPU, and on the CPU that the tests run it on.
"""

from __future__ import annotations

import functools
import re
from importlib.resources import files
from typing import Any

from normdeploy.errors import NormdeployError, UnavailableError
from normdeploy.kernels.variants import Variant

ENTRY = "normdeploy_norm"
"""The kernel's name in its PTX."""

NEWEST_PTX = (9, 0)
"""The newest PTX version that a driver of CUDA 13.0 takes (PTX ISA 9.0, release notes)."""

SOURCE, HEADERS = "layernorm.cu", ("rounding.cuh", "device.cuh")


def ptx(variant: Variant, sm: int) -> bytes:
    """Return the PTX of ``variant`` for compute capability ``sm`` (such as 90), as a driver of CUDA 13.0 takes it.

    Raises:
        UnavailableError: NVRTC is not installed, or too new for such a driver.
    """
    text = _compiled(variant, f"compute_{sm}", "PTX")
    version = re.search(rb"^\.version (\d+)\.(\d+)", text, re.MULTILINE)
    said = version.group().decode() if version else ""
    if version is None or tuple(map(int, version.groups())) > NEWEST_PTX:
        raise UnavailableError(
            f"this NVRTC writes PTX {said}, newer than drivers of CUDA 13.0 take",
            fix="pip install 'nvidia-cuda-nvrtc<13.1'",
        )
    return text


def cubin(variant: Variant, sm: int) -> bytes:
    """Return the machine code of ``variant`` for compute capability ``sm``; raises as :func:`ptx`."""
    return _compiled(variant, f"sm_{sm}", "CUBIN")


def source(name: str) -> str:
    """Return the text of one of the kernel's files."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _compiled(variant: Variant, target: str, kind: str) -> bytes:
    nvrtc = _nvrtc()
    headers = [source(name).encode() for name in HEADERS]
    names = [name.encode() for name in HEADERS]
    program = _checked(nvrtc, nvrtc.nvrtcCreateProgram(source(SOURCE).encode(), b"layernorm.cu", 2, headers, names))
    macros = [f"-D{name}={value}" for name, value in variant.macros().items()]
    options = [text.encode() for text in (f"-arch={target}", "--std=c++17", "--fmad=false", *macros)]
    try:
        if nvrtc.nvrtcCompileProgram(program, len(options), options)[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise NormdeployError("the kernel does not compile: " + _log(nvrtc, program), where=str(variant))
        size = _checked(nvrtc, getattr(nvrtc, f"nvrtcGet{kind}Size")(program))
        code = bytearray(size)
        buffer = bytes(code)
        _checked(nvrtc, getattr(nvrtc, f"nvrtcGet{kind}")(program, buffer))
        return buffer
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _nvrtc() -> Any:
    try:
        from cuda.bindings import nvrtc

        nvrtc.nvrtcVersion()  # the bindings load the library when they are first called
    except (ImportError, RuntimeError) as error:
        raise UnavailableError(
            "NVRTC, which compiles the kernel, is not installed", fix="pip install 'normdeploy[kernels]'"
        ) from error
    return nvrtc


def _log(nvrtc: Any, program: Any) -> str:
    size = _checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program))
    text = bytes(size)
    _checked(nvrtc, nvrtc.nvrtcGetProgramLog(program, text))
    return text.decode(errors="replace").strip("\0 \n")


def _checked(nvrtc: Any, result: tuple[Any, ...]) -> Any:
    status, *values = result
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise NormdeployError(f"NVRTC: {nvrtc.nvrtcGetErrorString(status)[1]}")
    return values[0] if values else None
