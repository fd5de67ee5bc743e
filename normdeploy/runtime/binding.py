"""Inputs and outputs of a session of ONNX Runtime that stay where the model runs, so that a run copies nothing.

A CUDA graph replays the addresses it was captured with, so each set of shapes has a binding and a graph of its own.

What was executed: all of it on the CPU, where capturing is a word that ONNX Runtime does not heed. Nothing of it has
run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16
_GRAPH = "gpu_graph_id"
_NO_GRAPH = "-1"
_NO_WAIT = "disable_synchronize_execution_providers"


class Binding:
    """A session with the memory that it reads and writes on ``device``.

    Args:
        session: of ONNX Runtime.
        feeds: name → array, of the shapes that it will run at.
        device: ``cpu`` or ``cuda``.
        graph: number of the CUDA graph to capture and replay; None for none.

    It runs once, without a graph, for what is allocated then. Raises what the session raises.
    """

    def __init__(self, session: Any, feeds: Mapping[str, np.ndarray], device: str, *, graph: int | None = None) -> None:
        import onnxruntime

        self._session, self._binding = session, session.io_binding()
        self._launch, once = onnxruntime.RunOptions(), onnxruntime.RunOptions()
        self._launch.add_run_config_entry(_NO_WAIT, "1")
        if graph is not None:
            self._launch.add_run_config_entry(_GRAPH, str(graph))
            once.add_run_config_entry(_GRAPH, _NO_GRAPH)
        self._inputs: dict[str, Any] = {}
        for name, array in feeds.items():
            kind = _BFLOAT16 if array.dtype == ml_dtypes.bfloat16 else array.dtype.type
            value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(array.shape), kind, device, 0)
            self._inputs[name] = value
            self._binding.bind_ortvalue_input(name, value)
        self._names = [value.name for value in session.get_outputs()]
        for name in self._names:
            self._binding.bind_output(name, device)
        self.write(feeds)
        session.run_with_iobinding(self._binding, once)
        self._outputs = self._binding.get_outputs()
        for name, value in zip(self._names, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, value)  # here again, at each run

    def write(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Copy arrays of the same shapes and dtypes to where the inputs lie."""
        for name, array in feeds.items():
            bits = array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array
            if bits.size:
                self._inputs[name].update_inplace(np.ascontiguousarray(bits).reshape(bits.shape))
        self._binding.synchronize_inputs()

    def launch(self) -> None:
        """Run once; on a GPU it may not have ended when this returns."""
        self._session.run_with_iobinding(self._binding, self._launch)

    def read(self) -> dict[str, Any]:
        """Return the outputs as values of ONNX Runtime, once they are there."""
        self._binding.synchronize_outputs()
        return dict(zip(self._names, self._outputs, strict=True))
