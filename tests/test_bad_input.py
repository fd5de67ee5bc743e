"""Whatever is wrong with what was given: one message that says what, where and how to fix it, the right exit code,
no traceback, and what was there before is as it was.
"""

from __future__ import annotations

import errno
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import RESNET, ROOT, SPEC, WEIGHTS, tree

from normdeploy.cli import main

FACTORIES = '''
import torch
from torch import nn


def raises():
    raise RuntimeError("no such width")


def none():
    return None


def decomposes():
    """An operator that ONNX has nothing for."""

    class Eigen(nn.Module):
        def forward(self, x):
            return torch.linalg.eigh(x @ x.mT)[0]

    return Eigen()


def branches():
    """Control flow that depends on values."""

    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    return Branch()


def half_trained():
    """A norm in training mode inside a module in eval mode."""
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
    module[1].train()
    return module


def exits():
    raise SystemExit(0)
'''


class Given(NamedTuple):
    """The arguments of ``export`` by name; a case changes some of them."""

    arguments: dict[str, str]
    folder: Path

    def with_(self, **changes: str) -> list[str]:
        """The command line; an empty value leaves an option out."""
        merged = {**self.arguments, **{name.replace("_", "-"): value for name, value in changes.items()}}
        return ["export", *(part for name, value in merged.items() if value for part in (f"--{name}", value))]


@pytest.fixture
def given(tmp_path: Path) -> Given:
    """A good command line, and beside it a bundle that somebody has made before."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "factories.py").write_text(FACTORIES)
    (tmp_path / "app" / "models").symlink_to(ROOT / "models")
    arguments = {"app-dir": str(ROOT), "model": RESNET, "weights": str(WEIGHTS), "input": SPEC}
    return Given({**arguments, "out": str(tmp_path / "out")}, tmp_path)


class Evil:
    """Unpickling it runs a command."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pwned",)


def missing_file(given: Given) -> list[str]:
    return given.with_(weights=str(given.folder / "nowhere.safetensors"))


def truncated_safetensors(given: Given) -> list[str]:
    path = given.folder / "cut.safetensors"
    path.write_bytes(WEIGHTS.read_bytes()[:5000])
    return given.with_(weights=str(path))


def truncated_state_dict(given: Given) -> list[str]:
    path = given.folder / "cut.pt"
    torch.save(load_file(WEIGHTS), path)
    path.write_bytes(path.read_bytes()[:5000])
    return given.with_(weights=str(path))


def empty_file(given: Given) -> list[str]:
    path = given.folder / "empty.pt"
    path.touch()
    return given.with_(weights=str(path))


def a_folder_for_weights(given: Given) -> list[str]:
    return given.with_(weights=str(given.folder))


def code_in_a_pickle(given: Given) -> list[str]:
    path = given.folder / "evil.pt"
    torch.save({"weight": Evil()}, path)
    return given.with_(weights=str(path))


def code_in_a_bare_pickle(given: Given) -> list[str]:
    path = given.folder / "evil.pkl"
    path.write_bytes(pickle.dumps(Evil()))
    return given.with_(weights=str(path))


def wrong_keys(given: Given) -> list[str]:
    weights = load_file(WEIGHTS)
    weights["extra.weight"] = weights.pop("head.weight")
    weights["norm.bias"] = torch.zeros(7)
    save_file(weights, given.folder / "other.safetensors")
    return given.with_(weights=str(given.folder / "other.safetensors"))


def own(given: Given, factory: str, spec: str = "x:N=1..2..4x1x8x8@f32") -> list[str]:
    return given.with_(app_dir=str(given.folder / "app"), model=f"factories:{factory}", weights="", input=spec)


def data(given: Given, **arrays: Any) -> list[str]:
    np.savez(given.folder / "data.npz", **arrays)
    return given.with_(data=str(given.folder / "data.npz"))


