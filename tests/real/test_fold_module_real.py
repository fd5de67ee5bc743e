"""Folded modules of whole architectures are the ONNX fold of their exports, in float64; what is refused is counted."""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, Architecture, randomized

import normdeploy
from normdeploy import specs
from normdeploy.export import to_graph
from normdeploy.export.encoder import one_path
from normdeploy.fold import fold
from normdeploy.parity.feeds import random_feeds
from normdeploy.runtime.eager import EagerRunner
from normdeploy.runtime.float64 import Float64Runner

pytestmark = pytest.mark.real

REFUSED = {"Wav2Vec2-Conformer": 0}
"""Norms that the graph's fold takes away and no module can, by architecture; 0 where nothing is said."""


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda architecture: architecture.name)
def test_the_folded_module_is_the_folded_graph(architecture: Architecture) -> None:
    module, parsed = randomized(architecture), specs.parse([architecture.spec])
    feed = random_feeds(parsed)[0]
    folded, ledger = normdeploy.fold_module(module, {name: torch.from_numpy(a) for name, a in feed.arrays.items()})
    graph = fold(to_graph(module, parsed).model)
    with one_path():
        wanted = Float64Runner(graph.model)(feed.arrays)
        actual = EagerRunner(copy.deepcopy(folded), parsed, dtype=torch.float64)(feed.arrays)
    for name, value in wanted.items():
        if value.dtype.kind == "f":
            off = np.linalg.norm(actual[name] - value) / np.linalg.norm(value)
            assert off <= 1e-6, f"{name}: {off:.2g}"
    refused = Counter(code for entry in ledger.norms() for code in entry.codes if code.startswith("NT"))
    assert sum(refused.values()) == REFUSED.get(architecture.name, 0), refused
    linear = {entry.module for entry in ledger.norms() if "BatchNorm" in entry.kind}
    assert len(linear) == architecture.norms
