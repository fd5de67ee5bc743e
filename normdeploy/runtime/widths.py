"""A module in another width than its own: its tensors swapped for as long as it runs, its operators watched.

Nothing is copied but tensors, so a module that holds a lock or a generator can be run in float64 too, and hooks see the
module that they were put on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._ops import HigherOrderOperator
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from normdeploy.runtime.decisions import Decisions, nearest
from normdeploy.runtime.dtypes import is_wide, widened

Convert = Callable[[torch.Tensor], torch.Tensor]


class RoundedError(Exception):
    """An operator rounded a float64 value to a narrower dtype, where no cast could be held back."""


class KeepFloat64(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """While active, every real value that an operator makes is float64, and every complex one complex128.

    A narrower dtype among the arguments is replaced by the wide one; a narrower tensor that meets a wide one, such as a
    plain attribute of a module, is widened. ``widened`` counts the casts of wide values that were held back. Raises
    RoundedError where a wide value becomes a narrower one all the same, e.g. written into a float32 tensor, and where
    its bits are read. Decisions that no input has a part in are those of the module's own dtype
    (:mod:`normdeploy.runtime.decisions`): ``weights`` are its parameters and buffers, which hold float64 values, with
    the dtypes that they have themselves, and ``default`` is torch's default dtype outside. With ``constants``, all that
    depends on no input becomes what that makes of it, where it meets something that does.
    """

    supports_higher_order_operators = True

    def __init__(
        self, weights: Mapping[torch.Tensor, torch.dtype], default: torch.dtype, constants: Convert | None = None
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.widened, self._constants = 0, constants
        self._decisions = Decisions(weights, default)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func`` with the wide dtype for every narrower one among its arguments."""
        if isinstance(func, HigherOrderOperator):
            return run_under(self, func, args, kwargs)
        given = (args, kwargs or {})
        leaves = tree_leaves(given)
        reads_wide = any(isinstance(leaf, torch.Tensor) and is_wide(leaf.dtype) for leaf in leaves)
        if reads_wide and func is torch.ops.aten.view.dtype:
            raise RoundedError("forward reads the bits of its values, which are others in float64")
        if any(_is_narrow_dtype(leaf) for leaf in leaves):
            self.widened += reads_wide
            given = tree_map(lambda leaf: widened(leaf) if isinstance(leaf, torch.dtype) else leaf, given)
        if reads_wide:
            given = tree_map(_wide_tensor, given) if not _writes_narrow(func, given[0]) else given
            if "upsample_nearest" in func._schema.name:
                return nearest(func, *given[0], *given[1].values())
            if self._constants is not None:
                given = self._decisions.met(func, given, self._constants)
        result = func(*given[0], **given[1])
        if reads_wide and any(_is_narrow(leaf) for leaf in tree_leaves(result)):
            raise RoundedError(f"{func} rounds float64 to less")
        return self._decisions.taken(func, (args, kwargs or {}), result)


class OwnEpsilon(TorchFunctionMode):
    """While active, an RMSNorm without an epsilon in float64 takes the one that it has in ``dtype``, the module's own.

    ``torch.nn.functional.rms_norm`` takes that of the dtype it is given: 1.2e-7 in float32 and 2.2e-16 in float64,
    which is another function where what it normalizes is small.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._epsilon = torch.finfo(dtype).eps

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func``."""
        if func not in (torch.rms_norm, nn.functional.rms_norm):
            return func(*args, **(kwargs or {}))
        given = {**dict(zip(("input", "normalized_shape", "weight", "eps"), args, strict=False)), **(kwargs or {})}
        if given.get("eps") is None and is_wide(given["input"].dtype):
            given["eps"] = self._epsilon
        return func(**given)


