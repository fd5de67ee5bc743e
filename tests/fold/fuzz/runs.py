"""Many random graphs from one seed."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import HealthCheck, Phase, given, seed, settings
from strategies import Case, cases


def each_case(start: int, count: int, look: Callable[[Case], object]) -> None:
    """Let ``look`` see ``count`` graphs, the same ones for the same ``start``; what it raises comes shrunk."""

    @seed(start)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases())
    def one(case: Case) -> None:
        look(case)

    one()
