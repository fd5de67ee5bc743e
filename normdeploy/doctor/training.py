"""Training mode: what is deployed is the module in eval, and no norm is switched there behind the user's back.

A fresh module is in training mode as a whole; that says nothing, so it is put into eval. A norm in training mode inside
a module that already was in eval, or one that stays there after ``eval()``, was left so by somebody: it normalizes
with the statistics of its batch, and an exporter would quietly write its running ones instead.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from normdeploy.doctor.findings import called
from normdeploy.doctor.inventory import norms
from normdeploy.errors import InputError, listed

_SHOWN = 10


def require_eval(module: nn.Module, *, force: bool) -> tuple[str, ...]:
    """Put ``module`` into eval mode, in place, and return notes on what had to be done for that.

    With ``force`` a norm that was left in training mode is put into eval too, with a note.
    Raises InputError that names the norms otherwise, and where one cannot be put into eval at all.
    """
    notes = []
    if module.training:
        module.eval()
        notes.append("the factory's module was in training mode as a whole: put into eval mode")
    left = [norm.name for norm in norms(module) if norm.training]
    if left and not force:
        raise _refusal(left)
    others = _training(module, except_for=left)
    module.eval()
    if left:
        _force_eval(module, left)
        notes.append(f"forced into eval mode: {_listed(left)}")
    stuck = _training(module)
    if switched := [name for name in others if name not in stuck]:
        notes.append(f"in training mode inside a module in eval mode, now in eval too: {_listed(switched)}")
    if stuck:
        notes.append(f"still in training mode after eval(): {_listed(stuck)}")
    return tuple(notes)


def _training(module: nn.Module, except_for: Sequence[str] = ()) -> list[str]:
    return [name for name, part in module.named_modules() if part.training and name not in except_for]


def _refusal(left: Sequence[str]) -> InputError:
    many = len(left) > 1
    return InputError(
        f"{len(left)} norm{'s are' if many else ' is'} in training mode inside a module in eval mode, "
        "and would normalize with the statistics of each batch",
        where=_listed(left),
        fix="call .eval() on it in the factory, or pass --force-eval to deploy its running statistics",
    )


def _force_eval(module: nn.Module, names: Sequence[str]) -> None:
    for name in names:
        for part in module.get_submodule(name).modules():
            part.training = False
    if stuck := [norm.name for norm in norms(module) if norm.training]:
        raise InputError(
            "a norm cannot be put into eval mode: its class decides its training mode itself",
            where=_listed(stuck),
            fix="let its class keep nn.Module's training attribute, or replace it in the factory",
        )


def _listed(names: Sequence[str]) -> str:
    return listed(map(called, names), _SHOWN)
