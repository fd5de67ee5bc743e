"""ONNX Runtime on the GPU: parity there, and no silent fallback to the CPU. Not run on a GPU yet."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from normdeploy.checkpoint import load
from normdeploy.errors import UnavailableError
from normdeploy.export import to_graph
from normdeploy.fold import fold
from normdeploy.parity.compare import measure
from normdeploy.parity.feeds import random_feeds
from normdeploy.parity.verdict import Criteria, judge
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.runtime.placement import placed
from normdeploy.specs import parse

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
SPECS = parse(["x:N=1..4..16x1x8x8@f32"])


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "nv-tensorrt-rtx"])
@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_a_gpu_provider_is_as_exact_as_eager_pytorch(tmp_path: Path, name: str, provider: str) -> None:
    module = load(f"models.digits:{name}", app_dir=ROOT, weights=ROOT / f"models/digits_{name}.safetensors").module
    ir.save(fold(to_graph(module, SPECS).model).model, tmp_path / "model.onnx")
    try:
        runner = OnnxRuntimeRunner(tmp_path / "model.onnx", placement=placed("cuda", provider))
    except UnavailableError as error:
        pytest.skip(str(error))
    measured = measure(module, SPECS, runner, random_feeds(SPECS))
    assert judge(measured.measurements, Criteria(), measured.reference).passed
