"""Resizing by factors at which ONNX's Resize takes other sizes, or other neighbours, than PyTorch.

PyTorch makes ``floor(90 * 0.7)`` = 62 of a size in float64, and a Resize by scales 63, in float32; of 40 a runtime that
counts in float32 makes 28, as PyTorch does, and one that counts in float64 27, for its scale is below 0.7. The nearest
neighbour of cell 39 of 78 is cell 56 of 112 where one multiplies by the inverse of a scale, and 55 where one divides by
the scale. By 1/3 PyTorch takes every third cell as it is, and a Resize mixes it with its neighbours, for no float32 is
1/3. Such operators are spelled out as PyTorch's own decomposition does, by indices that are computed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import sympy
import torch
from torch import nn
from torch._decomp import get_decompositions
from torch.export import ExportedProgram

from normdeploy.errors import InputError
from normdeploy.export import refusals
from normdeploy.export.conditions import Roots, size_symbols, sizes_of
from normdeploy.specs import TensorSpec

_NEAREST, _LINEAR, _VECTOR = "upsample_nearest", "linear", "vec"


def with_exact_resizing(program: ExportedProgram, module: nn.Module, specs: Sequence[TensorSpec]) -> ExportedProgram:
    """Return ``program`` with the kinds of resizing spelled out that ONNX does otherwise at a size in ``specs``.

    Raises:
        InputError: at some size PyTorch copies, as it comes out as large as it was, and interpolates at others.
    """
    roots, targets = size_symbols(program, specs), set()
    for node in program.graph.nodes:
        if not _resizes(node):
            continue
        for pairs, factor in _axes(node, roots):
            if copied := [size for size, made in pairs if _is_copied(node, size, made, factor)]:
                raise InputError(
                    f"resizing by {factor} leaves {copied[0]} cells as they are, where PyTorch copies them, and "
                    "interpolates at other sizes",
                    where=refusals.place_of(node, module),
                    fix="resize with recompute_scale_factor=True, or ask for larger sizes",
                )
            near = _NEAREST in str(node.target)
            if _other_size(pairs, factor) or (_other_cells(pairs, factor) if near else _other_places(factor)):
                targets.add(node.target)
    return program.run_decompositions(get_decompositions(list(targets))) if targets else program


def _resizes(node: torch.fx.Node) -> bool:
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and "upsample" in str(target) and target._overloadname == _VECTOR


def _axes(node: torch.fx.Node, roots: Roots) -> Iterator[tuple[list[tuple[int, int]], float | None]]:
    """Yield of each axis the sizes before and after that occur, and the factor; None where a size was asked for."""
    before, after = (value.meta["val"].shape[2:] for value in (node.args[0], node))  # type: ignore[union-attr]
    factors = node.args[-1] if isinstance(node.args[-1], list | tuple) and node.args[1] is None else [None] * len(after)
    for size, made, factor in zip(before, after, factors, strict=True):
        yield sorted(set(_pairs(size, made, roots))), factor


def _is_copied(node: torch.fx.Node, size: int, made: int, factor: float | None) -> bool:
    """Return True where ATen (UpSample.h) takes each cell as it is, and the factor would move it."""
    by_corners = node.args[2] is True
    return _LINEAR in str(node.target) and factor not in (None, 1.0) and size == made > 1 and not by_corners


def _pairs(size: Any, made: Any, roots: Roots) -> Iterator[tuple[int, int]]:
    """Yield the sizes of an axis before and after, at every size of the inputs that either depends on."""
    expressions = [each.node.expr if isinstance(each, torch.SymInt) else sympy.Integer(each) for each in (size, made)]
    symbols = sorted(set().union(*(each.free_symbols for each in expressions)), key=str)
    if not roots.keys() >= set(symbols):  # it depends on values
        return
    dims = [roots[symbol] for symbol in symbols]
    smallest = tuple(dim.min for dim in dims)
    for sizes in itertools.chain(sizes_of(dims), [smallest]):
        units = {s: sympy.Integer(n // dim.multiple) for s, n, dim in zip(symbols, sizes, dims, strict=True)}
        before, after = (int(each.xreplace(units)) for each in expressions)
        yield before, after


def _other_size(pairs: Sequence[tuple[int, int]], factor: float | None) -> bool:
    """Return True if a Resize makes another size somewhere, or may: runtimes count in float32 and in float64."""
    if factor is None:
        return False
    scale = np.float32(factor)
    return any({int(np.float32(size) * scale), int(size * float(scale))} != {made} for size, made in pairs)


def _other_places(factor: float | None) -> bool:
    """Return True where PyTorch's places, by the inverse of ``factor``, are exact in float32 and Resize's are not."""
    return factor is not None and float(np.float32(factor)) != factor and float(np.float32(1 / factor)) == 1 / factor


def _other_cells(pairs: Sequence[tuple[int, int]], factor: float | None) -> bool:
    """Return True if a cell has another nearest neighbour in ATen (UpSample.h) than in ONNX Runtime's Resize."""
    for size, made in pairs:
        cells = np.arange(made, dtype=np.float32)
        inverse = np.float32(1.0 / factor) if factor else np.float32(size) / np.float32(made)
        scale = np.float32(factor) if factor else np.float32(made) / np.float32(size)
        if np.any(np.floor(cells * inverse) != np.floor(cells / scale)):
            return True
    return False
