"""A state dict → into a module, strictly: every name is there, no other one, every shape agrees, and no value is lost.

All that does not fit is listed in one error, with the options that would make it fit, which are tried first.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normdeploy.errors import InputError

_SHOWN = 20
_MAX_TRIALS = 32


def fit(module: nn.Module, contents: Any, *, file: Path, key: str | None, prefix: str) -> tuple[str, ...]:
    """Load ``contents`` of ``file`` into ``module``, in place, and return notes on what was done for that.

    Raises InputError: then the module's values are undefined.
    """
    state, notes = _weights(_entry(contents, key, file), prefix, file)
    misfit, tied = _load(module, state)
    if misfit:
        raise InputError(
            f"the weights do not fit the module\n{misfit}",
            where=str(file),
            fix=_suggestion(module, contents, file) or _look_at(contents, key),
        )
    _require_equal_ties(module, state, file)
    return (*notes, *tied, *_casts(module.state_dict(), state, file))


class _State(dict[str, Any]):
    """A state dict; ``_metadata`` is where torch keeps the version each module was saved at."""

    _metadata: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Misfit:
    missing: Sequence[str] = ()
    unexpected: Sequence[str] = ()
    misshaped: Sequence[str] = ()
    other: Sequence[str] = ()

    def __bool__(self) -> bool:
        return any((self.missing, self.unexpected, self.misshaped, self.other))

    def __str__(self) -> str:
        lists = {
            "missing (the module has it, the file does not)": self.missing,
            "unexpected (the file has it, the module does not)": self.unexpected,
            "another shape": self.misshaped,
            "refused by the module": self.other,
        }
        return "\n".join(f"  {len(names)} {title}: {_listed(names)}" for title, names in lists.items() if names)


def _entry(contents: Any, key: str | None, file: Path) -> Mapping[str, Any]:
    """The state dict at the dotted ``key`` of the file's contents."""
    here = contents
    for part in [] if key is None else key.split("."):
        if not isinstance(here, Mapping) or part not in here:
            entries = _listed([str(name) for name in here]) if isinstance(here, Mapping) else "nothing: it is no dict"
            fix = f"correct --weights-key; at this place the file has {entries}"
            raise InputError(f"the file has no entry {key!r}", where=str(file), fix=fix)
        here = here[part]
    if not _is_state(here):
        what = f"{'the file' if key is None else key} holds a {type(here).__name__}, not a state dict"
        raise InputError(what, where=str(file), fix="save the module's state_dict()")
    return here  # type: ignore[no-any-return] # a Mapping of str, as just seen


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(name, str) for name in value)


def _weights(entry: Mapping[str, Any], prefix: str, file: Path) -> tuple[_State, list[str]]:
    """The entries that are weights, by stripped name, and notes."""
    state = _State()
    if isinstance(versions := getattr(entry, "_metadata", None), Mapping):
        state._metadata = {f"{name}.".removeprefix(prefix).rstrip("."): value for name, value in versions.items()}
    skipped = []
    for name, value in entry.items():
        short = name.removeprefix(prefix)
        if not isinstance(value, Tensor) and not name.endswith("_extra_state"):
            skipped.append(f"{name} ({type(value).__name__})")
        elif short in state:
            fix = "choose another --strip-prefix, or none"
            raise InputError(f"two entries become {short!r} without the prefix {prefix!r}", where=str(file), fix=fix)
        else:
            state[short] = value
    notes = [f"entries of the file that are not tensors were not loaded: {_listed(skipped)}"] if skipped else []
    if prefix and not any(name.startswith(prefix) for name in entry):
        notes.append(f"no name in the file starts with {prefix!r}: --strip-prefix changed nothing")
    return state, notes


def _load(module: nn.Module, state: _State) -> tuple[_Misfit, list[str]]:
    """Load as far as it goes; return what does not fit, and notes on tied names that the file leaves out.

    torch decides what fits, so that a module's own loading hooks (renamings, older versions) count.
    """
    expected = module.state_dict()
    missing, unexpected, error = _try(module, state)
    misshaped: dict[str, str] = {}
    other = []
    if error:
        misshaped = {
            name: f"{name} ({_shape(state[name])} in the file, {_shape(value)} in the module)"
            for name, value in expected.items()
            if None not in (shapes := (_shape(value), _shape(state.get(name)))) and shapes[0] != shapes[1]
        }
        rest = _State({name: value for name, value in state.items() if name not in misshaped})
        rest._metadata = state._metadata
        missing, unexpected, error = _try(module, rest)
        other = [error] if error else []
    absent = [name for name in missing if name not in misshaped]
    ties = {name: twin for group in _ties(expected) for name in group for twin in group if twin in state}
    notes = [f"{name} is not in the file: it is tied to {ties[name]}" for name in absent if name in ties]
    return _Misfit([n for n in absent if n not in ties], unexpected, list(misshaped.values()), other), notes


