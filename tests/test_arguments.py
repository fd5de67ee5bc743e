"""What Python callers hand in is held to the annotations, and a misspelled keyword is never passed over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import onnx
import pytest
from torch import nn

import normdeploy
from normdeploy.arguments import checked
from normdeploy.errors import InputError

Word = Literal["off", "on"]
Either = str | Path | Sequence[str | Path] | None


class More(TypedDict, total=False):
    weights: str | Path | None
    trust: Sequence[str]


@checked(More)
def verb(
    model: str = "",
    paths: Sequence[str | Path] = (),
    *,
    count: int = 0,
    seconds: float = 1.0,
    force: bool = False,
    word: Word = "off",
    either: Either = None,
    sizes: Sequence[Sequence[int]] = (),
    named: Mapping[str, str] | None = None,
    module: nn.Module | None = None,
    **more: Unpack[More],
) -> dict[str, Any]:
    """Return what was given."""
    return {"model": model, "force": force, **more}


FITS: list[dict[str, Any]] = [
    {"model": "a:b", "paths": ["a", Path("b")], "weights": None, "trust": ("x",)},
    {"count": np.int64(3), "seconds": 2, "force": True, "word": "on"},
    {"either": "a"}, {"either": Path("a")}, {"either": ["a", Path("b")]}, {"either": None}, {"paths": {"a"}},
    {"sizes": [[1, 2], (3,)], "named": {"a": "b"}, "module": nn.ReLU()},
]  # fmt: skip


@pytest.mark.parametrize("given", FITS, ids=str)
def test_what_fits_is_handed_on(given: dict[str, Any]) -> None:
    made = verb(**given)
    assert {name: value for name, value in given.items() if name in made}.items() <= made.items()


MISFITS: list[tuple[dict[str, Any], str, str]] = [
    ({"model": nn.ReLU()}, "model must be a text", '"package.module:factory"'),
    ({"paths": "a"}, "paths must be a list of texts or paths", "give ['a']"),
    ({"paths": ["a", 3]}, "paths must be a list of texts or paths", "give a list of texts or paths"),
    ({"paths": None}, "paths must be a list of texts or paths", "give a list of texts or paths"),
    ({"count": "3"}, "count must be a whole number", "give a whole number"),
    ({"count": True}, "count must be a whole number", "give a whole number"),
    ({"seconds": "1"}, "seconds must be a number", "give a number"),
    ({"force": "no"}, "force must be True or False", "give True or False"),
    ({"word": "of"}, "word must be one of off, on", "give one of off, on"),
    ({"either": 3}, "either must be a text or a path or a list of texts or paths or None", "give"),
    ({"sizes": [[1], ["2"]]}, "sizes must be a list of lists of whole numbers", "give"),
    ({"named": {"a": 1}}, "named must be a mapping of texts to texts or None", "give"),
    ({"module": nn.ReLU}, "module must be nn.Module or None", "give nn.Module or None"),
    ({"weights": {}}, "weights must be a text or a path or None", "give"),
    ({"trust": "all"}, "trust must be a list of texts", "give ['all']"),
    ({"weight": "w"}, "verb takes no argument 'weight'", "did you mean weights?"),
    ({"nothing_like_it": 1}, "verb takes no argument 'nothing_like_it'", "it takes model, paths"),
]


@pytest.mark.parametrize(("given", "what", "fix"), MISFITS, ids=[case[1] for case in MISFITS])
def test_what_does_not_fit_is_refused(given: dict[str, Any], what: str, fix: str) -> None:
    with pytest.raises(InputError) as caught:
        verb(**given)
    assert caught.value.what == what
    assert fix in caught.value.fix
    assert next(iter(given)) in caught.value.where


def test_what_stands_in_its_place_is_held_to_it_too() -> None:
    with pytest.raises(InputError, match="paths must be a list"):
        verb("a:b", 3)  # type: ignore[arg-type]  # this is what is tested
    with pytest.raises(TypeError, match="positional argument"):
        verb("a:b", [], 3)  # type: ignore[misc]  # this is what is tested


VERBS: dict[str, tuple[Any, ...]] = {
    "export": ("torch.nn:Identity", ["input:1x3@f32"], "out"),
    "verify": ("bundle", "torch.nn:Identity"),
    "bench": ("bundle",),
    "calibrate": ("torch.nn:Identity", ["input:1x3@f32"], "out"),
    "doctor": ("torch.nn:Identity",),
    "build": ("model.onnx", "out.plan"),
}


@pytest.mark.parametrize("name", VERBS)
def test_a_misspelled_keyword_of_a_verb_is_refused_and_nothing_is_done(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was passed over once: ``weight=`` deployed weights that no training had touched."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"{name} takes no argument 'wieghts'"):
        getattr(normdeploy, name)(*VERBS[name], wieghts="trained.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [*VERBS, "load_bundle", "load_folded", "fold"])
def test_every_verb_is_held_to_its_annotations(name: str) -> None:
    with pytest.raises(InputError):
        getattr(normdeploy, name)(3, *VERBS.get(name, ("", ""))[1:])


@pytest.mark.parametrize("options", [{"path": None}, {"path": "model.onnx", "external_data": Path("weights.bin")}])
def test_saving_is_held_to_its_annotations(options: dict[str, Any]) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) {y = Abs (x)}'
    )
    with pytest.raises(InputError, match="must be a"):
        normdeploy.fold(model).save(**options)


WRONG: list[tuple[str, str, Any]] = [
    ("export", "layernorm", "centred"), ("export", "target", "trt"), ("export", "precision", "fp8"),
    ("export", "data", 3), ("export", "criteria", 3), ("export", "keep", "norm"), ("export", "force", "no"),
    ("verify", "data", np.zeros(3)), ("verify", "placement", "cuda"), ("calibrate", "data", np.zeros(3)),
    ("build", "precision", "fp8"), ("build", "sm", "89"), ("doctor", "data", np.zeros(3)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "option", "value"), WRONG, ids=[f"{case[0]} {case[1]}" for case in WRONG])
def test_options_of_the_wrong_kind_are_refused(name: str, option: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{option} must be"):
        getattr(normdeploy, name)(*VERBS[name], **{option: value})
