"""Activations that 16 bits have no room for: found on the feeds, named by module, and nothing else is named."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from normdeploy.export import to_graph
from normdeploy.fold import fold
from normdeploy.graph import MODULE_KEY
from normdeploy.parity import overflow
from normdeploy.parity.feeds import Feed
from normdeploy.parity.overflow import overflow_notes, overflows
from normdeploy.precision import Precision, to_precision
from normdeploy.specs import parse

SPECS = parse(["x:N=1..2..4x5x6@f32"])
RNG = np.random.default_rng(0)


class Encoder(nn.Module):
    """A residual stream, two branches behind norms, a head."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm, self.widen, self.narrow = (
            nn.Linear(6, 6),
            nn.LayerNorm(6),
            nn.Linear(6, 9),
            nn.Linear(9, 6),
        )
        self.last, self.head = nn.LayerNorm(6), nn.Linear(6, 3)
        self.narrow.weight.data *= gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        x = x + self.narrow(torch.relu(self.widen(self.norm(x))))
        head: torch.Tensor = self.head(self.last(x))
        return head


def deployed(module: nn.Module, precision: Precision = "fp16") -> ir.Model:
    graph = fold(to_graph(module.eval(), SPECS, opset=22).model).model
    return graph if precision == "fp32" else to_precision(graph, precision)


def feed(name: str = "rows", scale: float = 1.0) -> Feed:
    return Feed(name, {"x": (scale * RNG.standard_normal((2, 5, 6))).astype(np.float32)})


