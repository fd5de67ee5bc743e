"""What a folder made of a graph: invalid, wrong, how much is left. The truth is float64, and nobody's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from peers import counting
from peers.borrowed import REFERENCE, channel_error, coarsest, constant_rows, feeds, in_float64, is_float, probes
from peers.graph import Graph

Arrays = dict[str, np.ndarray]

WRONG = {"float16": 2e-2, "bfloat16": 1e-1, "float32": 1e-4, "float64": 1e-4}
"""The error, relative to the largest value of its channel, from which on an answer is wrong and not just rounded."""

OWN = {"LayerNormalization", "SimplifiedLayerNormalization"}
"""What ONNX Runtime writes into the domain of ONNX, at opsets that do not have it."""

INEXACT = 1e-2
"""The same where a runtime answered in the graph's own precision: its kernels add their own rounding."""


@dataclass(frozen=True)
class Outcome:
    """What a folder made of one graph.

    Attributes:
        crash: the folder raised, died or took too long; empty where it did not.
        invalid: what the checker, the loader or the runtime says of its model; empty where nothing.
        wrong: how its model answers otherwise; empty where it does not.
        left: how much is left; None where there is no model.
        seconds: load, fold and save.
    """

    crash: str = ""
    invalid: str = ""
    wrong: str = ""
    left: int | None = None
    seconds: float | None = None

    def did(self, graph: Graph) -> bool:
        """Whether all that can be folded is, and rightly."""
        right = not (self.crash or self.invalid or self.wrong)
        return right and graph.left is not None and self.left is not None and self.left <= graph.left

    def as_json(self) -> dict[str, Any]:
        """What is not empty."""
        return {key: value for key, value in asdict(self).items() if value not in ("", None)}


@dataclass(frozen=True)
class Question:
    """One set of inputs and the right answers to it."""

    feed: Arrays
    answers: Arrays


def questions(proto: onnx.ModelProto) -> list[Question]:
    """Zeros, which expose mistakes at borders, rows without deviation, and random inputs; what may be overridden is."""
    rows = feeds(proto, lambda shape: constant_rows(np.random.default_rng(11), shape))
    asked = [dict(probe) | _overrides(proto) for probe in (*probes(proto), rows)]
    return [Question(feed, _answers(proto, feed)[0]) for feed in asked]


def _overrides(proto: onnx.ModelProto) -> Arrays:
    inputs = {info.name for info in proto.graph.input} if proto.ir_version >= 4 else set()
    arrays = {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer if item.name in inputs}
    return {name: array[::-1] + np.ones((), array.dtype) for name, array in arrays.items()}


def _answers(proto: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> tuple[Arrays, bool]:
    """By the reference in float64 (True); where it has no kernel, by ONNX Runtime as the graph stands (False)."""
    for operators in (REFERENCE, []):
        try:
            return _by_reference(proto, feed, operators), True
        except Exception:  # training mode, or an operator of ONNX Runtime's own
            continue
    return run(proto, feed), False


def _by_reference(proto: onnx.ModelProto, feed: Mapping[str, np.ndarray], operators: list[Any]) -> Arrays:
    wide = {name: array.astype(np.float64) if is_float(array) else array for name, array in feed.items()}
    with np.errstate(all="ignore"):
        results = ReferenceEvaluator(in_float64(proto), new_ops=operators).run(None, wide)
    return {info.name: np.asarray(array) for info, array in zip(proto.graph.output, results, strict=True)}


def run(proto: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> Arrays:
    """The outputs in ONNX Runtime, which is to change nothing."""
    session = _session(proto)
    given = {item.name: feed[item.name] for item in (*session.get_inputs(), *session.get_overridable_initializers())}
    return dict(zip([item.name for item in session.get_outputs()], session.run(None, given), strict=True))


def _session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def require_valid(proto: onnx.ModelProto) -> None:
    """Raise what the checker says; a model with operators that ONNX Runtime adds to ONNX is for it to judge."""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception:
        if not any(node.op_type in OWN for node in proto.graph.node):
            raise
        _session(proto)


def wrong_as_it_stands(proto: onnx.ModelProto, asked: list[Question]) -> str:
    """How ONNX Runtime answers the graph itself otherwise, in its own precision; empty where it does not, or cannot."""
    try:
        answers = [run(proto, question.feed) for question in asked]
    except Exception:  # it has no such kernel
        return ""
    return difference(proto, asked, answers, exact=False)


def outcome(graph: Graph, asked: list[Question], target: Path, seconds: float) -> Outcome:
    """The judgement of an ONNX file."""
    try:
        proto = onnx.load(target)
        require_valid(proto)
    except Exception as error:
        return Outcome(invalid=_said(error), seconds=seconds)
    left = counting.left_in_onnx(proto, graph.counted)
    given = {info.name for info in proto.graph.input} | {info.name for info in proto.graph.output}
    wanted = set(asked[0].answers) | (set(asked[0].feed) & {info.name for info in graph.model.graph.input})
    if missing := wanted - given:
        return Outcome(invalid=f"without {', '.join(sorted(missing))}", left=left, seconds=seconds)
    try:
        answers = [_answers(proto, question.feed) for question in asked]
    except Exception as error:
        return Outcome(invalid=_said(error), left=left, seconds=seconds)
    exact = all(exact for _, exact in answers)
    wrong = difference(graph.model, asked, [answer for answer, _ in answers], exact=exact)
    return Outcome(wrong=wrong, left=left, seconds=seconds)


def difference(proto: onnx.ModelProto, asked: list[Question], answers: list[Arrays], *, exact: bool) -> str:
    """How ``answers`` differ from the right ones; empty where they do not."""
    limit = WRONG[coarsest(proto)] if exact else max(WRONG[coarsest(proto)], INEXACT)
    for name in asked[0].answers:
        want = np.stack([np.asarray(question.answers[name]) for question in asked]).astype(np.float64)
        try:
            got = np.stack([np.asarray(answer[name]) for answer in answers]).astype(np.float64)
        except (KeyError, ValueError) as error:
            return f"{name}: {_said(error)}"
        if got.shape != want.shape:
            return f"{name} is {list(got.shape[1:])}, not {list(want.shape[1:])}"
        finite = np.isfinite(want)
        if not np.isfinite(got[finite]).all():
            return f"{name} is not finite"
        off = channel_error(np.where(finite, want, 0), np.where(finite, got, 0))
        if off > limit:
            return f"{name} is off by {off:.2g}"
    return ""


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]
