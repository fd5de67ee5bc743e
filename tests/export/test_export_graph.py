"""The exported graph: its interface, the names it carries, what cleaning removes, and that the module is left alone."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from exporting import export, feeds_of, hold, lived_in, nodes, operators, run, serialized
from torch import nn

from normdeploy.export import Exported
from normdeploy.graph import MODULE_KEY


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.bn(self.conv(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, bias=False)
        self.layers = nn.ModuleList([Block(4), Block(4)])
        self.head = nn.Linear(4, 5)
        self.register_buffer("shift", torch.tensor([1.0, -1.0, 2.0, 0.5, 3.0]), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean((2, 3))) + self.shift


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return lived_in(Net())


@pytest.fixture(scope="module")
def exported(net: nn.Module) -> Exported:
    return hold(net, "x:N=1..4..9x3xH=8..11..16x10")


def test_the_interface_is_that_of_the_specs(exported: Exported) -> None:
    graph = exported.model.graph
    assert [(v.name, str(v.shape), v.dtype) for v in graph.inputs] == [("x", "[N,3,H,10]", ir.DataType.FLOAT)]
    assert [(v.name, str(v.shape)) for v in graph.outputs] == [("output", "[N,5]")]
    assert (exported.inputs, exported.outputs, exported.notes) == (("x",), ("output",), ())


def test_every_node_carries_the_name_of_its_module_and_nothing_else(exported: Exported) -> None:
    modules = {
        op: {n.metadata_props[MODULE_KEY] for n in nodes(exported) if n.op_type == op} for op in ("Conv", "Gemm")
    }
    assert modules == {"Conv": {"stem", "layers.0.conv", "layers.1.conv"}, "Gemm": {"head"}}
    norms = [n.metadata_props[MODULE_KEY] for n in nodes(exported) if n.op_type == "BatchNormalization"]
    assert norms == ["layers.0.bn", "layers.1.bn"]
    assert all(set(node.metadata_props) == {MODULE_KEY} and not node.doc_string for node in nodes(exported))


def test_initializers_are_the_state_dict_by_its_keys(net: nn.Module, exported: Exported) -> None:
    initializers = exported.model.graph.initializers
    state = {name: t for name, t in net.state_dict().items() if not name.endswith("num_batches_tracked")}
    assert set(initializers) >= {*state, "shift"}
    for name, tensor in state.items():
        np.testing.assert_array_equal(initializers[name].const_value.numpy(), tensor.numpy())


def test_no_path_and_no_source_line_is_left_in_the_file(exported: Exported) -> None:
    data = serialized(exported)
    assert not re.search(rb"\.py\b|[Ff]ile \"|forward|/site-packages/|/tests/", data)


def test_it_is_valid_onnx_with_a_shape_on_every_value(exported: Exported) -> None:
    onnx.checker.check_model(serialized(exported), full_check=True)
    values = [output for node in nodes(exported) for output in node.outputs]
    assert all(value.shape is not None and value.dtype is not None for value in values)
    assert {str(v.shape[0]) for v in values if v.shape is not None and len(v.shape) == 4} == {"N"}


def test_the_module_is_not_changed(net: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    flags = [(m.training, set(vars(m))) for m in net.modules()], [p.requires_grad for p in net.parameters()]
    export(net, "x:N=1..4..9x3x8x10")
    assert ([(m.training, set(vars(m))) for m in net.modules()], [p.requires_grad for p in net.parameters()]) == flags
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


class Keeper(nn.Module):
    """Keeps what it saw, in an attribute and in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = x * 2
        self.seen.append(x)
        return self.last + 1


def test_nothing_of_the_trace_stays_in_the_module() -> None:
    module = Keeper()
    hold(module, "x:N=1..2..4x3")
    assert module.seen == []
    assert not hasattr(module, "last")


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * self.calls


def test_a_buffer_that_forward_changes_is_noted_and_left() -> None:
    module = Counter()
    exported = export(module, "x:N=1..2..4x3")
    assert any("'calls'" in note for note in exported.notes)
    assert module.calls.item() == 0
    ones = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(run(exported, {"x": ones})["output"], ones)


def test_an_input_that_nothing_depends_on_stays_and_is_noted() -> None:
    class Ignores(nn.Module):
        def forward(self, x: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
            return x + 1

    exported = hold(Ignores(), "x:N=1..2..4x3", "extra:Nx2")
    assert exported.notes == ("no output depends on input 'extra'",)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(11, 6), nn.LayerNorm(6, eps=1e-12)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.table(ids)) * mask[..., None]
        return hidden.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def test_a_name_shared_by_inputs_is_one_dimension() -> None:
    exported = hold(lived_in(TwoInputs()), "ids:B=1..4..8xT=1..5..9@i64[0..10]", "mask:BxT@i64[0..1]")
    assert [str(value.shape) for value in exported.model.graph.inputs] == ["[B,T]", "[B,T]"]


