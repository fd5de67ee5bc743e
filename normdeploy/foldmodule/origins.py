"""Which parameter of a module a constant of its exported graph is: by value, and by name where several are alike.

A name alone proves nothing: a weight that is computed from one parameter bears the parameter's name in the graph.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from normdeploy.runtime.eager import array_of

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Origin:
    """A parameter or buffer of a module.

    Attributes:
        path: dotted name of the module that holds it.
        name: of the attribute.
        shape: its own.
        transposed: whether the graph has the transpose of it, a matrix.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    transposed: bool = False

    @property
    def key(self) -> str:
        """Return its name in the state dict."""
        return f"{self.path}.{self.name}" if self.path else self.name

    def turned(self, array: Array) -> Array:
        """Return ``array``, which is laid out as the constant of the graph, in the parameter's own layout."""
        return np.ascontiguousarray(array.T if self.transposed else array.reshape(self.shape))

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Return True where a constant of ``shape`` with its values can be it: reshaped, but no matrix turned."""
        if self.transposed:
            return shape == self.shape[::-1]
        return shape == self.shape or len(shape) != 2 or len(self.shape) != 2


class Origins:
    """The parameters and buffers of ``module``, to be found by their values."""

    def __init__(self, module: nn.Module) -> None:
        self._owners = {id(part): path for path, part in reversed(list(module.named_modules(remove_duplicate=False)))}
        self._module = module
        self._known: dict[tuple[object, ...], list[Origin]] = defaultdict(list)
        for path, part in module.named_modules(remove_duplicate=False):
            tensors = [*part.named_parameters(recurse=False, remove_duplicate=False)]
            tensors += [*part.named_buffers(recurse=False, remove_duplicate=False)]
            for name, tensor in tensors:
                self._enter(path, name, tensor)

    def _enter(self, path: str, name: str, tensor: Tensor) -> None:
        if not tensor.is_floating_point():
            return
        array = array_of(tensor)
        self._known[_digest(array)].append(Origin(path, name, array.shape))
        if array.ndim == 2:
            self._known[_digest(array.T)].append(Origin(path, name, array.shape, transposed=True))

    def of(self, array: Array, name: str, label: str, *, transposed: bool | None = None) -> Origin | None:
        """Return what the constant ``name`` is, read by the module ``label``; None where that is not certain.

        ``transposed`` says which of the two a matrix must be that is its own transpose.
        """
        found = [each for each in self._known.get(_digest(array), []) if each.fits(array.shape)]
        for choice in (
            [each for each in found if each.path == label],
            [each for each in found if each.key == name],
            found,
        ):
            if transposed is not None and len({each.transposed for each in choice}) > 1:
                choice = [each for each in choice if each.transposed is transposed]
            if named := [each for each in choice if each.key == name]:
                choice = named
            if choice and len({(self.owner(each), each.transposed) for each in choice}) == 1:
                return choice[0]
        return None

    def owner(self, origin: Origin) -> tuple[int, str]:
        """Return what tells the parameter apart from all others, by whatever name its module is reached."""
        return id(self._module.get_submodule(origin.path)), origin.name


def _digest(array: Array) -> tuple[object, ...]:
    content = np.ascontiguousarray(array)
    digest = hashlib.blake2b(content.reshape(-1).view(np.uint8).data, digest_size=16).digest()
    return array.dtype.name, array.size, digest
