"""Peak memory of folding a model that is larger than what may be held: weights are mapped, and edited one at a time.

    .venv/bin/python scripts/fold_memory.py

makes a model of 6 GiB in a temporary folder, folds it with the command line, checks what came out, and prints both
sizes. Every second weight is behind a scale that folds into it, the others are untouched. The resident set also counts
the pages of mapped files, which the kernel takes back at will; the anonymous memory is what the fold itself holds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

COUNT, WIDTH = 24, 4096
"""How many weights there are, and the rows or columns of each."""
GIB = 2**30
ALLOWED = 8
"""Weights that may be held at once: a few of one's float64 copies are 2 each."""
PYTHON = GIB // 2
"""Bytes that the interpreter and its libraries may take besides."""
DATA = "model.onnx.data"


@dataclass(frozen=True)
class Peak:
    """What one process took: bytes resident (mapped files included), bytes of its own, seconds."""

    resident: int
    anonymous: int
    seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--gib", type=float, default=6.0, help="size of the model")
    inner = max(1, round(parser.parse_args().gib * GIB / (COUNT * WIDTH * 4)))
    weight = WIDTH * inner * 4
    with tempfile.TemporaryDirectory(prefix="normdeploy-memory-") as folder:
        source, out = Path(folder) / "model.onnx", Path(folder) / "folded" / "model.onnx"
        make(source, inner)
        out.parent.mkdir()
        peak = watched([str(Path(sys.executable).with_name("normdeploy")), "fold", str(source), "--out", str(out)])
        check(source, out)
    told("the model", COUNT * weight, f"{COUNT} weights of {weight / GIB:.2f} GiB, every second one edited")
    told("peak of anonymous memory", peak.anonymous, f"{peak.anonymous / weight:.1f} weights")
    told("peak resident set", peak.resident, "pages of the mapped files included")
    print(f"{'time':26}{peak.seconds:6.1f} s")
    return 0 if peak.anonymous <= ALLOWED * weight + PYTHON else 1


def told(what: str, size: int, note: str) -> None:
    """One line of the result."""
    print(f"{what:26}{size / GIB:6.2f} GiB  {note}")


def make(path: Path, inner: int) -> None:
    """Matrix products in a row, a scale per column behind every second one, the weights beside the file."""
    nodes, tensors, last = [], [], "x"
    random = np.random.default_rng(0)
    with (path.parent / DATA).open("wb") as data:
        for index in range(COUNT):
            shape = (WIDTH, inner) if index % 2 == 0 else (inner, WIDTH)
            tensors.append(external(f"w{index}", shape, data.tell()))
            data.write((random.standard_normal(shape, dtype=np.float32) / 64).tobytes())
            nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [f"m{index}"], name=f"product{index}"))
            last = f"m{index}"
            if index % 2 == 0:
                scale = random.uniform(0.5, 2.0, shape[1]).astype(np.float32)
                tensors.append(numpy_helper.from_array(scale, f"s{index}"))
                nodes.append(helper.make_node("Mul", [last, f"s{index}"], [f"y{index}"], name=f"scale{index}"))
                last = f"y{index}"
            nodes.append(helper.make_node("Tanh", [last], [f"t{index}"], name=f"tanh{index}"))
            last = f"t{index}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", None]) for name in ("x", last)]
    ends[0].type.tensor_type.shape.dim[1].dim_value = WIDTH
    graph = helper.make_graph(nodes, "wide", ends[:1], ends[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def external(name: str, shape: tuple[int, ...], offset: int) -> TensorProto:
    """The entry of a weight that lies at ``offset`` of the file beside the model."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", DATA), ("offset", offset), ("length", 4 * shape[0] * shape[1])):
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def watched(command: list[str]) -> Peak:
    """Run ``command`` and look at its memory twenty times a second."""
    begin, own = time.perf_counter(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        own = max(own, anonymous(process.pid))
        time.sleep(0.05)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return Peak(usage.ru_maxrss * 1024, own, time.perf_counter() - begin)


def anonymous(pid: int) -> int:
    """Bytes that no file backs, from Linux's own account of the process."""
    with suppress(OSError):  # it ended a moment ago
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Anonymous:"):
                return int(line.split()[1]) * 1024
    return 0


def check(source: Path, out: Path) -> None:
    """Every edited weight is the product, rounded once; every other one is what it was; no scale is left."""
    before, after = (dict(weights(path)) for path in (source, out))
    proto = onnx.load(source, load_external_data=False)
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer if tensor.name[0] == "s"}
    kinds = [node.op_type for node in onnx.load(out, load_external_data=False).graph.node]
    if kinds != ["MatMul", "Tanh"] * COUNT:
        raise SystemExit("a scale is left in the folded model")
    for index, (old, new) in enumerate(zip(before.values(), after.values(), strict=True)):
        rows = old[::97].astype(np.float64)
        if index % 2 == 0:
            rows = rows * scales[f"s{index}"]
        if not np.array_equal(new[::97], rows.astype(np.float32)):
            raise SystemExit(f"weight {index} is wrong in the folded model")


def weights(path: Path) -> Iterator[tuple[str, np.memmap[tuple[int, ...], np.dtype[np.float32]]]]:
    """The weights beside ``path``, mapped, in the order of the products that read them."""
    proto = onnx.load(path, load_external_data=False)
    found = {tensor.name: tensor for tensor in proto.graph.initializer if tensor.external_data}
    for node in proto.graph.node:
        if node.op_type == "MatMul":
            entry = {item.key: item.value for item in found[node.input[1]].external_data}
            file, shape = path.parent / entry["location"], tuple(found[node.input[1]].dims)
            yield node.name, np.memmap(file, np.float32, "r", int(entry.get("offset", 0)), shape)


if __name__ == "__main__":
    sys.exit(main())
