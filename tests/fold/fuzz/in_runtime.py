"""What ONNX Runtime makes of a folded model: where it runs the original, it runs that too, and computes the same.

It computes in the types of the model, so it is compared loosely; what is exact is compared in ``differences``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
from differences import closer_look, relative_error, signs
from messages import EPS, coarsest, depending, flattened, inside
from reals import Arrays, arrays
from strategies import Case

_LOOSE = {1: 1e-3, 10: 0.05, 11: 1e-9, 16: 0.2}
"""Relative errors below which two runs in a type need no closer look: as `_EPS`."""

_NEAR_LARGEST = 0.9 * 65504
"""From here on rounding may decide what is infinite in float16."""

_ROUNDED = {1: 64.0, 10: 8.0, 11: 64.0, 16: 8.0}
"""How many units in the last place a run in a type may lose at each number, as if the weights were off by as much."""


def elsewhere(case: Case, new: onnx.ModelProto) -> Iterator[str]:
    """Whether ONNX Runtime, where it runs the original, runs the folded model too, and computes the same."""
    old_session = session(case.proto)
    if isinstance(old_session, str):
        return
    runs = [(feed, _run(old_session, feed)) for feed in case.feeds]
    if any(isinstance(olds, str) for _, olds in runs):
        return  # what it does not know until it runs, it may know of the folded model when it loads
    new_session = session(new)
    if isinstance(new_session, str):
        yield f"ONNX Runtime loads the original, and not the folded model: {new_session}"
        return
    flat = flattened(case.proto)
    by_chance = _pooled_otherwise(flat)
    for feed, olds in runs:
        news = _run(new_session, feed)
        if isinstance(news, str):
            if not by_chance:
                yield f"ONNX Runtime runs the original, and not the folded model: {news}"
            return
        assert not isinstance(olds, str)
        numbers = _each_number(flat, feed) if coarsest(flat) == onnx.TensorProto.FLOAT16 else {}
        unseen = depending(flat, by_chance | _reaching(numbers, np.inf))
        seen = {name: array for name, array in olds.items() if _value(name) not in unseen}
        yield from _unlike(case, new, feed, seen, news)
        if numbers:
            near = depending(flat, by_chance | _reaching(numbers, _NEAR_LARGEST))
            yield from _overflowing(new, feed, {name for name in olds if _value(name) not in near})


def _value(name: str) -> str:
    """The output that an array is of: the elements of a sequence bear numbers."""
    return name.removesuffix(".length").partition("[")[0]


def _each_number(flat: onnx.ModelProto, feed: Arrays) -> Arrays:
    """All values of the main graph, by name, each rounded to its type; empty where that does not run.

    As outputs, that is: of others ONNX Runtime, which has few kernels in 16 bits, joins the casts away.
    """
    shown = copy.deepcopy(flat)
    names = {info.name for info in shown.graph.output}
    for node in shown.graph.node:
        shown.graph.output.extend(
            onnx.helper.make_empty_tensor_value_info(name) for name in node.output if name and name not in names
        )
    found = session(shown)
    made = found if isinstance(found, str) else _run(found, feed)
    return {} if isinstance(made, str) else made


def _reaching(numbers: Arrays, size: float) -> set[str]:
    """The values that are infinite, or no numbers, or in 16 bits have numbers of at least that ``size``."""
    return {
        _value(name)
        for name, array in numbers.items()
        if array.dtype.kind == "f"
        and not (np.abs(array.astype(np.float64)) < (size if array.dtype == np.float16 else np.inf)).all()
    }


def _overflowing(new: onnx.ModelProto, feed: Arrays, finite: set[str]) -> Iterator[str]:
    """Where the folded model is infinite in 16 bits, in outputs that the original is far from it in, all the way."""
    numbers = _each_number(flattened(new), feed)
    for name in sorted(finite & numbers.keys()):
        if numbers[name].dtype.kind == "f" and not np.isfinite(numbers[name]).all():
            yield f"{name}: in ONNX Runtime infinite in 16 bits, which the original is far from"


def _pooled_otherwise(flat: onnx.ModelProto) -> set[str]:
    """What a MaxPool makes of which ONNX Runtime makes fewer cells than ONNX says: auto_pad SAME, and dilations.

    What it plans by the shape that ONNX says may then fail, or not, by chance.
    """
    return {
        name for node in flat.graph.node if any(map(_is_pooled_otherwise, inside(node))) for name in node.output if name
    }


def _is_pooled_otherwise(node: onnx.NodeProto) -> bool:
    given = {attr.name: attr for attr in node.attribute}
    if node.op_type != "MaxPool" or not {"auto_pad", "dilations"} <= given.keys():
        return False
    return given["auto_pad"].s.startswith(b"SAME") and max(given["dilations"].ints) > 1


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
        if relative_error(expected, actual) > _LOOSE[kind]:
            rounded = _ROUNDED[kind] * EPS[kind]
            spread = _restless_runs(case, new, feed, name, rounded)
            yield from closer_look(case, new, feed, name, expected, actual, rounded, spread)


def _restless_runs(case: Case, new: onnx.ModelProto, feed: Arrays, name: str, eps: float) -> np.ndarray:
    """What inputs that are moved a little do to both graphs in ONNX Runtime, in which sums may cancel."""
    spread: Any = 0.0
    for found in map(session, (case.proto, new)):
        assert not isinstance(found, str)
        runs = []
        for seed in range(6):
            rng = np.random.default_rng(seed)
            moved = {
                key: array + (np.abs(array) + 1.0) * eps * signs(rng, array.shape) if array.dtype.kind == "f" else array
                for key, array in feed.items()
            }
            run = _run(found, moved)
            assert not isinstance(run, str)
            runs.append(np.asarray(run[name], np.float64))
        if len({run.shape for run in runs}) == 1:
            spread = np.fmax(spread, np.ptp(np.nan_to_num(np.stack(runs)), axis=0))
    return np.asarray(spread)
