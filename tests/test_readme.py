"""The README is true: its commands run, its Python runs, and the output it shows is what comes out today."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import ROOT
from torch import Tensor, nn

import models.digits

pytestmark = pytest.mark.xdist_group("readme")  # the sandbox takes half a minute: one process makes it

STAGES = ("load", "export", "fold", "parity", "engine", "latency", "bundle")
RTX = importlib.util.find_spec("tensorrt_rtx") is not None
README = (ROOT / "README.md").read_text(encoding="utf-8")
_HEADING = "## From your checkpoint\n"
CHECKPOINTS = _HEADING + README.partition(_HEADING)[2].partition("\n## ")[0]
"""Its commands need files of their own."""
SERVING = README.partition("## Serving\n")[2].partition("\n## ")[0]
"""Its commands need a server: tests/serving/test_readme_serving.py runs them."""

EACH = """
import os, shlex, sys
from normdeploy import pipeline
from normdeploy.__main__ import main
for verb in pipeline.__all__:
    getattr(pipeline, verb)
for command in sys.argv[1:]:
    process = os.fork()
    if not process:
        sys.argv = shlex.split(command)
        os.dup2(os.open(f"told/{sys.argv[1]}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), 1)
        sys.exit(main())
    if os.waitpid(process, 0)[1]:
        sys.exit(command)
"""
"""Runs each command in a process of its own, which finds imported what it needs: most of a short one is its imports."""


def blocks(language: str, text: str = README.replace(CHECKPOINTS, "").replace(SERVING, "")) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(program: str, *text: str) -> list[str]:
    """The README's shell lines that start with ``program``, each with its continuation lines."""
    lines = "".join(blocks("sh", *text)).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.split()[0] == program]


def run(*command: str, folder: Path) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the models in it, where every normdeploy command of the README has run in turn."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "models").symlink_to(ROOT / "models")
    (folder / "told").mkdir()
    lines = [line for line in commands("normdeploy") if RTX or line.split()[1] != "build"]
    run(sys.executable, "-P", "-c", EACH, *lines, folder=folder)
    return folder


def masked(text: str) -> str:
    """``text`` without its numbers, its line breaks, and what a noisy machine makes of latencies."""
    joined = " ".join(re.sub(r"\d[\d.,]*(e[+-]?\d+)?", "#", text).replace("threads", "thread").split())
    joined = re.sub(r"warning: .*?(?=engine tensorrt|note: )|no difference is shown: ", "", joined)
    # which feed is the worst by a hair is the processor's affair
    return re.sub(r"(?<=output ).*?(?= RMS| max)|(?<= on ')[^']*(?=')", "feed", joined)


def test_every_command_has_run(sandbox: Path) -> None:
    told = {path.name for path in (sandbox / "told").iterdir()}
    assert told == {
        "export",
        "verify",
        "bisect",
        "judge",
        "bench",
        "report",
        "inspect",
        "explain",
        "doctor",
        "calibrate",
        "fold",
    } | ({"build"} if RTX else set())
    assert "parity passed" in (sandbox / "told" / "verify").read_text(encoding="utf-8")


@pytest.mark.skipif(not RTX, reason="the README shows the demo where TensorRT-RTX is installed")
def test_the_demo_prints_what_is_shown(sandbox: Path) -> None:
    shown = next(block for block in blocks("text") if "parity passed" in block)
    stages, _, result = shown.partition("models.digits:resnet")
    assert [line.split()[0] for line in stages.splitlines()] == [*STAGES]
    told = run("normdeploy", *_demo(), "--engine", folder=sandbox)
    last = "The report: out/digits_resnet/report.html"
    assert masked(f"models.digits:resnet{result}") == masked(f"{told}{last}")


def test_the_demo_is_the_export_that_is_shown() -> None:
    assert [*shlex.split(commands("normdeploy")[0])[1:-1], "out/digits_resnet", "--force"] == _demo()


def _demo() -> list[str]:
    """The arguments of the demo's export, without ``--engine``, which is there where an engine can be built."""
    demo = run("make", "-n", "demo", folder=ROOT).replace("\\\n", " ")
    line = next(line for line in demo.splitlines() if "normdeploy export" in line)
    return [argument for argument in shlex.split(line)[1:] if argument != "--engine"]


@pytest.mark.parametrize("target", ["demo", "test", "soak", "lint", "test-real", "test-report", "test-gpu", "clean"])
def test_make_knows_its_targets(target: str) -> None:
    assert run("make", "-n", target, folder=ROOT)
    assert f"make {target}" in README or target == "clean"


def test_the_python_runs(sandbox: Path) -> None:
    (block,) = blocks("python")
    assert len(block.splitlines()) <= 11
    told = run(sys.executable, "-c", block, folder=sandbox)
    assert "{'BatchNormalization': 9} → {} True" in told
    assert "(3, 10) True" in told


def test_a_bundle_is_a_suite_of_tests(sandbox: Path) -> None:
    (command,) = commands("pytest")
    plugin = ("-p", "normdeploy.pytest_plugin")  # found by itself where this version is installed
    assert " passed" in run(sys.executable, "-m", "pytest", *plugin, *shlex.split(command)[1:], folder=sandbox)


def test_the_bundle_holds_what_is_listed(sandbox: Path) -> None:
    listed = next(block for block in blocks("text") if "golden/" in block)
    names = {line.split()[0].rstrip("/") for line in listed.splitlines()}
    assert names == {path.name for path in (sandbox / "out" / "digits").iterdir()}


def test_every_layout_of_a_checkpoint_is_one_command(tmp_path: Path) -> None:
    expected = models.digits.conv1d()
    expected.load_state_dict(load_file(ROOT / "models" / "digits_conv1d.safetensors"))
    write_checkpoints(tmp_path / "runs", expected)
    (toml,) = blocks("toml", CHECKPOINTS)
    (tmp_path / "normdeploy.toml").write_text(toml)
    (tmp_path / "models").symlink_to(ROOT / "models")
    lines = [command.partition(" ")[2] for command in commands("normdeploy", CHECKPOINTS)]
    assert len(lines) == 7
    # one process for all: most of a short command is its imports
    code = (
        "import shlex, sys; from normdeploy.cli import main; sys.exit(max(main(shlex.split(x)) for x in sys.argv[1:]))"
    )
    run(sys.executable, "-c", code, *lines, folder=tmp_path)
    for line in lines:
        golden = [np.load(tmp_path / line.split()[-1] / "golden" / f"{name}.npz") for name in ("inputs", "outputs")]
        with torch.no_grad():
            logits = expected.eval()(torch.from_numpy(golden[0]["x"]))
        np.testing.assert_allclose(golden[1]["output"], logits.numpy(), rtol=1e-4, atol=1e-5)
    manifest = json.loads((tmp_path / "out" / "whole" / "manifest.json").read_text())
    assert manifest["trusted"] == {
        "whole.pt": hashlib.sha256((tmp_path / "runs" / "whole.pt").read_bytes()).hexdigest()
    }


def write_checkpoints(folder: Path, module: nn.Module) -> None:
    """The files that the README tells of, with the weights of ``module``, beside others where there are two sets."""
    state = module.state_dict()
    other = {name: value + 1 for name, value in state.items()}
    optimizer = torch.optim.AdamW(module.parameters()).state_dict()

    def named(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        return {prefix + name: value for name, value in weights.items()}

    files = {
        "lightning.ckpt": {
            "state_dict": {**named("model.", state), "criterion.weight": torch.ones(10)},
            "optimizer_states": [optimizer],
        },
        "ddp.pt": {"model": named("module._orig_mod.", state), "optimizer": optimizer, "epoch": 3},
        "ema.pt": {"model": other, "ema": {"module": state, "updates": 7}},
        "distilled.pth": {**named("teacher.", state), **named("student.", other)},
        "renamed.pt": {**{n.replace("conv1.", "stem."): v for n, v in state.items()}, "aux.weight": torch.ones(3)},
        "whole.pt": module,
    }
    (folder / "sharded").mkdir(parents=True)
    for name, contents in files.items():
        torch.save(contents, folder / name)
    shards = {"model-00001-of-00002.safetensors": list(state)[:9], "model-00002-of-00002.safetensors": list(state)[9:]}
    for name, held in shards.items():
        save_file({each: state[each] for each in held}, folder / "sharded" / name)
    places = {each: name for name, held in shards.items() for each in held}
    (folder / "sharded" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def test_what_messages_say_to_install_is_told_where_installing_is() -> None:
    files = (ROOT / "normdeploy").rglob("*.py")
    advised = {name for file in files for name in re.findall(r"normdeploy\[(\w+)\]", file.read_text(encoding="utf-8"))}
    assert {"cpu", "gpu", "rtx", "export", "kernels"} <= advised
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    install = README.partition("## Install\n")[2].partition("\n## ")[0]
    assert advised <= extras.keys()
    assert {name for name in advised if f"`{name}`" not in install} == set()
    assert "pip install -c constraints.txt '.[gpu]'" in install


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
