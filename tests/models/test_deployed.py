"""Every deployed form of the trained networks, as exported and as folded, names every held-out scan as eager does;
every norm alone is deployed as its float64 formula says, or left alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file
from support import says
from torch import nn

from models import digits, norms
from normdeploy import specs
from normdeploy.export import to_graph
from normdeploy.fold import Ledger, Level, Target, fold
from normdeploy.fold.layernorm import centre, stream

ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'normdeploy[cpu]'")

FOLDER = Path(digits.__file__).parent
FOLDED = {"resnet": 9, "conv1d": 3, "conv3d": 3, "vit": 0}
"""How many norms are linear at inference, so that nothing may be left of them."""
LAYER_NORMS = {"resnet": 0, "conv1d": 0, "conv3d": 0, "vit": 7}

Deployed = tuple[nn.Module, ir.Model, ir.Model, Ledger]


@pytest.fixture(scope="module", params=FOLDED)
def deployed(request: pytest.FixtureRequest) -> tuple[str, Deployed]:
    """A network's name with its eager module, its exported and its folded graph, and the ledger."""
    module: nn.Module = getattr(digits, request.param)().eval()
    module.load_state_dict(load_file(FOLDER / f"digits_{request.param}.safetensors"))
    exported = to_graph(module, specs.parse(["x:N=1..1..360x1x8x8@f32"])).model
    folded = fold(exported)
    return request.param, (module, exported, folded.model, folded.ledger)


def run(model: ir.Model, feed: np.ndarray) -> np.ndarray:
    """The model's one output for its one input, on the CPU."""
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: feed})
    return np.asarray(output)


def count(model: ir.Model, op_type: str) -> int:
    return sum(node.op_type == op_type for node in model.graph)


def float64(module: nn.Module, feed: np.ndarray) -> np.ndarray:
    """What the module computes without rounding that matters; the module is float32 again afterwards."""
    with torch.inference_mode():
        result: torch.Tensor = module.double()(torch.from_numpy(feed).double())
    module.float()
    return result.numpy()


def test_top_1_agrees_on_every_held_out_scan(deployed: tuple[str, Deployed]) -> None:
    module, exported, folded, _ = deployed[1]
    images = digits.held_out()[0]
    with torch.inference_mode():
        eager = module(images).argmax(1).numpy()
    for model in (exported, folded):
        np.testing.assert_array_equal(run(model, images.numpy()).argmax(1), eager)


def test_one_scan_alone_gets_the_same_name(deployed: tuple[str, Deployed]) -> None:
    module, exported, folded, _ = deployed[1]
    scan = digits.held_out()[0][:1].numpy()
    for model in (exported, folded):
        assert run(model, scan).shape == (1, digits.CLASSES)
        np.testing.assert_array_equal(run(model, scan).argmax(1), float64(module, scan).argmax(1))


def test_folded_logits_are_as_near_to_float64_as_eager_is(deployed: tuple[str, Deployed]) -> None:
    module, _, folded, _ = deployed[1]
    images = digits.held_out()[0]
    exact = float64(module, images.numpy())
    with torch.inference_mode():
        eager = module(images).numpy()
    floor = 8 * np.finfo(np.float32).eps * np.abs(exact).max()
    assert np.abs(run(folded, images.numpy()) - exact).max() <= 4 * np.abs(eager - exact).max() + floor


def test_nothing_is_left_of_a_batch_norm_and_no_layer_norm_is_lost(deployed: tuple[str, Deployed]) -> None:
    name, (_, exported, folded, ledger) = deployed
    assert count(exported, "BatchNormalization") == FOLDED[name]
    assert count(folded, "BatchNormalization") == 0
    assert count(folded, "LayerNormalization") == count(exported, "LayerNormalization") == LAYER_NORMS[name]
    assert sum(entry.outcome == "folded" for entry in ledger.norms()) == FOLDED[name]
    assert len(ledger.norms()) == FOLDED[name] + LAYER_NORMS[name]


@pytest.mark.parametrize(("target", "opset"), [("onnx", 23), ("onnxruntime", 20)])
@pytest.mark.parametrize("level", get_args(Level))
def test_a_transformer_keeps_its_accuracy_to_the_last_scan(level: Level, target: Target, opset: int) -> None:
    module = digits.vit().eval()
    module.load_state_dict(load_file(FOLDER / "digits_vit.safetensors"))
    images, labels = digits.held_out()
    exported = to_graph(module, specs.parse(["x:N=1..1..360x1x8x8@f32"]), opset=opset).model
    folded = fold(exported, layernorm=level, target=target).model
    with torch.inference_mode():
        eager = module(images).argmax(1).numpy()
    named = run(folded, images.numpy()).argmax(1)
    np.testing.assert_array_equal(named, eager)
    assert int((named == labels.numpy()).sum()) == json.loads((FOLDER / "digits_vit.json").read_text())["correct"]
    rms = count(folded, "RMSNormalization") + count(folded, "SimplifiedLayerNormalization")
    # pre-LN, pooled behind the last norm: everything writes linearly and all that reads the stream is a norm
    assert (rms, count(folded, "LayerNormalization")) == ((7, 0) if level == "centre" else (0, 7))


