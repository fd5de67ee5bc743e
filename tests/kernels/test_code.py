"""What NVRTC makes of the kernel: its parameters, its memory accesses and its registers, on every GPU generation."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from normdeploy.errors import UnavailableError
from normdeploy.kernels import compile as compiling
from normdeploy.kernels.compile import ENTRY, cubin, ptx
from normdeploy.kernels.variants import LARGEST, Norm, Variant, variant

GPUS = (75, 80, 86, 89, 90, 100, 120)
NORMS = {
    "a warp a row": Norm(768, dtype="float16"),
    "a block a row": Norm(4096, dtype="bfloat16", residual=True, keep_sum=True),
    "the longest row of a block": Norm(
        16384, dtype="float16", residual=True, keep_sum=True, gamma="storage", beta="storage"
    ),
    "quantized": Norm(1024, dtype="bfloat16", output="float8_e4m3fn"),
    "the longest row of a cluster": Norm(
        262_144, dtype="float16", residual=True, keep_sum=True, gamma="storage", beta="storage"
    ),
    "one weight for all": Norm(1024, dtype="float16", uniform=True),
    "a cluster where there are any": Norm(131_072, residual=True, keep_sum=True),
}
BYTES = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1}
ONE_ROW, SEVERAL_ROWS = 64, 80
"""Most registers of a thread: 1024 and 768 threads of a multiprocessor, which has 65,536 registers."""


def tool(name: str) -> str:
    """Return the path of a program of NVIDIA's wheels."""
    spec = find_spec("nvidia.cu13")
    assert spec is not None, "pip install -e '.[kernels,test]'"
    assert spec.submodule_search_locations is not None
    return str(Path(next(iter(spec.submodule_search_locations))) / "bin" / name)


def said(name: str, *arguments: str) -> str:
    return subprocess.run([tool(name), *arguments], check=True, capture_output=True, text=True).stdout


def accesses(code: bytes, place: Path) -> Counter[str]:
    """Return how often each load and store instruction stands in the machine code, by its full name."""
    file = place / "kernel.cubin"
    file.write_bytes(code)
    return Counter(re.findall(r"\b((?:LDG|STG|LDL|STL)\b[A-Z0-9.]*)", said("nvdisasm", str(file))))


def moved(found: Counter[str], kind: str) -> int:
    """Return the bytes that one thread moves by the instructions of ``kind``, each of which runs once."""
    sizes = {
        name: next((BYTES[p] for p in name.split(".") if p in BYTES), 4) for name in found if name.startswith(kind)
    }
    return sum(found[name] * size for name, size in sizes.items())


@pytest.mark.parametrize("sm", GPUS)
@pytest.mark.parametrize("name", NORMS)
def test_activations_move_in_vectors_and_nothing_spills(name: str, sm: int, tmp_path: Path) -> None:
    path = variant(NORMS[name], sm)
    found = accesses(cubin(path, sm), tmp_path)
    assert not [kind for kind in found if kind.startswith(("LDL", "STL"))], f"local memory: {found}"
    narrow = {kind: n for kind, n in found.items() if "128" not in kind and kind.startswith("LDG")}
    alone = 1 if NORMS[name].output != "storage" else 2 if NORMS[name].uniform else 0
    assert sum(narrow.values()) == alone, f"only a scale, and one weight for all, is loaded by itself: {found}"
    (tmp_path / "k").write_bytes(cubin(path, sm))
    usage = said("cuobjdump", "--dump-resource-usage", str(tmp_path / "k"))
    registers = int(re.search(r"REG:(\d+)", usage).group(1))  # type: ignore[union-attr]  # it is in its output
    assert registers <= (ONE_ROW if path.rows == 1 else SEVERAL_ROWS)


FULL = {
    "a warp a row": Norm(768, dtype="bfloat16", gamma="none", beta="none"),
    "a block a row": Norm(4096, dtype="bfloat16", residual=True, keep_sum=True, gamma="none", beta="none"),
    "rms": Norm(8192, centre=False, dtype="float16", gamma="none", beta="none"),
    "float32": Norm(8192, residual=True, gamma="none", beta="none"),
    "quantized": Norm(4096, dtype="float16", output="int8", gamma="none", beta="none"),
    "the longest row": Norm(262_144, dtype="bfloat16", residual=True, keep_sum=True, gamma="none", beta="none"),
    "the longest row in float32": Norm(262_144, gamma="none", beta="none"),
    "a cluster": Norm(65_536, dtype="bfloat16", residual=True, keep_sum=True, gamma="none", beta="none"),
}


@pytest.mark.parametrize("name", FULL)
def test_a_row_is_read_once_and_written_once(name: str, tmp_path: Path) -> None:
    norm = FULL[name]
    path = variant(norm, 90)
    assert path.vectors, "the row is held, so each instruction runs once"
    found = accesses(cubin(path, 90), tmp_path)
    scale = 4 if norm.output != "storage" else 0
    moves = moved(found, "LDG") - scale + moved(found, "STG")
    assert moves * path.lanes * path.cluster == norm.bytes_a_row


