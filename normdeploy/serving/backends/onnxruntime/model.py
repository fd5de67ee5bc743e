"""Triton's ``onnxruntime`` backend in Python, for the Triton that ``normdeploy serve`` starts: it has no other.

A repository that is served by it is served unchanged by Triton's own onnxruntime backend, which is written in C++ and
runs on GPUs too. This one reads of a config what concerns the CPU, and refuses the rest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton

_LEVELS = {
    0: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_PARAMETERS = {"intra_op_thread_count": "intra_op_num_threads", "inter_op_thread_count": "inter_op_num_threads"}


class TritonPythonModel:
    """One instance of a model."""

    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Return ``config``: all of it is stated."""
        return config

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model of the version that is to be served."""
        config = json.loads(args["model_config"])
        if args["model_instance_kind"] != "CPU":
            raise triton.TritonModelException("this onnxruntime backend runs on the CPU: serve it with Triton's image")
        file = config.get("default_model_filename") or "model.onnx"
        folder = os.path.join(args["model_repository"], args["model_version"])
        _require_unaltered(folder)
        path = os.path.join(folder, file)
        self._session = onnxruntime.InferenceSession(path, _options(config), providers=["CPUExecutionProvider"])
        self._outputs = [output["name"] for output in config["output"]]
        self._batched = config["max_batch_size"] > 0

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return a response for each request; those of one batch are run together."""
        feeds = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
        if not self._batched or len(feeds) == 1:
            return [self._answer(feed) for feed in feeds]
        together = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
        answer = self._run(together)
        if isinstance(answer, str):
            return [_error(answer) for _ in feeds]
        ends = np.cumsum([len(next(iter(feed.values()))) for feed in feeds])[:-1]
        rows = zip(*(np.split(array, ends) for array in answer), strict=True)
        return [self._response(list(arrays)) for arrays in rows]

    def _answer(self, feed: dict[str, np.ndarray]) -> Any:
        answer = self._run(feed)
        return _error(answer) if isinstance(answer, str) else self._response(answer)

    def _run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray] | str:
        """Return the outputs, or what ONNX Runtime has against the inputs."""
        try:
            return list(self._session.run(self._outputs, feed))
        except Exception as error:  # ONNX Runtime raises a dozen types; the server has to live on
            return str(error)

    def _response(self, arrays: Sequence[np.ndarray]) -> Any:
        tensors = [triton.Tensor(name, array) for name, array in zip(self._outputs, arrays, strict=True)]
        return triton.InferenceResponse(tensors)


def _require_unaltered(folder: str) -> None:
    """Raise TritonModelException where the model is not the one that the manifest beside it lists, by sha256.

    A version may be loaded while it is still being copied, and weights of which a part is missing give an answer too.
    """
    manifest = os.path.join(folder, "manifest.json")
    if not os.path.isfile(manifest):
        return
    with open(manifest, encoding="utf-8") as text:
        listed = json.load(text)["files"]
    for name in (name for name in listed if name.startswith("model.")):
        try:
            with open(os.path.join(folder, name), "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise triton.TritonModelException(f"{name} of the version cannot be read: {error.strerror}") from error
        if digest != listed[name]:
            raise triton.TritonModelException(f"{name} is not as it was packaged: copy the whole version again")


def _options(config: dict[str, Any]) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    graph = config.get("optimization", {}).get("graph", {})
    options.graph_optimization_level = _LEVELS[int(graph.get("level", 0))]
    for name, value in config.get("parameters", {}).items():
        if name not in _PARAMETERS:
            raise triton.TritonModelException(f"this onnxruntime backend knows no parameter {name}")
        setattr(options, _PARAMETERS[name], int(value["string_value"]))
    return options


def _error(text: str) -> Any:
    return triton.InferenceResponse(error=triton.TritonError(text))
