"""A client of Triton: the golden inputs of a bundle, over HTTP with binary tensors and over gRPC.

It needs NumPy and tritonclient alone, and of the bundle its ``io.json`` and golden arrays::

    pip install 'tritonclient[http,grpc]'
    python scripts/examples/triton_client.py out/digits_resnet --http 127.0.0.1:8000 --grpc 127.0.0.1:8001

It prints how far each output is off; the exit code is 1 where that is more than ``--most``.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient import grpc, http
from tritonclient.utils import np_to_triton_dtype


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--http", help="host:port")
    parser.add_argument("--grpc", help="host:port")
    parser.add_argument("--model", help="by default the name of the bundle's folder")
    parser.add_argument("--most", type=float, default=1e-5, help="that an output may be off, beside its largest value")
    given = parser.parse_args()
    model, right = given.model or given.bundle.name, True
    for protocol, address, module in (("HTTP", given.http, http), ("gRPC", given.grpc, grpc)):
        if address is None:
            continue
        for name, error in asked(module, address, model, given.bundle).items():
            print(f"{protocol}  {name} is off by {error:.2g}")
            right &= error <= given.most
    return 0 if right else 1


def asked(module: Any, address: str, model: str, bundle: Path) -> dict[str, float]:
    """Return output → largest error beside the largest value, of what the server gives for the golden inputs."""
    interface = json.loads((bundle / "io.json").read_text())
    inputs, golden = (np.load(bundle / "golden" / f"{kind}.npz") for kind in ("inputs", "outputs"))
    tensors = []
    for told in interface["inputs"]:
        array = inputs[told["name"]]
        array = array[:, None] if array.ndim == 1 else array  # Triton has no rows that are scalars
        tensor = module.InferInput(told["name"], list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        tensors.append(tensor)
    with module.InferenceServerClient(address) as client:
        answer = client.infer(model, tensors)
    return {name: off(answer.as_numpy(name), golden[name]) for name in golden.files}


def off(actual: np.ndarray, wanted: np.ndarray) -> float:
    """Return the largest error beside the largest value; infinite where the shape is another, or NaN is in it."""
    if actual is None or actual.size != wanted.size:
        return float("inf")
    error = np.abs(actual.reshape(wanted.shape).astype(np.float64) - wanted.astype(np.float64)).max()
    scale = max(float(np.abs(wanted.astype(np.float64)).max()), 1e-30)
    return float(error) / scale if np.isfinite(error) else float("inf")


if __name__ == "__main__":
    sys.exit(main())
