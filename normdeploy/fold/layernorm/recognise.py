"""Level ``recognise``: a norm that is spelled out in elementary operators becomes one operator.

It takes the place of the whole region only where nothing else reads what lies inside, and counts only when
region and operator agree in float64. Its scale is all ones: a Mul and an Add behind it fold into it as any map.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from normdeploy.fold.affine import Array
from normdeploy.fold.graph.edits import Edit
from normdeploy.fold.graph.reader import Refused, View
from normdeploy.fold.layernorm import fused, groups, region
from normdeploy.fold.layernorm.region import Norm
from normdeploy.fold.layernorm.spellings import TERMINALS, Core, core_at, statistics
from normdeploy.fold.layernorm.targets import operator_type
from normdeploy.fold.layernorm.values import bare, first, fixed, made_by
from normdeploy.fold.levels import Target
from normdeploy.fold.rewrite import Writer
from normdeploy.fold.session import Session
from normdeploy.graph import label, operator


@dataclass
class Recogniser:
    """Finds, proves and writes the norms of one graph.

    Attributes:
        writer: writes into the graph.
        target: who will run the model.
        session: which nodes are to be left alone, what is proven, and the record.
        moved: values that are others now.
        vectors: scales and biases of norms that were spelled anew.
        joining: norms, as operators, that runtimes will join with a sum, and did not as they stood.
    """

    writer: Writer
    target: Target
    session: Session
    moved: dict[ir.Value, ir.Value] = field(default_factory=dict)
    vectors: dict[tuple[ir.DataType, bytes], ir.Value] = field(default_factory=dict)
    joining: list[ir.Node] = field(default_factory=list)

    def run(self) -> list[Norm]:
        """Rewrite every norm that holds, and record what became of it; return those.

        One that there is no operator for is spelled as runtimes know it, where it is not yet.
        """
        view, record = self.writer.state.view, self.session.record
        insides, refused = _seen(view, self.writer.state.nodes, self.target, self.session.is_kept)
        for node, (kind, refusal) in refused.items():
            record.not_recognised(node, kind, refusal)
        for norm in [*insides]:
            if norm.missing is not None:
                record.not_recognised(norm.end, norm.kind, norm.missing)
                if not fused.is_to_be_spelled(view, norm, insides[norm]):
                    del insides[norm]
        proven: list[tuple[Norm, float | None]] = []
        for norm in insides:
            try:
                _require_no_other_readers(view, norm, insides)
                proven.append((norm, self._proven(norm)))
            except Refused as refusal:
                record.not_recognised(norm.end, norm.kind, refusal)
        joining = {norm for norm, _ in proven if fused.is_to_join_a_sum(view, norm, insides[norm])}
        for norm, residual in proven:  # not before: a region is proven as it was given
            old, data = norm.result, self.moved.get(norm.data, norm.data)
            if norm.missing is not None:
                self.moved[old] = fused.spell(self.writer, norm, data, self.vectors)
                continue
            node, self.moved[old] = _write(self.writer, norm, data)
            self.joining += [node] if norm in joining else []
            record.recognised(node, norm.end, norm.kind, len(insides[norm]), residual)
        return [norm for norm, _ in proven]

    def _proven(self, norm: Norm) -> float | None:
        if not self.session.validate:
            return None
        with self.session.proving(norm.end):
            return region.residual(self.writer.state.view, norm)


class _NotRecognised(Exception):
    """What looks like a norm of some kind, and is none."""

    def __init__(self, kind: str, refusal: Refused) -> None:
        self.kind, self.refusal = kind, refusal


def proven_norms(view: View, nodes: Sequence[ir.Node]) -> tuple[list[Norm], list[tuple[ir.Node, str, str]]]:
    """Return the norms spelled out in ``nodes``, all of a graph, whatever its opset has, and what looks like one only.

    Of the latter the last node, the kind that they look like, and why they are none.
    """
    insides, refused = _seen(view, nodes, None, lambda node: False)
    proven, left = [], [(node, kind, refusal.reason) for node, (kind, refusal) in refused.items()]
    for norm in insides:
        try:
            _require_no_other_readers(view, norm, insides)
            region.residual(view, norm)
            proven.append(norm)
        except Refused as refusal:
            left.append((norm.end, norm.kind, refusal.reason))
    return proven, left


def _seen(
    view: View, nodes: Sequence[ir.Node], target: Target | None, is_kept: Callable[[ir.Node], bool]
) -> tuple[dict[Norm, list[ir.Node]], dict[ir.Node, tuple[str, Refused]]]:
    """Return the norms among ``nodes`` with what lies inside each, and what looks like one and is none, and why."""
    found: list[Norm] = []
    refused: dict[ir.Node, tuple[str, Refused]] = {}
    for node in nodes:
        if is_kept(node):
            continue
        try:
            norm = _norm_at(view, node, target)
        except _NotRecognised as seen:
            refused[node] = (seen.kind, seen.refusal)
            continue
        if norm is not None:
            found.append(norm)
    insides = {norm: region.inside(view, norm) for norm in found}
    inner = {node for nodes in insides.values() for node in nodes}  # a part of a norm is none that was refused
    ends = _ends(view, [node for node in refused if node not in inner])
    return insides, {node: why for node, why in refused.items() if node in ends}


def _ends(view: View, refused: Sequence[ir.Node]) -> set[ir.Node]:
    """Return where norms end that were ``refused``: of the nodes that divide by the same statistics, the last.

    Multiplied out, as Keras writes it, a norm has two products that look like one too.
    """
    read = {node: statistics(view, node) for node in refused}
    last = {value: node for node, values in read.items() for value in values}
    return {node for node, values in read.items() if not values or any(last[value] is node for value in values)}


# -- what a node is --------------------------------------------------------------------------------

_ENDS = TERMINALS | {groups.INSTANCES}
"""Operators that a norm can end in, or lie around."""


def _norm_at(view: View, node: ir.Node, target: Target | None) -> Norm | None:
    """Return the norm that ends in ``node``, or around it; None where there is none.

    Raises:
        _NotRecognised: it looks like one, and is none.
    """
    name = operator(node)
    if name not in _ENDS or view.is_constant(node.outputs[0]):  # what is large is not evaluated to see what it is not
        return None
    kind = "LayerNormalization" if name in TERMINALS else "GroupNormalization"
    try:
        if name not in TERMINALS:
            return groups.of_instances(view, node, target)
        core = core_at(view, node)
        if core is None:
            return None
        kind = core.kind
        _require_float32(core)
        return groups.of_core(view, core, target) or _plain(view, core, target)
    except Refused as refusal:
        raise _NotRecognised(kind, refusal) from refusal


def _require_float32(core: Core) -> None:
    if core.epsilon < 0 or float(np.float32(core.epsilon)) != core.epsilon:
        raise Refused("NF311", f"its epsilon {core.epsilon!r} is not a float32 number of at least 0", core.terminal)


def _plain(view: View, core: Core, target: Target | None) -> Norm:
    op_type, missing = _operator(core, view.opset, target)
    data = _of_dtype(view, core.data, core.terminal)
    rank = view.require_rank(data, core.terminal)
    sizes = fixed(view, data, core.axes)
    if sizes is None:
        raise Refused("NF014", "the size of the axes it normalizes over is not fixed", core.terminal)
    attributes = {"axis": -len(core.axes), "epsilon": core.epsilon, "stash_type": _stash_type(data)}
    if missing is not None and core.axes != (rank - 1,):
        raise missing
    perm = (*(axis for axis in range(rank) if axis not in core.axes), *core.axes)
    scale, bias = (None if array is None else _over(core, array, rank, sizes) for array in (core.scale, core.bias))
    assert scale is not None, "a core has a scale"
    return Norm(
        core.terminal, data, op_type, attributes, scale, bias, core.axes,
        perm=None if perm == tuple(range(rank)) else perm, missing=missing,
    )  # fmt: skip


def _operator(core: Core, opset: int, target: Target | None) -> tuple[str, Refused | None]:
    """Return the operator that ``core`` is, and why it is none for this target, which knows its spelling."""
    try:
        return operator_type(core.kind, opset, target), None
    except Refused as refusal:
        if target not in fused.RUNTIMES:
            raise
        return core.kind, refusal


def _over(core: Core, array: Array, rank: int, sizes: tuple[int, ...]) -> Array:
    """Return a constant that broadcasts against the data, as the scale or bias of a norm over ``core.axes``."""
    padded = array.reshape((1,) * (rank - array.ndim) + array.shape)
    if padded.ndim > rank or any(n != 1 for axis, n in enumerate(padded.shape) if axis not in core.axes):
        raise Refused("NF304", "its scale or bias varies over an axis that it does not normalize", core.terminal)
    return np.broadcast_to(padded.reshape([padded.shape[axis] for axis in core.axes]), sizes).copy()


def _stash_type(data: ir.Value) -> int:
    """Return the dtype of the statistics: float32 for 16-bit data."""
    return int(ir.DataType.DOUBLE if data.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT)


def _of_dtype(view: View, value: ir.Value, end: ir.Node) -> ir.Value:
    """Return ``value``, or what it was cast from, in the dtype of the result."""
    wanted, last = end.outputs[0].dtype, bare(view, value)
    while value.dtype != wanted and value is not last:
        node = made_by(value, "Cast", "Identity")
        assert node is not None, "bare() stepped over nothing else"
        value = node.inputs[0] or last
    if value.dtype is None or value.dtype != wanted:
        raise Refused("NF314", f"it reads {value.dtype} and makes {wanted}", end)
    return value


def _require_no_other_readers(view: View, norm: Norm, insides: dict[Norm, list[ir.Node]]) -> None:
    """Refuse where something else reads a mean or deviation: it would keep the region alive beside the operator."""
    ours = {node for nodes in insides.values() for node in nodes}
    for node in insides[norm]:
        for value in node.outputs if node is not norm.end else ():
            if value.is_graph_output():
                raise Refused("NF313", f"inside of it {view.told_output(value)}", norm.end)
            other = next(
                (use.node for use in value.uses() if use.node not in ours and operator(use.node) != "Shape"), None
            )
            if other is not None:
                raise Refused("NF313", f"{value.name}, inside of it, is also read by {label(other)}", norm.end)


# -- writing ---------------------------------------------------------------------------------------


def _write(writer: Writer, norm: Norm, data: ir.Value) -> tuple[ir.Node, ir.Value]:
    """Put the operator in place of its region; return its node, and the value that stands for the region's."""
    end, old = norm.end, norm.result
    if norm.perm is not None:
        data = _transposed(writer, end, data, norm.perm)
    node = writer.add(end, norm.kind, data, old, norm.attributes)
    node.outputs[0].shape = data.shape
    for index, array in enumerate((norm.scale, norm.bias), start=1):
        if array is not None and old.dtype is not None:
            writer.store((node, index), Edit(None, old.dtype, shift=array))
    result = node.outputs[0]
    if norm.perm is not None:
        result = _transposed(writer, end, result, np.argsort(norm.perm).tolist())
    writer.take_place(node, result, end)
    if norm.perm is not None:
        _cancel(writer, result)
    return node, result


