"""The conditions on sizes under which a trace holds, evaluated at every size that was asked for.

torch.export proves such a condition or gives up, and gives up at ``2 * (H // 2) - 2 < H``, which a pooling with
``ceil_mode`` asks; of a dimension that is spelled as a multiple it checks none at all. Ranges are finite, so each is
tried.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import sympy
import torch
from sympy.printing.str import StrPrinter
from torch.export import ExportedProgram

from normdeploy.errors import InputError
from normdeploy.export import advice, blame
from normdeploy.export.blame import Asked
from normdeploy.specs import Dim, TensorSpec

_MOST = 4096
"""Combinations of sizes that one condition is tried at; of longer ranges, this many all over them."""

Roots = dict[Any, Dim]


def require_hold(program: ExportedProgram, specs: Sequence[TensorSpec], asked: Sequence[Asked]) -> None:
    """Raise InputError, at what was ``asked``, unless ``program`` holds at every size from two units on.

    At one unit it must be run.
    """
    told: dict[str, None] = {}
    working: dict[str, Dim] = {}
    for condition, dims in _conditions(program, size_symbols(program, specs)):
        holding = {sizes: _holds(condition, dims, sizes) for sizes in sizes_of(list(dims.values()))}
        if all(holding.values()):
            continue
        left = None
        if len(dims) == 1:
            (dim,) = dims.values()
            left = _left(dim, [sizes[0] for sizes, holds in holding.items() if holds]) or _steady(condition, dims)
        if left is None:
            named = condition.xreplace({symbol: sympy.Symbol(unit_name(dim)) for symbol, dim in dims.items()})
            told[_Printer().doprint(named)] = None
        else:
            working[str(left.name)] = _both(working.get(str(left.name), left), left)
    asked_for = {str(dim.name): dim for dim in size_symbols(program, specs).values()}
    reasons = [f"{name!r} must be {_described(left, asked_for[name])}" for name, left in working.items()]
    if reasons := [*reasons, *told]:
        fix = f"ask for these: {advice.spelled(specs, working)}" if working else "ask for the sizes that work"
        raise InputError(
            f"the module does not work for every size that was asked for: {'; '.join(reasons)}",
            where=blame.where(asked, specs),
            fix=f"{fix}, or change the code that depends on the size",
        )


class _Printer(StrPrinter):  # type: ignore[misc]  # sympy has no types
    def _print_Relational(self, expr: Any) -> str:  # the name is sympy.s
        """Return ``a != b`` where sympy has ``Ne(a, b)``."""
        return f"{self._print(expr.lhs)} {expr.rel_op} {self._print(expr.rhs)}"


def unit_name(dim: Dim) -> str:
    """Return the name of a dimension in units of its multiple: ``H``, or ``(H/4)`` of multiples of 4."""
    return str(dim.name) if dim.multiple == 1 else f"({dim.name}/{dim.multiple})"


def size_symbols(program: ExportedProgram, specs: Sequence[TensorSpec]) -> Roots:
    """Return torch's symbol → the dimension whose size, in units of its multiple, it stands for."""
    inputs = [node for node in program.graph.nodes if node.op == "placeholder"][-len(specs) :]
    return {
        symbol: dim
        for node, spec in zip(inputs, specs, strict=True)
        for size, dim in zip(node.meta["val"].shape, spec.dims, strict=True)
        if isinstance(size, torch.SymInt)
        for symbol in size.node.expr.free_symbols
    }


def _conditions(program: ExportedProgram, roots: Roots) -> Iterator[tuple[Any, Roots]]:
    """Yield what torch asserts of sizes, and the ranges that it narrowed them to, with the dimensions in it."""
    values = [node.args[0].meta.get("val") for node in program.graph.nodes if _is_assertion(node)]
    asserted = [value.node.expr for value in values if isinstance(value, torch.SymBool)]
    ranges = [sympy.And(span.lower <= size, size <= span.upper) for size, span in program.range_constraints.items()]
    for condition in (*asserted, *ranges):
        symbols = sorted(condition.free_symbols, key=str)
        if symbols and roots.keys() >= set(symbols):
            yield condition, {symbol: roots[symbol] for symbol in symbols}


def _is_assertion(node: torch.fx.Node) -> bool:
    return node.target is torch.ops.aten._assert_scalar.default and isinstance(node.args[0], torch.fx.Node)


def sizes_of(dims: Sequence[Dim]) -> Iterator[tuple[int, ...]]:
    """Yield every combination of sizes from two units on; of longer ranges, some all over them."""
    each = max(2, int(_MOST ** (1 / len(dims)))) if dims else 1
    return itertools.product(*(_of_one(dim, each) for dim in dims))


def _of_one(dim: Dim, most: int) -> list[int]:
    low = 2 * dim.multiple if dim.min == dim.multiple else dim.min
    sizes = range(low, dim.max + 1, dim.multiple)
    step = -(-len(sizes) // most) | 1  # odd, so that no power of two is all that it meets
    return sorted({*sizes[::step], sizes[-1]})


def _holds(condition: Any, dims: Roots, sizes: Sequence[int]) -> bool:
    units = (sympy.Integer(size // dim.multiple) for size, dim in zip(sizes, dims.values(), strict=True))
    return bool(condition.xreplace(dict(zip(dims, units, strict=True))) == sympy.true)


def _left(dim: Dim, sizes: Sequence[int]) -> Dim | None:
    """Return ``dim`` with ``sizes`` alone, None where these are neither a range nor the multiples in one."""
    if not sizes:
        return None
    if len(sizes) == 1:
        return Dim(dim.name, sizes[0], sizes[0], sizes[0])
    unit = math.gcd(*sizes)
    for multiple in (dim.multiple, unit):
        low, high = sizes[0], sizes[-1]
        if set(_of_one(replace(dim, min=low, max=high, multiple=multiple), _MOST)) | {low} == set(sizes):
            opt = min(max(round(dim.opt / multiple) * multiple, low), high)
            return replace(dim, min=low, opt=opt, max=high, multiple=multiple)
    return None


def _both(one: Dim, other: Dim) -> Dim:
    """Return what two conditions leave of a dimension; ``one`` where no size of its range is left to both."""
    low, high = max(one.min, other.min), min(one.max, other.max)
    if low > high:
        return one
    narrowed = replace(one, min=low, opt=min(max(one.opt, low), high), max=high)
    multiple = math.lcm(one.multiple, other.multiple)
    return narrowed if low == high else advice.of_multiple(narrowed, multiple) or one


def _steady(condition: Any, dims: Roots) -> Dim | None:
    """Return the multiples of the one dimension at which ``condition`` is always true or, traced anew, always false."""
    (dim,) = dims.values()
    for unit in advice.UNITS:
        coarser = advice.of_multiple(dim, math.lcm(dim.multiple, unit))
        if coarser is not None and len({_holds(condition, dims, [size]) for size in _of_one(coarser, _MOST)}) == 1:
            return coarser
    return None


def _described(left: Dim, asked: Dim) -> str:
    whole = left.multiple != asked.multiple and advice.of_multiple(asked, left.multiple)
    return f"a multiple of {left.multiple}" if whole == left else left.span
