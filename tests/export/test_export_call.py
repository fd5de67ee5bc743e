"""Forward is called with containers built of named tensors, and with values that are fixed."""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict
from typing import Annotated, Any, NamedTuple, TypedDict

import numpy as np
import pytest
import torch
from exporting import Call, export, hold, run
from torch import nn

from normdeploy import specs as input_specs
from normdeploy.errors import InputError
from normdeploy.export import arguments, bind_inputs
from normdeploy.runtime.eager import EagerRunner


@dataclasses.dataclass
class Batch:
    image: torch.Tensor
    scale: float = 1.0
    views: tuple[torch.Tensor, ...] = ()


class Pair(NamedTuple):
    left: torch.Tensor
    right: torch.Tensor


class Typed(TypedDict):
    image: torch.Tensor


class Encoding(UserDict[str, Any]):
    """As tokenizers return them: a mapping whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self.data[name]


class ByDict(nn.Module):
    def forward(self, batch, weight: float = 1.0):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN201 # no annotations
        return batch["image"] * weight + batch["more"]["bias"]


class ByList(nn.Module):
    def forward(self, views: list[torch.Tensor]) -> torch.Tensor:
        assert isinstance(views, list)
        return views[0] - 2 * views[1]


class ByTuple(nn.Module):
    def forward(self, views: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        left, right = views
        return left - 2 * right if isinstance(views, tuple) else left


class ByDataclass(nn.Module):
    def forward(self, batch: Batch | None) -> torch.Tensor:
        assert batch is not None
        return batch.image * batch.scale - sum(batch.views)


class ByNamedTuple(nn.Module):
    def forward(self, pair: Annotated[Pair, "documented"]) -> torch.Tensor:
        return pair.left - 2 * pair.right


class ByTypedDict(nn.Module):
    def forward(self, batch: Typed) -> torch.Tensor:
        return batch["image"] * 2


class ByMapping(nn.Module):
    def forward(self, encoding: Encoding) -> torch.Tensor:
        return encoding.image * 3


class Nested(nn.Module):
    def forward(self, batches: dict[str, list[Batch]]) -> torch.Tensor:
        return batches["train"][0].image - batches["train"][1].image * batches["train"][1].scale


class Variable(nn.Module):
    def forward(self, first: torch.Tensor, *images: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
        return first * weight - 2 * images[0] + 3 * images[1]


class PositionalOnly(nn.Module):
    def forward(self, x: torch.Tensor, /, y: torch.Tensor, double: bool = False) -> torch.Tensor:
        return x - (2 * y if double else y)


class Flag(nn.Module):
    def forward(self, x: torch.Tensor, return_dict: bool, mode: str, **more: Any) -> Any:
        assert mode == "sum"
        y = x * more["gain"]
        return {"logits": y} if return_dict else y


CASES: dict[str, tuple[nn.Module, list[str], Call]] = {
    "dict": (
        ByDict(),
        ["batch.image:N=1..2..4x3", "batch.more.bias:Nx3", "weight=2.5"],
        lambda m, t: m({"image": t["batch.image"], "more": {"bias": t["batch.more.bias"]}}, 2.5),
    ),
    "list": (
        ByList(),
        ["views.1:N=1..2..4x3", "views.0:Nx3"],
        lambda m, t: m([t["views.0"], t["views.1"]]),
    ),
    "tuple": (ByTuple(), ["views.0:N=1..2..4x3", "views.1:Nx3"], lambda m, t: m((t["views.0"], t["views.1"]))),
    "dataclass": (
        ByDataclass(),
        ["batch.image:N=1..2..4x3", "batch.views.0:Nx3", "batch.scale=-2"],
        lambda m, t: m(Batch(t["batch.image"], -2, (t["batch.views.0"],))),
    ),
    "named tuple": (
        ByNamedTuple(),
        ["pair.right:N=1..2..4x3", "pair.left:Nx3"],
        lambda m, t: m(Pair(t["pair.left"], t["pair.right"])),
    ),
    "typed dict": (ByTypedDict(), ["batch.image:N=1..2..4x3"], lambda m, t: m({"image": t["batch.image"]})),
    "mapping": (ByMapping(), ["encoding.image:2x3"], lambda m, t: m(Encoding(image=t["encoding.image"]))),
    "nested": (
        Nested(),
        ["batches.train.0.image:N=1..2..4x3", "batches.train.1.image:Nx3", "batches.train.1.scale=0.5"],
        lambda m, t: m({"train": [Batch(t["batches.train.0.image"]), Batch(t["batches.train.1.image"], 0.5)]}),
    ),
    "variable": (
        Variable(),
        ["first:N=1..2..4x3", "images.0:Nx3", "images.1:Nx3", "weight=4"],
        lambda m, t: m(t["first"], t["images.0"], t["images.1"], weight=4),
    ),
    "positional only": (
        PositionalOnly(),
        ["y:N=1..2..4x3", "x:Nx3", "double=True"],
        lambda m, t: m(t["x"], t["y"], double=True),
    ),
    "flag": (
        Flag(),
        ["x:N=1..2..4x3", "return_dict=True", "mode=sum", "gain=7"],
        lambda m, t: m(t["x"], True, "sum", gain=7),
    ),
}


@pytest.mark.parametrize(("module", "texts", "call"), CASES.values(), ids=CASES.keys())
def test_the_graph_computes_what_forward_does_with_containers(module: nn.Module, texts: list[str], call: Call) -> None:
    specs = input_specs.parse(texts)
    exported = hold(module, *texts, call=call)
    assert exported.inputs == tuple(spec.name for spec in specs)
    assert input_specs.parse(specs.texts()).texts() == specs.texts()
    assert copy.deepcopy(specs).values == specs.values
    arrays = {spec.name: np.full(spec.shape({"N": 1}), 2, np.float32) for spec in specs}
    np.testing.assert_array_equal([*EagerRunner(module, specs)(arrays).values()], [*run(exported, arrays).values()])


def test_outputs_take_the_names_that_are_given() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x * 2, x - 1

    specs = input_specs.parse(["x:N=1..2..4x3"]).with_outputs(["double", "less.0"])
    from normdeploy.export import to_graph

    exported = to_graph(Two().eval(), specs)
    assert exported.outputs == ("double", "less.0")
    arrays = {"x": np.array([[3, 4, 5]], np.float32)}
    assert {name: array.tolist() for name, array in run(exported, arrays).items()} == {
        "double": [[6, 8, 10]],
        "less.0": [[2, 3, 4]],
    }
    assert list(EagerRunner(Two(), specs)(arrays)) == ["double", "less.0"]
    with pytest.raises(InputError, match="returns 2 tensors, and 1 names are given") as caught:
        to_graph(Two().eval(), input_specs.parse(["x:2x3"]).with_outputs(["one"]))
    assert "output.0, output.1" in caught.value.fix
    for names in (["a", "a"], ["x"], [" "]):
        with pytest.raises(InputError, match="cannot be the name of an output"):
            input_specs.parse(["x:2x3"]).with_outputs(names)


@pytest.mark.parametrize(
    ("module", "texts", "said"),
    [
        (ByDict(), ["image:2x3"], "no input 'image'; forward requires the input 'batch'"),
        (ByDict(), ["batch:2x3"], "forward raises"),
        (ByList(), ["views:2x3"], "forward raises|AssertionError"),
        (Variable(), ["first:2x3", "images:2x3"], r"forward takes \*images, so images.0"),
        (Flag(), ["x:2x3"], "requires the input 'return_dict'"),
        (ByDataclass(), ["batch.scale=2", "batch.views.0:2x3"], "'batch' cannot be built"),
        (ByDataclass(), ["batch.image:2x3", "batch.extra:2x3"], "'batch' cannot be built"),
    ],
    ids=["key alone", "dict as a tensor", "list as a tensor", "variable", "flag", "field missing", "field unknown"],
)
def test_what_does_not_fit_is_refused_with_how_to_name_it(module: nn.Module, texts: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        export(module, *texts)
    assert all(words in caught.value.fix for words in ("batch.image", "views.0", "--input-value", "wrap the module"))


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["x:2", "x.a:2"], "is a tensor and holds tensors"),
        (["x:2", "x=3"], "more than once"),
        (["x.a:2", "x.a=3"], "more than once"),
        (["x.0:2", "x.2:2"], "the places 0, 2 are no list"),
        (["x.1:2"], "the places 1 are no list"),
        (["x.0:2", "x.a:2"], "the places 0, a are no list"),
        (["x.a:1..4", "x_a:1..4"], "the same dimensions' names"),
        (["x..a:2"], "cannot be the name of an input"),
        (["0.x:2"], "cannot be the name of an input"),
        (["x.a-b:2"], "cannot be the name of an input"),
        (["a-b=2"], "cannot be read"),
    ],
)
def test_names_that_make_no_container_are_refused(texts: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        input_specs.parse(texts)


def test_values_are_literals_or_strings() -> None:
    texts = ["x:2", "a=None", "b=[1, 2.5]", "c=mean", "d='3'", "e=", "f=-1e-3", "g={'k': (1, 2)}", "h=a=b"]
    values = {"a": None, "b": [1, 2.5], "c": "mean", "d": "3", "e": "", "f": -1e-3, "g": {"k": (1, 2)}, "h": "a=b"}
    specs = input_specs.parse(texts)
    assert specs.values == values
    assert input_specs.parse(specs.texts()).values == values


def test_forwards_own_default_stays_where_nothing_is_given() -> None:
    specs = input_specs.parse(["batch.image:2x3", "batch.more.bias:2x3"])
    bind_inputs(ByDict(), specs)
    tensors = {spec.name: torch.ones(2, 3) for spec in specs}
    args, kwargs = arguments(ByDict(), specs, tensors)
    assert args == ()
    assert list(kwargs) == ["batch"]
    assert set(kwargs["batch"]) == {"image", "more"}


def test_an_annotation_that_cannot_be_read_is_passed_over() -> None:
    class Local(nn.Module):
        def forward(self, batch: Missing) -> torch.Tensor:  # type: ignore[name-defined] # noqa: F821
            return batch["x"]

    specs = input_specs.parse(["batch.x:2"])
    assert arguments(Local(), specs, {"batch.x": torch.ones(2)})[1].keys() == {"batch"}
