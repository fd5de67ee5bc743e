"""A module → a ``normdeploy.toml`` that exports it, with inputs that its forward was seen to take."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

from normdeploy.disk import disk_errors, write_file
from normdeploy.disk.outputs import exists
from normdeploy.export.guess import guess_inputs, signature
from normdeploy.pipeline.places import check_init
from normdeploy.pipeline.source import Source, load

_EXAMPLE = "x:N=1..1..8x3x224x224@f32"


def init(model: str, out: str | Path, *, force: bool = False, **source: Unpack[Source]) -> str:
    """Write the options of an export of ``model`` into the file ``out``, and return its text.

    Raises InputError where the module cannot be loaded, or ``out`` exists and ``force`` is not given.
    """
    out = Path(out)
    check_init(out, model=model, source=source, force=force)
    module = load(model, source).module
    inputs = [str(spec) for spec in guess_inputs(module)]
    text = "\n".join(_lines(model, source, inputs, signature(module))) + "\n"
    with disk_errors(out, "the file"):
        try:
            write_file(out, text.encode(), replace=force)
        except FileExistsError as error:
            raise exists(out) from error
    return text


def _lines(model: str, source: Source, inputs: list[str], parameters: str) -> Iterator[str]:
    yield "# Options of normdeploy export, by their names; what is typed wins."
    yield "[export]"
    yield f"model = {_toml(model)}"
    for name, value in source.items():
        arguments = [f"{key}={each}" for key, each in value.items()] if isinstance(value, dict) else value
        if arguments and name != "trust":
            yield f"{name.replace('model_args', 'model_arg').replace('_', '-')} = {_toml(arguments)}"
    yield f"# forward({parameters})"
    if inputs:
        yield "# forward was run at the smallest and the largest sizes; make them those of your data"
        yield f"input = {_toml(inputs)}"
    else:
        yield "# no inputs were found on which forward runs: describe each of them, then take the # away"
        yield f"# input = {_toml([_EXAMPLE])}"
    yield f"out = {_toml('out/' + model.rpartition(':')[2])}"


def _toml(value: Any) -> str:
    """Return ``value`` in TOML, whose strings and lists of strings are those of JSON."""
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps([str(each) for each in value] if isinstance(value, list | tuple) else str(value))
