"""A graph in 16 bits beside the float32 one it was rounded from: what differs in more than a rounding is named."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from stand_ins import FunctionRunner
from torch import nn

from normdeploy.export import to_graph
from normdeploy.fold import fold
from normdeploy.parity.compare import Measured, measure
from normdeploy.parity.feeds import Feed, random_feeds
from normdeploy.parity.rounding import UnlikeError, faults, pairs, prepared
from normdeploy.parity.verdict import Criteria, Verdict, judge
from normdeploy.precision import Precision, to_precision
from normdeploy.runtime.float64 import Float64Runner
from normdeploy.specs import parse

SPECS = parse(["x:N=1..2..4x8@f32"])
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Net(nn.Module):
    """Two layers, a LayerNorm, and a number in the code: float32 [N, 8] → [N, 4]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(8, 64), nn.LayerNorm(64), nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(torch.relu(self.norm(self.first(x)) * 0.3))
        return y


def graphs(module: nn.Module, precision: Precision, opset: int = 22) -> tuple[ir.Model, ir.Model]:
    single = fold(to_graph(module.eval(), SPECS, opset=opset).model).model
    return single, to_precision(single, precision)


def changed(model: ir.Model, name: str, by: float, channel: int | slice = 1) -> ir.Model:
    """Return a copy with one output channel of an initializer multiplied by 1 + ``by`` in its own type."""
    copy = model.clone()
    value = copy.graph.initializers[name]
    assert value.const_value is not None
    array = value.const_value.numpy().astype(np.float64)
    array[channel] *= 1 + by
    dtype = value.const_value.dtype
    value.const_value = ir.Tensor(array.astype(dtype.numpy()), dtype=dtype, name=name)
    return copy


