"""A bundle of a small model with a float and an integer input and output, made without PyTorch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from normdeploy.bundle import Golden
from normdeploy.fold.ledger import Entry, Ledger
from normdeploy.parity.metrics import errors
from normdeploy.parity.verdict import Measurement, judge
from normdeploy.report.schema import Report
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner

SPECS = ["x:N=1..2..4x5@f32", "ids:N@i64[0..6]"]
FILES = {
    "manifest.json",
    "io.json",
    "report.json",
    "report.html",
    "model.onnx",
    "golden/inputs.npz",
    "golden/outputs.npz",
}

_GRAPH = """
<ir_version: 10, opset_import: ["": 20]>
small (float[N, 5] x, int64[N] ids) => (float[N, 64] y, int64[N, 1] top) {
    product = MatMul (x, w)
    row = Gather (table, ids)
    y = Add (product, row)
    top = ArgMax <axis = 1> (y)
}
"""
_GENERATOR = np.random.default_rng(7)
WEIGHTS = {name: _GENERATOR.standard_normal((n, 64)).astype(np.float32) for name, n in (("w", 5), ("table", 7))}
INPUTS = {"x": _GENERATOR.standard_normal((3, 5)).astype(np.float32), "ids": np.array([6, 0, 2])}


def model() -> ir.Model:
    proto = onnx.parser.parse_model(_GRAPH)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in WEIGHTS.items())
    return ir.from_proto(proto)


def expected(inputs: dict[str, np.ndarray], dtype: type[np.floating[Any]]) -> dict[str, np.ndarray]:
    """What the model means, in numpy."""
    y = inputs["x"].astype(dtype) @ WEIGHTS["w"].astype(dtype) + WEIGHTS["table"].astype(dtype)[inputs["ids"]]
    return {"y": y, "top": y.argmax(axis=1, keepdims=True)}


def golden() -> Golden:
    outputs = OnnxRuntimeRunner(ir.to_proto(model()).SerializeToString(), threads=1)(INPUTS)
    return Golden(INPUTS, {"top": outputs["top"], "y": outputs["y"]})


def report() -> Report:
    exact, single, deployed = expected(INPUTS, np.float64), expected(INPUTS, np.float32), golden().outputs
    measurements = [
        Measurement(
            "random", name, deployed[name].shape, dtype,
            errors(single[name], exact[name], dtype), errors(deployed[name], exact[name], dtype),
        )
        for name, dtype in (("y", "float32"), ("top", "int64"))
    ]  # fmt: skip
    return Report(
        created=datetime(2025, 3, 1, 12, 30, tzinfo=UTC),
        normdeploy_version="0.1.0",
        packages={"onnxruntime": "1.32.0"},
        factory="models.small:net",
        weights="small.safetensors",
        weights_sha256="cd" * 32,
        inputs=SPECS,
        outputs=["y", "top"],
        opset=20,
        precision="float32",
        norms_before={"BatchNormalization": 1},
        norms_after={},
        ledger=Ledger((Entry("bn", "n0", "BatchNormalization", True, "folded", ("linear",), (), 1.0, 2e-16),)),
        parity=judge(measurements),
        latency=None,
        notes=[],
        seconds={"export": 1.5},
    )


def sign(folder: Path) -> None:
    """Write every file's true sha256 into the manifest, as one who makes a bundle by hand would."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    edit(folder, lambda manifest: manifest.update(files={k: v for k, v in digests.items() if k != "manifest.json"}))


def edit(folder: Path, change: Callable[[dict[str, Any]], Any], name: str = "manifest.json") -> None:
    """Let ``change`` work on a JSON file of the bundle."""
    raw = json.loads((folder / name).read_text())
    change(raw)
    (folder / name).write_text(json.dumps(raw))


def tree(folder: Path) -> dict[str, bytes | None]:
    """Relative name → content (None for a folder) of everything below ``folder``, hidden files included."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