def run_under(
    mode: TorchDispatchMode, func: HigherOrderOperator, args: tuple[Any, ...], kwargs: dict[str, Any] | None
) -> Any:
    """Run ``func``, such as torch.cond's, with the bodies among its arguments under ``mode`` as all around it."""

    def under(body: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            with mode:
                return body(*given, **named)

        return run

    given, named = tree_map(lambda leaf: under(leaf) if callable(leaf) else leaf, (args, kwargs or {}))
    return func(*given, **named)


def _is_narrow_dtype(leaf: object) -> bool:
    return isinstance(leaf, torch.dtype) and widened(leaf) != leaf


def _is_narrow(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) and widened(leaf.dtype) != leaf.dtype


def _wide_tensor(leaf: Any) -> Any:
    return leaf.to(widened(leaf.dtype)) if _is_narrow(leaf) else leaf


def _writes_narrow(func: Any, args: tuple[Any, ...]) -> bool:
    """Return True if ``func`` writes into a narrow tensor, which a widened copy of it would not reach."""
    arguments = func._schema.arguments
    written = [arg for arg, of in zip(args, arguments, strict=False) if of.alias_info and of.alias_info.is_write]
    return any(_is_narrow(leaf) for leaf in tree_leaves(written))


class RoundResults(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """While active, each float32 value that an operator makes is rounded to ``dtype``, and stays a float32 tensor.

    It stands in for a module in 16 bits where that does not run on the CPU: what an operator adds up is float32, as
    in the kernels of torch and of a GPU, and what it hands on has 16 bits.
    """

    supports_higher_order_operators = True

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dtype = dtype

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run ``func`` and round what it made; a view is rounded already."""
        if isinstance(func, HigherOrderOperator):
            return run_under(self, func, args, kwargs)
        result = func(*args, **(kwargs or {}))
        written = [of.alias_info.is_write if of.alias_info else None for of in func._schema.returns]
        if len(written) == 1 and written[0] is not None:
            if written[0] and isinstance(result, torch.Tensor) and result.dtype == torch.float32:
                result.copy_(self._rounded(result))
            return result
        return tree_map(lambda leaf: self._rounded(leaf) if _is_float32(leaf) else leaf, result)

    def _rounded(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._dtype).to(torch.float32)


def _is_float32(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float32


@contextmanager
def swapped(module: nn.Module, made: dict[torch.Tensor, torch.Tensor]) -> Iterator[None]:
    """Let each parameter and buffer of ``module`` hold what ``made`` has for it; afterwards its own again."""
    own = [(tensor, tensor.data) for tensor in made]
    try:
        for tensor, data in made.items():
            tensor.data = data
        yield
    finally:
        for tensor, data in own:
            tensor.data = data


def converted(module: nn.Module, convert: Convert) -> dict[torch.Tensor, torch.Tensor]:
    """Return what ``convert`` makes of each parameter and buffer; tied ones are one."""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    with torch.no_grad():
        return {tensor: convert(tensor.detach()).clone() for tensor in tensors.values()}


def to_dtype(dtype: torch.dtype) -> Convert:
    """Return what casts real tensors to ``dtype`` and, where that is float64, complex ones to complex128."""

    def convert(tensor: torch.Tensor) -> torch.Tensor:
        if dtype == torch.float64 and tensor.is_complex():
            return tensor.to(torch.complex128)
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return convert


def rounded_to(dtype: torch.dtype, into: torch.dtype, draw: int = 0) -> Convert:
    """Return what rounds real tensors to ``dtype`` and holds them in ``into``.

    Draw 0 rounds to nearest; another one moves each value that ``dtype`` can hold, or rounds to, by up to half a unit
    in its last place, at random, which is what one more rounding of a weight does.
    """
    generator = torch.Generator().manual_seed(draw)

    def convert(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_complex():
            return torch.view_as_complex(convert(torch.view_as_real(tensor.resolve_conj())))
        if not tensor.is_floating_point():
            return to_dtype(into)(tensor)
        nearest = tensor.to(dtype).to(into)
        if not draw or tensor.numel() < 2:
            return nearest
        unit = torch.finfo(dtype).eps * torch.exp2(torch.floor(torch.log2(nearest.abs().clamp_min(1e-300))))
        share = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.5
        return torch.where(nearest.isfinite(), nearest + unit * share.to(into), nearest)

    return convert
