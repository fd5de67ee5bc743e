"""Equal elements in the order that ONNX has for them: the first one first."""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

from normdeploy.runtime.widths import run_under

_ATEN = torch.ops.aten
_SORTS = (_ATEN.sort.default, _ATEN.sort.stable, _ATEN.topk.default, _ATEN.argsort.default, _ATEN.argsort.stable)


class FirstOfEqual(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """While active, sort and topk take the first of equal elements first, as ONNX's TopK does.

    PyTorch takes any, unless it is asked for a stable sort: which one differs between processors, sizes and dtypes. Of
    ``topk(sorted=False)`` it leaves the whole order open, which is that of the values here. ``chose`` is True once its
    own choice was another. What is taken has the same values, so a graph that takes other values differs from this as
    from PyTorch's own.
    """

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.chose = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func``, stable where it sorts."""
        if isinstance(func, HigherOrderOperator):
            return run_under(self, func, args, kwargs)
        own = func(*args, **(kwargs or {}))
        if func not in _SORTS or args[0].dim() == 0:
            return own
        names = [argument.name for argument in func._schema.arguments]
        given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
        dim, descending = given.get("dim", -1), given.get("descending", given.get("largest", "k" in given))
        values, indices = _ATEN.sort.stable(given["self"], stable=True, dim=dim, descending=descending)
        if "k" in given:
            values, indices = (each.narrow(dim, 0, given["k"]) for each in (values, indices))
        alone = isinstance(own, torch.Tensor)  # argsort's
        self.chose |= not torch.equal(indices, own if alone else own[1])
        return indices if alone else (values, indices)
