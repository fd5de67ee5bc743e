"""A planted fault is found by the name of its module; what is right accuses nobody."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from stand_ins import FourBlocks, onnxruntime_runner, trained
from torch import nn

from normdeploy.export import to_graph
from normdeploy.fold import Ledger, fold
from normdeploy.parity.bisect import first_divergent_module
from normdeploy.parity.compare import measure
from normdeploy.parity.feeds import random_feeds
from normdeploy.parity.taps import observe
from normdeploy.parity.verdict import Criteria, judge
from normdeploy.precision import to_precision
from normdeploy.runtime.float64 import NoFloat64Error
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.specs import TensorSpec, parse

IMAGES = parse(["x:N=1..2..3x5x7x6"])
MODULES = [*(f"blocks.{index}.conv" for index in range(4)), "fc"]


def plant(model: ir.Model, module: str, fault: float = 0.3) -> ir.Model:
    """A copy of ``model`` with one number changed in the weight that ``module``'s heavy operator reads."""
    copy = model.clone()
    node = next(
        node
        for node in copy.graph
        if node.metadata_props.get("normdeploy.module") == module and node.op_type in ("Conv", "Gemm", "MatMul")
    )
    weight = next(value for value in node.inputs if value is not None and value.const_value is not None)
    array = weight.const_value.numpy().copy()
    array.flat[1] += fault
    weight.const_value = ir.tensor(array, name=weight.name)
    return copy


def found(module: nn.Module, specs: Sequence[TensorSpec], model: ir.Model) -> str | None:
    return first_divergent_module(module, specs, model, random_feeds(specs)[0])


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("folded", [False, True])
def test_a_planted_fault_is_named(four_blocks: nn.Module, name: str, folded: bool) -> None:
    model = to_graph(four_blocks, IMAGES).model
    if folded:
        model = fold(model).model
        assert not any(node.op_type == "BatchNormalization" for node in model.graph)
    assert found(four_blocks, IMAGES, plant(model, name)) == name


def test_a_right_graph_accuses_nobody(four_blocks: nn.Module) -> None:
    model = to_graph(four_blocks, IMAGES).model
    assert found(four_blocks, IMAGES, model) is None
    assert found(four_blocks, IMAGES, fold(model).model) is None


def test_of_two_faults_the_first_is_named(four_blocks: nn.Module) -> None:
    model = plant(plant(fold(to_graph(four_blocks, IMAGES).model).model, "fc"), "blocks.2.conv")
    assert found(four_blocks, IMAGES, model) == "blocks.2.conv"


def test_it_agrees_with_the_verdict_and_its_criteria(four_blocks: nn.Module) -> None:
    """A fault that the criteria allow is no fault."""
    model = plant(to_graph(four_blocks, IMAGES).model, "blocks.1.conv", fault=1e-2)
    feeds = random_feeds(IMAGES)[:1]
    measurements = measure(four_blocks, IMAGES, onnxruntime_runner(model), feeds).measurements
    for criteria, passed in ((Criteria(), False), (Criteria(k=1e6), True)):
        assert judge(measurements, criteria).passed is passed
        assert (first_divergent_module(four_blocks, IMAGES, model, feeds[0], criteria) is None) is passed


@pytest.fixture
def no_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph that cannot be run in float64, as where it has an operator of a runtime's own."""

    def refusing(model: ir.Model) -> None:
        raise NoFloat64Error("an operator has no float64 here")

    monkeypatch.setattr("normdeploy.parity.bisect.Float64Runner", refusing)


