"""How to run a bundle, in Triton and the languages that its users write, with its own names, types and sizes."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path

from normdeploy.bundle.interface import Interface, Tensor
from normdeploy.bundle.manifest import MODEL

_CPP = {
    "float64": "double",
    "float32": "float",
    "float16": "Ort::Float16_t",
    "bfloat16": "Ort::BFloat16_t",
    "int64": "int64_t",
    "int32": "int32_t",
    "int16": "int16_t",
    "int8": "int8_t",
    "uint8": "uint8_t",
    "bool": "bool",
}


def python(interface: Interface, folder: Path) -> str:
    """Return five lines that run the bundle in this Python."""
    arrays = ", ".join(
        f"{tensor.name!r}: np.full({_shape(tensor)}, {_value(tensor)}, {tensor.dtype!r})" for tensor in interface.inputs
    )
    first = interface.outputs[0].name
    return "\n".join(
        [
            "import numpy as np",
            "import normdeploy",
            f"model = normdeploy.load_bundle({str(folder)!r})",
            f"outputs = model({{{arrays}}})",
            f"print(outputs[{first!r}].shape)",
        ]
    )


def cpp(interface: Interface, folder: Path, options: Mapping[str, str]) -> str:
    """Return a program on ONNX Runtime's C++ interface, which reads the model and none of the other files.

    ``options`` are the session options of the bundle's manifest.
    """
    lines = [
        "#include <onnxruntime_cxx_api.h>",
        "#include <algorithm>",
        "#include <iostream>",
        "#include <memory>",
        "#include <vector>",
        "int main() {",
        "  Ort::Env env;",
        "  Ort::SessionOptions options;",
        *(_option(name, value) for name, value in options.items()),
        f"  Ort::Session session(env, {json.dumps(str(folder / MODEL))}, options);",
        "  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);",
        "  std::vector<Ort::Value> inputs;",
    ]
    for index, tensor in enumerate(interface.inputs):
        shape, kind = _shape(tensor), _CPP[tensor.dtype]
        dims = ", ".join(map(str, shape))
        count = math.prod(shape)
        lines += [
            f"  std::vector<int64_t> shape{index}{{{dims}}};",
            f"  auto data{index} = std::make_unique<{kind}[]>({count});",
            f"  std::fill_n(data{index}.get(), {count}, {kind}({_value(tensor)}));",
            f"  inputs.push_back(Ort::Value::CreateTensor<{kind}>("
            f"memory, data{index}.get(), {count}, shape{index}.data(), {len(shape)}));",
        ]
    lines += [
        f"  const char* takes[] = {{{', '.join(json.dumps(tensor.name) for tensor in interface.inputs)}}};",
        f"  const char* gives[] = {{{', '.join(json.dumps(tensor.name) for tensor in interface.outputs)}}};",
        "  auto outputs = session.Run(Ort::RunOptions{}, takes, inputs.data(), inputs.size(), gives, "
        f"{len(interface.outputs)});",
        "  for (auto size : outputs[0].GetTensorTypeAndShapeInfo().GetShape()) std::cout << size << ' ';",
        "}",
    ]
    return "\n".join(lines)


def triton(folder: Path) -> str:
    """Return the commands that package the bundle, serve it on this machine, and ask the server, in another shell."""
    bundle = shlex.quote(str(folder))
    return "\n".join(
        [
            f"normdeploy package {bundle} -o models",
            "normdeploy serve models --http-port 8000 --grpc-port 8001",
            f"normdeploy check http://127.0.0.1:8000 grpc://127.0.0.1:8001 --bundle {bundle}",
        ]
    )


def _option(name: str, value: str) -> str:
    if name == "disabled_optimizers":
        name, value = "optimization.disable_specified_optimizers", value.replace(",", ";")
    return f"  options.AddConfigEntry({json.dumps(name)}, {json.dumps(value)});"


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(axis.usual or 1 for axis in tensor.dims)


def _value(tensor: Tensor) -> str:
    """Return a value that the input takes: 0, or the end of its range that lies nearest to it."""
    low, high = tensor.low, tensor.high
    value = 0.0 if low is None or high is None else min(max(0.0, low), high)
    return repr(value) if "float" in tensor.dtype else str(int(value))
