"""How small a fault of one weight channel the verdict on the graph sees: on trained digits, in float32 and in 16 bits.

For each network and precision one output channel of the first heavy weight, of one in the middle and of the last is
multiplied by 1 + δ, once in the float32 graph, from which the one in 16 bits is rounded, and once in the 16-bit graph
alone. The smallest δ of 1e-7, 2e-7, 5e-7, … that fails is printed; no fault at all must pass. Beside it stands what the
outputs of the 16-bit graph alone show, by the bound of 2 e_rounding, and what one bound of 4 e_eager + 8 ε on the
runtime would see.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from by_network import options  # noqa: E402  # behind the path to it

from models import digits  # noqa: E402
from normdeploy.export import to_graph  # noqa: E402
from normdeploy.fold import fold  # noqa: E402
from normdeploy.parity.compare import measure  # noqa: E402
from normdeploy.parity.feeds import random_feeds  # noqa: E402
from normdeploy.parity.metrics import eps  # noqa: E402
from normdeploy.parity.verdict import Criteria, Measurement, judge  # noqa: E402
from normdeploy.precision import Precision, to_precision  # noqa: E402
from normdeploy.runtime.float64 import Float64Runner  # noqa: E402
from normdeploy.specs import parse  # noqa: E402

SPECS = parse(["x:N=1..4..64x1x8x8@f32"])
DTYPES: dict[Precision, torch.dtype | None] = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
NETS = ("resnet", "vit")
STEPS = tuple(digit * 10.0**power for power in range(-7, 0) for digit in (1, 2, 5))


def scaled(model: ir.Model, name: str, by: float) -> ir.Model:
    """Return a copy in which channel 1 of the weight of the node ``name`` is multiplied by 1 + ``by``."""
    copy = model.clone()
    node = next(each for each in copy.graph if each.name == name)
    value = next(item for item in node.inputs if item is not None and item.const_value is not None)
    tensor = value.const_value
    assert tensor is not None
    weight = tensor.numpy().astype(np.float64)
    columns = node.op_type == "MatMul" or (node.op_type == "Gemm" and not node.attributes.get_int("transB", 0))
    weight[(slice(None), 1) if columns else 1] *= 1 + by
    value.const_value = ir.Tensor(weight.astype(tensor.dtype.numpy()), dtype=tensor.dtype, name=value.name)
    return copy


def heavy(model: ir.Model) -> list[ir.Node]:
    """Return the first, a middle and the last node with a weight."""
    nodes = [
        node for node in model.graph
        if node.op_type in ("Conv", "Gemm", "MatMul")
        and any(value is not None and value.const_value is not None for value in node.inputs)
    ]  # fmt: skip
    return [nodes[0], nodes[len(nodes) // 2], nodes[-1]]


class Seen(NamedTuple):
    """Whether a fault fails the verdict on the graph; the bound on its outputs alone; one bound on the runtime."""

    graph: bool
    outputs: bool
    before: bool


def seen(module: torch.nn.Module, single: ir.Model, graph: ir.Model, precision: Precision) -> Seen:
    """Return who sees that ``graph``, or the ``single`` that it was rounded from, is not the module."""
    narrow = None if precision == "fp32" else single
    measured_by = partial(
        measure, module, SPECS, _Narrow(Float64Runner(graph)), random_feeds(SPECS), dtype=DTYPES[precision], graph=graph
    )
    measured = measured_by(single=narrow)
    verdict = judge(measured.measurements, Criteria(), misrounded=measured.misrounded)
    alone = verdict if narrow is None else judge(measured_by().measurements, Criteria())
    outputs = alone.of("graph")
    failed = not all(each.passed for each in (*verdict.of("graph"), *verdict.of("rounding")))
    return Seen(
        failed or bool(verdict.misrounded),
        not all(each.passed for each in outputs),
        any(_left_the_old_bound(each.measurement, precision) for each in outputs),
    )


class _Narrow:
    """A runtime without an error of its own: float64, rounded to float32 at the end."""

    name, inputs, outputs = "exact", ("x",), ("output",)

    def __init__(self, runner: Float64Runner) -> None:
        self._runner = runner

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: array.astype(np.float32) for name, array in self._runner(feeds).items()}


def _left_the_old_bound(each: Measurement, precision: Precision) -> bool:
    floor = 8 * eps({"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[precision])
    pairs = ((each.deployed.rms, each.eager.rms), (each.deployed.max, each.eager.max))
    return any(error > 4 * own + floor for error, own in pairs)


def smallest(judged: Callable[[float], Seen]) -> tuple[str, str, str]:
    """Return the smallest fault that each of the three sees; larger ones are not tried once all three do."""
    found = ["none"] * 3
    for step in STEPS:
        seen_now = judged(step)
        found = [f"{step:.0e}" if text == "none" and now else text for text, now in zip(found, seen_now, strict=True)]
        if "none" not in found:
            break
    return found[0], found[1], found[2]


def rows(name: str, precision: Precision) -> Iterator[tuple[str, ...]]:
    """Return the rows of one network in one precision."""
    module = getattr(digits, name)().eval().requires_grad_(False)
    module.load_state_dict(load_file(ROOT / "models" / f"digits_{name}.safetensors"))
    single = fold(to_graph(module, SPECS, opset=22).model).model  # from there on Conv has a bfloat16 form
    narrow = to_precision(single, precision)
    if seen(module, single, narrow, precision).graph:
        raise SystemExit(f"{name} in {precision} fails without a fault")
    for node in heavy(single):
        at = str(node.name)

        def folded(step: float, at: str = at) -> Seen:
            wrong = scaled(single, at, step)
            return seen(module, wrong, to_precision(wrong, precision), precision)

        def rounded(step: float, at: str = at) -> Seen:
            return seen(module, single, scaled(narrow, at, step), precision)

        yield name, precision, at, "the fold", *smallest(folded)
        if precision != "fp32":
            yield name, precision, at, "the rounding", *smallest(rounded)


def main() -> None:
    """Print the table."""
    parser = options(__doc__, NETS)
    parser.add_argument("--precision", nargs="+", choices=[*DTYPES], default=[*DTYPES])
    asked = parser.parse_args()
    print("| network | precision | weight | fault of | smallest δ seen | by the outputs alone | by one bound |")
    print("| --- | --- | --- | --- | --: | --: | --: |")
    for name in asked.net:
        for precision in asked.precision:
            for row in rows(name, precision):
                print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