@pytest.mark.parametrize("names", [("s17", "s0"), ("E", "lambda"), ("u0", "I"), ("T__0", "N__1")], ids=str)
def test_a_dimension_may_have_any_name(names: tuple[str, str]) -> None:
    first, second = names

    class Product(nn.Module):
        def forward(self, a: torch.Tensor) -> torch.Tensor:
            return a.reshape(a.shape[0] * a.shape[1], 3)

    exported = hold(Product(), f"a:{first}=1..2..4x{second}=2..3..5x3")
    assert str(exported.model.graph.inputs[0].shape) == f"[{first},{second},3]"
    assert str(exported.model.graph.outputs[0].shape) in (f"[{first}*{second},3]", f"[{second}*{first},3]")


CONVOLUTIONS = [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_a_convolution_without_bias_has_none(kind: type[nn.Module]) -> None:
    sizes = "x".join("567"[: int(kind.__name__[-2])])
    exported = hold(lived_in(kind(4, 6, 3, groups=2, bias=False)), f"input:N=1..2..4x4x{sizes}")
    (node,) = exported.model.graph
    assert [value.name for value in node.inputs] == ["input", "weight"]


def test_a_zero_bias_that_is_a_parameter_stays() -> None:
    convolution = nn.Conv3d(2, 3, 2)
    nn.init.zeros_(convolution.bias)
    exported = hold(convolution, "input:N=1..2..4x2x3x4x5")
    assert [value.name for value in next(iter(exported.model.graph)).inputs] == ["input", "weight", "bias"]


def test_a_circular_padding_and_a_grouped_convolution_of_every_rank_run() -> None:
    for kind, sizes in ((nn.Conv1d, "5"), (nn.Conv2d, "5x6"), (nn.Conv3d, "5x6x7")):
        module = lived_in(kind(2, 4, 3, groups=2, bias=False, padding=1, padding_mode="circular"))
        assert operators(hold(module, f"input:N=1..2..4x2x{sizes}")) == {"Pad": 1, "Conv": 1}


class Shapes(nn.Module):
    """Shape arithmetic of both kinds: what is static must go, what depends on the batch must stay."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        batch, channels, height, width = x.shape
        mask = torch.full((width, width), -1.0, dtype=x.dtype).triu(1) * math_scale(channels)
        flat = x.reshape(batch, channels * height * width)
        rows = x.reshape(batch * channels, height, width) @ mask
        positions = torch.arange(width, dtype=x.dtype).expand(batch, width)
        return flat, rows, positions, torch.zeros(batch, channels, dtype=x.dtype) + batch


def math_scale(channels: int) -> float:
    return float(channels) ** -0.5


def test_static_shape_arithmetic_is_gone_and_dynamic_survives() -> None:
    exported = hold(Shapes(), "x:N=1..2..5x3x4x6")
    assert not {"Trilu", "Range", "ConstantOfShape", "Constant", "CastLike", "Sqrt", "Pow"} & set(operators(exported))
    assert [str(v.shape) for v in exported.model.graph.outputs] == ["[N,72]", "[3*N,4,6]", "[N,6]", "[N,3]"]


def test_everything_static_leaves_nothing_but_the_operators() -> None:
    exported = hold(Shapes(), "x:2x3x4x6")
    assert "Shape" not in operators(exported)


def test_a_transposed_weight_keeps_its_name_and_is_made_when_it_is_read() -> None:
    module = lived_in(nn.Linear(4, 300, bias=False))
    exported = hold(module, "input:N=1..2..4x3x4")
    assert operators(exported) == {"MatMul": 1}
    (weight,) = exported.model.graph.initializers.values()
    assert weight.name == "weight"
    assert isinstance(weight.const_value, ir.LazyTensor)
    np.testing.assert_array_equal(weight.const_value.numpy(), module.weight.detach().T)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(300, 250)
        self.head = nn.Linear(250, 300, bias=False)
        self.head.weight = self.embedding.weight
        self.other, self.again = nn.Linear(250, 250), nn.Linear(250, 250)
        self.again.weight = nn.Parameter(self.other.weight.data)  # two parameters, one memory

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.again(self.other(self.embedding(ids))))


def test_parameters_that_share_memory_are_one_initializer() -> None:
    exported = hold(lived_in(Tied()), "ids:N=1..2..4x3@i64[0..299]")
    large = [v for v in exported.model.graph.initializers.values() if v.const_value.size > 1000]
    assert sorted(value.const_value.size for value in large) == [250 * 250, 300 * 250]


class Reused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3), nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.conv(self.first(self.conv(x))))


def test_a_module_called_twice_keeps_its_name_and_one_weight() -> None:
    exported = hold(lived_in(Reused()), "x:N=1..2..4x3x5")
    assert [node.metadata_props[MODULE_KEY] for node in exported.model.graph] == ["conv", "first", "conv", "second"]
    convolutions = [node for node in exported.model.graph if node.op_type == "Conv"]
    assert convolutions[0].inputs[1] is convolutions[1].inputs[1]


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x[0, 0] > 0, lambda x: self.bn(x), lambda x: x * 2, (x,))


def test_control_flow_is_kept_with_names_inside_and_both_branches_run() -> None:
    exported = hold(lived_in(Branches()), "x:N=1..2..4x6")
    assert operators(exported)["If"] == operators(exported)["BatchNormalization"] == 1
    assert all(MODULE_KEY in node.metadata_props for node in nodes(exported))
    assert not exported.model.functions
    for sign in (1, -1):
        x = np.full((2, 6), sign, np.float32)
        with torch.no_grad():
            expected = lived_in(Branches())(torch.tensor(x))
        np.testing.assert_allclose(run(exported, {"x": x})["output"], expected, rtol=1e-5)  # float32 round-off


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_what_follows_a_recurrent_layer_keeps_a_dynamic_length(kind: type[nn.Module]) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.bn = kind(6, 5, batch_first=True, bidirectional=True), nn.BatchNorm1d(10)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            hidden = self.rnn(x)[0]
            return self.bn(hidden.reshape(-1, 10)), hidden.flatten(1), hidden[:, -1]

    exported = hold(lived_in(Recurrent()), "x:N=1..2..4xT=1..3..7x6")
    assert [len(value.shape) for value in exported.model.graph.outputs] == [2, 2, 2]


def test_splits_are_splits() -> None:
    class Chunks(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            first, second, third = x.chunk(3, 1)
            return (first * second + third, *torch.split(x, [2, 4], 1))

    assert "SequenceAt" not in operators(hold(Chunks(), "x:N=1..2..5x6"))


def test_an_average_over_all_time_is_no_gather() -> None:
    class Pooled(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.adaptive_avg_pool1d(x.transpose(1, 2), 1).flatten(1)

    for text in ("x:N=1..2..4x5x6", "x:3x5x6"):
        found = operators(hold(Pooled(), text))
        assert (found["ReduceMean"], found["Gather"], found["Range"]) == (1, 0, 0)


@pytest.mark.parametrize(
    ("size", "stride"),
    [((2, 3, 4), (12, 1, 3)), ((2, 3, 4), (0, 4, 1)), ((2, 4, 3), (12, 3, 1)), ((1, 3, 4), (12, 4, 1)), ((6,), (3,))],
)
def test_a_view_of_another_order_or_shape_is_what_torch_makes_of_it(
    size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    class View(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.as_strided(x + 1, size, stride)

    hold(View(), "x:2x3x4")


@pytest.mark.parametrize(
    ("dtype", "short", "opset"), [(torch.float16, "f16", 20), (torch.float64, "f64", 20), (torch.bfloat16, "bf16", 22)]
)
def test_other_float_dtypes_are_exported_bit_by_bit(dtype: torch.dtype, short: str, opset: int) -> None:
    module = lived_in(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))).to(dtype)
    exported = export(module, f"input:N=1..2..4x3x5x6@{short}", opset=opset)
    for name, value in exported.model.graph.initializers.items():
        if (dtype, name) == (torch.float64, "1.running_var"):  # has what ONNX's eps of float32 lacks
            (norm,) = (node for node in exported.model.graph if node.op_type == "BatchNormalization")
            rest = 1e-5 - norm.attributes["epsilon"].as_float()
            assert 0 < rest < 1e-12
            np.testing.assert_array_equal(value.const_value.numpy(), module.state_dict()[name].numpy() + rest)
            continue
        assert value.const_value.tobytes() == module.state_dict()[name].view(torch.uint8).numpy().tobytes(), name


def test_an_input_that_forward_changes_in_place_is_not_changed_for_others() -> None:
    class InPlace(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x += 1
            return x * 2

    hold(InPlace(), "x:N=1..2..4x3")


def test_it_is_traced_without_gradients() -> None:
    class Asks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if torch.is_grad_enabled() else x

    hold(Asks(), "x:N=1..2..4x3")


def test_exporting_twice_gives_the_same_file(net: nn.Module, exported: Exported) -> None:
    assert serialized(export(net, "x:N=1..4..9x3xH=8..11..16x10")) == serialized(exported)


def test_scalars_booleans_and_integers_go_in_and_out() -> None:
    class Mixed(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor, m: torch.Tensor) -> dict[str, Any]:
            return {"x": torch.where(m, x * t.to(x.dtype), x), "t": t + 1, "any": m.any(), "best": x.argmax(-1)}

    texts = ("x:N=1..2..4x3", "t:[]@i64[1..3]", "m:Nx3@bool[0..1]")
    exported = hold(Mixed(), *texts)
    assert exported.outputs == ("x_out", "t_out", "any", "best")
    assert run(exported, next(iter(feeds_of(*texts))))["any"].shape == ()


def test_a_sequence_of_parts_is_one() -> None:
    """Inference takes it for a tensor of its elements where its type is not known."""

    class Halves(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([half.softmax(-1) for half in x.chunk(2, 1)], 1)

    hold(Halves(), "x:B=1..2..3xT=4..6..8%2x5")
