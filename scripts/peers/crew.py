"""Folders at work in processes of their own: what crashes or hangs takes nothing else with it."""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
from pathlib import Path
from typing import Any

from peers.worker import CENTRE, NOTHING

ROOT = Path(__file__).parent.parent.parent
WORKER = Path(__file__).with_name("worker.py")
OURS = ("normdeploy", "normdeploy, unvalidated", CENTRE, NOTHING)


WITH_TORCH = ("onnxruntime transformers",)
"""Peers that need PyTorch and are in the environment of this repository as well."""


def interpreter(name: str) -> Path:
    """The Python that has the folder ``name``."""
    if name in (*OURS, *WITH_TORCH):
        return Path(sys.executable)
    return environment(name) / "bin" / "python"


def environment(name: str) -> Path:
    """The virtual environment of a peer."""
    return ROOT / (".venv-aimet" if name == "aimet" else ".venv-peers")


def install(name: str) -> None:
    """Make the peer's virtual environment, where it is missing or its requirements are newer."""
    if name in (*OURS, *WITH_TORCH):
        return
    folder, wanted = environment(name), "requirements-aimet.txt" if name == "aimet" else "requirements.txt"
    requirements, done = Path(__file__).with_name(wanted), folder / ".installed"
    if done.exists() and done.stat().st_mtime >= requirements.stat().st_mtime:
        return
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(requirements)], check=True)
    done.touch()


class Worker:
    """One folder in a process, which is started anew after it died or was stopped."""

    def __init__(self, name: str, log: Path) -> None:
        self.name, self.log = name, log
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, job: dict[str, Any], limit: float) -> dict[str, Any]:
        """The answer to ``job``; ``error`` says what went wrong, within ``limit`` seconds."""
        process = self._running()
        assert process.stdin is not None
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        return self._answer(process, limit)

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            command = [str(interpreter(self.name)), str(WORKER), self.name]
            with self.log.open("a") as log:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                )  # fmt: skip
            ready = self._answer(self._process, 300)
            if "error" in ready:
                raise RuntimeError(f"{self.name} does not start ({ready['error']}): see {self.log}")
            assert self._process is not None
        return self._process

    def _answer(self, process: subprocess.Popen[str], limit: float) -> dict[str, Any]:
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            line = process.stdout.readline() if selector.select(limit) else None
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        self.stop()
        how = f"no answer in {limit:.0f} s" if line is None else f"it died with {process.returncode}"
        return {"error": how}
