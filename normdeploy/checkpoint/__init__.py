"""Files and a factory → a module that is ready to deploy: on the CPU, in eval mode, holding the file's weights.

Of a weights file only data is read, unless its exact path is trusted. The one thing that runs is the factory that the
user names, found on the import path or in ``app_dir``.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from normdeploy.checkpoint.configured import renamed
from normdeploy.checkpoint.factory import build, call, import_path, usual_app_dir
from normdeploy.checkpoint.files import Contents, read
from normdeploy.checkpoint.fit import fit
from normdeploy.checkpoint.names import Names, Rename
from normdeploy.checkpoint.other_tools import stored_otherwise
from normdeploy.checkpoint.prepare import on_cpu, settle, tensors, unwrapped
from normdeploy.doctor.statistics import require_valid_statistics
from normdeploy.doctor.training import require_eval
from normdeploy.errors import InputError

__all__ = ["Checkpoint", "Names", "Rename", "call", "load"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A loaded module and where it came from.

    Attributes:
        module: on the CPU, in eval mode, with requires_grad off.
        factory: ``package.module:attribute``, as given.
        weights: the weights file, as given; None where the factory's own weights are deployed.
        weights_sha256: of the bytes of that file that were loaded, in hexadecimal; of a checkpoint in several files,
            of the lines that ``sha256sum`` prints for them, by name.
        trusted: file name → sha256 of each file whose code may have run.
        notes: everything that was done beyond plain loading, in words for the user.
    """

    module: nn.Module
    factory: str
    weights: Path | None
    weights_sha256: str | None
    trusted: Mapping[str, str]
    notes: tuple[str, ...]


def load(
    factory: str,
    *,
    app_dir: Path | None = None,
    model_args: Mapping[str, str] = MappingProxyType({}),
    weights: Path | None = None,
    names: Names = Names(),
    trust: Sequence[Path] = (),
    force_eval: bool = False,
    check: bool = True,
) -> Checkpoint:
    """Call ``factory`` and load ``weights`` into the module it returns.

    Args:
        factory: ``package.module:attribute`` of a callable that returns an nn.Module.
        app_dir: the only folder that is added to the import path: first while the factory runs, last from then on, for
            imports inside forward. The current folder is taken where the factory's module is found in it and nowhere
            else.
        model_args: arguments of the factory; a Python literal where the text is one, else the text itself.
        weights: a safetensors file or what torch.save wrote, on any device; an index of shards, or a folder.
        names: how the names in the file become the module's, as far as that is not clear by itself.
        trust: files that may run code when they are loaded.
        force_eval: put norms that were left in training mode into eval mode, with a note.
        check: put the module into eval mode, and refuse one that cannot be deployed; else it is left as it was loaded.

    Raises InputError where anything of this cannot be done exactly.
    """
    if weights is None and (option := names.flags().partition(" ")[0]):
        raise InputError(f"{option} says how to read a weights file, but none is given", fix="add --weights FILE")
    said: tuple[str, ...] = ()
    if app_dir is None and (app_dir := usual_app_dir(factory)):
        said = (f"--app-dir . is taken: {factory.partition(':')[0]} is found in the current folder",)
    contents = None if weights is None else _contents(weights, names, trust, app_dir)
    built, notes = build(factory, app_dir=app_dir, model_args=model_args, weights=weights)
    module, unwrapping = unwrapped(built, factory)
    module = on_cpu(module, factory)
    if weights is None or contents is None:
        notes += ("no weights file: the weights are those that the factory made",)
    else:
        said += (*contents.notes, *_fitted(module, contents.data, weights, names))
    for note in said:
        _log.info(note)
    notes = (*said, *notes, *unwrapping)
    settle(module, factory)
    # Only now: eval() may merge weights (LoRA, re-parametrized blocks), which must be the file's by then.
    if check:
        notes += require_eval(module, force=force_eval)
        require_valid_statistics(module)
        for note in (not_finite := _not_finite(module)):
            _log.info(note)
        notes += not_finite
    digest, trusted = (contents.sha256, contents.trusted) if contents else (None, {})
    return Checkpoint(module.requires_grad_(False), factory, weights, digest, trusted, notes)


def _fitted(module: nn.Module, data: Any, file: Path, names: Names) -> tuple[str, ...]:
    try:
        return fit(module, data, file=file, names=names)
    except InputError as error:
        state = None if replace(names, ignore=(), allow=()).flags() else renamed(module, data)
        if state is None:
            if other := stored_otherwise(data, module.state_dict().keys(), file):
                raise other from error
            raise
    notes = fit(module, state, file=file, names=names)
    return ("the names in the file were read as transformers reads them, for its newer version of the network", *notes)


def _contents(weights: Path, names: Names, trust: Sequence[Path], app_dir: Path | None) -> Contents:
    if not trust:
        return read(weights, key=names.key)
    with import_path(app_dir):  # what a trusted pickle names is found where the factory is
        return read(weights, trust=trust, key=names.key)


def _not_finite(module: nn.Module) -> tuple[str, ...]:
    """Notes, not errors: a mask of -inf is as common as a diverged weight."""
    return tuple(
        f"{name} holds {bad} NaN or infinite values of {tensor.numel()}"
        for name, tensor in tensors(module)
        if (tensor.is_floating_point() or tensor.is_complex()) and (bad := _count_not_finite(tensor))
    )


def _count_not_finite(tensor: torch.Tensor) -> int:
    # isfinite does not know the 8-bit floats, which all fit float32
    values = tensor.float() if tensor.element_size() == 1 else tensor
    return int((~torch.isfinite(values)).sum())
