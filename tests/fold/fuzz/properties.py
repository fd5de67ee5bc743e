"""What must hold of every fold."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator

import onnx
import onnx_ir as ir
from customs import DOMAIN
from differences import different
from in_runtime import elsewhere
from messages import coarsest, flattened, nodes
from strategies import Case

from normdeploy.fold import FoldResult, Ledger, fold
from normdeploy.fold.ledger import METADATA_KEY
from normdeploy.fold.operators.table import TABLE

_UNSIZED = "NF014"
"""The code of what is left because a size is not fixed."""


class Violation(AssertionError):
    """A property that does not hold, with the graph as ONNX text."""


def check(case: Case, *, again: bool = True) -> Ledger:
    """Fold ``case`` and hold the result to every property; those that take two more folds if ``again``."""
    try:
        return _checked(case, again)
    except Violation:
        raise
    except Exception as error:
        raise _violation(case, None, f"{type(error).__name__}: {error}") from error


def _checked(case: Case, again: bool) -> Ledger:
    before = case.given.SerializeToString(deterministic=True)
    result = fold(case.given)
    new = ir.to_proto(result.model)
    for problem in _problems(case, before, new, result, again):
        raise _violation(case, new, problem)
    return result.ledger


def _problems(case: Case, before: bytes, new: onnx.ModelProto, result: FoldResult, again: bool) -> Iterator[str]:
    if case.given.SerializeToString(deterministic=True) != before:
        yield "the given model was changed"
    if result.ledger.dropped:
        yield f"a plan was dropped: {result.ledger.dropped}"
    yield from _invalid(case.proto, new)
    yield from _grown(case.proto, new, result.ledger)
    yield from _forgotten(case.proto, result.ledger)
    if again:
        if not any(entry.domain == DOMAIN for entry in case.proto.opset_import):  # what nobody knows hides types
            yield from _restless(new)
        if bare(ir.to_proto(fold(case.given, validate=False).model)) != bare(new):
            yield "folding without validation differs"
    yield from different(case, new)
    yield from elsewhere(case, new)


def _restless(new: onnx.ModelProto) -> Iterator[str]:
    """Whether folding twice changes something; in 16 bits, rounding may make equal, and so foldable, what was not."""
    result = fold(new)
    again = ir.to_proto(result.model)
    if bare(again) == bare(new):
        return
    notes = [note.text for note in result.ledger.notes]
    told = [note.startswith("evaluated") for note in notes if "default value" not in note]
    # A constant is stored in another form only where nothing else reads it any more: that is the cleaning of a graph
    # that has changed, and comes to rest.
    cleaned = told and all(told) and all(entry.outcome == "left" for entry in result.ledger)
    if cleaned or _is_sized(new, result.ledger):
        if not _comes_to_rest(again):
            yield "folding again and again always changes something"
        return
    fewer = sum(1 for _ in nodes(again)) < sum(1 for _ in nodes(new))
    if coarsest(new) not in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16) or not fewer:
        yield "folding twice changes something"


def _is_sized(new: onnx.ModelProto, ledger: Ledger) -> bool:
    """Whether a norm has a size that the fold before did not know: what went stood between it and what declares one."""
    (told,) = (prop.value for prop in new.metadata_props if prop.key == METADATA_KEY)
    unsized = {entry.module for entry in Ledger.from_json(told) if _UNSIZED in entry.codes}
    return any(entry.module in unsized and _UNSIZED not in entry.codes for entry in ledger)


def _comes_to_rest(proto: onnx.ModelProto) -> bool:
    """Return True if folding changes nothing after two more folds."""
    for _ in range(2):
        after = ir.to_proto(fold(proto).model)
        if bare(after) == bare(proto):
            return True
        proto = after
    return False


def _violation(case: Case, new: onnx.ModelProto | None, problem: str) -> Violation:
    folded = "" if new is None else f"\n\nfolded:\n{onnx.printer.to_text(_without_ledger(new))}"
    return Violation(f"{problem}\n\ngiven:\n{onnx.printer.to_text(case.given)}{folded}")


# -- structure -------------------------------------------------------------------------------------


def _invalid(old: onnx.ModelProto, new: onnx.ModelProto) -> Iterator[str]:
    """Whether the checker has something against ``new``, and nothing against ``old`` (functions in ONNX's domain)."""
    problem = _problem(new)
    if problem and not _problem(old):
        yield f"the folded model is not valid: {problem}"


def _problem(proto: onnx.ModelProto) -> str:
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:
        return str(error)
    return ""


def _grown(old: onnx.ModelProto, new: onnx.ModelProto, ledger: Ledger) -> Iterator[str]:
    # What a norm is given, a scale of 1 and a bias of 0, goes into the operator that runtimes make of it.
    told = (re.search(r"spelled as runtimes know it: (\d+)", str(note)) for note in ledger.notes)
    given = sum(2 * int(found[1]) for found in told if found)
    flat = [flattened(proto) for proto in (old, new)]
    heavy = [sum(1 for node in nodes(proto) if _is_heavy(node)) for proto in flat]
    if heavy[1] > heavy[0]:
        yield f"{heavy[0]} heavy operators became {heavy[1]}"
    passes = [len(passes_over_data(proto)) for proto in flat]
    if passes[1] > passes[0] + given:
        yield f"{passes[0]} passes over data became {passes[1]}"
    for kind in ("input", "output"):
        names = [[info.name for info in getattr(proto.graph, kind)] for proto in (old, new)]
        constants = {tensor.name for tensor in (*old.graph.initializer, *new.graph.initializer)}
        if kind == "output" or new.ir_version >= 4:
            constants -= {info.name for info in old.graph.input} if new.ir_version >= 4 else set()
        if [n for n in names[0] if n not in constants] != [n for n in names[1] if n not in constants]:
            yield f"the {kind}s {names[0]} became {names[1]}"


def _is_heavy(node: onnx.NodeProto) -> bool:
    row = None if node.domain else TABLE.get(node.op_type)
    return row is not None and row.heavy


def _forgotten(old: onnx.ModelProto, ledger: Ledger) -> Iterator[str]:
    """Whether a norm is missing in the ledger; one in a function counts once, or once for each call."""
    written, called = (sum(map(is_batch_norm, nodes(proto))) for proto in (old, flattened(old)))
    listed = sum(entry.kind == "BatchNormalization" for entry in ledger)
    if any(note.text.startswith("taken out, as nothing reads") for note in ledger.notes):
        written = 0  # norms perhaps among them
    if not min(written, called) <= listed <= max(written, called):
        yield f"{written} norms, {called} when all functions are inlined, and {listed} in the ledger"


def is_batch_norm(node: onnx.NodeProto) -> bool:
    """Whether ``node`` is ONNX's batch normalization."""
    return not node.domain and node.op_type == "BatchNormalization"


def passes_over_data(proto: onnx.ModelProto) -> list[str]:
    """The operators that read anything but constants."""
    varying = {info.name for info in proto.graph.input} - {tensor.name for tensor in proto.graph.initializer}
    varying |= {name for function in proto.functions for name in function.input}
    found = []
    for node in nodes(proto):
        bodies = [attr.g for attr in node.attribute if attr.HasField("g")]
        if any(name in varying for name in node.input) or bodies:
            varying.update(node.output)
            varying.update(info.name for body in bodies for info in body.input)
            found.append(node.op_type)
    return found


def bare(proto: onnx.ModelProto) -> bytes:
    """The bytes of ``proto`` but for the ledger that travels in it, and what inference says of values inside.

    An Add tells more of the shape of its result than the norm whose place it took.
    """
    found = _without_ledger(proto)
    bodies = [attr.g for node in nodes(found) for attr in node.attribute if attr.HasField("g")]
    for graph in (found.graph, *bodies):
        del graph.value_info[:]
    for kind in (info.type for body in bodies for info in body.output):
        if kind.HasField("tensor_type"):
            kind.tensor_type.ClearField("shape")
    return bytes(found.SerializeToString(deterministic=True))


def _without_ledger(proto: onnx.ModelProto) -> onnx.ModelProto:
    found = copy.deepcopy(proto)
    kept = [prop for prop in found.metadata_props if prop.key != METADATA_KEY]
    del found.metadata_props[:]
    found.metadata_props.extend(kept)
    return found
