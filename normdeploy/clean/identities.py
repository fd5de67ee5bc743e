"""Operators that hand on what they are given, and what nothing reads."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import onnx_ir as ir

from normdeploy.clean.scope import Scope, bodies
from normdeploy.clean.shapes import Dims, Shapes
from normdeploy.clean.sizes import Sizes
from normdeploy.graph import operator


@dataclass(frozen=True)
class Known:
    """What is known of the shapes of values, and of the elements of vectors of sizes."""

    shapes: Shapes
    sizes: Sizes


def remove_identities(scope: Scope, known: Known) -> Counter[str]:
    """Take out every node of ``scope`` that changes nothing; return how many, by operator."""
    done: Counter[str] = Counter()
    for node in list(scope.graph):
        name = scope.operator(node)
        changes_nothing = _RULES.get(name)
        if changes_nothing is None or any(attribute.is_ref() for attribute in node.attributes.values()):
            continue
        if changes_nothing(scope, node, known) and node.inputs[0] is not None and scope.hand_on(node, node.inputs[0]):
            done[name] += 1
    return done


def _is_identity(scope: Scope, node: ir.Node, known: Known) -> bool:
    return True


def _keeps_dtype(scope: Scope, node: ir.Node, known: Known) -> bool:
    given = node.inputs[0]
    if given is None or given.dtype is None:
        return False
    if scope.operator(node) == "Cast":
        return given.dtype == ir.DataType(node.attributes["to"].as_int())
    like = node.inputs[1]
    return like is not None and given.dtype == like.dtype


def _drops_nothing(scope: Scope, node: ir.Node, known: Known) -> bool:
    """From opset 7 on Dropout is for inference; from 12 on unless it is told to train."""
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        return False
    training = node.inputs[2] if scope.opset >= 12 and len(node.inputs) > 2 else None
    return training is None or ((told := scope.array(training)) is not None and not told.any())


def _has_one_input(scope: Scope, node: ir.Node, known: Known) -> bool:
    return len(node.inputs) == 1


def _keeps_order(scope: Scope, node: ir.Node, known: Known) -> bool:
    perm, has = node.attributes.get("perm"), known.shapes.of(scope, node.inputs[0])
    if perm is None or (has is not None and len(has) != len(perm.as_ints())):
        return False
    return list(perm.as_ints()) == list(range(len(perm.as_ints())))


def _keeps_shape(scope: Scope, node: ir.Node, known: Known) -> bool:
    """A Reshape to the sizes that are there already. The number of elements stays, so one unknown size is forced."""
    return _copies_all_but_one(scope, node, known) or _asks_for_its_own(scope, node, known, unsure=1)


def _copies_all_but_one(scope: Scope, node: ir.Node, known: Known) -> bool:
    """A Reshape to ``[-1, 1, 0, 0]``: a 0 copies the size in its place, and -1 is what is left, so the size there."""
    has, asked = known.shapes.of(scope, node.inputs[0]), known.sizes.of(node.inputs[1])
    allows_zero = node.attributes.get("allowzero")
    if has is None or asked is None or len(has) != len(asked) or 0 in has:
        return False
    if allows_zero is not None and allows_zero.as_int():
        return False
    others = [(size, want) for size, want in zip(has, asked, strict=True) if want != 0]
    rest = [want for size, want in others if not isinstance(want, int) or want != size]
    return rest in ([], [-1])


def _widens_nothing(scope: Scope, node: ir.Node, known: Known) -> bool:
    """An Expand to the sizes that are there already. A size that is only known by name may be 1 at one time."""
    return _asks_for_its_own(scope, node, known, unsure=0)


def _asks_for_its_own(scope: Scope, node: ir.Node, known: Known, unsure: int) -> bool:
    has, asked = known.shapes.of(scope, node.inputs[0]), known.sizes.of(node.inputs[1])
    if has is None or has != asked or None in has or 0 in has:
        return False
    return known.shapes.declared or sum(not isinstance(size, int) for size in has) <= unsure


def remove_needless_expands(scope: Scope, shapes: Shapes) -> Counter[str]:
    """Take out every Expand whose readers broadcast what it is given to the same sizes; return how many.

    Only where each number is read for a run of elements: ``x / Expand(norm)`` of ``[N, 256, 1]`` beside
    ``[N, 256, 16]``, as ``F.normalize`` spells it. Short runs that are read again and again are slower to broadcast.
    """
    done: Counter[str] = Counter()
    for node in list(scope.graph):
        if scope.operator(node) != "Expand" or node.outputs[0].is_graph_output() or node.inputs[0] is None:
            continue
        made, readers = node.outputs[0], {use.node for use in node.outputs[0].uses()}
        wide = shapes.of(scope, made)
        if not _is_run(shapes.of(scope, node.inputs[0]), wide, shapes.declared):
            continue
        if all(_makes_as_wide(scope, reader, made, wide, shapes) for reader in readers):
            scope.hand_on(node, node.inputs[0])
            done["Expand"] += 1
    return done


def _is_run(given: Dims | None, wide: Dims | None, declared: bool) -> bool:
    """Return True where a value of ``given`` sizes is all ones from the first axis on that is not as ``wide``."""
    if given is None or wide is None or len(given) > len(wide) or None in wide:
        return False
    if not declared and any(isinstance(size, str) for size in wide):
        return False  # a size that is only known by name may be 1 at one time
    padded = (*(1,) * (len(wide) - len(given)), *given)
    first = next((axis for axis, size in enumerate(padded) if size != wide[axis]), len(wide))
    return all(size == 1 for size in padded[first:])


def _makes_as_wide(scope: Scope, reader: ir.Node, made: ir.Value, wide: Dims | None, shapes: Shapes) -> bool:
    others = [value for value in reader.inputs if value is not made]
    if reader.graph is not scope.graph or scope.operator(reader) not in _ARITHMETIC or len(others) != 1 or not wide:
        return False
    shape = shapes.of(scope, others[0])
    return shape is not None and shape[-len(wide) :] == wide


_ARITHMETIC = ("Add", "Sub", "Mul", "Div")
"""What broadcasts a run at least as fast as it reads one that was expanded, in ONNX Runtime on the CPU."""


_RULES = {
    "Identity": _is_identity,
    "Cast": _keeps_dtype,
    "CastLike": _keeps_dtype,
    "Dropout": _drops_nothing,
    "Concat": _has_one_input,
    "Transpose": _keeps_order,
    "Reshape": _keeps_shape,
    "Expand": _widens_nothing,
}


def write_casts(scope: Scope) -> Counter[str]:
    """Write each CastLike to a known plain dtype as a Cast; return how many."""
    done: Counter[str] = Counter()
    for node in list(scope.graph):
        like = node.inputs[1] if scope.operator(node) == "CastLike" and len(node.inputs) == 2 else None
        if like is None or like.dtype not in _PLAIN or node.inputs[0] is None:
            continue
        attributes, metadata = [ir.AttrInt64("to", like.dtype.value)], dict(node.metadata_props)
        made = ir.Node("", "Cast", [node.inputs[0]], attributes, name=node.name, metadata_props=metadata)
        scope.replace(node, made)
        done["CastLike"] += 1
    return done


_PLAIN = frozenset(
    {
        ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16, ir.DataType.BOOL,
        ir.DataType.INT32, ir.DataType.INT64,
    }
)  # fmt: skip
"""What a Cast has no further settings for."""


def remove_dead_ends(scope: Scope) -> Counter[str]:
    """Take out what nothing reads; return how many nodes, those in bodies too, by operator."""
    done: Counter[str] = Counter()
    for node in reversed(list(scope.graph)):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            done += _discard(node)
    return done


def _discard(node: ir.Node) -> Counter[str]:
    """Remove ``node``, and what its bodies read of the graphs around them; return how many nodes, by operator."""
    done = Counter([operator(node)])
    for body in bodies(node):
        body.outputs.clear()
        for inner in reversed(list(body)):
            done += _discard(inner)
    assert node.graph is not None
    node.graph.remove(node, safe=True)
    return done
