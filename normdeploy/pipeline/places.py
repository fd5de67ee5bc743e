"""What each verb reads and where it writes, held apart before anything heavy is imported or anything takes long.

One rule, with ``--force`` as without: no output is, or holds, one of the command's own inputs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.machinery import PathFinder
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normdeploy.bundle.manifest import MANIFEST
from normdeploy.bundle.target import check_target
from normdeploy.disk.outputs import check_file, require_apart
from normdeploy.engine.sidecar import sidecar_path
from normdeploy.errors import InputError

if TYPE_CHECKING:
    from normdeploy.pipeline.keywords import Data, Source

ONNX, TENSORS, TOML, PLANS = (".onnx",), (".safetensors",), (".toml",), (".plan", ".engine", ".trt")
"""Ends of the names of files that may be replaced by what is written of their kind."""
OPTIONS_FILE = "normdeploy.toml"
_INDEX = ".index.json"
_MOST = 1 << 26
"""Bytes of an index of shards."""


def check_export(out: Path, to_torch: Path | None, *, model: str, data: Data, source: Source, force: bool) -> None:
    """Raise InputError unless an export may be written to ``out`` and ``to_torch``; nothing is changed."""
    outputs = {"--out": out} | ({} if to_torch is None else {"--to-torch": to_torch})
    require_apart(outputs, {**_read(model, source, data), "the options": [Path(OPTIONS_FILE)]}, folder="--out")
    check_target(out, force=force)
    if to_torch is not None:
        check_file(to_torch, TENSORS, force=force, option="--to-torch")


def check_calibrate(
    out: Path | None,
    partial: Path | None,
    merge: Sequence[Path],
    *,
    model: str,
    data: Data,
    source: Source,
    force: bool,
) -> None:
    """Raise InputError unless calibration may write ``out`` and ``partial``; nothing is changed."""
    outputs = {option: path for option, path in (("--out", out), ("--partial", partial)) if path is not None}
    require_apart(outputs, {**_read(model, source, data), "a partial result": merge})
    if out is not None:
        check_file(out, TENSORS, force=force)


def check_init(out: Path, *, model: str, source: Source, force: bool) -> None:
    """Raise InputError unless a file of options may be written to ``out``; nothing is changed."""
    require_apart({"--out": out}, _read(model, source, None))
    check_file(out, TOML, force=force)


def check_model(
    source: Path, out: Path, ends: Sequence[str] = ONNX, *, beside: Mapping[str, Path] | None = None, force: bool
) -> None:
    """Raise InputError unless what is made of ``source``, an ONNX file or a bundle, may be written to the file ``out``.

    Its name, where one is there, ends in one of ``ends``; ``beside`` it other outputs are written. Nothing is changed.
    """
    if not source.exists():
        raise InputError("there is no such file", where=str(source), fix="give an ONNX file")
    inputs = {"the model": [source], "the weights of the model": _weights_of(source, out)}
    require_apart({"--out": out, **(beside or {})}, inputs)
    check_file(out, ends, force=force)


def check_plan(model: Path, out: Path, *, force: bool) -> None:
    """Raise InputError unless a plan of ``model`` may be written to ``out``, its sidecar beside it."""
    check_model(model, out, PLANS, beside={"--out, whose sidecar": sidecar_path(out)}, force=force)
    if (out.parent / MANIFEST).exists():
        raise InputError(
            "a bundle takes no further files: its manifest lists them",
            where=str(out),
            fix="choose another --out, or give normdeploy export --engine to have the engine in the bundle",
        )


def _weights_of(source: Path, out: Path) -> Sequence[Path]:
    """Return the files of weights of the model ``source``, as far as a file ``out`` that is there could be one."""
    if not out.exists() or source.is_dir():
        return ()
    from normdeploy.onnxfile import data_files

    try:
        return data_files(source)
    except InputError:  # it is no model
        return ()


def _read(model: str, source: Source, data: Data) -> dict[str, Iterable[Path]]:
    """Return the files that a factory, its weights and the data come from, by what they are."""
    app_dir, weights = source.get("app_dir"), source.get("weights")
    given = [] if data is None else [data] if isinstance(data, str | Path) else data
    functions = [str(each) for each in given if ":" in str(each) and not Path(each).exists()]
    return {
        "the weights": () if weights is None else _files(Path(weights)),
        "what is trusted": map(Path, source.get("trust", ())),
        "the data": [Path(each) for each in given if str(each) not in functions],
        "the code of the model": _code(model, app_dir),
        "the code of the data": chain.from_iterable(_code(each, app_dir) for each in functions),
    }


def _files(weights: Path) -> Iterator[Path]:
    """Yield the checkpoint ``weights``, and the files in it where it is a folder, or that it names as an index."""
    yield weights
    if weights.is_dir():
        yield from weights.iterdir()
    elif weights.name.endswith(_INDEX):
        yield from (weights.parent / name for name in _shards(weights))


def _shards(index: Path) -> list[str]:
    try:
        if index.stat().st_size > _MOST:
            return []
        return sorted({str(name) for name in json.loads(index.read_bytes())["weight_map"].values()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return []  # which is told when it is read


def _code(function: str, app_dir: str | Path | None) -> Iterator[Path]:
    """Yield the file of the module of ``package.module:function``, and of its packages; nothing of it is imported."""
    top, *inner = function.partition(":")[0].split(".")
    found: Any = None
    if top.isidentifier():
        found = PathFinder.find_spec(top, [str(app_dir or Path.cwd()), *sys.path])
    if found is None:
        return
    if found.origin is not None:
        yield Path(found.origin)
    for folder in map(Path, found.submodule_search_locations or ()):
        for depth in range(1, len(inner) + 1):
            base = folder.joinpath(*inner[:depth])
            yield from (base / "__init__.py", base.with_name(f"{base.name}.py"))
