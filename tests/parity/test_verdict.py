"""The criterion at, above and below its bound, on measurements made by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from normdeploy.errors import InputError, MissingKernelError
from normdeploy.parity.metrics import EXACT, Errors
from normdeploy.parity.verdict import Criteria, Measurement, Verdict, judge, judge_one, require_run

EPS32 = 2.0**-23
NONNEGATIVE = st.floats(0, 1e6)


def err(rms: float, largest: float | None = None, *, finite: bool = True) -> Errors:
    return replace(EXACT, rms=rms, max=rms if largest is None else largest, finite=finite)


def measurement(eager: Errors, deployed: Errors, dtype: str = "float32", **more: Any) -> Measurement:
    return Measurement("random N=1", "output", (1, 10), dtype, eager, deployed, **more)


def test_the_bound_is_k_times_eagers_error_plus_the_floor() -> None:
    judgement = judge_one(measurement(err(1e-3, 2e-3), err(0, 0)), Criteria())
    assert judgement.bound_rms == 4 * 1e-3 + 8 * EPS32
    assert judgement.bound_max == 4 * 2e-3 + 8 * EPS32


@pytest.mark.parametrize(("rms", "largest", "passed"), [(5, 10, True), (5.1, 10, False), (5, 10.1, False)])
def test_both_errors_must_keep_their_bound(rms: float, largest: float, passed: bool) -> None:
    criteria = Criteria(k=4.0, floor_eps=2.0**23)  # a floor of exactly 1
    judgement = judge_one(measurement(err(1.0, 2.25), err(rms, largest)), criteria)
    assert (judgement.bound_rms, judgement.bound_max) == (5.0, 10.0)
    assert judgement.passed is passed


@pytest.mark.parametrize(
    ("dtype", "eps"), [("float32", 2**-23), ("float16", 2**-10), ("bfloat16", 2**-7), ("float64", 2**-52)]
)
def test_the_floor_follows_the_dtype(dtype: str, eps: float) -> None:
    assert judge_one(measurement(EXACT, err(8 * eps), dtype), Criteria()).passed
    assert not judge_one(measurement(EXACT, err(8.01 * eps), dtype), Criteria()).passed


@pytest.mark.parametrize("dtype", ["int64", "bool"])
def test_integers_must_be_equal_whatever_the_floor(dtype: str) -> None:
    criteria = Criteria(k=1e6, floor_eps=1e6)
    assert judge_one(measurement(EXACT, EXACT, dtype, reference="eager"), criteria).passed
    judgement = judge_one(measurement(EXACT, err(1e-12), dtype, reference="eager"), criteria)
    assert not judgement.passed
    assert judgement.smallest_k == math.inf


def test_the_floor_is_raised_where_eager_is_the_reference() -> None:
    assert judge_one(measurement(EXACT, err(64 * EPS32), reference="eager"), Criteria()).passed
    assert not judge_one(measurement(EXACT, err(65 * EPS32), reference="eager"), Criteria()).passed
    assert not judge_one(measurement(EXACT, err(64 * EPS32)), Criteria()).passed
    assert judge([measurement(EXACT, err(64 * EPS32))], reference="eager").passed
    # one that was set higher stays
    assert judge_one(measurement(EXACT, err(99 * EPS32), reference="eager"), Criteria(floor_eps=100)).passed


def test_other_non_finite_values_never_pass() -> None:
    huge = Criteria(k=1e300, floor_eps=1e300)
    judgement = judge_one(measurement(err(1.0), err(0.0, finite=False)), huge)
    assert not judgement.passed
    assert judgement.smallest_k == math.inf


def test_an_infinite_error_of_eager_allows_nothing() -> None:
    judgement = judge_one(measurement(err(math.inf), err(0.5)), Criteria())
    assert not judgement.passed
    assert judgement.bound_rms == judgement.bound_max == 8 * EPS32
    assert judge_one(measurement(err(math.inf), EXACT), Criteria(k=0.0)).passed


@given(NONNEGATIVE, NONNEGATIVE, NONNEGATIVE, NONNEGATIVE, st.floats(0, 100))
def test_the_smallest_k_passes_and_any_smaller_one_fails(a: float, b: float, c: float, d: float, floor: float) -> None:
    measured = measurement(err(a, b), err(c, d))
    smallest = judge_one(measured, Criteria(floor_eps=floor)).smallest_k
    if math.isfinite(smallest):
        assert judge_one(measured, Criteria(k=smallest, floor_eps=floor)).passed
    if smallest > 0:
        below = min(smallest * (1 - 1e-9), 1e300)
        assert not judge_one(measured, Criteria(k=below, floor_eps=floor)).passed


def test_one_failure_fails_all_and_is_found() -> None:
    good, bad = measurement(err(1e-3), err(1e-3)), measurement(err(1e-3), err(5e-3))
    verdict = judge([good, bad, good], notes=["a note"])
    assert not verdict.passed
    assert verdict.failures() == (verdict.judgements[1],)
    assert verdict.smallest_k == pytest.approx(5.0, rel=1e-3)
    assert verdict.notes == ("a note",)
    assert judge([good]).passed


def test_no_evidence_is_no_pass() -> None:
    with pytest.raises(InputError, match="nothing to judge"):
        judge([])


@pytest.mark.parametrize("bad", [{"k": -1.0}, {"k": math.inf}, {"k": math.nan}, {"floor_eps": -1.0}])
def test_criteria_that_pass_everything_or_nothing_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match="no tolerance"):
        Criteria(**bad)


def test_the_formula_says_what_was_applied() -> None:
    assert "e_deployed <= k * e_eager + floor, with k = 2.5 and floor = 8 eps" in Criteria(k=2.5).formula()
    assert "floor = 64 eps" in judge([measurement(EXACT, EXACT)], reference="eager").formula
    assert "max|error| / max|reference|" in Criteria().formula()


def test_saved_results_can_be_judged_again() -> None:
    verdict = judge([measurement(err(1e-3), err(5e-3)), measurement(EXACT, err(1.0, finite=False))], Criteria())
    adapter = TypeAdapter(Verdict)
    saved = adapter.validate_json(adapter.dump_json(verdict))
    assert saved == verdict
    again = judge([judgement.measurement for judgement in saved.judgements], Criteria(k=6.0), saved.reference)
    assert [judgement.passed for judgement in verdict.judgements] == [False, False]
    assert [judgement.passed for judgement in again.judgements] == [True, False]
    assert again.judgements[1].smallest_k == math.inf


def test_a_graph_that_nothing_ran_is_no_pass_and_no_failure() -> None:
    good, bad = (measurement(EXACT, err(error), part="graph") for error in (0.0, 1.0))
    alone = judge([good], not_run="no kernel")
    assert (alone.passed, alone.unjudged) == (False, True)
    with pytest.raises(MissingKernelError, match="no kernel") as caught:
        require_run(alone)
    assert caught.value.exit_code == 3
    for verdict in (judge([bad], not_run="no kernel"), judge([good], misrounded=["w"], not_run="no kernel")):
        assert (verdict.passed, verdict.unjudged) == (False, False)
        require_run(verdict)
    require_run(judge([good]))


def test_an_output_without_a_finite_value_on_any_feed_is_no_pass() -> None:
    blind = replace(EXACT, compared=False)
    seen, nothing = measurement(EXACT, EXACT), measurement(EXACT, blind)
    assert judge([seen, nothing]).passed, "NaN on one feed alone"
    verdict = judge([nothing, nothing])
    assert not verdict.passed
    assert verdict.blind == (nothing.output,)
    assert not judge([seen, replace(nothing, output="other")]).passed
    adapter = TypeAdapter(Verdict)
    assert adapter.validate_json(adapter.dump_json(verdict)) == verdict
    require_run(replace(verdict, not_run="no kernel"))  # it has failed: another runtime would not help
