"""``normdeploy package``: bundles become models of a Triton repository, each version whole or not at all.

::

    README.md                 how to serve it
    inferenceservice.yaml     how KServe serves it, where that was asked for
    NAME/config.pbtxt         what Triton knows of the model
    NAME/warmup/golden_0 ...  the golden inputs, which run before it is ready
    NAME/1/                   the bundle: model.onnx, its evidence, its golden feed
    NAME/2/                   the next one, which replaces it where Triton is told to load the model again
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from normdeploy.bundle import Bundle, load_bundle
from normdeploy.bundle.contents import contents
from normdeploy.bundle.manifest import MANIFEST
from normdeploy.disk import Room, disk_errors, locked, read_plain, room, write_file
from normdeploy.errors import InputError
from normdeploy.serving.batch import batch_axis, mixed_rows
from normdeploy.serving.config import model_config, warmup_file
from normdeploy.serving.faults import require_sound
from normdeploy.serving.kserve import KServe, check_kserve, inference_service, require_ours, write_kserve
from normdeploy.serving.options import Serving, check_options
from normdeploy.serving.readme import README, is_ours, readme
from normdeploy.serving.schema import config_text, parse_config
from normdeploy.serving.versions import LARGEST, versions

CONFIG = "config.pbtxt"
WARMUP_FOLDER = "warmup"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.A)
_MOST = 1 << 20
"""Bytes that a config may have."""
_WHAT = "the repository"


@dataclass(frozen=True)
class Packaged:
    """A version of a model in a repository.

    Attributes:
        name: of the model.
        version: its number.
        folder: where it lies.
        batch: the dimension along which Triton puts requests together; None where it does not.
        notes: what its user should know.
    """

    name: str
    version: int
    folder: Path
    batch: str | None
    notes: tuple[str, ...] = ()


def package(
    bundles: Sequence[Path],
    repository: Path,
    *,
    name: str | None = None,
    serving: Serving = Serving(),
    kserve: KServe | None = None,
) -> list[Packaged]:
    """Add each bundle to ``repository`` as the next version of the model of its name, and return what was added.

    A model is called as its bundle's folder, or ``name`` where there is one bundle. What is there stays as it is: a
    later version keeps the config of the first, and is refused where that does not fit it. With ``kserve`` the
    repository gets an InferenceService. Raises what
    :func:`normdeploy.load_bundle` raises, and InputError where Triton cannot serve the bundle as asked, or the disk
    does not take it.
    """
    names = [Path(os.path.realpath(path)).name if name is None else name for path in bundles]
    for each in names:
        _check_name(each, names, given=name is not None)
    if kserve is not None:
        check_kserve(kserve)
        require_ours(repository)
    _require_no_bundle(repository)
    made = []
    for path, each in zip(bundles, names, strict=True):
        bundle = load_bundle(path)
        check_options(serving, bundle.manifest, bundle.report.engine, str(path))
        with disk_errors(repository, _WHAT):
            made.append(_add(bundle, repository, each, serving))
            _write_readme(repository)
    if kserve is not None:
        with disk_errors(repository, _WHAT):
            write_kserve(repository, _service(repository, kserve))
    return made


def _require_no_bundle(repository: Path) -> None:
    """Raise InputError where ``repository`` is a bundle, or lies in one: what is written there would spoil it."""
    real = Path(os.path.realpath(repository))
    inside = next((folder for folder in (real, *real.parents) if (folder / MANIFEST).is_file()), None)
    if inside is not None:
        what = "the repository lies in a bundle, which another file would spoil"
        raise InputError(what, where=str(inside), fix="choose another --out")


def _check_name(name: str, names: Sequence[str], *, given: bool) -> None:
    if not _NAME.fullmatch(name) or name.isdecimal():
        fix = "give a name of letters, digits, '_', '.' and '-', e.g. --name resnet"
        raise InputError(f"{name!r} cannot be the name of a model", where="--name" if given else name, fix=fix)
    if names.count(name) > 1:
        raise InputError(f"two bundles are called {name!r}", where=name, fix="package them one by one, with --name")


def _add(bundle: Bundle, repository: Path, name: str, serving: Serving) -> Packaged:
    axis = batch_axis(bundle.interface)
    mixed = mixed_rows(bundle, axis) if axis is not None else ""
    batch = None if mixed else axis
    config = model_config(bundle, name, batch, serving)
    model, version = repository / name, 1
    if os.path.lexists(model) or not _first_version(model, bundle, config):
        _require_fit(model, config)
        require_sound(repository, [name])  # before anything is added to it
        version = _next_version(model, bundle)
    contents(model / str(version))
    require_sound(repository, [name])
    return Packaged(name, version, model / str(version), batch, tuple(_notes(bundle, mixed, batch, serving)))


def _first_version(model: Path, bundle: Bundle, config: Any) -> bool:
    """Make the folder of a model with its first version; False where somebody else has made it meanwhile."""
    with room(model) as place:
        _write_model(place.new, bundle, config)
        try:
            place.settle(model)
        except FileExistsError:
            return False
    return True


def _next_version(model: Path, bundle: Bundle) -> int:
    with locked(model):
        version = max(versions(model), default=0) + 1
        if version > LARGEST:
            what = f"version {LARGEST} is there, and Triton knows no larger number"
            raise InputError(what, where=str(model), fix="package under another --name")
        target = model / str(version)
        with room(target) as place:
            _write_version(place, bundle)
            place.settle(target)
    return version


def _write_model(folder: Path, bundle: Bundle, config: Any) -> None:
    (folder / WARMUP_FOLDER).mkdir(parents=True)
    (folder / CONFIG).write_text(config_text(config), encoding="utf-8")
    batched = config.max_batch_size > 0
    for spec in bundle.specs:
        array = bundle.golden.inputs[spec.name]
        data = np.ascontiguousarray(array[0] if batched else array).tobytes()
        (folder / WARMUP_FOLDER / warmup_file(bundle, spec.name)).write_bytes(data)
    _copy(bundle, folder / "1")


def _write_version(place: Room, bundle: Bundle) -> None:
    _copy(bundle, place.new)


def _copy(bundle: Bundle, folder: Path) -> None:
    """Copy the files that were checked when ``bundle`` was loaded."""
    for name in bundle.manifest.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.copy / name, folder / name)
    (folder / MANIFEST).write_text(bundle.manifest.to_json(), encoding="utf-8")


def _require_fit(model: Path, config: Any) -> None:
    """Raise InputError unless the config in the folder ``model`` serves what ``config`` serves."""
    where = str(model / CONFIG)
    try:
        present = parse_config(read_plain(model, CONFIG, _MOST).decode())
    except (OSError, ValueError) as error:
        raise InputError(f"it cannot be read: {error}", where=where, fix="package under another --name") from error
    differ = [
        field
        for field in (
            "backend",
            "max_batch_size",
            "input",
            "output",
            "instance_group",
            "optimization",
            "dynamic_batching",
        )
        if getattr(present, field) != getattr(config, field)
    ]
    if differ:
        raise InputError(
            f"the model is there with another {', '.join(differ)}, and its versions share one config",
            where=where,
            fix="package under another --name, or with the options of the first version",
        )


def _notes(bundle: Bundle, mixed: str, batch: str | None, serving: Serving) -> list[str]:
    notes = []
    if mixed:
        notes.append(f"requests are not put together: {mixed}")
    elif batch is None:
        notes.append("requests are not put together: no dimension from 1 on is axis 0 of every input and output alone")
    engine = bundle.report.engine
    notes.extend(_promises(bundle, batch))
    if engine is not None and serving.platform != "tensorrt":
        notes.append(f"Triton runs the model in ONNX Runtime; the bundle's engine, of {engine.backend}, is not used")
    return notes


def _promises(bundle: Bundle, batch: str | None) -> Iterator[str]:
    """Yield what a bundle holds its callers to and Triton does not, and what the answers look like there alone."""
    held = [f"{each.name} from {each.low} to {each.high}" for each in bundle.interface.inputs if each.low is not None]
    axes = [axis for each in bundle.interface.inputs for axis in each.dims if axis.name not in (None, batch)]
    for axis in dict.fromkeys(axes):
        step = f" in steps of {axis.multiple}" if axis.multiple != 1 else ""
        same = ", the same wherever it stands" if axes.count(axis) > 1 else ""
        held.append(f"{axis.name} from {axis.min} to {axis.max}{step}{same}")
    if held:
        yield f"Triton does not refuse what the bundle would; its clients must keep to: {'; '.join(held)}"
    tensors = (*bundle.interface.inputs, *bundle.interface.outputs)
    columns = [each.name for each in tensors if batch is not None and len(each.dims) == 1]
    if columns:
        yield f"a row of {', '.join(columns)} is one number, which Triton takes and gives as {batch} x 1"


def _service(repository: Path, kserve: KServe) -> dict[str, Any]:
    """Return the InferenceService of all models in ``repository``."""
    latest = {path.name: max(versions(path)) for path in sorted(_models(repository)) if versions(path)}
    groups = [
        group
        for path in _models(repository)
        for group in parse_config((path / CONFIG).read_text(encoding="utf-8")).instance_group
    ]
    gpus = {number for group in groups if group.kind == group.KIND_GPU for number in group.gpus or [0]}
    files = [file for name, number in latest.items() for file in (repository / name / str(number)).glob("model.*")]
    nbytes = sum(file.stat().st_size for file in files)
    return inference_service(Path(os.path.realpath(repository)).name, latest, nbytes, kserve, gpus=len(gpus))


def _models(repository: Path) -> list[Path]:
    return [entry for entry in repository.iterdir() if (entry / CONFIG).is_file()]


def _write_readme(repository: Path) -> None:
    path = repository / README
    if is_ours(path):
        models = sorted(path.name for path in _models(repository))
        write_file(path, readme(repository, models).encode(), replace=True)
