"""What is wrong with a Triton repository that parsing its configs does not show, found before a server is started."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from normdeploy import onnxfile
from normdeploy.bundle.contents import contents
from normdeploy.bundle.interface import Axis, Interface, Tensor
from normdeploy.bundle.manifest import INTERFACE, MANIFEST, PLAN
from normdeploy.disk import read_plain
from normdeploy.errors import InputError, listed
from normdeploy.report.schema import read
from normdeploy.serving.schema import name_of, parse_config
from normdeploy.serving.versions import misnamed, versions

CONFIG = "config.pbtxt"
BACKENDS = {"onnxruntime": "model.onnx", "tensorrt": PLAN, "python": "model.py"}
"""Backend → the file of a version that it runs, where the config names no other."""
_PLATFORMS = {"onnxruntime_onnx": "onnxruntime", "tensorrt_plan": "tensorrt"}
_MOST = 1 << 20
_SHOWN = 12


def require_sound(
    repository: Path,
    models: Sequence[str] | None = None,
    *,
    backends: Sequence[str] = tuple(BACKENDS),
    gpus: int | None = None,
) -> list[str]:
    """Return the names of the models in ``repository``, or ``models``; raise InputError that lists their faults.

    ``backends`` are those that the server has, ``gpus`` how many GPUs; None where that is not known.
    """
    names = list(models) if models is not None else model_names(repository)
    found = [f"{name}: {fault}" for name in names for fault in faults(repository / name, backends, gpus)]
    if not names:
        fix = "normdeploy package BUNDLE -o REPOSITORY"
        raise InputError("there is no model in the repository", where=str(repository), fix=fix)
    if found:
        what = "Triton cannot serve this repository:\n  " + listed(found, _SHOWN, by="\n  ")
        raise InputError(what, where=str(repository), fix="correct each config.pbtxt, or package the bundle again")
    return names


def require_unaltered(repository: Path) -> None:
    """Raise InputError where a version that was packaged from a bundle holds other files than that, by sha256."""
    for name in model_names(repository):
        for number in versions(repository / name):
            folder = repository / name / str(number)
            if (folder / MANIFEST).is_file():
                contents(folder)


def model_names(repository: Path) -> list[str]:
    """Return the names of the models in ``repository``: its folders. Raises InputError where it is no folder."""
    try:
        entries = sorted(os.scandir(repository), key=lambda entry: entry.name)
    except OSError as error:
        fix = "normdeploy package BUNDLE -o REPOSITORY"
        raise InputError(f"no repository: {error.strerror}", where=str(repository), fix=fix) from error
    return [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def faults(model: Path, backends: Sequence[str], gpus: int | None) -> Iterator[str]:
    """Yield what is wrong with the folder of one model."""
    try:
        config = parse_config(read_plain(model, CONFIG, _MOST).decode())
    except (OSError, ValueError, InputError) as error:
        yield f"{CONFIG} cannot be read: {getattr(error, 'what', error)}"
        return
    if config.name and config.name != model.name:
        yield f"the config's name is {config.name!r}, and the folder's another"
    backend = config.backend or _PLATFORMS.get(config.platform, "")
    if backend not in backends:
        yield f"the backend {backend or config.platform!r} is none of {', '.join(backends)}"
    yield from _instance_faults(config, gpus)
    yield from _tensor_faults(config)
    yield from _version_faults(model, config, config.default_model_filename or BACKENDS.get(backend, ""))
    for warmup in config.model_warmup:
        for name, entry in sorted(warmup.inputs.items()):
            if entry.input_data_file and not (model / "warmup" / entry.input_data_file).is_file():
                yield f"the warm-up data of {name}, warmup/{entry.input_data_file}, is missing"


def _instance_faults(config: Any, gpus: int | None) -> Iterator[str]:
    for group in config.instance_group:
        if group.kind == group.KIND_GPU and gpus is not None:
            ids = list(group.gpus) or [0]
            missing = [str(each) for each in ids if each >= gpus]
            if missing:
                yield f"it wants the GPU {', '.join(missing)}, and this machine has {gpus or 'none'}"
        if group.count < 0 or any(each < 0 for each in group.gpus):
            yield "an instance group has a negative number"


def _tensor_faults(config: Any) -> Iterator[str]:
    if config.max_batch_size < 0:
        yield f"max_batch_size is {config.max_batch_size}"
    if config.HasField("dynamic_batching") and config.max_batch_size == 0:
        yield "dynamic_batching needs a max_batch_size"
    for tensor in (*config.input, *config.output):
        if not tensor.name:
            yield "an input or output has no name"
        if not tensor.dims:
            yield f"{tensor.name} has no dims: a row that is one number has dims: [1] and reshape {{ }}"
        if config.max_batch_size == 0 and tensor.HasField("reshape") and not tensor.reshape.shape:
            yield f"{tensor.name} is a scalar, which Triton knows in batches alone"
        if wrong := [str(size) for size in tensor.dims if size == 0 or size < -1]:
            yield f"{tensor.name} has a dimension of size {', '.join(wrong)}: write its size, or -1 for any"
        if name_of(config, "DataType", tensor.data_type) == "TYPE_INVALID":
            yield f"{tensor.name} has no data_type"


def _version_faults(model: Path, config: Any, file: str) -> Iterator[str]:
    numbers = versions(model)
    for name in misnamed(model):
        yield f"Triton takes {name} for no version: that is a folder, its name a number from 1 on, no zero in front"
    if not numbers:
        yield "it has no version: no folder with a number"
    wanted = list(config.version_policy.specific.versions)
    if missing := [str(number) for number in wanted if number not in numbers]:
        yield f"its version policy wants {', '.join(missing)}, which is not there"
    for number in numbers:
        folder = model / str(number)
        if not (folder / file).is_file():
            yield f"version {number} has no {file}"
            continue
        yield from (f"version {number}: {fault}" for fault in _file_faults(folder, file, config))


def _file_faults(folder: Path, file: str, config: Any) -> Iterator[str]:
    try:
        if file.endswith(".onnx"):
            onnxfile.check(folder / file)
            yield from (f"{path.name} is missing" for path in onnxfile.data_files(folder / file) if not path.is_file())
        if (folder / MANIFEST).is_file() and (folder / INTERFACE).is_file():
            told = read(Interface, read_plain(folder, INTERFACE, _MOST), where=str(folder / INTERFACE))
            yield from _misfits(told, config)
    except InputError as error:
        yield error.what
    except OSError as error:
        yield f"{error.filename} cannot be read: {error.strerror}"


def _misfits(interface: Interface, config: Any) -> Iterator[str]:
    """Yield where the config promises other tensors than the bundle in the version's folder has."""
    batched = config.max_batch_size > 0
    for stated, tensors in ((config.input, interface.inputs), (config.output, interface.outputs)):
        known = {tensor.name: tensor for tensor in tensors}
        for entry in stated:
            if entry.name not in known:
                yield f"the config has {entry.name}, and the model has not"
            else:
                yield from _misfit(entry, known[entry.name], config, batched=batched)
    named = {each.name for each in config.input}
    if missing := [tensor.name for tensor in interface.inputs if tensor.name not in named]:
        yield f"the config lacks the input {', '.join(missing)}"


def _misfit(entry: Any, tensor: Tensor, config: Any, *, batched: bool) -> Iterator[str]:
    kind = name_of(config, "DataType", entry.data_type).removeprefix("TYPE_").lower().replace("fp", "float")
    if kind.replace("bf16", "bfloat16") != tensor.dtype:
        yield f"{entry.name} is {kind} in the config, and {tensor.dtype} in the model"
    axes = tensor.dims[batched:]
    dims = list(entry.reshape.shape) if entry.HasField("reshape") else list(entry.dims)
    if len(dims) != len(axes) or not all(map(_allows, axes, dims)):
        yield f"{entry.name} has dims {dims} in the config, which the model does not take"
    most = tensor.dims[0].max if tensor.dims else 0
    if batched and most is not None and most < config.max_batch_size:
        yield f"max_batch_size is {config.max_batch_size}, and axis 0 of {entry.name} takes less"


def _allows(axis: Axis, size: int) -> bool:
    if axis.name is None:
        return size == axis.min
    return size == -1 or axis.min is None or axis.min <= size <= (axis.max or size)
