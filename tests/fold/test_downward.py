"""Maps that travel downward, into the weights of whatever reads them: every row of the operator table."""

import pytest
from cases import Case, ids
from cases_downward import DOWNWARD_INTO, DOWNWARD_THROUGH
from harness import check_fold


@pytest.mark.parametrize("case", DOWNWARD_INTO, ids=ids(DOWNWARD_INTO))
def test_into_weights(case: Case) -> None:
    check_fold(case.model(), case.becomes, onnxruntime=case.onnxruntime)


@pytest.mark.parametrize("case", DOWNWARD_THROUGH, ids=ids(DOWNWARD_THROUGH))
def test_through_operators(case: Case) -> None:
    check_fold(case.model(), case.becomes, onnxruntime=case.onnxruntime)
