"""Damaged and crafted files of every kind that normdeploy reads: one clear error, or a valid result.

    .venv/bin/python scripts/fuzz_files.py --inputs 20000

mutates small files that are right (bytes, and fields of their formats), gives each to what reads it, many in one
process that has 4 GiB, and watches that process from another one. What is no NormdeployError, takes more than ten
processor seconds, ends the process, or makes it grow by more than 1 GiB is a fault; out/fuzz-files keeps its input.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "out" / "fuzz-files"
SECONDS, MEMORY, GROWTH = 10, 4 << 30, 1 << 30
INTERESTING = (0, 1, 2, 7, 127, 128, 255, 2**15, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -1, -2, -(2**31))
TEXTS = (
    "",
    "\0",
    "\x1b[31m",
    "x",
    "../../etc/passwd",
    "/dev/zero",
    "a\nfix: run this",
    "\u202e",
    "\ud800",
    "9" * 400,
    "nan",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--inputs", type=int, default=20_000, help="how many, of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=[*KINDS], help="only this one")
    parser.add_argument("--from", dest="start", type=int, help=argparse.SUPPRESS)  # what the watched process is told
    options = parser.parse_args()
    kinds = [options.kind] if options.kind else [*KINDS]
    each = options.inputs // len(kinds)
    if options.start is not None:
        work(options.kind, options.seed, options.start, each)
        return 0
    need_current_documents()
    faults = 0
    print(f"{'kind':12}{'inputs':>8}{'valid':>8}{'refused':>8}{'faults':>8}  seconds")
    for kind in kinds:
        started = time.monotonic()
        found = watched(kind, options.seed, each)
        bad = sum(found.values()) - found["valid"] - found["refused"]
        faults += bad
        print(f"{kind:12}{sum(found.values()):>8}{found['valid']:>8}{found['refused']:>8}{bad:>8}  ", end="")
        print(
            f"{time.monotonic() - started:.0f}",
            *(f"{n}x {what}" for what, n in found.items() if what not in ("valid", "refused")),
            flush=True,
        )
    return 1 if faults else 0


def need_current_documents() -> None:
    """End where the bundle is of another version: all that is made of its documents would be refused for that."""
    from normdeploy.errors import NormdeployError

    for kind in ("manifest", "report"):
        try:
            read_document(kind)(json.dumps(document_of(f"{kind}.json")).encode(), ROOT)
        except NormdeployError as error:
            sys.exit(f"out/digits_resnet is not of this version, run make demo: {error}")


# -- the watching process --------------------------------------------------------------------------


def watched(kind: str, seed: int, count: int) -> Counter[str]:
    """The outcomes of ``count`` inputs; a process that ends or hangs is followed by another one, behind that input."""
    found: Counter[str] = Counter()
    done = 0
    while done < count:
        command = [
            sys.executable,
            __file__,
            "--kind",
            kind,
            "--seed",
            str(seed),
            "--inputs",
            str(count),
            "--from",
            str(done),
        ]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            patience = 60  # the first line comes when everything is imported
            while True:
                ready = waited(process, patience)
                line = process.stdout.readline() if ready else ""
                if not line:
                    break
                patience = SECONDS
                index, outcome = line.rstrip("\n").split(" ", 1)
                found[outcome] += 1
                done = int(index) + 1
            process.kill() if not ready else process.wait()
        if done < count:
            code = process.wait()
            outcome = "hang" if not ready else f"ended by {signal.Signals(-code).name if code < 0 else code}"
            found[outcome] += 1
            keep(kind, seed, done, outcome)
            done += 1
    return found


def waited(process: subprocess.Popen[str], patience: float) -> bool:
    """Whether a line comes before the process has used so many seconds of a processor, or ten times as many passed."""
    used, started = processor_seconds(process.pid), time.monotonic()
    assert process.stdout is not None
    while not select.select([process.stdout], [], [], 1)[0]:
        if processor_seconds(process.pid) - used > patience or time.monotonic() - started > 10 * patience:
            return False
    return True


def processor_seconds(pid: int) -> float:
    """What the process has used: fields 14 and 15 of its stat (proc_pid_stat(5)), behind its name."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def keep(kind: str, seed: int, index: int, why: str) -> None:
    """Write what was given, so that it can be given again."""
    KEPT.mkdir(parents=True, exist_ok=True)
    data = KINDS[kind][0](random.Random(f"{kind} {seed} {index}"))
    (KEPT / f"{kind}-{seed}-{index}").write_bytes(data)
    (KEPT / f"{kind}-{seed}-{index}.txt").write_text(why, errors="backslashreplace")


