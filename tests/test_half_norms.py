"""Norms in 16 bits on the rows that they get wrong: parity holds, because their statistics are float32.

float16 runs in ONNX Runtime. bfloat16, for which that has no kernels on the CPU, runs in ONNX's evaluator, with norms
as the standard says: statistics in float32 (``stash_type=1``), scale and bias in the type of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor, nn

from normdeploy.export import to_graph
from normdeploy.fold import Level, fold
from normdeploy.parity.compare import measure
from normdeploy.parity.feeds import Feed
from normdeploy.parity.verdict import Verdict, judge
from normdeploy.pipeline.session import in_onnxruntime
from normdeploy.precision import Precision, to_precision
from normdeploy.runtime.runner import Runner
from normdeploy.specs import TensorSpec, parse

C = 24
EPS = {"fp16": 2.0**-10, "bf16": 2.0**-7}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
LEVELS: tuple[Level, ...] = ("off", "recognise", "affine", "centre")
ROWS = parse([f"x:N=1..3..4xT=1..5..6x{C}@f32"])
TOKENS = parse(["ids:N=1..3..4xT=1..5..6@i64[0..49]"])


# -- networks --------------------------------------------------------------------------------------


class SpelledNorm(nn.Module):
    """A LayerNorm as many write it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(C)), nn.Parameter(torch.zeros(C))

    def forward(self, x: Tensor) -> Tensor:
        d = x - x.mean(-1, keepdim=True)
        return d / torch.sqrt((d * d).mean(-1, keepdim=True) + 1e-5) * self.weight + self.bias


class Groups(nn.GroupNorm):
    """A GroupNorm of the features, which stand last."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Alone(nn.Module):
    """A norm and a linear."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.head = norm, nn.Linear(C, 8)

    def forward(self, x: Tensor) -> Tensor:
        head: Tensor = self.head(self.norm(x))
        return head


class Stack(nn.Module):
    """Two pre-LN blocks over a stream, a last norm, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(C) for _ in range(3))
        self.wide, self.narrow = (nn.ModuleList(nn.Linear(*size) for _ in range(2)) for size in ((C, 36), (36, C)))
        self.head = nn.Linear(C, 8)

    def forward(self, x: Tensor) -> Tensor:
        for norm, wide, narrow in zip(self.norms, self.wide, self.narrow, strict=False):
            x = x + narrow(torch.relu(wide(norm(x))))
        head: Tensor = self.head(self.norms[2](x))
        return head


class Embedded(nn.Module):
    """A stack whose stream begins in a table with a mean far above its deviation."""

    def __init__(self, deviation: float) -> None:
        super().__init__()
        self.table, self.stack = nn.Embedding.from_pretrained(1e4 + deviation * torch.randn(50, C)), Stack()

    def forward(self, ids: Tensor) -> Tensor:
        head: Tensor = self.stack(self.table(ids))
        return head


OPERATORS: dict[str, Callable[[], nn.Module]] = {
    "LayerNorm": lambda: Alone(nn.LayerNorm(C)),
    "RMSNorm": lambda: Alone(nn.RMSNorm(C)),
    "GroupNorm": lambda: Alone(Groups(4, C)),
    "spelled out": lambda: Alone(SpelledNorm()),
    "whole network": Stack,
}


@cache
def exported(name: str) -> tuple[nn.Module, ir.Model]:
    module = settled(OPERATORS[name])
    return module, to_graph(module, ROWS, opset=23).model


def settled(build: Callable[[], nn.Module]) -> nn.Module:
    """Seeded, in eval mode, no norm the identity."""
    torch.manual_seed(0)
    module = build()
    for part in module.modules():
        if isinstance(part, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, SpelledNorm)):
            for parameter in part.parameters(recurse=False):
                nn.init.uniform_(parameter, 0.5, 1.5)
    return module.eval().requires_grad_(False)


# -- rows ------------------------------------------------------------------------------------------


def rows(kind: str, precision: Precision) -> Feed:
    """Numbers of 1e4 lie 8 apart in float16 and 64 in bfloat16; a smaller deviation is gone before any norm."""
    random = np.random.default_rng(3)
    x = random.standard_normal((3, 5, C))
    if kind == "large mean":
        x = 1e4 + x * 1e4 * EPS[precision] * 4
    elif kind == "outliers":
        x[:, ::2, 3] = 3e4
    elif kind == "constant rows":
        x = np.broadcast_to(random.integers(-9, 9, (3, 5, 1)), x.shape)
    return Feed(kind, {"x": x.astype(np.float32)})


KINDS = ("plain", "large mean", "outliers", "constant rows")


# -- running ---------------------------------------------------------------------------------------


def statistics(dtype: type | None) -> list[type[OpRun]]:
    """The norms of the standard, statistics taken in ``dtype``, or where that is None in the type of the data."""

    def normalized(x: np.ndarray, axes: tuple[int, ...], epsilon: float, *, centred: bool) -> np.ndarray:
        wide = x.astype(dtype or x.dtype)
        if centred:
            wide = wide - wide.mean(axis=axes, keepdims=True).astype(wide.dtype)
        square = (wide * wide).mean(axis=axes, keepdims=True).astype(wide.dtype)
        result: np.ndarray = (wide / np.sqrt(square + wide.dtype.type(epsilon))).astype(x.dtype)
        return result

    class LayerNormalization(OpRun):  # type: ignore[misc]
        op_domain = ""

        def _run(self, x, scale, bias=None, axis=None, epsilon=None, stash_type=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            y = normalized(x, tuple(range(axis % x.ndim, x.ndim)), epsilon, centred=True) * scale
            return (y if bias is None else y + bias,)

    class RMSNormalization(OpRun):  # type: ignore[misc]
        op_domain = ""

        def _run(self, x, scale, axis=None, epsilon=None, stash_type=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            return (normalized(x, tuple(range(axis % x.ndim, x.ndim)), epsilon, centred=False) * scale,)

    class GroupNormalization(OpRun):  # type: ignore[misc]
        op_domain = ""

        def _run(self, x, scale, bias, epsilon=None, num_groups=None, stash_type=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
            groups = x.reshape(x.shape[0], num_groups, -1)
            y = normalized(groups, (2,), epsilon, centred=True).reshape(x.shape)
            channels = (1, -1, *(1,) * (x.ndim - 2))
            return (y * scale.reshape(channels) + bias.reshape(channels),)

    return [LayerNormalization, RMSNormalization, GroupNormalization]


class Evaluator:
    """A graph in ONNX's evaluator, as a runner."""

    name = "evaluator"

    def __init__(self, model: ir.Model, dtype: type | None) -> None:
        self._evaluator = ReferenceEvaluator(ir.to_proto(model), new_ops=statistics(dtype))
        self.inputs, self.outputs = tuple(self._evaluator.input_names), tuple(self._evaluator.output_names)

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with np.errstate(all="ignore"):
            results = self._evaluator.run(None, dict(feeds))
        return dict(zip(self.outputs, map(np.asarray, results), strict=True))


