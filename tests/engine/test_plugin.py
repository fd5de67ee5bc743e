"""TensorRT's own Python code takes the plugins, and gets the kernel that the tests of the kernel run."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from normdeploy.kernels.compile import ENTRY, ptx
from normdeploy.kernels.variants import Norm, tiles

HERE = Path(__file__).parent
STORED: dict[str, Any] = {"gamma": "storage", "beta": "storage"}


def validated(**job: Any) -> dict[str, Any]:
    """Return what TensorRT's code accepted of a plugin."""
    job = {"sm": 90, "eps": 1e-6, "axes": 1, "tactic": 1} | job
    command = [sys.executable, str(HERE / "vendor_validation.py"), json.dumps(job)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


CASES: dict[str, tuple[dict[str, Any], Norm]] = {
    "LayerNorm": ({"dtype": "float16", "shape": [2, 7, 768]}, Norm(768, 1e-6, "float16", **STORED)),
    "RMSNorm": (
        {"dtype": "bfloat16", "shape": [5, 4096]},
        Norm(4096, 1e-6, "bfloat16", centre=False, gamma="storage", beta="none"),
    ),
    "AddLayerNorm": (
        {"dtype": "float32", "shape": [3, 5, 32, 32], "axes": 2},
        Norm(1024, 1e-6, residual=True, keep_sum=True, **STORED),
    ),
    "LayerNorm, one element for all": (
        {"dtype": "float16", "shape": [2, 768], "weights": [1]},
        Norm(768, 1e-6, "float16", uniform=True, **STORED),
    ),
    "LayerNorm, float32 weights of 16 bits": (
        {"dtype": "bfloat16", "shape": [2, 768], "weight": "float32"},
        Norm(768, 1e-6, "bfloat16"),
    ),
    "LayerNormQuantize": (
        {"dtype": "float16", "shape": [9, 512], "to": 3},
        Norm(512, 1e-6, "float16", output="int8", **STORED),
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tactic", [1, 2])
def test_a_plugin_hands_over_the_tested_kernel(name: str, tactic: int) -> None:
    job, norm = CASES[name]
    got = validated(name=name.partition(",")[0], tactic=tactic, **job)
    path = tiles(norm, 90)[:tactic][-1]
    rows = 1
    for size in job["shape"][: -job.get("axes", 1)]:
        rows *= size
    assert got["entry"] == ENTRY
    assert got["ptx"] == hashlib.sha256(ptx(path, 90)).hexdigest(), "byte for byte"
    assert got["grid"] == path.blocks(rows)
    assert got["block"] == path.threads
    assert got["arguments"] == [rows]


def test_outputs_have_the_types_of_onnx() -> None:
    assert validated(name="AddLayerNorm", **CASES["AddLayerNorm"][0])["outputs"] == ["FLOAT", "FLOAT"]
    assert validated(name="LayerNormQuantize", **CASES["LayerNormQuantize"][0])["outputs"] == ["INT8"]
    fp8 = CASES["LayerNormQuantize"][0] | {"to": 17}
    assert validated(name="LayerNormQuantize", **fp8)["outputs"] == ["FP8"]


def test_float32_weights_go_with_16_bits() -> None:
    taken = validated(name="LayerNorm", **CASES["LayerNorm, float32 weights of 16 bits"][0])["types"]
    assert taken == [["HALF", "FLOAT", "FLOAT", "HALF"], ["BF16", "FLOAT", "FLOAT", "BF16"]]


def test_types_go_together() -> None:
    taken = validated(name="LayerNormQuantize", **CASES["LayerNormQuantize"][0])["types"]
    assert [row for row in taken if row[0] == "HALF"] == [["HALF", "HALF", "HALF", "FLOAT", "INT8"]]
    assert {row[0] for row in taken} == {"FLOAT", "HALF", "BF16"}
