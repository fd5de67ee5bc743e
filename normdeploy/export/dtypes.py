"""Floating-point types of a module beside those of its inputs: 16-bit modules, widened or told of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from normdeploy.specs import Signature, TensorSpec

_NARROW = (torch.float16, torch.bfloat16)


def is_bfloat16(module: nn.Module) -> bool:
    """Return True if some weights of ``module`` are bfloat16."""
    return torch.bfloat16 in _dtypes(module)


def in_float32(module: nn.Module, specs: Signature) -> tuple[Signature, tuple[str, ...]]:
    """Widen the 16-bit weights of ``module`` to float32, in place and exactly, and what goes in; notes say so.

    A module of other types is left as it is.
    """
    narrow = [dtype for dtype in _NARROW if dtype in _dtypes(module)]
    if not narrow:
        return specs, ()
    module.float()
    names = [spec.name for spec in specs if spec.dtype in ("float16", "bfloat16")]
    wide = (replace(spec, dtype="float32") if spec.name in names else spec for spec in specs)
    notes = [f"the module's {' and '.join(map(_name, narrow))} weights were widened to float32, which is exact"]
    notes += [f"the inputs {', '.join(names)} are float32: with --precision that is the interface"] if names else []
    return Signature(wide, specs.values, specs.outputs), tuple(notes)


def advice(module: nn.Module, specs: Sequence[TensorSpec]) -> str:
    """Return what to do where inputs and weights are of different floating-point types; empty where they are not."""
    given = {spec.dtype for spec in specs if "float" in spec.dtype}
    weights = {_name(dtype) for dtype in _dtypes(module)}
    if not given or not weights or given & weights:
        return ""
    told = f"the weights are {', '.join(sorted(weights))}, the inputs {', '.join(sorted(given))}"
    short = {"bfloat16": "@bf16", "float16": "@f16", "float32": "@f32", "float64": "@f64"}
    fix = f"{told}: give the inputs as {' or '.join(short[name] for name in sorted(weights) if name in short)}"
    narrow = weights & {"float16", "bfloat16"} and given == {"float32"}
    return f"{fix}, or widen the module by --precision fp32" if narrow else fix


def _dtypes(module: nn.Module) -> set[torch.dtype]:
    return {tensor.dtype for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
