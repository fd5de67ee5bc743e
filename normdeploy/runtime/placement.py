"""Where a model runs: on which device, by which of ONNX Runtime's execution providers, and with TF32 or without.

A provider that was asked for must run the model. ONNX Runtime itself falls back to the CPU without a word, for the
whole session or node by node; here that is an error, for an answer of the CPU's says nothing about a GPU.

What was executed: everything for the CPU, the errors for what a machine lacks, the check of who runs which node, and
the registration of a plug-in provider. Nothing of it has run on a GPU yet.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from normdeploy.engine.job import TF32_OVERRIDE
from normdeploy.errors import InputError, UnavailableError
from normdeploy.precision import HEAVY

CPU_PROVIDER = "CPUExecutionProvider"
PROVIDERS = {
    "cpu": CPU_PROVIDER,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "nv-tensorrt-rtx": "NvTensorRTRTXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "directml": "DmlExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}
"""What ``--provider`` takes, beside ONNX Runtime's own names."""
_ON_CUDA = ("cuda", "tensorrt", "nv-tensorrt-rtx")
_BUILT_IN = ("cuda", "tensorrt")
"""Those of ONNX Runtime's own package, which take a stream, a CUDA graph, and inputs that lie on the GPU."""
_PLUGINS = {
    "NvTensorRTRTXExecutionProvider": ("onnxruntime_ep_nv_tensorrt_rtx", "onnxruntime-ep-nv-tensorrt-rtx-cu13"),
    "OpenVINOExecutionProvider": ("onnxruntime_ep_openvino", "onnxruntime-ep-openvino"),
}
"""Provider → module and package of the plug-in that brings it."""
RECORD = "session.record_ep_graph_assignment_info"
"""The session option by which ONNX Runtime tells who runs which node."""
_SHOWN = 5


