"""The LayerNorm kernel as TensorRT plugins, for the full TensorRT: TensorRT-RTX takes none.

Each of ``OPERATORS`` is a quick plugin in two forms, chosen by the ONNX attribute ``aot``: ahead of time the PTX lies
in the engine, which needs neither Python nor a library where it is served; otherwise Python launches the same PTX.
What the vendor's own Python checks of a plugin is run in the tests; no engine with one has been built so far.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from normdeploy.errors import InputError
from normdeploy.kernels.compile import ENTRY, ptx
from normdeploy.kernels.launch import launch
from normdeploy.kernels.variants import DType, Norm, OutputType, Variant, tiles

DOMAIN = "normdeploy"
"""The domain of the ONNX operators and the namespace of the plugins."""

ATTRIBUTES: Mapping[str, type] = {"epsilon": float, "axis": int}
"""As LayerNormalization has them; ``axis``, from where on a norm goes over all axes, counts from the end: -1, -2, …"""

_STORED: Mapping[str, DType] = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
QUANTIZED: Mapping[int, OutputType] = {3: "int8", 17: "float8_e4m3fn"}
"""The ``to`` of what is quantized (ONNX, TensorProto.DataType), and what the kernel calls it."""
_STORED_TYPES = "FP32|FP16|BF16"


@dataclass(frozen=True)
class Operator:
    """One plugin: its inputs in order, and what of the kernel it is."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ("y",)
    kernel: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_quantized(self) -> bool:
        """Return whether y is of another type than x; it is then the attribute ``to`` that says of which."""
        return "scale" in self.inputs


_NORM = {"gamma": "storage", "beta": "storage"}
OPERATORS = (
    Operator("LayerNorm", ("x", "gamma", "beta"), kernel=_NORM),
    Operator("RMSNorm", ("x", "gamma"), kernel={"gamma": "storage", "beta": "none", "centre": False}),
    Operator(
        "AddLayerNorm",
        ("x", "residual", "gamma", "beta"),
        ("y", "sum"),
        kernel=_NORM | {"residual": True, "keep_sum": True},
    ),
    Operator("LayerNormQuantize", ("x", "gamma", "beta", "scale"), kernel=_NORM),
)


def register(trtp: Any, trt: Any, sm: int) -> None:
    """Register all plugins with TensorRT, for the GPU of compute capability ``sm`` that engines are built on.

    Args:
        trtp: the module ``tensorrt.plugin``.
        trt: the module ``tensorrt``.
        sm: such as 90.
    """
    for operator in OPERATORS:
        _register(operator, trtp, trt, sm)


def _register(operator: Operator, trtp: Any, trt: Any, sm: int) -> None:
    name = f"{DOMAIN}::{operator.name}"
    attributes = dict(ATTRIBUTES) | ({"to": int} if operator.is_quantized else {})
    tensors = dict.fromkeys(operator.inputs, trtp.TensorDesc)
    described = _tuple_of(trtp.TensorDesc, operator)
    forms = _Forms(operator, trtp, trt, sm)
    trtp.register(name)(_signed(forms.describe, tensors | attributes, described))
    trtp.autotune(name)(
        _signed(forms.autotune, tensors | attributes | {"outputs": described}, list[trtp.AutoTuneCombination])
    )
    ahead = tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]
    trtp.aot_impl(name)(_signed(forms.ahead, tensors | attributes | {"outputs": described, "tactic": int}, ahead))
    live = dict.fromkeys(operator.inputs, trtp.Tensor)
    results = _tuple_of(trtp.Tensor, operator)
    arguments = live | attributes | {"outputs": results, "stream": int, "tactic": int}
    trtp.impl(name)(_signed(forms.now, arguments, None))


def _tuple_of(kind: Any, operator: Operator) -> Any:
    return types.GenericAlias(tuple, (kind,) * len(operator.outputs))


def _signed(method: Callable[..., Any], arguments: Mapping[str, Any], result: Any) -> Callable[..., Any]:
    """Return ``method`` with the signature that TensorRT reads a plugin's names and types from."""

    def call(*given: Any, **named: Any) -> Any:
        return method(*given, *named.values())

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, annotation=given) for name, given in arguments.items()]
    call.__signature__ = inspect.Signature(parameters, return_annotation=result)  # type: ignore[attr-defined]  # a function may have one
    return call


