"""Moments in a file: what one machine has counted, to be gone on with or to be merged with others'."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from normdeploy.disk import disk_errors, write_file
from normdeploy.doctor.calibration import Collected
from normdeploy.doctor.moments import Moments
from normdeploy.errors import InputError

METADATA_KEY = "normdeploy.calibration"
_TENSORS = ("mean", "m2", "batch_means", "batch_variances")


@dataclass(frozen=True)
class Partial:
    """What was counted so far.

    Attributes:
        weights: the SHA-256 of the parameters that it was counted with.
        done: how many batches of the data it is.
        moments: of each norm.
        data: the SHA-256 of the data and the size of the batches that it was begun with; empty where nobody goes on.
    """

    weights: str
    done: int
    moments: Collected
    data: str = ""

    def to_bytes(self) -> bytes:
        """Return it as a safetensors file."""
        tensors: dict[str, Tensor] = {}
        facts: dict[str, list[float]] = {}
        for name, each in self.moments.items():
            tensors |= {f"{name}|{part}": getattr(each, part).contiguous().clone() for part in _TENSORS}
            facts[name] = [each.count, each.batches, each.largest]
        told = json.dumps(
            {"weights": self.weights, "done": self.done, "data": self.data, "norms": facts}, sort_keys=True
        )
        return save(tensors, {METADATA_KEY: told})

    def write(self, path: Path) -> None:
        """Write it to ``path``, in place of what was there."""
        with disk_errors(path, "the partial result"):
            write_file(path, self.to_bytes(), replace=True)


def read(path: Path) -> Partial:
    """Return what :meth:`Partial.write` wrote; InputError for any other file."""
    try:
        with safe_open(str(path), framework="pt") as file:

            def tensor(name: str) -> Tensor:
                held: Tensor = file.get_tensor(name)
                return held.clone()  # the file's own pages would change with the file

            told = json.loads((file.metadata() or {})[METADATA_KEY])
            moments = {
                str(name): Moments(
                    int(count), tensor(f"{name}|mean"), tensor(f"{name}|m2"), int(batches),
                    tensor(f"{name}|batch_means"), tensor(f"{name}|batch_variances"), float(largest),
                )
                for name, (count, batches, largest) in dict(told["norms"]).items()
            }  # fmt: skip
            return Partial(str(told["weights"]), int(told["done"]), moments, str(told["data"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        fix = "give a file that normdeploy calibrate --partial wrote"
        raise InputError("the file holds no partial result of a calibration", where=str(path), fix=fix) from error