@dataclass(frozen=True)
class Placement:
    """Where a model runs.

    Attributes:
        device: of eager PyTorch beside it: ``cpu`` or ``cuda``.
        provider: a name of :data:`PROVIDERS`, or ONNX Runtime's own.
        tf32: whether float32 products may be rounded to 10 bits on the way in, in eager PyTorch as well.
        cuda_graph: capture the launches of a run once and replay them.

    Raises InputError for a device or provider that nobody knows, and where one contradicts the other.
    """

    device: str = "cpu"
    provider: str = "cpu"
    tf32: bool = False
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise InputError(f"there is no device {self.device!r}", where="--device", fix="give cpu or cuda")
        if self.provider not in PROVIDERS and not self.provider.endswith("ExecutionProvider"):
            fix = f"give one of {', '.join(PROVIDERS)}, or ONNX Runtime's own name"
            raise InputError(f"there is no provider {self.provider!r}", where="--provider", fix=fix)
        if self.device == "cuda" and self.provider not in _ON_CUDA:
            what = f"the provider {self.provider} does not run on the device cuda"
            raise InputError(what, where="--device cuda", fix=f"give --provider {', '.join(_ON_CUDA)}")
        if (self.tf32 or self.cuda_graph) and self.provider not in _ON_CUDA:
            given = "--tf32" if self.tf32 else "--cuda-graph"
            raise InputError(f"{given} is of NVIDIA GPUs alone", where=given, fix="give --device cuda as well")
        if self.cuda_graph and self.provider not in _BUILT_IN:
            fix = f"leave --cuda-graph out, or give --provider {' or '.join(_BUILT_IN)}"
            raise InputError(f"{self.provider} is not told to capture graphs here", where="--cuda-graph", fix=fix)

    @property
    def name(self) -> str:
        """Return ONNX Runtime's own name of the provider."""
        return PROVIDERS.get(self.provider, self.provider)

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what is to be said of it; empty for the CPU."""
        if self.name == CPU_PROVIDER:
            return ()
        rounded = "TF32 products, in eager PyTorch too" if self.tf32 else "no TF32, in eager PyTorch neither"
        rounding = f", {rounded}" if self.provider in _ON_CUDA else ""
        graphs = ", launches captured in a CUDA graph" if self.cuda_graph else ""
        return (f"ran by ONNX Runtime's {self.name}, eager PyTorch on {self.device}{rounding}{graphs}",)

    @property
    def binds(self) -> bool:
        """Return True if inputs and outputs of a session can lie on its GPU, and work goes to a stream of the caller's.

        A plug-in has devices of its own: there arrays are copied at each run.
        """
        return self.provider in _BUILT_IN

    def options(self, stream: int | None = None) -> dict[str, str]:
        """Return the options of the provider; a plug-in has its own, and is left as it is.

        ``stream`` is the address of the CUDA stream that it launches on, in place of its own.
        """
        own = {} if stream is None else {"user_compute_stream": str(stream)}
        if self.provider == "cuda":
            return {"use_tf32": str(int(self.tf32)), "enable_cuda_graph": str(int(self.cuda_graph)), **own}
        if self.provider == "tensorrt":
            return {"trt_cuda_graph_enable": str(int(self.cuda_graph)), **own}
        return {}

    def set_tf32(self) -> None:
        """Set TF32 for a process that will load CUDA's libraries, by its environment.

        ONNX Runtime's TensorRT provider has no other switch.
        """
        if self.device == "cuda" and not self.tf32:
            os.environ[TF32_OVERRIDE] = "0"
        elif self.device == "cuda":
            os.environ.pop(TF32_OVERRIDE, None)

    def as_json(self) -> dict[str, Any]:
        """Return its fields, from which the same is made again."""
        return asdict(self)


CPU = Placement()


def placed(
    device: str = "cpu", provider: str | None = None, *, tf32: bool = False, cuda_graph: bool = False
) -> Placement:
    """Return where to run for what was asked: a provider brings its device along, and a device its provider.

    Raises InputError where they contradict each other, UnavailableError where torch has no CUDA device.
    """
    if provider in _ON_CUDA:
        device = "cuda"
    result = Placement(device, provider or device, tf32, cuda_graph)
    if result.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UnavailableError(
                "torch finds no NVIDIA GPU",
                where=f"--device {device}",
                fix="run this where there is one, or on the cpu",
            )
    return result


def add_to(session_options: Any, placement: Placement, onnxruntime: Any, stream: int | None = None) -> dict[str, Any]:
    """Return what else an ``InferenceSession`` is given so that it runs there; plug-ins go into its options.

    ``stream`` is the address of the CUDA stream to launch on.

    Raises UnavailableError where the package, the plug-in or its device is missing.
    """
    name = placement.name
    if name == CPU_PROVIDER:
        return {"providers": [name]}
    session_options.add_session_config_entry(RECORD, "1")
    if name in onnxruntime.get_available_providers():
        return {"providers": [(name, placement.options(stream)), CPU_PROVIDER]}
    if name in _PLUGINS:
        session_options.add_provider_for_devices(_devices(name, onnxruntime), {})
        return {}
    here = ", ".join(onnxruntime.get_available_providers())
    fix = "install the package and the driver that the provider needs, or ask for another provider"
    raise UnavailableError(f"{name} cannot be used", where=f"this onnxruntime package has {here}", fix=fix)


def _devices(name: str, onnxruntime: Any) -> Sequence[Any]:
    """Return the devices of a plug-in provider, whose library is registered first."""
    module, package = _PLUGINS[name]
    if find_spec(module) is None:
        raise UnavailableError(f"{name} is not installed", fix=f"pip install {package}")
    found = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]
    if not found:
        try:
            onnxruntime.register_execution_provider_library(name, import_module(module).get_library_path())
        except Exception as error:  # whatever its loader raises where a driver is missing
            raise UnavailableError(f"{name} cannot be loaded: {error}", where=package) from error
        found = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]
    if not found:
        what = f"{name} finds no device that it can use"
        raise UnavailableError(what, where=package, fix="run this on a machine that has one")
    return found


def require_taken(session: Any, placement: Placement) -> tuple[str, ...]:
    """Return which nodes the CPU runs beside the provider, in words; none is a note of none.

    Raises UnavailableError where the provider runs nothing, or the CPU one of the operators that the time goes to.
    """
    if placement.name == CPU_PROVIDER:
        return ()
    taken: Counter[str] = Counter()
    others: list[tuple[str, str]] = []
    for part in session.get_provider_graph_assignment_info():
        nodes = [(node.op_type, node.name) for node in part.get_nodes()]
        taken[part.ep_name] += len(nodes)
        others += nodes if part.ep_name != placement.name else []
    heavy = [f"{kind} {name}" for kind, name in others if kind in HEAVY]
    if placement.name not in taken or heavy:
        ran = "no node of the model" if placement.name not in taken else f"not {', '.join(heavy[:_SHOWN])}"
        raise UnavailableError(
            f"{placement.name} was asked for and runs {ran}: ONNX Runtime would leave that to the CPU",
            where=", ".join(f"{provider} {count} nodes" for provider, count in taken.items()),
            fix="install what the provider needs (CUDA, cuDNN, TensorRT), or ask for another provider",
        )
    kinds = ", ".join(f"{kind} {count}" for kind, count in Counter(kind for kind, _ in others).most_common(_SHOWN))
    return (f"{len(others)} small nodes run on the CPU beside {placement.name}: {kinds}",) if others else ()


def from_json(fields: Mapping[str, Any]) -> Placement:
    """Return the inverse of :meth:`Placement.as_json`."""
    return Placement(**fields)
