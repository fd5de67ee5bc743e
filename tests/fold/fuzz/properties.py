"""What must hold of every fold, and how far two graphs that differ by rounded weights may lie apart.

The fold moves maps exactly, in float64, and rounds each edited tensor once. So over the real numbers the
original is the folded graph with every weight moved by at most half a unit in its last place:

    | folded(x) - original(x) |  <=  what such a move can do to folded(x)

and what it can do is measured: the folded graph is run again with every stored number moved up or down by up
to a whole unit. Signs are drawn at random, so the largest of a few such runs times SAMPLES stands for the worst. A
sum that cancels, or a tiny channel behind a huge one, is judged by what rounding really does to it.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
from reals import FLOATS, Arrays, Change, Truth, unshared
from strategies import Case

from normdeploy.fold import FoldResult, Ledger, fold
from normdeploy.fold.ledger import METADATA_KEY
from normdeploy.fold.operators.table import TABLE

NEAR = 8.0
"""Errors below this many units in the last place of a channel's largest value need no closer look."""

RUNS, SAMPLES = 40, 12.0
"""Runs with moved weights, if so many are needed, and how many times the largest move they show an error may be."""

_EPS = {1: 2.0**-23, 10: 2.0**-10, 11: 2.0**-52, 16: 2.0**-7}
"""Spacing of the numbers at 1.0, by ONNX element type."""


class Violation(AssertionError):
    """A property that does not hold, with the graph as ONNX text."""


def check(case: Case) -> Ledger:
    """Fold ``case`` and hold the result to every property; the ledger of the fold."""
    try:
        return _checked(case)
    except Violation:
        raise
    except Exception as error:
        raise _violation(case, None, f"{type(error).__name__}: {error}") from error


def _checked(case: Case) -> Ledger:
    before = case.given.SerializeToString(deterministic=True)
    result = fold(case.given)
    new = ir.to_proto(result.model)
    for problem in _problems(case, before, new, result):
        raise _violation(case, new, problem)
    return result.ledger


def _problems(case: Case, before: bytes, new: onnx.ModelProto, result: FoldResult) -> Iterator[str]:
    if case.given.SerializeToString(deterministic=True) != before:
        yield "the given model was changed"
    if result.ledger.dropped:
        yield f"a plan was dropped: {result.ledger.dropped}"
    yield from _invalid(new)
    yield from _grown(case.proto, new)
    yield from _forgotten(case.proto, new, result.ledger)
    yield from _restless(new)
    if bare(ir.to_proto(fold(case.given, validate=False).model)) != bare(new):
        yield "folding without validation differs"
    yield from different(case, new)


def _restless(new: onnx.ModelProto) -> Iterator[str]:
    """Whether folding twice changes something; in 16 bits, rounding may make equal, and so foldable, what was not."""
    again = ir.to_proto(fold(new).model)
    if bare(again) == bare(new):
        return
    fewer = sum(1 for _ in nodes(again)) < sum(1 for _ in nodes(new))
    if coarsest(new) not in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16) or not fewer:
        yield "folding twice changes something"


def _violation(case: Case, new: onnx.ModelProto | None, problem: str) -> Violation:
    folded = "" if new is None else f"\n\nfolded:\n{onnx.printer.to_text(_without_ledger(new))}"
    return Violation(f"{problem}\n\ngiven:\n{onnx.printer.to_text(case.given)}{folded}")


# -- structure -------------------------------------------------------------------------------------


def _invalid(new: onnx.ModelProto) -> Iterator[str]:
    try:
        onnx.checker.check_model(new, full_check=True)
    except Exception as error:
        yield f"the folded model is not valid: {error}"


def _grown(old: onnx.ModelProto, new: onnx.ModelProto) -> Iterator[str]:
    heavy = [sum(1 for node in nodes(proto) if _is_heavy(node)) for proto in (old, new)]
    if heavy[1] > heavy[0]:
        yield f"{heavy[0]} heavy operators became {heavy[1]}"
    passes = [len(passes_over_data(proto)) for proto in (old, new)]
    if passes[1] > passes[0]:
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


def _forgotten(old: onnx.ModelProto, new: onnx.ModelProto, ledger: Ledger) -> Iterator[str]:
    kinds = [Counter(node.op_type for node in nodes(proto)) for proto in (old, new)]
    listed = sum(entry.kind == "BatchNormalization" for entry in ledger)
    if listed != kinds[0]["BatchNormalization"]:
        yield f"{kinds[0]['BatchNormalization']} norms, and {listed} in the ledger"


def nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, bodies and functions included."""
    for graph in (proto.graph, *proto.functions):
        yield from _nodes(graph)


def _nodes(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attr in node.attribute:
            for body in (*([attr.g] if attr.HasField("g") else []), *attr.graphs):
                yield from _nodes(body)


def passes_over_data(proto: onnx.ModelProto) -> list[str]:
    """The operators that read anything but constants."""
    varying = {info.name for info in proto.graph.input} - {tensor.name for tensor in proto.graph.initializer}
    varying |= {name for function in proto.functions for name in function.input}
    found = []
    for node in nodes(proto):
        if any(name in varying for name in node.input) or any(attr.HasField("g") for attr in node.attribute):
            varying.update(node.output)
            found.append(node.op_type)
    return found


def bare(proto: onnx.ModelProto) -> bytes:
    """The bytes of ``proto`` but for the ledger that travels in it, and what inference says of values inside.

    An Add tells more of the shape of its result than the norm whose place it took.
    """
    found = _without_ledger(proto)
    for graph in (found.graph, *(attr.g for node in nodes(found) for attr in node.attribute if attr.HasField("g"))):
        del graph.value_info[:]
    return bytes(found.SerializeToString(deterministic=True))


def _without_ledger(proto: onnx.ModelProto) -> onnx.ModelProto:
    found = copy.deepcopy(proto)
    kept = [prop for prop in found.metadata_props if prop.key != METADATA_KEY]
    del found.metadata_props[:]
    found.metadata_props.extend(kept)
    return found


# -- numbers ---------------------------------------------------------------------------------------


def different(case: Case, new: onnx.ModelProto) -> Iterator[str]:
    """Where the folded model computes something else."""
    eps = _EPS[coarsest(case.proto)]
    old_runs, new_runs = Truth(case.proto), Truth(new)
    for feed in case.feeds:
        olds, news = old_runs(feed), new_runs(feed)
        for name, expected in olds.items():
            actual = news[name]
            if expected.shape != actual.shape:
                yield f"{name}: shape {expected.shape} became {actual.shape}"
            elif _error(expected, actual) > NEAR * eps:
                yield from _closer_look(case, new, feed, name, expected, actual)


def coarsest(proto: onnx.ModelProto) -> int:
    """The float element type with the fewest bits among what is stored, read or cast to."""
    kinds = {info.type.tensor_type.elem_type for info in proto.graph.input}
    kinds |= {tensor.data_type for tensor in proto.graph.initializer}
    kinds |= {attr.t.data_type for node in nodes(proto) for attr in node.attribute if attr.HasField("t")}
    kinds |= {attr.i for node in nodes(proto) for attr in node.attribute if node.op_type == "Cast"}
    return max(kinds & FLOATS or {onnx.TensorProto.DOUBLE}, key=lambda kind: _EPS[kind])


def _error(expected: np.ndarray, actual: np.ndarray) -> float:
    """The largest error of a channel of any axis, relative to its largest value; infinite where one is not finite."""
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(expected, actual) else float("inf")
    finite = np.isfinite(expected)
    if not np.array_equal(finite, np.isfinite(actual)):
        return float("inf")
    return _worst(_distance(expected, actual, finite), np.abs(np.where(finite, expected, 0.0)))


def _distance(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> np.ndarray:
    """``|a - b|`` where asked, else 0."""
    return np.abs(np.subtract(a, b, where=where, out=np.zeros(a.shape)))


def _worst(error: np.ndarray, size: np.ndarray) -> float:
    """The largest ratio of the maxima of both over a slice of any axis."""
    worst = 0.0
    for axis in range(error.ndim):
        others = tuple(i for i in range(error.ndim) if i != axis)
        top, bottom = error.max(axis=others, initial=0.0), size.max(axis=others, initial=0.0)
        ratio = np.divide(top, bottom, out=np.where(top > 0, np.inf, 0.0), where=bottom > 0)
        worst = max(worst, float(ratio.max(initial=0.0)))
    return worst if error.ndim else float(error / size if size else np.inf if error else 0.0)


def _closer_look(
    case: Case, new: onnx.ModelProto, feed: Arrays, name: str, expected: np.ndarray, actual: np.ndarray
) -> Iterator[str]:
    """The error against what moved weights do to both graphs (the original's own move by float64's rounding)."""
    spread = np.zeros(expected.shape)
    differs = np.zeros(expected.shape, bool)
    old = unshared(case.proto)  # in float64, what is b - b for one tensor need not be so after the fold
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        for proto, exact, change in ((new, actual, _moved(rng)), (old, expected, _moved(rng, 2.0**-50))):
            other = Truth(proto, change)(_moved_feed(feed, rng))[name]
            differs |= ~(other == exact)
            spread = np.fmax(spread, _distance(other, exact, np.isfinite(exact)))
        problem = _unexplained(expected, actual, spread, differs)
        if problem is None:
            return
    yield f"{name}: {problem}"


def _unexplained(expected: np.ndarray, actual: np.ndarray, spread: np.ndarray, differs: np.ndarray) -> str | None:
    """What is wrong beyond the ``spread`` that was seen, or beyond where anything ``differs``; None if nothing is."""
    if expected.dtype.kind != "f":
        wrong = np.any((expected != actual) & ~differs)
        return f"{expected.tolist()} became {actual.tolist()}" if wrong else None
    finite = np.isfinite(expected) & np.isfinite(actual)
    if np.any(~finite & ~differs & (expected != actual)):
        return "not finite where the original is"
    worst = _worst(_distance(expected, actual, finite), spread)
    error = _error(expected, actual)
    return (
        f"relative error {error:.3g}, {worst:.3g} times what rounding the weights can do" if worst > SAMPLES else None
    )


def _moved(rng: np.random.Generator, eps: float | None = None) -> Change:
    """Every number moved up or down by a unit in its last place, or by ``eps`` of itself."""

    def change(array: np.ndarray) -> np.ndarray:
        exact = array.astype(np.float64)
        limits = ml_dtypes.finfo(array.dtype)
        unit = np.abs(exact) * float(limits.eps if eps is None else eps)
        if eps is None:  # below the smallest normal number the units stay as they are there, or all is flushed
            tiny = float(limits.smallest_normal)
            unit = np.maximum(unit, tiny if array.dtype == np.float32 else tiny * float(limits.eps))
        return exact + unit * _signs(rng, exact.shape)

    return change


def _signs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Half a unit to a whole one, up or down: no two moves cancel."""
    return np.asarray(rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.0, shape))


def _moved_feed(feed: Arrays, rng: np.random.Generator) -> Arrays:
    """The inputs moved by what running in float64 may lose."""
    return {
        name: array + np.abs(array) * 2.0**-50 * _signs(rng, array.shape) if array.dtype.kind == "f" else array
        for name, array in feed.items()
    }
