"""What the tests have already: tables of graphs, whole architectures, a float64 truth. They are no packages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent.parent.parent / "tests"
sys.path[:0] = [str(TESTS / "fold"), str(TESTS / "fold" / "layernorm"), str(TESTS / "real"), str(TESTS)]

# mypy does not look into the tests
import affine_cases  # type: ignore[import-not-found]  # noqa: E402
import norm_harness  # type: ignore[import-not-found]  # noqa: E402
import spelled_cases  # type: ignore[import-not-found]  # noqa: E402
import stream_cases  # type: ignore[import-not-found]  # noqa: E402
from architectures import ARCHITECTURES, PACKAGES, Architecture, network, randomized  # type: ignore[import-not-found]  # noqa: E402
from cases import Case  # type: ignore[import-not-found]  # noqa: E402
from cases_downward import DOWNWARD_INTO, DOWNWARD_THROUGH  # type: ignore[import-not-found]  # noqa: E402
from cases_refusals import NOT_CONSTANT, NOT_LINEAR, NOT_PER_CHANNEL  # type: ignore[import-not-found]  # noqa: E402
from cases_sources import COMPOSED, SOURCES  # type: ignore[import-not-found]  # noqa: E402
from cases_upward import REPVGG, UPWARD_INTO, UPWARD_THROUGH  # type: ignore[import-not-found]  # noqa: E402
from harness import bn, channel_error, coarsest, feeds, fill, model, norm, parsed, probes  # type: ignore[import-not-found]  # noqa: E402
from layernorm_nets import NETWORKS, lived_in  # type: ignore[import-not-found]  # noqa: E402
from reference64 import OPERATORS, in_float64, is_float  # type: ignore[import-not-found]  # noqa: E402

GROUPS = {
    "upward into weights": UPWARD_INTO,
    "upward through operators": UPWARD_THROUGH,
    "downward into weights": DOWNWARD_INTO,
    "downward through operators": DOWNWARD_THROUGH,
    "sources of maps": SOURCES,
    "maps meeting maps": COMPOSED,
    "parallel convolutions": REPVGG,
    "not linear": NOT_LINEAR,
    "not constant": NOT_CONSTANT,
    "not per channel": NOT_PER_CHANNEL,
}
"""The graphs that the fold is tested with."""

norm_model = norm_harness.model
constant_rows = norm_harness.ROWS["constant rows"]

REFERENCE: list[Any] = OPERATORS
"""The operators that the reference evaluator lacks in float64, by PyTorch and numpy."""

__all__ = [
    "ARCHITECTURES", "GROUPS", "NETWORKS", "PACKAGES", "REFERENCE", "Architecture", "Case", "affine_cases", "bn",
    "channel_error", "coarsest", "constant_rows", "feeds", "fill", "in_float64", "is_float", "lived_in", "model",
    "network", "norm", "norm_model", "parsed", "probes", "randomized", "spelled_cases", "stream_cases",
]  # fmt: skip
