"""Every set of weights in a file is seen, wherever it lies, so that "the only way in which they fit" is true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import names_of, net, same, state

from normdeploy.checkpoint.fit import fit
from normdeploy.checkpoint.places import places
from normdeploy.errors import InputError

ONE = torch.ones(1)


def other() -> dict[str, Any]:
    return {name: value + 1 for name, value in state().items()}


def refused(contents: Any, flags: str = "") -> InputError:
    with pytest.raises(InputError) as caught:
        fit(net(), contents, file=Path("w.pt"), names=names_of(flags))
    return caught.value


def nested(contents: Any, depth: int) -> Any:
    return contents if not depth else {"x": nested(contents, depth - 1)}


HIDDEN: dict[str, tuple[Any, str]] = {
    "behind many": ({"junk": state(), **{f"x{n}": {"w": ONE} for n in range(100)}, "model": other()}, "model"),
    "behind many of its size": (
        {"junk": state(), **{f"x{n}": {f"w{m}": ONE for m in range(9)} for n in range(100)}, "model": other()},
        "model",
    ),
    "deep": ({"old": state(), "a": nested({"model": other()}, 30)}, f"a{'.x' * 30}.model"),
    "in a list": ({"init": state(), "models": [other()]}, "models.0"),
    "in a tuple": ({"init": state(), "models": (1, {"net": other()})}, "models.1.net"),
    "in a list of lists": ({"init": state(), "models": [[], [other()]]}, "models.1.0"),
    "under a number": ({"init": state(), "step": {1000: other()}}, "step.1000"),
    "with a number among its names": ({"ema": state(), "model": {0: 1, **other()}}, "model"),
    "with None among its names": ({"ema": state(), "model": {None: 1, **other()}}, "model"),
    "under a name with dots": ({"ema": state(), "v1.0": {"model": other()}}, "v1.0.model"),
}


@pytest.mark.parametrize("layout", HIDDEN)
def test_a_second_set_is_seen_wherever_it_lies(layout: str) -> None:
    contents, key = HIDDEN[layout]
    error = refused(contents)
    assert error.what == "2 sets of weights in the file fit the module"
    assert f"--weights-key {key}" in error.fix
    module = net()
    fit(module, contents, file=Path("w.pt"), names=names_of(f"--weights-key {key}"))
    assert same(module.state_dict(), other())


def test_a_second_set_behind_many_prefixes_is_seen() -> None:
    many = {f"x{n}.0.weight": torch.ones(4, 3) for n in range(100)}
    both = {
        **{f"a.{name}": each for name, each in state().items()},
        **{f"z.{name}": each for name, each in other().items()},
    }
    assert refused({**many, **both}).what == "2 sets of weights in the file fit the module"


@pytest.mark.parametrize(
    "contents",
    [
        {f"x{n}": {**state()} for n in range(1100)},
        {f"x{n}.{name}": value for n in range(300) for name, value in state().items()},
    ],
)
def test_more_than_can_be_looked_at_is_refused(contents: Any) -> None:
    error = refused(contents)
    assert "more than" in error.what
    assert "--weights-key" in error.fix
    flags = "--weights-key x7" if "x7" in contents else "--strip-prefix x7."
    fit(net(), contents, file=Path("w.pt"), names=names_of(flags))


@pytest.mark.parametrize(
    "contents",
    [
        {"optimizer": {"momentum_buffer": state()}, "epoch": 3},
        {"optimizer_states": [{"exp_avg": state()}]},
        {"trainer": {"optim": state()}},
        {"ema": {"exp_avg": state()}},
        {"opt": {"state": state(), "param_groups": []}},
        {f"optimizer.momentum_buffer.{name}": value for name, value in state().items()},
        {f"exp_avg_sq.{name}": value for name, value in state().items()},
    ],
)
def test_what_an_optimizer_keeps_is_no_set_of_weights(contents: dict[str, Any]) -> None:
    assert "missing" in refused(contents).what
    module = net()
    (note,) = fit(module, {**contents, "model": other()}, file=Path("w.pt"), names=names_of(""))
    assert "--weights-key model" in note
    assert same(module.state_dict(), other())


def test_it_is_read_where_it_is_asked_for() -> None:
    module = net()
    contents = {"optimizer": {"ema": state()}}
    fit(module, contents, file=Path("w.pt"), names=names_of("--weights-key optimizer.ema"))
    assert same(module.state_dict(), state())


def test_what_lies_at_several_keys_is_a_set_at_each_and_nothing_is_walked_twice() -> None:
    shared = state()
    assert [key for key, _ in places({"a": shared, "b": {"c": shared}})] == ["a", "b.c"]
    tree: Any = {"w": ONE}
    for _ in range(60):
        tree = {"a": tree, "b": tree}
    assert len(list(places(tree))) == 2
