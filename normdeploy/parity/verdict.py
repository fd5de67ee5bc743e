"""The verdict: measured errors against criteria, kept apart so that saved measurements can be judged again.

It has two parts, for they have different causes, and in 16 bits a third between them:

1. **The graph**: the deployed graph, run in float64 by our own runner, against the eager module in float64. No runtime
   is in it, so the bound is sharp: ``e_graph <= e_eager + 2 ε`` (ε of float32), where e_eager is what eager PyTorch
   itself loses. In 16 bits this is the float32 graph that the deployed one was rounded from.
2. **The rounding** to 16 bits: each constant lies within half a unit in the last place, nothing else has changed
   (:mod:`normdeploy.parity.rounding`), and all of it costs no more than twice what it costs the module:
   ``e_graph <= 2 e_rounding + 2 ε``, where e_rounding is what rounding its weights, and the scalars of its code, costs
   the module in float64 arithmetic; or, where the fold has merged constants that are rounded more coarsely together,
   what eager itself loses in 16 bits. Where the float32 graph is not known, twice what rounding the weights costs is
   all that is asked of the graph.
3. **The runtime**: the artefact against the float64 run of the very same graph: ``e_runtime <= k e_eager + floor``, or
   no further off than the unfolded graph in the same runtime, whose kernels are then to blame. What the runtime alone
   may lose ends at 4096 ε in float32, and in 16 bits at 8 times eager's own error.

Both errors count, RMS and largest. The floor is a few ε of the type that the network computes in, for outputs that
eager happens to get exactly right. Where eager in its own dtype is the only reference, e_eager is 0 by definition and
the floor is raised. ε of integers and booleans is 0: they must be equal to eager's or to float64's. Where they are
computed in 16 bits, the error is the share of them that differs: as many times eager's own as of real numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from normdeploy.errors import InputError, MissingKernelError
from normdeploy.parity.metrics import Errors, eps

Reference = Literal["float64", "eager"]
Part = Literal["graph", "rounding", "runtime"]

EAGER_FLOOR_EPS = 64.0
"""The least floor, in ε, where eager in its own dtype is the reference: it is off by rounding errors itself."""
SIXTEEN = ("float16", "bfloat16")
"""The types of 16 bits."""
_ORDER: tuple[Part, ...] = get_args(Part)
NOT_RUN = "the graph is the eager module, but nothing here runs it, so the runtime was not judged"
"""What is said where all that a verdict lacks is a runtime."""


@dataclass(frozen=True)
class Measurement:
    """The errors of one output on one feed.

    Attributes:
        feed: name of the feed.
        output: name of the output.
        shape: its shape on this feed.
        dtype: its dtype, the one eager PyTorch returned in the deployed precision.
        eager: errors of eager PyTorch against float64; none where it is the reference itself. Of a graph in 16 bits,
            the errors of the module in float64 with its weights rounded.
        deployed: errors of what is judged, against the reference.
        reference: what this output was compared with; eager for integers and booleans, whose ties may fall otherwise
            in float64, and wherever float64 is of no use.
        part: what is judged: the graph, in float64; what rounding it to 16 bits costs; or the runtime, against the
            float64 run of the graph.
        computes: the dtype that the network computes in, where the output is wider, or whole numbers made of 16 bits;
            else empty.
        unfolded: errors of the unfolded graph in the same runtime; None where it was not run.
        noise: whether eager differs from float64 by as much as its own size: the output is what rounding leaves.
    """

    feed: str
    output: str
    shape: tuple[int, ...]
    dtype: str
    eager: Errors
    deployed: Errors
    reference: Reference = "float64"
    part: Part = "runtime"
    computes: str = ""
    unfolded: Errors | None = None
    noise: bool = False

    @property
    def eps(self) -> float:
        """Return ε of what the network computes in; 0 for integers and booleans."""
        own = eps(self.dtype)
        return max(own, eps(self.computes)) if own else 0.0


@dataclass(frozen=True)
class Criteria:
    """What an error may be; see the module's own words for the formulas.

    ``k`` and ``floor_eps`` are the user's. Above their defaults they loosen the graph's bound in proportion, below them
    the excuse of the unfolded graph: who asks for more, or for less, means both parts.

    Attributes:
        k: factor of eager's error, for the runtime.
        floor_eps: floor in ε of the type that the network computes in, for the runtime.
        graph_k: factor of eager's error, for the graph in float32.
        rounding_k: factor of what rounding the weights costs, for the graph in 16 bits.
        graph_floor_eps: floor in ε of float32, for the graph.
        unfolded_k: how far beyond the unfolded graph in the same runtime counts as no further.
        most_eps: what the runtime alone may lose in float32, in ε.
        most_k: and in 16 bits, in multiples of eager's error, of which half an ε is the least.
    """

    k: float = 4.0
    floor_eps: float = 8.0
    graph_k: float = 1.0
    rounding_k: float = 2.0
    graph_floor_eps: float = 2.0
    unfolded_k: float = 1.5
    most_eps: float = 4096.0
    most_k: float = 8.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise InputError(f"{value} is no tolerance", where=name, fix="give a finite number that is 0 or more")

    def floor(self, dtype: str, reference: Reference) -> float:
        """Return the error that is allowed whatever eager's own is; 0 for integers and booleans."""
        return self._floor_eps(reference) * eps(dtype)

    def formula(self, reference: Reference = "float64") -> str:
        """Return the criterion of the runtime as it is printed."""
        return (
            f"e_deployed <= k * e_eager + floor, with k = {self.k:g} and floor = {self._floor_eps(reference):g} eps, "
            "for rms(error) / rms(reference) and for max|error| / max|reference|"
        )

    def graph_formula(self, *, rounded: bool) -> str:
        """Return the criterion of the graph as it is printed; ``rounded`` for one in 16 bits."""
        k = (self.rounding_k if rounded else self.graph_k) * max(1.0, self.k / Criteria.k)
        own = f"{k:g} * e_rounding" if rounded else "e_eager" if k == 1 else f"{k:g} * e_eager"
        return f"e_graph <= {own} + {self._graph_floor_eps('float64'):g} eps of float32, both in float64"

    def factor(self, measurement: Measurement) -> float:
        """Return the factor of the error beside which a graph is judged; a ``k`` above its default raises it too."""
        sixteen = (measurement.dtype if measurement.eps else measurement.computes or measurement.dtype) in SIXTEEN
        own = self.rounding_k if sixteen else self.graph_k
        return own * max(1.0, self.k / Criteria.k)

    def _graph_floor_eps(self, reference: Reference) -> float:
        if reference == "eager":
            return self._floor_eps(reference)
        return self.graph_floor_eps * max(1.0, self.floor_eps / Criteria.floor_eps)

    def bound(self, measurement: Measurement, own: float, unfolded: float | None, reference: Reference) -> float:
        """Return the largest error that passes, beside ``own``, eager's, and that of the unfolded graph."""
        if measurement.part != "runtime":
            k = self.factor(measurement)
            floor = self._graph_floor_eps(reference)
            return k * own + (floor * eps("float32") if measurement.eps else 0.0)
        floor = self._floor_eps(reference) * measurement.eps
        bound = self.k * own + floor
        if unfolded is not None and math.isfinite(unfolded):
            excused = self.unfolded_k * min(1.0, self.k / Criteria.k) * unfolded + floor
            most = math.inf if measurement.dtype in SIXTEEN else self.most_eps * measurement.eps
            bound = max(bound, min(excused, most))
        if measurement.dtype in SIXTEEN and reference == "float64":
            bound = min(bound, self._most_in_16_bits(own, measurement.eps))
        return bound

    def _most_in_16_bits(self, own: float, unit: float) -> float:
        if not own:  # eager happens to be exact: the floor stands
            return math.inf
        raised = max(self.floor_eps - Criteria.floor_eps, 0.0) * unit  # by hand
        return max(self.most_k, self.k) * max(own, unit / 2) + raised

    def _floor_eps(self, reference: Reference) -> float:
        return max(self.floor_eps, EAGER_FLOOR_EPS) if reference == "eager" else self.floor_eps


