"""Files and a factory → a module that is ready to deploy: on the CPU, in eval mode, holding the file's weights.

Only data is read from a weights file: safetensors, or what ``torch.load(weights_only=True)`` accepts. The one thing
that runs is the factory that the user names, found on the import path or in ``app_dir``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn

from normdeploy.checkpoint.factory import build
from normdeploy.checkpoint.files import read, sha256
from normdeploy.checkpoint.fit import fit
from normdeploy.doctor.statistics import require_valid_statistics
from normdeploy.doctor.training import require_eval
from normdeploy.errors import InputError

__all__ = ["Checkpoint", "load"]


@dataclass(frozen=True)
class Checkpoint:
    """A loaded module and where it came from.

    Attributes:
        module: on the CPU, in eval mode, with requires_grad off.
        factory: ``package.module:attribute``, as given.
        weights: the weights file, as given; None where the factory's own weights are deployed.
        weights_sha256: of that file, in hexadecimal.
        notes: everything that was done beyond plain loading, in words for the user.
    """

    module: nn.Module
    factory: str
    weights: Path | None
    weights_sha256: str | None
    notes: tuple[str, ...]


def load(
    factory: str,
    *,
    app_dir: Path | None = None,
    model_args: Mapping[str, str] = MappingProxyType({}),
    weights: Path | None = None,
    weights_key: str | None = None,
    strip_prefix: str = "",
    force_eval: bool = False,
) -> Checkpoint:
    """Call ``factory`` and load ``weights`` into the module it returns.

    Args:
        factory: ``package.module:attribute`` of a callable that returns an nn.Module.
        app_dir: the only folder that is added to the import path; it stays there, for imports inside forward.
        model_args: arguments of the factory; a Python literal where the text is one, else the text itself.
        weights: a safetensors file or a state dict of torch.save, saved on any device.
        weights_key: the entry of the file that holds the state dict, e.g. ``state_dict`` or ``ema.module``.
        strip_prefix: taken off the start of every name that has it, e.g. ``module.``.
        force_eval: put norms that were left in training mode into eval mode, with a note.

    Raises InputError where anything of this cannot be done exactly.
    """
    if weights is None and (weights_key is not None or strip_prefix):
        raise InputError(
            f"{'--weights-key' if weights_key is not None else '--strip-prefix'} says how to read a weights file, "
            "but none is given",
            fix="add --weights FILE",
        )
    contents = None if weights is None else read(weights, weights_key)
    built, notes = build(factory, app_dir=app_dir, model_args=model_args)
    module = _on_cpu(built, factory)
    if weights is None:
        notes += ("no weights file: the weights are those that the factory made",)
    else:
        notes += fit(module, contents, file=weights, key=weights_key, prefix=strip_prefix)
    _require_initialized(module, factory)
    # Only now: eval() may merge weights (LoRA, re-parametrized blocks), which must be the file's by then.
    notes += require_eval(module, force=force_eval)
    require_valid_statistics(module)
    notes += _not_finite(module)
    digest = None if weights is None else sha256(weights)
    return Checkpoint(module.requires_grad_(False), factory, weights, digest, notes)


def _on_cpu(module: nn.Module, factory: str) -> nn.Module:
    meta = [name for name, tensor in _tensors(module) if tensor.is_meta]
    if meta:
        raise InputError(
            f"the factory leaves {len(meta)} tensors without storage, on the meta device",
            where=f"{factory}: {', '.join(meta[:5])}",
            fix="build the module on the CPU, or call .to_empty(device='cpu') on it in the factory",
        )
    return module.to("cpu")


def _require_initialized(module: nn.Module, factory: str) -> None:
    lazy = [name for name, tensor in _tensors(module) if nn.parameter.is_lazy(tensor)]
    if lazy:
        raise InputError(
            f"{len(lazy)} parameters of a lazy layer have no shape yet",
            where=f"{factory}: {', '.join(lazy[:5])}",
            fix="give --weights, or run the module once on an example in the factory",
        )


def _not_finite(module: nn.Module) -> tuple[str, ...]:
    """Notes, not errors: a mask of -inf is as common as a diverged weight."""
    return tuple(
        f"{name} holds {bad} NaN or infinite values of {tensor.numel()}"
        for name, tensor in _tensors(module)
        if (tensor.is_floating_point() or tensor.is_complex()) and (bad := _count_not_finite(tensor))
    )


def _count_not_finite(tensor: torch.Tensor) -> int:
    # isfinite does not know the 8-bit floats, which all fit float32
    values = tensor.float() if tensor.element_size() == 1 else tensor
    return int((~torch.isfinite(values)).sum())


def _tensors(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]