@contextmanager
def running(model: ir.Model, precision: Precision) -> Iterator[Runner]:
    if precision == "bf16":
        yield Evaluator(model, np.float32)
    else:
        with in_onnxruntime(model, 1) as session:
            yield session.runner


def verdict(
    module: nn.Module, specs: tuple[TensorSpec, ...], runner: Runner, feed: Feed, dtype: torch.dtype
) -> Verdict:
    measured = measure(module, specs, runner, [feed], dtype=dtype)
    return judge(measured.measurements, reference=measured.reference, notes=measured.notes)


# -- parity ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("name", OPERATORS)
def test_hard_rows_stay_within_what_eager_loses_in_16_bits(name: str, precision: Precision, kind: str) -> None:
    module, graph = exported(name)
    for level in LEVELS:
        with running(to_precision(fold(graph, layernorm=level).model, precision), precision) as runner:
            judged = verdict(module, ROWS, runner, rows(kind, precision), DTYPES[precision])
        assert judged.passed, (level, judged)
        (only,) = judged.judgements
        assert only.measurement.reference == "float64", (level, judged.notes)


@pytest.mark.parametrize(
    ("name", "precision", "kind"),
    [
        ("LayerNorm", "fp16", "outliers"),
        ("whole network", "fp16", "outliers"),
        ("LayerNorm", "bf16", "large mean"),
    ],
)
def test_with_statistics_in_16_bits_they_would_not(name: str, precision: Precision, kind: str) -> None:
    """Squares overflow the one type, and the other has no digits for the mean."""
    module, graph = exported(name)
    model, feed = to_precision(fold(graph).model, precision), rows(kind, precision)
    assert not verdict(module, ROWS, Evaluator(model, None), feed, DTYPES[precision]).passed
    assert verdict(module, ROWS, Evaluator(model, np.float32), feed, DTYPES[precision]).passed


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_mean_in_the_weights_is_taken_off_before_they_are_rounded(precision: Precision) -> None:
    """Eager has lost the table: its deviation is below what the type holds at 1e4. Centred, nothing of it is lost."""
    module = settled(lambda: Embedded(deviation=1.0))
    graph = to_graph(module, TOKENS, opset=23).model
    feed = Feed("ids", {"ids": np.random.default_rng(0).integers(0, 50, (3, 5))})
    for level, reference in (("affine", "eager"), ("centre", "float64")):
        model = to_precision(fold(graph, layernorm=level).model, precision)  # type: ignore[arg-type]
        with running(model, precision) as runner:
            judged = verdict(module, TOKENS, runner, feed, DTYPES[precision])
        assert judged.judgements[0].measurement.reference == reference
        assert judged.passed or level == "affine"  # whatever two runtimes make of noise
