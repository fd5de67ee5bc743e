"""What cannot be exported is refused, with the module, the dimension or the operator, and never exported wrongly."""

from __future__ import annotations

import contextlib
import re
import sys
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from exporting import export, hold, lived_in
from torch import nn
from torch.nn.utils import parametrizations

from normdeploy.errors import InputError
from normdeploy.export import OPSETS
from normdeploy.export.trace import check_dims
from normdeploy.specs import parse


def inside(child: nn.Module) -> nn.Module:
    """``child`` as the module ``blocks.1``."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.Sequential(nn.ReLU(), child)

        def forward(self, x: torch.Tensor) -> Any:
            return self.blocks(x)

    return Root()


def module_of(function: Any) -> nn.Module:
    class Function(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return function(x)

    return Function()


class Plain(nn.Linear):
    """A layer that calls its input ``x``."""

    def __init__(self) -> None:
        super().__init__(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


def refused(module: nn.Module, *texts: str, **options: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        export(module, *texts, **options)
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x * 2 if x.shape[0] > 4 else x, "'N' must be 5..8"),
        (lambda x: x * 2 if x.shape[0] < 3 else x, "'N' must be 3..8"),
        (lambda x: x + torch.ones(4, 6), "forward raises RuntimeError"),
        (lambda x: x * list(range(x.shape[0]))[-1], "'N' must be 5"),
        (lambda x: x * (5 if x.shape[0] == 5 else 6), "'N'"),
        (lambda x: x * 2 if x.shape[0] == 1 else x, "takes another path at N = 1"),
        (lambda x: x * (3 if x.shape[0] == 1 else 2), "takes another path at N = 1"),
    ],
    ids=["above", "below", "fixed tensor", "python list", "equal", "one by operators", "one by a constant"],
)
def test_a_size_that_the_module_depends_on_is_refused_by_name(function: Any, said: str) -> None:
    error = refused(module_of(function), "x:N=1..5..8x6")
    assert said in error.what
    assert "x:N=1..5..8x6" in error.where or "Function" in error.where


def test_a_size_that_must_be_a_multiple_is_refused_as_that() -> None:
    halves = module_of(lambda x: x.reshape(x.shape[0] // 2, 12))
    assert "'N' must be a multiple of 2" in refused(halves, "x:N=2..4..8x6").what
    hold(halves, "x:4x6")


def test_the_sizes_that_work_are_accepted() -> None:
    hold(module_of(lambda x: x * 2 if x.shape[0] > 4 else x), "x:N=5..5..8x6")
    hold(module_of(lambda x: x * 2 if x.shape[0] > 4 else x), "x:N=2..3..4x6")
    hold(module_of(lambda x: x * 2 if x.shape[0] == 1 else x), "x:N=2..5..8x6")
    hold(module_of(lambda x: x * 2 if x.shape[0] == 1 else x), "x:1x6")


def test_a_size_of_one_is_accepted_where_only_torch_asks_for_it() -> None:
    class Contiguous(nn.Module):
        """Torch asks whether N is 1 to know how a transposed tensor lies in memory; no value depends on it."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.transpose(0, 1).contiguous().view(-1, x.shape[0])

    hold(Contiguous(), "x:N=1..5..8x6")


