"""What travels beside a plan: what it was built by, for and from, and the checks before it is loaded.

A plan can carry code. Its SHA-256 is compared before a byte of it is deserialised; then the backend's version and
the GPU, which the backend would refuse with a message about serialization.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from normdeploy.disk import disk_errors, is_plain, locked, open_given, read_plain, room, uninterrupted
from normdeploy.engine.backends import BACKENDS
from normdeploy.engine.layers import EngineLayer
from normdeploy.engine.profiles import Range
from normdeploy.errors import InputError, UnavailableError
from normdeploy.precision import Precision

SUFFIX = ".json"
"""A plan's sidecar is the file with this appended to its name."""
_DIGITS = 16
"""Of a plan's sha256, in the name under which its sidecar waits."""
_MOST = 1 << 26
"""Bytes that a sidecar may have; it lists every layer."""
_TRIES = 3
"""How often a plan may be replaced while it is read."""


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
        plugins: how its LayerNorm plugins are run; None where it has none. Those of ``python`` need this package.
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
    plugins: Literal["aot", "python"] | None = None
    tf32: Literal[False] = False
    sha256: str
    size: int
    timing_cache_key: str | None
    options: dict[str, int | bool]
    layers: tuple[EngineLayer, ...]
    notes: tuple[str, ...] = ()

    @property
    def carries_code(self) -> bool:
        """Return True for a plan that brings its own runtime, which runs on the host when the plan is loaded."""
        return bool(self.options.get("version_compatible"))


def sha256(data: bytes) -> str:
    """Return the hexadecimal SHA-256 of ``data``."""
    return hashlib.sha256(data).hexdigest()


def sidecar_path(plan: Path) -> Path:
    """Return where the sidecar of ``plan`` lies."""
    return plan.with_name(plan.name + SUFFIX)


def write_plan(path: Path, plan: bytes, sidecar: Sidecar, *, force: bool = False) -> Path:
    """Write the plan and its sidecar and return the plan's path; older ones are replaced only with ``force``.

    At every moment the old plan or the new one is there, with a sidecar that fits: the new one waits under a name of
    its own, which :func:`read_plan` knows, until the plan is in its place. Raises InputError; what was there stays.
    """
    waiting = _waiting(path, sidecar.sha256)
    with disk_errors(path, "the plan"), room(path) as place, locked(path.parent):
        _require_replaceable(path, waiting, force)
        place.new.mkdir()
        (place.new / "plan").write_bytes(plan)
        (place.new / "sidecar").write_text(sidecar.model_dump_json(indent=1), encoding="utf-8")
        with uninterrupted():
            place.settle(waiting, part="sidecar", replace=True)
            try:
                place.settle(path, part="plan", replace=force)
                waiting.replace(sidecar_path(path))
            except FileExistsError as error:
                waiting.unlink()
                raise _exists(path) from error
            except OSError:
                _tidy(path)
                raise
            _tidy(path)
    return path


def _waiting(path: Path, digest: str) -> Path:
    """Return where the sidecar of a plan of this sha256 waits."""
    return path.with_name(f"{path.name}.{digest[:_DIGITS]}{SUFFIX}")


def _tidy(path: Path) -> None:
    """Remove the sidecars that wait for no plan any more: of older builds, or of ones that were killed."""
    pattern = re.compile(rf"{re.escape(path.name)}\.([0-9a-f]{{{_DIGITS}}}){re.escape(SUFFIX)}")
    for other in [other for other in path.parent.iterdir() if pattern.fullmatch(other.name)]:
        with suppress(InputError, OSError):
            waiting = _read_sidecar(other)
            if _waiting(path, waiting.sha256) == other and sha256(path.read_bytes()) != waiting.sha256:
                other.unlink()


def _require_replaceable(path: Path, waiting: Path, force: bool) -> None:
    for each in (path, sidecar_path(path)):
        if os.path.lexists(each) and not force:
            raise _exists(each)
    if os.path.lexists(path) and not is_plain(path):
        raise InputError("there is no plain file where the plan should go", where=str(path), fix="choose another -o")
    for each in (sidecar_path(path), waiting):
        if os.path.lexists(each):
            try:
                _read_sidecar(each)
            except InputError as error:
                what = "where the plan's sidecar should go there is a file that is none"
                raise InputError(what, where=str(each), fix="move it away, or choose another -o") from error


def _exists(path: Path) -> InputError:
    return InputError("the plan exists already", where=str(path), fix="choose another -o, or replace it by --force")


def read_plan(path: Path) -> tuple[bytes, Sidecar]:
    """Return the plan and its sidecar; the plan is compared with its SHA-256. Raises InputError, deserialises
    nothing.
    """
    for _ in range(_TRIES):
        plan = _read(path)
        digest = sha256(plan)
        for beside in (sidecar_path(path), _waiting(path, digest)):
            with suppress(InputError):
                sidecar = _read_sidecar(beside)
                if sidecar.sha256 == digest:
                    return plan, sidecar
    sidecar = _read_sidecar(sidecar_path(path))
    raise InputError(
        "the plan is not the one that was built: its SHA-256 differs from its sidecar's",
        where=f"{path} ({len(plan)} bytes, {sidecar.size} were written)",
        fix="copy it again, or build it again with normdeploy build",
    )


def _read(path: Path) -> bytes:
    try:
        with open_given(path) as file:
            return file.read()
    except OSError as error:
        raise InputError(f"cannot read the plan: {error.strerror}", where=str(path)) from error


def _read_sidecar(path: Path) -> Sidecar:
    try:
        return Sidecar.model_validate_json(read_plain(path.parent, path.name, _MOST))
    except InputError as error:
        raise InputError(f"the plan's sidecar cannot be used: {error.what}", where=str(path), fix=error.fix) from error
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