@dataclass(frozen=True)
class _Forms:
    """What TensorRT asks of one plugin; each method takes the inputs, then the attributes, then its own arguments."""

    operator: Operator
    trtp: Any
    trt: Any
    sm: int

    def describe(self, *given: Any) -> tuple[Any, ...]:
        """Return the types and shapes of the outputs: those of x, but of a quantized y."""
        x, attributes = given[0], self._attributes(given)
        if not self.operator.is_quantized:
            return tuple(x.like() for _ in self.operator.outputs)
        kinds = {"int8": self.trt.int8, "float8_e4m3fn": self.trt.fp8}
        if attributes["to"] not in QUANTIZED:
            raise InputError(f"a norm is quantized to int8 or fp8, not to {attributes['to']}", where=self.operator.name)
        return (self.trtp.from_shape_expr(x.shape_expr, kinds[QUANTIZED[attributes["to"]]]),)

    def autotune(self, *given: Any) -> list[Any]:
        """Return the types that the plugin takes, all linear, and a tactic for each tile."""
        kinds = {"scale": "FP32"}
        if self.operator.is_quantized:
            kinds["y"] = "INT8" if QUANTIZED[self._attributes(given)["to"]] == "int8" else "FP8"
        names = (*self.operator.inputs, *self.operator.outputs)
        taken = ", ".join(kinds.get(name, _STORED_TYPES) for name in names)
        return [self.trtp.AutoTuneCombination(taken, "LINEAR", [1, 2])]

    def ahead(self, *given: Any) -> tuple[str, bytes, Any, Any]:
        """Return the kernel's name, its PTX, how it is launched, and its integer argument, the number of rows."""
        path, rows = self._path(given), self._rows(given)
        launched = self.trtp.KernelLaunchParams()
        launched.grid_x = self._blocks(rows, path)
        launched.block_x = path.threads
        arguments = self.trtp.SymIntExprs(1)
        arguments[0] = self.trtp.SymInt32(rows)
        return ENTRY, ptx(path, self.sm), launched, arguments

    def now(self, *given: Any) -> None:
        """Launch the same kernel from Python."""
        path, count = self._path(given), len(self.operator.inputs)
        outputs, stream = given[-3], given[-2]
        tensors = dict(zip((*self.operator.inputs, *self.operator.outputs), (*given[:count], *outputs), strict=True))
        rows = math.prod(tuple(tensors["x"].shape)[: self._attributes(given)["axis"]])
        launch(path, self.sm, 0, {name: tensor.data_ptr for name, tensor in tensors.items()}, rows, stream)

    def _attributes(self, given: Sequence[Any]) -> dict[str, Any]:
        names = [*ATTRIBUTES, *(["to"] if self.operator.is_quantized else [])]
        first = len(self.operator.inputs)
        return dict(zip(names, given[first : first + len(names)], strict=True))

    def _path(self, given: Sequence[Any]) -> Variant:
        x, attributes, tactic = given[0], self._attributes(given), given[-1]
        norm = Norm(
            features=self._features(x, attributes["axis"]),
            eps=attributes["epsilon"],
            dtype=_STORED[x.dtype.name],
            output=QUANTIZED[attributes["to"]] if self.operator.is_quantized else "storage",
            **self.operator.kernel,
        )
        return tiles(norm, self.sm)[: max(1, tactic)][-1]  # where there is one tile, both tactics are it

    def _features(self, x: Any, axis: int) -> int:
        """Return the number of elements that a norm goes over, which must be known when the engine is built."""
        if hasattr(x, "data_ptr"):
            return math.prod(tuple(x.shape)[axis:])
        sizes = list(x.shape_expr)[axis:]
        if not all(size.is_constant for size in sizes):
            raise InputError("the axes that a norm goes over have no fixed size", where=self.operator.name)
        return math.prod(size.constant_value() for size in sizes)

    def _rows(self, given: Sequence[Any]) -> Any:
        """Return the expression for the number of rows."""
        rows = self.trtp.SymInt32(1)
        for size in list(given[0].shape_expr)[: self._attributes(given)["axis"]]:
            rows = rows * size
        return rows

    def _blocks(self, rows: Any, path: Variant) -> Any:
        blocks = (rows + (path.rows - 1)) // path.rows
        return self.trtp.SymInt32(blocks * path.cluster)
