"""The layer table: what the builder made of the graph, each engine layer with the PyTorch modules in it.

Two sources give the same table: the builder's verbose log, which needs no GPU (one message, ``Layers:``, a line a
layer), and the engine inspector's JSON, which needs one and is read as documented.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w*), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: (?P<tactic>.*?), StreamId: \d+, Metadata: ?(?P<metadata>.*)"
)
_TENSOR = re.compile(r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<dims>[-\d,]*)\],.*?Datatype: (?P<dtype>\w+)")
_DTYPES = {
    "float": "fp32",
    "fp32": "fp32",
    "half": "fp16",
    "fp16": "fp16",
    "bfloat16": "bf16",
    "bf16": "bf16",
    "fp8": "fp8",
    "float8": "fp8",
    "fp4": "fp4",
    "int8": "int8",
    "int4": "int4",
}
_WORD = re.compile(r"[A-Z][a-z]+")
_REDUCTIONS = ("Mean", "Sum", "Var")
_MOVERS = frozenset({"kgen", "reformat", "noop", "shuffle", "constant", "shape_call", "slice", "concat"})
"""Kinds that may carry an operator's name for moving its data or weights only."""


@dataclass(frozen=True)
class Owner:
    """Where an ONNX node came from: its PyTorch module (``""`` is the root) and its operator."""

    module: str
    operator: str


@dataclass(frozen=True)
class Tensor:
    """One input, constant or output of an engine layer; ``elements`` is None where its shape is dynamic."""

    name: str
    dtype: str
    elements: int | None


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine.

    Attributes:
        name: the builder's name for it.
        kind: the builder's word for what it is.
        modules: PyTorch modules whose operators are in it.
        operators: ONNX operators in it, one a node.
        precision: type of its weights where it multiplies by any, else of its floating-point data; several joined
            by ``+``; empty where it has none.
        statistics: type in which it averages, where it holds a norm and says so; else empty.
        tactic: the kernel that was chosen.
        inputs: names of the tensors it reads, constants not among them.
        outputs: names of the tensors it makes.
        profile: index of the optimization profile it serves.
    """

    name: str
    kind: str
    modules: tuple[str, ...]
    operators: tuple[str, ...]
    precision: str
    statistics: str
    tactic: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[str, ...] = ()
    profile: int = 0

    @property
    def moves(self) -> bool:
        """Return True if its kind may move data only."""
        return self.kind.lower() in _MOVERS


def from_log(text: str, owners: Mapping[str, Owner], heavy: Iterable[str]) -> tuple[EngineLayer, ...]:
    """Return the layers in the builder's ``Layers:`` message; lines of another form are skipped."""
    matches = (_LINE.fullmatch(line.strip()) for line in text.partition("I/O Tensors:")[0].splitlines())
    rows = [match for match in matches if match]
    return tuple(
        _layer(
            row["name"],
            row["kind"],
            [_tensors(row["inputs"]), _tensors(row["constants"]), _tensors(row["outputs"])],
            row["tactic"],
            row["metadata"],
            owners,
            frozenset(heavy),
        )
        for row in rows
    )


def from_inspector(text: str, owners: Mapping[str, Owner], heavy: Iterable[str]) -> tuple[EngineLayer, ...]:
    """Return the layers in the engine inspector's JSON; empty where the engine was built without its layers'
    details.
    """
    rows = [row for row in json.loads(text).get("Layers", []) if isinstance(row, dict)]
    return tuple(
        _layer(
            row.get("Name", ""),
            row.get("LayerType", ""),
            [
                [_inspected(item) for item in row.get("Inputs", [])],
                [_inspected(item) for item in row.get("Constants", [])] + _weights(row),
                [_inspected(item) for item in row.get("Outputs", [])],
            ],
            row.get("TacticName") or row.get("TacticValue", ""),
            row.get("Metadata", ""),
            owners,
            frozenset(heavy),
        )
        for row in rows
    )


