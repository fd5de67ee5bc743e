"""Faults planted in ten architectures and three precisions: how many the verdict sees, and whether it names the module.

Each fault is one that deployment tools have made: it is planted in a copy of the trained module, which is exported,
folded and rounded as if it were right, and the result is judged against the module itself. Only an overflow of fp16 is
planted in the graph: it is right in exact arithmetic, so the runtime is what fails.

    python scripts/planted_faults.py                 # all; one line a network and precision, and the misses
    python scripts/planted_faults.py --net vit dense --precision fp16

Exit code 1 where a fault is missed, where another module is named, or where a network without a fault fails.
"""

from __future__ import annotations

import argparse
import copy
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.nn import functional

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from planted_nets import Net, nets  # noqa: E402

from normdeploy.export import to_graph  # noqa: E402  # behind the path to it
from normdeploy.fold import fold  # noqa: E402
from normdeploy.graph import MODULE_KEY, module_name  # noqa: E402
from normdeploy.parity.overflow import overflow_notes  # noqa: E402
from normdeploy.parity.verdict import Verdict  # noqa: E402
from normdeploy.pipeline.judge import verdict_on  # noqa: E402
from normdeploy.pipeline.source import feeds_for  # noqa: E402
from normdeploy.precision import Precision, to_precision  # noqa: E402
from normdeploy.runtime.float64 import Float64Runner  # noqa: E402
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner  # noqa: E402
from normdeploy.specs import parse  # noqa: E402

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
OPSET = 22  # the first that has bfloat16 convolutions
Plant = Callable[[nn.Module, str, str], str]
"""Plants a fault in a module, given the names of a norm and of a layer; returns the one that is wrong now."""


class NoPlace(Exception):  # no error: a fault that this network cannot have
    """The network has no such place."""


def gamma(module: nn.Module, norm: str, layer: str) -> str:
    """One scale of a norm by 1 %."""
    part: Any = module.get_submodule(norm)
    part.weight[1] *= 1.01
    return norm


def swapped(module: nn.Module, norm: str, layer: str) -> str:
    """The mean and the variance of a BatchNorm, one for the other."""
    part: Any = module.get_submodule(norm)
    if getattr(part, "running_mean", None) is None:
        raise NoPlace
    mean, var = part.running_mean.clone(), part.running_var.clone()
    part.running_mean.copy_(var)
    part.running_var.copy_(mean.abs() + 1e-3)
    return norm


def epsilon(module: nn.Module, norm: str, layer: str) -> str:
    """An eps of 1e-3 in place of 1e-5."""
    part: Any = module.get_submodule(norm)
    part.eps = 1e-3
    return norm


class OneBorder(nn.Module):
    """A convolution that repeats its input's first row where it should read zeros."""

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.conv, self.padding = conv, conv.padding
        conv.padding = tuple(0 for _ in conv.padding)

    def forward(self, x: Tensor) -> Tensor:
        """Pad, then convolve."""
        pads = [size for size in reversed(self.padding) for _ in range(2)]
        padded = functional.pad(x, pads).clone()
        padded[..., : self.padding[-1]] = x[..., :1].mean()
        out: Tensor = self.conv(padded)
        return out


def border(module: nn.Module, norm: str, layer: str) -> str:
    """One border of a padded convolution holds another value than zero."""
    conv: Any = module.get_submodule(layer)
    if not isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d) or not conv.padding[-1]:
        raise NoPlace
    parent, _, name = layer.rpartition(".")
    setattr(module.get_submodule(parent), name, OneBorder(conv))
    return layer


def channel(module: nn.Module, norm: str, layer: str) -> str:
    """One channel of a weight by 0.1 %."""
    part: Any = module.get_submodule(layer)
    (part.weight[:, 1] if isinstance(part, nn.ConvTranspose2d) else part.weight[1]).mul_(1.001)
    return layer


def axis(module: nn.Module, norm: str, layer: str) -> str:
    """A weight that is read along the wrong axis: kernels turned, or inputs in another order."""
    part: Any = module.get_submodule(layer)
    turned = part.weight.transpose(-1, -2) if part.weight.ndim > 3 else part.weight.flip(-1)
    part.weight.copy_(turned.clone())
    return layer


FAULTS: dict[str, Plant] = {
    "gamma": gamma,
    "mean and variance": swapped,
    "eps 1e-3": epsilon,
    "one border": border,
    "one channel, 0.1 %": channel,
    "wrong axis": axis,
}


def overflowing(model: ir.Model, layer: str) -> ir.Model:
    """Return a copy in which what ``layer`` returns is multiplied and divided by more than fp16 holds."""
    result = model.clone()
    node = [each for each in result.graph if module_name(each).startswith(layer) and each.op_type != "Cast"][-1]
    value, nodes, made = node.outputs[0], list[ir.Node](), node.outputs[0]
    for index, factor in enumerate((2.0**15, 2.0**15, 2.0**-15, 2.0**-15)):
        scalar = ir.Value(
            name=f"planted.{index}", type=value.type, shape=ir.Shape([]),
            const_value=ir.Tensor(np.array(factor, np.float16), name=f"planted.{index}"),
        )  # fmt: skip
        result.graph.register_initializer(scalar)
        nodes.append(ir.node("Mul", [made, scalar], name=f"planted_{index}"))
        nodes[-1].metadata_props[MODULE_KEY] = layer
        made = nodes[-1].outputs[0]
        made.name, made.type = f"planted.out.{index}", value.type
    node.append(nodes)
    for use in value.uses():
        if use.node is not nodes[0]:
            use.node.replace_input_with(use.idx, made)
    return result


