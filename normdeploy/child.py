"""Child processes: this package's own code in a Python that runs nobody else's. No other file starts a process.

A child inherits the folder that its parent was started in, which can be someone else's: ``python -m`` would import a
``json.py`` that lies there. So it starts isolated (``-I``: no current folder, no ``PYTHON*`` variable), in a folder of
its own. It takes the package from where its parent has it, and looks for others in the user's own folders of packages
(``PYTHONPATH``, the user's site-packages) too, but behind its own path and never before it.
"""

from __future__ import annotations

import os
import site
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from normdeploy.disk import uninterrupted

_START = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
from os.path import join
package, elsewhere, module = sys.argv[1:4]
del sys.argv[:3]
sys.path += [entry for entry in elsewhere.splitlines() if entry not in sys.path]
spec = spec_from_file_location("normdeploy", join(package, "__init__.py"), submodule_search_locations=[package])
sys.modules["normdeploy"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["normdeploy"])
from runpy import run_module
run_module(module, run_name="__main__", alter_sys=True)
"""

_TIED = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""
"""Becomes another program, which is asked to end when its parent dies (1 is PR_SET_PDEATHSIG of prctl(2)); nothing runs
where the parent has died before that was said."""

Process = subprocess.Popen[str]
PIPE = subprocess.PIPE
TimeoutExpired = subprocess.TimeoutExpired


def start(
    module: str,
    *arguments: str,
    folder: Path,
    stderr: IO[str] | int,
    stdin: int = subprocess.DEVNULL,
    python: Path | None = None,
) -> Process:
    """Start ``module`` of this package with ``sys.argv[1:]`` as given, in ``folder``, which is nobody else's.

    Its standard output is a pipe of text, its standard input is empty unless ``stdin`` is a pipe, and it is in a
    session of its own: a signal of the terminal does not reach it. A grandchild that is not isolated finds no
    ``PYTHON*`` variable either. ``python`` is that of another environment, whose packages it sees and no others.
    """
    package = str(Path(__file__).parent.resolve())
    elsewhere = _elsewhere() if python is None else []
    command = [str(python or sys.executable), "-I", "-c", _START, package, "\n".join(elsewhere), module, *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=_environment(), stdin=stdin, stdout=subprocess.PIPE, stderr=stderr,
        text=True, start_new_session=True,
    )  # fmt: skip


def program(
    command: Sequence[str], *, folder: Path, output: IO[str], environment: Mapping[str, str] | None = None
) -> Process:
    """Start another program in ``folder``, as :func:`start` does; what it prints goes to the file ``output``.

    ``environment`` are variables that it gets beside this process's own. On Linux it gets SIGTERM where the thread that
    starts it has ended, however that came.
    """
    tied = [sys.executable, "-I", "-c", _TIED, str(os.getpid()), *command]
    return subprocess.Popen(
        tied, cwd=folder, env={**_environment(), **(environment or {})}, stdin=subprocess.DEVNULL,
        stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


@contextmanager
def running(begin: Callable[[], Process]) -> Iterator[Process]:
    """Begin a process, and wait for its end behind the block; where the block raises, it is ended.

    Popen itself waits a quarter of a second for a process after a Ctrl-C, and then leaves it alone: one that is being
    killed would still be there, in a folder that is not.
    """
    process = None
    try:
        with uninterrupted():  # until it is known what has to be ended
            process = begin()
        yield process
        process.wait()
    finally:
        if process is not None:
            end(process)


def end(process: Process) -> None:
    """Kill ``process`` if it still runs, wait until it is gone, and close its pipes."""
    with uninterrupted():
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def _elsewhere() -> list[str]:
    """The user's own folders of packages; none that is relative, or the current one, which can be someone else's."""
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    own = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    here = os.path.realpath(os.getcwd())
    return [entry for entry in (*named, *own) if os.path.isabs(entry) and os.path.realpath(entry) != here]