class Exact:
    """A runtime without an error of its own."""

    name, inputs, outputs = "exact", ("x",), ("output",)

    def __init__(self, model: ir.Model) -> None:
        self._runner = Float64Runner(model)

    def __call__(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = self._runner(feeds).items()
        return {name: value.astype(np.float32) if value.dtype.kind == "f" else value for name, value in values}


def measured(module: nn.Module, narrow: ir.Model, single: ir.Model | None, precision: Precision) -> Measured:
    feeds = random_feeds(SPECS)
    return measure(module, SPECS, Exact(narrow), feeds, dtype=DTYPES[precision], graph=narrow, single=single)


def verdict(module: nn.Module, narrow: ir.Model, single: ir.Model | None, precision: Precision) -> Verdict:
    found = measured(module, narrow, single, precision)
    return judge(found.measurements, Criteria(), found.reference, found.notes, found.misrounded)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_rounded_graph_passes_in_all_parts(precision: Precision) -> None:
    module = Net()
    single, narrow = graphs(module, precision)
    found = verdict(module, narrow, single, precision)
    assert found.passed, found
    assert {each.measurement.part for each in found.judgements} == {"graph", "rounding", "runtime"}
    assert {each.measurement.dtype for each in found.of("graph")} == {"float32"}
    assert found.misrounded == ()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_fault_before_the_rounding_is_seen_as_in_float32(precision: Precision) -> None:
    """The outputs in 16 bits do not show it: 1e-5 is a hundredth of what rounding costs."""
    module = Net()
    wrong = changed(graphs(module, precision)[0], "first.weight", 1e-5)
    narrow = to_precision(wrong, precision)
    assert not verdict(module, narrow, wrong, precision).passed
    assert verdict(module, narrow, None, precision).passed


@pytest.mark.parametrize(("precision", "by"), [("fp16", 2e-3), ("bf16", 2e-2)])
def test_a_fault_of_the_rounding_names_its_module(precision: Precision, by: float) -> None:
    module = Net()
    single, narrow = graphs(module, precision)
    found = verdict(module, changed(narrow, "first.weight", by), single, precision)
    assert not found.passed
    assert found.misrounded[0].startswith("first: first.weight is up to")
    assert all(each.passed for each in found.of("graph"))


def test_rounding_down_is_no_rounding_to_nearest() -> None:
    single, narrow = graphs(Net(), "bf16")
    value = narrow.graph.initializers["first.weight"]
    exact = single.graph.initializers["first.weight"].const_value
    assert exact is not None
    bits = exact.numpy().view(np.uint32) >> 16  # truncated
    down = bits.astype(np.uint16).view(ml_dtypes.bfloat16)
    value.const_value = ir.Tensor(down, dtype=ir.DataType.BFLOAT16, name=value.name)
    assert "first.weight" in faults(pairs(prepared(single), prepared(narrow)))[0]


@pytest.mark.parametrize("what", ["node", "attribute", "wire", "float32 constant"])
def test_anything_else_that_differs_is_told(what: str) -> None:
    single, narrow = graphs(Net(), "fp16")
    nodes = {node.op_type: node for node in narrow.graph}
    if what == "node":
        nodes["Relu"].op_type = "Sigmoid"
    elif what == "attribute":
        nodes["LayerNormalization"].attributes["epsilon"] = ir.AttrFloat32("epsilon", 1e-3)
    elif what == "wire":
        last = next(node for node in narrow.graph if nodes["Relu"].outputs[0] in node.inputs)
        last.replace_input_with(0, nodes["LayerNormalization"].outputs[0])
    else:
        weight = single.graph.initializers["first.weight"].const_value
        assert weight is not None
        other = single.clone()
        other.graph.initializers["first.weight"].const_value = ir.tensor(weight.numpy() * 2)
        assert faults(pairs(prepared(single), prepared(other)))[0].endswith("is another one in float32")
        return
    with pytest.raises(UnlikeError):
        pairs(prepared(single), prepared(narrow))


def test_graphs_of_two_networks_are_told_and_judged_by_their_outputs() -> None:
    module = Net()
    single, narrow = graphs(module, "fp16")
    other = fold(to_graph(nn.Sequential(nn.Linear(8, 4)).eval(), parse(["input:N=1..2..4x8@f32"])).model).model
    found = measured(module, narrow, other, "fp16")
    assert any("judged by its outputs alone" in note for note in found.notes)
    assert {each.part for each in found.measurements} == {"graph", "runtime"}
    assert single is not other


def test_the_scalars_of_the_code_are_part_of_what_16_bits_cost() -> None:
    """No weight is rounded here, so rounding the weights costs nothing; 0.3 is no number of 16 bits."""

    class Scaled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x * 0.3)

    module = Scaled()
    single, narrow = graphs(module, "fp16")
    found = verdict(module, narrow, single, "fp16")
    assert found.passed, [each for each in found.judgements if not each.passed]
    names = [name for name, value in narrow.graph.initializers.items() if value.dtype == ir.DataType.FLOAT16]
    assert names
    wrong = narrow.clone()
    scalar = wrong.graph.initializers[names[0]]
    scalar.const_value = ir.Tensor(np.array(0.3005, np.float16), name=names[0])
    assert not verdict(module, wrong, single, "fp16").passed


def _elements(value: ir.Value) -> int:
    assert value.const_value is not None
    return value.const_value.numpy().size


class Sines(nn.Module):
    """Adds a tensor that is no buffer, as positions often are."""

    def __init__(self) -> None:
        super().__init__()
        self.sines = torch.linspace(0.1, 3, 8).sin()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.sines


