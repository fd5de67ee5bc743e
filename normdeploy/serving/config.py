"""``config.pbtxt`` of a bundle, made as the protobuf message that Triton parses."""

from __future__ import annotations

from typing import Any

from normdeploy.bundle import Bundle
from normdeploy.bundle.interface import Tensor
from normdeploy.bundle.manifest import MODEL, PLAN
from normdeploy.errors import InputError
from normdeploy.serving.options import Serving
from normdeploy.serving.schema import new_config, number_of

TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
}
WARMUP = "golden"


def model_config(bundle: Bundle, name: str, batch: str | None, serving: Serving) -> Any:
    """Return the ``ModelConfig`` of ``bundle`` as model ``name``; ``batch`` is the dimension that requests add up in.

    Raises InputError for a type that Triton does not have, and for a scalar, which it knows in batches alone.
    """
    config = new_config()
    config.name, config.backend = name, serving.platform
    config.platform = "tensorrt_plan" if serving.platform == "tensorrt" else "onnxruntime_onnx"
    config.default_model_filename = PLAN if serving.platform == "tensorrt" else MODEL
    if batch is not None:
        config.max_batch_size = next(axis.max for axis in bundle.interface.inputs[0].dims if axis.name == batch)
        config.dynamic_batching.max_queue_delay_microseconds = serving.queue_delay
    for tensor in bundle.interface.inputs:
        _add_tensor(config, config.input.add(), tensor, batched=batch is not None)
    for tensor in bundle.interface.outputs:
        _add_tensor(config, config.output.add(), tensor, batched=batch is not None)
    config.version_policy.latest.num_versions = 1
    _add_instances(config, serving)
    _add_optimization(config, bundle, serving)
    _add_warmup(config, bundle, batched=batch is not None)
    return config


def warmup_shape(shape: tuple[int, ...], *, batched: bool) -> tuple[int, ...]:
    """Return the shape of one row of an array of a request, as a config states it: a scalar has one dimension there."""
    return (shape[1:] if batched else shape) or (1,)


def _add_tensor(config: Any, entry: Any, tensor: Tensor, *, batched: bool) -> None:
    if tensor.dtype not in TYPES:
        what = f"Triton has no type for {tensor.dtype}"
        raise InputError(what, where=tensor.name, fix="export a model without this input or output")
    entry.name, entry.data_type = tensor.name, number_of(config, "DataType", TYPES[tensor.dtype])
    axes = tensor.dims[batched:]
    if not (axes or batched):
        what = "Triton takes and gives no scalar of a model whose requests are not put together"
        raise InputError(
            what, where=tensor.name, fix="export the module in one that takes and gives it as an array [1]"
        )
    entry.dims.extend(-1 if axis.name is not None else axis.min for axis in axes)
    if not axes:  # Triton's rows have a dimension at least: what a client sends as [1] the model takes as []
        entry.dims.append(1)
        entry.reshape.SetInParent()


def _add_instances(config: Any, serving: Serving) -> None:
    gpus = serving.gpu_ids()
    group = config.instance_group.add()
    group.count = serving.instances
    group.kind = group.KIND_GPU if gpus else group.KIND_CPU
    group.gpus.extend(gpus)


def _add_optimization(config: Any, bundle: Bundle, serving: Serving) -> None:
    if serving.cuda_graphs:
        config.optimization.cuda.graphs = True
    if serving.accelerate:
        accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add()
        accelerator.name = "tensorrt"
        accelerator.parameters["precision_mode"] = "FP16" if bundle.manifest.precision == "float16" else "FP32"


def _add_warmup(config: Any, bundle: Bundle, *, batched: bool) -> None:
    """Let Triton run the golden inputs before the model is ready; with ``batched``, their first row."""
    warmup = config.model_warmup.add()
    warmup.name, warmup.batch_size = WARMUP, 1  # 1 also where the model knows no batches
    for spec in bundle.specs:
        entry = warmup.inputs[spec.name]
        entry.data_type = number_of(config, "DataType", TYPES[spec.dtype])
        entry.dims.extend(warmup_shape(bundle.golden.inputs[spec.name].shape, batched=batched))
        entry.input_data_file = warmup_file(bundle, spec.name)


def warmup_file(bundle: Bundle, name: str) -> str:
    """Return the name of the file with the warm-up data of an input: names of inputs are anyone's."""
    return f"{WARMUP}_{[spec.name for spec in bundle.specs].index(name)}"
