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
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import onnxruntime
from customs import DOMAIN
from reals import FLOATS, Arrays, Change, Truth, arrays, unshared
from strategies import Case

from normdeploy.fold import FoldResult, Ledger, fold
from normdeploy.fold.ledger import METADATA_KEY
from normdeploy.fold.operators.table import TABLE

NEAR = 8.0
"""Errors below this many units in the last place of a channel's largest value need no closer look."""

RUNS, SAMPLES = 40, 12.0
"""Runs with moved weights, if so many are needed, and how many times the largest move they show an error may be."""

_TIE = 16.0
"""Units in the last place by which numbers that should be equal may differ in float64: a sum has so many terms."""

_EPS = {1: 2.0**-23, 10: 2.0**-10, 11: 2.0**-52, 16: 2.0**-7}
"""Spacing of the numbers at 1.0, by ONNX element type."""


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
    yield from _grown(case.proto, new)
    yield from _forgotten(case.proto, result.ledger)
    if again:
        if not any(entry.domain == DOMAIN for entry in case.proto.opset_import):  # what nobody knows hides types
            yield from _restless(new)
        if bare(ir.to_proto(fold(case.given, validate=False).model)) != bare(new):
            yield "folding without validation differs"
    yield from different(case, new)
    yield from _elsewhere(case, new)


def _restless(new: onnx.ModelProto) -> Iterator[str]:
    """Whether folding twice changes something; in 16 bits, rounding may make equal, and so foldable, what was not."""
    result = fold(new)
    again = ir.to_proto(result.model)
    if bare(again) == bare(new):
        return
    notes = [note.text for note in result.ledger.notes]
    told = [note.startswith("evaluated") for note in notes if "default value" not in note]
    # Which functions meet a norm is asked before the norms move, and a constant is stored in another form only where
    # nothing else reads it any more: both are the cleaning of a graph that has changed, and come to rest.
    moved = any(note.startswith("inlined") for note in notes)
    if moved or (told and all(told) and all(entry.outcome == "left" for entry in result.ledger)):
        if not _comes_to_rest(again):
            yield "folding again and again always changes something"
        return
    fewer = sum(1 for _ in nodes(again)) < sum(1 for _ in nodes(new))
    if coarsest(new) not in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16) or not fewer:
        yield "folding twice changes something"


def _comes_to_rest(proto: onnx.ModelProto) -> bool:
    """Return True if folding changes nothing after as many folds as there are functions that could go, and two."""
    for _ in range(len(proto.functions) + 2):
        after = ir.to_proto(fold(proto).model)
        if bare(after) == bare(proto):
            return True
        proto = after
    return False


def _violation(case: Case, new: onnx.ModelProto | None, problem: str) -> Violation:
    folded = "" if new is None else f"\n\nfolded:\n{onnx.printer.to_text(_without_ledger(new))}"
    return Violation(f"{problem}\n\ngiven:\n{onnx.printer.to_text(case.given)}{folded}")


# -- in ONNX Runtime -------------------------------------------------------------------------------

_LOOSE = {1: 1e-3, 10: 0.05, 11: 1e-9, 16: 0.2}
"""Relative errors below which two runs in a type need no closer look: as `_EPS`."""

_ROUNDED = 64.0
"""How many units in the last place a run in a type may lose at each number, as if the weights were off by as much."""


def _elsewhere(case: Case, new: onnx.ModelProto) -> Iterator[str]:
    """Whether ONNX Runtime, where it runs the original, runs the folded model too, and computes the same."""
    old_session = session(case.proto)
    if isinstance(old_session, str) or _pools_otherwise(case.proto):
        return
    runs = [(feed, _run(old_session, feed)) for feed in case.feeds]
    if any(isinstance(olds, str) for _, olds in runs):
        return  # what it does not know until it runs, it may know of the folded model when it loads
    new_session = session(new)
    if isinstance(new_session, str):
        yield f"ONNX Runtime loads the original, and not the folded model: {new_session}"
        return
    for feed, olds in runs:
        news = _run(new_session, feed)
        if isinstance(news, str):
            yield f"ONNX Runtime runs the original, and not the folded model: {news}"
            return
        assert not isinstance(olds, str)
        yield from _unlike(case, new, feed, olds, news)


def _overflows(proto: onnx.ModelProto, feed: Arrays) -> bool:
    """Whether a number that ``proto`` computes on the way is infinite in ONNX Runtime, or none at all."""
    shown = copy.deepcopy(flattened(proto))
    names = {info.name for info in shown.graph.output}
    for node in shown.graph.node:
        shown.graph.output.extend(
            onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name and name not in names
        )
    found = session(shown)
    inside = found if isinstance(found, str) else _run(found, feed)
    if isinstance(inside, str):
        return False
    return any(array.dtype.kind == "f" and not np.isfinite(array).all() for array in inside.values())


def _pools_otherwise(proto: onnx.ModelProto) -> bool:
    """Whether ``proto`` has a MaxPool of which ONNX Runtime makes fewer cells than ONNX says it has.

    With auto_pad SAME and dilations. What it plans by the shape that ONNX says may then fail, or not, by chance.
    """
    return any(
        node.op_type == "MaxPool"
        and {"auto_pad", "dilations"} <= (given := {attr.name: attr for attr in node.attribute}).keys()
        and given["auto_pad"].s.startswith(b"SAME")
        and max(given["dilations"].ints) > 1
        for node in nodes(proto)
    )