# -- the watched process ---------------------------------------------------------------------------


def work(kind: str, seed: int, start: int, count: int) -> None:
    """Give each input to its reader, and tell its outcome in a line."""
    from normdeploy.errors import NormdeployError

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    told, sys.stdout = sys.stdout, io.StringIO()
    make, read = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        for index in range(start, count):
            data = make(random.Random(f"{kind} {seed} {index}"))
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                read(data, Path(folder))
                outcome = "valid"
            except NormdeployError as error:
                outcome = "refused" if str(error).strip() else "an empty message"
            except BaseException as error:  # that is what is looked for
                outcome = f"{type(error).__name__} at {place(error)}"
                keep(kind, seed, index, traceback.format_exc())
            if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 > GROWTH:
                outcome = "memory"
                keep(kind, seed, index, outcome)
            print(index, outcome, file=told, flush=True)


def place(error: BaseException) -> str:
    """The last line of normdeploy's own code that ``error`` came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "normdeploy/" in frame.filename]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"


# -- what is given ---------------------------------------------------------------------------------


def mutated(data: bytes, draw: random.Random) -> bytes:
    """``data`` with a few bytes other, more, fewer, or moved."""
    result = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 16))):
        at, size = draw.randrange(len(result) + 1), draw.choice((1, 1, 2, 4, 8, 64))
        how = draw.randrange(7)
        if how == 0:
            result[at : at + size] = draw.randbytes(size)
        elif how == 1:
            del result[at : at + size]
        elif how == 2:
            result[at:at] = draw.randbytes(size)
        elif how == 3:
            result[at:at] = result[(start := draw.randrange(len(result) + 1)) : start + 8 * size]
        elif how == 4:
            result[at : at + 8] = (draw.choice(INTERESTING) & (2**64 - 1)).to_bytes(8, draw.choice(("little", "big")))
        elif how == 5 and draw.random() < 0.2:
            del result[at:]
        elif result[at : at + 1]:
            result[at] ^= 1 << draw.randrange(8)
    return bytes(result)


def rezipped(data: bytes, draw: random.Random) -> bytes:
    """``data`` mutated; of an archive often one entry, with the right checksum: more of its reader is reached."""
    if not data.startswith(b"PK") or draw.random() < 0.3:
        return mutated(data, draw)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice([*entries])
    entries[name] = mutated(entries[name], draw)
    with zipfile.ZipFile(file := io.BytesIO(), "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for each, content in entries.items():
            archive.writestr(each, content)
    return file.getvalue()


def changed(value: Any, draw: random.Random) -> Any:
    """JSON with something in it replaced, taken out, doubled, or nested."""
    if isinstance(value, dict | list) and value and draw.random() < 0.85:
        key = draw.choice([*value] if isinstance(value, dict) else range(len(value)))
        copy = type(value)(value)
        copy[key] = changed(copy[key], draw)
        return copy
    other = [
        None,
        True,
        [],
        {},
        [value],
        {"a": value},
        draw.choice(INTERESTING),
        1e308,
        float("nan"),
        10**400,
        draw.choice(TEXTS),
    ]
    if isinstance(value, dict) and value:
        return {key: each for key, each in value.items() if key != draw.choice([*value])}
    return draw.choice(other)


def as_json(document: Any, draw: random.Random) -> bytes:
    text = json.dumps(changed(document, draw)).encode()
    return mutated(text, draw) if draw.random() < 0.3 else text


def onnx_models() -> list[bytes]:
    """Small models with what the fold knows: convolutions, norms, constants, a body, a function, external data."""
    from onnx import parser

    texts = [
        "g (float[N,1,8,8] x) => (float[N,4,6,6] y) <float[4,1,3,3] w = {WEIGHTS}, float[4] s = {1,2,3,4}, "
        "float[4] b = {1,2,3,4}, float[4] m = {1,2,3,4}, float[4] v = {1,2,3,4}> { c = Conv <strides = [1,1], "
        "pads = [0,0,0,0]> (x, w) r = Relu (c) y = BatchNormalization <epsilon = 0.001> (c, s, b, m, v) }",
        "g (float[N,4] x) => (float[N,3] y) <float[4,3] w = {TWELVE}, float[3] s = {1,2,3}> "
        "{ t = Transpose <perm = [1,0]> (w) k = Constant <value = float[3] {1,2,3}> () p = Gemm <transB = 1> (x, t) "
        "q = Mul (p, s) z = Add (q, k) y = LayerNormalization <axis = -1> (z, s) }",
        "g (bool c, float[2] x) => (float[2] y) <float[2] w = {1,2}> { a = Mul (x, w) y = If (c) "
        "<then_branch = t () => (float[2] o) { o = Add (a, w) }, else_branch = e () => (float[2] o) { o = Neg (a) }> }",
        "g (float[N,4,8] x) => (float[N,8] y) <int64[2] shape = {0,-1}, float[8] s = {1,2,3,4,5,6,7,8}> "
        "{ n = Shape (x) i = Constant <value = int64[1] {0}> () d = Gather (n, i) e = Concat <axis = 0> (d, shape) "
        "m = ReduceMean <axes = [-1]> (x) u = Sub (x, m) v = Pow (u, m) r = MatMul (u, s) f = Mul (x, s) "
        "h = Flatten (f) y = GlobalAveragePool (f) }",
    ]
    numbers = {"WEIGHTS": 36, "TWELVE": 12}
    for name, count in numbers.items():
        texts = [text.replace("{" + name + "}", "{" + ",".join(map(str, range(count))) + "}") for text in texts]
    return [
        parser.parse_model(f'<ir_version: 9, opset_import: ["" : 17]> {text}').SerializeToString() for text in texts
    ]


def onnx_model(draw: random.Random) -> bytes:
    import onnx

    model = draw.choice(seeds("onnx", onnx_models))
    if draw.random() < 0.4:
        return mutated(model, draw)
    proto = onnx.ModelProto.FromString(model)
    for _ in range(draw.choice((1, 1, 2, 3))):
        change_message(proto, draw)
    return bytes(proto.SerializeToString(deterministic=True))


def change_message(message: Any, draw: random.Random) -> None:
    """One field, anywhere in the message, other, gone, or doubled."""
    fields = message.ListFields()
    if not fields:
        return
    field, value = draw.choice(fields)
    many = not hasattr(value, "ListFields") and hasattr(value, "extend")
    if field.message_type is not None and draw.random() < 0.85:
        change_message(draw.choice(value) if many else value, draw)
    elif many and len(value):
        at = draw.randrange(len(value))
        if draw.random() < 0.4:
            del value[at]
        elif draw.random() < 0.5:
            value.extend([value[draw.randrange(len(value))]])
        elif field.message_type is None:
            value[at] = drawn(value[at], draw)
    elif field.message_type is None and draw.random() < 0.8:
        with suppress(ValueError):  # a number that the field's enumeration has not
            setattr(message, field.name, drawn(value, draw))
    else:
        message.ClearField(field.name)


def drawn(value: Any, draw: random.Random) -> Any:
    if isinstance(value, bytes):
        return mutated(value, draw)
    if isinstance(value, str):
        return (
            draw.choice([*TEXTS[:-3], "Conv", "Mul", "x", "y", "w", "axis", "axes"]).encode("utf-8", "ignore").decode()
        )
    if isinstance(value, float):
        return draw.choice((0.0, -1.0, float("nan"), float("inf"), 1e30))
    number = draw.choice(INTERESTING)
    return number if -(2**31) <= number < 2**31 else value + draw.choice((-1, 1))


def checkpoints() -> list[bytes]:
    import safetensors.torch
    import torch

    state = {"weight": torch.ones(3, 4), "bias": torch.zeros(3)}
    written = [safetensors.torch.save(state)]
    for contents, modern in (
        ({"state_dict": state, "epoch": 3}, True),
        (state, False),
        ({"a": [1, (2, "b")], **state}, True),
    ):
        torch.save(contents, file := io.BytesIO(), _use_new_zipfile_serialization=modern)
        written.append(file.getvalue())
    return [*written, json.dumps({"weight_map": {"weight": "w.safetensors"}}).encode()]


def arrays() -> bytes:
    import numpy as np

    np.savez(file := io.BytesIO(), x=np.ones((2, 4), np.float32), ids=np.arange(6).reshape(2, 3))
    return file.getvalue()


_SEEDS: dict[str, Any] = {}


def seeds(name: str, make: Callable[[], Any]) -> Any:
    if name not in _SEEDS:
        _SEEDS[name] = make()
    return _SEEDS[name]


# -- what reads it ---------------------------------------------------------------------------------


def fold_file(data: bytes, folder: Path) -> None:
    from normdeploy import pipeline
    from normdeploy.errors import InputError

    (folder / "m.onnx").write_bytes(data)
    try:
        pipeline.fold_file(folder / "m.onnx", folder / "o.onnx", force=True)
    finally:
        (folder / "o.onnx").unlink(missing_ok=True)
    with suppress(InputError):
        pipeline.ledger_of(folder / "m.onnx")


def load_checkpoint(data: bytes, folder: Path) -> None:
    from torch import nn

    from normdeploy.checkpoint.files import read
    from normdeploy.checkpoint.fit import fit
    from normdeploy.checkpoint.names import Names

    (folder / "w.pt").write_bytes(data)
    fit(nn.Linear(4, 3), read(folder / "w.pt").data, file=folder / "w.pt", names=Names())


def load_arrays(data: bytes, folder: Path) -> None:
    from normdeploy.bundle import golden
    from normdeploy.errors import InputError
    from normdeploy.parity.feeds import data_feed
    from normdeploy.specs import parse

    (folder / "d.npz").write_bytes(data)
    with suppress(InputError):
        golden.load(folder / "d.npz", {"x": "float32", "ids": "int64"})
    data_feed(parse(["x:B=1..2..4x4", "ids:Bx3@i64[0..9]"]), folder / "d.npz")


def read_document(name: str) -> Callable[[bytes, Path], None]:
    def read(data: bytes, folder: Path) -> None:
        from rich.console import Console

        from normdeploy.bundle.manifest import Manifest
        from normdeploy.report import console, html, schema

        if name == "manifest":
            schema.read(Manifest, data, where="manifest.json")
            return
        report = schema.read(schema.Report, data, where="report.json")
        console.show(report, Console(file=io.StringIO()))
        if len(data) % 4 == 0:  # the page has plots, which take a while
            html.render(report)

    return read


def read_sidecar(data: bytes, folder: Path) -> None:
    from normdeploy.engine import read_plan

    (folder / "m.plan").write_bytes(b"plan")
    (folder / "m.plan.json").write_bytes(data)
    read_plan(folder / "m.plan")


def read_spec(data: bytes, folder: Path) -> None:
    del folder
    from normdeploy.errors import InputError
    from normdeploy.parity.feeds import random_feeds
    from normdeploy.specs import parse

    specs = parse(data.decode("utf-8", "replace").split("\n"))
    with suppress(InputError):
        small = all(dim.max <= 64 for spec in specs for dim in spec.dims) and all(len(spec.dims) < 4 for spec in specs)
        random_feeds(specs if small else ())


def document_of(name: str) -> Any:
    return json.loads((ROOT / "out" / "digits_resnet" / name).read_bytes())


SIDECAR: dict[str, Any] = {
    "backend": "tensorrt_rtx", "backend_version": "1", "gpu": None, "compute_capabilities": ["SM89"], "inputs": ["x"],
    "outputs": ["y"], "profiles": [{"x": {"min": [1], "opt": [1], "max": [1]}}], "precision": "fp32",
    "sha256": hashlib.sha256(b"plan").hexdigest(), "size": 4, "timing_cache_key": None, "options": {}, "layers": [],
}  # fmt: skip
SPECS = (
    b"x:N=1..4..64x1x8x8@f32",
    b"ids:B=1..2..4xT=1..8..16@i64[0..9]\nmask:BxT@i64[0..1]",
    b"h:H=64..128..256%4",
    b"x:2x3@f16[-1.5..1e3]",
)

KINDS: dict[str, tuple[Callable[[random.Random], bytes], Callable[[bytes, Path], None]]] = {
    "onnx": (onnx_model, fold_file),
    "checkpoint": (lambda draw: rezipped(draw.choice(seeds("checkpoints", checkpoints)), draw), load_checkpoint),
    "npz": (lambda draw: rezipped(seeds("arrays", arrays), draw), load_arrays),
    "manifest": (
        lambda draw: as_json(seeds("manifest", lambda: document_of("manifest.json")), draw),
        read_document("manifest"),
    ),
    "report": (
        lambda draw: as_json(seeds("report", lambda: document_of("report.json")), draw),
        read_document("report"),
    ),
    "sidecar": (lambda draw: as_json(SIDECAR, draw), read_sidecar),
    "spec": (lambda draw: mutated(draw.choice(SPECS), draw), read_spec),
}

if __name__ == "__main__":
    sys.exit(main())
