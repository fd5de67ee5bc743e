"""Runs in a process of its own: the IPluginV3 plugins in TensorRT's registry, and what they are asked; prints JSON.

``MODE lean JOB`` takes the lean runtime, which has the plugin classes and the registry: each method is called as the
documentation says that TensorRT does. ``MODE parser MODEL`` gives an ONNX file to the parser of TensorRT-RTX, which
makes the plugin of a node and then ends the process, for its networks take none.
"""

from __future__ import annotations

import enum
import json
import sys
from typing import Any

import numpy as np

from normdeploy.engine import plugin, plugin_v3


def lean(job: dict[str, Any]) -> dict[str, Any]:
    import tensorrt_lean_bindings as trt

    trt.TensorFormat = enum.Enum("TensorFormat", ["LINEAR", "CHW4"])
    trt.DimsExprs = list
    launched: list[dict[str, Any]] = []

    def launch(path: Any, sm: int, device: int, addresses: dict[str, int], rows: int, stream: int) -> None:
        launched.append({"path": repr(path), "addresses": addresses, "rows": rows, "stream": stream, "sm": sm})

    plugin_v3.launch, plugin_v3.current_device = launch, lambda: 0
    for _ in range(2):  # the second time they are there already
        plugin_v3.register(trt, 90)
    creator = trt.get_plugin_registry().get_creator(job["name"], plugin_v3.VERSION, plugin.DOMAIN)
    fields = [
        trt.PluginField(name, np.array([value], np.float32 if name == "epsilon" else np.int32), kind)
        for name, value in job["attributes"].items()
        for kind in [trt.PluginFieldType.FLOAT32 if name == "epsilon" else trt.PluginFieldType.INT32]
    ]
    made = creator.create_plugin("a node", trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD)
    kinds = [getattr(trt, kind) for kind in job["types"]]
    number = len(made.operator.inputs)
    described = [Described([-1 if i == 0 and n == "x" else d for i, d in enumerate(s)], k, trt) for n, s, k in
                 zip(made.operator.inputs, job["shapes"], kinds, strict=False)]  # fmt: skip
    made.configure_plugin([Dynamic(each) for each in described], [])
    made.set_tactic(job.get("tactic", 1))
    engine = made.get_fields_to_serialize()
    loaded = creator.create_plugin("a node", engine, trt.TensorRTPhase.RUNTIME)
    loaded.set_tactic(job.get("tactic", 1))
    attached = loaded.attach_to_context(None)
    for batch in job["batches"]:
        shapes = [[batch, *shape[1:]] if name in ("x", "residual") else shape
                  for name, shape in zip(made.operator.inputs, job["shapes"], strict=False)]  # fmt: skip
        now = [Described(shape, kind, trt) for shape, kind in zip(shapes, kinds, strict=False)]
        attached.on_shape_change(now, [])
        attached.enqueue(now, [], [16 * i for i in range(number)], [256 + i for i in range(made.num_outputs)], 0, 7)
    everything = [Dynamic(Described([1], kind, trt)) for kind in kinds]
    refused = [Dynamic(Described([1], kind, trt, "CHW4")) for kind in kinds]
    shapes = made.get_output_shapes([[1, 2]], [], None)
    return {
        "capabilities": all(made.get_capability_interface(kind) is made for kind in (
            trt.PluginCapabilityType.CORE, trt.PluginCapabilityType.BUILD, trt.PluginCapabilityType.RUNTIME)),
        "outputs": [each.name for each in made.get_output_data_types(kinds[:number])],
        "shapes": shapes,
        "tactics": made.get_valid_tactics(),
        "supported": [made.supports_format_combination(i, everything, number) for i in range(len(kinds))],
        "other formats": [made.supports_format_combination(i, refused, number) for i in range(len(kinds))],
        "launched": launched,
        "fields": {field.name: np.asarray(field.data).tolist() for field in loaded.get_fields_to_serialize()},
        "identity": [made.plugin_name, made.plugin_version, made.plugin_namespace, made.num_outputs],
    }  # fmt: skip


class Described:
    """A tensor as TensorRT describes it to a plugin; its own class cannot be filled in from Python."""

    def __init__(self, dims: list[int], kind: Any, trt: Any, layout: str = "LINEAR") -> None:
        self.dims, self.type, self.format = dims, kind, trt.TensorFormat[layout]


class Dynamic:
    """The same where an engine is built."""

    def __init__(self, desc: Described) -> None:
        self.desc = desc


def parser(model: str) -> None:
    import tensorrt_rtx as trt

    create = plugin_v3._plugin(trt)

    def told(operator: Any, sm: int, attributes: dict[str, Any]) -> Any:
        print(json.dumps({"operator": operator.name, "attributes": attributes}), flush=True)
        return create(operator, sm, attributes)

    plugin_v3._plugin = lambda trt: told
    plugin_v3.register(trt, 90)
    logger = trt.Logger(trt.Logger.ERROR)
    network = trt.Builder(logger).create_network(0)
    trt.OnnxParser(network, logger).parse_from_file(model)


if __name__ == "__main__":
    if sys.argv[1] == "lean":
        print(json.dumps(lean(json.loads(sys.argv[2]))))
    else:
        parser(sys.argv[2])
