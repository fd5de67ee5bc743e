"""The LayerNorm kernel as TensorRT plugins, for the full TensorRT: TensorRT-RTX takes none.

Each of ``OPERATORS`` is a quick plugin, compiled ahead of time: its PTX lies in the engine, which needs neither Python
nor a library where it is served. :mod:`normdeploy.engine.plugin_v3` has the same ones for Python to launch.
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
from normdeploy.kernels.variants import DType, Norm, OutputType, Variant, WeightType, tiles

DOMAIN = "normdeploy"
"""The domain of the ONNX operators and the namespace of the plugins."""

ATTRIBUTES: Mapping[str, type] = {"epsilon": float, "axis": int}
"""As LayerNormalization has them; ``axis``, from where on a norm goes over all axes, counts from the end: -1, -2, …"""

STORED: Mapping[str, DType] = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}
"""What TensorRT calls the types of x, and what the kernel does."""
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


OPERATORS = (
    Operator("LayerNorm", ("x", "gamma", "beta")),
    Operator("RMSNorm", ("x", "gamma"), kernel={"centre": False}),
    Operator(
        "AddLayerNorm",
        ("x", "residual", "gamma", "beta"),
        ("y", "sum"),
        kernel={"residual": True, "keep_sum": True},
    ),
    Operator("LayerNormQuantize", ("x", "gamma", "beta", "scale")),
)


def attributes_of(operator: Operator) -> dict[str, type]:
    """Return the attributes of ``operator`` and their types, in order."""
    return dict(ATTRIBUTES) | ({"to": int} if operator.is_quantized else {})


def kernel_of(
    operator: Operator,
    attributes: Mapping[str, Any],
    sm: int,
    tactic: int,
    *,
    features: int,
    dtype: str,
    weight: str,
    weights: int,
) -> Variant:
    """Return the kernel of a plugin.

    Args:
        operator: which plugin.
        attributes: of its node.
        sm: the compute capability that it is compiled for.
        tactic: which of its tiles, from 1; where there is but one, each is it.
        features: the number of elements that the norm goes over.
        dtype: TensorRT's name of the type of x.
        weight: that of gamma and beta.
        weights: how many elements gamma has; one stands for all features.
    """
    kind: WeightType = "storage" if weight == dtype else "float32"
    norm = Norm(
        features=features,
        eps=attributes["epsilon"],
        dtype=STORED[dtype],
        gamma=kind,
        beta=kind if "beta" in operator.inputs else "none",
        uniform=weights == 1 < features,
        output=QUANTIZED[attributes["to"]] if operator.is_quantized else "storage",
        **operator.kernel,
    )
    return tiles(norm, sm)[: max(1, tactic)][-1]


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
    attributes = attributes_of(operator)
    tensors = dict.fromkeys(operator.inputs, trtp.TensorDesc)
    described = _tuple_of(trtp.TensorDesc, operator)
    forms = _Forms(operator, trtp, trt, sm)
    trtp.register(name)(_signed(forms.describe, tensors | attributes, described))
    trtp.autotune(name)(
        _signed(forms.autotune, tensors | attributes | {"outputs": described}, list[trtp.AutoTuneCombination])
    )
    ahead = tuple[str | bytes, str | bytes, trtp.KernelLaunchParams, trtp.SymIntExprs]
    trtp.aot_impl(name)(_signed(forms.ahead, tensors | attributes | {"outputs": described, "tactic": int}, ahead))


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
        x, gamma = given[0], given[self.operator.inputs.index("gamma")]
        stored = _STORED_TYPES if gamma.dtype == x.dtype else "FP16|BF16"
        kinds = {"scale": "FP32"} | ({} if gamma.dtype == x.dtype else {"gamma": "FP32", "beta": "FP32"})
        if self.operator.is_quantized:
            kinds["y"] = "INT8" if QUANTIZED[self._attributes(given)["to"]] == "int8" else "FP8"
        names = (*self.operator.inputs, *self.operator.outputs)
        taken = ", ".join(kinds.get(name, stored) for name in names)
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

    def _attributes(self, given: Sequence[Any]) -> dict[str, Any]:
        names, first = list(attributes_of(self.operator)), len(self.operator.inputs)
        return dict(zip(names, given[first : first + len(names)], strict=True))

    def _path(self, given: Sequence[Any]) -> Variant:
        x, gamma, attributes = given[0], given[self.operator.inputs.index("gamma")], self._attributes(given)
        return kernel_of(
            self.operator, attributes, self.sm, given[-1],
            features=self._features(x, attributes["axis"]), dtype=x.dtype.name, weight=gamma.dtype.name,
            weights=self._features(gamma, 0),
        )  # fmt: skip

    def _features(self, x: Any, axis: int) -> int:
        """Return the number of elements that a norm goes over, which must be known when the engine is built."""
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
