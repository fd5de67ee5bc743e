"""The copy of a module that is exported and folded: unwrapped, in eval mode, its computed weights stored."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from normdeploy.checkpoint.prepare import on_cpu, require_shapes, settle, unwrapped
from normdeploy.doctor.training import require_eval
from normdeploy.errors import InputError

_SIXTEEN = (torch.float16, torch.bfloat16)
_SHOWN = 5


def working_copy(module: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a copy of ``module`` that can be exported and changed, and what was done for that.

    Raises InputError where it is no module, cannot be copied, or cannot be worked on as it is.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"a {type(module).__name__} is no torch.nn.Module", fix="give the module itself")
    work, said = unwrapped(copied(module), type(module).__name__)
    work = on_cpu(work, type(module).__name__)
    notes = [*said, *require_eval(work, force=False), *_with_settled_weights(work)]
    settle(work, type(module).__name__)
    _require_no_hooks(work)
    _require_wide(work)
    return work.requires_grad_(False), tuple(notes)


def copied(module: nn.Module) -> nn.Module:
    """Return a copy of ``module`` that shares no module with it; InputError where there is none."""
    require_shapes(module, type(module).__name__)
    computed = [
        value
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, torch.Tensor) and value.grad_fn is not None
    ]
    name, fix = type(module).__name__, "take out of it what cannot be copied"
    try:
        work = copy.deepcopy(module, {id(value): value.detach().clone() for value in computed})
    except Exception as error:  # whatever the module's own parts raise
        raise InputError(f"the module cannot be copied: {error}", where=name, fix=fix) from error
    if {id(part) for part in work.modules()} & {id(part) for part in module.modules()}:
        raise InputError("its copy shares modules with it, and would change them", where=name, fix=fix)
    return work


def _with_settled_weights(module: nn.Module) -> list[str]:
    """Store weights that a parametrization computes: with what it computed."""
    notes = []
    for path, part in list(module.named_modules()):
        if parametrize.is_parametrized(part):
            _own_class(part)
            for name in list(part.parametrizations):
                with torch.no_grad():
                    parametrize.remove_parametrizations(part, str(name), leave_parametrized=True)
            notes.append(f"{path or 'the module'}: its parametrized weights are stored as they are computed")
    for part in list(module.modules()):
        for key, hook in list(part._forward_pre_hooks.items()):
            if type(hook).__module__ in ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm"):
                _store_computed(part, hook, key)
                notes.append(f"{type(hook).__name__} of a {type(part).__name__} is stored as it is computed")
    return notes


def _own_class(part: nn.Module) -> None:
    """Give a parametrized module a class of its own: it is made for one module, and a copy of that shares it."""
    shared = type(part)
    names = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
    part.__class__ = type(shared.__name__, shared.__bases__, names)


def _store_computed(part: nn.Module, hook: Any, key: int) -> None:
    with torch.no_grad():
        hook.remove(part)
    part._forward_pre_hooks.pop(key, None)


def _require_no_hooks(module: nn.Module) -> None:
    hooked = [
        path for path, part in module.named_modules() if path and (part._forward_hooks or part._forward_pre_hooks)
    ]
    if hooked:
        raise InputError(
            "a folded module gives other values between its layers, which hooks would see",
            where=", ".join(hooked[:_SHOWN]),
            fix="remove the hooks, fold, and register them on the result where that is meant",
        )


def _require_wide(module: nn.Module) -> None:
    narrow = [name for name, tensor in module.state_dict().items() if tensor.dtype in _SIXTEEN]
    if narrow:
        raise InputError(
            "weights in 16 bits would be rounded twice",
            where=", ".join(narrow[:_SHOWN]),
            fix="fold in float32, then round: fold_module(module.float(), ...)[0].half()",
        )
