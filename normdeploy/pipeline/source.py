"""What every verb shares: where the eager module comes from, the feeds it is judged on, and the stages' clock."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from normdeploy import checkpoint
from normdeploy.checkpoint import Checkpoint, Names, Rename
from normdeploy.errors import InputError
from normdeploy.export import in_float32
from normdeploy.parity.corners import corner_feeds, statistics_feed
from normdeploy.parity.feeds import Feed, data_feed, feed_of, random_feeds
from normdeploy.pipeline.keywords import Data, Source
from normdeploy.runtime.eager import array_of
from normdeploy.specs import Signature, TensorSpec, parse


def trusted(source: Source) -> tuple[Path, ...]:
    """Return the files that may run code when they are opened; see :mod:`normdeploy.trust`."""
    return tuple(map(Path, source.get("trust", ())))


def load(model: str, source: Source, *, check: bool = True) -> Checkpoint:
    """Return the module that the factory ``model`` returns, with its weights; without ``check`` as it was loaded."""
    return checkpoint.load(
        model,
        app_dir=_path(source.get("app_dir")),
        model_args=source.get("model_args", {}),
        weights=_path(source.get("weights")),
        names=_names(source),
        trust=trusted(source),
        force_eval=source.get("force_eval", False),
        check=check,
    )


def load_beside(specs: Sequence[TensorSpec], model: str, source: Source) -> Checkpoint:
    """Return the module to run beside what takes ``specs``: widened, as its export was, if those have no 16-bit
    floats.
    """
    loaded = load(model, source)
    if any(spec.dtype in ("float16", "bfloat16") for spec in specs):
        return loaded
    _, notes = in_float32(loaded.module, Signature(specs))
    return replace(loaded, notes=(*loaded.notes, *notes))


def _names(source: Source) -> Names:
    return Names(
        key=source.get("weights_key"),
        strip=source.get("strip_prefix"),
        rename=[Rename.parse(text) for text in source.get("rename", ())],
        add=source.get("add_prefix"),
        ignore=source.get("ignore_unexpected", ()),
        allow=source.get("allow_missing", ()),
    )


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)


def specs_of(inputs: Sequence[str], output_names: Sequence[str] = ()) -> Signature:
    """Return the input specs, of which there must be one at least, and the names of the outputs."""
    specs = parse(inputs)
    if not specs:
        raise InputError("no input is described", where="--input", fix='give e.g. --input "x:N=1..1..64x3x224x224@f32"')
    return specs.with_outputs(output_names)


def app_dir_of(source: Source) -> Path | None:
    """Return the folder that is added to the import path."""
    return _path(source.get("app_dir"))


def feeds_for(
    specs: Sequence[TensorSpec],
    data: Data,
    seed: int,
    app_dir: Path | None = None,
    module: nn.Module | None = None,
) -> tuple[Feed, ...]:
    """Return random feeds over the range of every dimension, their corners, then what ``data`` names.

    The statistics of the first norm of ``module`` are one of the corners, where it looks at an input. Integers without
    a range cannot be drawn: with ``data`` they come from there alone.
    """
    if seed < 0:
        raise InputError("a seed cannot be negative", where=f"--seed {seed}", fix="give 0 or more")
    given = tuple(data_feeds(specs, data, app_dir))
    try:
        drawn = (*random_feeds(specs, seed=seed), *corner_feeds(specs, seed=seed))
    except InputError:
        if not given:
            raise
        return given
    seen = None if module is None else statistics_feed(module, specs, seed=seed)
    return (*drawn, *(() if seen is None else (seen,)), *given)


def data_feeds(specs: Sequence[TensorSpec], data: Data, app_dir: Path | None) -> Iterator[Feed]:
    """Yield the feeds that ``data`` names."""
    sources = [] if data is None else [data] if isinstance(data, str | Path) else list(data)
    for source in sources:
        text = str(source)
        if ":" in text and not Path(text).exists():
            yield from _batches(specs, text, app_dir)
        else:
            path = Path(source)
            yield data_feed(specs, path, "data" if len(sources) == 1 else f"data {path.name}")


def _batches(specs: Sequence[TensorSpec], function: str, app_dir: Path | None) -> Iterator[Feed]:
    """Feeds of what a function of the user's own yields: dicts of arrays or tensors, by the inputs' names."""
    batches = checkpoint.call(function, app_dir=app_dir)
    try:
        for index, batch in enumerate(batches):
            arrays = {name: _as_array(value) for name, value in dict(batch).items()}
            yield feed_of(specs, arrays, f"data {function.partition(':')[2]} {index}", function)
    except (TypeError, ValueError) as error:
        fix = "let it yield dicts of arrays or tensors, by the names of the inputs"
        raise InputError(f"what it yields are no batches: {error}", where=f"--data {function}", fix=fix) from error


def _as_array(value: Any) -> Any:
    return array_of(value) if isinstance(value, torch.Tensor) else np.asarray(value)
