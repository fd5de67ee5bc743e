"""Ctrl-C at any moment: exit code 130, one message, and nothing half-written or left behind."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import sys
import tempfile
import time
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from normdeploy.__main__ import main as process
from normdeploy.bundle import load_bundle
from normdeploy.cli import main
from normdeploy.cli.guard import Guard
from normdeploy.disk import WRITTEN

MOMENTS = 40


def conv_bn(path: Path) -> Path:
    draw = np.random.default_rng(0)
    weights = [numpy_helper.from_array(draw.standard_normal((64, 64, 3, 3)).astype(np.float32), "w")]
    weights += [numpy_helper.from_array(draw.uniform(0.5, 1.5, 64).astype(np.float32), name) for name in "sbmv"]
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("BatchNormalization", ["c", *"sbmv"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64, 8 - 2 * i, 8 - 2 * i])
              for i, name in enumerate("xy")]  # fmt: skip
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def interrupted(seconds: float, *arguments: str) -> tuple[int, str]:
    """Exit code and what was said of a command in a process of its own, which gets SIGINT after ``seconds``."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            code = 99
            inherited = set(weakref.finalize._registry)  # type: ignore[attr-defined]  # those of the tests' own process
            WRITTEN.clear()  # a process of its own has written nothing yet
            try:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                sys.stdout, sys.stderr = (os.fdopen(number, "w") for number in (1, 2))
                signal.signal(signal.SIGINT, signal.default_int_handler)
                signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
                signal.setitimer(signal.ITIMER_REAL, seconds)
                sys.argv[1:] = arguments
                code = process()
                sys.stderr.flush()
            finally:
                for end in [each for each in weakref.finalize._registry if each not in inherited]:  # type: ignore[attr-defined]
                    end()  # as the interpreter does when it ends
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return code, said.read().decode()


def test_an_interrupt_is_told_as_one_at_every_moment(tmp_path: Path) -> None:
    model, out = conv_bn(tmp_path / "m.onnx"), tmp_path / "out.onnx"
    main(["fold", str(model), "-o", str(tmp_path / "whole.onnx")])  # everything is imported before the forks
    whole = onnx.load(tmp_path / "whole.onnx")
    (tmp_path / "whole.onnx").unlink()
    codes = []
    for moment in range(1, MOMENTS + 1):
        code, said = interrupted(moment * 0.004, "fold", str(model), "-o", str(out))
        codes.append(code)
        if code == 130:
            (line,) = [line for line in said.splitlines() if "interrupted" in line]
            assert ("nothing was written" in line) != out.exists(), said
            assert "Traceback" not in said
            assert "error" not in said
        else:
            assert code == 0, said
            assert out.exists()
        if out.exists():
            assert [node.op_type for node in onnx.load(out).graph.node] == [node.op_type for node in whole.graph.node]
            out.unlink()
        assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]
    assert 130 in codes


@pytest.mark.parametrize("becomes", [RuntimeError("pybind"), ImportError("torch"), SystemError("NULL"), None])
def test_an_interrupt_that_a_library_turns_into_something_else_is_still_one(
    becomes: Exception | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with Guard(debug=False) as guard:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if becomes is not None:
                raise becomes from None
    assert guard.code == 130
    assert capsys.readouterr().err == "interrupted; nothing was written\n"


def test_an_interrupt_after_the_last_rename_says_what_was_written(capsys: pytest.CaptureFixture[str]) -> None:
    with Guard(debug=False) as guard:
        WRITTEN.append(Path("out/model.plan"))
        signal.raise_signal(signal.SIGINT)
    assert guard.code == 130
    assert capsys.readouterr().err == "interrupted; before that out/model.plan was written, whole\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


SOURCE = ["--app-dir", ".", "--model", "interrupted_nets:net"]
INPUT = ["--input", "input:N=1..2..4x4"]
EXPORT = ["export", *SOURCE, *INPUT, "--no-bench", "--out"]
COMMANDS = {
    "export": [*EXPORT, "made"],
    "verify": ["verify", "bundle", *SOURCE],
    "bench": ["bench", "bundle", "--seconds", "0.5"],
    "bench of a file": ["bench", "bundle/model.onnx", "--seconds", "0.5", *INPUT],
    "judge": ["judge", "bundle", "--k", "3"],
    "export with latency": [*EXPORT[:-2], "--seconds", "0.4", "--processes", "2", "--out", "made"],
    "build": ["build", "bundle", "-o", "made", "--sm", "86"],
}
FEW = int(os.environ.get("MOMENTS", "3"))
"""Moments of each command; MOMENTS=40 looks closer."""


def moments(whole: float) -> list[float]:
    """Seconds spread over what took ``whole``; and earlier ones, for where the next run is over before them."""
    spread = [whole * moment / (FEW + 1) for moment in range(1, FEW + 1)]
    return spread + [spread[0] / 2**halves for halves in range(1, 6)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network and its bundle, and everything imported that the commands need."""
    folder = tmp_path_factory.mktemp("interrupts")
    (folder / "temporary").mkdir()
    (folder / "interrupted_nets.py").write_text(
        "import torch\ndef net():\n    torch.manual_seed(0)\n    return torch.nn.Linear(4, 4)\n"
    )
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main([*EXPORT, "bundle"]) == 0
        assert main(COMMANDS["verify"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupt_leaves_nothing_of_any_command(name: str, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "export with latency" and "MOMENTS" not in os.environ:
        pytest.skip("takes a minute: make test-interrupts")
    if name == "build":
        pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    monkeypatch.chdir(exported)
    monkeypatch.setattr(tempfile, "tempdir", str(exported / "temporary"))
    there = {"interrupted_nets.py", "bundle", "temporary", "__pycache__"}
    begin = time.monotonic()
    code, said = interrupted(60, *COMMANDS[name])
    whole = time.monotonic() - begin
    assert code == 0, said
    writes = _remove(exported)
    codes: list[int] = []
    for moment in moments(whole):
        if len(codes) >= FEW and 130 in codes:
            break
        code, said = interrupted(moment, *COMMANDS[name])
        codes.append(code)
        assert code in (0, 130), said
        assert said.count("interrupted; ") == (code == 130), said
        assert "Traceback" not in said
        assert "error: " not in said
        made = writes if code == 0 or "was written, whole" in said else set()
        assert {path.name for path in exported.iterdir()} | {"__pycache__"} == there | made
        _remove(exported)
        assert [*(exported / "temporary").iterdir()] == []
        assert _left_running(exported) == []
    assert 130 in codes


def _remove(folder: Path) -> set[str]:
    """Remove what a command made in ``folder``, and return the names."""
    made = [path for path in folder.iterdir() if path.name.startswith("made")]
    for path in made:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return {path.name for path in made}


def _left_running(folder: Path) -> list[str]:
    """Return the command lines of processes that run in ``folder``, this one's aside."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(each.name) != os.getpid() and os.readlink(each / "cwd").startswith(str(folder)):
                found.append((each / "cmdline").read_text())
    return found


def test_an_interrupt_of_loading_a_bundle_is_one_and_leaves_nothing(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(exported / "temporary"))
    begin = time.monotonic()
    load_bundle(exported / "bundle")
    whole = time.monotonic() - begin
    caught = 0
    monkeypatch.setattr("sys.unraisablehook", lambda _: None)
    for tried, moment in enumerate(moments(whole)):
        if tried >= FEW and caught:
            break
        before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, moment)
        try:
            load_bundle(exported / "bundle")
        except KeyboardInterrupt:
            caught += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        gc.collect()
        assert [*(exported / "temporary").iterdir()] == []
    assert caught
