"""A random graph while it grows: values with their shapes at two settings of the dynamic sizes, nodes, constants.

Every dimension is known at both settings, so an operator that needs a fixed size can ask for one, and what
comes out can be run at sizes that the fold did not see.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

T = TypeVar("T")
Shape = tuple[int, ...]
Shapes = tuple[Shape, Shape]
"""The shape at each of the two settings."""

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}

CELLS = 3000
"""Most elements of a value: a graph must run in a millisecond."""


class Unfit(Exception):
    """This operator cannot be put here; the graph goes on without it."""


class Draw:
    """Choices made by hypothesis; every one shrinks towards its first option."""

    def __init__(self, draw: Callable[[st.SearchStrategy[int]], int]) -> None:
        self._draw = draw

    def int(self, low: int, high: int) -> int:
        """A number in [low, high]."""
        return low if low == high else self._draw(_between(low, high))

    def one(self, options: Sequence[T]) -> T:
        """One of ``options``."""
        return options[self.int(0, len(options) - 1)]

    def odds(self, percent: int) -> bool:
        """True this often."""
        return self.int(0, 99) >= 100 - percent

    def ints(self, count: int, low: int, high: int) -> list[int]:
        """``count`` numbers in [low, high]."""
        return [self.int(low, high) for _ in range(count)]


@functools.cache
def _between(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high)


@dataclass(frozen=True)
class Value:
    """A tensor of the graph; ``constant`` where it always holds the same numbers, ``wrap`` where it is none itself."""

    name: str
    shapes: Shapes
    dtype: int
    constant: bool = False
    wrap: str = ""  # "sequence" or "optional" of tensors of this dtype

    @property
    def rank(self) -> int:
        """The number of axes."""
        return len(self.shapes[0])

    def fixed(self, axis: int) -> int | None:
        """The size of ``axis`` where it is the same at both settings."""
        here, there = self.shapes[0][axis], self.shapes[1][axis]
        return here if here == there else None

    @property
    def is_fixed(self) -> bool:
        """Whether every size is."""
        return self.shapes[0] == self.shapes[1]


@dataclass
class Body:
    """What stands inside an If, a Loop or a Scan."""

    nodes: list[onnx.NodeProto]
    constants: dict[str, onnx.TensorProto]
    around: list[Value]

    def makes(self, value: Value) -> bool:
        """Whether a node in here makes ``value``."""
        return any(value.name in node.output for node in self.nodes)


class Graph:
    """What was put together so far."""

    def __init__(self, d: Draw, opset: int, dtype: int, ir_version: int) -> None:
        self.d, self.opset, self.dtype, self.ir_version = d, opset, dtype, ir_version
        self.nodes: list[onnx.NodeProto] = []
        self.values: list[Value] = []
        self.inputs: list[Value] = []
        self.symbols: dict[str, list[str | int]] = {}
        self.constants: dict[str, onnx.TensorProto] = {}
        self.weights: list[Value] = []
        self.exposed: list[Value] = []
        self.functions: dict[str, onnx.FunctionProto] = {}
        self.domains: set[str] = set()
        self.declared: list[Value] = []
        self.depth = 0
        self.plain = False  # of operators of ONNX on tensors alone
        self._focus: Value | None = None
        self.positive = d.odds(40)  # the scales of maps, which pass MaxPool and Relu then
        self._seed, self._count = d.int(0, 9999), 0

    # -- values --------------------------------------------------------------------------------

    def name(self, kind: str) -> str:
        """A new name."""
        self._count += 1
        return f"{kind}{self._count}"

    def input(self, shapes: Shapes, dims: Sequence[str | int], dtype: int | None = None) -> Value:
        """A graph input; ``dims`` as they are declared."""
        value = Value(self.name("x"), shapes, self.dtype if dtype is None else dtype)
        self.inputs.append(value)
        self.symbols[value.name] = list(dims)
        if value.dtype not in (TensorProto.INT64, TensorProto.BOOL):
            self.values.append(value)
        return value

    def pick(self, fits: Callable[[Value], Any] = lambda value: True) -> Value:
        """A value that ``fits``: mostly the newest."""
        if self._focus is not None:
            if not fits(self._focus):
                raise Unfit
            return self._focus
        found = [value for value in reversed(self.values) if fits(value)]
        if not found:
            raise Unfit
        return self.d.one(found) if len(found) > 1 and self.d.odds(30) else found[0]

    @property
    def newest(self) -> Value:
        """What was emitted last, or what is followed."""
        return self._focus or self.values[-1]

    @contextmanager
    def following(self, value: Value) -> Iterator[None]:
        """Let the next operator read ``value``, and each one after it what the one before made."""
        before, self._focus = self._focus, value
        try:
            yield
        finally:
            self._focus = before

    @contextmanager
    def inside(self) -> Iterator[Body]:
        """Let what comes next stand in a body, which sees all that is around it and holds its own constants or none."""
        kept = self.nodes, self.values, self.exposed, self.constants, self.weights, self._focus
        body = Body([], {} if self.d.odds(50) else self.constants, list(self.values))
        self.nodes, self.values, self.exposed = body.nodes, list(self.values), []
        self.constants, self.weights, self._focus = body.constants, list(self.weights), None
        self.depth += 1
        try:
            yield body
        finally:
            if body.constants is self.constants and body.constants is kept[3]:
                body.constants = {}
            self.nodes, self.values, self.exposed, self.constants, self.weights, self._focus = kept
            self.depth -= 1

    def wrapped(self, op: str, inputs: Sequence[Value | None], dtype: int, wrap: str, **attributes: Any) -> Value:
        """Put a node at the end that makes a sequence or an optional."""
        value = Value(self.name("q"), ((), ()), dtype, wrap=wrap)
        names = [item.name if item is not None else "" for item in inputs]
        attributes = {key: item for key, item in attributes.items() if item is not None}
        self.nodes.append(helper.make_node(op, names, [value.name], name=self.name(op.lower()), **attributes))
        return value

    def emit(
        self,
        op: str,
        inputs: Sequence[Value | str | None],
        *shapes: Shapes,
        dtypes: Sequence[int | None] = (),
        **attributes: Any,
    ) -> Value:
        """Put a node at the end; the first output. Outputs of integers are exposed, not worked on."""
        for shape in shapes:
            if any(min(sizes, default=1) < 1 or math.prod(sizes) > CELLS for sizes in shape):
                raise Unfit
        names = [item.name if isinstance(item, Value) else item or "" for item in inputs]
        while names and not names[-1]:
            names.pop()
        first = next(item.dtype for item in inputs if isinstance(item, Value))
        kinds = [kind or first for kind in (*dtypes, *[None] * (len(shapes) - len(dtypes)))]
        outs = [Value(self.name("v"), shape, kind) for shape, kind in zip(shapes, kinds, strict=True)]
        attributes = {key: value for key, value in attributes.items() if value is not None}
        name = "" if self.d.odds(5) else self.name(op.lower())
        self.nodes.append(helper.make_node(op, names, [out.name for out in outs], name=name, **attributes))
        for out in reversed(outs):
            (self.values if out.dtype in FLOATS else self.exposed).append(out)
        if self._focus is not None and outs[0] in self.values:
            self._focus = outs[0]
        return outs[0]

    # -- constants -----------------------------------------------------------------------------

    def rng(self) -> np.random.Generator:
        """A new stream of numbers: what is drawn later does not change what was drawn before."""
        self._count += 1
        return np.random.default_rng([self._seed, self._count])

    def store(self, array: np.ndarray, kind: str = "w") -> Value:
        """An initializer, or a Constant node."""
        value = Value(self.name(kind), (array.shape, array.shape), helper.np_dtype_to_tensor_dtype(array.dtype), True)
        tensor = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), value.name)
        if self.d.odds(10) and (self.opset >= 9 or kind != "i"):  # before that it held floats only
            self.nodes.append(helper.make_node("Constant", [], [value.name], value=tensor))
        else:
            self.constants[value.name] = tensor
        return value

    def ints(self, values: Iterable[int], kind: str = "i") -> Value:
        """A constant vector of int64."""
        return self.store(np.array(list(values), np.int64), kind)

    def scalar(self, number: float, dtype: int | None = None) -> Value:
        """A constant of rank 0."""
        return self.store(np.array(number, numpy_dtype(self.dtype if dtype is None else dtype)), "s")

    def weight(self, shape: Shape, dtype: int, spread: float = 1.0) -> Value:
        """A float constant of this shape, spelled in one of many ways, now and then one that is there already."""
        same = [w for w in self.weights if w.shapes[0] == shape and w.dtype == dtype]
        if same and self.d.odds(20):
            return self.d.one(same)
        value = self._spelled(self.numbers(shape) * spread, dtype)
        self.weights.append(value)
        return value

    def numbers(self, shape: Shape) -> np.ndarray:
        """Random float64 numbers of two decimals; now and then small integers, zeros among them, tiny or huge."""
        rng = self.rng()
        values = np.round(rng.standard_normal(shape), 2)
        kind = self.d.int(0, 19)
        if kind == 15:
            return np.asarray(rng.integers(-2, 3, shape), np.float64)
        if kind == 16:
            return np.asarray(values * rng.integers(0, 2, shape))
        if kind == 17:
            return np.abs(values) + 0.1
        if kind == 18:
            return np.asarray(values * 10.0 ** rng.integers(-6, 1, shape))
        return np.asarray(values * 10.0 ** rng.integers(0, 4, shape)) if kind == 19 else np.asarray(values)

    def _spelled(self, array: np.ndarray, dtype: int) -> Value:
        kind = self.d.int(0, 19)
        wanted = array.astype(numpy_dtype(dtype))
        if kind == 16:
            return self._through("Identity", self.store(wanted), wanted.shape, dtype)
        if kind == 17 and dtype == TensorProto.FLOAT:
            half = self.store(wanted.astype(np.float16))
            return self._through("Cast", half, wanted.shape, dtype, to=dtype)
        if kind == 18 and wanted.ndim > 1:
            perm = [*range(1, wanted.ndim), 0]
            turned = self.store(np.transpose(wanted, perm))
            return self._through("Transpose", turned, wanted.shape, dtype, perm=[int(i) for i in np.argsort(perm)])
        return self.store(wanted)

    def _through(self, op: str, stored: Value, shape: Shape, dtype: int, **attributes: Any) -> Value:
        value = Value(self.name("w"), (shape, shape), dtype, True)
        self.nodes.append(helper.make_node(op, [stored.name], [value.name], **attributes))
        return value

    def quantized(self, shape: Shape) -> Value:
        """A float32 weight behind DequantizeLinear, its scale per tensor, along one axis, or for blocks of two."""
        codes = self.store(self.rng().integers(-9, 10, shape).astype(np.int8), "q")
        axis = self.d.int(0, len(shape) - 1) if self.opset >= 13 and len(shape) and self.d.odds(70) else None
        blocks = axis is not None and self.opset >= 21 and self.d.odds(25)
        size = () if axis is None else (shape[axis],)
        if blocks:
            size = tuple(-(-n // 2) if i == axis else n for i, n in enumerate(shape))
        scale = self.store(np.asarray(self.rng().uniform(0.01, 0.1, size), np.float32), "scale")
        zero = self.store(self.rng().integers(-3, 4, size).astype(np.int8), "zero") if self.d.odds(40) else None
        value = Value(self.name("w"), (shape, shape), TensorProto.FLOAT, True)
        inputs = [item.name for item in (codes, scale, zero) if item is not None]
        extra = {} if axis is None else {"axis": axis, **({"block_size": 2} if blocks else {})}
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [value.name], **extra))
        return value

    def quantized_bias(self, size: int) -> Value:
        """A float32 vector behind DequantizeLinear of 32-bit integers, with one scale or a scale each."""
        codes = self.store(self.rng().integers(-999, 1000, size).astype(np.int32), "r")
        each = self.d.odds(50)
        scale = self.store(np.asarray(self.rng().uniform(0.001, 0.01, size if each else ()), np.float32), "scale")
        value = Value(self.name("b"), ((size,), (size,)), TensorProto.FLOAT, True)
        extra = {"axis": 0} if each else {}
        self.nodes.append(helper.make_node("DequantizeLinear", [codes.name, scale.name], [value.name], **extra))
        return value

    def parameter(
        self, inputs: list[Value | str | None], name: str, values: Sequence[int] | None, since: int
    ) -> dict[str, Any]:
        """Integers that are an attribute before opset ``since`` and an input from there on."""
        if values is None:
            return {}
        if self.opset < since:
            return {name: list(values)}
        inputs.append(self.ints(values))
        return {}


def reads(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    """The names that ``nodes`` read, those in their bodies included."""
    found: set[str] = set()
    for node in nodes:
        found.update(node.input)
        for attr in node.attribute:
            if attr.HasField("g"):
                found |= reads(attr.g.node) | {info.name for info in attr.g.output}
    return found


def numpy_dtype(dtype: int) -> np.dtype[Any]:
    """The numpy dtype of an ONNX element type."""
    return np.dtype(ml_dtypes.bfloat16) if dtype == TensorProto.BFLOAT16 else helper.tensor_dtype_to_np_dtype(dtype)


def each(rule: Callable[..., Iterable[int]], *values: Value) -> Shapes:
    """``rule`` on the shapes of ``values``, at both settings."""
    try:
        here, there = (tuple(rule(*(value.shapes[i] for value in values))) for i in (0, 1))
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise Unfit from error
    return here, there


def broadcast(*values: Value) -> Shapes:
    """The shape of an elementwise result."""
    return each(lambda *shapes: np.broadcast_shapes(*shapes), *values)
