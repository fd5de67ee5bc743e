"""A graph that makes another shape in float64 than the module: a fault, unless the module's own shape is no fact."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest
import torch
from stand_ins import FunctionRunner, onnxruntime_runner
from torch import nn

from normdeploy.export import to_graph
from normdeploy.parity.compare import measure
from normdeploy.parity.feeds import Feed, random_feeds
from normdeploy.parity.verdict import Verdict, judge
from normdeploy.pipeline.judge import verdict_on
from normdeploy.precision import to_precision
from normdeploy.specs import TensorSpec, parse

SPECS = parse(["x:2xT=4..10..16@f32"])


class Crop(nn.Module):
    """(N, T) → (N, ⌊0.7 T⌋), as Python computes it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2.0 * x[:, : math.floor(x.shape[1] * 0.7)]


class Net(nn.Module):
    """A crop behind a layer that is right."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.crop = nn.ReLU(), Crop()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.crop(self.act(x))


def cropped(share: str) -> ir.Model:
    """The graph of Net whose length is ``share`` of T, computed in float32."""
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 20]>
        net (float[2, T] x) => (float[2, U] output)
        <float share = {{{share}}}, int64[1] zero = {{0}}, int64[1] one = {{1}}, float two = {{2}}> {{
          kept = Relu (x)
          size = Shape <start = 1> (x)
          wide = Cast <to = 1> (size)
          part = Mul (wide, share)
          low = Floor (part)
          end = Cast <to = 7> (low)
          cut = Slice (kept, zero, end, one)
          output = Mul (two, cut)
        }}""")
    for node in model.graph:
        node.metadata_props["normdeploy.module"] = "act" if node.op_type == "Relu" else "crop"
    return model


def at(size: int) -> Feed:
    return Feed(f"T={size}", {"x": np.random.default_rng(0).standard_normal((2, size)).astype(np.float32)})


def verdict_of(module: nn.Module, specs: list[TensorSpec], graph: ir.Model, *feeds: Feed) -> Verdict:
    measured = measure(module, specs, onnxruntime_runner(graph), feeds, graph=graph)
    return judge(measured.measurements, reference=measured.reference, notes=measured.notes)


def test_a_size_that_only_float64_shows_to_be_wrong_fails_and_its_module_is_named() -> None:
    """The float32 next to 0.7 is less: of T = 10 a float32 product rounds up to 7, and that of real numbers is 6.9."""
    net, graph = Net().eval(), cropped("0.7")
    assert onnxruntime_runner(graph)(at(10).arrays)["output"].shape == (2, 7), "what is deployed shows nothing"
    verdict = verdict_on(net, SPECS, onnxruntime_runner(graph), graph, (at(4), at(10)))
    assert not verdict.passed
    assert [each.measurement.feed for each in verdict.failures()] == ["T=10"]
    assert verdict.first_divergent == "crop"
    (note,) = verdict.notes
    assert note.startswith("output on T=10: the graph in float64 has the shape [2, 6], eager PyTorch [2, 7] in float32")


def test_a_size_that_is_right_in_every_type_passes() -> None:
    net = Net().eval()
    verdict = verdict_of(net, SPECS, to_graph(net, SPECS).model, *random_feeds(SPECS), at(10))
    assert verdict.passed
    assert len(verdict.of("graph")) == 4
    assert not verdict.notes


def test_in_16_bits_the_float32_graph_fails_too() -> None:
    net, single = Net().eval(), cropped("0.7")
    graph = to_precision(single, "fp16")
    measured = measure(
        net, SPECS, onnxruntime_runner(graph), (at(4), at(10)), dtype=torch.float16, graph=graph, single=single
    )
    failed = [each.measurement for each in judge(measured.measurements).failures()]
    assert {(each.part, each.feed) for each in failed} == {("graph", "T=10"), ("rounding", "T=10")}


class Above(nn.Module):
    """(2, 16) → (K,): the elements that are above a threshold once a number is added to them and to it."""

    def __init__(self, weight: float, threshold: float, added: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((16,), weight), requires_grad=False)
        self.threshold, self.added = threshold, added

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * self.weight
        return y[y + self.added > self.threshold + self.added]


ROWS = parse(["x:2x16@f32"])
LOST = Above(0.1, 0.0, added=1e9).eval()
"""Beside 1e9 float32 has no room for x: nothing is above the threshold there, and half of it is in float64."""


@pytest.mark.parametrize(
    ("like", "judged", "note"),
    [
        (LOST, True, "float64 returns the shape"),
        (Above(0.1, 1e30), True, "float64 returns the shape"),
        (Above(0.1, 0.1), False, "for its shape changes with the dtype: the graph is judged by its runtime alone"),
    ],
    ids=["of float64", "of float32", "of neither"],
)
def test_a_shape_that_changes_with_the_type_is_held_to_what_has_it(like: nn.Module, judged: bool, note: str) -> None:
    graph = to_graph(like.eval(), ROWS).model
    (output,) = (str(value.name) for value in graph.graph.outputs)
    measured = measure(
        LOST, ROWS, FunctionRunner(lambda x: {output: np.zeros(0, np.float32)}), random_feeds(ROWS), graph=graph
    )
    assert {each.shape for each in measured.measurements} == {(0,)}
    assert bool([each for each in measured.measurements if each.part == "graph"]) is judged
    assert not judge(measured.measurements).failures()
    assert any(note in each for each in measured.notes)


def test_values_are_judged_where_only_float64_has_the_shape_of_the_graph() -> None:
    """The graph is the module's in float64, but for one number: that fails, though eager has no number at all."""
    graph = with_first_weight(to_graph(LOST, ROWS).model, 0.2)
    measured = measure(LOST, ROWS, None, random_feeds(ROWS), graph=graph)
    assert judge(measured.measurements).failures()


def with_first_weight(graph: ir.Model, to: float) -> ir.Model:
    """``graph`` with the first number of its weight made ``to``."""
    weight = next(each for each in graph.graph.initializers.values() if each.const_value.size == 16)
    array = weight.const_value.numpy().copy()
    array[0] = to
    weight.const_value = ir.tensor(array, name=weight.name)
    return graph


@pytest.mark.parametrize("threshold", [np.float32(0.1), np.float32(0.11)])
def test_a_shape_that_hangs_on_the_rounding_of_weights_is_noted(threshold: np.float32) -> None:
    """Of ones times 0.1 none is above 0.1, but where a weight is rounded up; above 0.11 one is where that is wrong."""
    edge = Above(0.1, float(threshold)).eval()
    graph = with_first_weight(to_graph(edge, ROWS).model, float(np.nextafter(threshold, np.float32(1))))
    ones = Feed("ones", {"x": np.ones((2, 16), np.float32)})
    measured = measure(edge, ROWS, None, (ones, *random_feeds(ROWS)), graph=graph)
    failed = [each.measurement for each in judge(measured.measurements).failures()]
    hangs = any("where its weights are rounded otherwise" in note for note in measured.notes)
    assert hangs is bool(threshold < np.float32(0.105))
    assert ("ones" in [each.feed for each in failed]) is not hangs