class Turned(nn.Module):
    """Multiplies by complex numbers that are a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("turn", torch.polar(torch.ones(4), torch.linspace(0.1, 3, 4)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.turn, torch.Tensor)
        turned = torch.view_as_complex(x.reshape(-1, 4, 2)) * self.turn
        return torch.view_as_real(turned).flatten(1)


@pytest.mark.parametrize("kind", [Sines, Turned])
def test_tensors_that_rounding_the_real_weights_does_not_reach_are_part_of_it(kind: type[nn.Module]) -> None:
    module = kind()
    single, narrow = graphs(module, "fp16")
    found = verdict(module, narrow, single, "fp16")
    assert found.passed, [each for each in found.judgements if not each.passed]
    halves = {n: value for n, value in narrow.graph.initializers.items() if value.dtype == ir.DataType.FLOAT16}
    name = max(halves, key=lambda each: _elements(halves[each]))
    assert not verdict(module, changed(narrow, name, 2e-3), single, "fp16").passed


def test_a_mask_beyond_the_range_may_be_clipped_and_nothing_else() -> None:
    class Masked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(torch.where(x > 0, x, torch.tensor(-1e9)), -1)

    single, narrow = graphs(Masked(), "fp16")
    assert faults(pairs(prepared(single), prepared(narrow))) == ()


class Merged(nn.Module):
    """A LayerNorm whose bias a fold merges with an offset of 500, where float16 has steps of 0.5: [N, 8] → [N, 64]."""

    def __init__(self, *, index: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.index = nn.Linear(8, 64), nn.LayerNorm(64), index
        nn.init.normal_(self.norm.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.first(x)) + 500.0
        return y.argmax(-1) if self.index else y


@pytest.mark.parametrize("index", [False, True])
def test_constants_that_a_fold_merged_may_cost_what_eager_loses(index: bool) -> None:
    module = Merged(index=index)
    single, narrow = graphs(module, "fp16")
    biases = [
        value.const_value.numpy() for value in narrow.graph.initializers.values() if value.const_value is not None
    ]
    assert any(np.abs(bias).min() > 490 for bias in biases if bias.shape == (64,))  # else nothing is merged, nor tested
    found = verdict(module, narrow, single, "fp16")
    assert found.passed, found.failures()


@pytest.mark.parametrize("index", [False, True])
def test_a_fault_beside_merged_constants_is_seen(index: bool) -> None:
    module = Merged(index=index)
    single, narrow = graphs(module, "fp16")
    wrong = changed(single, "first.weight", -2.0, slice(None)) if index else changed(single, "first.weight", 1e-3)
    assert not verdict(module, to_precision(wrong, "fp16"), wrong, "fp16").passed
    assert not verdict(module, changed(narrow, "first.weight", 4e-3), single, "fp16").passed


class Apart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(8, 64), nn.LayerNorm(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.first(x))
        return y


def test_a_graph_that_16_bits_hold_worse_than_the_module_fails_by_its_rounding() -> None:
    """1024.5 times the output minus 1023.5 times it is it, in float32; float16 has 1024 and 1023.5, and so half of it.

    Each constant is rounded once, and the graph in float32 is right.
    """
    module = Apart()
    single = graphs(module, "fp16")[0]
    made = single.graph.outputs[0]
    for name, by in (("up", 1024.5), ("down", 1023.5)):
        tensor = ir.tensor(np.float32(by), name=name)
        single.graph.register_initializer(ir.Value(name=name, type=made.type, shape=ir.Shape([]), const_value=tensor))
    values = single.graph.initializers
    nodes = [ir.node("Mul", [made, values["up"]]), ir.node("Mul", [made, values["down"]])]
    nodes.append(ir.node("Sub", [node.outputs[0] for node in nodes]))
    for index, node in enumerate(nodes):
        node.outputs[0].type, node.outputs[0].shape = made.type, made.shape
        node.name = node.outputs[0].name = f"apart_{index}"
    single.graph.extend(nodes)
    single.graph.outputs[0] = nodes[-1].outputs[0]
    made.name, nodes[-1].outputs[0].name = "made", "output"
    found = verdict(module, to_precision(single, "fp16"), single, "fp16")
    assert all(each.passed for each in found.of("graph"))
    assert found.misrounded == ()
    assert not any(each.passed for each in found.of("rounding"))


def test_of_one_index_more_feeds_tell() -> None:
    """A runtime that takes one of many feeds wrongly, by chance, is told from one that always does."""
    module = Merged(index=True)
    single, narrow = graphs(module, "fp16")
    one = Feed("one", {"x": random_feeds(SPECS)[1].arrays["x"][:1]})
    exact = Float64Runner(narrow)

    def judged(wrong: Callable[[int], bool]) -> Verdict:
        runs = iter(range(10**6))

        def run(x: np.ndarray) -> dict[str, np.ndarray]:
            right = exact({"x": x})["output"]
            return {"output": (right + 1) % 64 if wrong(next(runs)) else right}

        found = measure(module, SPECS, FunctionRunner(run), [one], dtype=torch.float16, graph=narrow, single=single)
        return judge(found.measurements, Criteria(), found.reference, found.notes, found.misrounded)

    assert judged(lambda run: run == 0).passed
    assert not judged(lambda run: True).passed
