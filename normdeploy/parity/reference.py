"""What the artefact is compared with: the eager module in its own dtype, and in float64 on the same inputs.

A float64 run is a reference only where nothing in it is rounded to less. Modules cast to float32 themselves
(``x.float()``, ``softmax(..., dtype=torch.float32)``), so casts of a float64 value are kept in float64 while the
reference runs; what rounds in another way, or fails in float64, ends the float64 reference, and is said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from normdeploy.runtime.eager import EagerRunner
from normdeploy.runtime.runner import Runner, first_line
from normdeploy.specs import TensorSpec

Arrays = dict[str, npt.NDArray[Any]]

_NARROW = (torch.float32, torch.float16, torch.bfloat16)


class RoundedError(Exception):
    """An operator rounded a float64 value to a narrower dtype, where no cast could be held back."""


class KeepFloat64(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """While active, an operator that reads float64 is asked for float64 wherever it was asked for less.

    ``widened`` counts those operators. Raises RoundedError where a float64 value becomes a narrower one all the same,
    e.g. written into a float32 tensor.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.widened = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func`` with float64 for every narrower dtype among its arguments, if it reads float64."""
        given = (args, kwargs or {})
        leaves = tree_leaves(given)
        if not any(isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64 for leaf in leaves):
            return func(*args, **given[1])
        if any(_is_narrow_dtype(leaf) for leaf in leaves):
            self.widened += 1
            given = tree_map(lambda leaf: torch.float64 if _is_narrow_dtype(leaf) else leaf, given)
        result = func(*given[0], **given[1])
        if any(isinstance(leaf, torch.Tensor) and leaf.dtype in _NARROW for leaf in tree_leaves(result)):
            raise RoundedError(f"{func} rounds float64 to less")
        return result


def _is_narrow_dtype(leaf: object) -> bool:
    return isinstance(leaf, torch.dtype) and leaf in _NARROW


class Oracle:
    """Eager PyTorch in the deployed dtype and, for as long as it can, in float64; ``notes`` says what it could not.

    ``dtype`` is the one that eager runs in; None leaves the module as it is.
    """

    def __init__(self, module: nn.Module, specs: Sequence[TensorSpec], dtype: torch.dtype | None = None) -> None:
        self.eager: Runner = EagerRunner(module, specs, dtype=dtype)
        self.notes: dict[str, None] = {}
        self._float64: Runner | None = None
        try:
            self._float64 = EagerRunner(module, specs, dtype=torch.float64)
        except Exception as error:  # whatever copying a module's own attributes raises
            self._give_up(f"the module cannot be copied to float64 ({first_line(error)})")

    def exact(self, feed: Mapping[str, npt.NDArray[Any]]) -> Arrays | None:
        """The outputs in float64, or None where the module cannot run in it (from the first failure on)."""
        if self._float64 is None:
            return None
        keep = KeepFloat64()
        try:
            with keep, np.errstate(all="ignore"):
                outputs = self._float64(feed)
        except Exception as error:  # whatever a forward that was not written for float64 raises
            self._give_up(f"the module cannot run in float64 ({first_line(error)})")
            return None
        if keep.widened:
            self.notes["casts to a narrower dtype inside the module were kept in float64 in the reference"] = None
        return outputs

    def _give_up(self, reason: str) -> None:
        self._float64 = None
        self.notes[f"{reason}: judged against eager in its own dtype, with the floor raised"] = None
