"""ONNX Runtime as a runner."""

from __future__ import annotations

import ctypes
import re
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

import ml_dtypes
import numpy as np

from normdeploy import onnxfile
from normdeploy.disk import scratch
from normdeploy.errors import InputError, MissingKernelError, NormdeployError, UnavailableError
from normdeploy.runtime.binding import Binding
from normdeploy.runtime.placement import CPU, Placement, add_to, require_taken
from normdeploy.runtime.runner import check_names, first_line

Shapes = tuple[tuple[str | int, ...], ...]
"""The name of each input, and its sizes."""
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
_MEMORY = ("cpu", 0)
_PREFIX = re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : ")
_QUIET = 4  # fatal errors only: what it logs goes to the terminal past Python, and its exceptions say it again
DISABLED_OPTIMIZERS = "disabled_optimizers"
_LEVELS = {
    "disable": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


class OnnxRuntimeRunner:
    """An ONNX model in ONNX Runtime.

    Args:
        model: an ``.onnx`` file, its external data beside it, or the bytes of one without.
        threads: threads of one operator (operators run one after another); 0 leaves it to ONNX Runtime.
        placement: where it runs; what was asked for must really run it.
        options: ``graph_optimization_level`` (disable, basic, extended, all), ``disabled_optimizers`` (names of graph
            optimizers, with commas between them), any other attribute of ``onnxruntime.SessionOptions``, or a
            configuration entry such as ``session.set_denormal_as_zero``.
        where: how messages call the model; its file's name if nothing is given.
        checked: the file was looked through already, and nobody can have written to it since.
        stream: the address of the CUDA stream to launch on; its own if none is given.

    Raises:
        UnavailableError: ONNX Runtime or a provider is missing; a MissingKernelError: a kernel for an operator is.
        InputError: the model or an option cannot be read.
    """

    name = "onnxruntime"

    def __init__(
        self,
        model: Path | bytes,
        *,
        threads: int = 0,
        placement: Placement = CPU,
        options: Mapping[str, str | int | bool] | None = None,
        where: str = "",
        checked: bool = False,
        stream: int | None = None,
    ) -> None:
        self.placement, self._bindings, self._alone = placement, dict[Shapes, Binding](), Lock()
        self._where = where or (str(model) if isinstance(model, Path) else "the given model")
        onnxruntime = import_runtime()
        session_options = _session_options(onnxruntime, threads, options or {})
        arguments = {**add_to(session_options, placement, onnxruntime, stream), **_arguments(options or {})}
        if isinstance(model, Path) and not checked:
            onnxfile.check(model)
        source = str(model) if isinstance(model, Path) else model
        try:
            self._session = onnxruntime.InferenceSession(source, session_options, **arguments)
        except Exception as error:
            raise self._refusal(error) from error
        self.notes = require_taken(self._session, placement)
        self.inputs = tuple(value.name for value in self._session.get_inputs())
        self.outputs = tuple(value.name for value in self._session.get_outputs())
        self._names = list(self.outputs), frozenset(self.inputs)
        dtypes = {value.type for value in (*self._session.get_inputs(), *self._session.get_outputs())}
        self._in_bits = "tensor(bfloat16)" in dtypes
        self._ort_value = onnxruntime.OrtValue

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once."""
        outputs, inputs = self._names
        if feeds.keys() != inputs:
            check_names(feeds, self.inputs, self.name)
        try:
            if self.placement.cuda_graph:
                return self._captured(feeds)
            if self._in_bits:
                values = {name: self._value(array) for name, array in feeds.items()}
                results = [_array(value) for value in self._session.run_with_ort_values(None, values)]
            else:
                results = self._session.run(outputs, feeds if type(feeds) is dict else dict(feeds))
        except Exception as error:
            raise self._refusal(error) from error
        return dict(zip(self.outputs, results, strict=True))

    def bound(self, inputs: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> Callable[[], None]:
        """Return what runs the model on ``inputs`` into ``outputs`` without a copy, one thread at a time.

        They are contiguous, of the right shapes and dtypes, and must live as long as what is returned.
        """
        binding = self._session.io_binding()
        for name, array in inputs.items():
            binding.bind_input(name, *_MEMORY, _element(array), array.shape, array.ctypes.data)
        for name, array in outputs.items():
            binding.bind_output(name, *_MEMORY, _element(array), array.shape, array.ctypes.data)

        def run() -> None:
            try:
                self._session.run_with_iobinding(binding)
            except Exception as error:
                raise self._refusal(error) from error

        return run

    def launcher(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """Return what runs once on ``feeds``, which it has copied to where the model runs; a GPU's work may end later.

        It says what a first run raises.
        """
        check_names(feeds, self.inputs, self.name)
        try:
            return self._binding(feeds).launch
        except Exception as error:
            raise self._refusal(error) from error

    def _binding(self, feeds: Mapping[str, np.ndarray]) -> Binding:
        """Return the memory that runs of these shapes have; a CUDA graph holds its addresses, so it is kept."""
        shapes = tuple((name, *feeds[name].shape) for name in self.inputs)
        if shapes not in self._bindings:
            graph = len(self._bindings) + 1 if self.placement.cuda_graph else None
            self._bindings[shapes] = Binding(self._session, feeds, self.placement.device, graph=graph)
        return self._bindings[shapes]

    def _captured(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with self._alone:  # one memory for all threads, and it is written anew
            binding = self._binding(feeds)
            binding.write(feeds)
            binding.launch()
            return {name: np.array(_array(value)) for name, value in binding.read().items()}

    def _value(self, array: np.ndarray) -> Any:
        array = np.ascontiguousarray(array).reshape(array.shape)  # of a scalar it makes one dimension
        if array.dtype == ml_dtypes.bfloat16:  # numpy has no such type; ONNX Runtime takes its bits
            return self._ort_value.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), _BFLOAT16)
        return self._ort_value.ortvalue_from_numpy(array)

    def _refusal(self, error: Exception) -> NormdeployError:
        kind, text = type(error).__name__, _PREFIX.sub("", first_line(error))
        if kind == "NotImplemented":
            return MissingKernelError(
                f"onnxruntime lacks a kernel: {text}",
                where=self._where,
                fix="deploy in float32, for which export and fold have --precision fp32, or use another runtime",
            )
        from normdeploy.engine.plugin import DOMAIN

        if f"Fatal error: {DOMAIN}:" in text:
            return InputError(
                "it is a graph of LayerNorm plugins, which only the full TensorRT runs",
                where=self._where,
                fix="give the model that has none; in a bundle it is model.onnx, and the verdict on model.plugin.onnx "
                "is plugin_parity in report.json",
            )
        return InputError(
            f"onnxruntime refuses: {text}", where=self._where, fix="check the model and the inputs' shapes"
        )


def operators_run(model: Path, options: Mapping[str, str | int | bool] | None = None) -> Counter[tuple[str, int]]:
    """Return (Operator type, number of inputs) → how many ONNX Runtime runs of it, once it has optimized ``model``.

    Two models, or sessions, of which this is equal run the same kernels. Raises what :class:`OnnxRuntimeRunner` does.
    """
    import onnx

    with scratch() as folder:
        path = folder / "optimized.onnx"
        apart = {"session.optimized_model_external_initializers_file_name": "weights"}  # 2 GB are too much for one file
        OnnxRuntimeRunner(model, options={**(options or {}), "optimized_model_filepath": str(path), **apart})
        nodes = onnx.load(path, load_external_data=False).graph.node
    return Counter((node.op_type, sum(map(bool, node.input))) for node in nodes)


def require_installed() -> None:
    """Raise UnavailableError, with the command that installs it, where ONNX Runtime is missing; it is not imported."""
    if find_spec("onnxruntime") is None:
        raise UnavailableError("onnxruntime is not installed", fix="pip install 'normdeploy[cpu]' or 'normdeploy[gpu]'")


def import_runtime() -> Any:
    """Return the module of ONNX Runtime. Raises UnavailableError as :func:`require_installed` does."""
    require_installed()
    import onnxruntime

    return onnxruntime


def _arguments(options: Mapping[str, str | int | bool]) -> dict[str, Any]:
    """Return what a session takes beside its options. Its own fallback would drop these without a word, so it is
    off.
    """
    names = str(options.get(DISABLED_OPTIMIZERS, "")).split(",")
    return {DISABLED_OPTIMIZERS: names, "enable_fallback": 0} if any(names) else {}


def _session_options(onnxruntime: Any, threads: int, options: Mapping[str, str | int | bool]) -> Any:
    result = onnxruntime.SessionOptions()
    result.log_severity_level = _QUIET
    result.intra_op_num_threads = threads
    result.inter_op_num_threads = 1
    for name, value in options.items():
        if name == DISABLED_OPTIMIZERS:
            continue  # no attribute, an argument of the session
        try:
            _set_option(onnxruntime, result, name, value)
        except Exception as error:
            raise InputError(
                f"{value!r} is no value of the option: {first_line(error)}", where=f"onnxruntime option {name}"
            ) from error
    return result


def _set_option(onnxruntime: Any, result: Any, name: str, value: str | int | bool) -> None:
    if name == "graph_optimization_level":
        result.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, _LEVELS[str(value)])
    elif "." in name:
        result.add_session_config_entry(name, str(value))
    elif hasattr(result, name):
        setattr(result, name, value)
    else:
        raise InputError("onnxruntime has no such option")


def _element(array: np.ndarray) -> Any:
    return _BFLOAT16 if array.dtype == ml_dtypes.bfloat16 else array.dtype.type


def _array(value: Any) -> np.ndarray:
    if value.element_type() != _BFLOAT16:
        return np.asarray(value.numpy())
    if value.device_name() != "cpu":
        raise InputError("bfloat16 outputs cannot be read from a GPU", fix="leave --cuda-graph out")
    shape = tuple(value.shape())
    count = int(np.prod(shape))
    if not count:
        return np.empty(shape, ml_dtypes.bfloat16)
    bits = (ctypes.c_uint16 * count).from_address(value.data_ptr())
    return np.asarray(np.frombuffer(bytes(bits), ml_dtypes.bfloat16).reshape(shape))
