"""The README's three commands serve a bundle, and a fourth measures it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

from normdeploy.serving.server import ports

pytestmark = pytest.mark.xdist_group("triton")

NORMDEPLOY = [sys.executable, "-c", "import sys; from normdeploy.cli import main; sys.exit(main())"]
SECTION = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Serving\n")[2].partition("\n## ")[0]


def words(line: str, at: dict[str, str]) -> list[str]:
    """The arguments of one of its lines, with ports that are free here."""
    for port, free in at.items():
        line = line.replace(port, free)
    return [*NORMDEPLOY, *shlex.split(line)[1:]]


def test_three_commands_serve_it(triton: Path, digits_bundle: Path, tmp_path: Path) -> None:
    free = ports()
    at = {"8000": str(free.http), "8001": str(free.grpc)}
    (block,) = re.findall(r"^```sh\n(.*?)^```$", SECTION, re.DOTALL | re.MULTILINE)
    add, serve, check = (words(line, at) for line in block.splitlines())
    (measured,) = re.findall(r"`(normdeploy bench http[^`]*)`", SECTION)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "digits_resnet").symlink_to(digits_bundle)
    environment = {**os.environ, "COLUMNS": "150"}

    def run(command: list[str]) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    run([*add, "--name", "digits_resnet"])  # the link's target has another name
    with subprocess.Popen(serve, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            told = [process.stdout.readline() for _ in range(5)]
            assert told[-1] == "ready; Ctrl-C ends it\n"
            assert run([*check, "--model", "digits_resnet"]).count("gives the golden outputs") == 2
            table = run([*words(measured, at), "--model", "digits_resnet", "--seconds", "0.3"])
            shown = next(block for block in SECTION.split("```text\n") if block.startswith("where"))
            head = table.splitlines()[0].split()
            assert head == shown.splitlines()[0].split()
            assert len(table.splitlines()) == 7
        finally:
            process.terminate()
    assert process.returncode == 0


def test_the_repositorys_readme_names_lines_that_run(digits_bundle: Path, tmp_path: Path) -> None:
    """Those without docker: the others need an image, which no test has."""
    run = [*NORMDEPLOY, "package", str(digits_bundle), "-o", str(tmp_path / "repo"), "--name", "net", "--json"]
    assert json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stdout)[0]["name"] == "net"
    text = (tmp_path / "repo" / "README.md").read_text()
    assert "normdeploy serve repo --http-port 8000" in text
    line = next(line for line in text.splitlines() if line.startswith("normdeploy serve"))
    done = subprocess.run([*words(line, {}), "--dry-run"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 2), done.stderr
    assert "tritonserver" in done.stdout or "the port cannot be had" in done.stderr