@pytest.mark.usefixtures("no_float64")
def test_without_float64_the_values_are_those_of_the_artefacts_own_session(
    four_blocks: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []

    def made(path: Path, options: dict[str, str] | None = None) -> OnnxRuntimeRunner:
        seen.append(options)
        return OnnxRuntimeRunner(path, options=options)

    monkeypatch.setattr("normdeploy.parity.taps.OnnxRuntimeRunner", made)
    model, options = plant(to_graph(four_blocks, IMAGES).model, "fc"), {"graph_optimization_level": "disable"}
    assert first_divergent_module(four_blocks, IMAGES, model, random_feeds(IMAGES)[0], options=options) == "fc"
    assert seen == [options]


def test_the_given_model_and_module_are_not_changed(four_blocks: nn.Module) -> None:
    model = plant(to_graph(four_blocks, IMAGES).model, "fc")
    before = ir.to_proto(model).SerializeToString()
    assert found(four_blocks, IMAGES, model) == "fc"
    assert ir.to_proto(model).SerializeToString() == before
    assert all(not inner._forward_hooks for inner in four_blocks.modules())


class Downward(nn.Module):
    """The BatchNorm comes first, so its map travels down through the MaxPool into the convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(5, 4, 1)
        self.act = nn.ReLU()
        self.bn = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2)
        self.conv = nn.Conv2d(4, 3, 2)
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(self.pool(self.bn(self.act(self.stem(x))))))


@pytest.mark.parametrize("name", ["stem", "conv", "head", None])
def test_values_that_a_fold_moved_a_map_across_accuse_nobody(name: str | None) -> None:
    net = trained(Downward())
    result = fold(to_graph(net, IMAGES).model)
    (entry,) = result.ledger.norms()
    assert (entry.into, entry.through) == (("conv",), ("MaxPool",))  # else this test holds nothing
    model = result.model if name is None else plant(result.model, name)
    assert found(net, IMAGES, model) == name
    # without the ledger the pooled value, rightly another one, is taken for the fault where the walk meets it
    unaware = first_divergent_module(net, IMAGES, model, random_feeds(IMAGES)[0], ledger=Ledger())
    assert unaware == ("pool" if name == "conv" else name)


class Residual(nn.Module):
    """A stream that two branches write into behind their LayerNorms, and a head behind a last one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.widen, self.narrow = (nn.ModuleList(nn.Linear(*sizes) for _ in range(2)) for sizes in ((8, 12), (12, 8)))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for index in range(2):
            x = x + self.narrow[index](torch.relu(self.widen[index](self.norms[index](x))))
        return self.head(self.norms[2](x))


@pytest.mark.parametrize("name", ["embed", "widen.0", "narrow.0", "widen.1", "narrow.1", "head", None])
@pytest.mark.parametrize("opset", [20, 23])
def test_values_that_lost_their_mean_accuse_nobody(opset: int, name: str | None) -> None:
    specs = parse(["x:N=1..2..3x4x5"])
    torch.manual_seed(1)
    net = Residual().eval()
    model = fold(to_graph(net, specs, opset=opset).model, layernorm="centre", target="onnxruntime").model
    kinds = {node.op_type for node in model.graph if node.op_type.endswith("Normalization")}
    assert kinds == {"SimplifiedLayerNormalization" if opset == 20 else "RMSNormalization"}
    assert found(net, specs, model if name is None else plant(model, name)) == name


class Branches(nn.Module):
    """Two branches, of which the second one runs after the first and stays right."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4), nn.Sigmoid())
        self.right = nn.Sequential(nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4), nn.Sigmoid())
        self.join = nn.Conv2d(4, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.join(self.left(x) * self.right(x))


@pytest.mark.parametrize("name", ["left.0", "right.0", "join"])
def test_a_branch_that_agrees_hides_no_fault_in_the_other(name: str) -> None:
    net = trained(Branches())
    assert found(net, IMAGES, plant(fold(to_graph(net, IMAGES).model).model, name)) == name


class Shared(nn.Module):
    """``twice`` runs two times."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.twice = nn.Linear(5, 5)
        self.last = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.twice(torch.tanh(self.twice(self.first(x)))))


ROWS = parse(["x:N=1..3..4x5"])


@pytest.mark.parametrize("name", ["first", "twice", "last"])
def test_a_module_that_runs_twice_is_named_where_it_is_wrong_and_only_there(name: str) -> None:
    net = trained(Shared())
    assert found(net, ROWS, plant(to_graph(net, ROWS).model, name)) == name