@dataclass(frozen=True)
class Judgement:
    """One measurement judged.

    Attributes:
        bound_rms, bound_max: the largest errors that pass.
        passed: whether both errors keep their bounds, and NaN and infinities stand where they should.
        smallest_k: the least k that passes it, infinite where none does.
        excused: whether it passes only because the unfolded graph is as far off in the same runtime.
    """

    __pydantic_config__: ClassVar[Any] = {"ser_json_inf_nan": "strings"}

    measurement: Measurement
    bound_rms: float
    bound_max: float
    passed: bool
    smallest_k: float
    excused: bool = False


@dataclass(frozen=True)
class Verdict:
    """All judgements of one artefact: ``passed`` when every one of them passed, and the runtime is among them.

    Attributes:
        reference: "eager" where float64 served for nothing.
        formula: the criterion of the runtime; ``graph_formula`` and ``rounding_formula`` are those of the graph,
            empty where it was not judged so.
        first_divergent: the PyTorch module where a failure begins; None where none can be named.
        first_node: the node whose kernel is the furthest off, in words, where the runtime is to blame.
        misrounded: the constants of a 16-bit graph that are no rounding of the float32 graph's, in words.
        not_run: why no runtime here could run the graph, which was judged alone; empty where one did.
        blind: outputs of which eager PyTorch gave NaN and infinities alone, on every feed: nothing was compared.
    """

    passed: bool
    reference: Reference
    criteria: Criteria
    judgements: tuple[Judgement, ...]
    formula: str
    notes: tuple[str, ...] = ()
    first_divergent: str | None = None
    first_node: str | None = None
    graph_formula: str = ""
    rounding_formula: str = ""
    misrounded: tuple[str, ...] = ()
    not_run: str = ""
    blind: tuple[str, ...] = ()

    @property
    def smallest_k(self) -> float:
        """Return the least k that would pass everything; infinite where none does."""
        return max(judgement.smallest_k for judgement in self.judgements)

    def failures(self) -> tuple[Judgement, ...]:
        """Return the judgements that failed, those of the graph first, in the order of feeds and outputs."""
        failed = [judgement for judgement in self.judgements if not judgement.passed]
        return tuple(sorted(failed, key=lambda judgement: _ORDER.index(judgement.measurement.part)))

    @property
    def noise(self) -> tuple[str, ...]:
        """Return the outputs that failed where they are only what rounding leaves."""
        failed = (judgement.measurement for judgement in self.failures())
        return tuple(dict.fromkeys(each.output for each in failed if each.noise))

    @property
    def unjudged(self) -> bool:
        """Return True if all that it lacks to pass is a runtime that runs the graph."""
        return bool(self.not_run) and not self.failures() and not self.misrounded and not self.blind

    def of(self, part: Part) -> tuple[Judgement, ...]:
        """Return the judgements of one part."""
        return tuple(judgement for judgement in self.judgements if judgement.measurement.part == part)


