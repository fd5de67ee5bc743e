"""``normdeploy serve``: a Triton on this machine, on loopback, that serves an unmodified repository on the CPU."""

from __future__ import annotations

import http.client
import json
import os
import shlex
import signal
import socket
import sysconfig
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import FrameType

from normdeploy import child
from normdeploy.disk import files_in, scratch
from normdeploy.disk.outputs import require_apart
from normdeploy.errors import InputError, UnavailableError
from normdeploy.serving.environment import environment, ready_environment, require_possible, site_packages
from normdeploy.serving.faults import require_sound, require_unaltered

HOST = "127.0.0.1"
BACKENDS = ("onnxruntime", "python")
"""What the Triton of nvidia-pytriton has, with the backend beside this file."""
_READY_SECONDS, _STOP_SECONDS = 180.0, 20.0
_STEP = 0.05
_TAIL = 6


@dataclass(frozen=True)
class Ports:
    """TCP ports on loopback."""

    http: int
    grpc: int
    metrics: int


def ports(http: int = 0, grpc: int = 0, metrics: int = 0) -> Ports:
    """Return the ports, a free one for each 0. Raises InputError for a port that is no port, or taken."""
    given = {"--http-port": http, "--grpc-port": grpc, "--metrics-port": metrics}
    named = [port for port in given.values() if port]
    for option, port in given.items():
        if not 0 <= port < 1 << 16 or named.count(port) > 1:
            fix = "leave it out, and a free one is taken"
            raise InputError("no port, or the same twice", where=f"{option} {port}", fix=fix)
    with ExitStack() as held:
        return Ports(*(_bound(option, port, held) for option, port in given.items()))


def _bound(option: str, port: int, held: ExitStack) -> int:
    """Return ``port``, or a free one, which is held until ``held`` is left: so no two are the same."""
    listener = held.enter_context(socket.socket())
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        fix = "leave it out, and a free one is taken"
        raise InputError(f"the port cannot be had: {error.strerror}", where=f"{option} {port}", fix=fix) from error
    return int(listener.getsockname()[1])


def command(repository: Path, at: Ports, backends: Path) -> list[str]:
    """Return the command line of Triton; ``backends`` is the folder with its backends."""
    return [
        str(_triton() / "bin" / "tritonserver"),
        f"--model-repository={repository.absolute()}",
        f"--backend-directory={backends}",
        "--model-control-mode=explicit",
        "--load-model=*",
        f"--http-address={HOST}",
        f"--http-port={at.http}",
        f"--grpc-address={HOST}",
        f"--grpc-port={at.grpc}",
        f"--metrics-address={HOST}",
        f"--metrics-port={at.metrics}",
        "--exit-timeout-secs=10",
        "--disable-auto-complete-config",
    ]


def variables() -> dict[str, str]:
    """Return the variables of the environment that Triton needs: where its libraries, Python and packages are."""
    folder = environment()
    packages = site_packages(folder)
    libraries = f"{packages / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    return {
        "LD_LIBRARY_PATH": libraries,
        "PATH": f"{folder / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        "VIRTUAL_ENV": str(folder),
        "PYTHONPATH": str(packages),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def dry_run(repository: Path, at: Ports) -> str:
    """Return what :func:`running` would do, as a line for a shell; nothing is installed or started.

    Raises what :func:`running` raises for a repository, or a machine, that will not do.
    """
    require_possible()
    _require_servable(repository)
    words = [f"{name}={value}" for name, value in variables().items() if name != "PATH"]
    return shlex.join(["env", *words, *command(repository, at, Path("BACKENDS"))])


@dataclass(frozen=True)
class Server:
    """A Triton that runs.

    Attributes:
        at: its ports.
        log: the file with what it prints.
        process: its process, which leads a group of its own.
    """

    at: Ports
    log: Path
    process: child.Process

    @property
    def http(self) -> str:
        """Return its address for HTTP, and for the metrics with another port."""
        return f"http://{HOST}:{self.at.http}"

    @property
    def grpc(self) -> str:
        """Return its address for gRPC."""
        return f"grpc://{HOST}:{self.at.grpc}"

    def models(self) -> list[tuple[str, str]]:
        """Return name and version of each model that is ready."""
        found = json.loads(_asked(self.at.http, "POST", "/v2/repository/index") or b"[]")
        return [(each["name"], each["version"]) for each in found if each.get("state") == "READY"]

    def said(self) -> list[str]:
        """Return the last lines of its log that tell of an error, or the last ones."""
        lines = self.log.read_text(errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("E") or "error" in line.lower() or "failed" in line]
        return (errors or lines)[-_TAIL:]