def _transposed(writer: Writer, end: ir.Node, value: ir.Value, perm: Sequence[int]) -> ir.Value:
    """Return ``value`` transposed; together with the Transpose that made it, where one did."""
    before = made_by(value, "Transpose")
    if before is not None and "perm" in before.attributes:
        perm = [before.attributes["perm"].as_ints()[axis] for axis in perm]
        value = first(before)
        if list(perm) == sorted(perm):
            return value
    node = writer.add(end, "Transpose", value, value, {"perm": list(perm)})
    shape = value.shape
    node.outputs[0].shape = None if shape is None else ir.Shape([shape[axis] for axis in perm])
    return node.outputs[0]


def _cancel(writer: Writer, result: ir.Value) -> None:
    """Let what transposes ``result``, a Transpose's output, back, read what that one reads."""
    made = made_by(result, "Transpose")
    if made is None:
        return
    perm = made.attributes["perm"].as_ints()
    for reader in [use.node for use in result.uses() if operator(use.node) == "Transpose"]:
        again = reader.attributes["perm"].as_ints() if "perm" in reader.attributes else []
        if [perm[axis] for axis in again] == sorted(perm) and not reader.outputs[0].is_graph_output():
            writer.bypass(reader, first(made))
    if not result.uses() and not result.is_graph_output():
        writer.drop(made)
