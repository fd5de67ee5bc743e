from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import names_of, net, prefixed, state
from torch import Tensor, nn

from normdeploy.checkpoint.fit import fit
from normdeploy.checkpoint.names import Names
from normdeploy.errors import InputError

FILE = Path("w.pt")


def loaded(contents: Any, flags: str = "", module: nn.Module | None = None) -> tuple[str, ...]:
    """Fit into a fresh module and hold it to the values of ``state()``; return the notes."""
    module = module or net()
    notes = fit(module, contents, file=FILE, names=names_of(flags))
    for name, value in state().items():
        assert torch.equal(module.state_dict()[name], value), name
    return notes


def refusal(contents: Any, flags: str = "", module: nn.Module | None = None) -> InputError:
    with pytest.raises(InputError) as caught:
        fit(module or net(), contents, file=FILE, names=names_of(flags))
    assert caught.value.where == "w.pt"
    assert caught.value.fix
    return caught.value


def test_what_fits_needs_no_note() -> None:
    assert loaded(state()) == ()


def test_key_and_prefix() -> None:
    assert loaded({"state_dict": state(), "epoch": 3}, "--weights-key state_dict") == ()
    assert loaded({"ema": {"module": state()}}, "--weights-key ema.module") == ()
    assert loaded(prefixed("module.", state()), "--strip-prefix module.") == ()
    assert (
        loaded({"s": prefixed("module._orig_mod.", state())}, "--weights-key s --strip-prefix module._orig_mod.") == ()
    )


def test_a_prefix_that_is_not_there_is_noted() -> None:
    (note,) = loaded(state(), "--strip-prefix module.")
    assert "'module.'" in note
    assert "changed nothing" in note


def test_missing_unexpected_and_misshaped_are_listed_together() -> None:
    contents = state()
    del contents["1.running_var"]
    contents["2.weight"] = torch.ones(1)
    contents["0.weight"] = torch.ones(4, 5)
    contents["0.bias"] = torch.ones(5)
    lines = refusal(contents).what.splitlines()
    assert lines == [
        "the weights do not fit the module",
        "  1 missing (the module has it, the file does not): 1.running_var",
        "  1 unexpected (the file has it, the module does not): 2.weight",
        "  2 another shape: 0.weight ((4, 5) in the file, (4, 3) in the module), "
        "0.bias ((5,) in the file, (4,) in the module)",
    ]


def test_a_broadcastable_shape_is_not_broadcast() -> None:
    assert "another shape" in refusal({**state(), "0.bias": torch.ones(1)}).what
    assert "another shape" in refusal({**state(), "0.weight": torch.ones(1, 3)}).what


def test_long_lists_are_cut_with_their_number() -> None:
    contents = {**state(), **{f"x{index:02}": torch.ones(1) for index in range(30)}}
    assert refusal(contents).what.endswith("x19 and 10 more")


LAYOUTS = {
    "--strip-prefix module.": prefixed("module.", state()),
    "--strip-prefix _orig_mod.module.": prefixed("_orig_mod.module.", state()),
    "--weights-key state_dict": {"state_dict": state()},
    "--weights-key model": {"epoch": 3, "opt": {"state": {0: {}}}, "model": state()},
    "--weights-key ema.module": {"ema": {"module": state(), "decay": 0.9}},
    "--weights-key state_dict --strip-prefix model.": {"state_dict": prefixed("model.", state())},
    "--weights-key a.b.c --strip-prefix net.": {"a": {"b": {"c": prefixed("net.", state())}}},
}


@pytest.mark.parametrize("flags", LAYOUTS)
def test_the_only_reading_is_applied_and_said_by_options_that_do_the_same(flags: str) -> None:
    (note,) = loaded(LAYOUTS[flags])
    assert note == f"the weights were read as by {flags}, the only way in which they fit"
    assert loaded(LAYOUTS[flags], flags) == ()


def test_a_wrong_option_is_corrected() -> None:
    assert refusal(prefixed("module.", state()), "--strip-prefix model.").fix == "--strip-prefix module."
    contents = {"a": {"0.weight": torch.ones(1)}, "b": state()}
    assert refusal(contents, "--weights-key a").fix == "--weights-key b"
    assert refusal(state(), "--add-prefix model.").fix == "leave these options out"


def test_a_wrong_shape_is_told_at_the_nearest_reading() -> None:
    error = refusal(prefixed("module.", {**state(), "0.weight": torch.ones(9, 9)}))
    assert error.what.startswith(
        "the weights do not fit the module, read as by --strip-prefix module.\n  1 another shape"
    )
    assert "--strip-prefix" not in error.fix