def _layer(
    name: str,
    kind: str,
    tensors: Sequence[Sequence[Tensor]],
    tactic: str,
    metadata: str,
    owners: Mapping[str, Owner],
    heavy: frozenset[str],
) -> EngineLayer:
    inputs, constants, outputs = tensors
    nodes = [node for node in dict.fromkeys(_NODE.findall(metadata)) if node in owners]
    operators = tuple(owners[node].operator for node in nodes)
    return EngineLayer(
        name=name,
        kind=kind,
        modules=tuple(dict.fromkeys(owners[node].module for node in nodes if owners[node].module)),
        operators=operators,
        precision=_precision(inputs, constants, outputs, weighs=not heavy.isdisjoint(operators)),
        statistics=_statistics(name, inputs, [*constants, *outputs]),
        tactic=tactic,
        inputs=tuple(tensor.name for tensor in inputs),
        outputs=tuple(tensor.name for tensor in outputs),
        nodes=tuple(nodes),
        profile=_profile(name, [*inputs, *outputs]),
    )


def _tensors(text: str) -> list[Tensor]:
    found = _TENSOR.finditer(text)
    return [Tensor(each["name"], _dtype(each["dtype"]), _elements(each["dims"].split(","))) for each in found]


def _inspected(item: Mapping[str, Any]) -> Tensor:
    text = str(item.get("Datatype") or item.get("Format/Datatype", ""))
    dtype = next((_dtype(word) for word in re.findall(r"\w+", text) if _dtype(word)), "")
    return Tensor(item.get("Name", ""), dtype, _elements([str(size) for size in item.get("Dimensions", [])]))


def _weights(row: Mapping[str, Any]) -> list[Tensor]:
    weights = row.get("Weights")
    if not isinstance(weights, dict):
        return []
    return [Tensor("Weights", _dtype(str(weights.get("Type", ""))), int(weights.get("Count", 0)))]


def _dtype(word: str) -> str:
    """The short name of a floating-point or quantized type; empty for indices and booleans."""
    return _DTYPES.get(word.lower(), "")


def _elements(dims: Sequence[str]) -> int | None:
    sizes = [int(size) for size in dims if size]
    return None if any(size < 0 for size in sizes) else math.prod(sizes)


def _precision(inputs: Sequence[Tensor], constants: Sequence[Tensor], outputs: Sequence[Tensor], weighs: bool) -> str:
    weights = [tensor for tensor in constants if tensor.dtype and (tensor.elements or 0) > 1]
    if weighs and weights:
        return max(weights, key=lambda tensor: tensor.elements or 0).dtype
    data = [tensor.dtype for tensor in inputs if tensor.dtype] or [tensor.dtype for tensor in outputs if tensor.dtype]
    return "+".join(sorted(set(data)))


def _statistics(name: str, inputs: Sequence[Tensor], others: Sequence[Tensor]) -> str:
    """The type of the average that the root is taken of; a generated kernel's name spells it: ``CastMeanSubMul…``.

    A Cast in front of it widens 16-bit data. Where float32 data enters and something else is 16-bit, one Cast
    narrows, and it takes a second to widen again.
    """
    words = _WORD.findall(name)
    root = words.index("Sqrt") if "Sqrt" in words else len(words)
    averages = [index for index, word in enumerate(words[:root]) if word in _REDUCTIONS]
    around = {tensor.dtype for tensor in others if tensor.dtype and tensor.elements != 1}
    types = {tensor.dtype for tensor in inputs if tensor.dtype} or around
    if not averages or not types:
        return ""
    casts = words[: averages[-1]].count("Cast")
    if types == {"fp32"}:
        return "fp32" if around <= types or casts != 1 else "+".join(sorted(around - types))
    return "fp32" if casts else "+".join(sorted(types))


def _profile(name: str, tensors: Sequence[Tensor]) -> int:
    marked = re.search(r"_myl(\d+)_\d+$", name)
    named = next((match for each in tensors if (match := re.search(r" \[profile (\d+)\]$", each.name))), None)
    return int((named or marked or [0, 0])[1])
