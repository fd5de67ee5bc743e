"""``normdeploy calibrate`` for data that outgrow one machine: every worker counts its batches, merging is exact.

    make .venv-ray/.installed
    .venv-ray/bin/python scripts/calibrate_ray.py --model models.digits:resnet \\
        --weights models/digits_resnet.safetensors --input "x:N=1..64..64x1x8x8" \\
        --data digits.npz --workers 2 --partial digits.part

reads .npz files as a Ray dataset, and writes a partial result, of which

    normdeploy calibrate ... --merge digits.part --out calibrated.safetensors

makes the checkpoint. Ray lies in an environment of its own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from normdeploy.checkpoint import load
from normdeploy.doctor import calibration
from normdeploy.doctor.calibration import Collected
from normdeploy.doctor.partial import Partial
from normdeploy.doctor.partial import read as read_partial
from normdeploy.runtime.eager import EagerRunner
from normdeploy.specs import parse

Rows = dict[str, np.ndarray]


class Counter:
    """A worker: the network, loaded once, and what reaches its norms in each batch that it is given."""

    def __init__(self, options: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        sys.path.insert(0, options["app_dir"])
        loaded = load(options["model"], app_dir=Path(options["app_dir"]), weights=Path(options["weights"]), check=False)
        self.module = loaded.module
        for part in self.module.modules():
            part.training = False
        self.norms = calibration.calibrated(self.module, options["only"])
        self.run = EagerRunner(self.module, parse(options["input"]))
        self.weights = calibration.digest(self.module, self.norms)

    def __call__(self, rows: Rows) -> dict[str, list[bytes]]:
        """Return the moments of one batch, as one row."""
        moments = calibration.collect(self.norms, lambda: self.run(rows), {})
        return {"partial": [Partial(self.weights, 1, moments).to_bytes()]}


def dataset(files: list[str]) -> ray.data.Dataset:
    """Return the items of .npz files, by the names of their arrays."""
    parts = []
    for file in files:
        with np.load(file) as arrays:
            held = {name: arrays[name] for name in arrays.files}
        parts.append(
            ray.data.from_items(
                [{name: array[i] for name, array in held.items()} for i in range(len(next(iter(held.values()))))]
            )
        )
    first, *others = parts
    return first.union(*others) if others else first


def merged(blobs: list[bytes], folder: Path) -> Partial:
    """Return all partial results as one."""
    found: list[Partial] = []
    for blob in blobs:
        (folder / "one.part").write_bytes(blob)
        found.append(read_partial(folder / "one.part"))
    moments: Collected = calibration.merged(part.moments for part in found)
    return Partial(found[0].weights, len(found), moments)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--app-dir", default=".")
    parser.add_argument("--input", nargs="+", required=True)
    parser.add_argument("--data", nargs="+", required=True, help=".npz files, of items along their first axis")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--partial", type=Path, required=True, help="the file to write")
    return parser.parse_args()


def main() -> None:
    import tempfile

    given = arguments()
    ray.init(num_cpus=given.workers, include_dashboard=False, log_to_driver=False)
    options = {
        "model": given.model,
        "weights": str(Path(given.weights).resolve()),
        "app_dir": str(Path(given.app_dir).resolve()),
        "input": given.input,
        "only": given.only,
    }
    counted = dataset(given.data).map_batches(
        Counter, fn_constructor_args=(options,), batch_size=given.batch, batch_format="numpy",
        concurrency=given.workers,
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="normdeploy-ray-") as folder:
        total = merged([row["partial"] for row in counted.iter_rows()], Path(folder))
    total.write(given.partial)
    print(f"{total.done} batches by {given.workers} workers: {given.partial}")


if __name__ == "__main__":
    main()