def test_a_key_that_is_not_there_lists_what_is() -> None:
    error = refusal({"model": state(), "epoch": 3}, "--weights-key state_dict")
    assert error.what == "the file has no entry 'state_dict'"
    assert "model, epoch" in error.fix
    assert "module" in refusal({"ema": {"module": state()}}, "--weights-key ema.modul").fix


@pytest.mark.parametrize(
    ("contents", "key", "what"),
    [
        ([torch.ones(2)], None, "the file holds a list, not a state dict"),
        (torch.ones(2), None, "the file holds a Tensor, not a state dict"),
        (None, None, "the file holds a NoneType, not a state dict"),
        ({0: torch.ones(2)}, None, "the file holds a dict, not a state dict"),
        ({"a": torch.ones(2)}, "a", "a holds a Tensor, not a state dict"),
        ({"a": torch.ones(2)}, "a.b", "the file has no entry 'a.b'"),
        ([], "a", "the file has no entry 'a'"),
    ],
)
def test_what_is_no_state_dict(contents: Any, key: str | None, what: str) -> None:
    assert refusal(contents, f"--weights-key {key}" if key else "").what == what


def test_an_empty_state_dict_misses_everything() -> None:
    error = refusal({})
    assert "missing" in error.what
    assert "--model-arg" in error.fix


def test_two_names_that_become_one() -> None:
    contents = {**state(), "module.0.weight": torch.ones(4, 3)}
    assert refusal(contents, "--strip-prefix module.").what.startswith("two entries become '0.weight'")


def test_entries_that_are_not_tensors_are_noted() -> None:
    (note,) = loaded({**state(), "epoch": 3, "config": {"a": 1}})
    assert note == "entries of the file that are not tensors were not loaded: epoch (int), config (dict)"


def test_a_number_where_a_weight_belongs_is_missing() -> None:
    assert "1 missing (the module has it, the file does not): 0.bias" in refusal({**state(), "0.bias": 0.5}).what


# Dtypes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_wider_module_holds_the_same_values_and_says_so(dtype: torch.dtype) -> None:
    module, weight = net(), torch.tensor([[0.5, -3.0, 7.0]] * 4).to(dtype)
    (note,) = fit(module, {**state(), "0.weight": weight}, file=FILE, names=Names())
    assert torch.equal(module[0].weight.double(), weight.double())
    name = str(dtype).removeprefix("torch.")
    assert note == f"{name} in the file and float32 in the module, converted exactly: 0.weight"


def test_rounding_is_said_and_exact_narrowing_is_told_from_it() -> None:
    contents = {name: value.double() if value.is_floating_point() else value for name, value in state().items()}
    contents["0.weight"] = contents["0.weight"] / 3
    contents["0.bias"] = torch.tensor([1.0, float("inf"), float("nan"), -0.0], dtype=torch.float64)
    module = net()
    rounded, exact = sorted(fit(module, contents, file=FILE, names=Names()), key=lambda note: "exactly" in note)
    assert rounded == "float64 in the file and float32 in the module, rounded: 0.weight"
    assert exact.startswith("float64 in the file and float32 in the module, converted exactly: 0.bias,")
    assert exact.endswith("and 2 more")
    assert torch.equal(module[0].weight, contents["0.weight"].float())


@pytest.mark.parametrize(
    ("name", "value", "pair"),
    [
        ("0.bias", torch.tensor([1e39, 0, 0, 0], dtype=torch.float64), "float64 → float32"),
        ("0.bias", torch.ones(4, dtype=torch.complex64), "complex64 → float32"),
        ("1.running_mean", torch.full((4,), 2**24 + 1), "int64 → float32"),
        ("0.bias", torch.full((4,), 1e-60, dtype=torch.float64), "float64 → float32"),
        ("1.num_batches_tracked", torch.tensor(1.5), "float32 → int64"),
        ("1.num_batches_tracked", torch.tensor(float("nan")), "float32 → int64"),
    ],
)
def test_values_that_a_dtype_destroys_are_refused(name: str, value: Tensor, pair: str) -> None:
    assert refusal({**state(), name: value}).what == f"the values of {name} do not survive the module's dtype: {pair}"


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_codes_of_a_quantized_weight_are_no_values_of_it(dtype: torch.dtype) -> None:
    codes = torch.ones(4, 3).to(dtype)
    error = refusal({**state(), "0.weight": codes, "0.SCB": torch.ones(4)}, "--ignore-unexpected 0.SCB")
    assert error.what.startswith("the file holds codes where the module has real numbers, 1 in all: 0.weight")
    counted = {**state(), "1.running_mean": torch.ones(4, dtype=torch.int64)}
    assert "converted exactly" in fit(net(), counted, file=FILE, names=Names())[0]  # a buffer may have been counted


