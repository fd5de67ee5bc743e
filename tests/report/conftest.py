from __future__ import annotations

import pytest
from report_samples import comparison, make, three_rows, verdict

from normdeploy.report.schema import Report


@pytest.fixture
def report() -> Report:
    """One with everything in it that a report can have."""
    return make(parity=verdict(), latency=comparison(), by_batch={1: three_rows(1.0), 64: three_rows(40.0)})