def session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession | str:
    """A session that runs ``proto`` as it is written, or why there is none."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:  # with functions in it, some models end the process
        return onnxruntime.InferenceSession(
            flattened(proto).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        return str(error)


def _run(found: onnxruntime.InferenceSession, feed: Arrays) -> Arrays | str:
    kinds = {"float": np.float32, "float16": np.float16, "double": np.float64}
    given = {}
    for info in found.get_inputs():
        kind = kinds.get(info.type.removeprefix("tensor(").removesuffix(")"))
        given[info.name] = feed[info.name] if kind is None else feed[info.name].astype(kind)
    try:
        results = found.run(None, given)
    except Exception as error:
        return str(error)
    return dict(arrays(zip([info.name for info in found.get_outputs()], results, strict=True)))


def _unlike(case: Case, new: onnx.ModelProto, feed: Arrays, olds: Arrays, news: Arrays) -> Iterator[str]:
    kind = coarsest(case.proto)
    if kind == onnx.TensorProto.FLOAT16 and _overflows(case.proto, feed):
        return  # in what is infinite nobody can see what a fold does to it
    for name, told in olds.items():
        expected, actual = (np.asarray(array, np.float64) if array.dtype.kind == "f" else array for array in
                            (told, news[name]))  # fmt: skip
        if expected.shape != actual.shape:
            yield f"{name}: in ONNX Runtime shape {expected.shape} became {actual.shape}"
            continue
        if expected.dtype.kind != "f":
            continue  # a rounding decides what is the largest
        both = np.isfinite(expected) & np.isfinite(actual)
        expected, actual = np.where(both, expected, 0.0), np.where(both, actual, 0.0)
        if _error(expected, actual) > _LOOSE[kind]:
            yield from _closer_look(case, new, feed, name, expected, actual, _ROUNDED * _EPS[kind])


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


def _grown(old: onnx.ModelProto, new: onnx.ModelProto) -> Iterator[str]:
    flat = [flattened(proto) for proto in (old, new)]
    heavy = [sum(1 for node in nodes(proto) if _is_heavy(node)) for proto in flat]
    if heavy[1] > heavy[0]:
        yield f"{heavy[0]} heavy operators became {heavy[1]}"
    passes = [len(passes_over_data(proto)) for proto in flat]
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


def flattened(proto: onnx.ModelProto) -> onnx.ModelProto:
    """``proto`` with all its functions inlined."""
    return onnx.inliner.inline_local_functions(proto) if proto.functions else proto


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
    case: Case,
    new: onnx.ModelProto,
    feed: Arrays,
    name: str,
    expected: np.ndarray,
    actual: np.ndarray,
    rounded: float | None = None,
) -> Iterator[str]:
    """The error against what moved weights do to both graphs (the original's own move by float64's rounding).

    Where ``rounded`` is given, both ran elsewhere, and each number may be off by so much of itself.
    """
    spread = np.zeros(expected.shape)
    differs = np.zeros(expected.shape, bool)
    if rounded is not None:
        spread = _restless_runs(case, new, feed, name, rounded)
    old = unshared(case.proto)  # in float64, what is b - b for one tensor need not be so after the fold
    float64 = 2.0**-50 if rounded is None else rounded
    exact = [actual, expected]
    if rounded is not None:
        exact = [Truth(proto)(feed)[name] for proto in (new, old)]
        lost = _distance(expected, exact[1], np.isfinite(expected) & np.isfinite(exact[1]))
        spread = np.fmax(spread, lost.max(initial=0.0))  # no more than it was off unfolded, times SAMPLES
    for seed in range(RUNS):
        rng = np.random.default_rng(seed)
        for proto, at, eps in zip((new, old), exact, (rounded, float64), strict=True):
            other = Truth(proto, _moved(rng, eps))(_moved_feed(feed, rng, float64))[name]
            if other.shape == spread.shape == at.shape:
                differs |= ~(other == at)
                spread = np.fmax(spread, _distance(other, at, np.isfinite(at)))
        is_chosen = expected.dtype.kind != "f"  # by a comparison: of what should be equal
        if rounded is None and (is_chosen or coarsest(case.proto) == onnx.TensorProto.DOUBLE):
            # What rounding each computed number does to the original: a graph in float64 is no better than its judge.
            other = Truth(old, seed=seed, units=_TIE if is_chosen else 1.0)(feed)[name]
            if other.shape == spread.shape:
                differs |= ~(other == expected)
                spread = np.fmax(spread, _distance(other, expected, np.isfinite(expected) & np.isfinite(other)))
        problem = _unexplained(expected, actual, spread, differs)
        if problem is None:
            return
    yield f"{name}: {'' if rounded is None else 'in ONNX Runtime, '}{problem}"


def _restless_runs(case: Case, new: onnx.ModelProto, feed: Arrays, name: str, eps: float) -> np.ndarray:
    """What inputs that are moved a little do to both graphs in ONNX Runtime, in which sums may cancel."""
    spread: Any = 0.0
    for found in map(session, (case.proto, new)):
        assert not isinstance(found, str)
        runs = []
        for seed in range(6):
            rng = np.random.default_rng(seed)
            moved = {
                key: array + (np.abs(array) + 1.0) * eps * _signs(rng, array.shape)
                if array.dtype.kind == "f"
                else array
                for key, array in feed.items()
            }
            run = _run(found, moved)
            assert not isinstance(run, str)
            runs.append(np.asarray(run[name], np.float64))
        if len({run.shape for run in runs}) == 1:
            spread = np.fmax(spread, np.ptp(np.nan_to_num(np.stack(runs)), axis=0))
    return np.asarray(spread)


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


def _moved_feed(feed: Arrays, rng: np.random.Generator, eps: float, least: float = 0.0) -> Arrays:
    """The inputs moved by what running may lose."""
    return {
        name: array + (np.abs(array) * eps + least) * _signs(rng, array.shape) if array.dtype.kind == "f" else array
        for name, array in feed.items()
    }
