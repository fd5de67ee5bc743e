"""A TensorRT plan as a runner: checked, deserialised, bound to torch tensors without copies.

Written to the documented API of TensorRT 10.15 to 11 and TensorRT-RTX 1.7; never executed on a GPU. What its tests
execute is everything before the plan is deserialised, with real plans, and the binding of tensors, shapes and
profiles, with a stand-in for the engine that computes on the CPU.
"""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import torch

from normdeploy.engine import gpu, plugin_v3
from normdeploy.engine.profiles import covering
from normdeploy.engine.sidecar import Sidecar, read_plan, require_backend, require_gpu
from normdeploy.errors import InputError
from normdeploy.runtime.runner import check_names
from normdeploy.trust import is_trusted

_DTYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class LayerTime:
    """What one engine layer took, on average, with the PyTorch modules in it."""

    layer: str
    modules: tuple[str, ...]
    milliseconds: float


class Queue(Protocol):
    """Where kernels run: a CUDA stream, in order with torch's own."""

    device: torch.device

    @property
    def handle(self) -> int:
        """Return the stream as the engine takes it."""

    def __enter__(self) -> None:
        """Wait for what torch has queued: the inputs."""

    def __exit__(self, *_: object) -> None:
        """Let torch wait for the outputs."""

    def synchronize(self) -> None:
        """Wait until everything queued is done."""


class CudaQueue:
    """A stream of its own on the current GPU."""

    def __init__(self) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    @property
    def handle(self) -> int:
        """See :class:`Queue`."""
        return int(self.stream.cuda_stream)

    def __enter__(self) -> None:
        self.stream.wait_stream(torch.cuda.current_stream())

    def __exit__(self, *_: object) -> None:
        torch.cuda.current_stream().wait_stream(self.stream)

    def synchronize(self) -> None:
        """See :class:`Queue`."""
        self.stream.synchronize()


