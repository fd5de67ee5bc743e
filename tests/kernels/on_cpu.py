"""The kernel's own source, built for the CPU and run there: what it computes is compared, not what it should."""

from __future__ import annotations

import functools
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import normdeploy.kernels
from normdeploy.kernels.variants import Norm, Variant

HERE = Path(__file__).parent
KERNELS = Path(normdeploy.kernels.__file__).parent
DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "int8": np.dtype(np.int8),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
}

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ builds the kernel for the CPU")


def output_types(norm: Norm) -> list[np.dtype]:
    """Return the dtypes of the kernel's outputs in order."""
    y = norm.dtype if norm.output == "storage" else norm.output
    return [DTYPES[y], *([DTYPES[norm.dtype]] if norm.keep_sum else [])]


@functools.cache
def built(variant: Variant, flags: tuple[str, ...] = (), plant: str = "") -> Path:
    """Return the program that runs ``variant``; ``plant`` is a mistake, as ``old -> new`` text of the source."""
    macros = tuple(f"-D{name}={value}" for name, value in variant.macros().items())
    folder = Path(tempfile.gettempdir()) / "normdeploy-kernels"
    sources = [KERNELS / "layernorm.cu", KERNELS / "rounding.cuh", HERE / "shim.h", HERE / "shim.cpp"]
    key = hashlib.sha256("\0".join((*macros, *flags, plant, *(s.read_text() for s in sources))).encode()).hexdigest()
    program = folder / key[:24]
    if not program.exists():
        with tempfile.TemporaryDirectory(prefix="normdeploy-") as place:
            for source in sources:
                (Path(place) / source.name).write_text(_with_mistake(source.read_text(), source.name, plant))
            done = Path(place) / "program"
            command = ["g++", "-std=c++20", "-O1", "-ffp-contract=off", "-pthread", *flags, *macros]
            subprocess.run([*command, f"-I{place}", f"{place}/shim.cpp", "-o", str(done)], check=True)
            folder.mkdir(exist_ok=True)
            shutil.move(done, program)
    return program


def _with_mistake(text: str, name: str, plant: str) -> str:
    if not plant or name != "layernorm.cu":
        return text
    old, new = plant.split(" -> ")
    assert old in text, "the planted mistake replaces nothing"
    return text.replace(old, new)


def run(
    variant: Variant,
    inputs: Mapping[str, np.ndarray],
    flags: Sequence[str] = (),
    plant: str = "",
) -> list[np.ndarray]:
    """Return the outputs of the kernel for ``inputs``, by the names of ``Norm.parameters``."""
    program = built(variant, tuple(flags), plant)
    rows = len(inputs["x"])
    names = [name for name in variant.norm.parameters if name not in ("rows", "y", "sum")]
    kinds = output_types(variant.norm)
    with tempfile.TemporaryDirectory(prefix="normdeploy-") as place:
        paths = [Path(place) / name for name in (*names, *(f"output{i}" for i in range(len(kinds))))]
        for name, path in zip(names, paths, strict=False):
            path.write_bytes(np.ascontiguousarray(inputs[name]).tobytes())
        subprocess.run([program, str(rows), *map(str, paths)], check=True, capture_output=True, text=True)
        written = paths[len(names) :]
        shape = (rows, variant.norm.features)
        return [np.frombuffer(p.read_bytes(), kind).reshape(shape) for p, kind in zip(written, kinds, strict=True)]
