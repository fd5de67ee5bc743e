"""Really trained networks: the doctor says what is known of each, and nothing else."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from support import ROOT
from test_checkpoints import photographs
from trained import HERE, NETWORKS, PACKAGES

import normdeploy
from normdeploy.pipeline.examine import Diagnosis

pytestmark = pytest.mark.real


@cache
def diagnosis(name: str, data: Path | None = None) -> Diagnosis:
    base = NETWORKS[name]
    return normdeploy.doctor(
        f"real_factories:{name}", base.inputs, data=data, app_dir=HERE, weights=PACKAGES / base.weights
    )


def codes(found: Diagnosis) -> dict[str, int]:
    return dict(Counter(each.code for each in found.findings))


def channels(found: Diagnosis, code: str) -> int:
    """How many channels the findings of ``code`` count together."""
    messages = [each.message for each in found.findings if each.code == code]
    return sum(
        int(match.group(1)) for message in messages if (match := re.search(r"in (\d+) of \d+ channels", message))
    )


def test_subnormal_variances_of_the_appearance_embedder() -> None:
    found = diagnosis("mobilenet_v2")
    assert channels(found, "ND007") == 31
    assert all("5.6e-45 at least" in each.message for each in found.findings if each.code == "ND007")
    (large,) = [each for each in found.findings if each.code == "ND009"]
    assert (large.module, "by 1902 at most" in large.message) == ("features.1.conv.1", True)
    assert set(codes(found)) == {"ND007", "ND009", "ND011", "ND013"}
    assert all(norm.fate.startswith("folded into") for norm in found.norms)


def test_zero_variances_of_the_classifier() -> None:
    found = diagnosis("efficientnet_lite0")
    assert channels(found, "ND006") == 130
    assert set(codes(found)) == {"ND006"}


def test_large_variances_of_the_pitch_tracker() -> None:
    found = diagnosis("crepe_full")
    (large,) = [each for each in found.findings if each.code == "ND015"]
    assert (large.module, "running_var up to 497,160" in large.message) == ("conv2_BN", True)
    assert (large.severity, "the norm itself is folded away" in large.message) == ("note", True)
    assert codes(found) == {"ND012": 6, "ND015": 1}  # the package makes its norms with momentum 0
    assert codes(diagnosis("crepe_tiny")) == {"ND012": 6}


def test_a_vanishing_scale_of_the_sentence_embedder() -> None:
    found = diagnosis("minilm")
    (dead,) = [each for each in found.findings if each.code == "ND008"]
    assert dead.module == "encoder.layer.5.output.LayerNorm"
    assert "-1.5e-09" in dead.message
    assert codes(found) == {"ND008": 1, "ND020": 13}


MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.mark.parametrize(
    ("mean", "deviation", "drifts"),
    [(127.0, 128.0, False), (MEAN * 255, DEVIATION * 255, True), (0.0, 1.0, True)],
    ids=["as it was trained", "as others are", "pixels"],
)
def test_wrong_preprocessing_is_seen_at_the_first_norm(
    mean: np.ndarray | float, deviation: np.ndarray | float, drifts: bool, tmp_path: Path
) -> None:
    pixels = 255 * (photographs("inputs")["inputs"].transpose(0, 2, 3, 1) * DEVIATION + MEAN)
    images = ((pixels - mean) / deviation).transpose(0, 3, 1, 2).astype(np.float32)
    np.savez(tmp_path / "photographs.npz", inputs=np.ascontiguousarray(images))
    found = diagnosis("efficientnet_lite0", tmp_path / "photographs.npz")
    assert [each.module for each in found.findings if each.code == "ND018"] == (["_bn0"] if drifts else [])


@pytest.mark.parametrize(
    ("look", "drifts"),
    [
        (lambda x: x, False),
        (lambda x: x[..., ::-1], False),  # mirrored digits have the same strokes
        (lambda x: 1 - x, True),
        (lambda x: 16 * x, True),
    ],
    ids=["as it was trained", "mirrored", "inverted", "not divided"],
)
def test_digits_that_look_different_are_seen(
    look: Callable[[np.ndarray], np.ndarray], drifts: bool, tmp_path: Path
) -> None:
    from models.digits import held_out

    np.savez(tmp_path / "digits.npz", x=np.ascontiguousarray(look(held_out()[0].numpy())))
    source = {"app_dir": ROOT, "weights": ROOT / "models" / "digits_resnet.safetensors"}
    found = normdeploy.doctor("models.digits:resnet", ["x:N=1..64..360x1x8x8"], data=tmp_path / "digits.npz", **source)
    seen = [each.module for each in found.findings if each.code == "ND018"]
    assert seen[:1] == (["norm"] if drifts else [])