def prepare(repository: Path) -> None:
    """Find what is wrong with ``repository``, and make Triton's environment where it is not there.

    Raises InputError for a repository with faults, or with a version that is not as it was packaged, by sha256;
    UnavailableError where Triton cannot be had.
    """
    _require_servable(repository)
    ready_environment()


def _require_servable(repository: Path) -> None:
    require_sound(repository, backends=BACKENDS, gpus=0)
    require_unaltered(repository)


@contextmanager
def running(repository: Path, at: Ports, *, log: Path | None = None) -> Iterator[Server]:
    """Start Triton on ``repository``, wait until it is ready, and stop it afterwards, whatever happens.

    What Triton prints goes behind what is in ``log``, which may be no file of ``repository``.
    Raises what :func:`prepare` raises, and UnavailableError where Triton ends before it is ready.
    """
    if log is not None:
        require_apart({"--log": log}, {"a file to serve": (repository / name for name in files_in(repository))})
    prepare(repository)
    with scratch() as folder:
        backends = folder / "backends"
        backends.mkdir()
        (backends / "python").symlink_to(_triton() / "backends" / "python")
        (backends / "onnxruntime").symlink_to(str(files("normdeploy.serving") / "backends" / "onnxruntime"))
        path = log or folder / "triton.log"
        with path.open("a") as output:
            line = command(repository, at, backends)
            process = child.program(line, folder=folder, output=output, environment=variables())
        server = Server(at, path, process)
        try:
            _wait(server)
            yield server
        finally:
            _stop(process)


class _EndedError(BaseException):
    """A signal asked for the end: no library may take it for an error of its own."""


@contextmanager
def until_signal() -> Iterator[None]:
    """Leave the block, which cleans up behind itself, at the first SIGINT or SIGTERM; further ones are ignored."""
    came: list[int] = []

    def end(number: int, _: FrameType | None) -> None:
        came.append(number)
        if len(came) == 1:
            raise _EndedError

    before = {each: signal.signal(each, end) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except _EndedError:
        return
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def watch(server: Server) -> None:
    """Wait for a signal, in the block of :func:`until_signal`; UnavailableError where Triton ends by itself."""
    while server.process.poll() is None:
        time.sleep(_STEP)
    raise _died(server)


def _is_ready(at: Ports) -> bool:
    """Return whether the models are loaded and the metrics, which Triton starts last, are there."""
    return None not in (_asked(at.http, "GET", "/v2/health/ready"), _asked(at.metrics, "GET", "/metrics"))


def _wait(server: Server) -> None:
    end = time.monotonic() + _READY_SECONDS
    while not _is_ready(server.at):
        if server.process.poll() is not None:
            raise _died(server)
        if time.monotonic() > end:
            said = " | ".join(server.said())
            raise UnavailableError("Triton is not ready in time", where=said, fix="see the log: --log FILE")
        time.sleep(_STEP)


def _asked(port: int, method: str, path: str) -> bytes | None:
    """Return what the server answers, None where it does not, or not with 200."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.read() if response.status == http.client.OK else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _died(server: Server) -> UnavailableError:
    code = server.process.poll()
    return UnavailableError(
        f"Triton has ended, with exit code {code}",
        where=" | ".join(server.said()),
        fix="correct what its log says (--log FILE keeps it); a model that fails to load ends it",
    )


def _stop(process: child.Process) -> None:
    """End Triton, which finishes what it runs; after some seconds whatever it does, and its Python processes."""
    process.terminate()
    with suppress(child.TimeoutExpired):
        process.wait(_STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _triton() -> Path:
    return site_packages(environment()) / "pytriton" / "tritonserver"
