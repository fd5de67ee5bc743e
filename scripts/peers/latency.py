"""Latency in ONNX Runtime of the same network as each folder leaves it: raw, torch-optimized, onnxsim, onnxslim, ours.

All forms of a network run in one process, one thread, in turn, beginning with another one each round, so that what else
the machine does weighs on all alike.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from normdeploy import specs
from normdeploy.bench.stats import ratio_interval
from normdeploy.export import example_inputs
from peers.borrowed import ARCHITECTURES, NETWORKS, PACKAGES, lived_in, randomized
from peers.crew import Worker

RAW, OPTIMIZED, OURS = "raw", "torch-optimized", "normdeploy"
FOLDERS = ("onnxsim", "onnxslim", OURS)
LIMIT = 600.0
"""Seconds for one fold."""
SHORTEST = 5e-3
"""Seconds that one measurement takes at least: quicker networks run several times."""
WRONG = 1e-3
"""The RMS error, relative to the output's RMS, from which on an answer is wrong."""
SHIPPED = {
    "PP-OCRv4 detection": ("ch_PP-OCRv4_det_infer.onnx", (1, 3, 320, 320)),
    "PP-OCRv4 recognition": ("ch_PP-OCRv4_rec_infer.onnx", (1, 3, 48, 320)),
    "PP-OCR classification": ("ch_ppocr_mobile_v2.0_cls_infer.onnx", (1, 3, 48, 192)),
}
"""The files that rapidocr-onnxruntime ships, and the size of a usual input."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Network:
    """One network: how its raw file is written, and the optimized one where an exporter has it; its input."""

    name: str
    write: Callable[[Path], Arrays]


def networks(only: Sequence[str] = ()) -> Iterator[Network]:
    """Yield the networks of tests/real and those that rapidocr-onnxruntime ships, or ``only`` those of these names."""
    made = [(item.name, (lambda item=item: randomized(item)), [item.spec]) for item in ARCHITECTURES]
    made += [(item.name, (lambda item=item: lived_in(item.build)), list(item.inputs)) for item in NETWORKS]
    for name, build, texts in made:
        if not only or name in only:
            yield Network(name, _exported(build, texts))
    for name, (file, shape) in SHIPPED.items():
        if not only or name in only:
            yield Network(name, _shipped(PACKAGES / "rapidocr_onnxruntime" / "models" / file, shape))


def _exported(build: Callable[[], nn.Module], texts: Sequence[str]) -> Callable[[Path], Arrays]:
    def write(folder: Path) -> Arrays:
        module, parsed = build(), specs.parse(texts)
        inputs = drawn(parsed)
        for name, optimize in ((RAW, False), (OPTIMIZED, True)):
            write_exported(module, inputs, folder / f"{name}.onnx", optimize=optimize)
        return {name: tensor.numpy() for name, tensor in inputs.items()}

    return write


def write_exported(module: nn.Module, inputs: dict[str, torch.Tensor], path: Path, *, optimize: bool = False) -> None:
    """Write what torch's exporter makes of ``module``, optimized or as it is."""
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(module, (), kwargs=inputs, dynamo=True, optimize=optimize, verbose=False)
    assert program is not None
    program.save(path)


def drawn(parsed: Sequence[specs.TensorSpec]) -> dict[str, torch.Tensor]:
    """Return one input of each spec, at its usual sizes."""
    random, inputs = torch.Generator().manual_seed(3), {}
    for spec, like in zip(parsed, example_inputs(parsed, specs.tracing_sizes(parsed)).values(), strict=True):
        if like.is_floating_point():
            inputs[spec.name] = torch.randn(like.shape, generator=random)
        else:
            inputs[spec.name] = torch.randint(int(spec.low or 0), int(spec.high or 0) + 1, like.shape, generator=random)
    return inputs


def _shipped(file: Path, shape: tuple[int, ...]) -> Callable[[Path], Arrays]:
    def write(folder: Path) -> Arrays:
        (folder / f"{RAW}.onnx").write_bytes(file.read_bytes())
        name = _session(file).get_inputs()[0].name
        return {name: np.random.default_rng(3).standard_normal(shape).astype(np.float32)}

    return write


def measure(network: Network, folder: Path, rounds: int, note: Callable[[str], None]) -> dict[str, Any]:
    """Return the latencies of every form of ``network``, in ms, a round each; forms that fail have an ``error``."""
    for leftover in folder.glob("*.onnx*"):
        leftover.unlink()
    feed = network.write(folder)
    errors = {name: error for name in FOLDERS if (error := _fold(name, folder))}
    forms, wanted = {}, None
    for name in (RAW, OPTIMIZED, *FOLDERS):
        if name in errors or not (folder / f"{name}.onnx").exists():
            continue
        try:
            session = _session(folder / f"{name}.onnx")
            answers = session.run(None, _given(session, feed))
        except Exception as error:  # a runtime refuses a model in many ways
            errors[name] = f"{type(error).__name__}: {error}"[:200]
            continue
        wanted = answers if wanted is None else wanted
        if problem := _wrong(wanted, answers):
            errors[name] = problem
        else:
            forms[name] = session
    times = _interleaved({name: (session, _given(session, feed)) for name, session in forms.items()}, rounds)
    note(f"{network.name}: " + ", ".join(f"{name} {statistics.median(ms):.2f} ms" for name, ms in times.items()))
    return {"ms": times, "errors": errors}


def _fold(name: str, folder: Path) -> str:
    worker = Worker(name, folder / f"{name}.log")
    try:
        job = {"source": str(folder / f"{RAW}.onnx"), "target": str(folder / f"{name}.onnx")}
        return str(worker(job, LIMIT).get("error", ""))
    finally:
        worker.stop()


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _given(session: onnxruntime.InferenceSession, feed: Arrays) -> Arrays:
    return {info.name: feed[info.name] for info in session.get_inputs()}


def _wrong(wanted: Sequence[Any], answers: Sequence[Any]) -> str:
    for want, got in zip(wanted, answers, strict=True):
        if want.shape != got.shape:
            return f"an output is {list(got.shape)}, not {list(want.shape)}"
        off = np.sqrt(np.mean((want - got) ** 2.0)) / max(1e-30, np.sqrt(np.mean(want**2.0)))
        if not off <= WRONG:
            return f"an output is off by {off:.2g}"
    return ""


def _interleaved(
    forms: Mapping[str, tuple[onnxruntime.InferenceSession, Arrays]], rounds: int
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in forms}
    repeats = {name: _repeats(session, given) for name, (session, given) in forms.items()}
    count = max(repeats.values(), default=1)
    names = list(forms)
    for turn in range(rounds):
        for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
            session, given = forms[name]
            begin = time.perf_counter()
            for _ in range(count):
                session.run(None, given)
            times[name].append((time.perf_counter() - begin) / count * 1e3)
    return times


def _repeats(session: onnxruntime.InferenceSession, given: Arrays) -> int:
    session.run(None, given)
    begin = time.perf_counter()
    session.run(None, given)
    return max(1, round(SHORTEST / (time.perf_counter() - begin)))


def ratio(found: Mapping[str, Any]) -> tuple[str, float, float, float] | None:
    """Return the best other form, and how many times as fast ours is, with the ends of the 95 % interval."""
    ms: Mapping[str, Sequence[float]] = found["ms"]
    others = {name: statistics.median(times) for name, times in ms.items() if name != OURS}
    if OURS not in ms or not others:
        return None
    best = min(others, key=lambda name: others[name])
    low, high = ratio_interval(ms[best], ms[OURS])
    return best, others[best] / statistics.median(ms[OURS]), low, high
