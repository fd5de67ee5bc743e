"""The LayerNorm kernel on the GPU at hand: is it right, and how near to the memory's limit does it run.

    python scripts/bench_layernorm_gpu.py --json scripts/results/bench_layernorm_gpu.json

First small shapes are held to float64, and run under compute-sanitizer where it is installed. Then every kind, length
and type is held to float64 and timed, side by side in one run with PyTorch eager, torch.compile, the fused part as a
kernel of its own, Triton's tutorial, and Liger and QuACK where they can be imported (pip install liger-kernel
quack-kernels): medians of event times over a captured graph whose inputs rotate, so that no cache serves them, on
random data. Gigabytes a second count what the norm must move, once; the limit is a copy measured in the same run. A
peer that is wrong is not timed. All of it takes --minutes at most; what is not reached is left out, and said to be, and
so is each goal that is missed.

Exit code 0: all that ran is right; 1: something is not; 3: no GPU. This script has not been run on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from layernorm_peers import Norm as PeerNorm
from layernorm_peers import peers
from rich.console import Console
from rich.table import Table
from torch import Tensor

from normdeploy.disk import write_file
from normdeploy.kernels import ops
from normdeploy.kernels.variants import DType, Norm

Kind = Literal["LN", "RMS", "add+LN", "LN+int8", "LN+fp8"]
KINDS: tuple[Kind, ...] = ("LN", "RMS", "add+LN", "LN+int8", "LN+fp8")
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 12288, 16384, 32768, 65536, 131_072)
DTYPES: dict[DType, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
QUANTIZED = {"LN+int8": torch.int8, "LN+fp8": torch.float8_e4m3fn}
EPS = 1e-5
MOVED = 1 << 28
"""Bytes of x in one call: 256 MiB, more than any cache holds."""
SETS = 3
"""Inputs that take turns."""
ROUNDS = 15


@dataclass(frozen=True)
class Case:
    """One norm of one length and type."""

    kind: Kind
    features: int
    dtype: DType

    @property
    def rows(self) -> int:
        """The rows of a call that moves ``MOVED`` bytes of x."""
        return max(1, MOVED // (self.features * DTYPES[self.dtype].itemsize))

    @property
    def nbytes(self) -> int:
        """The bytes that a call must move: each activation read once and written once."""
        output = {"LN+int8": "int8", "LN+fp8": "float8_e4m3fn"}.get(self.kind, "storage")
        added = self.kind == "add+LN"
        norm = Norm(
            self.features,
            dtype=self.dtype,
            residual=added,
            keep_sum=added,
            output=output,  # type: ignore[arg-type]  # one of them
        )
        return self.rows * norm.bytes_a_row


@dataclass(frozen=True)
class Row:
    """What was measured of one case: milliseconds by runner, the median of the rounds, with their range.

    ``left_out`` says of each other runner why it was not timed.
    """

    kind: str
    features: int
    dtype: str
    nbytes: int
    milliseconds: dict[str, tuple[float, float, float]]
    left_out: dict[str, str] = field(default_factory=dict)

    def rate(self, runner: str) -> float:
        """Return gigabytes a second."""
        return self.nbytes / self.milliseconds[runner][1] / 1e6


@dataclass(frozen=True)
class Inputs:
    """One set of inputs of a case."""

    x: Tensor
    residual: Tensor
    gamma: Tensor
    beta: Tensor
    scale: Tensor


def drawn(case: Case, rows: int, device: str, seed: int) -> Inputs:
    """Return random inputs of ``case`` with ``rows`` rows on ``device``."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(DTYPES[case.dtype])

    n = case.features
    scale = torch.tensor([0.03], device=device)
    return Inputs(normal(rows, n), normal(rows, n), normal(n), normal(n), scale)


def ours(kind: Kind, i: Inputs) -> tuple[Tensor, ...]:
    """Run the kernel."""
    if kind == "RMS":
        return (ops.rms_norm(i.x, i.gamma, EPS),)
    if kind == "add+LN":
        return tuple(ops.add_layer_norm(i.x, i.residual, i.gamma, i.beta, EPS))
    if kind in QUANTIZED:
        return (ops.layer_norm_quantize(i.x, i.gamma, i.beta, i.scale, EPS, QUANTIZED[kind]),)
    return (ops.layer_norm(i.x, i.gamma, i.beta, EPS),)


def eager(kind: Kind, i: Inputs) -> tuple[Tensor, ...]:
    """Run the same in PyTorch's own operators; float64 inputs give the reference."""
    n = (i.x.shape[-1],)
    if kind == "RMS":
        return (F.rms_norm(i.x, n, i.gamma, EPS),)
    if kind == "add+LN":
        total = i.x + i.residual
        return F.layer_norm(total, n, i.gamma, i.beta, EPS), total
    y = F.layer_norm(i.x, n, i.gamma, i.beta, EPS)
    return (_quantize(y, i.scale, QUANTIZED[kind]),) if kind in QUANTIZED else (y,)


