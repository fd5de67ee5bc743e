"""The module that a factory returned → the one to be deployed: unwrapped, on the CPU, with every tensor in place."""

from __future__ import annotations

import inspect
import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.optim.swa_utils import AveragedModel

from normdeploy.errors import InputError

_SHOWN = 5


def unwrapped(module: nn.Module, factory: str) -> tuple[nn.Module, tuple[str, ...]]:
    """Return ``module`` without what compiles, spreads or averages it, and notes. Raises InputError at TorchScript.

    What is deployed is held to PyTorch's own operators, so the reference is never a compiled module.
    """
    _require_python(module, factory)
    notes = []
    while (inner := _inner(module)) is not None:
        notes.append(f"the factory's module was wrapped in {type(module).__name__}: the module inside it is deployed")
        module = inner
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if (inner := _compiled(child)) is not None:
                setattr(parent, name, inner)
                notes.append(f"{name} was compiled by torch.compile: the module that it was made of is deployed")
    for name, part in module.named_modules():
        part._compiled_call_impl = None  # of nn.Module.compile
        if (written := getattr(part.forward, "_torchdynamo_orig_callable", None)) is not None:
            part.forward = written if inspect.ismethod(written) else types.MethodType(written, part)
            notes.append(f"forward of {name or 'the module'} was compiled by torch.compile: it is deployed as written")
    return module, tuple(notes)


def _inner(module: nn.Module) -> nn.Module | None:
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
        return module.module
    return _compiled(module)


def _compiled(module: nn.Module) -> nn.Module | None:
    """Return what torch.compile was given for ``module``; None where it is none of its."""
    return next((child for name, child in module.named_children() if name == "_orig_mod"), None)


def _require_python(module: nn.Module, factory: str) -> None:
    scripted = [name for name, part in module.named_modules() if isinstance(part, torch.jit.ScriptModule)]
    if scripted:
        raise InputError(
            "TorchScript cannot be traced: the graph is made of a module's own Python code",
            where=f"{factory}: {', '.join(name or 'the module itself' for name in scripted[:_SHOWN])}",
            fix="let the factory return the module that was scripted or traced; its weights can come from --weights",
        )


def on_cpu(module: nn.Module, factory: str) -> nn.Module:
    """Move ``module`` to the CPU. Raises InputError where a tensor has no storage."""
    meta = [name for name, tensor in tensors(module) if tensor.is_meta]
    if meta:
        raise InputError(
            f"the factory leaves {len(meta)} tensors without storage, on the meta device",
            where=f"{factory}: {', '.join(meta[:_SHOWN])}",
            fix="build the module on the CPU, or call .to_empty(device='cpu') on it in the factory",
        )
    return module.to("cpu")


def require_shapes(module: nn.Module, factory: str) -> None:
    """Raise InputError where a parameter of a lazy layer has no shape: nothing can be done with it, no copy made."""
    lazy = [name for name, tensor in tensors(module) if nn.parameter.is_lazy(tensor)]
    if lazy:
        raise InputError(
            f"{len(lazy)} parameters of a lazy layer have no shape yet",
            where=f"{factory}: {', '.join(lazy[:_SHOWN])}",
            fix="give --weights, or run the module once on an example in the factory",
        )


def settle(module: nn.Module, factory: str) -> None:
    """End what waits for a first call: lazy layers, whose weights are there, and weights that are computed in it.

    Raises InputError where a parameter of a lazy layer has no shape.
    """
    require_shapes(module, factory)
    for part in list(module.modules()):
        if isinstance(part, LazyModuleMixin) and part.cls_to_become is not None:
            _end_laziness(part)
        for name, value in list(vars(part).items()):
            if isinstance(value, Tensor) and value.grad_fn is not None:  # weight_norm's weight: no copy could be made
                setattr(part, name, value.detach())


def _end_laziness(part: Any) -> None:
    """Make of a lazy layer of torch.nn, whose weights were loaded, what its first call would."""
    for name in ("in_features", "in_channels", "num_features"):
        if getattr(part, name, None) == 0:
            setattr(part, name, _inputs(part))
    for hook in ("_initialize_hook", "_load_hook"):
        part.__dict__.pop(hook).remove()
    part.__class__ = part.cls_to_become


def _inputs(part: Any) -> int:
    """Return the number of inputs that the weights of a layer were made for."""
    weight = part.running_mean if part.weight is None else part.weight
    if weight.ndim == 1 or getattr(part, "transposed", False):
        return int(weight.shape[0])
    return int(weight.shape[1]) * getattr(part, "groups", 1)


def tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return all parameters and buffers, by name."""
    return [*module.named_parameters(), *module.named_buffers()]