class Exact:
    """A runtime without an error of its own."""

    name = "exact"

    def __init__(self, model: ir.Model) -> None:
        self._runner = Float64Runner(model)
        self.inputs, self.outputs = self._runner.inputs, self._runner.outputs

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once."""
        return {name: array.astype(np.float32) for name, array in self._runner(feeds).items()}


@dataclass(frozen=True)
class Outcome:
    """What became of one fault: whether it was seen, what was planted and what was named."""

    fault: str
    seen: bool
    planted: str
    named: str

    @property
    def right(self) -> bool:
        """Whether the module was named, by itself or with the node inside it."""
        return self.seen and (self.named == self.planted or f" of {self.planted}" in self.named)


class Subject:
    """One network in one precision."""

    def __init__(self, net: Net, precision: Precision) -> None:
        self.net, self.precision = net, precision
        self.module, self.specs = net.module(), parse([net.spec])
        self.feeds = feeds_for(self.specs, None, 0, module=self.module)[:2]

    def graphs(self, module: nn.Module) -> tuple[ir.Model, ir.Model, ir.Model]:
        """Return the exported graph, the folded one in float32, and the deployed one."""
        exported = to_graph(module, self.specs, opset=OPSET).model
        single = fold(exported).model
        return exported, single, to_precision(single, self.precision)

    def judged(self, exported: ir.Model, single: ir.Model, narrow: ir.Model, *, run: bool = False) -> Verdict:
        """Return the verdict on a graph; ``run`` it in ONNX Runtime."""
        runner = OnnxRuntimeRunner(ir.to_proto(narrow).SerializeToString(), threads=1) if run else Exact(narrow)
        return verdict_on(
            self.module, self.specs, runner, narrow, self.feeds, precision=self.precision,
            single=None if self.precision == "fp32" else single, exported=lambda: exported,
        )  # fmt: skip

    def outcome(self, fault: str) -> Outcome:
        """Plant a fault of the module."""
        wrong = copy.deepcopy(self.module)
        planted = FAULTS[fault](wrong, self.net.norm, self.net.layer)
        return self._told(fault, planted, self.judged(*self.graphs(wrong)))

    def overflow(self) -> Outcome:
        """Plant an overflow in the graph."""
        exported, single, narrow = self.graphs(self.module)
        layer, wrong = self.net.layer, overflowing(narrow, self.net.layer)
        verdict = self.judged(exported, single, wrong, run=True)
        if verdict.passed:  # a runtime that computes in float32 has room for it; what the export says then is a note
            notes = overflow_notes(wrong, self.feeds)
            named = layer if any(f"{layer} (planted" in note for note in notes) else "nothing"
            return Outcome("fp16 overflow", bool(notes), layer, named)
        return self._told("fp16 overflow", layer, verdict)

    def _told(self, fault: str, planted: str, verdict: Verdict) -> Outcome:
        return Outcome(fault, not verdict.passed, planted, verdict.first_divergent or verdict.first_node or "nothing")


def outcomes(net: Net, precision: Precision, faults: list[str]) -> list[Outcome]:
    """Return what became of each fault that this network can have."""
    subject = Subject(net, precision)
    clean = subject.judged(*subject.graphs(subject.module))
    if not clean.passed:
        raise SystemExit(f"{net.name} in {precision} fails without a fault")
    found = []
    for fault in faults:
        try:
            found.append(subject.outcome(fault))
        except NoPlace:
            continue
    return found + ([subject.overflow()] if precision == "fp16" else [])


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", nargs="+", default=[net.name for net in nets()])
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    asked = parser.parse_args()
    total = seen = named = 0
    print(
        "| network | precision | faults | seen | module named | seconds | memory, MB |\n|---|---|--:|--:|--:|--:|--:|"
    )
    misses = []
    for net in nets():
        for precision in asked.precision if net.name in asked.net else ():
            begin = time.perf_counter()
            found = outcomes(net, precision, [*FAULTS])
            seconds = time.perf_counter() - begin
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
            counts = len(found), sum(each.seen for each in found), sum(each.right for each in found)
            row = net.name, precision, *counts, round(seconds), round(memory)
            print("|", " | ".join(map(str, row)), "|", flush=True)
            misses += [f"{net.name} in {precision}, {each}" for each in found if not each.right]
            total, seen, named = total + counts[0], seen + counts[1], named + counts[2]
    print(f"\n{seen} of {total} faults seen, {named} named by their module")
    print("\n".join(misses))
    return int(named < total)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main())
