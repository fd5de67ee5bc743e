"""A module → a ``normdeploy.toml`` that exports it, with inputs that its forward was seen to take."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Unpack

from normdeploy.arguments import checked
from normdeploy.disk import disk_errors, write_file
from normdeploy.disk.outputs import exists
from normdeploy.export.guess import Guess, guess, signature
from normdeploy.pipeline.keywords import Source
from normdeploy.pipeline.places import check_init
from normdeploy.pipeline.source import load

_MARK = "FILL IN"


@checked(Source)
def init(model: str, out: str | Path, *, force: bool = False, **source: Unpack[Source]) -> str:
    """Write the options of an export of ``model`` into the file ``out``, and return its text.

    Raises InputError where the module cannot be loaded, or ``out`` exists and ``force`` is not given.
    """
    out = Path(out)
    check_init(out, model=model, source=source, force=force)
    module = load(model, source).module
    found = guess(module)
    text = "\n".join(_lines(model, source, found, signature(module))) + "\n"
    with disk_errors(out, "the file"):
        try:
            write_file(out, text.encode(), replace=force)
        except FileExistsError as error:
            raise exists(out) from error
    if not found.runs:
        what = f"no inputs were found on which forward runs: correct the line marked {_MARK} in {out}"
        logging.getLogger("normdeploy").info("%s", what)
    return text


def _lines(model: str, source: Source, found: Guess, parameters: str) -> Iterator[str]:
    yield "# Options of normdeploy export, by their names; what is typed wins."
    yield "[export]"
    yield f"model = {_toml(model)}"
    for name, value in source.items():
        arguments = [f"{key}={each}" for key, each in value.items()] if isinstance(value, dict) else value
        if arguments and name != "trust":
            yield f"{name.replace('model_args', 'model_arg').replace('_', '-')} = {_toml(arguments)}"
    yield f"# forward({parameters})"
    if found.runs:
        yield "# forward was run at the smallest and the largest sizes; make them those of your data"
        yield f"input = {_toml(found.texts)}"
    else:
        yield f"# {_MARK}: forward does not run on these, which are likely; correct each, then take the # away"
        yield f"# input = {_toml(found.texts)}"
    yield f"out = {_toml('out/' + model.rpartition(':')[2])}"


def _toml(value: Any) -> str:
    """Return ``value`` in TOML, whose strings and lists of strings are those of JSON."""
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps([str(each) for each in value] if isinstance(value, list | tuple) else str(value))
