"""What a fold does to a module, as data: which modules become Identity, which tensors are other ones, which are new.

It travels in the header of a safetensors file, so that the architecture a user has can be made the folded one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Recipe:
    """The changes to a module, by the names of its modules and of its state dict.

    Attributes:
        identities: modules in whose place stands ``nn.Identity``.
        plain: LayerNorms without scale and bias.
        eps: norms with another eps.
        tensors: state-dict name → the tensor in the place of what was there, or a new one, as biases are.
    """

    identities: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    eps: Mapping[str, float] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def applied(self, module: nn.Module) -> nn.Module:
        """Change ``module`` in place and return it, or what stands in its place where it is itself a norm."""
        for key, tensor in self.tensors.items():
            path, _, name = key.rpartition(".")
            _set(module.get_submodule(path), name, tensor)
        for path in (*self.plain, *self.eps):
            part: Any = module.get_submodule(path)
            if path in self.plain:
                part.weight, part.bias, part.elementwise_affine = None, None, False
            else:
                part.eps = self.eps[path]
        gone = {id(module.get_submodule(path)) for path in self.identities}
        for parent in list(module.modules()):
            for name, child in list(parent._modules.items()):  # a module that is reached by several names, by each
                if child is not None and id(child) in gone:
                    parent._modules[name] = nn.Identity().train(child.training)
        return nn.Identity().train(module.training) if id(module) in gone else module

    def to_json(self) -> str:
        """Return all of it but the tensors' values, which are in the file that it describes."""
        told = {"identities": self.identities, "plain": self.plain, "eps": dict(self.eps), "tensors": [*self.tensors]}
        return json.dumps(told, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, tensors: Mapping[str, Tensor]) -> Recipe:
        """Return the inverse of :meth:`to_json`, with ``tensors`` by their names in the state dict.

        Raises ValueError where the text is none of ours, KeyError for a tensor that is not there.
        """
        told = json.loads(text)
        if not isinstance(told, dict) or set(told) != {"identities", "plain", "eps", "tensors"}:
            raise ValueError("not what a fold did to a module")
        eps = {str(name): float(value) for name, value in dict(told["eps"]).items()}
        chosen = {str(name): tensors[str(name)] for name in told["tensors"]}
        return cls(tuple(map(str, told["identities"])), tuple(map(str, told["plain"])), eps, chosen)


def _set(part: nn.Module, name: str, tensor: Tensor) -> None:
    if name in part._buffers:
        part._buffers[name] = tensor
    else:
        part.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
