"""``io.json``: what a bundle takes and gives, as plain JSON for programs that do not read normdeploy's input specs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from normdeploy import onnxfile
from normdeploy.errors import InputError
from normdeploy.report.schema import Document, read
from normdeploy.specs import Dim, TensorSpec, dynamic_dims

Shape = Sequence[int | str | None]
"""Sizes as a graph declares them: a number, a name, or nothing."""


class Axis(BaseModel):
    """One dimension of a tensor.

    Attributes:
        name: of a dynamic dimension, the same wherever its size is; None where the size is fixed. Of an output it may
            be an expression, or a name of the exporter's.
        min, usual, max: its sizes; None where the graph does not state them, which only happens in outputs.
        multiple: every size is a multiple of this.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None
    min: int | None
    usual: int | None
    max: int | None
    multiple: int = 1


class Tensor(BaseModel):
    """An input or an output.

    Attributes:
        dtype: NumPy's name, or ``bfloat16``.
        dims: of a scalar, none.
        low, high: the values that an input takes, both included; None for any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: str
    dims: tuple[Axis, ...]
    low: float | None = None
    high: float | None = None


class Interface(Document):
    """All inputs and outputs in the model's order; ``dimensions`` tells of each name in the inputs where it stands."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    dimensions: dict[str, str]


def interface_of(
    specs: Sequence[TensorSpec], outputs: Mapping[str, str], shapes: Mapping[str, Shape | None]
) -> Interface:
    """Return the interface of a graph whose inputs are ``specs``; ``outputs`` are name → dtype, in order.

    ``shapes`` are those that it declares of both. A dimension of an output is one of the inputs' where the graph gives
    both the same name.
    """
    known = _symbols(specs, shapes)
    inputs = tuple(map(_input, specs))
    given = tuple(
        Tensor(name=name, dtype=dtype, dims=tuple(_output_axis(dim, known) for dim in shapes.get(name) or ()))
        for name, dtype in outputs.items()
    )
    meanings = {name: _meaning(name, inputs, given) for name in dynamic_dims(specs)}
    return Interface(inputs=inputs, outputs=given, dimensions=meanings)


def read_interface(
    content: bytes | None, specs: Sequence[TensorSpec], outputs: Mapping[str, str], *, model: Path, where: str
) -> Interface:
    """Return the interface that ``content``, a bundle's ``io.json``, holds; of a bundle without one, that of ``model``.

    Raises InputError where it is none, or not that of ``specs`` and ``outputs``.
    """
    if content is None:
        return interface_of(specs, outputs, onnxfile.shapes(model))
    found = read(Interface, content, where=where)
    stated = tuple(map(_input, specs)), dict(outputs)
    if (found.inputs, {tensor.name: tensor.dtype for tensor in found.outputs}) != stated:
        what, fix = (
            "it tells of other inputs or outputs than the manifest",
            "copy the whole folder again, or export it again",
        )
        raise InputError(what, where=where, fix=fix)
    return found


def _input(spec: TensorSpec) -> Tensor:
    return Tensor(name=spec.name, dtype=spec.dtype, dims=tuple(map(_axis, spec.dims)), low=spec.low, high=spec.high)


def _symbols(specs: Sequence[TensorSpec], shapes: Mapping[str, Shape | None]) -> dict[str, Dim]:
    """Symbol of the graph → the dimension that it stands for in the inputs."""
    found: dict[str, Dim] = {}
    for spec in specs:
        shape = shapes.get(spec.name)
        for symbol, dim in zip(shape or (), spec.dims, strict=False):
            if dim.name is not None and isinstance(symbol, str):
                found[symbol] = dim
    return found


def _axis(dim: Dim) -> Axis:
    return Axis(name=dim.name, min=dim.min, usual=dim.opt, max=dim.max, multiple=dim.multiple)


def _output_axis(dim: int | str | None, known: Mapping[str, Dim]) -> Axis:
    if isinstance(dim, int):
        return Axis(name=None, min=dim, usual=dim, max=dim)
    if dim is not None and dim in known:
        return _axis(known[dim])
    return Axis(name=dim or "?", min=None, usual=None, max=None)


def _meaning(name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> str:
    """Return where a dimension stands: ``axis 0 of the inputs x and ids and of the output y``."""
    parts = [_places(name, "input", inputs), _places(name, "output", outputs)]
    return " and ".join(part for part in parts if part)


def _places(name: str, what: str, tensors: Sequence[Tensor]) -> str:
    axes: dict[int, list[Any]] = {}
    for tensor in tensors:
        for axis, dim in enumerate(tensor.dims):
            if dim.name == name:
                axes.setdefault(axis, []).append(tensor.name)
    return " and ".join(
        f"axis {axis} of the {what}{'s' if len(names) > 1 else ''} {', '.join(names)}" for axis, names in axes.items()
    )
