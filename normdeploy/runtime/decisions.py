"""Decisions of a module in float64 that no real input has a part in, taken as in the module's own dtype.

``floor(torch.arange(60) / 1.7)``, the bucket of a distance, the nearest cell of a resized image: where such a number
lies at an edge, float32 rounds it to one side and float64 to the other. The module in float64 then reads another cell
than the module does, and is no reference for it. So each value that depends on sizes, constants and weights alone is
computed twice, in float64 and, as its twin, in the dtype that the code gives it. What is continuous is taken from the
first; a comparison, a whole number, or an operator that jumps (:data:`JUMPS`) from the twin.

This hides no fault of a graph. Its run in float64 takes its decisions in its own types, by its own operators
(:mod:`normdeploy.runtime.float64.decisions`), and knows nothing of these: where the two differ, they differ by whole
cells, and the graph fails. What an input has a part in is decided in float64 on both sides, as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from normdeploy.runtime.dtypes import is_real, is_wide

JUMPS = frozenset(
    {"floor", "ceil", "round", "trunc", "fix", "frac", "fmod", "remainder", "floor_divide", "sign", "sgn", "heaviside"}
)
"""Operators of real results that jump where their inputs do not, by their names in ATen."""
_LARGEST = torch.finfo(torch.float32).max


class Decisions:
    """The twins of real values, for as long as those live.

    Args:
        weights: parameters and buffers that hold float64 values, and the dtypes that they have themselves.
        default: torch's default dtype as it is where the module runs by itself.
    """

    def __init__(self, weights: Mapping[torch.Tensor, torch.dtype], default: torch.dtype) -> None:
        self._weights, self._default = dict(weights), default
        self._twins: MutableMapping[torch.Tensor, torch.Tensor] = WeakTensorKeyDictionary()

    def taken(self, func: Any, given: tuple[Any, Any], result: Any) -> Any:
        """Return ``result``, of ``func`` run in float64 on what was ``given``, with the decisions of its twin."""
        read = [leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor)]
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        if not any(is_wide(tensor.dtype) for tensor in (*read, *made)):
            return result
        written = list(_written(func, given))
        if (
            torch.Tag.nondeterministic_seeded in func.tags
            or any(self._twin(tensor) is None for tensor in read)
            or not all(is_wide(tensor.dtype) and not _sharing(tensor, self._weights) for tensor in written)
        ):
            self._forget(written)
            return result
        try:
            twin = self._run(func, given)
        except Exception:  # whatever has no kernel in that dtype is decided in float64
            self._forget(written)
            return result
        jumps = func._schema.name.partition("::")[2].rstrip("_") in JUMPS or _rounds(given)
        return tree_map(lambda value, own: self._decided(value, own, jumps), result, twin)

    def met(self, func: Any, given: tuple[Any, Any], rounded: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        """Return what was ``given`` to ``func`` with its constants rounded, where an input has a part in the rest.

        These are the constants of a graph: its weights, what it stores evaluated (a standardized weight, a table of
        positions), and the numbers of the code. ``rounded`` is asked for each tensor, computed in its own dtype; a
        number becomes the nearest of float32.
        """
        read = [leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor)]
        if all(self._twin(tensor) is not None for tensor in read):
            return given
        written = {id(tensor) for tensor in _written(func, given)}

        def constant(leaf: Any) -> Any:
            if isinstance(leaf, float) and abs(leaf) <= _LARGEST:
                return torch.tensor(leaf, dtype=torch.float32).item()
            if not isinstance(leaf, torch.Tensor) or not is_real(leaf.dtype) or id(leaf) in written:
                return leaf
            twin = self._twin(leaf)
            return leaf if twin is None else rounded(twin)

        with_constants = tree_map(constant, given)
        if "upsample" in func._schema.name and _sizes(func, with_constants) != _sizes(func, given):
            return given  # a size is Python's
        return with_constants

    def _twin(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """Return ``tensor`` in its own dtype; None where an input has a part in it."""
        if not is_wide(tensor.dtype):
            return tensor
        if tensor in self._weights:
            return tensor.to(self._weights[tensor])
        return self._twins.get(tensor)

    def _run(self, func: Any, given: tuple[Any, Any]) -> Any:
        args, kwargs = tree_map(lambda leaf: self._twin(leaf) if isinstance(leaf, torch.Tensor) else leaf, given)
        before = torch.get_default_dtype()
        torch.set_default_dtype(self._default)
        try:
            return func(*args, **kwargs)
        finally:
            torch.set_default_dtype(before)

    def _decided(self, value: Any, twin: Any, jumps: bool) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if not is_real(value.dtype):
            return twin
        if value.shape == twin.shape:
            self._twins[value] = twin
            if jumps:
                value.copy_(twin)
        return value

    def _forget(self, written: list[torch.Tensor]) -> None:
        """Forget the twins of what shares its memory with a tensor that an input was ``written`` into."""
        for tensor in written:
            if is_wide(tensor.dtype) and self._twin(tensor) is not None:
                for known in (self._weights, self._twins):
                    for other in _sharing(tensor, known):
                        del known[other]


def _sharing(tensor: torch.Tensor, known: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Return those of ``known`` that share their memory with ``tensor``."""
    memory = tensor.untyped_storage()._cdata
    return [each for each in known if each.untyped_storage()._cdata == memory]


def _written(func: Any, given: tuple[Any, Any]) -> Iterator[torch.Tensor]:
    """Return the tensors among what was ``given`` that ``func`` writes into."""
    args, kwargs = given
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _sizes(func: Any, given: tuple[Any, Any]) -> torch.Size:
    """Return the shape of what ``func`` makes, without making it."""
    args, kwargs = tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, torch.Tensor) else leaf, given)
    made: torch.Size = func(*args, **kwargs).shape
    return made


def _rounds(given: tuple[Any, Any]) -> bool:
    return given[1].get("rounding_mode") is not None


def nearest(func: Any, x: torch.Tensor, *how: Any) -> torch.Tensor:
    """Return ``func``, a resizing of ``x`` to its nearest cells, that takes the cells which it takes in float32.

    ``x`` is [N, C, *sizes] in float64. What is resized in its place are the cells' own places, exact in float32.
    """
    places = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in x.shape[2:]), indexing="ij"))
    cells = func(places[None], *how)[0].long()
    return x[(..., *cells)]
