"""The verdict: measured errors against criteria, kept apart so that saved measurements can be judged again.

An output passes when both its RMS error and its largest error satisfy ``e_deployed <= k * e_eager + floor``: e_eager is
what eager PyTorch itself loses in the deployed dtype against a float64 reference, so no tolerance is guessed. The floor
is a few ε of that dtype, for outputs that eager happens to get exactly right. Where eager in its own dtype is the only
reference, e_eager is 0 by definition and the floor is raised. ε of integers and booleans is 0: they must be equal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from normdeploy.errors import InputError
from normdeploy.parity.metrics import Errors, eps

Reference = Literal["float64", "eager"]

EAGER_FLOOR_EPS = 64.0
"""The least floor, in ε, where eager in its own dtype is the reference: it is off by rounding errors itself."""


@dataclass(frozen=True)
class Measurement:
    """The errors of one output on one feed.

    Attributes:
        feed: name of the feed.
        output: name of the output.
        shape: its shape on this feed.
        dtype: its dtype, the one eager PyTorch returned in the deployed precision.
        eager: errors of eager PyTorch against the reference; none where it is the reference itself.
        deployed: errors of the artefact against the reference.
        reference: what this output was compared with; eager for integers and booleans, whose ties may fall otherwise
            in float64, and wherever float64 is of no use.
    """

    feed: str
    output: str
    shape: tuple[int, ...]
    dtype: str
    eager: Errors
    deployed: Errors
    reference: Reference = "float64"


@dataclass(frozen=True)
class Criteria:
    """``e_deployed <= k * e_eager + floor``, where floor = ``floor_eps`` * ε of the output's dtype."""

    k: float = 4.0
    floor_eps: float = 8.0

    def __post_init__(self) -> None:
        for name, value in (("k", self.k), ("floor_eps", self.floor_eps)):
            if not 0 <= value < math.inf:
                raise InputError(f"{value} is no tolerance", where=name, fix="give a finite number that is 0 or more")

    def floor(self, dtype: str, reference: Reference) -> float:
        """The error that is allowed whatever eager's own is; 0 for integers and booleans."""
        return self._floor_eps(reference) * eps(dtype)

    def formula(self, reference: Reference = "float64") -> str:
        """The criterion as it is printed."""
        return (
            f"e_deployed <= k * e_eager + floor, with k = {self.k:g} and floor = {self._floor_eps(reference):g} eps, "
            "for rms(error) / rms(reference) and for max|error| / max|reference|"
        )

    def _floor_eps(self, reference: Reference) -> float:
        return max(self.floor_eps, EAGER_FLOOR_EPS) if reference == "eager" else self.floor_eps


@dataclass(frozen=True)
class Judgement:
    """One measurement judged; ``smallest_k`` is the least k that passes it, infinite where none does."""

    __pydantic_config__: ClassVar[Any] = {"ser_json_inf_nan": "strings"}

    measurement: Measurement
    bound_rms: float
    bound_max: float
    passed: bool
    smallest_k: float


@dataclass(frozen=True)
class Verdict:
    """All judgements of one artefact: ``passed`` when every one of them passed."""

    passed: bool
    reference: Reference
    criteria: Criteria
    judgements: tuple[Judgement, ...]
    formula: str
    notes: tuple[str, ...] = ()
    first_divergent: str | None = None

    @property
    def smallest_k(self) -> float:
        """The least k that would pass everything; infinite where none does."""
        return max(judgement.smallest_k for judgement in self.judgements)

    def failures(self) -> tuple[Judgement, ...]:
        """The judgements that failed, in the order of feeds and outputs."""
        return tuple(judgement for judgement in self.judgements if not judgement.passed)


def judge(
    measurements: Sequence[Measurement],
    criteria: Criteria | None = None,
    reference: Reference = "float64",
    notes: Iterable[str] = (),
) -> Verdict:
    """The verdict on ``measurements``; ``reference`` "eager" holds for all of them, whatever they say themselves.

    Raises InputError where there is nothing to judge: no evidence is no pass.
    """
    if not measurements:
        raise InputError("parity has nothing to judge", fix="give at least one feed, and a model with an output")
    criteria = criteria or Criteria()
    judgements = tuple(judge_one(measurement, criteria, reference) for measurement in measurements)
    passed = all(judgement.passed for judgement in judgements)
    return Verdict(passed, reference, criteria, judgements, criteria.formula(reference), tuple(notes))


def judge_one(measurement: Measurement, criteria: Criteria, reference: Reference = "float64") -> Judgement:
    """One measurement against its bounds."""
    floor = criteria.floor(measurement.dtype, "eager" if reference == "eager" else measurement.reference)
    deployed = measurement.deployed
    # an eager error without bound says nothing about what is allowed, so it allows nothing
    own = [error if math.isfinite(error) else 0.0 for error in (measurement.eager.rms, measurement.eager.max)]
    smallest_k = max(_least_k(deployed.rms, own[0], floor), _least_k(deployed.max, own[1], floor))
    if not deployed.finite:
        smallest_k = math.inf
    bound_rms, bound_max = (criteria.k * error + floor for error in own)
    return Judgement(measurement, bound_rms, bound_max, smallest_k <= criteria.k, smallest_k)


def _least_k(deployed: float, eager: float, floor: float) -> float:
    """The least k ≥ 0 with deployed <= k * eager + floor."""
    if deployed <= floor:
        return 0.0
    return (deployed - floor) / eager if eager > 0 and deployed < math.inf else math.inf
