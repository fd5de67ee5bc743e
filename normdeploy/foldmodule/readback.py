"""A folded graph read back into the module it was exported from: constant by constant, norm by norm.

Every operator of the graph before the fold is looked up in the graph after it, by its name. What each of its constants
is now is one vote on the parameter it came from; what became of a norm is one vote on its module. Where all votes on
one thing agree the module can express it. Where they do not, or where a constant is no parameter, the operator is
refused with a code, and the norms that went into it are to be kept.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import nn

from normdeploy.fold.ledger import Ledger
from normdeploy.foldmodule.graph import constant
from normdeploy.foldmodule.origins import Origin, Origins
from normdeploy.foldmodule.recipe import Recipe
from normdeploy.graph import operator

Array = npt.NDArray[Any]

SCALES, SHIFTS = ("Mul", "Div"), ("Add", "Sub")
"""Operators whose constant is to be 1, or 0, where the fold took them away."""
_NORMS = ("LayerNormalization", "RMSNormalization")
_STATISTICS = ("weight", "bias", "running_mean", "running_var")
_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class Refusal:
    """Why the module cannot express what became of an operator: a code of ``normdeploy explain``, and a sentence."""

    code: str
    reason: str


@dataclass
class _Votes:
    """What the operators say of one parameter: its new value, or None for the one that it has."""

    origin: Origin
    values: dict[str, Array | None] = field(default_factory=dict)


@dataclass(frozen=True)
class _Affine:
    """What stays of a BatchNorm: a scale and a shift a channel; None where it is as it was."""

    scale: Array
    shift: Array

    def equals(self, other: _Affine) -> bool:
        return np.array_equal(self.scale, other.scale) and np.array_equal(self.shift, other.shift)

    @property
    def is_identity(self) -> bool:
        return bool(np.all(self.scale == 1) and not np.any(self.shift))


class Readback:
    """Reads one folded graph back.

    Args:
        module: what was exported.
        before: its graph, see :func:`normdeploy.foldmodule.graph.prepared`.
        labels: name of a node of ``before`` → name of its module.
    """

    def __init__(self, module: nn.Module, before: ir.Model, labels: Mapping[str, str]) -> None:
        self.module, self.before, self.labels = module, before, labels
        self.origins = Origins(module)
        self.refusals: dict[str, Refusal] = {}
        self._votes: dict[tuple[int, str], _Votes] = {}
        self._norms: dict[int, dict[str, _Affine | None]] = defaultdict(dict)
        self._paths: dict[int, str] = {}
        self._gone: dict[str, set[str]] = defaultdict(set)

    def untouchable(self) -> dict[str, Refusal]:
        """Return the operators that no fold may take away, by name: sums, and constants that are no parameter."""
        found: dict[str, Refusal] = {}
        for node in self.before.graph.all_nodes():
            known = [constant(value) for value in node.inputs]
            if operator(node) not in (*SCALES, *SHIFTS, "Sum"):
                continue
            index = next((i for i, tensor in enumerate(known) if tensor is not None), None)
            if index is None:
                found[str(node.name)] = Refusal("NT004", "its branches are modules of their own")
            elif self._origin(node, index) is None and not self._is_leaf(self.labels[str(node.name)]):
                found[str(node.name)] = Refusal("NT002", "its constant is written in the code of forward")
        return found

    def read(self, folded: ir.Model, ledger: Ledger) -> Recipe:
        """Return what makes of the module the ``folded`` graph; what it cannot express is in ``refusals``."""
        self.refusals, self._votes, self._norms, self._gone = {}, {}, defaultdict(dict), defaultdict(set)
        after = {str(node.name): node for node in folded.graph.all_nodes()}
        self._require_known(ledger)
        for node in self.before.graph.all_nodes():
            self._compare(node, after)
        return self._recipe()

    # -- one operator --------------------------------------------------------------------------

    def _require_known(self, ledger: Ledger) -> None:
        """Refuse norms that the fold recognised in operators that are spelled out: forward spells them as ever."""
        known = {str(node.name): node for node in self.before.graph.all_nodes()}
        for entry in ledger:
            node = known.get(entry.node)
            if entry.outcome == "reduced" and entry.norm and (node is None or operator(node) != entry.kind):
                self._refuse(entry.node, "NT003", "it is spelled out in the code of forward")

    def _compare(self, node: ir.Node, after: Mapping[str, ir.Node]) -> None:
        name, now = str(node.name), after.get(str(node.name))
        rest = [other for key, other in after.items() if key.startswith(f"{name}/")]
        if now is not None and (operator(now) != operator(node) or _attributes(now) != _attributes(node)):
            self._refuse(name, "NT004", "another operator stands in its place")
        elif operator(node) == "BatchNormalization":
            self._batch_norm(node, now, rest)
        elif now is not None:
            self._constants(node, now)
        elif any(constant(value) is not None for value in node.inputs):
            self._taken(node, rest)

    def _constants(self, node: ir.Node, now: ir.Node) -> None:
        for index in range(max(len(node.inputs), len(now.inputs))):
            old, new = _array(node, index), _array(now, index)
            if old is not None:
                blank = np.zeros_like(old) if index == 2 else old
                self._vote(node, index, old, blank if new is None else new)
            elif new is not None and index == 2:
                self._new_bias(node, new)
            elif new is not None:
                self._refuse(str(node.name), "NT002", "a weight of it is computed in forward")

    def _vote(self, node: ir.Node, index: int, old: Array, new: Array) -> None:
        same = old.shape == new.shape and np.array_equal(old, new, equal_nan=True)
        origin = self._origin(node, index)
        if origin is None:
            if not same:
                self._refuse(str(node.name), "NT002", "a weight of it is computed in forward")
            return
        if old.shape != new.shape:
            self._refuse(str(node.name), "NT004", "a weight of it would have another shape")
            return
        self._of(origin).values[str(node.name)] = None if same else origin.turned(new)

    def _new_bias(self, node: ir.Node, bias: Array) -> None:
        origin = self._origin(node, 1)
        part: Any = None if origin is None else self.module.get_submodule(origin.path)
        if origin is None or origin.name != "weight" or part._parameters.get("bias", bias) is not None:
            self._refuse(str(node.name), "NT005", "it has no bias that could take the shift")
            return
        self._of(Origin(origin.path, "bias", bias.shape)).values[str(node.name)] = bias

    def _taken(self, node: ir.Node, rest: list[ir.Node]) -> None:
        """Vote for what leaves an operator without effect that the fold took away."""
        name, kind = str(node.name), operator(node)
        index = next(i for i, value in enumerate(node.inputs) if constant(value) is not None)
        origin, old = self._origin(node, index), _array(node, index)
        if kind in _NORMS:  # one of two that became one
            for index in (1, 2):
                if (value := _array(node, index)) is not None:
                    self._vote(node, index, value, np.full_like(value, 1.0 if index == 1 else 0.0))
        elif rest:
            self._refuse(name, "NT004", "a part of it would stay")
        elif kind in (*SCALES, *SHIFTS) and origin is not None and old is not None:
            self._of(origin).values[name] = np.full_like(origin.turned(old), 1.0 if kind in SCALES else 0.0)
        elif kind in (*SCALES, *SHIFTS) and self._is_leaf(self.labels[name]):
            self._gone[self.labels[name]].add(name)
        elif kind not in _MOVERS:
            self._refuse(name, "NT002", "its constant is written in the code of forward")

    def _batch_norm(self, node: ir.Node, now: ir.Node | None, rest: list[ir.Node]) -> None:
        origin, name = self._origin(node, 3), str(node.name)
        same = now is not None and all(
            np.array_equal(_need(node, index), _need(now, index), equal_nan=True) for index in range(1, 5)
        )
        if same:
            affine = None
        elif now is not None:
            affine = _affine([now], len(_need(node, 1)))
        else:
            affine = _affine(rest, len(_need(node, 1)))
        if origin is None or origin.name != "running_mean":
            if not same:
                self._refuse(name, "NT003", "its statistics are no buffers of a module")
            return
        part = self.module.get_submodule(origin.path)
        self._paths.setdefault(id(part), origin.path)
        self._norms[id(part)][name] = affine

    # -- all of them ---------------------------------------------------------------------------

    def _recipe(self) -> Recipe:
        tensors = {key: torch.from_numpy(array.copy()) for key, array in self._agreed()}
        identities, eps = self._leaves(), {}
        for path, affine in self._agreed_norms():
            if affine.is_identity and self._is_alone(path):
                identities.append(path)
            else:
                tensors |= self._neutral(path, affine)
                eps[path] = 0.0
        plain = [path for path in self._layer_norms(tensors) if not self._is_read(path)]
        tensors = {key: tensor for key, tensor in tensors.items() if key.rpartition(".")[0] not in plain}
        return Recipe(tuple(identities), tuple(plain), eps, tensors)

    def _agreed(self) -> Iterator[tuple[str, Array]]:
        for votes in self._votes.values():
            values = list(votes.values.values())
            if all(value is None for value in values):
                continue
            first = values[0]
            if first is None or any(value is None or not np.array_equal(value, first) for value in values):
                changed = [name for name, value in votes.values.items() if value is not None]
                for name in changed:
                    self._refuse(
                        name, "NT001", f"{votes.origin.key} is read at several places, which want other values"
                    )
            else:
                yield votes.origin.key, first

    def _agreed_norms(self) -> Iterator[tuple[str, _Affine]]:
        for key, votes in self._norms.items():
            values = list(votes.values())
            if all(value is None for value in values):
                continue
            first = values[0]
            if first is None or not all(value is not None and value.equals(first) for value in values):
                for name in votes:
                    self._refuse(name, "NT001", "it is called at several places, and could not go at each")
            else:
                yield self._paths[key], first

    def _leaves(self) -> list[str]:
        """The modules that did nothing but what the fold took away."""
        found = []
        for path, gone in self._gone.items():
            stay = {name for name, label in self.labels.items() if label == path} - gone
            if stay or not _takes_one(self.module.get_submodule(path)):
                for name in gone:
                    self._refuse(name, "NT002", "its module does something else as well")
            else:
                found.append(path)
        return found

    def _neutral(self, path: str, affine: _Affine) -> dict[str, torch.Tensor]:
        """Return the tensors with which a BatchNorm, its eps 0, is ``affine`` and nothing else."""
        part: Any = self.module.get_submodule(path)
        values = (affine.scale, affine.shift, np.zeros_like(affine.scale), np.ones_like(affine.scale))
        if not isinstance(getattr(part, "eps", None), float):
            for name in self._norms[id(part)]:
                self._refuse(name, "NT004", "a part of it would stay")
        like = part.running_mean
        return {
            f"{path}.{name}".lstrip("."): torch.from_numpy(value.copy()).to(like.dtype)
            for name, value in zip(_STATISTICS, values, strict=True)
        }

    def _layer_norms(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[str]:
        """Yield the LayerNorms of torch whose scale became 1 and whose bias 0."""
        for path, part in self.module.named_modules():
            if type(part) is not nn.LayerNorm or part.weight is None:
                continue
            names = [f"{path}.{name}".lstrip(".") for name in ("weight", "bias")]
            if names[0] not in tensors or (part.bias is not None and names[1] not in tensors):
                continue
            if bool((tensors[names[0]] == 1).all()) and not (part.bias is not None and bool(tensors[names[1]].any())):
                yield path

    # -- helpers -------------------------------------------------------------------------------

    def _origin(self, node: ir.Node, index: int) -> Origin | None:
        value = node.inputs[index] if index < len(node.inputs) else None
        tensor = constant(value)
        if tensor is None or value is None or not tensor.dtype.is_floating_point():
            return None
        turned = index == 1 and operator(node) == "Gemm" and not _attributes(node).get("transB")
        label = self.labels[str(node.name)]
        return self.origins.of(tensor.numpy(), str(value.name), label, transposed=turned)

    def _of(self, origin: Origin) -> _Votes:
        return self._votes.setdefault(self.origins.owner(origin), _Votes(origin))

    def _refuse(self, name: str, code: str, reason: str) -> None:
        self.refusals.setdefault(name, Refusal(code, reason))

    def _is_leaf(self, path: str) -> bool:
        """Return True for a module without children, which is one operation to those who read the code."""
        return bool(path) and not any(True for _ in self.module.get_submodule(path).children())

    def _is_alone(self, path: str) -> bool:
        """Return True where a norm's module does nothing else than its norm."""
        part = self.module.get_submodule(path)
        if type(part) in _PLAIN:
            return True
        own = [name for name, label in self.labels.items() if label == path]
        return self._is_leaf(path) and set(own) <= set(self._norms[id(part)]) and _takes_one(part)

    def _is_read(self, path: str) -> bool:
        """Return True where a module around it reads the norm's weight itself, as torch's fused attention does."""
        parts = path.split(".")
        around = (self.module.get_submodule(".".join(parts[:count])) for count in range(len(parts)))
        return any(type(part).__module__.startswith("torch.nn.modules.transformer") for part in around)


