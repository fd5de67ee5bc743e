"""Bundles of graphs that are written as text, without PyTorch: what they are to give is worked out in NumPy."""

from __future__ import annotations

from pathlib import Path

import bundle_samples as samples
import numpy as np
import onnx
import onnx_ir as ir

from normdeploy.bundle import Golden, write
from normdeploy.fold.ledger import Ledger
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner


def bundle_of(
    folder: Path, signature: str, body: str, specs: list[str], inputs: dict[str, np.ndarray], **options: object
) -> Path:
    """A bundle of the graph ``signature { body }``, whose golden outputs ONNX Runtime gives for ``inputs``."""
    text = f'<ir_version: 10, opset_import: ["": 20]>\ng {signature} {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    outputs = OnnxRuntimeRunner(proto.SerializeToString(), threads=1)(inputs)
    report = samples.report().model_copy(
        update={"inputs": specs, "outputs": [*outputs], "parity": None, "ledger": Ledger(()), "norms_before": {}}
    )
    made = ir.from_proto(proto)
    return write(folder, model=made, report=report, golden=Golden(inputs, outputs), **options)  # type: ignore[arg-type]
