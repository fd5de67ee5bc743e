"""Layouts of real checkpoints: the one reading that fits is taken, two or a doubtful one are refused with options."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import names_of, net, prefixed, same, state
from torch import nn

from normdeploy.checkpoint.fit import fit
from normdeploy.errors import InputError

ONE = torch.ones(1)


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.model = inner


def without(part: str, contents: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in contents.items() if part not in name}


def load(contents: Any, flags: str = "", module: nn.Module | None = None) -> tuple[str, ...]:
    module = module or net()
    notes = fit(module, contents, file=Path("w.pt"), names=names_of(flags))
    assert same(module.state_dict(), state())
    return notes


def refused(contents: Any, flags: str = "", module: nn.Module | None = None) -> InputError:
    with pytest.raises(InputError) as caught:
        fit(module or net(), contents, file=Path("w.pt"), names=names_of(flags))
    return caught.value


FITTING: dict[str, tuple[Any, str]] = {
    "lightning, with a loss": (
        {"state_dict": {**prefixed("model.", state()), "criterion.weight": ONE}, "optimizer_states": [{"state": {}}]},
        "--weights-key state_dict --strip-prefix model.",
    ),
    "an averaged model": ({"n_averaged": torch.tensor(7), **prefixed("module.", state())}, "--strip-prefix module."),
    "a part compiled": ({name.replace("1.", "1._orig_mod."): value for name, value in state().items()}, "_orig_mod"),
    "a part in DDP, compiled": (
        {name.replace("1.", "1._orig_mod.module."): value for name, value in state().items()},
        "_orig_mod, module",
    ),
    "fsdp": (prefixed("_fsdp_wrapped_module.", state()), "--strip-prefix _fsdp_wrapped_module."),
    "a profiler's counters": ({**state(), "total_ops": ONE, "0.total_params": ONE}, "2 tensors of the file are not"),
    "positions of another version": ({**state(), "0.position_ids": torch.arange(3)}, "1 tensors of the file are not"),
    "a head beside it": (
        {"m": {**prefixed("teacher.backbone.", state()), "teacher.head.w": ONE, "student.w": ONE}},
        "--weights-key m --strip-prefix teacher.backbone.",
    ),
    "old names of a norm": (
        {{"1.weight": "1.gamma", "1.bias": "1.beta"}.get(name, name): value for name, value in state().items()},
        "beta, gamma",
    ),
    "optimizer beside it": (
        {"net": state(), "optimizer": {"state": {0: {"exp_avg": ONE}}, "param_groups": []}, "scheduler": {"last": 1}},
        "--weights-key net",
    ),
}


@pytest.mark.parametrize("layout", FITTING)
def test_the_only_reading_is_applied_and_said(layout: str) -> None:
    contents, said = FITTING[layout]
    assert said in "\n".join(load(contents))


def test_a_counter_that_is_left_out_is_no_weight() -> None:
    load(without("num_batches", state()), module=_with_counter())


def _with_counter() -> nn.Module:
    module = net()
    module[1].num_batches_tracked.copy_(state()["1.num_batches_tracked"])
    return module


def test_what_is_inside_of_a_wrapper() -> None:
    module = Wrapper(net())
    (note,) = fit(module, state(), file=Path("w.pt"), names=names_of(""))
    assert "--add-prefix model." in note
    assert same(module.model.state_dict(), state())
    module = Wrapper(net())
    fit(module, prefixed("module.", state()), file=Path("w.pt"), names=names_of(""))
    assert same(module.model.state_dict(), state())


# Two that fit


AMBIGUOUS: dict[str, Any] = {
    "ema and model": {"ema": state(), "model": state(), "epoch": 3},
    "ema in a lightning module": {"state_dict": {**prefixed("model.", state()), **prefixed("ema.module.", state())}},
    "teacher and student": {**prefixed("teacher.net.", state()), **prefixed("student.net.", state())},
    "itself and an average": {**state(), **prefixed("ema.", state())},
    "the file and an entry": {**state(), "ema": state()},
    "counters in one of them": {"ema": without("num_batches", state()), "model": state()},
}


@pytest.mark.parametrize("layout", AMBIGUOUS)
def test_where_two_fit_each_has_options_that_choose_it(layout: str) -> None:
    error = refused(AMBIGUOUS[layout])
    assert error.what == "2 sets of weights in the file fit the module"
    options, _, words = error.fix.partition(" (")
    assert "choose" in words
    chosen = [flags for flags in options.split(", or ") if flags]
    assert len(set(chosen)) == 2
    for flags in chosen:
        fit(net(), AMBIGUOUS[layout], file=Path("w.pt"), names=names_of(flags))


def test_each_option_chooses_its_own() -> None:
    other = {name: value + 1 for name, value in state().items()}
    contents = {"ema": {"module": prefixed("m.", other)}, "model": state()}
    modules = []
    for flags in refused(contents).fix.partition(" (")[0].split(", or "):
        module = net()
        fit(module, contents, file=Path("w.pt"), names=names_of(flags))
        modules.append(module.state_dict())
    assert same(modules[0], state()) != same(modules[1], state())
    assert {same(each, other) for each in modules} == {True, False}


# Another network, of which the module would be a part


@pytest.mark.parametrize("prefix", ["", "model."])
def test_layers_that_the_module_lacks_are_not_dropped(prefix: str) -> None:
    deeper = {**state(), "2.weight": torch.ones(4, 4), "2.bias": torch.ones(4)}
    error = refused({"state_dict": prefixed(prefix, deeper)})
    assert f"2 unexpected (the file has it, the module does not): {prefix}2.weight, {prefix}2.bias" in error.what
    flags = error.fix.rpartition("all the same, ")[2]
    assert "--ignore-unexpected" in flags
    load({"state_dict": prefixed(prefix, deeper)}, flags)


def test_a_block_is_not_one_of_many() -> None:
    error = refused({**prefixed("blocks.0.", state()), **prefixed("blocks.1.", state())})
    assert error.what.startswith("2 sets of weights")


def test_positions_that_differ_from_the_modules_are_not_dropped() -> None:
    module = net()
    module[0].register_buffer("index", torch.arange(3), persistent=False)
    fit(module, {**state(), "0.index": torch.arange(3)}, file=Path("w.pt"), names=names_of(""))
    error = refused({**state(), "0.index": torch.tensor([2, 1, 0])}, module=module)
    assert "1 unexpected (the file has it, the module does not): 0.index" in error.what


@pytest.mark.parametrize("name", ["1.running_mean", "1.running_var"])
@pytest.mark.parametrize("pattern", ["*", "1.*", "1.run*"])
def test_statistics_are_missing_only_where_they_are_named(name: str, pattern: str) -> None:
    contents = without(name, state())
    assert f"1 missing (the module has it, the file does not): {name}" in refused(contents).what
    assert name in refused(contents, f"--allow-missing {shlex.quote(pattern)}").what
    module = net()
    notes = fit(module, contents, file=Path("w.pt"), names=names_of("--allow-missing '*.running_*'"))
    assert notes == (f"not in the file, so as the factory made them: {name}",)


# Options


@pytest.mark.parametrize(
    ("contents", "flags"),
    [
        (prefixed("a.", {**state(), "0.more": ONE}), "--rename 'a.*=*' --ignore-unexpected a.0.more"),
        ({name.replace("0.", "first."): value for name, value in state().items()}, "--rename 'first.*=0.*'"),
        ({("w" if name == "0.weight" else name): v for name, v in state().items()}, "--rename w=0.weight"),
        (
            {"s": {f"net.{name.replace('1.', 'norm.')}": value for name, value in state().items()}},
            "--weights-key s --strip-prefix net. --rename 'norm.*=1.*'",
        ),
        ({"s": {f"net.{name.replace('1.', 'norm.')}": v for name, v in state().items()}}, "--rename 'norm.*=1.*'"),
        ({**state(), "head.w": ONE}, "--ignore-unexpected 'head.*'"),
    ],
)
def test_options_do_what_they_say(contents: dict[str, Any], flags: str) -> None:
    refused(contents)
    load(contents, flags)


def test_a_missing_head_needs_its_option() -> None:
    contents = without("0.bias", state())
    assert "0.bias" in refused(contents).what
    module = net()
    before = module[0].bias.clone()
    (note,) = fit(module, contents, file=Path("w.pt"), names=names_of("--allow-missing 0.bias"))
    assert note == "not in the file, so as the factory made them: 0.bias"
    assert torch.equal(module[0].bias, before)


def test_what_changed_nothing_is_said() -> None:
    assert load(state(), "--rename 'a.*=b.*'") == ("--rename a.*=b.* changed nothing",)


@pytest.mark.parametrize("text", ["a", "=b", "a=", "a*b*=c*", "a*=b", "a=b*"])
def test_a_renaming_that_cannot_be_read(text: str) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        names_of(f"--rename {shlex.quote(text)}")


# Hooks of the module


def weight_norm(values: float) -> tuple[nn.Module, dict[str, Any]]:
    """A module of today's weight_norm, and a state dict under the names of its older version."""
    module = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)))
    old = {"0.bias": torch.zeros(2), "0.weight_g": torch.full((2, 1), values), "0.weight_v": torch.ones(2, 3)}
    return module, old