_MOVERS = ("Reshape", "Transpose", "Identity", "Unsqueeze", "Squeeze", "Expand", "Slice", "Gather", "Cast")
"""What only moves elements, by constants that are no weights; where it is gone it changed nothing."""


def _takes_one(part: nn.Module) -> bool:
    parameters = [p for p in inspect.signature(part.forward).parameters.values() if p.default is p.empty]
    return len(parameters) == 1


def _array(node: ir.Node, index: int) -> Array | None:
    tensor = constant(node.inputs[index]) if index < len(node.inputs) else None
    return None if tensor is None else tensor.numpy()


def _need(node: ir.Node, index: int) -> Array:
    array = _array(node, index)
    return np.empty(0) if array is None else array


def _attributes(node: ir.Node) -> dict[str, Any]:
    """Return its attributes, without bodies, whose operators are compared one by one.

    Without ``beta`` of a Gemm too, where that is 1, as it is where none is stated.
    """
    bodies = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return {
        name: attr.value
        for name, attr in node.attributes.items()
        if attr.type not in bodies and (name, attr.value) != ("beta", 1.0)
    }


def _affine(nodes: list[ir.Node], channels: int) -> _Affine:
    """Return what a row of operators that stand for one norm do to a channel."""
    scale, shift = np.ones(channels), np.zeros(channels)
    for node in nodes:
        if operator(node) == "BatchNormalization":
            gamma, beta, mean, variance = (_need(node, index).astype(np.float64) for index in range(1, 5))
            factor = gamma / np.sqrt(variance + node.attributes["epsilon"].as_float())
            scale, shift = scale * factor, shift * factor + beta - factor * mean
            continue
        values = next(array for i in range(2) if (array := _array(node, i)) is not None).astype(np.float64).reshape(-1)
        if operator(node) == "Mul":
            scale, shift = scale * values, shift * values
        else:
            shift = shift + values
    return _Affine(scale, shift)