def _try(module: nn.Module, state: _State) -> tuple[list[str], list[str], str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # casts are judged, and told, below
        try:
            result = module.load_state_dict(state, strict=False)
        # A module's own loading hook may raise anything.
        except Exception as error:
            return [], [], str(error) or type(error).__name__
    return list(result.missing_keys), list(result.unexpected_keys), ""


def _shape(value: Any) -> tuple[int, ...] | None:
    """The shape of a tensor; None for anything else, and for a lazy parameter, which takes any shape."""
    return tuple(value.shape) if isinstance(value, Tensor) and not nn.parameter.is_lazy(value) else None


def _ties(expected: Mapping[str, Any]) -> list[list[str]]:
    """Groups of names that are one tensor in the module."""
    groups: dict[object, list[str]] = {}
    for name, value in expected.items():
        if isinstance(value, Tensor) and not nn.parameter.is_lazy(value) and value.numel():
            groups.setdefault((value.data_ptr(), value.shape, value.stride()), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _require_equal_ties(module: nn.Module, state: Mapping[str, Any], file: Path) -> None:
    for group in _ties(module.state_dict()):
        present = [name for name in group if name in state]
        for name in present[1:]:
            if not _same(state[name], state[present[0]]):
                raise InputError(
                    f"{name} and {present[0]} are one tensor in the module, but differ in the file",
                    where=str(file),
                    fix="untie them in the factory, or give the weights of a tied model",
                )


def _casts(loaded: Mapping[str, Any], state: Mapping[str, Any], file: Path) -> Iterator[str]:
    """Notes on the tensors whose dtype the module changed; InputError where that destroyed values."""
    changed: dict[tuple[str, str, str], list[str]] = {}
    for name, given in state.items():
        held = loaded.get(name)
        if isinstance(given, Tensor) and isinstance(held, Tensor) and given.dtype != held.dtype:
            pair = _name(given.dtype), _name(held.dtype)
            changed.setdefault((*pair, _loss(name, given, held.dtype, file)), []).append(name)
    for (source, target, loss), names in changed.items():
        yield f"{source} in the file and {target} in the module, {loss}: {_listed(names, 3)}"


def _loss(name: str, given: Tensor, dtype: torch.dtype, file: Path) -> str:
    if given.is_complex() <= dtype.is_complex:
        cast = given.to(dtype)
        if _same(cast.to(given.dtype), given):
            return "converted exactly"
        overflows = bool((_wide(given).isfinite() & ~_wide(cast).isfinite()).any())
        if _rounds(given.dtype) and _rounds(dtype) and not overflows:
            return "rounded"
    raise InputError(
        f"the values of {name} do not survive the module's dtype: {_name(given.dtype)} → {_name(dtype)}",
        where=str(file),
        fix="build the module in the dtype of its weights, e.g. .to(torch.float32) in the factory",
    )


def _rounds(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return False
    one, other = _wide(one), _wide(other)
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _wide(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _suggestion(module: nn.Module, contents: Any, file: Path) -> str:
    """The options under which the file would fit, every entry that does; tried on ``module``, which is lost anyway."""
    fits: dict[str | None, str] = {}
    for trial, (key, prefix) in enumerate(_options(module, contents)):
        if trial == _MAX_TRIALS:
            break
        try:
            state, _ = _weights(_entry(contents, key, file), prefix, file)
        except InputError:
            continue
        if key not in fits and not _load(module, state)[0]:
            fits[key] = " ".join(
                part for part in (key and f"--weights-key {key}", prefix and f"--strip-prefix {prefix}") if part
            )
    return ", or ".join(fits.values()) + (" (they fit alike: choose the one you mean)" if len(fits) > 1 else "")


def _options(module: nn.Module, contents: Any) -> Iterator[tuple[str | None, str]]:
    """Every place of a state dict in the file, with every prefix that hides one name of the module."""
    anchor = max(module.state_dict(), key=len, default="")
    for key, entry in _places(contents):
        yield key, ""
        for name in entry:
            if name.endswith(anchor) and name != anchor:
                yield key, name.removesuffix(anchor)


def _places(contents: Any) -> Iterator[tuple[str | None, Mapping[str, Any]]]:
    if not isinstance(contents, Mapping):
        return
    levels: list[tuple[str | None, Any]] = [(None, contents)]
    levels += [(name, value) for name, value in contents.items() if isinstance(name, str)]
    levels += [
        (f"{outer}.{inner}", value)
        for outer, entry in levels[1:]
        if isinstance(entry, Mapping)
        for inner, value in entry.items()
    ]
    yield from ((key, value) for key, value in levels if _is_state(value))


def _look_at(contents: Any, key: str | None) -> str:
    nested = [name for name, value in contents.items() if isinstance(value, Mapping)] if key is None else []
    if nested:
        return f"is --weights-key one of {_listed(nested)}? Else check the factory and its --model-arg"
    return "check that the factory and its --model-arg build the network that was saved"


def _listed(names: Sequence[str], shown: int = _SHOWN) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")
