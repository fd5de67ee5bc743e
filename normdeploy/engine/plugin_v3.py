"""The plugins as IPluginV3 in Python: the PTX of the quick plugins, launched from Python wherever the engine runs.

Ahead-of-time plugins leak a CUDA module each time that shapes change (TensorRT, issue 4849, read in its tracker). These
do not: a module is loaded once a device and stays, whatever shapes come. The price is that serving needs Python and
this package, so they are asked for by name. TensorRT finds them by the version in the ONNX node, ``VERSION``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from normdeploy.engine.plugin import DOMAIN, OPERATORS, QUANTIZED, STORED, Operator, attributes_of, kernel_of
from normdeploy.errors import InputError
from normdeploy.kernels.launch import current_device, launch
from normdeploy.kernels.variants import Variant, tiles

VERSION = "2"
"""The plugins' version; the quick ones have 1, which TensorRT gives them."""


def register(trt: Any, sm: int) -> None:
    """Register a creator for each plugin with TensorRT, to build an engine or before one is deserialised.

    Args:
        trt: the module ``tensorrt``.
        sm: the compute capability of the GPU, such as 90.
    """
    registry = trt.get_plugin_registry()
    for creator in _creators(trt, sm):
        if registry.get_creator(creator.name, VERSION, DOMAIN) is None:
            registry.register_creator(creator, DOMAIN)


@functools.cache  # TensorRT's registry does not keep them alive
def _creators(trt: Any, sm: int) -> tuple[Any, ...]:
    return tuple(_creator(trt, operator, sm) for operator in OPERATORS)


def _creator(trt: Any, operator: Operator, sm: int) -> Any:
    plugin = _plugin(trt)

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]  # the bindings have no types
        """Makes the plugin of a node's attributes, or of what an engine holds of them."""

        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_version, self.plugin_namespace = operator.name, VERSION, DOMAIN
            empty = np.array([])
            fields = [trt.PluginField(name, empty, _field_type(trt, name)) for name in attributes_of(operator)]
            self.field_names = trt.PluginFieldCollection(fields)

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            """Return the plugin; an attribute that is missing is an InputError."""
            given = {field.name: np.asarray(field.data).reshape(-1) for field in fields}
            missing = [key for key in attributes_of(operator) if key not in given or given[key].size != 1]
            if missing:
                raise InputError(f"the plugin has no {', '.join(missing)}", where=f"{operator.name} {name}")
            return plugin(operator, sm, {key: kind(given[key][0]) for key, kind in attributes_of(operator).items()})

    return Creator()


def _field_type(trt: Any, name: str) -> Any:
    return trt.PluginFieldType.FLOAT32 if name == "epsilon" else trt.PluginFieldType.INT32


@functools.cache
def _plugin(trt: Any) -> Any:
    """Return the class of the plugins for the module ``trt``, whose own classes it derives from."""
    bases = (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)

    class Plugin(*bases):  # type: ignore[misc]  # the bindings have no types
        """One norm of a network, with all capabilities; how TensorRT calls each method stands in its documentation."""

        def __init__(self, operator: Operator, sm: int, attributes: Mapping[str, Any]) -> None:
            for base in bases:
                base.__init__(self)
            self.operator, self.sm, self.attributes = operator, sm, dict(attributes)
            self.plugin_name, self.plugin_version, self.plugin_namespace = operator.name, VERSION, DOMAIN
            self.num_outputs = len(operator.outputs)
            self.timing_cache_id = f"{operator.name} sm{sm} {sorted(attributes.items())}"
            self.tactic = 1
            self.path: Variant | None = None
            self.rows = 0

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            copy = Plugin(self.operator, self.sm, self.attributes)
            copy.tactic, copy.path, copy.rows = self.tactic, self.path, self.rows
            return copy

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def get_fields_to_serialize(self) -> Any:
            values = [
                trt.PluginField(
                    name,
                    np.array([value], np.float32 if name == "epsilon" else np.int32),
                    _field_type(trt, name),
                )
                for name, value in self.attributes.items()
            ]
            return trt.PluginFieldCollection(values)

        def get_output_data_types(self, types: Sequence[Any]) -> list[Any]:
            if not self.operator.is_quantized:
                return [types[0]] * self.num_outputs
            return [trt.int8 if QUANTIZED[self.attributes["to"]] == "int8" else trt.fp8]

        def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Sequence[Any], builder: Any) -> list[Any]:
            return [trt.DimsExprs(inputs[0]) for _ in range(self.num_outputs)]

        def supports_format_combination(self, pos: int, in_out: Sequence[Any], num_inputs: int) -> bool:
            desc, x = in_out[pos].desc, in_out[0].desc
            name = (*self.operator.inputs, *self.operator.outputs)[pos]
            allowed = {"x": set(STORED), "gamma": {x.type.name, "FLOAT"}, "scale": {"FLOAT"}}.get(name, {x.type.name})
            if name == "beta":
                allowed = {in_out[self.operator.inputs.index("gamma")].desc.type.name}
            if name == "y" and self.operator.is_quantized:
                allowed = {"INT8" if QUANTIZED[self.attributes["to"]] == "int8" else "FP8"}
            return desc.format == trt.TensorFormat.LINEAR and desc.type.name in allowed

        def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            self._choose([each.desc for each in inputs])

        def get_valid_tactics(self) -> list[int]:
            return [1] if self.path is None else list(range(1, 1 + len(tiles(self.path.norm, self.sm))))

        def set_tactic(self, tactic: int) -> None:
            self.tactic = max(1, int(tactic))

        def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            self._choose(inputs)
            self.rows = math.prod(tuple(inputs[0].dims)[: self.attributes["axis"]])

        def enqueue(
            self,
            input_desc: Sequence[Any],
            output_desc: Sequence[Any],
            inputs: Sequence[int],
            outputs: Sequence[int],
            workspace: int,
            stream: int,
        ) -> None:
            assert self.path is not None, "TensorRT tells the shapes first"
            names = (*self.operator.inputs, *self.operator.outputs)
            addresses = dict(zip(names, (*inputs, *outputs), strict=True))
            launch(self.path, self.sm, current_device(), addresses, self.rows, stream)

        def _choose(self, inputs: Sequence[Any]) -> None:
            """Take the kernel for these inputs; sizes of the axes that the norm goes over are known in every phase."""
            x, gamma = inputs[0], inputs[self.operator.inputs.index("gamma")]
            sizes = tuple(x.dims)[self.attributes["axis"] :]
            if min(sizes, default=0) < 1:
                raise InputError("the axes that a norm goes over have no fixed size", where=self.operator.name)
            self.path = kernel_of(
                self.operator, self.attributes, self.sm, self.tactic,
                features=math.prod(sizes), dtype=x.type.name,
                weight=gamma.type.name, weights=math.prod(tuple(gamma.dims)),
            )  # fmt: skip

    return Plugin
