"""The numbers of a file → those that a module holds: the same, or how they differ is told.

What is stored in 8 bits, in whole numbers or as truths is a code where weights are wanted: it means nothing without its
scales, which lie elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normdeploy.checkpoint import convert
from normdeploy.checkpoint.names import listed
from normdeploy.errors import InputError


def require_numbers(module: nn.Module, state: Mapping[str, Any], file: Path) -> None:
    """Raise InputError where codes of a quantized checkpoint would become weights."""
    learned = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    codes = [
        f"{name} ({_name(state[name].dtype)})"
        for name, held in module.state_dict().items()
        if isinstance(held, Tensor)
        and isinstance(state.get(name), Tensor)
        and _is_code(state[name].dtype, held.dtype, learned=name in learned)
    ]
    if codes:
        what = f"the file holds codes where the module has real numbers, {len(codes)} in all: {listed(codes, 3)}"
        raise InputError(what, where=str(file), fix=convert.of_codes(file))


def _is_code(given: torch.dtype, held: torch.dtype, *, learned: bool) -> bool:
    if given == held or not _is_real(held) or (_is_real(given) and given.itemsize > 1):
        return False
    return learned or (given.itemsize == 1 and given != torch.bool)  # a mask or an index may be a buffer


def told(module: nn.Module, state: Mapping[str, Any], file: Path) -> Iterator[str]:
    """Yield notes on the tensors that the module holds otherwise than the file, once it has loaded them.

    Raises InputError where a dtype, or memory that names share in the module, destroyed values.
    """
    loaded = module.state_dict()
    pairs = {
        name: (given, held)
        for name, given in state.items()
        if isinstance(given, Tensor) and isinstance(held := loaded.get(name), Tensor)
    }
    yield from _casts(pairs, file)
    other = [name for name, (given, held) in pairs.items() if not _same(_as(given, held), held)]
    for name in other:
        if shared := [each for each in pairs if each != name and _overlap(pairs[name][1], pairs[each][1])]:
            what = f"{name} shares memory with {shared[0]} in the module, which cannot hold what the file has for both"
            raise _untied(what, file)
    if other:
        yield f"changed by the module's own code as they were loaded: {listed(other)}"


def _as(given: Tensor, held: Tensor) -> Tensor:
    """Return ``given`` in the dtype of ``held``, and as a scalar where torch loads its older form of one."""
    return given.to(held.dtype).reshape(held.shape) if held.ndim == 0 and given.shape == (1,) else given.to(held.dtype)


def ties(expected: Mapping[str, Any]) -> list[list[str]]:
    """Return groups of names that are one tensor in the module."""
    groups: dict[object, list[str]] = {}
    for name, value in expected.items():
        if isinstance(value, Tensor) and not nn.parameter.is_lazy(value) and value.numel():
            groups.setdefault((value.data_ptr(), value.shape, value.stride()), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def require_equal_ties(module: nn.Module, state: Mapping[str, Any], file: Path) -> None:
    """Raise InputError where the file has different values for names that are one tensor in the module."""
    for group in ties(module.state_dict()):
        present = [name for name in group if name in state]
        for name in present[1:]:
            if not _same(state[name], state[present[0]]):
                raise _untied(f"{name} and {present[0]} are one tensor in the module, but differ in the file", file)


def _untied(what: str, file: Path) -> InputError:
    return InputError(what, where=str(file), fix="untie them in the factory, or give the weights of a tied model")


def _overlap(one: Tensor, other: Tensor) -> bool:
    spans = [_span(tensor) for tensor in (one, other)]
    return max(start for start, _ in spans) < min(end for _, end in spans)


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return the addresses of the first byte of ``tensor`` and of the first one behind it."""
    if tensor.layout != torch.strided or not tensor.numel():
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _casts(pairs: Mapping[str, tuple[Tensor, Tensor]], file: Path) -> Iterator[str]:
    """Notes on the tensors whose dtype the module changed; InputError where that destroyed values."""
    changed: dict[tuple[str, str, str], list[str]] = {}
    small: dict[str, list[tuple[str, int, int]]] = {}
    for name, (given, held) in pairs.items():
        if given.dtype == held.dtype:
            continue
        pair = _name(given.dtype), _name(held.dtype)
        changed.setdefault((*pair, _loss(name, given, held.dtype, file)), []).append(name)
        zeros, short = _too_small(given, given.to(held.dtype))
        if zeros or short:
            small.setdefault(pair[1], []).append((name, zeros, short))
    for (source, target, loss), names in changed.items():
        yield f"{source} in the file and {target} in the module, {loss}: {listed(names, 3)}"
    for target, found in small.items():
        zeros, short = sum(each for _, each, _ in found), sum(each for *_, each in found)
        names = [name for name, *_ in found]
        yield (
            f"too small for {target}: {zeros:,} values of the file became 0 and {short:,} lost digits, of "
            f"{sum(pairs[name][0].numel() for name in names):,} in {listed(names, 3)}"
        )


def _loss(name: str, given: Tensor, dtype: torch.dtype, file: Path) -> str:
    """Return how the values of ``given`` survive ``dtype``. Raises InputError where they do not."""
    if given.is_complex() <= dtype.is_complex:
        cast = given.to(dtype)
        if _same(cast.to(given.dtype), given):
            return "converted exactly"
        overflows = bool((_wide(given).isfinite() & ~_wide(cast).isfinite()).any())
        vanishes = bool(_wide(given).any()) and not bool(_wide(cast).any())
        if _is_real(given.dtype) and _is_real(dtype) and not (overflows or vanishes):
            return "rounded"
    fitting = given.dtype if _is_real(given.dtype) else torch.float64
    raise InputError(
        f"the values of {name} do not survive the module's dtype: {_name(given.dtype)} → {_name(dtype)}",
        where=str(file),
        fix=f"build the module in the dtype of its weights, e.g. .to({fitting}) in the factory",
    )


def _too_small(given: Tensor, cast: Tensor) -> tuple[int, int]:
    """Return how many values a narrower type made 0, and how many lost digits below its smallest normal number."""
    if not (given.is_floating_point() and cast.is_floating_point()):
        return 0, 0
    wide, held = _wide(given), _wide(cast)
    zeros = (held == 0) & (wide != 0)
    short = (held != wide) & (held != 0) & (held.abs() < torch.finfo(cast.dtype).smallest_normal)
    return int(zeros.sum()), int(short.sum())


_COMPARED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Types that torch compares as they are."""


def _is_real(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    plain = one.layout == other.layout == torch.strided and one.dtype == other.dtype and one.dtype in _COMPARED
    if plain and torch.equal(one, other):
        return True  # most are, and of a large tensor no wider copy is made
    one, other = _wide(one), _wide(other)
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _wide(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
