"""Where maps come from, and what they become when they meet."""

import pytest
from cases import Case, ids
from cases_sources import COMPOSED, SOURCES
from harness import check_fold


@pytest.mark.parametrize("case", SOURCES, ids=ids(SOURCES))
def test_every_spelling_of_a_map_folds(case: Case) -> None:
    check_fold(case.model(), case.becomes, onnxruntime=case.onnxruntime)


@pytest.mark.parametrize("case", COMPOSED, ids=ids(COMPOSED))
def test_maps_that_meet_become_one(case: Case) -> None:
    check_fold(case.model(), case.becomes, onnxruntime=case.onnxruntime)
