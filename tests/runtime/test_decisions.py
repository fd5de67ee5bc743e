"""Decisions by sizes and constants are those of the module's own dtype, in the module and in the graph; no others."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from normdeploy.export import to_graph
from normdeploy.fold import fold
from normdeploy.parity.compare import measure
from normdeploy.parity.feeds import random_feeds
from normdeploy.parity.verdict import Verdict, judge
from normdeploy.runtime.eager import EagerRunner
from normdeploy.runtime.float64 import Float64Runner
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.specs import parse

LINE = "x:N=1..2..3x4xT=20..40..60@f32"
IMAGE = "x:2x3x20x23@f32"


class Net(nn.Module):
    """A function of what a convolution and a norm make of x."""

    def __init__(self, function: Callable[[Tensor], Tensor], channels: int, ndim: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = (nn.Conv1d if ndim == 1 else nn.Conv2d)(channels, channels, 3, padding=1)
        self.norm = (nn.BatchNorm1d if ndim == 1 else nn.BatchNorm2d)(channels)
        nn.init.normal_(self.norm.weight)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.norm(self.conv(x)))


def places(t: int) -> Tensor:
    return torch.arange(t, dtype=torch.float32)


def buckets(t: int, shift: float = 0.0) -> Tensor:
    """T5's: a distance of 2^n times 8 lies at the edge of two."""
    far = (torch.arange(t)[:, None] - torch.arange(t)[None]).abs()
    large = 8 + (torch.log(far.float() / 8) / math.log(128 / 8) * 8 + shift).to(torch.long)
    return torch.where(far < 8, far, large.clamp(max=15))


TABLE = torch.linspace(-2, 3, 16)

