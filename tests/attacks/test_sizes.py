"""Small files that ask for much: memory, time, or a library's stack. One error within 2 s and 1 GB, or it works."""

from __future__ import annotations

import io
import pickle
import resource
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper, numpy_helper

from normdeploy import onnxfile
from normdeploy.checkpoint.files import read
from normdeploy.cli import main
from normdeploy.errors import InputError
from normdeploy.fold import fold
from normdeploy.parity.feeds import data_feed
from normdeploy.specs import parse

SECONDS, MEMORY = 2.0, 1 << 30
"""What an error may take; processor seconds, since the tests share the processor."""


def field(number: int, content: bytes) -> bytes:
    """A field of protobuf that holds bytes."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


def model(
    *nodes: onnx.NodeProto, tensors: tuple[TensorProto, ...] = (), functions: tuple[onnx.FunctionProto, ...] = ()
) -> bytes:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    graph = helper.make_graph(list(nodes), "g", [x], [y], list(tensors))
    return bytes(
        helper.make_model(graph, opset_imports=imports, ir_version=10, functions=functions).SerializeToString()
    )


def claims(shape: list[int], **held: object) -> bytes:
    return model(
        helper.make_node("Add", ["x", "w"], ["y"]), tensors=(TensorProto(name="w", data_type=1, dims=shape, **held),)
    )


def nested_bodies(depth: int) -> bytes:
    """An If in an If in an If."""
    inner = b""
    for _ in range(depth):
        graph = field(1, field(4, b"If") + field(5, field(1, b"then_branch") + field(6, inner) + b"\xa0\x01\x05"))
        inner = graph
    return b"\x08\x0a" + field(7, inner)


def doubling(count: int) -> bytes:
    """Functions of which each calls the one before twice."""
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    bodies = [[helper.make_node("Relu", ["a"], ["o"])]]
    for k in range(1, count):
        bodies.append([helper.make_node(f"F{k - 1}", [a], [o], domain="f") for a, o in (("a", "t"), ("t", "o"))])
    functions = tuple(helper.make_function("f", f"F{k}", ["a"], ["o"], body, imports) for k, body in enumerate(bodies))
    return model(helper.make_node(f"F{count - 1}", ["x"], ["y"], domain="f"), functions=functions)


def circle() -> bytes:
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    functions = tuple(
        helper.make_function("f", a, ["a"], ["o"], [helper.make_node(b, ["a"], ["o"], domain="f")], imports)
        for a, b in (("F", "G"), ("G", "F"))
    )
    return model(helper.make_node("F", ["x"], ["y"], domain="f"), functions=functions)


MODELS: dict[str, Callable[[], bytes]] = {
    "2^40 elements and none": lambda: claims([1 << 20, 1 << 20]),
    "2^62 elements and 4 bytes": lambda: claims([1 << 62], raw_data=b"abcd"),
    "a size below 0": lambda: claims([-1]),
    "1 element and 8 bytes": lambda: claims([1], raw_data=bytes(8)),
    "numbers in a field of another type": lambda: claims([2], int64_data=[1, 2]),
    "5,000 bodies": lambda: nested_bodies(5000),
    "40 bodies": lambda: nested_bodies(40),
    "2^30 calls": lambda: doubling(30),
    "a circle of calls": circle,
    "a number of 200,000 digits": lambda: b"\x08" + b"\x80" * 200_000 + b"\x01",
    "1,500,000 nodes of nothing": lambda: b"\x08\x0a" + field(7, b"\x0a\x00" * 1_500_000),
    "1,500,000 attributes of nothing": lambda: b"\x08\x0a" + field(7, field(1, b"\x2a\x00" * 1_500_000)),
    "100,001 nodes": lambda: b"\x08\x0a" + field(7, field(1, field(4, b"Relu")) * 100_001),
    "8,000,000 axes": lambda: b"\x08\x0a" + field(7, field(1, field(5, field(8, b"\x01" * 8_000_000)))),
    "8,000,000 sizes": lambda: b"\x08\x0a" + field(7, field(5, field(1, b"\x01" * 8_000_000))),
}


def limited(action: Callable[[], object]) -> tuple[float, int]:
    """Processor seconds, and bytes that this process grew by at most, while ``action`` raises an InputError."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(InputError):
        action()
    return time.process_time() - start, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_claims_too_much_is_one_error(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(MODELS[name]())
    seconds, memory = limited(lambda: onnxfile.load(path))
    assert seconds < SECONDS
    assert memory < MEMORY + path.stat().st_size


CONSTANTS = {
    "ConstantOfShape": ("ConstantOfShape", [np.array([2**33])], {}),
    "Expand": ("Expand", [np.ones(1, np.float32), np.array([2**33])], {}),
    "Tile": ("Tile", [np.ones(1, np.float32), np.array([2**33])], {}),
    "Pad": ("Pad", [np.ones(1, np.float32), np.array([0, 2**33])], {}),
    "Range": ("Range", [np.float32(0), np.float32(2**33), np.float32(1)], {}),
    "OneHot": ("OneHot", [np.array([1]), np.array(2**33), np.array([0, 1], np.float32)], {}),
    "Resize": ("Resize", [np.ones(1, np.float32), np.zeros(0, np.float32), np.array([2.0**33], np.float32)], {}),
    "HannWindow": ("HannWindow", [np.array(2**33)], {}),
    "CenterCropPad": ("CenterCropPad", [np.ones(1, np.float32), np.array([2**33])], {}),
    "outer product": ("Mul", [np.ones((1 << 17, 1), np.float32), np.ones((1, 1 << 17), np.float32)], {}),
    "Gather": ("Gather", [np.ones((1, 1 << 17), np.float32), np.zeros(1 << 17, np.int64)], {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_constant_of_8_billion_elements_is_none(name: str) -> None:
    operator, inputs, attributes = CONSTANTS[name]
    names = [f"i{index}" for index in range(len(inputs))]
    tensors = tuple(numpy_helper.from_array(np.asarray(array), each) for each, array in zip(names, inputs, strict=True))
    big = helper.make_node(operator, names, ["big"], **attributes)
    total = helper.make_node("ReduceSum", ["big"], ["scale"], keepdims=0)
    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    product = helper.make_node("MatMul", ["x", "w"], ["p"])
    given = onnx.ModelProto.FromString(
        model(big, total, product, helper.make_node("Mul", ["p", "scale"], ["y"]), tensors=(*tensors, weight))
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    folded = fold(given)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < MEMORY
    assert operator in [node.op_type for node in folded.model.graph]


_FOLDED = """
import resource, sys
from pathlib import Path
import onnx
from normdeploy.fold import fold
given = onnx.ModelProto.FromString(Path(sys.argv[1]).read_bytes())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
fold(given)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before << 10)
"""


def test_constants_that_double_are_none(tmp_path: Path) -> None:
    """In a process of its own: in one that has freed much memory, the limit on new memory comes late."""
    nodes = [helper.make_node("Concat", [f"d{k}", f"d{k}"], [f"d{k + 1}"], axis=0) for k in range(40)]
    last = [helper.make_node("ReduceSum", ["d40"], ["s"], keepdims=0), helper.make_node("Mul", ["x", "s"], ["y"])]
    given = model(*nodes, *last, tensors=(numpy_helper.from_array(np.ones(1, np.float32), "d0"),))
    (tmp_path / "model.onnx").write_bytes(given)
    command = [sys.executable, "-c", _FOLDED, str(tmp_path / "model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2 * MEMORY


@pytest.mark.parametrize("operator", ["Relu", "Identity"])
@pytest.mark.parametrize("start", ["x", "w", "dead"])
def test_a_long_row_is_folded(operator: str, start: str) -> None:
    """No recursion, and a time that grows with the length."""
    names = [{"x": "x", "w": "w", "dead": "x"}[start], *(f"d{k}" for k in range(1200))]
    row = [helper.make_node(operator, [a], [b]) for a, b in pairwise(names)]
    product = helper.make_node(
        "MatMul", [names[-1] if start == "x" else "x", names[-1] if start == "w" else "w"], ["p"]
    )
    weight, scale = (
        numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in (("w", (4, 3)), ("s", 3))
    )
    given = model(*row, product, helper.make_node("Mul", ["p", "s"], ["y"]), tensors=(weight, scale))
    assert "Mul" not in [node.op_type for node in fold(onnx.ModelProto.FromString(given)).model.graph]


def test_a_long_row_of_norms_is_folded() -> None:
    parameters = tuple(numpy_helper.from_array(np.linspace(0.5, 1.5, 3).astype(np.float32), name) for name in "sbmv")
    names = ["p", *(f"d{k}" for k in range(300)), "y"]
    row = [helper.make_node("BatchNormalization", [a, *"sbmv"], [b]) for a, b in pairwise(names)]
    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    given = model(helper.make_node("MatMul", ["x", "w"], ["p"]), *row, tensors=(weight, *parameters))
    start = time.process_time()
    folded = fold(onnx.ModelProto.FromString(given))
    assert len(folded.model.graph) < 100
    assert time.process_time() - start < 15


@pytest.mark.parametrize("text", ["nested types", "nested graphs"])
def test_a_text_that_ends_its_parser_is_one_error(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = '<ir_version: 8, opset_import: ["" : 18]>\nag ('
    types = "optional(" * 200_000 + "float" + ")" * 200_000 + " x) => (float y) { y = Relu(x) }"
    body = "y = If (c) <then_branch = g () => (float y) { "
    graphs = "float x, bool c) => (float y) { " + body * 20_000 + "y = Identity(x)" + " }>" * 20_000 + " }"
    (tmp_path / "m.onnxtxt").write_text(head + (types if text == "nested types" else graphs))
    assert main(["fold", str(tmp_path / "m.onnxtxt"), "-o", str(tmp_path / "o.onnx")]) == 2
    assert "nested too deep" in capsys.readouterr().err


# -- checkpoints -----------------------------------------------------------------------------------


def archive(pickled: bytes, *, compress: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    """What torch.save writes, with another pickle and further records."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compress) as made:
        for name, data in {"data.pkl": pickled, "version": b"3\n", "byteorder": b"little", **more}.items():
            made.writestr(f"a/{name}", data)
    return file.getvalue()


def deep(start: bytes, step: bytes, count: int, end: bytes) -> bytes:
    return b"\x80\x02" + start + step * count + end


CHECKPOINTS: dict[str, Callable[[], bytes]] = {
    "a key of a million tuples": lambda: archive(deep(b"}", b"", 0, b")" + b"\x85" * 1_000_000 + b"K\x01s.")),
    "the same in the older stream": lambda: deep(b"}", b"", 0, b")" + b"\x85" * 1_000_000 + b"K\x01s."),
    "dictionaries in dictionaries": lambda: archive(deep(b"", b"}K\x01", 100_000, b"}" + b"s" * 100_000 + b".")),
    "lists in lists": lambda: archive(deep(b"", b"]", 100_000, b"a" * 99_999 + b".")),
    "two million empty lists": lambda: archive(deep(b"](", b"]", 2_000_000, b"e.")),
    "a record of zeros, compressed": lambda: archive(
        pickle.dumps({}), compress=zipfile.ZIP_DEFLATED, zeros=bytes(300 << 20)
    ),
    "a header of 20 MB": lambda: (20 << 20).to_bytes(8, "little") + b"{" + b" " * (20 << 20),
    "a header of lists in lists": lambda: (100_000).to_bytes(8, "little") + b'{"a":' + b"[" * 99_995,
    "an index of lists in lists": lambda: b'{"weight_map":' + b"[" * 1_000_000,
    "an index of 20 MB": lambda: b'{"weight_map":[' + b"[]," * (7 << 20),
    "half a million entries": lambda: b"PK\x03\x04" + b"PK\x01\x02" * 500_000,
}


_READER = """
import resource, sys, time, torch, pathlib
from normdeploy.checkpoint.files import read
from normdeploy.errors import InputError
for path in sys.argv[1:]:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        read(pathlib.Path(path))
    except InputError:
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(time.process_time() - start, grown << 10, flush=True)
    else:
        print("read", flush=True)
"""


def test_a_checkpoint_that_claims_too_much_is_one_error(tmp_path: Path) -> None:
    """In a process of their own: what they must not do is end it."""
    paths = [tmp_path / f"{index}.pt" for index in range(len(CHECKPOINTS))]
    for path, made in zip(paths, CHECKPOINTS.values(), strict=True):
        path.write_bytes(made())
    done = subprocess.run([sys.executable, "-c", _READER, *paths], capture_output=True, text=True, check=False)
    said = dict(zip(CHECKPOINTS, done.stdout.splitlines(), strict=False))
    for path, name in zip(paths, CHECKPOINTS, strict=True):
        seconds, grown = said.get(name, f"ended by {done.returncode}").split()
        assert float(seconds) < 2 * SECONDS, name
        assert int(grown) < MEMORY + 2 * path.stat().st_size, name


def test_what_torch_and_safetensors_write_is_no_attack(tmp_path: Path) -> None:
    state = {f"blocks.{k}.weight": torch.full((2,), float(k)) for k in range(2000)}
    torch.save(
        {"state_dict": state, "optimizer": {"state": {k: {"step": torch.tensor(1.0)} for k in range(2000)}}},
        tmp_path / "a.pt",
    )
    torch.save(state, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(state, tmp_path / "c.safetensors")
    assert len(read(tmp_path / "a.pt").data["state_dict"]) == len(read(tmp_path / "b.pt").data) == 2000
    assert read(tmp_path / "c.safetensors").data.keys() == state.keys()


# -- arrays ----------------------------------------------------------------------------------------


def npy(shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


ARRAYS = {
    "2^40 elements and none": {"x.npy": npy("(1099511627776,)")},
    "another one, of 1 GB": {"x.npy": npy("(1, 4)", bytes(16)), "y.npy": npy("(268435456,)", bytes(1 << 30))},
    "one of 1 GB": {"x.npy": npy("(1, 268435456)", bytes(1 << 30))},
    "negative sizes": {"x.npy": npy("(-1, -4)", bytes(16))},
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_claim_too_much_are_one_error(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as made:
        for entry, data in ARRAYS[name].items():
            made.writestr(entry, data)
    seconds, memory = limited(lambda: data_feed(parse(["x:1x4"]), tmp_path / "d.npz"))
    assert seconds < SECONDS
    assert memory < MEMORY // 4
