"""Maps that travel upward, into the weights of what made their input: every row of the operator table."""

import pytest
from cases import Case, ids
from cases_upward import REPVGG, UPWARD_INTO, UPWARD_THROUGH
from harness import check_fold


@pytest.mark.parametrize("case", UPWARD_INTO, ids=ids(UPWARD_INTO))
def test_into_weights(case: Case) -> None:
    ledger = check_fold(case.model(), case.becomes, onnxruntime=case.onnxruntime)
    gone = [entry for entry in ledger.norms() if entry.outcome in ("folded", "reduced")]
    assert len(ledger.norms()) - len(gone) == case.becomes.split().count("BatchNormalization")
    assert all(entry.residual is not None and entry.residual < 1e-12 for entry in gone)


@pytest.mark.parametrize("case", UPWARD_THROUGH, ids=ids(UPWARD_THROUGH))
def test_through_operators(case: Case) -> None:
    check_fold(case.model(), case.becomes, onnxruntime=case.onnxruntime)


@pytest.mark.parametrize("case", REPVGG, ids=ids(REPVGG))
def test_parallel_branches_become_one_convolution(case: Case) -> None:
    check_fold(case.model(), case.becomes, onnxruntime=case.onnxruntime)
