"""What no comparison can judge: a module that answers otherwise each time, and whole numbers that hang on a tie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from normdeploy.errors import InputError
from normdeploy.parity.metrics import eps, errors, is_float
from normdeploy.parity.reference import Arrays, Oracle

_SAME_EPS = 256.0
"""How far two runs of one module may lie apart, in ε: threads may add in another order."""
TAKES_ANY = frozenset({"TopK", "NonMaxSuppression"})
"""Operators that may take any first of elements that are equal, or are but for rounding."""
_NUDGE = 1e-6
"""Relative change of an input that decides a tie, and changes nothing else that can be seen."""


def require_repeatable(oracle: Oracle, feed: Mapping[str, npt.NDArray[Any]], first: Arrays) -> None:
    """Raise InputError where eager's outputs on ``feed``, once ``first``, are others when it runs again.

    Its own error, which says what is allowed, would be chance then, and whatever is deployed might pass.
    """
    second = oracle.eager(feed)
    for name, value in first.items():
        if not _same(value, second[name]):
            raise InputError(
                f"the module gives another {name} each time for the same inputs: by chance, or by what it remembers",
                where="eager PyTorch, run twice",
                fix="let forward take random numbers and what it remembers as inputs, and return what is to be kept",
            )


def _same(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> bool:
    if first.shape != second.shape:
        return False
    if not is_float(first.dtype.name):
        return np.array_equal(first, second)
    off = errors(second, first, first.dtype.name)
    return off.finite and off.rms <= _SAME_EPS * max(eps(first.dtype.name), eps("float32"))


def tied(oracle: Oracle, feed: Mapping[str, npt.NDArray[Any]], exact: Arrays, others: Sequence[Arrays | None]) -> str:
    """Return why whole numbers of ``others`` may differ from the module's on ``feed``; empty where they may not.

    They may where the module itself gives others once its inputs move by a millionth: of elements that are equal but
    for what rounding leaves, a sort or a top-k (:data:`TAKES_ANY`) takes any first.
    """
    names = [name for name, value in exact.items() if value.dtype.kind in "iu"]
    differ = [
        name for name in names if any(other is not None and not _equal(other[name], exact[name]) for other in others)
    ]
    if not differ:
        return ""
    nudged = oracle.exact(_nudged(feed))
    hang = [name for name in differ if nudged is not None and not _equal(nudged[name], exact[name])]
    return f"whole numbers of {', '.join(hang)} hang on a tie" if hang == differ else ""


def _equal(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    return one.shape == other.shape and np.array_equal(one, other)


def _nudged(feed: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    generator, moved = np.random.default_rng(0), dict(feed)
    for name, array in feed.items():
        if is_float(array.dtype.name):
            wide = array.astype(np.float64)
            size = float(np.abs(wide).max(initial=0.0)) or 1.0
            step = max(_NUDGE, 4 * eps(array.dtype.name)) * size
            moved[name] = (wide + step * generator.standard_normal(array.shape)).astype(array.dtype)
    return moved
