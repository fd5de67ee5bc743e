"""Engines on the GPU that they run on: parity, shapes, CUDA graphs, layer times. Not run on a GPU yet."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from normdeploy.checkpoint import load
from normdeploy.engine import build
from normdeploy.engine.gpu import find
from normdeploy.engine.sidecar import sidecar_path
from normdeploy.errors import InputError
from normdeploy.export import to_graph
from normdeploy.fold import fold
from normdeploy.parity.compare import measure
from normdeploy.parity.feeds import random_feeds
from normdeploy.parity.verdict import Criteria, judge
from normdeploy.precision import Precision
from normdeploy.runtime.tensorrt import TensorRTRunner
from normdeploy.specs import parse

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]
SPECS = parse(["x:N=1..4..16x1x8x8@f32"])
MORE = parse(["x:N=32..32..64x1x8x8@f32"])


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def backend(request: pytest.FixtureRequest) -> str:
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


def digits(name: str) -> torch.nn.Module:
    weights = ROOT / f"models/digits_{name}.safetensors"
    return load(f"models.digits:{name}", app_dir=ROOT, weights=weights).module


def plan(folder: Path, backend: str, precision: Precision = "fp32", *, name: str = "resnet") -> Path:
    graph = fold(to_graph(digits(name), SPECS, opset=22).model).model
    built = build(graph, SPECS, more_profiles=[MORE], precision=precision, backend=backend)
    return built.write(folder / f"{name}.plan", force=True)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("name", ["resnet", "conv1d", "conv3d", "vit"])
def test_an_engine_is_as_exact_as_eager_pytorch(tmp_path: Path, backend: str, name: str, precision: Precision) -> None:
    runner = TensorRTRunner(plan(tmp_path, backend, precision, name=name))
    dtype = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    measured = measure(digits(name), SPECS, runner, random_feeds(SPECS), dtype=dtype)
    verdict = judge(measured.measurements, Criteria(), measured.reference)
    assert verdict.passed, verdict.judgements


def test_shapes_may_come_in_any_order_and_in_either_profile(tmp_path: Path, backend: str) -> None:
    path = plan(tmp_path, backend)
    runner = TensorRTRunner(path)
    x = np.random.default_rng(0).standard_normal((64, 1, 8, 8)).astype(np.float32)
    whole = runner({"x": x})
    for size in (1, 16, 48, 2, 64):
        part = runner({"x": x[:size]})
        np.testing.assert_allclose(part["output"], whole["output"][:size], rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="no profile"):
        runner({"x": x[:20]})


def test_a_cuda_graph_gives_the_same(tmp_path: Path, backend: str) -> None:
    path = plan(tmp_path, backend)
    plain, captured = TensorRTRunner(path), TensorRTRunner(path, cuda_graph=True)
    for seed, size in enumerate((4, 4, 1, 4)):
        x = torch.randn(size, 1, 8, 8, generator=torch.Generator().manual_seed(seed)).cuda()
        expected, actual = plain.run({"x": x}), captured.run({"x": x})
        torch.cuda.synchronize()
        torch.testing.assert_close(actual["output"], expected["output"])


def test_layer_times_name_the_modules(tmp_path: Path, backend: str) -> None:
    runner = TensorRTRunner(plan(tmp_path, backend))
    times = runner.layer_times({"x": torch.zeros(4, 1, 8, 8).cuda()})
    assert sum(each.milliseconds for each in times) > 0
    assert "conv" in {name for each in times for name in each.modules}


def test_an_engine_of_another_gpu_is_refused(tmp_path: Path, backend: str) -> None:
    path = plan(tmp_path, backend)
    document = json.loads(sidecar_path(path).read_text())
    document["gpu"], document["compute_capabilities"] = None, ["SM75"]
    sidecar_path(path).write_text(json.dumps(document))
    with pytest.raises(InputError, match="was built for SM75, and this GPU is"):
        TensorRTRunner(path)


def test_timings_are_kept_between_builds(tmp_path: Path, backend: str) -> None:
    if backend != "tensorrt":
        pytest.skip("TensorRT-RTX times no kernels")
    graph = fold(to_graph(digits("resnet"), SPECS).model).model
    first = build(graph, SPECS, backend=backend, timing_cache=tmp_path)
    assert first.sidecar.timing_cache_key
    assert (tmp_path / first.sidecar.timing_cache_key).stat().st_size > 0
    assert first.sidecar.gpu == str(find())
