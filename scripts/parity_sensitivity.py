"""How small a fault of one weight channel the verdict on the graph sees: on trained digits, in float32 and in 16 bits.

For each network and precision one output channel of the first heavy weight, of one in the middle and of the last is
multiplied by 1 + δ in the deployed graph, and the smallest δ of 1e-7, 2e-7, 5e-7, … that fails is printed. No fault at
all must pass. What stood before, one bound of 4 e_eager + 8 ε on the runtime, is beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from models import digits  # noqa: E402  # behind the path to it
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
STEPS = tuple(digit * 10.0**power for power in range(-7, 0) for digit in (1, 2, 5))


def scaled(model: ir.Model, node: ir.Node, by: float) -> ir.Model:
    """Return a copy in which channel 1 of the weight of ``node`` is multiplied by 1 + ``by``, before it is rounded."""
    copy = model.clone()
    twin = next(each for each in copy.graph if each.name == node.name)
    value = next(item for item in twin.inputs if item is not None and item.const_value is not None)
    tensor = value.const_value
    assert tensor is not None
    weight = tensor.numpy().astype(np.float64)
    columns = node.op_type == "MatMul" or (node.op_type == "Gemm" and not node.attributes.get_int("transB", 0))
    weight[(slice(None), 1) if columns else 1] *= 1 + by
    value.const_value = ir.tensor(weight.astype(np.float32), name=value.name)
    return copy


def heavy(model: ir.Model) -> list[ir.Node]:
    """Return the first, a middle and the last node with a weight."""
    nodes = [
        node for node in model.graph
        if node.op_type in ("Conv", "Gemm", "MatMul")
        and any(value is not None and value.const_value is not None for value in node.inputs)
    ]  # fmt: skip
    return [nodes[0], nodes[len(nodes) // 2], nodes[-1]]


def seen(module: torch.nn.Module, model: ir.Model, precision: Precision) -> tuple[bool, bool]:
    """Return whether the graph's bound sees a fault, and whether one bound on a perfect runtime would have."""
    graph = to_precision(model, precision) if precision != "fp32" else model
    runner = Float64Runner(graph)
    measured = measure(module, SPECS, _Narrow(runner), random_feeds(SPECS), dtype=DTYPES[precision], graph=graph)
    verdict = judge(measured.measurements, Criteria())
    graph_part = [each.measurement for each in verdict.of("graph")]
    old = any(_left_the_old_bound(each, precision) for each in graph_part)
    return not all(each.passed for each in verdict.of("graph")), old


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


def main() -> None:
    """Print the table."""
    print("| network | precision | weight | smallest δ seen | by the bound before |\n| --- | --- | --- | --: | --: |")
    for name in ("resnet", "vit"):
        module = getattr(digits, name)().eval().requires_grad_(False)
        module.load_state_dict(load_file(ROOT / "models" / f"digits_{name}.safetensors"))
        folded = fold(to_graph(module, SPECS, opset=22).model).model  # from there on Conv has a bfloat16 form
        for precision in DTYPES:
            if seen(module, folded, precision)[0]:
                raise SystemExit(f"{name} in {precision} fails without a fault")
            for node in heavy(folded):
                found = [(step, *seen(module, scaled(folded, node, step), precision)) for step in STEPS]
                new = next((f"{step:.0e}" for step, by_graph, _ in found if by_graph), "none")
                old = next((f"{step:.0e}" for step, _, before in found if before), "none")
                print(f"| {name} | {precision} | {node.name} | {new} | {old} |", flush=True)


if __name__ == "__main__":
    main()
