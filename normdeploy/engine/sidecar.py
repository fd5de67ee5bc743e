"""What travels beside a plan: what it was built by, for and from, and the checks before it is loaded.

A plan can carry code. Its SHA-256 is compared before a byte of it is deserialised; then the backend's version and
the GPU, which the backend would refuse with a message about serialization.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from normdeploy.engine.backends import BACKENDS
from normdeploy.engine.files import sha256, write_atomic
from normdeploy.engine.layers import EngineLayer
from normdeploy.engine.profiles import Range
from normdeploy.errors import InputError, UnavailableError
from normdeploy.precision import Precision

SUFFIX = ".json"
"""A plan's sidecar is the file with this appended to its name."""


class Sidecar(BaseModel):
    """Everything that must fit before a plan is loaded, and the table of its layers.

    Attributes:
        backend: ``tensorrt`` or ``tensorrt_rtx``.
        backend_version: its version; a plan of another one is refused, but for ``version_compatible``.
        gpu: the GPU it was built on and for, with its compute capability; None where it was built without one.
        compute_capabilities: those it was aimed at (``SM89``); empty means the GPU.
        inputs, outputs: tensor names, in order.
        profiles: input name → range of shapes, one dictionary a profile.
        precision: what it was asserted to compute in.
        tf32: whether float32 products may be rounded to 10 bits; never, so that float32 means float32.
        sha256, size: of the plan, the size in bytes.
        timing_cache_key: name of the timing cache that the build used; None where none was.
        options: build options that were set.
        layers: the layer table.
        notes: what a reader of the table should know.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    backend: str
    backend_version: str
    gpu: str | None
    compute_capabilities: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    profiles: tuple[dict[str, Range], ...]
    precision: Precision
    tf32: Literal[False] = False
    sha256: str
    size: int
    timing_cache_key: str | None
    options: dict[str, int | bool]
    layers: tuple[EngineLayer, ...]
    notes: tuple[str, ...] = ()

    @property
    def carries_code(self) -> bool:
        """True for a plan that brings its own runtime, which runs on the host when the plan is loaded."""
        return bool(self.options.get("version_compatible"))


def sidecar_path(plan: Path) -> Path:
    """Where the sidecar of ``plan`` lies."""
    return plan.with_name(plan.name + SUFFIX)


def write_plan(path: Path, plan: bytes, sidecar: Sidecar, *, force: bool = False) -> Path:
    """Write the plan and its sidecar, each atomically; an existing plan is replaced only with ``force``.

    The sidecar goes first: a plan that it does not fit is refused when read, so no crash leaves a wrong pair.
    """
    if path.exists() and not force:
        raise InputError("the plan exists already", where=str(path), fix="choose another -o, or replace it by --force")
    write_atomic(sidecar_path(path), sidecar.model_dump_json(indent=1).encode())
    write_atomic(path, plan)
    return path


def read_plan(path: Path) -> tuple[bytes, Sidecar]:
    """The plan and its sidecar; the plan is compared with its SHA-256. Raises InputError, deserialises nothing."""
    sidecar = _read_sidecar(sidecar_path(path))
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the plan: {error.strerror}", where=str(path)) from error
    if sha256(plan) != sidecar.sha256:
        raise InputError(
            "the plan is not the one that was built: its SHA-256 differs from its sidecar's",
            where=f"{path} ({len(plan)} bytes, {sidecar.size} were written)",
            fix="copy it again, or build it again with normdeploy build",
        )
    return plan, sidecar


def _read_sidecar(path: Path) -> Sidecar:
    try:
        return Sidecar.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"cannot read the plan's sidecar: {error.strerror}",
            where=str(path),
            fix="keep the sidecar beside the plan; without it nothing says what the plan is",
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"the plan's sidecar is damaged: {first['msg']}",
            where=f"{path}: {'.'.join(str(part) for part in first['loc'])}",
            fix="build the plan again with normdeploy build",
        ) from error


def require_backend(sidecar: Sidecar, installed: str | None) -> None:
    """Raise unless the backend that built the plan is here, in the ``installed`` version (None: not installed)."""
    backend = next((each for each in BACKENDS if each.name == sidecar.backend), None)
    if backend is None:
        raise InputError(f"the plan was built by {sidecar.backend!r}", fix="build it again with normdeploy build")
    if installed is None:
        raise UnavailableError(f"{backend.title} is not installed", where="loading a plan", fix=backend.install)
    if installed != sidecar.backend_version and not sidecar.carries_code:
        raise InputError(
            f"the plan was built by {backend.title} {sidecar.backend_version}, and {installed} is installed",
            fix=f"pip install {sidecar.backend}=={sidecar.backend_version}, or build again with normdeploy build",
        )


def require_gpu(sidecar: Sidecar, gpu: str | None, capabilities: Sequence[str]) -> None:
    """Raise unless this machine's ``gpu``, of the compute ``capabilities`` (``SM89``), can run the plan."""
    if gpu is None:
        raise UnavailableError("a plan runs on an NVIDIA GPU, and this machine has none that torch can use")
    if sidecar.compute_capabilities and not set(capabilities) & set(sidecar.compute_capabilities):
        raise InputError(
            f"the plan was built for {', '.join(sidecar.compute_capabilities)}, and this GPU is {gpu}",
            fix=f"build again with --sm {','.join(each.removeprefix('SM') for each in capabilities)}",
        )
    if not sidecar.compute_capabilities and sidecar.gpu != gpu:
        raise InputError(
            f"the plan was built on {sidecar.gpu}, and this GPU is {gpu}", fix="build again on this machine"
        )