def graph(text: str, opset: int = 20, **weights: np.ndarray) -> ir.Model:
    """What ``text`` spells, in float16; each node belongs to the module of its output's name."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> g {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    for node in model.graph.all_nodes():
        node.metadata_props[MODULE_KEY] = f"net.{node.outputs[0].name}"
    return to_precision(model, "fp16")


def test_nothing_is_said_where_all_fits() -> None:
    feeds = [feed(), feed("outliers", 100.0)]
    assert overflows(deployed(Encoder()), feeds) == ()
    assert overflow_notes(deployed(Encoder()), feeds) == ()


def test_the_module_that_overflows_is_named_with_its_peak_and_its_feed() -> None:
    """Its size is that of the module in float64, but for the rounding of its weights."""
    module, feeds = Encoder(gain=1.5e5), [feed("calm", 1e-3), feed("rows"), feed("more")]
    found = {each.module: each for each in overflows(deployed(module), feeds)}
    assert [name for name in found if not name.startswith("node_")] == ["narrow"]  # the sum behind belongs to no module
    sizes, hook = {}, module.narrow.register_forward_hook(lambda _m, _a, out: seen.append(out.abs().max().item()))
    for each in feeds:
        seen: list[float] = []
        module.double()(torch.from_numpy(each.arrays["x"]).double())
        sizes[each.name] = seen[0]
    hook.remove()
    worst = max(sizes, key=lambda name: sizes[name])
    assert sizes[worst] > 65504
    assert found["narrow"].feed == worst
    assert found["narrow"].peak == pytest.approx(sizes[worst], rel=2e-3)
    (note,) = overflow_notes(deployed(module.float()), feeds)
    assert "narrow" in note
    assert f"on '{worst}'" in note
    assert "float16, whose largest number is 65504" in note
    assert "deploy in bf16 or fp32" in note


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_where_there_is_room_nothing_is_said(precision: Precision) -> None:
    assert overflow_notes(deployed(Encoder(gain=1e5), precision), [feed()]) == ()


def test_an_input_that_is_too_large_is_named_where_it_is_read() -> None:
    (found, *_) = overflows(deployed(Encoder()), [Feed("huge", {"x": np.full((1, 5, 6), 1e5, np.float32)})])
    assert (found.module, found.peak) == ("embed", 1e5)


def test_squares_inside_a_float32_island_do_not_count() -> None:
    """A norm that is spelled out squares its deviations in float32."""
    model = graph(
        """(float[N,6] x) => (float[N,6] y) { a = Relu(x) m = ReduceMean(a, axes) d = Sub(a, m) q = Mul(d, d)
            v = ReduceMean(q, axes) e = Add(v, eps) r = Sqrt(e) n = Div(d, r) y = Relu(n) }""",
        axes=np.array([-1]), eps=np.array(1e-5, np.float32),
    )  # fmt: skip
    row = Feed("outlier", {"x": np.array([[6e4, 0, 0, 1, 2, 3]], np.float32)})
    assert overflows(model, [row]) == ()
    squared = graph("(float[N,6] x) => (float[N,6] y) { a = Relu(x) q = Mul(a, a) y = Relu(q) }")
    assert [each.module for each in overflows(squared, [row])] == ["net.q", "net.y"]


MASKED = """(float[N,4,6] x, int64[N,4] mask) => (float[N,4,4] y) {
    f = Cast<to=1>(mask) i = Sub(one, f) b = Mul(i, low) u = Unsqueeze(b, axes)
    k = MatMul(x, w) p = Add(k, u) o = Add(p, bias) y = Softmax(o) }"""


@pytest.mark.parametrize(("gain", "named"), [(-20.0, set()), (-1e5, {"net.k"})])
def test_what_a_mask_hides_does_not_count_and_what_it_is_added_to_does(gain: float, named: set[str]) -> None:
    model = graph(
        MASKED, one=np.array(1, np.float32), low=np.array(np.finfo(np.float32).min), axes=np.array([1]),
        w=np.full((6, 4), 1.0, np.float32), bias=np.full(4, -50, np.float32),
    )  # fmt: skip
    x = np.full((1, 4, 6), gain / 6, np.float32)
    rows = Feed("rows", {"x": x, "mask": np.array([[1, 1, 0, 0]])})
    assert {each.module for each in overflows(model, [rows])} == named


def test_infinities_of_float32_itself_are_no_news() -> None:
    model = graph("(float[N,6] x) => (float[N,6] y) { a = Log(x) y = Softmax(a) }")
    assert overflows(model, [Feed("zeros", {"x": np.zeros((1, 6), np.float32)})]) == ()


def test_many_modules_are_counted_and_the_first_named() -> None:
    names = [f"m{i}" for i in range(9)]
    chain = " ".join(f"{name} = Mul({before}, c)" for before, name in zip(["x", *names], names, strict=False))
    model = graph(f"(float[N,6] x) => (float[N,6] y) {{ {chain} y = Identity(m8) }}", c=np.array(1.5, np.float32))
    (note,) = overflow_notes(model, [Feed("rows", {"x": np.full((1, 6), 6e4, np.float32)})])
    assert "net.m0 (m0 reaches 9e+04 on 'rows')" in note
    assert "and 5 more: " in note


def test_the_model_is_not_changed_and_16_bit_inputs_are_fed_as_they_are() -> None:
    module = nn.Sequential(nn.Linear(6, 9), nn.ReLU()).half().eval()
    module[0].weight.data *= 1e4
    model = to_graph(module, parse(["input:N=1..2..4x6@f16"])).model
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    rows = np.full((2, 6), 100.0, np.float16)
    found = overflows(model, [Feed("rows", {"input": rows})])
    wide = copy.deepcopy(module).float()(torch.from_numpy(rows).float()).max().item()
    assert found[-1].peak == pytest.approx(wide, rel=1e-5)
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_where_it_cannot_run_that_is_said() -> None:
    model = deployed(Encoder())
    (note,) = overflow_notes(model, [Feed("wrong", {"z": np.zeros((1, 5, 6), np.float32)})])
    assert note.startswith("whether activations overflow in 16 bits is not known: ")


def test_a_full_disk_costs_a_note_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    model = deployed(Encoder())
    monkeypatch.setattr(overflow.ir, "save", save)
    (note,) = overflow_notes(model, [feed()])
    assert "not known" in note
    assert "the disk is full" in note


def test_nothing_to_look_at_is_no_overflow() -> None:
    model = graph("(float[N,6] x) => (float[N,6] y) { a = Relu(x) y = Relu(a) }")
    assert overflow_notes(model, [Feed("empty", {"x": np.zeros((0, 6), np.float32)})]) == ()


def test_no_run_where_nothing_is_in_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overflow, "OnnxRuntimeRunner", None)
    assert overflow_notes(deployed(Encoder(), "fp32"), [feed()]) == ()
