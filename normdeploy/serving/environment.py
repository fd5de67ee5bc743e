"""The environment that Triton runs in: made once, pinned, apart from the one that normdeploy runs in.

Triton's Python backend wants NumPy 1 and its clients an older protobuf than ONNX takes, so neither can share an
environment with what makes bundles.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import sys
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import IO

from normdeploy import child
from normdeploy.disk import disk_errors, room
from normdeploy.errors import UnavailableError

REQUIREMENTS = "requirements.txt"
CACHE = "NORMDEPLOY_CACHE"
"""The variable that names the folder for the environment."""
_PYTHONS = ((3, 11), (3, 12))
"""NumPy 1.26 has wheels for these, and so has what normdeploy needs."""
_TAIL = 4


def environment() -> Path:
    """Return the folder of the environment, whether or not it is there."""
    pins = (files("normdeploy.serving") / "data" / REQUIREMENTS).read_bytes()
    digest = hashlib.sha256(pins + sys.version.encode() + sys.base_prefix.encode()).hexdigest()[:12]
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "normdeploy"
    return Path(os.environ.get(CACHE) or usual).absolute() / f"triton-{digest}"


def ready_environment() -> Path:
    """Return the folder of the environment; made, from the package index, where it is not there.

    Raises UnavailableError where this Python or system has no Triton, or it cannot be installed.
    """
    require_possible()
    target = environment()
    if not target.is_dir():
        logging.getLogger("normdeploy").info("installing Triton into %s, once", target)
        with disk_errors(target, "the environment of Triton"), room(target) as place:
            _make(place.new)
            with suppress(FileExistsError):  # another process was faster
                place.settle(target)
    return target


def require_possible() -> None:
    """Raise UnavailableError where there is no Triton for this Python or system."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or sys.version_info[:2] not in _PYTHONS:
        told = f"{sys.platform} {platform.machine()}, Python {platform.python_version()}"
        fix = "run normdeploy in Python 3.11 or 3.12 on Linux, x86_64; or serve the repository with Triton's image"
        raise UnavailableError("there is no Triton to install for this machine", where=told, fix=fix)


def site_packages(folder: Path) -> Path:
    """Return where the packages of the environment in ``folder`` lie."""
    return folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def _make(folder: Path) -> None:
    log = folder.with_name("pip.log")
    base = getattr(sys, "_base_executable", "") or sys.executable
    pins = str(files("normdeploy.serving") / "data" / REQUIREMENTS)
    with log.open("w") as output:
        steps = [
            [base, "-I", "-m", "venv", str(folder)],
            [str(folder / "bin" / "python"), "-I", "-m", "pip", "install", "--disable-pip-version-check", "--no-deps",
             "--no-compile", "--only-binary=:all:", "-q", "-r", pins],
        ]  # fmt: skip
        for step in steps:
            if _run(step, folder.parent, output) != 0:
                said = log.read_text(errors="replace").splitlines()[-_TAIL:]
                fix = "see that a package index can be reached, or serve the repository with Triton's image"
                raise UnavailableError("Triton cannot be installed", where=" | ".join(said), fix=fix)
    triton = site_packages(folder) / "pytriton" / "tritonserver"
    stubs = triton / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy2(stubs / "triton_python_backend_stub", triton / "backends" / "python")


def _run(command: list[str], folder: Path, output: IO[str]) -> int:
    """Return the exit code of ``command``, which does not outlive an interrupt."""
    with child.running(lambda: child.program(command, folder=folder, output=output)) as process:
        return process.wait()
