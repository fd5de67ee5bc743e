"""Reading a graph the same way at every opset: constants, shapes, parameters that moved from attribute to input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import Array
from normdeploy.fold.graph.alone import alone, computed, is_evaluated
from normdeploy.fold.graph.growth import Allowance
from normdeploy.fold.graph.recent import Recent
from normdeploy.fold.operators import basics
from normdeploy.graph import is_of_onnx, label, operator

Dim = int | str | None
"""A known size, the name of a symbolic one, or None where nothing is known."""

_FLOATS = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE}
_DEEPEST = 20
"""How many weights that are made anew may wait for each other: they are evaluated one inside the other."""


_MODEL, _INSIDE = "the model", "the body or function that it is in"

INFER = "run onnx shape inference on the model"
"""What helps where a rank or shape is not known."""

FAILED_PROOFS = frozenset({"NF401", "NF402", "NF403", "NF404"})
"""The codes of proofs that did not hold."""


class Refused(Exception):
    """Why a map does not pass or a plan does not hold.

    Attributes:
        codes: the code of the kind of refusal, then those of what it sums up.
        reason: what is wrong, and at which node.
        fix: what would change it; may be empty.
        is_failed_proof: a rule asked for what its proof refuses.
    """

    def __init__(
        self, code: str, reason: str, node: ir.Node | None = None, fix: str = "", *, sums_up: Iterable[str] = ()
    ) -> None:
        self.codes = (code, *dict.fromkeys(sums_up))
        self.reason = f"{reason} ({operator(node)} {label(node)})" if node is not None else reason
        self.fix = fix
        self.is_failed_proof = code in FAILED_PROOFS
        super().__init__(self.reason)


@dataclass
class View:
    """What one graph (or function body) says, read through the eyes of its opset."""

    opset: int
    ir_version: int
    unrounded: dict[ir.Value, Array] = field(default_factory=dict)
    main: ir.Graph | None = None
    allowance: Allowance = field(default_factory=Allowance)
    recent: Recent = field(default_factory=Recent)
    gelus: frozenset[ir.Node] = frozenset()
    tails: frozenset[ir.Node] = frozenset()
    _constants: dict[ir.Value, ir.TensorProtocol | None] = field(default_factory=dict)
    _depths: dict[ir.Value, int] = field(default_factory=dict)

    def renewed(self) -> View:
        """Return a view of the same graph after it was changed: what was found to be constant is so still."""
        kept: dict[ir.Value, ir.TensorProtocol | None] = {v: t for v, t in self._constants.items() if t is not None}
        return replace(self, recent=Recent(), _constants=kept)

    # -- constants -----------------------------------------------------------------------------

    def constant(self, value: ir.Value | None) -> ir.TensorProtocol | None:
        """Return the tensor ``value`` always holds, or None: an initializer, a Constant, or a subgraph of them."""
        if value is None:
            return None
        for each in self._unsettled(value):
            self._constants[each] = self._find_constant(each)
        return self._constants[value]

    def _unsettled(self, value: ir.Value) -> Iterator[ir.Value]:
        """Return what has to be found before ``value``, and then itself, each behind what it is computed from; no
        recursion.

        Where one thing that it is computed from is not constant, the others are not asked for.
        """
        stack = [(value, self._asked(value), 0)] if value not in self._constants else []
        while stack:
            top, asked, at = stack.pop()
            while at < len(asked) and self._constants.get(asked[at]) is not None:
                at += 1
            if at < len(asked) and asked[at] not in self._constants:
                stack += [(top, asked, at), (asked[at], self._asked(asked[at]), 0)]
            else:
                yield top

    def _asked(self, value: ir.Value) -> list[ir.Value]:
        """Return the values that ``value`` would be evaluated from, if it is evaluated at all."""
        node = value.producer()
        if value.is_graph_input() or value.const_value is not None or node is None or not is_evaluated(node):
            return []
        return [item for item in node.inputs if item is not None]

    def told_output(self, value: ir.Value) -> str:
        """Return what is said of ``value``, an output of its graph."""
        inside = self.main is not None and all(value is not out for out in self.main.outputs)
        return f"{value.name} is an output of {_INSIDE if inside else _MODEL}"

    def told_input(self, value: ir.Value) -> str:
        """Return what is said of ``value``, an input of its graph."""
        inside = self.main is not None and all(value is not item for item in self.main.inputs)
        return f"{value.name} is an input of {_INSIDE if inside else _MODEL}"

    def is_overridable(self, value: ir.Value | None) -> bool:
        """Return whether ``value`` is an input with a default value, which a caller may override."""
        return value is not None and value.is_graph_input() and value.const_value is not None and self.ir_version >= 4

    def not_constant(self, what: str, node: ir.Node, *values: ir.Value | None) -> Refused:
        """Return the refusal of ``what``, that is not constant: ``values``, which may be inputs with a default."""
        named = [str(value.name) for value in values if value is not None and self.is_overridable(value)]
        if not named:
            return Refused("NF101", f"{what} not constant", node)
        reason = f"{what} not constant: {', '.join(named)} is an input of the model, which a caller may override"
        return Refused(
            "NF102", reason, node, f"fold with --inputs-are-constants {' '.join(named)}, where no caller does"
        )

    def is_constant(self, value: ir.Value | None) -> bool:
        """Return True if :meth:`constant` finds a tensor."""
        return self.constant(value) is not None

    def array(self, value: ir.Value | None) -> np.ndarray | None:
        """Return the constant as a numpy array in its own dtype, or None."""
        tensor = self.constant(value)
        return None if tensor is None else tensor.numpy()

    def exact(self, value: ir.Value | None) -> Array | None:
        """Return the constant in float64: as it was computed where an edit has not been rounded yet, else as stored."""
        if value in self.unrounded:
            return self.unrounded[value]
        array = self.array(value)
        return None if array is None else array.astype(np.float64)

    def forget(self, value: ir.Value) -> None:
        """Read ``value`` anew the next time: its constant was replaced."""
        self._constants.pop(value, None)

    def _find_constant(self, value: ir.Value) -> ir.TensorProtocol | None:
        if value.is_graph_input() and self.ir_version >= 4:
            return None  # from IR version 4 on, an initializer that is also an input is a default, not a constant
        if value.const_value is not None:
            return value.const_value
        node = value.producer()
        if node is None or not is_of_onnx(node) or any(attr.is_ref() for attr in node.attributes.values()):
            return None  # what a call of the function around it says is not known here
        if operator(node) == basics.CONSTANT:
            return _constant_tensor(node, value)
        return self._bias(node) if basics.is_quantized(node) else self._evaluated(node, value)

    def _bias(self, node: ir.Node) -> ir.TensorProtocol | None:
        """Return what a bias of 32-bit integers stands for: they have no zero point, and are as large as floats."""
        codes, scale = (self.constant(value) for value in node.inputs[:2])
        if codes is None or scale is None or codes.dtype != ir.DataType.INT32:
            return None
        if len(node.inputs) > 2 and node.inputs[2] is not None and np.any(self.array(node.inputs[2]) != 0):
            return None
        factor, axis = scale.numpy().astype(np.float64), self.attr(node, "axis", 1)
        if factor.size > 1 and codes.shape.rank() > 1:
            factor = np.moveaxis(factor.reshape((-1,) + (1,) * (codes.shape.rank() - 1)), 0, axis)
        return ir.tensor((codes.numpy() * factor).astype(scale.dtype.numpy()), dtype=scale.dtype)

    def _evaluated(self, node: ir.Node, value: ir.Value) -> ir.TensorProtocol | None:
        if not is_evaluated(node):
            return None
        given = [item for item in node.inputs if item is not None]
        if operator(node) == basics.CAST_LIKE and given[0] is not value and given[1].dtype is not None:
            return self._cast_like(given[0], given[1].dtype)
        if operator(node) == basics.SHAPE and (sizes := self._certain_sizes(given[0])) is not None:
            return ir.tensor(sizes[slice(self.attr(node, "start", 0), self.attr(node, "end"))], name=value.name)
        if not given or not all(self.is_constant(item) for item in given):
            return None
        # The node is gone when an edit of its result is written, so what it computes from is held here.
        tensors = {str(item.name): tensor for item in given if (tensor := self.constant(item)) is not None}
        model, name = alone(node, self.opset), str(value.name)

        def evaluate(*, anew: bool = True) -> ir.TensorProtocol:
            feeds: dict[str, Any] = {key: tensor.numpy() for key, tensor in tensors.items()}
            if not anew and not self.allowance.allows(model, feeds, given):
                raise ValueError("it would be too large")
            return ir.tensor(computed(model, name, feeds), name=name)

        depth = 1 + max(self._depths.get(item, 0) for item in given)
        is_moved = operator(node) in basics.MOVED_LAZILY and value.dtype in _FLOATS and depth <= _DEEPEST
        if is_moved and value.dtype is not None and value.shape and value.shape.is_static():
            self._depths[value] = depth
            # A large weight behind a Transpose or Cast is not held twice: it is made anew whenever it is read.
            return ir.LazyTensor(evaluate, dtype=value.dtype, shape=value.shape, name=name)
        try:
            return evaluate(anew=False)
        except Exception:  # it is not known what runtimes make of it: then it is no constant to us
            return None

    def _certain_sizes(self, value: ir.Value) -> np.ndarray | None:
        """Return the sizes of ``value``, an input of the model, if it has them always.

        What follows from those was evaluated when the model was cleaned.
        """
        is_input = value.is_graph_input() and value.graph is self.main
        if not is_input or value.shape is None or not value.shape.is_static():
            return None
        return np.array(value.shape.numpy(), np.int64)

    def _cast_like(self, value: ir.Value, dtype: ir.DataType) -> ir.TensorProtocol | None:
        array = self.array(value)
        return None if array is None else ir.tensor(array.astype(dtype.numpy()), dtype=dtype)

    # -- shapes --------------------------------------------------------------------------------

    def shape(self, value: ir.Value | None) -> tuple[Dim, ...] | None:
        """Return the shape of ``value``: sizes, names, None per unknown axis; None where not even the rank is known."""
        if value is None:
            return None
        while value.shape is None and (maker := value.producer()) is not None:
            if not basics.is_quantized(maker) or maker.inputs[0] is None:
                break
            value = maker.inputs[0]
        is_known = value.shape is not None and value.shape.is_static()
        tensor = None if is_known else self.constant(value)  # inference may know less of it
        shape = tensor.shape if tensor is not None else value.shape
        if shape is None:
            return None
        sizes = (dim if isinstance(dim, int) else dim.value for dim in shape)
        return tuple(None if isinstance(size, int) and size < 0 else size for size in sizes)  # Paddle declares -1

    def rank(self, value: ir.Value) -> int | None:
        """Return the number of axes of ``value``, also where its shape is unknown but a neighbour tells."""
        shape = self.shape(value)
        return len(shape) if shape is not None else self._rank_from_neighbours(value)

    def _rank_from_neighbours(self, value: ir.Value) -> int | None:
        """Return the rank that Conv and ConvTranspose share with their weight on both sides, or that norms keep."""
        seen: set[ir.Value] = set()
        while value not in seen:
            seen.add(value)
            node = value.producer()
            if node is None or not node.inputs or node.inputs[0] is None:
                break
            if operator(node) in basics.HAS_RANK_OF_WEIGHT:
                weight = self.shape(node.inputs[1])
                return None if weight is None else len(weight)
            if operator(node) in basics.MATRICES:
                return 2
            if operator(node) not in basics.KEEPS_RANK:
                break
            value = node.inputs[0]
            if (shape := self.shape(value)) is not None:
                return len(shape)
        for use in value.uses():
            if operator(use.node) in basics.HAS_RANK_OF_WEIGHT and use.idx == 0:
                weight = self.shape(use.node.inputs[1])
                return None if weight is None else len(weight)
        return None

    def require_rank(self, value: ir.Value, node: ir.Node) -> int:
        """Return the rank of ``value``, or a refusal."""
        rank = self.rank(value)
        if rank is None:
            raise Refused("NF009", f"the rank of {value.name} is not known", node, INFER)
        return rank

    def require_shape(self, value: ir.Value, node: ir.Node) -> tuple[Dim, ...]:
        """Return the shape of ``value``, or a refusal."""
        shape = self.shape(value)
        if shape is None:
            raise Refused("NF009", f"the shape of {value.name} is not known", node, INFER)
        return shape

    def is_float(self, value: ir.Value) -> bool:
        """Return True if ``value`` holds floating-point numbers (unknown counts as no)."""
        tensor = self.constant(value) if value.dtype is None else None
        return (tensor.dtype if tensor is not None else value.dtype) in _FLOATS

    # -- parameters ----------------------------------------------------------------------------

    def attr(self, node: ir.Node, name: str, default: Any = None) -> Any:
        """Return the value of attribute ``name``; ``default`` where it is absent."""
        attr = node.attributes.get(name)
        if attr is None:
            return default
        if attr.is_ref():
            raise Refused("NF010", f"attribute {name} is a parameter of the function", node)
        return list(attr.value) if isinstance(attr.value, (tuple, list)) else attr.value

    def require_known_attributes(self, node: ir.Node) -> None:
        """Refuse a node with an attribute that each call of the function around it gives anew."""
        for name, attr in node.attributes.items():
            if attr.is_ref():
                raise Refused("NF010", f"attribute {name} is a parameter of the function", node)

    def parameter(self, node: ir.Node, name: str, index: int, default: Any = None) -> Any:
        """Return a parameter that is an attribute at older opsets and input ``index`` at newer ones, as a list.

        A scalar stands for a list of one, as runtimes take it: torch's exporter writes such axes for grouped attention.
        """
        if name in node.attributes:
            return self.attr(node, name)
        if index >= len(node.inputs) or node.inputs[index] is None:
            return default
        array = self.array(node.inputs[index])
        if array is None:
            raise Refused("NF101", f"{name} is not constant", node)
        return np.atleast_1d(array).tolist()

    def require_no_gelu(self, node: ir.Node) -> None:
        """Refuse a node of a GELU that is spelled out: with another factor in it no runtime knows it any more."""
        if node in self.gelus:
            raise Refused("NF021", "it is part of a GELU, which runtimes compute as one operator", node)

    def require_no_tail(self, node: ir.Node) -> None:
        """Refuse the scale or bias of a norm that is spelled out: without it no runtime knows the norm any more."""
        if node in self.tails:
            what = "it is the scale or bias of a norm that stays spelled out, which runtimes compute as one operator"
            raise Refused("NF023", what, node)

    def is_used(self, node: ir.Node, output: int) -> bool:
        """Return True if output ``output`` of ``node`` exists and anything reads it."""
        if output >= len(node.outputs):
            return False
        value = node.outputs[output]
        return bool(value.uses()) or value.is_graph_output()


def _constant_tensor(node: ir.Node, value: ir.Value) -> ir.TensorProtocol | None:
    attr = node.attributes.get("value")
    if attr is not None and not attr.is_ref():
        return attr.as_tensor()  # onnx_ir's own reader would rename it, in the model that was given
    return ir.convenience.get_const_tensor(value)
