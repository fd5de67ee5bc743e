"""1,000 random graphs: folded and original agree, and all else that properties.py says; ``make fuzz`` draws others."""

from __future__ import annotations

import pytest
from properties import check
from runs import each_case

SHARDS, GRAPHS = 8, 125


@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_folded_graph_is_the_graph_that_was_given(shard: int) -> None:
    each_case(shard, GRAPHS, check)
