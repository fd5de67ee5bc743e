"""The plugins that Python launches: in TensorRT's own registry, over changing shapes, through an engine and back."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from normdeploy.engine.plugin import DOMAIN
from normdeploy.engine.plugin_graph import to_plugins
from normdeploy.kernels.variants import Norm, tiles

HERE = Path(__file__).parent
STORED: dict[str, Any] = {"gamma": "storage", "beta": "storage"}


def ran(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(HERE / "vendor_v3.py"), *arguments], capture_output=True, text=True)


def asked(**job: Any) -> dict[str, Any]:
    done = ran("lean", json.dumps({"batches": [1, 5, 3]} | job))
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


CASES: dict[str, tuple[dict[str, Any], Norm, int]] = {
    "LayerNorm": (
        {"types": ["float16"] * 4, "shapes": [[1, 7, 4096], [4096], [4096]]},
        Norm(4096, 2.0**-10, "float16", **STORED),
        7,
    ),
    "LayerNorm in float32 around 16 bits": (
        {"types": ["bfloat16", "float32", "float32", "bfloat16"], "shapes": [[1, 768], [768], [768]]},
        Norm(768, 2.0**-10, "bfloat16"),
        1,
    ),
    "LayerNorm of one element for all": (
        {"types": ["float16"] * 4, "shapes": [[1, 768], [1], [1]]},
        Norm(768, 2.0**-10, "float16", uniform=True, **STORED),
        1,
    ),
    "RMSNorm": (
        {"types": ["bfloat16"] * 3, "shapes": [[1, 512], [512]]},
        Norm(512, 2.0**-10, "bfloat16", centre=False, gamma="storage", beta="none"),
        1,
    ),
    "AddLayerNorm": (
        {"types": ["float32"] * 6, "shapes": [[1, 5, 32, 32], [1, 5, 32, 32], [32, 32], [32, 32]], "axis": -2},
        Norm(1024, 2.0**-10, residual=True, keep_sum=True, **STORED),
        5,
    ),
    "LayerNormQuantize": (
        {"types": ["float16"] * 3 + ["float32", "int8"], "shapes": [[1, 512], [512], [512], []], "to": 3},
        Norm(512, 2.0**-10, "float16", output="int8", **STORED),
        1,
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("tactic", [1, 2])
def test_it_launches_the_tested_kernel_at_every_shape(case: str, tactic: int) -> None:
    job, norm, rows = CASES[case]
    name = case.split()[0]
    attributes = {"epsilon": 2.0**-10, "axis": job.get("axis", -1)} | ({"to": job["to"]} if "to" in job else {})
    got = asked(name=name, attributes=attributes, tactic=tactic, types=job["types"], shapes=job["shapes"])
    assert got["capabilities"]
    assert got["identity"] == [name, "2", DOMAIN, 2 if norm.keep_sum else 1]
    paths = tiles(norm, 90)
    assert got["tactics"] == list(range(1, 1 + len(paths)))
    names = [each for each in norm.parameters if each != "rows"]
    inputs, outputs = [n for n in names if n not in ("y", "sum")], [n for n in names if n in ("y", "sum")]
    addresses = {n: 16 * i for i, n in enumerate(inputs)} | {n: 256 + i for i, n in enumerate(outputs)}
    expected = {"path": repr(paths[:tactic][-1]), "addresses": addresses, "stream": 7, "sm": 90}
    assert got["launched"] == [expected | {"rows": rows * batch} for batch in (1, 5, 3)], "after the engine was loaded"
    assert got["fields"] == {key: [value] for key, value in attributes.items()}
    assert all(got["supported"])
    assert not any(got["other formats"])


def test_types_that_do_not_go_together_are_refused() -> None:
    job = {"name": "LayerNorm", "attributes": {"epsilon": 2.0**-10, "axis": -1}, "shapes": [[1, 8], [8], [8]]}
    assert asked(**job, types=["float16", "float16", "float32", "float16"])["supported"] == [True, True, False, True]
    assert asked(**job, types=["float16", "float32", "float32", "float32"])["supported"] == [True, True, True, False]


def test_an_attribute_that_is_missing_is_said() -> None:
    done = ran("lean", json.dumps({"name": "LayerNorm", "attributes": {"axis": -1}, "types": [], "shapes": []}))
    assert done.returncode != 0
    assert "the plugin has no epsilon" in done.stderr


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX has the parser")
def test_tensorrts_parser_makes_the_plugin_of_our_node(tmp_path: Path) -> None:
    text = """<ir_version: 11, opset_import: ["" : 21]> g (float[n,3,8] x, float[n,3,8] r) => (float[n,3,8] y)
        { s = Add (x, r) y = LayerNormalization <axis = 1, epsilon = 0.25> (s, g) }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((3, 8), np.float32), "g"))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    to_plugins(model, "python")
    ir.save(model, tmp_path / "model.onnx")
    done = ran("parser", str(tmp_path / "model.onnx"))
    assert json.loads(done.stdout) == {"operator": "AddLayerNorm", "attributes": {"epsilon": 0.25, "axis": -2}}
    assert done.returncode < 0, "TensorRT-RTX takes none: why it is refused before a build"