Runner = Callable[[Kind, Inputs], tuple[Tensor, ...]]


def separate(kind: Kind, i: Inputs) -> tuple[Tensor, ...]:
    """Run our LayerNorm, and what is fused with it before or behind it as a kernel of PyTorch's."""
    if kind == "add+LN":
        total = _compiled_add(i.x, i.residual)
        return (ops.layer_norm(total, i.gamma, i.beta, EPS), total)
    return (_compiled_quantize(ops.layer_norm(i.x, i.gamma, i.beta, EPS), i.scale, QUANTIZED[kind]),)


def _quantize(y: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.int8:
        return torch.clamp(torch.round(y.float() / scale), -128, 127).to(torch.int8)
    return torch.clamp(y.float() / scale, -448, 448).to(dtype)


_compiled_quantize = torch.compile(_quantize, dynamic=False)
_compiled_add = torch.compile(torch.add, dynamic=False)


def runners(kind: Kind) -> tuple[dict[str, Runner], dict[str, str]]:
    """Return every runner of ``kind``, ours first, and why peers are left out.

    What torch compiled before is forgotten: of one function it compiles eight shapes, and then runs it eagerly.
    """
    torch.compiler.reset()
    found: dict[str, Runner] = {
        "normdeploy": ours,
        "eager": eager,
        "torch.compile": torch.compile(eager, dynamic=False),
    }
    if kind not in ("LN", "RMS"):
        return found | {"separate": separate}, {}
    others, left = peers(kind)
    return found | {name: _as_runner(norm) for name, norm in others.items()}, left


def _as_runner(norm: PeerNorm) -> Runner:
    return lambda kind, i: (norm(i.x, i.gamma, i.beta, EPS),)


def cases() -> list[Case]:
    """Return all cases: the types that are deployed most first, so that these are there when time runs out."""
    return [Case(kind, n, dtype) for dtype in DTYPES for n in LENGTHS for kind in KINDS]


def worst_error(case: Case, rows: int, device: str, run: Runner = ours) -> float:
    """Return the largest error of ``run`` against float64.

    In eps of the type that y is stored in, relative to y or 1; of a quantized y in steps of its type.
    """
    i = drawn(case, rows, device, seed=case.features)
    y = run(case.kind, i)[0]
    x = i.x + i.residual if case.kind == "add+LN" else i.x
    wide = Inputs(*(t.double() for t in (x, i.residual, i.gamma, i.beta, i.scale)))
    reference = eager("RMS" if case.kind == "RMS" else "LN", wide)[0]
    if case.kind not in QUANTIZED:
        error = (y.double() - reference).abs() / reference.abs().clamp(min=1.0)
        return float(error.max()) / torch.finfo(i.x.dtype).eps
    exact = reference / wide.scale
    most, step = (127, 1.0) if case.kind == "LN+int8" else (448, exact.abs().clamp(2.0**-6, 448) * 2.0**-3)
    return float(((y.double() - exact.clamp(-most - 1, most)).abs() / step).max())


LIMITS = {"float32": 16.0, "float16": 0.51, "bfloat16": 0.51}
"""Largest error of a norm, in eps of its type."""
QUANTIZED_LIMIT = 0.8
"""Largest error of a quantized one, in steps: half of one, and what y was rounded by before."""


PEER_LIMIT = 16.0
"""How many times our bound a peer may be off and still be timed: it is faster than right, not than us."""


def limit_of(case: Case) -> float:
    """Return the largest error of our kernel that is right."""
    return QUANTIZED_LIMIT if case.kind in QUANTIZED else LIMITS[case.dtype]


def is_right(case: Case, rows: int, device: str) -> bool:
    """Return True where the kernel is within its bound on ``device``."""
    return worst_error(case, rows, device) <= limit_of(case)


def timed(run: Callable[[int], object], sets: int) -> tuple[float, float, float]:
    """Return least, median and most milliseconds of a call over ``ROUNDS``: a captured graph of a call on each set."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch annotates it so
    with torch.cuda.stream(stream):
        for index in range(sets):
            run(index)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [run(index) for index in range(sets)]
    samples = []
    for _ in range(ROUNDS):
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch annotates it so
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # as above
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        samples.append(begin.elapsed_time(end) / sets)
    del kept
    return min(samples), statistics.median(samples), max(samples)


def measured(case: Case) -> Row:
    """Time every runner of ``case`` that computes it right; ours must."""
    inputs = [drawn(case, case.rows, "cuda", seed) for seed in range(SETS)]
    found, left = runners(case.kind)
    times = {}
    for name, run in found.items():
        try:
            if name != "normdeploy" and worst_error(case, 5, "cuda", run) > PEER_LIMIT * limit_of(case):
                left[name] = "it computes something else"
                continue
            times[name] = timed(lambda index, run=run: run(case.kind, inputs[index]), SETS)  # type: ignore[misc]  # bound now
        except Exception as error:  # a peer may refuse a length; ours may not
            if name == "normdeploy":
                raise
            left[name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return Row(case.kind, case.features, case.dtype, case.nbytes, times, left)


def copied() -> float:
    """Return the gigabytes a second, read and written, of a copy of ``MOVED`` bytes."""
    full = [torch.empty(MOVED, dtype=torch.uint8, device="cuda").random_() for _ in range(SETS)]
    copies = [torch.empty_like(tensor) for tensor in full]
    _, median, _ = timed(lambda index: copies[index].copy_(full[index]), SETS)
    return 2 * MOVED / median / 1e6


def sanitized(seconds: float) -> str:
    """Run small shapes under compute-sanitizer's memcheck and racecheck, ``seconds`` each; return what came of it."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return "compute-sanitizer is not installed"
    for name in ("memcheck", "racecheck"):
        command = [program, "--tool", name, "--error-exitcode", "9", sys.executable, __file__, "--small"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"{name} was not done in {seconds:.0f} s"
        if done.returncode:
            return f"{name} found: {done.stdout[-2000:]}"
    return "memcheck and racecheck found nothing"


_SMALL_LENGTHS: tuple[tuple[int, DType], ...] = ((96, "float16"), (1023, "bfloat16"), (20000, "float32"))
SMALL = tuple(Case(kind, n, dtype) for kind in KINDS for n, dtype in _SMALL_LENGTHS)


def table(rows: Sequence[Row], copy: float) -> Table:
    """Return the table: how near to the measured copy, and how many times as fast as each other runner."""
    columns = ("norm", "N", "type", "GB/s", "of a copy", "beside others, times as fast")
    shown = Table(*columns, title=f"a copy: {copy:.0f} GB/s")
    for row in rows:
        medians = {name: times[1] for name, times in row.milliseconds.items()}
        ours_ms = medians.pop("normdeploy")
        others = ", ".join(f"{name} {ms / ours_ms:.2f}" for name, ms in medians.items())
        rate = row.rate("normdeploy")
        shown.add_row(row.kind, f"{row.features:,}", row.dtype, f"{rate:.0f}", f"{rate / copy:.2f}", others)
    return shown


def missed(rows: Sequence[Row], copy: float) -> list[str]:
    """Return each goal that is missed, and by how much: of a copy's rate, of each other runner, of a separate pair."""
    found = []
    for row in rows:
        medians = {name: times[1] for name, times in row.milliseconds.items()}
        own, name = medians.pop("normdeploy"), f"{row.kind} {row.features:,} {row.dtype}"
        goal = 0.95 if 2048 <= row.features <= 16384 else 0.90 if row.features >= 32768 else 0.0
        share = row.rate("normdeploy") / copy
        if share < goal:
            found.append(f"{name}: {share:.2f} of a copy, not {goal:.2f}")
        for other, ms in medians.items():
            wanted = (1.25 if row.kind == "add+LN" else 2.0) if other == "separate" else 1.0
            if ms / own < wanted:
                found.append(f"{name}: {ms / own:.2f} times as fast as {other}, not {wanted:g}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    end = time.monotonic()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="where to write the measurements")
    parser.add_argument("--minutes", type=float, default=7.5, help="that all of it takes at most, but for a last case")
    parser.add_argument("--small", action="store_true", help="run small shapes once and time nothing: for a sanitizer")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no NVIDIA GPU that torch can use: run this on a machine with one", file=sys.stderr)
        return 3
    end += 60 * given.minutes
    if told := _wrong(SMALL):
        print("\n".join(told), file=sys.stderr)
    if given.small or told:
        return int(bool(told))
    said, copy = sanitized(6 * given.minutes), copied()
    rows, wrong = run_cases(end)
    Console().print(table(rows, copy))
    print("\n".join([*wrong, *missed(rows, copy)]) or "no goal is missed")
    left = len(cases()) - len(rows) - len(wrong)
    print(f"{said}; {left} of {len(cases())} cases left out for want of time")
    if given.json:
        document = {
            "gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "copy_gb_s": copy, "sanitizer": said,
            "left_out": left, "wrong": wrong, "missed": missed(rows, copy), "rows": [asdict(row) for row in rows],
        }  # fmt: skip
        write_file(given.json, json.dumps(document, indent=1).encode(), replace=True)
    return int(bool(wrong) or "found:" in said)


def _wrong(judged: Sequence[Case]) -> list[str]:
    errors = {case: worst_error(case, 5, "cuda") for case in judged}
    return [f"{case}: wrong by {error:.3g}" for case, error in errors.items() if error > limit_of(case)]


def run_cases(end: float) -> tuple[list[Row], list[str]]:
    """Return what was measured before the clock is at ``end``, and of each case where we are wrong by how much."""
    rows: list[Row] = []
    wrong: list[str] = []
    for case in cases():
        if time.monotonic() > end:
            break
        if told := _wrong([case]):
            wrong += told
        else:
            rows.append(measured(case))
    return rows, wrong


if __name__ == "__main__":
    sys.exit(main())
