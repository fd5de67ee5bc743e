"""Code that lies in the folder a command is started in does not run: not in the command, not in its child processes."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import EAGER, ROOT, SPEC

from normdeploy import child, onnxfile
from normdeploy.runtime.placement import CPU

TRAPS = [
    "json", "numpy", "onnx", "onnx_ir", "torch", "typing", "__future__", "pathlib", "re", "signal", "subprocess",
    "tensorrt", "tensorrt_rtx", "ml_dtypes", "filelock", "pydantic", "tempfile", "dataclasses", "encodings",
    "cyclopts", "rich", "matplotlib", "jinja2", "safetensors", "onnxruntime", "onnxscript", "threadpoolctl",
    "sitecustomize", "usercustomize", "conftest", "normdeploy", "tomllib", "pickle", "zipfile", "evil",
]  # fmt: skip
SPRUNG = "a trap was sprung"


def set_traps(folder: Path) -> Path:
    """Files that note in ``folder`` that they were run; returns the note's path."""
    note = folder.parent / f"{folder.name}.sprung"
    code = f"open({str(note)!r}, 'a').write(__name__ + ' ')\nraise SystemExit({SPRUNG!r})\n"
    for name in TRAPS:
        (folder / f"{name}.py").write_text(code)
    (folder / "trap.pth").write_text(f"import os; open({str(note)!r}, 'a').write('pth ')\n")
    (folder / "pyvenv.cfg").write_text(f"home = {folder}\ninclude-system-site-packages = true\n")
    (folder / "startup.py").write_text(code)
    # LaTeX is a program, and its preamble one in it
    (folder / "matplotlibrc").write_text("text.usetex: True\nbackend: module://evil\nsvg.fonttype: path\n")
    for name in ("latex", "fc-list", "nvidia-smi", "python", "python3"):
        (folder / name).write_text(f"#!/bin/sh\necho {name} >> {note}\nexit 1\n")
        (folder / name).chmod(0o755)
    return note


@pytest.fixture
def traps(tmp_path: Path) -> Path:
    folder = tmp_path / "traps"
    folder.mkdir()
    return folder


def run(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment})


def test_no_command_runs_what_lies_where_it_is_started(traps: Path, tmp_path: Path) -> None:
    note = set_traps(traps)
    script = Path(sys.executable).with_name("normdeploy")
    command = [str(script)] if script.exists() else [sys.executable, "-P", "-m", "normdeploy"]
    options = ["--input", SPEC, "--out", str(tmp_path / "b"), "--no-bench"]
    done = run(*command, "export", *EAGER, *options, cwd=traps)
    assert not note.exists(), note.read_text()
    assert done.returncode == 0, done.stderr
    assert "<svg" in (tmp_path / "b" / "report.html").read_text()


def test_as_a_module_it_does_not_either(traps: Path, digits_bundle: Path) -> None:
    note = set_traps(traps)
    (traps / "normdeploy.py").unlink()  # Python itself looks for the package here, before any code of it runs
    done = run(sys.executable, "-m", "normdeploy", "explain", str(digits_bundle), cwd=traps)
    assert not note.exists(), note.read_text()
    assert done.returncode == 0, done.stderr


_ASKED = {"open": "no job", "threads": 1, "placement": CPU.as_json(), "options": {}, "where": "no job"}
MODULES = {
    "normdeploy": "",
    "normdeploy.engine.worker": "",
    "normdeploy.onnxtext": "",
    "normdeploy.pipeline.latency": "",
    "normdeploy.runtime.session_worker": json.dumps(_ASKED) + "\n",
    "normdeploy.serving.client": "",
}
"""Every module that is started as a child process, and what it is told on its standard input."""


def test_the_list_of_child_processes_is_whole() -> None:
    """``child.start`` is the way to start one, and each of its calls names one of the modules tested here."""
    started = set()
    for path in (ROOT / "normdeploy").rglob("*.py"):
        tree = ast.parse(path.read_text())
        imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {alias.name for node in imports for alias in node.names} | {getattr(n, "module", "") for n in imports}
        if names >= {"concurrent.futures", "ThreadPoolExecutor"}:
            names.remove("concurrent.futures")  # threads by name, and so no processes
        if path.name != "child.py":
            assert not names & {
                *("subprocess", "multiprocessing", "pty"),
                *("concurrent.futures", "ProcessPoolExecutor", "InterpreterPoolExecutor"),
            }, path
            calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
            started |= {ast.literal_eval(call.args[0]) for call in calls if ast.unparse(call.func) == "child.start"}
    assert started == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("path", ["traps", "nothing"])
def test_no_child_process_runs_what_lies_around_it(
    traps: Path, tmp_path: Path, module: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started among the traps, with every variable that steers a Python: it comes as far as its own code."""
    note = set_traps(traps)
    monkeypatch.chdir(traps)
    monkeypatch.setenv("PYTHONPATH", f"{traps}:::{tmp_path}" if path == "traps" else "")
    monkeypatch.setenv("PYTHONSTARTUP", str(traps / "startup.py"))
    monkeypatch.setenv("PYTHONHOME", str(traps))
    monkeypatch.setenv("PYTHONUSERBASE", str(traps))
    pipe = subprocess.PIPE
    with child.start(module, str(tmp_path / "no job"), folder=traps, stderr=pipe, stdin=pipe) as process:
        said = "".join(process.communicate(MODULES[module]))
    assert not note.exists(), note.read_text()
    assert "no job" in said
    assert SPRUNG not in said


def test_the_reader_of_text_formats_runs_nothing_around_it(traps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '<ir_version: 8, opset_import: ["": 18]> g (float[2] x) => (float[2] y) { y = Relu (x) }'
    (traps / "m.onnxtxt").write_text(text)
    note = set_traps(traps)
    monkeypatch.chdir(traps)
    monkeypatch.setenv("PYTHONPATH", str(traps))
    monkeypatch.setenv("PYTHONSTARTUP", str(traps / "startup.py"))
    assert [node.op_type for node in onnxfile.load(traps / "m.onnxtxt").graph] == ["Relu"]
    assert not note.exists(), note.read_text()


_PARENT = """
import os, subprocess, sys
from pathlib import Path
os.environ["PYTHONPATH"] += os.pathsep + sys.argv[1] + "::." + os.pathsep + os.getcwd()
from normdeploy import child
with child.start("normdeploy.told", "a b", folder=Path("/"), stderr=subprocess.STDOUT) as process:
    print(process.communicate()[0])
"""


def test_a_child_finds_the_package_where_its_parent_has_it(traps: Path, tmp_path: Path) -> None:
    """Not installed, only on PYTHONPATH, whose other folders come last: they shadow nothing, the current one is out."""
    note = set_traps(traps)
    package, other = tmp_path / "package", tmp_path / "other"
    shutil.copytree(ROOT / "normdeploy", package / "normdeploy", ignore=shutil.ignore_patterns("__pycache__"))
    other.mkdir()
    (other / "json.py").write_text((traps / "json.py").read_text())
    (other / "extra.py").write_text("")
    (package / "normdeploy" / "told.py").write_text(
        "import sys, json, extra, normdeploy\nprint(sys.path[-2:], sys.argv[1:])"
    )
    found = run(sys.executable, "-P", "-c", _PARENT, str(other), cwd=traps, PYTHONPATH=str(package))
    assert found.stdout.strip() == f"['{package}', '{other}'] ['a b']", found.stdout + found.stderr
    assert not note.exists()
