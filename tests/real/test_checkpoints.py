"""Really trained networks, through the command line: parity passes, and folding in float64 does not cost accuracy."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from trained import NETWORKS

from normdeploy.parity.verdict import Judgement
from normdeploy.pipeline import report_of
from normdeploy.report.schema import Report

pytestmark = pytest.mark.real

COUNT = 8  # of the data's items
Arrays = dict[str, npt.NDArray[Any]]


def photographs(name: str) -> Arrays:
    """Crops of scikit-learn's two photographs, normalized as for ImageNet: float32 [8, 3, 224, 224]."""
    from sklearn.datasets import load_sample_images

    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    corners = [(0, 0), (0, 416), (203, 100), (203, 300)]
    images = [image[y : y + 224, x : x + 224] for image in load_sample_images().images for y, x in corners]
    scaled = (np.stack(images) / 255 - mean) / deviation
    return {name: np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)}


def tones() -> Arrays:
    """Eight tones of a voice, normalized as the tracker wants them: float32 [8, 1024], at 16 kHz."""
    time = np.arange(1024) / 16_000
    pitches = 110.0 * 2 ** (np.arange(COUNT) / 4)
    waves = sum(np.sin(2 * np.pi * harmonic * np.outer(pitches, time)) / harmonic for harmonic in (1, 2, 3, 4))
    waves = waves - waves.mean(axis=1, keepdims=True)
    return {"x": (waves / waves.std(axis=1, ddof=1, keepdims=True)).astype(np.float32)}


def sentences() -> Arrays:
    """Token ids between [CLS] and [SEP], the tails padded: int64 [8, 24] and its mask."""
    generator = np.random.default_rng(0)
    ids = generator.integers(1996, 30522, (COUNT, 24))
    mask = np.arange(24) < generator.integers(5, 25, (COUNT, 1))
    ids[:, 0] = 101
    ids[np.arange(COUNT), mask.sum(axis=1) - 1] = 102
    return {"input_ids": ids * mask, "attention_mask": mask.astype(np.int64)}


DATA: dict[str, Callable[[], Arrays]] = {
    "mobilenet_v2": lambda: photographs("x"),
    "efficientnet_lite0": lambda: photographs("inputs"),
    "crepe_tiny": tones,
    "minilm": sentences,
}
"""What the inputs of some look like in reality."""


def exported(name: str, folder: Path) -> Report:
    """The report of the export of ``name`` into ``folder``, judged on real inputs too."""
    np.savez(folder / "data.npz", **DATA[name]())
    command = NETWORKS[name].command(folder / "out", "--data", str(folder / "data.npz"))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return report_of(folder / "out")


def on_data(report: Report) -> list[Judgement]:
    assert report.parity is not None
    assert report.parity.passed
    assert report.parity.reference == "float64"
    found = [judgement for judgement in report.parity.judgements if judgement.measurement.feed == "data"]
    assert found
    return found


@pytest.mark.parametrize(("name", "norms"), [("mobilenet_v2", 52), ("efficientnet_lite0", 49)])
def test_every_norm_is_folded_and_nothing_is_lost(name: str, norms: int, tmp_path: Path) -> None:
    report = exported(name, tmp_path)
    assert report.norms_before == {"BatchNormalization": norms}
    assert report.norms_after == {}
    for judgement in on_data(report):
        assert judgement.measurement.deployed.rms <= judgement.measurement.eager.rms


def test_norms_behind_a_relu_leave_the_pitch_tracker(tmp_path: Path) -> None:
    report = exported("crepe_tiny", tmp_path)
    assert report.norms_before == {"BatchNormalization": 6}
    assert report.norms_after == {}
    assert on_data(report)


def test_sentence_embeddings_agree(tmp_path: Path) -> None:
    report = exported("minilm", tmp_path)
    assert report.norms_before == {"LayerNormalization": 13}
    assert report.outputs == ["last_hidden_state", "pooler_output"]
    judged = [(each.measurement.part, each.measurement.output) for each in on_data(report)]
    assert sorted(judged) == sorted(itertools.product(("graph", "runtime"), report.outputs))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in DATA])
def test_a_trained_network_passes_at_default_bounds(name: str, tmp_path: Path) -> None:
    command = NETWORKS[name].command(tmp_path / "out", "--no-bench")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    parity = report_of(tmp_path / "out").parity
    assert parity is not None
    assert parity.passed
    assert parity.reference == "float64"
    assert all(not judgement.excused for judgement in parity.of("graph"))