def test_dimensions_that_must_be_equal_are_refused_unless_they_are_one() -> None:
    class Sum(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    error = refused(Sum(), "x:N=1..2..8x6", "y:M=1..3..8x6")
    assert "forward raises RuntimeError" in error.what
    assert "need one name" in error.fix
    one_size_to_trace_at = refused(Sum(), "x:N=1..2..2x6", "y:M=1..2..2x6")
    assert "'N' and 'M' must be equal" in one_size_to_trace_at.what
    hold(Sum(), "x:N=1..2..8x6", "y:Nx6")


def test_control_flow_on_values_is_refused_by_module() -> None:
    error = refused(inside(module_of(lambda x: x * 2 if x.sum() > 0 else x)), "x:N=1..2..8x6")
    assert "control flow" in error.what
    assert "'blocks.1'" in error.where


class Detector(nn.Module):
    """A backbone, and boxes that are chosen of what it gives by their values."""

    def __init__(self, choose: Any) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head, self.choose = nn.Conv2d(8, 4, 1), choose

    def forward(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        boxes = self.head(self.backbone(torch.stack([2.0 * image for image in images])))
        return [self.choose(each) for each in boxes]


def without_operators(boxes: torch.Tensor) -> torch.Tensor:
    raise RuntimeError(
        "Couldn't load custom C++ ops. Please check your torchvision version with torchvision.__version__"
    )


def while_large(boxes: torch.Tensor) -> torch.Tensor:
    while boxes.max() > 1e9:
        boxes = boxes / 2
    return boxes


@pytest.mark.parametrize(
    ("choose", "said"), [(without_operators, r"C\+\+ operators of torchvision"), (while_large, "control flow depends")]
)
def test_of_a_detector_the_part_that_is_a_graph_is_advised(choose: Any, said: str) -> None:
    detector = lived_in(Detector(choose))
    error = refused(detector, "images.0:3x9x9")
    assert re.search(said, error.what)
    told = re.search(r'let the factory return module\.(\w+), with --input "([^"]+)"', error.fix)
    assert told, error.fix
    assert (told[1], told[2]) == ("backbone", "input:1x3x9x9@f32")
    hold(getattr(detector, told[1]), told[2])
    assert not detector.backbone._forward_hooks


def test_a_part_with_few_of_the_weights_is_not_advised() -> None:
    detector = Detector(while_large)
    detector.heavy = nn.Linear(100, 100)  # does not run
    assert "module." not in refused(detector, "images.0:3x9x9").fix


def test_an_operator_without_translation_is_refused_by_operator_and_module() -> None:
    error = refused(inside(module_of(lambda x: torch.linalg.eigh(x)[0])), "x:6x6")
    assert "aten._linalg_eigh" in error.what
    assert "'blocks.1'" in error.where
    assert "test_export_refusals.py line" in error.where


def test_an_error_of_forward_is_said_in_its_own_words_by_module() -> None:
    error = refused(inside(nn.Linear(5, 4)), "x:N=1..2..8x6")
    assert "mat1 and mat2 shapes cannot be multiplied (2x6 and 5x4)" in error.what
    assert "'blocks.1'" in error.where


@pytest.mark.parametrize(
    ("result", "output"), [(lambda x: (x, x.shape[0]), "output.1"), (lambda x: {"a": x, "b": "text"}, "b")]
)
def test_an_output_that_is_no_tensor_is_refused_by_name(result: Any, output: str) -> None:
    assert repr(output) in refused(module_of(result), "x:N=1..2..8x6").where


def test_a_module_without_output_is_refused() -> None:
    assert "no tensor" in refused(module_of(lambda x: None), "x:N=1..2..8x6").what


def test_statistics_of_the_batch_are_not_exported_as_running_ones() -> None:
    """torch exports a batch norm that forward itself puts in training as inference, without a word."""

    class Trains(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.bn.train()
            return self.bn(x)

    error = refused(inside(lived_in(Trains())), "x:N=2..3..8x6")
    assert "batch statistics" in error.what
    assert "'blocks.1.bn'" in error.where
    hold(lived_in(nn.BatchNorm1d(6, track_running_stats=False)), "input:N=2..3..8x6")


@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout])
def test_chance_is_refused(kind: type[nn.Module]) -> None:
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = kind(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.drop.train()(x)

    assert "chance" in refused(Random(), "x:N=2..3..8x6x2x5").what
    hold(nn.Sequential(kind(0.5)), "input:N=2..3..8x6x2x5")


@pytest.mark.parametrize("opset", [OPSETS[0] - 1, OPSETS[-1] + 1, 0, -1])
def test_an_opset_out_of_range_is_refused_with_the_range(opset: int) -> None:
    error = refused(nn.ReLU(), "input:N=1..2..8x6", opset=opset)
    assert error.where == "--opset"
    assert f"{OPSETS[0]} to {OPSETS[-1]}" in error.fix


def test_an_operator_that_the_opset_has_not_for_a_dtype_is_refused() -> None:
    module = nn.Conv1d(3, 4, 1).bfloat16()
    assert "not valid ONNX" in refused(module, "input:2x3x5@bf16", opset=20).what
    export(module, "input:2x3x5@bf16", opset=22)


def test_a_refusal_leaves_the_module_as_it_was() -> None:
    class Keeps(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.kept = x * 2
            return self.kept if x.sum() > 0 else x

    module = Keeps()
    refused(module, "x:N=1..2..8x6")
    assert not hasattr(module, "kept")


@pytest.mark.parametrize("shape", [[2, 3], ["M", 3], ["N", 4], ["N", "T"], ["N", 3, 1], None], ids=str)
def test_a_graph_with_other_sizes_than_asked_is_refused(shape: list[int | str] | None) -> None:
    def graph(dims: list[int | str] | None) -> ir.Model:
        value = ir.Value(name="x", shape=None if dims is None else ir.Shape(dims))
        return ir.Model(ir.Graph([value], [], nodes=[]), ir_version=10)

    check_dims(graph(["N", 3]), parse(["x:N=1..2..4x3"]))
    with pytest.raises(InputError, match="fixes the sizes of input 'x'"):
        check_dims(graph(shape), parse(["x:N=1..2..4x3"]))


def test_a_length_that_torch_fixes_on_its_way_to_onnx_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a torch that cannot keep an LSTM's length when it decomposes: it takes the length it traced."""
    monkeypatch.setattr(sys.modules["normdeploy.export.trace"], "dynamic_kernels", contextlib.nullcontext)
    error = refused(nn.LSTM(6, 5), "input:T=2..3..7x2x6")
    assert "fixes the sizes of output 'output.0' to [3, 2, 5]" in error.what


def test_a_generator_of_its_own_is_named() -> None:
    class Noisy(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 3)
            self.generator = torch.Generator().manual_seed(0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + torch.rand(3, generator=self.generator)

    error = refused(inside(Noisy()), "x:N=1..2..4x3@f32")
    assert "draws random numbers from a generator of its own" in error.what
    assert "blocks.1" in error.where


@pytest.mark.parametrize("how", ["matrix_exp", "cayley", "householder"])
@pytest.mark.parametrize("layer", ["blocks.1", ""])
def test_an_operator_of_a_parametrization_is_told_with_what_stores_its_weight(how: str, layer: str) -> None:
    """The advice is followed: what is called, and a module without the parametrization that takes the weights."""
    torch.manual_seed(0)

    def factory(*, bare: bool) -> nn.Module:
        linear = Plain()
        made = linear if bare else parametrizations.orthogonal(linear, orthogonal_map=how)
        return (inside(made) if layer else made).eval()

    module, x = factory(bare=False), torch.randn(3, 6)
    wanted = module.double()(x.double()).detach()
    module.float()
    fix = refused(module, "x:N=1..2..4x6").fix
    (call,) = re.findall(r"torch\.nn\.utils\.parametrize\.remove_parametrizations\(.*?\), '\w+'\)", fix)
    eval(call, {"torch": torch, "module": module})
    bare = factory(bare=True)
    bare.load_state_dict(module.state_dict())
    np.testing.assert_allclose(bare(x).detach(), wanted, rtol=1e-4, atol=1e-5)
    hold(bare, "x:N=1..2..4x6")


def test_an_operator_beside_a_parametrization_is_told_as_any_other() -> None:
    module = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 6)), module_of(torch.linalg.matrix_exp))
    assert "remove_parametrizations" not in refused(inside(module), "x:6x6").fix
