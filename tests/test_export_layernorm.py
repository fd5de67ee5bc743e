"""``normdeploy export --layernorm --target``: the fold's own words, with the same meaning, on the way into a bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from support import ROOT, SPEC, VIT, VIT_EAGER, VIT_WEIGHTS, says

import normdeploy
from normdeploy.cli import main
from normdeploy.errors import InputError
from normdeploy.pipeline import Source, ledger_of, report_of

SOURCE: Source = {"app_dir": ROOT, "weights": VIT_WEIGHTS}
COMMAND = ["export", *VIT_EAGER, "--input", SPEC, "--no-bench", "--out"]


def norms(bundle: Path) -> list[tuple[str, int]]:
    """Operator type and number of inputs of each norm in the bundle's graph."""
    nodes = onnx.load(bundle / "model.onnx").graph.node
    return [(node.op_type, len(node.input)) for node in nodes if node.op_type.endswith("Normalization")]


def runs_as_the_network(bundle: Path) -> bool:
    from models.digits import vit

    network = vit().eval()
    network.load_state_dict(load_file(VIT_WEIGHTS))
    scans = np.random.default_rng(3).random((7, 1, 8, 8), dtype=np.float32)
    with torch.no_grad():
        truth = network.double()(torch.from_numpy(scans).double()).numpy()
    logits = normdeploy.load_bundle(bundle)(x=scans)["output"]
    return bool(np.abs(logits - truth).max() <= 1e-5 * np.abs(truth).max())  # a norm less is off by more than 1


@pytest.mark.parametrize(
    ("options", "kind", "inputs"),
    [
        ([], "LayerNormalization", 2),
        (["--layernorm", "off"], "LayerNormalization", 3),
        (["--layernorm", "recognise"], "LayerNormalization", 3),
        (["--layernorm", "centre"], "LayerNormalization", 2),
        (["--layernorm", "centre", "--opset", "23"], "RMSNormalization", 2),
        (["--layernorm", "centre", "--opset", "23", "--target", "tensorrt"], "LayerNormalization", 2),
        (["--layernorm", "centre", "--target", "onnxruntime"], "SimplifiedLayerNormalization", 2),
    ],
)
def test_the_level_and_the_target_decide_what_is_in_the_bundle(
    options: list[str], kind: str, inputs: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*COMMAND, str(out), *options]) == 0, capfd.readouterr().err
    assert norms(out) == [(kind, inputs)] * 7
    assert report_of(out).norms_after == {kind: 7}
    assert runs_as_the_network(out)


def test_the_ledger_says_why_no_norm_lost_its_mean(tmp_path: Path) -> None:
    normdeploy.export(VIT, [SPEC], tmp_path / "out", layernorm="centre", bench=False, **SOURCE)
    assert all(says(entry, "NF315") for entry in ledger_of(tmp_path / "out") if entry.norm)


def test_a_level_that_is_none_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, str(tmp_path / "out"), "--layernorm", "centred"]) == 2
    assert "centred" in capfd.readouterr().err
    with pytest.raises(InputError, match="centred"):
        normdeploy.export(VIT, [SPEC], tmp_path / "out", layernorm="centred", **SOURCE)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_engine_is_not_for_onnxruntime(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="TensorRT builds the engine"):
        normdeploy.export(VIT, [SPEC], tmp_path / "out", engine=True, target="onnxruntime", **SOURCE)
    assert list(tmp_path.iterdir()) == []