RIGHT: dict[str, tuple[str, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "nearest by 1.7": (
        IMAGE,
        lambda y: functional.interpolate(y, scale_factor=1.7),
        lambda y: functional.interpolate(y, scale_factor=1.75)[..., :34, :39],
    ),
    "nearest-exact to a size": (
        "x:N=1..2..4x3xH=16..20..40xW=16..23..50@f32",
        lambda y: functional.interpolate(y, size=(37, 41), mode="nearest-exact"),
        lambda y: functional.interpolate(y, size=(37, 41), mode="nearest"),
    ),
    "floor of positions": (
        LINE,
        lambda y: y[..., (places(y.shape[-1]) / 1.7).floor().long()],
        lambda y: y[..., (places(y.shape[-1]) / 1.7 + 0.1).floor().long()],
    ),
    "round and cast of positions": (
        LINE,
        lambda y: y[..., (torch.round(places(y.shape[-1]) * 0.7) * 0.3).long()],
        lambda y: y[..., (torch.round(places(y.shape[-1]) * 0.7 - 0.1) * 0.3).long()],
    ),
    "floor division and remainder": (
        LINE,
        lambda y: y * (places(y.shape[-1]) * 0.1 % 0.7) + (places(y.shape[-1]) * 0.1 // 0.7),
        lambda y: y * (places(y.shape[-1]) * 0.1 % 0.7) + ((places(y.shape[-1]) * 0.1 + 0.1) // 0.7),
    ),
    "comparison": (
        LINE,
        lambda y: torch.where(places(y.shape[-1]) * 0.1 >= 1.1, y, -y),
        lambda y: torch.where(places(y.shape[-1]) * 0.1 > 1.1 + 1e-3, y, -y),
    ),
    "buckets by a logarithm": (
        LINE,
        lambda y: y @ TABLE[buckets(y.shape[-1])],
        lambda y: y @ TABLE[buckets(y.shape[-1], -1e-3)],
    ),
}  # fmt: skip


def net(name: str, index: int) -> tuple[nn.Module, str]:
    spec = RIGHT[name][0]
    of_line = spec == LINE
    return Net(RIGHT[name][index], 4 if of_line else 3, 1 if of_line else 2).eval().requires_grad_(False), spec


def verdict(module: nn.Module, spec: str, deployed: nn.Module) -> Verdict:
    """The verdict on the folded graph of ``deployed``, as if it were that of ``module``."""
    specs = parse([spec])
    graph = fold(to_graph(deployed, specs).model).model
    runner = OnnxRuntimeRunner(ir.to_proto(graph).SerializeToString(), threads=1)
    measured = measure(module, specs, runner, random_feeds(specs), graph=graph)
    return judge(measured.measurements, reference=measured.reference, notes=measured.notes)


@pytest.mark.parametrize("name", RIGHT)
def test_the_float64_reference_decides_as_the_module(name: str) -> None:
    module, spec = net(name, 1)
    specs = parse([spec])
    for feed in random_feeds(specs):
        exact = EagerRunner(module, specs, dtype=torch.float64)(feed.arrays)["output"]
        eager = EagerRunner(module, specs)(feed.arrays)["output"]
        assert exact.dtype == np.float64
        np.testing.assert_allclose(eager, exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", RIGHT)
def test_a_graph_that_decides_as_the_module_passes(name: str) -> None:
    module, spec = net(name, 1)
    assert verdict(module, spec, module).passed


@pytest.mark.parametrize("name", RIGHT)
def test_a_graph_that_decides_otherwise_fails(name: str) -> None:
    module, spec = net(name, 1)
    failed = verdict(module, spec, net(name, 2)[0])
    assert "graph" in {each.measurement.part for each in failed.failures()}


ROW = parse(["x:30@f32"])
TENTHS = np.arange(30, dtype=np.float32)


def exact_of(function: Callable[[Tensor], Tensor], **buffers: Tensor) -> np.ndarray:
    class Of(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, tensor in buffers.items():
                self.register_buffer(name, tensor)

        def forward(self, x: Tensor) -> Tensor:
            return function(*((x,) if not buffers else (x, self.kept)))

    return EagerRunner(Of().eval(), ROW, dtype=torch.float64)({"x": TENTHS})["output"]


def written(x: Tensor) -> Tensor:
    place = torch.zeros(30)
    place[:] = x
    return (place / 1.7 * 1.7).floor()


def written_into_a_view(x: Tensor) -> Tensor:
    place = torch.zeros(2, 30)
    place[1].copy_(x)
    return (place / 1.7 * 1.7).floor()[1]


def written_into_a_buffer(x: Tensor, kept: Tensor) -> Tensor:
    kept[:] = x
    return (kept / 1.7 * 1.7).floor()


def test_what_an_input_has_a_part_in_is_decided_in_float64() -> None:
    expected = np.floor(TENTHS.astype(np.float64) / 1.7 * 1.7)
    narrow = np.floor(TENTHS / np.float32(1.7) * np.float32(1.7))
    assert (expected != narrow).any(), "this shows nothing"
    for function in (lambda x: (x / 1.7 * 1.7).floor(), written, written_into_a_view):
        np.testing.assert_array_equal(exact_of(function), expected)
    np.testing.assert_array_equal(exact_of(written_into_a_buffer, kept=torch.zeros(30)), expected)


def counted(x: Tensor, kept: Tensor) -> Tensor:
    kept += 1.0
    return x * (kept / 1.7 * 1.7).floor()


def test_a_buffer_that_is_changed_is_no_constant() -> None:
    got = exact_of(counted, kept=torch.from_numpy(TENTHS))
    np.testing.assert_array_equal(got, TENTHS * np.floor((TENTHS.astype(np.float64) + 1) / 1.7 * 1.7))


def test_buffers_and_in_place_operators_keep_their_twins() -> None:
    narrow = np.floor(TENTHS / np.float32(1.7) * np.float32(1.7))
    got = exact_of(lambda x, kept: x * 0 + (kept / 1.7).mul_(1.7).floor_(), kept=torch.from_numpy(TENTHS))
    np.testing.assert_array_equal(got, narrow)


def onnx_text(body: str) -> ir.Model:
    return ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[T] x) => (float[U] y)
        <float zero = {{0.0}}, float one = {{1.0}}, float by = {{1.7}}> {{
          {body}
        }}""")


COUNT = """size = Shape (x)
          t = Squeeze (size)
          wide = Cast <to = 1> (t)"""


def typed(model: ir.Model) -> ir.Model:
    """``model`` with the types that onnx infers."""
    import onnx

    return ir.serde.deserialize_model(onnx.shape_inference.infer_shapes(ir.to_proto(model)))


@pytest.mark.parametrize(
    ("body", "narrow"),
    [
        (f"{COUNT} r = Range (zero, wide, one) p = Div (r, by) q = Mul (p, by) y = Floor (q)", True),
        (f"{COUNT} r = Range (zero, wide, one) p = Div (r, by) q = Mul (p, by) i = Cast <to = 7> (q) y = Cast <to = 1> (i)", True),  # noqa: E501
        ("p = Div (x, by) q = Mul (p, by) y = Floor (q)", False),
        (f"{COUNT} r = Range (zero, wide, one) z = Mul (x, zero) s = Add (r, z) p = Div (s, by) q = Mul (p, by) y = Floor (q)", False),  # noqa: E501
    ],
    ids=["positions", "cast", "input", "positions and input"],
)  # fmt: skip
def test_a_graph_decides_in_its_own_types_unless_an_input_has_a_part(body: str, narrow: bool) -> None:
    real = np.float32 if narrow else np.float64
    by = real(np.float32(1.7))
    expected = np.floor(TENTHS.astype(real) / by * by)
    model = typed(onnx_text(body))
    np.testing.assert_array_equal(Float64Runner(model)({"x": TENTHS})["y"], expected)
    if narrow:
        session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString())
        np.testing.assert_array_equal(session.run(None, {"x": TENTHS})[0], expected)


def test_a_branch_is_decided_by_what_it_reads_around_it() -> None:
    """What a branch makes follows from an input that is none of the node's own."""
    model = typed(
        onnx_text("""yes = GreaterOrEqual (one, zero)
          s = If (yes) <
            then_branch = a () => (float[T] u) { u = Identity (x) },
            else_branch = b () => (float[T] v) { v = Neg (x) }>
          p = Div (s, by)
          q = Mul (p, by)
          y = Floor (q)""")
    )
    by = np.float64(np.float32(1.7))
    np.testing.assert_array_equal(Float64Runner(model)({"x": TENTHS})["y"], np.floor(TENTHS.astype(float) / by * by))
