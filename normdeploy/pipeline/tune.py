"""``export --tune``: the forms that a model can be deployed in, timed in turns on this machine, and the one to keep.

A form is a level of its LayerNorms and a set of session options. Which one is fastest depends on the kernels that a
runtime has for them, and not in the direction that one would expect; so it is measured, and parity is judged of what
would be kept, in that very session. :mod:`normdeploy.bench.choice` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from normdeploy.bench.choice import Candidate, Race, Tuning, choose, race
from normdeploy.bench.stats import FEWEST
from normdeploy.bench.timers import take_turns
from normdeploy.errors import NormdeployError, VerdictError
from normdeploy.fold import FoldResult, Level, Target
from normdeploy.parity.feeds import Feed
from normdeploy.parity.verdict import Verdict
from normdeploy.pipeline.account import norm_counts
from normdeploy.pipeline.judge import summary
from normdeploy.pipeline.session import Session, in_this_process, written
from normdeploy.report.view import count
from normdeploy.runtime.onnxruntime import DISABLED_OPTIMIZERS, OnnxRuntimeRunner, operators_run
from normdeploy.runtime.optimizers import without
from normdeploy.runtime.runner import Runner

SESSIONS: tuple[dict[str, str], ...] = ({}, {"disabled_optimizers": "SkipLayerNormFusion"})
"""What sessions to try. The kernel for a sum and its norm, which the second one does without, can be the slower one."""

SEVERAL_FORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
"""Norms that have more than one form."""
_SECONDS, _WARM_UP_SECONDS = 1.0, 0.5
"""For one candidate; a slow model takes as long as it needs for its rounds."""


@dataclass(frozen=True)
class Kept:
    """What is deployed.

    Attributes:
        folded: the graph, and what became of its norms.
        verdict: on it, in its session.
        options: ONNX Runtime session options that it runs with.
        tuning: the account of the choice; None where there was none.
    """

    folded: FoldResult
    verdict: Verdict
    options: Mapping[str, str] = field(default_factory=dict)
    tuning: Tuning | None = None


@dataclass
class Tuner:
    """Makes the candidates, one at a time, and measures each beside the default.

    Attributes:
        default: what is kept where nothing is better; its verdict has passed.
        session: runs it.
        target: what it was folded for.
        engine: whether a plan is built of the same graph.
        fold: makes another form.
        judge: parity of another form.
        feed: what is run.
        threads: of each session.
    """

    default: Kept
    session: Runner
    target: Target
    engine: bool
    fold: Callable[[Level, Target], FoldResult]
    judge: Callable[[Session, FoldResult], Verdict]
    feed: Feed
    threads: int
    _made: dict[str, Kept] = field(default_factory=dict)
    _seen: dict[frozenset[object], str] = field(default_factory=dict)

    def run(self) -> Kept:
        """Try everything there is to try; the default is kept where nothing else is faster and right."""
        rows = choose(list(self._candidates()), self._wrong, self._race_again)
        kept = next(self._made[row.name] for row in rows if row.kept)
        return replace(kept, tuning=Tuning(rows, self.threads, self.feed.name))

    # -- the candidates ------------------------------------------------------------------------

    def _candidates(self) -> Iterator[Candidate]:
        """The default, then every other one with its race, or with the reason why there was none."""
        yield from self._sessions(self.default.folded, "affine", self.target)
        if not SEVERAL_FORMS & norm_counts(self.default.folded.model).keys():
            return
        for level, target in other_forms(self.target, engine=self.engine):
            try:
                folded = self.fold(level, target)
            except NormdeployError as error:
                yield Candidate(
                    form_name(level, target, {}), level, target, {}, reason=f"it cannot be made: {error.what}"
                )
            else:
                yield from self._sessions(folded, level, target)

    def _sessions(self, folded: FoldResult, level: Level, target: Target) -> Iterator[Candidate]:
        """One form in every session."""
        with written(folded.model) as path:
            for options in SESSIONS:
                row = Candidate(form_name(level, target, options), level, target, options)
                try:
                    yield self._tried(row, folded, path)
                except NormdeployError as error:
                    if not self._made:  # the default itself
                        raise
                    yield replace(row, reason=f"it cannot be run: {error.what}")

    def _tried(self, row: Candidate, folded: FoldResult, path: Path) -> Candidate:
        """``row`` with its race, if ONNX Runtime runs other operators there than in those before."""
        operators = frozenset(operators_run(path, self._options(row)).items())
        if operators in self._seen:
            return replace(row, reason=self._same_as(self._seen[operators], row, folded))
        is_default = not self._made
        self._seen[operators] = row.name
        self._made[row.name] = replace(self.default, folded=folded, options=self._options(row))
        return row if is_default else replace(row, race=self._race(row, path, self.session))

    def _same_as(self, name: str, row: Candidate, folded: FoldResult) -> str:
        """Why there is nothing to measure; of the RMS form also what the fold said of it."""
        same = f"ONNX Runtime runs the same operators as in {name!r}"
        if row.layernorm != "centre" or row.options:
            return same
        before = {entry.node: entry.reason for entry in self.default.folded.ledger}
        whys = [entry.reason.removeprefix(f"{before.get(entry.node)}; ") for entry in folded.ledger.norms()]
        said = list(dict.fromkeys(why for why in whys if why not in before.values()))
        more = f" (and {count(len(said) - 1, 'other reason')})" if len(said) > 1 else ""
        return f"{same}: {said[0]}{more}" if said else same

    # -- one candidate -------------------------------------------------------------------------

    def _race(self, row: Candidate, path: Path, default: Runner, seed: int = 0) -> Race:
        times = take_turns(
            default, self._session(row, path), self.feed, threads=self.threads, seconds=_SECONDS,
            warmup_seconds=_WARM_UP_SECONDS, seed=seed, fewest=FEWEST,
        )  # fmt: skip
        return race(*times, seed=seed)

    def _race_again(self, row: Candidate) -> Race:
        """Both in fresh sessions: where a session's memory lies can make it slower, too."""
        with (
            written(self._made[row.name].folded.model) as path,
            in_this_process(self.default.folded.model, self.threads, self.default.options) as default,
        ):
            return self._race(row, path, default, seed=1)

    def _wrong(self, row: Candidate) -> str:
        """Why parity of a candidate fails, judged in a session of its own; empty where it passes."""
        made = self._made[row.name]
        try:
            with written(made.folded.model) as path:
                verdict = self.judge(Session(self._session(row, path), self._options(row)), made.folded)
        except VerdictError as error:  # it does not run on a feed that eager takes
            return error.what
        self._made[row.name] = replace(made, verdict=verdict)
        return "" if verdict.passed else summary(verdict)

    def _session(self, row: Candidate, path: Path) -> Runner:
        return OnnxRuntimeRunner(path, threads=self.threads, options=self._options(row))

    def _options(self, row: Candidate) -> Mapping[str, str]:
        """Return the options of ``row`` on top of those without which the default does not run."""
        off = [name for name in row.options.get(DISABLED_OPTIMIZERS, "").split(",") if name]
        return without({**row.options, **self.default.options}, off)


def other_forms(target: Target, *, engine: bool) -> tuple[tuple[Level, Target], ...]:
    """Return the levels that are tried beside ``affine``, each with the target that it is folded for."""
    # a plan is built of the same graph, and TensorRT has its own mind about RMSNorms
    return ("centre", "tensorrt" if engine else "onnxruntime"), ("recognise", target)


def form_name(level: Level, target: Target, options: Mapping[str, str]) -> str:
    """Return what a form is called: ``affine``, ``centre for onnxruntime without SkipLayerNormFusion``."""
    off = options.get(DISABLED_OPTIMIZERS)
    form = level if target == "onnx" else f"{level} for {target}"
    return f"{form} without {off}" if off else form
