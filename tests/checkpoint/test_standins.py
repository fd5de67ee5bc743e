"""What training scripts store beside the weights does not keep them from being read, and nothing of it is made."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import fractions
import types
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import net, same, state
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from normdeploy.checkpoint.files import read
from normdeploy.checkpoint.fit import fit
from normdeploy.checkpoint.names import Names
from normdeploy.errors import InputError

BESIDE: dict[str, Any] = {
    "arguments": argparse.Namespace(lr=0.1, data=Path("/data"), steps=[1, 2]),
    "namespace": types.SimpleNamespace(lr=0.1),
    "path": Path("/data"),
    "date": {"begun": datetime.datetime(2026, 1, 2), "took": datetime.timedelta(seconds=3)},
    "metrics": collections.defaultdict(list, loss=[1.0, 0.5]),
    "types": collections.defaultdict(dict, a={"b": 1}),
    "last losses": collections.deque([1.0, 0.5], maxlen=8),
    "best": np.float64(0.75),
    "history": np.arange(6.0).reshape(2, 3),
    "objects": np.array([None, "text"], dtype=object),
    "names": np.array(["one", "two"]),
    "identity": uuid.UUID(int=7),
    "a method": collections.deque.append,
    "ratio": fractions.Fraction(1, 3),
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("zipped", [True, False])
def test_it_is_left_out(name: str, zipped: bool, tmp_path: Path) -> None:
    path, module = tmp_path / "w.pt", net()
    torch.save({"model": state(), name: BESIDE[name]}, path, _use_new_zipfile_serialization=zipped)
    fit(module, read(path).data, file=path, names=Names())
    assert same(module.state_dict(), state())


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_, np.complex64, ">f4"]
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_are_kept_to_the_bit(dtype: Any, order: Any, tmp_path: Path) -> None:
    array = np.asarray(np.arange(6).reshape(2, 3) % 2, dtype=dtype, order=order)
    torch.save({"0.weight": array, "0.bias": array[:1, ::2]}, tmp_path / "w.pt")
    found = read(tmp_path / "w.pt").data
    np.testing.assert_array_equal(found["0.weight"].numpy(), array)
    np.testing.assert_array_equal(found["0.bias"].numpy(), array[:1, ::2])
    assert found["0.weight"].numpy().dtype == array.dtype.newbyteorder("=")


def test_weights_that_are_arrays_are_loaded(tmp_path: Path) -> None:
    torch.save({"model": {name: value.numpy() for name, value in state().items()}}, tmp_path / "w.pt")
    module = net()
    fit(module, read(tmp_path / "w.pt").data, file=tmp_path / "w.pt", names=Names())
    assert same(module.state_dict(), state())


class Claimed:
    """An array that claims what it has not: the words of NumPy's own pickles, with others in them."""

    def __init__(self, *state: Any) -> None:
        self.state = state

    def __reduce__(self) -> tuple[Any, ...]:
        maker, arguments, _ = np.arange(1).__reduce__()  # type: ignore[misc]  # which has three
        return maker, arguments, self.state


@pytest.mark.parametrize(
    "claimed",
    [
        (1, (1 << 40,), np.dtype("f4"), False, b"1234"),
        (1, (2,), np.dtype("f4"), False, b"1234"),
        (1, (-1, 0), np.dtype("f4"), False, b"1234"),
        (1, "two", np.dtype("f4"), False, b"1234"),
        (1, (1,), np.dtype("f4")),
    ],
)
def test_an_array_that_claims_what_it_has_not_is_damage(claimed: tuple[Any, ...], tmp_path: Path) -> None:
    torch.save({"w": Claimed(*claimed)}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="truncated or damaged"):
        read(tmp_path / "w.pt")


class Ran(enum.Enum):
    NEVER = 1


class Calls:
    """Stored as a method of a file's path that is called."""

    def __init__(self, path: Path | None) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (getattr, (self.path, "unlink")) if self.path else (Calls(Path("w.pt")), ())

    def __call__(self) -> None: ...


def test_a_method_that_is_stored_is_never_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"0.weight": torch.ones(2), "x": Calls(None)}, tmp_path / "w.pt")
    with pytest.raises(InputError):
        read(tmp_path / "w.pt")
    assert (tmp_path / "w.pt").exists()


def test_what_is_no_stand_in_is_refused_by_its_name(tmp_path: Path) -> None:
    torch.save({"model": state(), "arguments": argparse.Namespace(), "mode": Ran.NEVER}, tmp_path / "w.pt")
    with pytest.raises(InputError, match="runs code") as caught:
        read(tmp_path / "w.pt")
    assert "Ran" in caught.value.what


def test_what_other_libraries_allow_is_not_read_either_and_stays_allowed(tmp_path: Path) -> None:
    before = get_safe_globals()
    torch.save({"model": state(), "mode": Ran.NEVER}, tmp_path / "w.pt")
    try:
        add_safe_globals([Ran])
        with pytest.raises(InputError, match="runs code"):
            read(tmp_path / "w.pt")
        assert Ran in get_safe_globals()
    finally:
        clear_safe_globals()
        add_safe_globals(before)
