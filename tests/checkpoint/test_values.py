"""What a module holds is what the file has: no codes, one value in shared memory, and small ones are counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from converting import converted
from safetensors.torch import save_file
from torch import Tensor, nn

from normdeploy.checkpoint.files import read
from normdeploy.checkpoint.fit import fit
from normdeploy.checkpoint.names import Names
from normdeploy.errors import InputError


def loaded(module: nn.Module, contents: Any, file: Path = Path("w.pt")) -> tuple[str, ...]:
    return fit(module, contents, file=file, names=Names())


def refusal(module: nn.Module, contents: Any, file: Path = Path("w.pt")) -> InputError:
    with pytest.raises(InputError) as caught:
        loaded(module, contents, file)
    return caught.value


# Memory that names share

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda weight: weight.t(),
    "a slice": lambda weight: weight[:2],
    "a part of each row": lambda weight: weight[:, 1:3],
    "every other row": lambda weight: weight[::2],
    "flat": lambda weight: weight.view(-1),
}


class Viewed(nn.Module):
    """Its second weight is a view of the first."""

    def __init__(self, view: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Parameter(view(self.a.weight.data))


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shared_memory_cannot_hold_two_values(view: str, dtype: torch.dtype) -> None:
    module = Viewed(VIEWS[view])
    contents = {name: torch.randn_like(value).to(dtype) for name, value in module.state_dict().items()}
    what = refusal(module, contents).what
    assert "a.weight" in what
    assert "b" in what
    assert "shares memory" in what
    contents["b"] = VIEWS[view](contents["a.weight"]).clone()
    loaded(module, contents)
    assert torch.equal(module.b, contents["b"].float())


def test_neighbours_in_one_memory_share_nothing() -> None:
    module, flat = nn.ParameterDict(), torch.zeros(8)
    module["a"], module["b"] = nn.Parameter(flat[:4]), nn.Parameter(flat[4:])
    assert loaded(module, {"a": torch.ones(4), "b": torch.full((4,), 2.0)}) == ()
    assert torch.equal(flat, torch.tensor([1.0] * 4 + [2.0] * 4))


class Halved(nn.Module):
    """Its hook turns the layout of an older version into its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_load_state_dict_pre_hook(self._double)

    def _double(self, _module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        state[f"{prefix}weight"] = state[f"{prefix}weight"] * 2


def test_what_a_hook_changes_is_told() -> None:
    module = Halved()
    assert loaded(module, {"weight": torch.ones(2)}) == (
        "changed by the module's own code as they were loaded: weight",
    )
    assert torch.equal(module.weight, torch.full((2,), 2.0))


def test_a_scalar_of_old_is_no_change() -> None:
    module = nn.ParameterDict({"g": nn.Parameter(torch.tensor(3.0))})
    assert loaded(module, {"g": torch.tensor([5.0])}) == ()
    assert module["g"].item() == 5


# Codes


CODES = {
    "int8": torch.ones(3, 4, dtype=torch.int8),
    "uint8": torch.ones(3, 4, dtype=torch.uint8),
    "int64": torch.ones(3, 4, dtype=torch.int64),
    "bool": torch.ones(3, 4, dtype=torch.bool),
    "float8_e4m3fn": torch.ones(3, 4).to(torch.float8_e4m3fn),
    "float8_e5m2": torch.ones(3, 4).to(torch.float8_e5m2),
}


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("more", [{}, {"weight_scale": torch.ones(3)}, {"scales": torch.ones(3)}])
def test_codes_are_no_weights(dtype: str, more: dict[str, Tensor]) -> None:
    error = refusal(nn.Linear(4, 3), {"weight": CODES[dtype], "bias": torch.ones(3), **more})
    assert error.what == f"the file holds codes where the module has real numbers, 1 in all: weight ({dtype})"
    assert "dequantizing" in error.fix
    assert "--ignore-unexpected" not in error.fix, "which would lead to the codes"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_the_command_makes_plain_numbers_of_them(tmp_path: Path, suffix: str) -> None:
    contents = {f"w_{name}": codes for name, codes in CODES.items()}
    contents["w_f16"] = torch.full((3, 4), 0.5, dtype=torch.float16)
    file = tmp_path / f"a net{suffix}"
    torch.save(contents, file) if suffix == ".pt" else save_file(contents, file)
    module = nn.ParameterDict({name: nn.Parameter(torch.zeros(3, 4)) for name in contents})
    error = refusal(module, read(file).data, file)
    assert f"{len(CODES)} in all" in error.what
    converted(error.fix)
    notes = loaded(module, read(tmp_path / "a net.numbers.pt").data)
    assert all("exactly" in note for note in notes)
    for name, value in contents.items():
        assert torch.equal(module[name], value.float()), name


def test_whole_numbers_may_be_whole_and_masks_may_be_buffers() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("mask", torch.zeros(2))
    module.register_buffer("index", torch.zeros(2, dtype=torch.int64))
    contents = {
        **module.state_dict(),
        "mask": torch.tensor([True, False]),
        "index": torch.tensor([1, 0]).to(torch.int8),
    }
    loaded(module, contents)
    assert module.mask.tolist() == [1.0, 0.0]
    assert module.index.tolist() == [1, 0]
    codes = {**module.state_dict(), "mask": torch.ones(2, dtype=torch.int8)}
    assert "codes" in refusal(module, codes).what


# Small values


def test_what_becomes_zero_or_loses_digits_is_counted() -> None:
    module = nn.Linear(4, 1, bias=False)
    (rounded, small) = loaded(module, {"weight": torch.tensor([[1.0, 1e-60, 3e-45, -1e-50]], dtype=torch.float64)})
    assert rounded == "float64 in the file and float32 in the module, rounded: weight"
    assert small == "too small for float32: 2 values of the file became 0 and 1 lost digits, of 4 in weight"


def test_half_precision_counts_them_too() -> None:
    notes = loaded(nn.Linear(4, 1, bias=False).half(), {"weight": torch.tensor([[1.0, 1e-9, 1e-5, 0.0]])})
    assert notes[1] == "too small for float16: 1 values of the file became 0 and 1 lost digits, of 4 in weight"


@pytest.mark.parametrize("value", [1e-60, -1e-50])
def test_weights_that_vanish_are_refused(value: float) -> None:
    contents = {"weight": torch.tensor([[value, 0.0]], dtype=torch.float64)}
    assert "do not survive" in refusal(nn.Linear(2, 1, bias=False), contents).what
    loaded(nn.Linear(2, 1, bias=False), {"weight": torch.zeros(1, 2, dtype=torch.float64)})
