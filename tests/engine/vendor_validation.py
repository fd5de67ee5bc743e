"""Runs in a process of its own: registers the plugins with TensorRT's own Python code and prints what it accepted.

The lean runtime's wheel carries that code; it is called ``tensorrt`` here, with the few names that the full one has.
"""

from __future__ import annotations

import enum
import hashlib
import json
import operator
import sys
from typing import Any

import tensorrt_lean_bindings as trt


class Expression:
    """An expression over dimensions, with its value: what TensorRT evaluates when an engine runs."""

    def __init__(self, value: int, *, fixed: bool) -> None:
        self.value, self.fixed = value, fixed

    def is_constant(self) -> bool:
        return self.fixed

    def get_constant_value(self) -> int:
        return self.value


class Builder:
    """Makes expressions as TensorRT's does."""

    def constant(self, value: int) -> Expression:
        return Expression(value, fixed=True)

    def operation(self, kind: Any, left: Expression, right: Expression) -> Expression:
        operations = {"SUM": operator.add, "PROD": operator.mul, "FLOOR_DIV": operator.floordiv}
        return Expression(operations[kind.name](left.value, right.value), fixed=left.fixed and right.fixed)


trt.TensorFormat = enum.Enum("TensorFormat", ["LINEAR"])
trt.ITensor = type("ITensor", (), {})
trt.IDimensionExpr = Expression
trt.Logger.log = lambda *_: None
sys.modules["tensorrt"] = trt
import tensorrt_lean_bindings.plugin as trtp  # noqa: E402  # after what it looks for is there
from tensorrt_lean_bindings.plugin import _lib, _tensor  # noqa: E402  # as above

from normdeploy.engine import plugin  # noqa: E402  # as above

sys.modules["tensorrt.plugin"] = trtp


def described(shape: list[int], kind: Any, fixed: int) -> Any:
    """Return the description of a tensor, of which the last ``fixed`` sizes are known when the engine is built."""
    sizes = _tensor.ShapeExprs(len(shape))
    for axis, size in enumerate(shape):
        sizes[axis] = _tensor.ShapeExpr(Expression(size, fixed=axis >= len(shape) - fixed))
    return trtp.TensorDesc(sizes, kind)


def main(job: dict[str, Any]) -> dict[str, Any]:
    plugin.register(trtp, trt, job["sm"])
    registered = _lib.QDP_REGISTRY[f"{plugin.DOMAIN}::{job['name']}"]
    _tensor.SymIntExpr._exprBuilder = Builder()
    kind = getattr(trt, job["dtype"])
    shapes = {"x": job["shape"], "residual": job["shape"], "scale": []}
    row = job.get("weights", job["shape"][len(job["shape"]) - job["axes"] :])
    kinds = {"scale": trt.float32} | {name: getattr(trt, job.get("weight", job["dtype"])) for name in ("gamma", "beta")}
    inputs = [
        described(shapes.get(name, row), kinds.get(name, kind), job["axes"]) for name in registered.input_tensor_names
    ]
    attributes = {"epsilon": job["eps"], "axis": -job["axes"]} | ({"to": job["to"]} if "to" in job else {})
    outputs = registered.register_func(*inputs, **attributes)
    combinations = registered.autotune_func(*inputs, *attributes.values(), outputs)
    taken = [[t.name for t in c.types] for c in combinations[0]._get_combinations()]
    entry, code, launched, arguments = registered.aot_impl_func(*inputs, *attributes.values(), outputs, job["tactic"])
    return {
        "outputs": [output.dtype.name for output in outputs],
        "types": taken,
        "entry": entry,
        "ptx": hashlib.sha256(code).hexdigest(),
        "grid": launched.grid_x._expr.value,
        "block": launched.block_x._expr.value,
        "arguments": [argument._expr.value for argument in arguments],
        "attributes": {name: kind.__name__ for name, kind in registered.input_attrs.items()},
    }


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
