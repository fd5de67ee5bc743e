"""Inputs bind by forward's parameter names; outputs of any nesting have stable names."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from exporting import export, hold, run
from torch import nn
from torch.utils import _pytree as pytree

from normdeploy import specs as input_specs
from normdeploy.errors import InputError
from normdeploy.export import bind_inputs, example_inputs, flatten_outputs

A, B, C = torch.zeros(1), torch.ones(2), torch.full((3,), 2.0)


@dataclasses.dataclass
class Scores:
    logits: torch.Tensor
    hidden: tuple[torch.Tensor, ...] | None = None
    loss: torch.Tensor | None = None


class ModelOutput(OrderedDict[str, Any]):
    """As transformers has them: a mapping and a tuple-like at once, registered with pytree without keys."""


pytree.register_pytree_node(
    ModelOutput, lambda m: (list(m.values()), list(m)), lambda v, k: ModelOutput(zip(k, v, strict=True))
)


class Box:
    def __init__(self, *tensors: torch.Tensor) -> None:
        self.tensors = tensors

    def __repr__(self) -> str:  # names the tests, in every process alike
        return f"Box{self.tensors}"


pytree.register_pytree_node(Box, lambda box: (list(box.tensors), None), lambda v, _: Box(*v))
Pair = namedtuple("Pair", "left right")


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (A, ["output"]),
        ((A, B), ["output.0", "output.1"]),
        ([A, [B, C]], ["output.0", "output.1.0", "output.1.1"]),
        ({"logits": A, "hidden_states": (B, C)}, ["logits", "hidden_states.0", "hidden_states.1"]),
        ({"b": A, "a": B}, ["b", "a"]),
        ({"a": None, "b": [None, A]}, ["b.1"]),
        ({3: A, "3": B}, ["output.3", "3"]),
        (Pair(A, (B,)), ["left", "right.0"]),
        (Scores(A, (B, C)), ["logits", "hidden.0", "hidden.1"]),
        ([Scores(A, None, B)], ["output.0.logits", "output.0.loss"]),
        (ModelOutput(last_hidden_state=A, pooler_output=B), ["last_hidden_state", "pooler_output"]),
        (Box(A, B), ["output.0", "output.1"]),
        ({"box": Box(A)}, ["box.0"]),
        ({"a": {"b": A}, "a.b": B}, ["a.b", "a.b_out"]),
        ({"x": A, "x_out": B, "y": C}, ["x_out", "x_out_out", "y"]),
    ],
    ids=str,
)
def test_outputs_are_named_by_where_they_are(result: Any, names: list[str]) -> None:
    outputs = flatten_outputs(result, specs=input_specs.parse(["x:2"]))
    assert list(outputs) == names
    leaves = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    if not any(dataclasses.is_dataclass(part) for part in (result, *pytree.tree_leaves(result))):
        assert all(mine is leaf for mine, leaf in zip(outputs.values(), leaves, strict=True))


@pytest.mark.parametrize(
    ("result", "named"),
    [({"a": A, "size": 3}, "'size'"), ((A, "text"), "'output.1'"), ([A, {1, 2}], "'output.1'"), (0.5, "'output'")],
    ids=str,
)
def test_what_is_no_tensor_is_refused_by_name(result: Any, named: str) -> None:
    with pytest.raises(InputError, match="the module returns a") as caught:
        flatten_outputs(result)
    assert named in caught.value.where


@pytest.mark.parametrize("result", [None, (), {"a": None}, Scores(None)], ids=str)  # type: ignore[arg-type]
def test_no_tensor_at_all_is_refused(result: Any) -> None:
    with pytest.raises(InputError, match="no tensor"):
        flatten_outputs(result)


class Nested(nn.Module):
    """Every kind of container at once, one tensor twice, an input as it came, and None."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.5, -2.0, 3.0]))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
        total = x * self.scale + y
        return {
            "scores": Scores(total, (total, y)),
            "x": x,
            "parameter": self.scale,
            "constant": torch.arange(3),
            "none": None,
            "pair": Pair(total.sum(-1), ModelOutput(z=total - 1)),
        }


def test_the_graph_has_these_outputs_in_this_order() -> None:
    exported = hold(Nested(), "x:N=1..2..4x3", "y:Nx3")
    assert exported.outputs == (
        *("scores.logits", "scores.hidden.0", "scores.hidden.1", "x_out", "parameter", "constant"),
        *("pair.left", "pair.right.z"),
    )


class Keywords(nn.Module):
    def forward(self, x: torch.Tensor, *, mask: torch.Tensor, scale: float = 2.0, **rest: torch.Tensor) -> torch.Tensor:
        return x * mask * scale - rest["other"]


def test_inputs_bind_by_name_in_any_order_and_to_keyword_arguments() -> None:
    exported = hold(Keywords(), "other:N=1..2..4x3", "mask:Nx3@i64[0..1]", "x:Nx3")
    assert exported.inputs == ("other", "mask", "x")


class Strict(nn.Module):
    def forward(self, ids: torch.Tensor, mask: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return ids * mask if bias is None else ids * mask + bias


@pytest.mark.parametrize(
    ("module", "texts", "said"),
    [
        (Strict(), ["ids:2x3", "msk:2x3"], ["no input 'msk'", "requires the input 'mask'", "forward(ids, mask, bias"]),
        (Strict(), ["ids:2x3"], ["requires the input 'mask'"]),
        (Strict(), [], ["no input is given", "'ids'", "'mask'"]),
    ],
    ids=["unknown and missing", "missing", "nothing"],
)
def test_a_name_that_does_not_fit_is_refused_with_forwards_parameters(
    module: nn.Module, texts: list[str], said: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        export(module, *texts)
    assert all(words in str(caught.value) for words in said), caught.value


def test_an_optional_parameter_may_be_left_out_or_given() -> None:
    bind_inputs(Strict(), input_specs.parse(["ids:2x3", "mask:2x3"]))
    bind_inputs(Strict(), input_specs.parse(["ids:2x3", "mask:2x3", "bias:2x3"]))
    bind_inputs(Keywords(), input_specs.parse(["x:2", "mask:2", "anything:2"]))


def test_example_inputs_have_the_shape_the_dtype_and_an_allowed_value() -> None:
    specs = input_specs.parse(["ids:B=1..4..8x5@i64[3..9]", "x:Bx2@f16", "flag:[]@bool"])
    inputs = example_inputs(specs, {"B": 4})
    assert {name: (tuple(t.shape), t.dtype) for name, t in inputs.items()} == {
        "ids": ((4, 5), torch.int64),
        "x": ((4, 2), torch.float16),
        "flag": ((), torch.bool),
    }
    assert inputs["ids"].unique().tolist() == [3]


def test_an_input_and_a_parameter_may_have_one_name() -> None:
    class Clash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
            self.output = nn.Parameter(torch.tensor([4.0, 5.0, 6.0]))
            self.add = nn.Parameter(torch.tensor([0.5, 0.25, 2.0]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x + self.x) * self.output + self.add

    exported = hold(Clash(), "x:N=1..2..4x3")
    one = run(exported, {"x": np.ones((1, 3), np.float32)})
    np.testing.assert_array_equal(one["output"], [[8.5, 15.25, 26.0]])