def judge(
    measurements: Sequence[Measurement],
    criteria: Criteria | None = None,
    reference: Reference = "float64",
    notes: Iterable[str] = (),
    misrounded: Iterable[str] = (),
    not_run: str = "",
) -> Verdict:
    """Return the verdict on ``measurements``; ``reference`` "eager" holds for all of them, whatever they say.

    Constants that are ``misrounded`` fail it, whatever the outputs are, and where nothing ran the graph, as ``not_run``
    says, it does not pass; nor where an output has no finite value on any feed.

    Raises InputError where there is nothing to judge: no evidence is no pass.
    """
    if not measurements:
        raise InputError("parity has nothing to judge", fix="give at least one feed, and a model with an output")
    criteria = criteria or Criteria()
    judgements = tuple(judge_one(measurement, criteria, reference) for measurement in measurements)
    wrong = tuple(misrounded)
    seen = {each.output for each in measurements if each.deployed.compared}
    blind = tuple(dict.fromkeys(each.output for each in measurements if each.output not in seen))
    passed = all(judgement.passed for judgement in judgements) and not (wrong or not_run or blind)
    graph = [each.dtype in SIXTEEN for each in measurements if each.part == "graph"]
    rounded = any(each.part == "rounding" for each in measurements)
    return Verdict(
        passed, reference, criteria, judgements, criteria.formula(reference), tuple(notes),
        misrounded=wrong, not_run=not_run, blind=blind,
        graph_formula=criteria.graph_formula(rounded=all(graph)) if graph else "",
        rounding_formula=criteria.graph_formula(rounded=True) if rounded else "",
    )  # fmt: skip


