"""Edited weights: what rounding does to them, checked before a plan counts, and their tensors, held until written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from normdeploy.errors import NormdeployError
from normdeploy.fold.affine import AffineMap
from normdeploy.fold.graph.edits import EACH, WHOLE, Channels, Edit, fingerprint
from normdeploy.fold.graph.reader import Refused, View
from normdeploy.fold.operators.basics import DEQUANTIZE
from normdeploy.fold.operators.maps import Spelling, spelled
from normdeploy.fold.operators.table import states
from normdeploy.fold.plan import Plan, Slot, Step
from normdeploy.fold.proof.stored import require_stored
from normdeploy.graph import operator
from normdeploy.precision import NORMS

COPY_LIMIT = 64 * 2**20
"""Bytes above which a shared weight is not copied for one of its readers."""

_CONVERTED = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
"""What a conversion takes to another of them."""
STAYS_FLOAT32 = NORMS | {DEQUANTIZE}
"""Operators whose parameters stay float32 in a 16-bit graph, or may."""

HELD = 256 * 2**20
"""Bytes of edited weights that are held until they are written."""


def require_storable(plan: Plan, view: View, *, proven: bool, narrow: ir.DataType | None = None) -> list[str]:
    """Return notes on what the plan's rounding does; a refusal where it would lose what cannot be lost.

    Where the plan is ``proven`` afterwards, what is rounded here is the exact tensor that the proof needs as well.
    What is float32, and will be converted to the type ``narrow``, must fit that as well.
    """
    notes = []
    for (node, index), edit in plan.edits.items():
        old = node.inputs[index] if index < len(node.inputs) else None
        if old is not None and len(old.uses()) > 1 and edit.nbytes > COPY_LIMIT:
            raise Refused("NF113", f"{old.name} is shared and too large to copy ({edit.nbytes >> 20} MiB)", node)
        if proven:
            edit.evaluate()
        channels_of = _channels(Step(view, node, plan), index)
        lost = edit.require_storable(channels_of)
        if narrow is not None and operator(node) not in STAYS_FLOAT32:
            notes += require_narrow(edit, narrow, channels_of, str(old.name if old else "a bias"))
        if lost.small:
            name, dtype = old.name if old else "a bias", edit.dtype.name.lower()
            rest = f", {lost.small - lost.zeros} are below its smallest normal number and keep fewer digits"
            notes.append(f"{lost.zeros} elements of {name} became 0 in {dtype}{rest * (lost.small > lost.zeros)}")
    for node, left in plan.remainders.items():
        for spelling in () if left is None else spellings(node, left, norm=plan.has_norm):
            for name, edit in constants(node, spelling).items():
                edit.require_storable(EACH if name == "scale" else WHOLE)
                if narrow is not None and spelling.kind not in STAYS_FLOAT32:
                    require_narrow(edit, narrow)
    return notes


def require_narrow(edit: Edit, narrow: ir.DataType, channels: Channels = WHOLE, name: str = "") -> list[str]:
    """Refuse a tensor of a model that will be converted to ``narrow``, if it does not fit that; return notes on it.

    A channel that alone is too small for it is told, not refused: beside the others of its tensor it is a dead one.
    """
    if edit.dtype not in _CONVERTED:
        return []
    later = replace(edit, dtype=narrow)
    if not later.require_storable(WHOLE).small:
        return []
    try:
        later.require_storable(channels)
    except Refused as refusal:
        return [f"{name}: {refusal.reason}, and so do the channels that these are in"]
    return []


def _channels(step: Step, index: int) -> Channels:
    """Return which elements of a parameter go into one output channel, as the row of its operator states."""
    parameters = states(step.node).parameters
    told = parameters.get(index) or parameters.get(None)
    if told is None:
        raise step.refuse("NF115", f"which channels its input {index} has is not known")
    return told(step)


def spellings(node: ir.Node, rest: AffineMap, *, norm: bool) -> tuple[Spelling, ...]:
    """Return the operators that spell ``rest``, in place of the map ``node``; Refused where there are none."""
    found = spelled(rest, channels(node), norm=norm)
    if found is None:
        raise Refused("NF114", "what would be left of the map is no single operator", node)
    return found


def constants(node: ir.Node, spelling: Spelling) -> dict[str, Edit]:
    """Return the constants of an operator in place of ``node``, as tensors of its dtype."""
    dtype = node.outputs[0].dtype or (node.inputs[0].dtype if node.inputs[0] is not None else None)
    if dtype is None:
        raise Refused("NF109", "the dtype of its output is not known", node)
    return {name: Edit(None, dtype, shift=array) for name, array in spelling.constants.items()}


def channels(node: ir.Node) -> int | None:
    """Return the size of axis 1 of what a map node gives, from its own shape or from its parameters; None if neither
    tells.
    """
    shape = node.outputs[0].shape
    if shape is not None and len(shape) > 1 and isinstance(shape[1], int):
        return shape[1]
    parameters = node.inputs[1].shape if states(node).norm and node.inputs[1] is not None else None
    return int(parameters.numpy()[0]) if parameters is not None and parameters.is_static() else None


class WeightCache:
    """The edited tensors of one model, held until they are written while there is room: few are evaluated twice.

    Args:
        require_unchanged: raises when the model's other weights are not what they were; None where that cannot be told.
            Then nothing is held: what is evaluated late is compared with what was validated.
        proven: compare each tensor with a second formula before it is held.
    """

    def __init__(self, require_unchanged: Callable[[], None] | None, *, proven: bool = True) -> None:
        self._proven = proven
        self._require_unchanged = require_unchanged or _nothing
        self._room = 0 if require_unchanged is None else HELD
        self._held: dict[Slot, int] = {}

    def tensor(self, slot: Slot, edit: Edit) -> ir.LazyTensor:
        """Return what is to be stored at ``slot``, in place of what was to be stored there before."""
        if self._proven:
            require_stored(edit, edit.rounded())
        self._room += self._held.pop(slot, 0)
        if edit.nbytes > self._room:
            return _evaluated_late(edit, self._require_unchanged)
        self._held[slot] = edit.nbytes
        self._room -= edit.nbytes
        return _held(edit, self._require_unchanged)


def is_alike(a: ir.TensorProtocol | None, b: ir.TensorProtocol | None) -> bool:
    """Return True where both hold the same bytes, in one dtype and shape."""
    if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a is b or np.array_equal(a.numpy().reshape(-1).view(np.uint8), b.numpy().reshape(-1).view(np.uint8))


def _held(edit: Edit, require_unchanged: Callable[[], None]) -> ir.LazyTensor:
    array = edit.rounded()
    edit.release()

    def write() -> ir.TensorProtocol:
        require_unchanged()
        return ir.Tensor(array)

    return ir.LazyTensor(write, dtype=edit.dtype, shape=ir.Shape(edit.shape))


def _nothing() -> None:
    pass


def _evaluated_late(edit: Edit, require_unchanged: Callable[[], None]) -> ir.LazyTensor:
    """Return the edited tensor, evaluated when it is written; it must come out as it was validated, bit for bit."""
    expected = fingerprint(edit.rounded())
    edit.release()

    def write() -> ir.TensorProtocol:
        require_unchanged()
        array = edit.rounded()
        edit.release()
        if fingerprint(array) != expected:
            raise NormdeployError(
                "a weight changed between its validation and its writing",
                where=str(getattr(edit.original, "name", "")),
                fix="do not change the model's file while it is folded",
            )
        return ir.Tensor(array)

    return ir.LazyTensor(write, dtype=edit.dtype, shape=ir.Shape(edit.shape))
