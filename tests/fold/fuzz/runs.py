"""Many random graphs from one seed."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.internal.conjecture import providers
from hypothesis.internal.conjecture.engine import ConjectureRunner
from strategies import Case, cases


def each_case(
    start: int, count: int, look: Callable[[Case], object], *, shrink: bool = True, plain: bool = False
) -> None:
    """Let ``look`` see ``count`` graphs, the same ones for the same ``start``; what it raises comes shrunk if asked."""

    @seed(start)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=(Phase.generate, *([Phase.shrink] if shrink else [])),
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(plain=plain))
    def one(case: Case) -> None:
        look(case)

    # Five of six graphs would be the one before with a number or two changed: hypothesis likes to repeat what it drew.
    # And it likes the numbers that stand in the modules which happen to be imported: other tests, other graphs.
    with (
        patch.object(ConjectureRunner, "generate_mutations_from"),
        patch.object(providers, "_get_local_constants", providers.Constants),
    ):
        one()