ASKEW = {
    "float32": (Norm(1023), 2),
    "float32 for 16 bits": (Norm(1023, dtype="float16"), 3),
    "as stored": (Norm(1023, dtype="bfloat16", gamma="storage", beta="storage"), 2),
}


@pytest.mark.parametrize("name", ASKEW)
@pytest.mark.parametrize("sm", [80, 90, 120])
def test_weights_of_an_odd_row_are_loaded_in_vectors(name: str, sm: int, tmp_path: Path) -> None:
    """Those that cover a vector of x, for gamma and for beta; elements at the ends of a row alone."""
    norm, covering = ASKEW[name]
    path = variant(norm, sm)
    found = accesses(cubin(path, sm), tmp_path)
    assert sum(n for kind, n in found.items() if kind.startswith("LDG") and "128" in kind) == path.vectors * (
        1 + 2 * covering
    )
    assert not [kind for kind in found if kind.startswith(("LDL", "STL"))]


STREAMED = {
    "float32": Norm(32_768),
    "odd": Norm(32_753),
    "a sum": Norm(32_753, residual=True, keep_sum=True, dtype="bfloat16"),
    "int8": Norm(32_768, dtype="float16", output="int8"),
}


@pytest.mark.parametrize("name", STREAMED)
def test_a_streamed_row_spills_nothing(name: str, tmp_path: Path) -> None:
    path = variant(STREAMED[name], 80)
    assert not path.vectors
    found = accesses(cubin(path, 80), tmp_path)
    assert not [kind for kind in found if kind.startswith(("LDL", "STL"))], f"local memory: {found}"


def test_which_rows_are_read_once() -> None:
    for dtype in ("float16", "bfloat16", "float32"):
        assert variant(Norm(LARGEST, dtype=dtype), 90).vectors, "on sm_90 all are"  # type: ignore[arg-type]  # as above
    assert variant(Norm(LARGEST, dtype="float16"), 120).vectors
    assert not variant(Norm(LARGEST), 120).vectors, "there float32 would spill"
    assert not variant(Norm(32_768), 89).vectors


@pytest.mark.parametrize("name", NORMS)
def test_parameters_are_inputs_then_integers_then_outputs(name: str) -> None:
    norm = NORMS[name]
    text = ptx(variant(norm, 90), 90).decode()
    declared = re.search(rf"\.entry {ENTRY}\((.*?)\)", text, re.DOTALL)
    assert declared is not None
    kinds = re.findall(r"\.param \.(u64|u32)", declared.group(1))
    assert kinds == ["u32" if parameter == "rows" else "u64" for parameter in norm.parameters]
    middle = norm.parameters.index("rows")
    assert set(norm.parameters[:middle]) <= {"x", "residual", "gamma", "beta", "scale"}
    assert set(norm.parameters[middle + 1 :]) <= {"y", "sum"}


@pytest.mark.parametrize("sm", GPUS)
def test_ptx_is_old_enough_for_a_driver_of_cuda_13_0(sm: int) -> None:
    text = ptx(variant(Norm(64), sm), sm).decode()
    version = tuple(map(int, re.findall(r"^\.version (\d+)\.(\d+)", text, re.MULTILINE)[0]))
    assert version <= (9, 0)
    assert f".target sm_{sm}" in text


def test_a_newer_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "NEWEST_PTX", (8, 0))
    with pytest.raises(UnavailableError, match="newer than drivers"):
        ptx(variant(Norm(65), 90), 90)


def test_no_compiler_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(UnavailableError, match="NVRTC") as refused:
        ptx(variant(Norm(66), 90), 90)
    assert "normdeploy[kernels]" in refused.value.fix


def held(path: Variant) -> int:
    """Return how many elements of a row its threads hold."""
    return path.lanes * path.cluster * path.vectors * (4 if path.norm.dtype == "float32" else 8)


@pytest.mark.parametrize("sm", GPUS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_length_has_its_threads(dtype: str, sm: int) -> None:
    lengths = {*range(1, 300), *(2**n + d for n in range(8, 19) for d in (-1, 0, 1)), 100_003, LARGEST}
    for features in sorted(n for n in lengths if n <= LARGEST):
        path = variant(Norm(features, dtype=dtype), sm)  # type: ignore[arg-type]  # parametrized
        assert path.threads % 32 == 0
        assert path.threads <= 1024
        assert path.cluster in ((1, 2, 4, 8) if sm >= 90 else (1,))
        assert path.rows == 1 or (path.lanes <= 32 and path.lanes & (path.lanes - 1) == 0)
        assert path.vectors == 0 or held(path) >= features
        assert path.vectors or features > 16_384 - 8, "one that begins between vectors touches one more"


def test_what_no_kernel_can_be_is_refused() -> None:
    from normdeploy.errors import InputError

    for wrong in ({"features": 0}, {"features": LARGEST + 1}, {"eps": -1.0}, {"eps": float("nan")}, {"keep_sum": True}):
        with pytest.raises(InputError):
            Norm(**{"features": 8, **wrong})  # type: ignore[arg-type]  # wrong on purpose
