"""Runs the commands that an error's advice gives, as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def converted(fix: str, **environment: str) -> None:
    """Run every command of ``fix``, which are its indented lines; each must end with 0."""
    commands = [line.strip() for line in fix.splitlines() if line.startswith("  ")]
    assert commands
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in commands:
        done = subprocess.run(
            command, shell=True, env={**os.environ, "PATH": path, **environment}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