CASES: dict[str, tuple[Callable[[Given], list[str]], list[str]]] = {
    "a missing file": (missing_file, ["nowhere.safetensors"]),
    "a truncated safetensors file": (truncated_safetensors, ["cut.safetensors"]),
    "a truncated state dict": (truncated_state_dict, ["cut.pt"]),
    "an empty file": (empty_file, ["empty.pt"]),
    "a folder where a file should be": (a_folder_for_weights, []),
    "a pickle with code in it": (code_in_a_pickle, ["evil.pt", "system"]),
    "a bare pickle with code in it": (code_in_a_bare_pickle, ["evil.pkl"]),
    "wrong keys": (wrong_keys, ["head.weight", "extra.weight", "norm.bias", "other.safetensors"]),
    "an entry that the file has not": (lambda g: g.with_(weights_key="ema"), ["ema"]),
    "no such folder": (lambda g: g.with_(app_dir=str(g.folder / "nowhere")), ["nowhere"]),
    "no such module": (lambda g: g.with_(model="nowhere:resnet"), ["nowhere"]),
    "no such factory": (lambda g: g.with_(model="models.digits:resnett"), ["resnett", "resnet"]),
    "no factory at all": (lambda g: g.with_(model="models.digits"), ["models.digits"]),
    "a factory that raises": (lambda g: own(g, "raises"), ["no such width", "factories.py"]),
    "a factory that exits": (lambda g: own(g, "exits"), ["SystemExit"]),
    "a factory that returns nothing": (lambda g: own(g, "none"), ["None"]),
    "an argument without a value": (lambda g: g.with_(model_arg="width"), ["--model-arg width"]),
    "an argument that the factory has not": (lambda g: g.with_(model_arg="width=3"), ["width"]),
    "an input spec that cannot be read": (lambda g: g.with_(input="x"), ["--input x"]),
    "an input that forward has not": (lambda g: g.with_(input="image:N=1..1..4x1x8x8"), ["image"]),
    "a shape that forward refuses": (lambda g: g.with_(input="x:N=1..1..4x3x8x8"), ["3"]),
    "no input": (lambda g: g.with_(input=""), ["--input"]),
    "integers without a range": (lambda g: g.with_(input="x:N=1..1..4x1x8x8@i64"), ["range"]),
    "an operator that cannot be exported": (lambda g: own(g, "decomposes"), ["eigh"]),
    "control flow that depends on values": (lambda g: own(g, "branches"), []),
    "a norm in training mode": (lambda g: own(g, "half_trained"), ["1", "--force-eval"]),
    "an opset that is too old": (lambda g: g.with_(opset="7"), ["7"]),
    "data that is missing": (lambda g: g.with_(data=str(g.folder / "nowhere.npz")), ["nowhere.npz"]),
    "data of another shape": (lambda g: data(g, x=np.zeros((2, 1, 8, 9), np.float32)), ["data.npz", "9"]),
    "data of another name": (lambda g: data(g, image=np.zeros((2, 1, 8, 8), np.float32)), ["image"]),
    "a negative seed": (lambda g: g.with_(seed="-1"), ["--seed -1"]),
    "a negative tolerance": (lambda g: g.with_(k="-1"), ["-1"]),
    "a file in the way of the output": (lambda g: g.with_(out=str(WEIGHTS / "out")), ["digits_resnet.safetensors"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(case: str, given: Given, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    build, words = CASES[case]
    command = build(given)
    monkeypatch.chdir(given.folder)
    before = tree(given.folder)
    code = main(command)
    told = one_message(capfd)
    assert code == 2
    for word in words:
        assert word in told
    assert tree(given.folder) == before


def one_message(capfd: pytest.CaptureFixture[str]) -> str:
    """The message on stderr, behind the stages; nothing on stdout, no traceback, and no bug."""
    out, err = capfd.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert "bug in normdeploy" not in err
    assert err.count("error: ") == 1, err
    message = err[err.index("error: ") :]
    assert "\n  fix: " in message, message
    assert "Warning" not in err
    return message


# -- the output --------------------------------------------------------------------------------


def test_an_existing_output_stays(given: Given, digits_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = given.folder / "out"
    shutil.copytree(digits_bundle, out)
    assert main(given.with_()) == 2
    assert "--force" in one_message(capfd)
    assert tree(out) == tree(digits_bundle)


def test_a_folder_that_is_no_bundle_stays_even_with_force(given: Given, capfd: pytest.CaptureFixture[str]) -> None:
    out = given.folder / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    assert main([*given.with_(), "--force"]) == 2
    one_message(capfd)
    assert tree(out) == {"thesis.txt": b"years of work"}


def test_a_bad_input_leaves_the_old_bundle(given: Given, digits_bundle: Path) -> None:
    out = given.folder / "out"
    shutil.copytree(digits_bundle, out)
    assert main([*truncated_safetensors(given), "--force"]) == 2
    assert tree(out) == tree(digits_bundle)


def test_a_full_disk_leaves_the_old_bundle(
    given: Given, digits_bundle: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(digits_bundle, given.folder / "out")
    before = tree(given.folder)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert main([*given.with_(), "--force", "--no-bench"]) == 2
    assert "disk is full" in one_message(capfd)
    assert tree(given.folder) == before


def test_a_disk_that_takes_no_more_bytes(given: Given, digits_bundle: Path) -> None:
    """A real write fails in its middle: no file may become larger than 100 kB, the model is three times that."""
    shutil.copytree(digits_bundle, given.folder / "out")
    before = tree(given.folder)
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
    program = f"{limited} from normdeploy.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, *given.with_(), "--force", "--no-bench"]
    environment = {**os.environ, "TMPDIR": str(given.folder)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2, done.stderr
    assert "error: " in done.stderr
    assert f"  where: {given.folder}" in done.stderr
    assert "  fix: " in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert tree(given.folder) == before


def test_without_onnxruntime_this_machine_cannot(
    given: Given, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(given.with_()) == 3
    assert "normdeploy[cpu]" in one_message(capfd)
    assert not (given.folder / "out").exists()


# -- the other commands ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["fold", "nowhere.onnx", "-o", "out.onnx"], "nowhere.onnx"),
        (["fold", "garbage.onnx", "-o", "out.onnx"], "garbage.onnx"),
        (["fold", "garbage.onnx", "-o", "garbage.onnx", "--force"], "is the input"),
        (["verify", "nowhere", "--model", RESNET, "--input", SPEC], "nowhere"),
        (["verify", "garbage.onnx", "--model", RESNET, "--input", SPEC], "garbage.onnx"),
        (["verify", "folder", "--model", RESNET], "manifest.json"),
        (["bench", "nowhere"], "nowhere"),
        (["bench", "garbage.onnx"], "garbage.onnx"),
        (["bench", "folder", "--threads", "0"], "--threads 0"),
        (["bench", "folder", "--threads", "100000"], "--threads 100000"),
        (["bench", "folder", "--seconds", "-1"], "--seconds -1"),
        (["bisect", "nowhere", "--model", RESNET], "nowhere"),
        (["build", "nowhere", "-o", "plan"], "nowhere"),
        (["fold", "garbage.onnx", "-o", "/proc/out.onnx"], "the output cannot be written here"),
        (["verify", "folder"], "--model is missing"),
        (["explain", "nowhere.onnx"], "nowhere.onnx"),
        (["explain", "bogus"], "neither a bundle or a file that is there, nor a code"),
        (["explain", "garbage.onnx"], "garbage.onnx"),
        (["report", "folder"], "report.json"),
        (["report", "garbage.onnx"], "garbage.onnx"),
        (["report"], "no bundle"),
    ],
    ids=" ".join,
)
def test_bad_files(
    arguments: list[str], word: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "garbage.onnx").write_bytes(b"\x93NUMPY\x01\x00 not a model")
    (tmp_path / "folder").mkdir()
    before = tree(tmp_path)
    assert main(arguments) == 2
    assert word in one_message(capfd)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["exprt"],
        ["export"],
        ["export", "--mdel", "x"],
        ["fold", __file__],
        ["verify", __file__],
        ["explain"],
        ["bench", __file__, "--seconds", "soon"],
    ],
    ids=" ".join,
)
def test_usage(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n  fix: see normdeploy ") == 1
    assert "Traceback" not in err