def test_overflow_into_a_half_module_is_refused() -> None:
    contents = {**state(), "0.bias": torch.tensor([1e5, 0, 0, 0])}
    assert "0.bias do not survive the module's dtype: float32 → float16" in refusal(contents, module=net().half()).what


# What torch's own loading knows


def test_a_batch_norm_from_before_batches_were_counted() -> None:
    contents = state()
    del contents["1.num_batches_tracked"]
    assert fit(net(), contents, file=FILE, names=Names()) == ()


class Versioned(nn.Module):
    """Its weight was stored halved before version 2."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, metadata: Any, *rest: Any) -> None:
        if metadata.get("version", 1) < 2:
            state[f"{prefix}weight"] = state[f"{prefix}weight"] * 2
        super()._load_from_state_dict(state, prefix, metadata, *rest)


@pytest.mark.parametrize("prefix", ["", "module.", "a.b."])
def test_the_versions_of_saved_modules_reach_their_hooks(prefix: str) -> None:
    saved = nn.Sequential(Versioned())
    nn.init.ones_(saved[0].weight)
    outer: nn.Module = saved
    for part in reversed(prefix.split(".")[:-1]):
        outer = nn.ModuleDict({part: outer})
    module = nn.Sequential(Versioned())
    contents = outer.state_dict()
    assert isinstance(contents, OrderedDict)
    fit(module, contents, file=FILE, names=Names(strip=prefix))
    assert torch.equal(module[0].weight, torch.ones(2))
    fit(module, dict(contents), file=FILE, names=Names(strip=prefix))
    assert torch.equal(module[0].weight, torch.full((2,), 2.0)), "without versions it is an old one"


class Refusing(nn.Linear):
    def _load_from_state_dict(self, *_: Any) -> None:
        raise ValueError("saved by another library")


def test_a_hook_that_refuses_is_quoted() -> None:
    error = refusal({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, module=Refusing(2, 2))
    assert error.what.endswith("1 refused by the module: saved by another library")


class Extra(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"scale": 1}

    def set_extra_state(self, state: Any) -> None:
        self.scale = state["scale"]


def test_extra_state_is_loaded_though_it_is_no_tensor() -> None:
    module, contents = Extra(2, 2), Extra(2, 2).state_dict()
    contents["_extra_state"] = {"scale": 5}
    assert fit(module, contents, file=FILE, names=Names()) == ()
    assert module.scale == 5
    del contents["_extra_state"]
    assert (
        "1 missing (the module has it, the file does not): _extra_state" in refusal(contents, module=Extra(2, 2)).what
    )


def test_a_lazy_module_takes_the_shapes_of_the_file() -> None:
    module = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d())
    assert loaded(state(), module=module) == ()
    error = refusal({**state(), "extra": torch.ones(1)}, module=nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d()))
    assert error.what.endswith("1 unexpected (the file has it, the module does not): extra")


# One tensor under two names


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embed.weight


def test_a_tied_name_that_the_file_leaves_out_is_noted() -> None:
    module, weight = Tied(), torch.randn(4, 3)
    (note,) = fit(module, {"embed.weight": weight}, file=FILE, names=Names())
    assert note == "head.weight is not in the file: it is tied to embed.weight"
    assert torch.equal(module.head.weight, weight)
    assert fit(Tied(), {"embed.weight": weight, "head.weight": weight.clone()}, file=FILE, names=Names()) == ()


def test_tied_names_must_agree_in_the_file() -> None:
    weight = torch.randn(4, 3)
    other = weight.clone()
    other[0, 0] += 1
    error = refusal({"embed.weight": weight, "head.weight": other}, module=Tied())
    assert error.what == "head.weight and embed.weight are one tensor in the module, but differ in the file"


def test_a_tied_name_does_not_excuse_another() -> None:
    class More(Tied):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(4, 3))

    error = refusal({"embed.weight": torch.ones(4, 3)}, module=More())
    assert "1 missing (the module has it, the file does not): bias" in error.what
    assert "2 missing" in refusal({"bias": torch.ones(4, 3)}, module=More()).what


def test_empty_tensors_share_nothing() -> None:
    module = nn.ParameterDict({"a": nn.Parameter(torch.zeros(0, 2)), "b": nn.Parameter(torch.zeros(0, 2))})
    assert (
        "1 missing (the module has it, the file does not): b" in refusal({"a": torch.zeros(0, 2)}, module=module).what
    )


def test_where_two_entries_fit_both_are_named() -> None:
    with pytest.raises(InputError) as caught:
        fit(net(), {"ema": state(), "epoch": 3, "model": state()}, file=FILE, names=Names())
    assert "--weights-key ema, or --weights-key model" in caught.value.fix
    assert "choose" in caught.value.fix
