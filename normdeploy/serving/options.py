"""How a packaged model is to be served, and the refusals of what its bundle or Triton cannot do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from normdeploy.bundle.manifest import Manifest
from normdeploy.engine.sidecar import Sidecar
from normdeploy.errors import InputError
from normdeploy.specs import whole_number

Platform = Literal["onnxruntime", "tensorrt"]
_MOST = 1 << 31
"""No number of a configuration reaches this."""


@dataclass(frozen=True, kw_only=True)
class Serving:
    """How a model is served.

    Attributes:
        platform: what runs it in Triton: onnxruntime runs the model, tensorrt the bundle's engine.
        instances: copies that run at once, on each GPU or on the CPU.
        gpus: ids of the GPUs, with commas between; without it, the CPU.
        queue_delay: microseconds that a request may wait for others to make a batch with.
        accelerate: on GPUs, let ONNX Runtime run what it can in TensorRT.
        cuda_graphs: replay CUDA graphs; with the platform tensorrt.
    """

    platform: Platform = "onnxruntime"
    instances: int = 1
    gpus: str = ""
    queue_delay: int = 0
    accelerate: bool = False
    cuda_graphs: bool = False

    def gpu_ids(self) -> tuple[int, ...]:
        """Return the ids of the GPUs. Raises InputError where they are none."""
        parts = [whole_number(part.strip()) for part in self.gpus.split(",") if part.strip()]
        ids = tuple(part for part in parts if part is not None)
        if len({*ids}) != len(parts):
            raise InputError("no ids of GPUs", where=f"--gpus {self.gpus}", fix="write e.g. --gpus 0,1, each once")
        return ids


def check_options(serving: Serving, manifest: Manifest, engine: Sidecar | None, where: str) -> None:
    """Raise InputError where ``serving`` contradicts itself, or what the bundle at ``where`` holds and needs."""
    gpus = serving.gpu_ids()
    if not (1 <= serving.instances < _MOST and 0 <= serving.queue_delay < _MOST):
        raise InputError("no such number", where="--instances, --queue-delay", fix="at least 1 instance, 0 µs or more")
    if serving.platform == "tensorrt":
        _check_engine(engine, gpus, where)
    else:
        _check_session(manifest.session_options, where)
    if serving.accelerate and (not gpus or serving.platform != "onnxruntime"):
        fix = "give --gpus too, and leave --platform out"
        raise InputError("TensorRT inside ONNX Runtime needs a GPU", where="--accelerate", fix=fix)
    if serving.cuda_graphs and serving.platform != "tensorrt":
        fix = "give --platform tensorrt too, for a bundle with an engine"
        raise InputError("Triton captures CUDA graphs of TensorRT engines", where="--cuda-graphs", fix=fix)


def _check_engine(engine: Sidecar | None, gpus: tuple[int, ...], where: str) -> None:
    fix = "leave --platform out: onnxruntime runs the bundle's model, on a GPU with --gpus 0"
    if engine is None:
        raise InputError("the bundle has no engine", where=where, fix=fix)
    if engine.backend != "tensorrt":
        what = f"the engine was built by {engine.backend}, whose plans Triton's tensorrt backend cannot load"
        raise InputError(what, where=where, fix=f"{fix}; or build with the full TensorRT, on the GPU that serves")
    if not gpus:
        raise InputError("an engine runs on a GPU", where=where, fix="give --gpus 0")


def _check_session(options: dict[str, str], where: str) -> None:
    """Raise InputError where the model has to be run in a way that Triton's onnxruntime backend cannot be told."""
    lost = [f"{name} = {value}" for name, value in options.items()]
    if lost:
        raise InputError(
            f"the bundle is to be run with {', '.join(lost)}, which Triton's onnxruntime backend cannot be told",
            where=where,
            fix="export it without --tune, or serve it in process by load_bundle",
        )
