"""``pytest --normdeploy BUNDLE`` and ``assert_parity``, run by pytest in a folder of their own, as a user does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support import ROOT, WEIGHTS

from normdeploy.pipeline import report_of

OFF = """
from normdeploy.runtime import isolated
run, calls = isolated.IsolatedRunner.__call__, [0]

def off(self, feeds):
    calls[0] += 1
    outputs = run(self, feeds)
    return outputs if calls[0] == 1 else {name: value * 1.01 for name, value in outputs.items()}  # the golden ones pass

isolated.IsolatedRunner.__call__ = off
"""

SUITE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import onnx_ir as ir
from safetensors.torch import load_file
from models.digits import resnet
from normdeploy.export import to_graph
from normdeploy.fold import fold
from normdeploy.specs import parse

SPECS = ["x:N=1..1..8x1x8x8@f32"]

def network():
    module = resnet().eval()
    module.load_state_dict(load_file({str(WEIGHTS)!r}))
    return module

def test_a_bundle(assert_parity):
    assert assert_parity(network(), SPECS, {{bundle!r}}).passed

def test_a_graph_that_is_wrong(assert_parity):
    module = network()
    graph = fold(to_graph(module, parse(SPECS)).model).model
    weight = graph.graph.initializers["blocks.1.conv1.weight"]
    weight.const_value = ir.tensor(weight.const_value.numpy() * 1.001)
    assert_parity(module, SPECS, graph)
"""

PLACED = """
import torch
from normdeploy import pytest_plugin
torch.cuda.is_available = lambda: True

def test_where(request):
    placement = pytest_plugin._placement(request.config)
    assert (placement.device, placement.provider, placement.tf32) == ("cuda", "cuda", True)
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "normdeploy.pytest_plugin", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)


def test_each_output_and_feed_is_a_test(digits_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text("def test_of_the_folder(): raise AssertionError\n")
    done = run(tmp_path, "--normdeploy", str(digits_bundle), "-v")
    assert done.returncode == 0, done.stdout
    parity = report_of(digits_bundle).parity
    assert parity is not None
    names = re.findall(r"::(.*?) PASSED", done.stdout)
    feeds = {each.measurement.feed for each in parity.of("runtime")}
    drawn = {name.partition(" on ")[2] for name in names if name.startswith("onnxruntime cpu: output on ")}
    assert drawn <= feeds
    assert {feed for feed in feeds if feed.startswith("random")} <= drawn
    assert {name.partition(":")[0] for name in names} == {"graph", "onnxruntime cpu"}
    assert "test_of_the_folder" not in done.stdout


def test_what_fails_says_the_sentence_and_the_node(digits_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(OFF)
    done = run(tmp_path, "--normdeploy", str(digits_bundle))
    assert done.returncode == 1, done.stdout
    assert "The runtime does not compute that graph: it is off by 0.01" in done.stdout
    assert "Traceback" not in done.stdout
    assert re.search(r"where: .*by onnxruntime's kernel", done.stdout)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU is told")
def test_a_machine_that_cannot_is_not_green(digits_bundle: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "--normdeploy", str(digits_bundle), "--device", "cuda")
    assert done.returncode == 3
    assert "no NVIDIA GPU" in done.stdout + done.stderr


def test_tf32_is_asked_for_by_an_option_and_is_of_a_gpu_alone(digits_bundle: Path, tmp_path: Path) -> None:
    """The placement that the suite runs with is printed where a GPU is made up, refused where it is not."""
    (tmp_path / "test_mine.py").write_text(PLACED)
    done = run(tmp_path, "-q", "--device", "cuda", "--tf32")
    assert "1 passed" in done.stdout, done.stdout
    done = run(tmp_path, "--normdeploy", str(digits_bundle), "--tf32")
    assert done.returncode == 2
    assert "--tf32 is of NVIDIA GPUs alone" in done.stdout


def test_a_folder_that_is_no_bundle_is_told(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    done = run(tmp_path, "--normdeploy", str(tmp_path))
    assert done.returncode == 2
    assert "not a manifest that this normdeploy reads" in done.stdout


def test_a_suite_of_ones_own_names_the_module(digits_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(SUITE.replace("{bundle!r}", repr(str(digits_bundle))))
    done = run(tmp_path, "-q")
    assert "1 failed, 1 passed" in done.stdout, done.stdout
    assert "The graph is wrong" in done.stdout
    assert "where: module blocks.1.conv1" in done.stdout


def test_without_the_option_nothing_changes(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        "import sys\ndef test_is_light(): assert not {'torch', 'onnx', 'numpy'} & set(sys.modules)\n"
    )
    done = run(tmp_path, "-q", "-p", "no:hypothesispytest")
    assert "1 passed" in done.stdout, done.stdout