def test_names_that_only_hooks_of_the_module_know() -> None:
    module, old = weight_norm(2.0)
    notes = fit(module, {"state_dict": prefixed("net.", old)}, file=Path("w.pt"), names=names_of(""))
    assert "--weights-key state_dict --strip-prefix net." in notes[0]
    assert torch.allclose(module[0].weight, torch.full((2, 3), 2 / 3**0.5))


def test_two_sets_that_only_hooks_know_have_options() -> None:
    contents = {"ema": weight_norm(3.0)[1], "model": weight_norm(2.0)[1]}
    module = weight_norm(0.0)[0]
    error = refused(contents, module=module)
    assert error.what.startswith("2 sets of weights")
    for flags in error.fix.partition(" (")[0].split(", or "):
        fit(module, contents, file=Path("w.pt"), names=names_of(flags))
        value = 3.0 if "ema" in flags else 2.0
        assert torch.allclose(module[0].weight, torch.full((2, 3), value / 3**0.5))


def test_of_many_sets_some_are_shown() -> None:
    contents = {name: value for n in range(20) for name, value in prefixed(f"blocks.{n}.", state()).items()}
    error = refused(contents)
    assert error.what == "20 sets of weights in the file fit the module"
    assert error.fix.count("--strip-prefix") == 8
    assert "or 12 more (they fit alike" in error.fix


def test_layers_to_leave_out_are_named_by_their_outermost_part() -> None:
    more = {"2.a.weight": ONE, "2.a.bias": ONE, "2.b.weight": ONE, "1.extra": ONE}
    flags = refused({**state(), **more}).fix.rpartition("all the same, ")[2]
    assert flags == "--ignore-unexpected 1.extra --ignore-unexpected '2.*'"
    load({**state(), **more}, flags)