class TensorRTRunner:
    """A plan on the GPU.

    Args:
        plan: a file that ``normdeploy build`` wrote, its sidecar beside it.
        cuda_graph: capture each shape when it first comes and replay it then; every shape keeps its own memory.
        trust: files that may run code: a version-compatible plan carries its runtime, and is loaded only if among them.
        where: its path in a bundle, by which it is trusted and called, where ``plan`` is the checked copy.

    Raises:
        InputError: the plan is not the one its sidecar describes, was built by another version or for another GPU, or
            carries code and is not trusted.
        UnavailableError: no GPU, or the backend is not installed.
    """

    def __init__(
        self, plan: Path, *, cuda_graph: bool = False, trust: Sequence[Path] = (), where: Path | None = None
    ) -> None:
        data, self.sidecar = read_plan(plan)
        called = where or plan
        if self.sidecar.carries_code and not is_trusted(called, trust):
            raise InputError(
                "a version-compatible plan carries code of its own, and nothing says that it is trusted",
                where=str(called),
                fix=f"if you trust who made it, give --trust {shlex.quote(str(called))}",
            )
        self._trt = _import(self.sidecar)
        self._engine = self._deserialize(data, called)
        self._queue = self._open_queue()
        self._context = self._engine.create_execution_context()
        self._graphs: dict[tuple[torch.Size, ...], _Captured] | None = {} if cuda_graph else None
        self.name = self.sidecar.backend
        self.inputs, self.outputs = self.sidecar.inputs, self.sidecar.outputs

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once, copies to the GPU and back included."""
        check_names(feeds, self.inputs, self.name)
        tensors = {name: _tensor(array).to(self._queue.device) for name, array in feeds.items()}
        results = self.run(tensors)
        self._queue.synchronize()
        return {name: _array(tensor.cpu()) for name, tensor in results.items()}

    def launcher(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """Return what queues one run on ``feeds``, which it has copied to the GPU."""
        check_names(feeds, self.inputs, self.name)
        tensors = {name: _tensor(array).to(self._queue.device) for name, array in feeds.items()}
        return lambda: self.run(tensors)

    def run(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Queue one run on tensors of the GPU, which are read where they are; the outputs are new tensors.

        It does not wait for the GPU. Raises InputError where no profile covers the shapes, or a dtype differs.
        """
        if set(feeds) != set(self.inputs):
            raise InputError(
                f"the engine takes the inputs {', '.join(self.inputs)}", where=f"it was given {', '.join(feeds)}"
            )
        feeds = {name: feeds[name].contiguous() for name in self.inputs}
        self._check_dtypes(feeds)
        if self._graphs is None:
            return self._launch(self._context, feeds)
        shapes = tuple(tensor.shape for tensor in feeds.values())
        if shapes not in self._graphs:
            self._graphs[shapes] = self._capture(feeds)
        return self._graphs[shapes].replay(feeds)

    def layer_times(self, feeds: Mapping[str, torch.Tensor], *, runs: int = 20) -> tuple[LayerTime, ...]:
        """Return the mean time of each layer over ``runs``, in the engine's order; a profiled run is slower than
        others.
        """
        context = self._engine.create_execution_context()
        times = _profiler(self._trt)
        self._launch(context, feeds)
        self._queue.synchronize()
        context.profiler = times
        for _ in range(runs):
            self._launch(context, feeds)
            self._queue.synchronize()
        modules = {layer.name: layer.modules for layer in self.sidecar.layers}
        return tuple(LayerTime(name, modules.get(name, ()), total / runs) for name, total in times.totals.items())

    def _deserialize(self, data: bytes, plan: Path) -> Any:
        device = gpu.find()
        require_gpu(self.sidecar, None if device is None else str(device), [device.capability] if device else [])
        if self.sidecar.plugins == "python" and device is not None:
            plugin_v3.register(self._trt, int(device.capability.removeprefix("SM")))
        logger = self._trt.Logger(self._trt.Logger.ERROR)
        runtime = self._trt.Runtime(logger)
        runtime.engine_host_code_allowed = self.sidecar.carries_code  # which is trusted then
        engine = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise InputError(
                "the plan cannot be deserialised on this machine",
                where=str(plan),
                fix="build it again here; what the backend says is above",
            )
        return engine

    def _open_queue(self) -> Queue:
        return CudaQueue()

    def _check_dtypes(self, feeds: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in feeds.items():
            wanted = self._dtype(name)
            if tensor.dtype != wanted:
                raise InputError(f"the engine takes {wanted}, and was given {tensor.dtype}", where=f"input {name}")

    def _dtype(self, name: str) -> torch.dtype:
        return _DTYPES[self._engine.get_tensor_dtype(name).name]

    def _launch(self, context: Any, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        with self._queue:
            outputs = self._bind(context, feeds)
            self._execute(context)
        return outputs

    def _bind(self, context: Any, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Point the context at the inputs and at new outputs, whose shapes follow from the inputs'."""
        profiles = self.sidecar.profiles
        index = covering(profiles, {name: tuple(tensor.shape) for name, tensor in feeds.items()})
        if context.active_optimization_profile != index:
            context.set_optimization_profile_async(index, self._queue.handle)
        for name, tensor in feeds.items():
            context.set_input_shape(name, tuple(tensor.shape))
            context.set_tensor_address(name, tensor.data_ptr())
        outputs = {name: self._allocate(name, tuple(context.get_tensor_shape(name))) for name in self.outputs}
        for name, tensor in outputs.items():
            context.set_tensor_address(name, tensor.data_ptr())
        return outputs

    def _allocate(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if any(size < 0 for size in shape):
            raise InputError(
                f"the shape of output {name} depends on the values of the inputs",
                fix="run the bundle in onnxruntime, or end the model before that operator",
            )
        return torch.empty(shape, dtype=self._dtype(name), device=self._queue.device)

    def _execute(self, context: Any) -> None:
        if not context.execute_async_v3(self._queue.handle):
            raise InputError("the engine cannot run these inputs", fix="what the backend says is above")

    def _capture(self, feeds: Mapping[str, torch.Tensor]) -> _Captured:
        """A CUDA graph of one run at these shapes, in a context of its own: a context holds one set of shapes."""
        context = self._engine.create_execution_context()
        inputs = {name: tensor.clone() for name, tensor in feeds.items()}
        outputs = self._launch(context, inputs)  # lazy initialisation cannot be captured
        self._queue.synchronize()
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
                raise InputError("the engine cannot be captured in a CUDA graph", fix="run it without cuda_graph")
        return _Captured(captured, context, inputs, outputs)


@dataclass(frozen=True)
class _Captured:
    """One shape's CUDA graph with the tensors it reads and writes; the context must outlive it."""

    graph: torch.cuda.CUDAGraph
    context: Any
    inputs: dict[str, torch.Tensor]
    outputs: dict[str, torch.Tensor]

    def replay(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for name, tensor in feeds.items():
            self.inputs[name].copy_(tensor)
        self.graph.replay()
        return {name: tensor.clone() for name, tensor in self.outputs.items()}


def _import(sidecar: Sidecar) -> Any:
    """The backend that built the plan, in the version that can load it."""
    try:
        trt = importlib.import_module(sidecar.backend) if sidecar.backend in ("tensorrt", "tensorrt_rtx") else None
    except Exception:  # a missing library raises more than ImportError
        require_backend(sidecar, None)
        raise
    require_backend(sidecar, None if trt is None else trt.__version__)
    return trt


def _profiler(trt: Any) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]  # the backend has no types
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.totals: dict[str, float] = {}

        def report_layer_time(self, layer: str, milliseconds: float) -> None:
            self.totals[layer] = self.totals.get(layer, 0.0) + milliseconds

    return Profiler()


def _tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:  # torch reads no array of this type; its bits are the same
        return torch.tensor(array.view(np.int16)).view(torch.bfloat16)
    return torch.tensor(array)


def _array(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