def require_run(verdict: Verdict) -> None:
    """Raise MissingKernelError where all that ``verdict`` lacks to pass is a runtime that runs the graph."""
    if verdict.unjudged:
        fix = "verify it where the runtime has that kernel, such as by --device cuda, or deploy in float32"
        raise MissingKernelError(f"{NOT_RUN}: {verdict.not_run}", fix=fix)


def judge_one(measurement: Measurement, criteria: Criteria, reference: Reference = "float64") -> Judgement:
    """Return one measurement against its bounds."""
    reference = "eager" if reference == "eager" else measurement.reference
    deployed, unfolded = measurement.deployed, measurement.unfolded
    # an eager error without bound says nothing about what is allowed, so it allows nothing
    own = [error if math.isfinite(error) else 0.0 for error in (measurement.eager.rms, measurement.eager.max)]
    other = (None, None) if unfolded is None else (unfolded.rms, unfolded.max)
    plain = [criteria.bound(measurement, error, None, reference) for error in own]
    bounds = [criteria.bound(measurement, error, beside, reference) for error, beside in zip(own, other, strict=True)]
    errors = (deployed.rms, deployed.max)
    smallest_k = _smallest_k(measurement, own, criteria, reference)
    allowed_k = criteria.k if measurement.part == "runtime" else criteria.factor(measurement)
    within = all(error <= bound for error, bound in zip(errors, bounds, strict=True))
    # the least k is a quotient, whose rounding must not fail what it says would pass
    within_plain = all(error <= bound for error, bound in zip(errors, plain, strict=True)) or (
        smallest_k <= allowed_k and measurement.dtype not in SIXTEEN
    )
    passed = deployed.finite and (within or within_plain)
    return Judgement(measurement, bounds[0], bounds[1], passed, smallest_k, passed and not within_plain)


def _smallest_k(measurement: Measurement, own: list[float], criteria: Criteria, reference: Reference) -> float:
    """Return the least k with which the errors pass beside eager's own."""
    deployed = measurement.deployed
    if not deployed.finite:
        return math.inf
    floor = criteria.floor_eps if reference == "float64" else max(criteria.floor_eps, EAGER_FLOOR_EPS)
    unit = measurement.eps
    if measurement.part != "runtime":
        floor, unit = criteria._graph_floor_eps(reference), eps("float32") if unit else 0.0
    pairs = zip((deployed.rms, deployed.max), own, strict=True)
    return max(_least_k(error, eager, floor * unit) for error, eager in pairs)


def _least_k(deployed: float, eager: float, floor: float) -> float:
    """Return the least k ≥ 0 with deployed <= k * eager + floor."""
    if deployed <= floor:
        return 0.0
    return (deployed - floor) / eager if eager > 0 and deployed < math.inf else math.inf