class Siamese(nn.Module):
    """Runs one tower on two inputs, the second first, its norm at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.ReLU())
        self.left, self.right = nn.Linear(6, 6), nn.Linear(6, 6)
        self.norm, self.last = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, a = self.tower(torch.sin(x)), self.tower(x)
        return self.last(self.norm(self.left(self.norm(a)) + self.right(b)))


@pytest.mark.parametrize("name", ["tower.0", "left", "right", "last"])
@pytest.mark.parametrize("folded", [False, True])
def test_a_tower_for_two_inputs_is_named_where_it_is_wrong(name: str, folded: bool) -> None:
    net = trained(Siamese())
    model = to_graph(net, ROWS).model
    wrong = plant(fold(model).model if folded else model, name)
    assert found(net, ROWS, wrong) == name


class Functional(nn.Module):
    """Works with a parameter of its own, in no module inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(5, 5)
        self.weight = nn.Parameter(torch.empty(5, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) @ self.weight


def test_a_fault_in_no_module_inside_is_the_roots() -> None:
    net = trained(Functional())
    model = to_graph(net, ROWS).model
    assert found(net, ROWS, plant(model, "")) == "Functional"
    assert found(net, ROWS, plant(model, "inner")) == "inner"


def test_modules_are_observed_at_each_call_in_the_order_of_the_last() -> None:
    class Pair(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x + 1

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair, self.unused, self.twice, self.once = Pair(), nn.ReLU(), nn.ReLU(), nn.ReLU(inplace=True)
            self.scale = nn.Tanh()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = self.pair(x)
            return self.once(self.scale(self.twice(a) + self.twice(b) - 1))

    feed = random_feeds(ROWS)[0]
    observed = observe(Net().eval(), ROWS, feed, None)
    eager, exact, _ = observed
    assert list(eager) == list(exact) == ["twice call 0", "twice", "scale", "once", "output output"]
    assert observed.calls()["twice"] == ["twice", "twice call 0"]
    np.testing.assert_array_equal(eager["twice call 0"], np.maximum(feed.arrays["x"], 0))
    assert (eager["scale"] < 0).any()  # as it was before the ReLU overwrote it
    assert (eager["once"].dtype, exact["once"].dtype) == (np.float32, np.float64)
    np.testing.assert_allclose(eager["scale"], exact["scale"], rtol=1e-6, atol=1e-7)


@pytest.mark.usefixtures("no_float64")
def test_large_nets_go_through_a_file(four_blocks: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above 2 GB no model fits into one protobuf, so the weights lie beside it; here every weight does."""
    model = plant(to_graph(four_blocks, IMAGES).model, "blocks.3.conv")
    saved = ir.save
    seen: dict[str, object] = {}

    def save(*args: object, **options: object) -> None:
        seen.update(options)
        saved(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ir, "save", save)
    assert found(four_blocks, IMAGES, model) == "blocks.3.conv"
    assert seen["external_data"]


def test_float16_graphs_are_judged_as_float16() -> None:
    net = trained(FourBlocks())
    model = to_precision(fold(to_graph(net, IMAGES).model).model, "fp16")
    feed = random_feeds(IMAGES)[0]
    assert first_divergent_module(net, IMAGES, model, feed, dtype=torch.float16) is None
    assert first_divergent_module(net, IMAGES, model, feed) is not None
    faulty = plant(fold(to_graph(net, IMAGES).model).model, "blocks.2.conv", fault=1.0)
    model = to_precision(faulty, "fp16")
    assert first_divergent_module(net, IMAGES, model, feed, dtype=torch.float16) == "blocks.2.conv"


def test_a_module_that_cannot_be_copied_is_followed_in_float64_too() -> None:
    net = trained(FourBlocks())
    net.lock = threading.Lock()  # cannot be copied
    model = to_graph(net, IMAGES).model
    assert found(net, IMAGES, plant(model, "blocks.2.conv")) == "blocks.2.conv"
    assert found(net, IMAGES, model) is None
    exact = observe(net, IMAGES, random_feeds(IMAGES)[0], None)[1]
    assert exact["blocks.2.conv"].dtype == np.float64


def test_bfloat16_values_are_observed_as_they_are() -> None:
    net = trained(Functional())
    feed = random_feeds(ROWS)[0]
    eager, exact, _ = observe(net, ROWS, feed, torch.bfloat16)
    with torch.inference_mode():
        expected = copy.deepcopy(net.inner).bfloat16()(torch.from_numpy(feed.arrays["x"]).bfloat16())
    assert eager["inner"].dtype.name == "bfloat16"
    np.testing.assert_array_equal(eager["inner"].astype(np.float32), expected.float().numpy())
    assert exact["inner"].dtype == np.float64