def test_a_stream_whose_writers_are_left_uncentred_names_other_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the accuracy is compared for: the positions given a mean, and left with it."""
    module = digits.vit().eval()
    module.load_state_dict(load_file(FOLDER / "digits_vit.safetensors"))
    with torch.no_grad():
        module.get_parameter("position").add_(3.0)  # the norms take it off again: eager names the same digits

    def forget(*arguments: Any) -> stream.Stream:
        found = stream.stream_at(*arguments)
        found.weights.clear()
        return found

    images = digits.held_out()[0]
    exported = to_graph(module, specs.parse(["x:N=1..1..360x1x8x8@f32"]), opset=23).model
    with torch.inference_mode():
        eager = module(images).argmax(1).numpy()
    np.testing.assert_array_equal(run(fold(exported, layernorm="centre").model, images.numpy()).argmax(1), eager)
    monkeypatch.setattr(centre, "stream_at", forget)
    mutant = fold(exported, layernorm="centre", validate=False).model
    assert count(mutant, "RMSNormalization") == 7
    assert (run(mutant, images.numpy()).argmax(1) != eager).any()


def test_the_comparison_notices_foreign_weights(deployed: tuple[str, Deployed]) -> None:
    images = digits.held_out()[0]
    torch.manual_seed(0)
    fresh: nn.Module = getattr(digits, deployed[0])().eval()
    with torch.inference_mode():
        other = fresh(images).argmax(1).numpy()
    assert (run(deployed[1][2], images.numpy()).argmax(1) != other).any()


@pytest.mark.parametrize(
    ("factory", "options", "shape", "extent"),
    [
        (norms.batch_norm1d, {}, (5, 2), "2"),
        (norms.batch_norm1d, {"affine": False}, (5, 2, 3), "2x3"),
        (norms.batch_norm1d, {"eps": 0.5}, (5, 2, 3), "2x3"),
        (norms.batch_norm2d, {"momentum": None}, (5, 2, 3, 4), "2x3x4"),
        (norms.batch_norm3d, {"eps": 1e-3}, (5, 2, 2, 2, 3), "2x2x2x3"),
        (norms.layer_norm_w, {}, (5, 2, 3, 4), "2x3x4"),
        (norms.layer_norm_hw, {"eps": 0.5}, (5, 2, 3, 4), "2x3x4"),
        (norms.layer_norm_chw, {}, (5, 2, 3, 4), "2x3x4"),
        (norms.layer_norm_chw, {"elementwise_affine": False}, (5, 2, 3, 4), "2x3x4"),
        (norms.layer_norm_w, {"bias": False}, (5, 2, 3, 4), "2x3x4"),
    ],
)
def test_a_norm_alone_is_deployed_as_float64_says(
    factory: Callable[..., nn.Module], options: dict[str, object], shape: tuple[int, ...], extent: str
) -> None:
    norm = factory(**options).eval()
    feed = np.random.default_rng(0).normal(size=shape).astype(np.float32) + 1
    exported = to_graph(norm, specs.parse([f"input:N=1..5x{extent}@f32"])).model
    expected = float64(norm, feed)
    for model in (exported, fold(exported).model):
        np.testing.assert_allclose(run(model, feed), expected, rtol=0, atol=2e-6)  # values up to 10, a few roundings


@pytest.mark.parametrize(("factory", "shape"), [(norms.batch_norm1d, (5, 2)), (norms.batch_norm2d, (5, 2, 3, 4))])
def test_a_norm_of_its_batch_is_left_and_deployed_as_it_is(
    factory: Callable[..., nn.Module], shape: tuple[int, ...]
) -> None:
    norm = factory(track_running_stats=False).eval()
    feed = np.random.default_rng(0).normal(size=shape).astype(np.float32) + 1
    extent = "x".join(str(size) for size in shape[1:])
    folded = fold(to_graph(norm, specs.parse([f"input:N=2..5x{extent}@f32"])).model)
    (entry,) = folded.ledger.norms()
    assert entry.outcome == "left"
    assert says(entry, "NF101")
    for batch in (feed, feed[:2]):
        np.testing.assert_allclose(run(folded.model, batch), float64(norm, batch), rtol=0, atol=2e-6)
