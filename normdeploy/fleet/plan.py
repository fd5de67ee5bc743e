"""``fleet.toml``: the exports that it asks for, and what each of them depends on.

::

    [defaults]                                  # options of normdeploy export, for all
    app-dir = "."
    [[model]]
    name = "resnet"
    model = "models.digits:resnet"
    weights = "models/digits_resnet.safetensors"
    input = ["x:N=1..1..64x1x8x8@f32"]
    precision = ["fp32", "fp16"]                # one export for each, and for each target

Paths are relative to the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from normdeploy.disk import open_given
from normdeploy.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.A)
_MOST = 1 << 18
"""Bytes of the file."""
_PART = 1 << 20
_VARIED = ("precision", "target")
_OURS = ("out", "force", "json", "debug", "verbose", "to-torch", "trust", "help", "version")
"""Options that are not the file's to give: what is trusted is typed, the rest is of the fleet."""
_PATHS = ("app-dir", "weights")
_FIX = 'write [[model]] with name = "...", and the options of normdeploy export below it'


@dataclass(frozen=True)
class Job:
    """One export.

    Attributes:
        name: of its bundle's folder: the model's, then precision and target where there are several.
        arguments: of ``normdeploy export``, but for where it goes; paths are absolute.
        files: what it reads: the weights, the data, and all Python files in ``app-dir``.
    """

    name: str
    arguments: tuple[str, ...]
    files: tuple[Path, ...]


def read_fleet(path: Path, trust: Sequence[Path] = ()) -> list[Job]:
    """Return the exports that the file asks for; ``trust`` are the files that may run code in any of them.

    Raises InputError where it cannot be read, or two would go to the same folder. Options of export are that command's
    to check.
    """
    document = _document(path)
    defaults = _table(document.pop("defaults", {}), path, "defaults")
    models = document.pop("model", [])
    if document or not isinstance(models, list) or not models:
        others = ", ".join(document) or "it has no [[model]]"
        raise InputError("a fleet has [defaults] and [[model]] alone", where=f"{path}: {others}", fix=_FIX)
    jobs = [job for table in models for job in _jobs({**defaults, **_table(table, path, "model")}, path, trust)]
    names = [job.name for job in jobs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            "two exports have one name", where=f"{path}: {', '.join(twice)}", fix="give each model its own"
        )
    return jobs


def digest(job: Job, version: str, known: dict[Path, str]) -> str:
    """Return the sha256 of all that ``job`` depends on; ``known`` keeps those of files.

    Raises InputError where a file cannot be read.
    """
    files = {str(file): _sha256(file, known) for path in job.files for file in _plain_files(path)}
    text = json.dumps([version, job.arguments, files], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _document(path: Path) -> dict[str, Any]:
    try:
        with open_given(path) as file:
            content = file.read(_MOST + 1)
        if len(content) > _MOST:
            raise InputError(f"it has more than {_MOST:,} bytes", where=str(path), fix="split the fleet")
        return tomllib.loads(content.decode())
    except FileNotFoundError as error:
        raise InputError("the fleet's file does not exist", where=str(path), fix="check its path") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"the fleet's file cannot be read: {error}", where=str(path), fix="correct it") from error


def _table(table: Any, path: Path, name: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise InputError(f"{name} is no table", where=str(path), fix=_FIX)
    options = {key.replace("_", "-"): value for key, value in table.items()}
    if ours := [key for key in options if key in _OURS]:
        fix = "type --trust PATH" if ours[0] == "trust" else "remove it"
        raise InputError(f"{ours[0]} is no option of a fleet's file", where=f"{path}: {name}", fix=fix)
    return options


def _jobs(options: dict[str, Any], path: Path, trust: Sequence[Path]) -> Iterator[Job]:
    name = options.pop("name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name of a model", where=str(path), fix=_FIX)
    if not isinstance(options.get("model"), str):
        raise InputError("no factory is given", where=f"{path}: {name}", fix='write model = "package.module:factory"')
    varied = [[(key, each) for each in _several(options.pop(key))] for key in _VARIED if key in options]
    here = path.absolute().parent
    fixed = {key: _located(key, value, here) for key, value in options.items()}
    files = tuple(_read(fixed))
    for choice in product(*varied):
        words = [_word(value) for (_, value), all_ in zip(choice, varied, strict=True) if len(all_) > 1]
        arguments = [word for key, value in {**fixed, **dict(choice)}.items() for word in _arguments(key, value)]
        arguments += [word for each in trust for word in ("--trust", str(each.absolute()))]
        yield Job("-".join([name, *words]), tuple(arguments), files)


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _located(key: str, value: Any, here: Path) -> Any:
    """Return ``value`` with what is a path made absolute; data may be the name of a function too."""
    if isinstance(value, list):
        return [_located(key, each, here) for each in value]
    is_file = key == "data" and (":" not in str(value) or (here / str(value)).exists())
    return str(here / value) if isinstance(value, str) and (key in _PATHS or is_file) else value


def _arguments(key: str, value: Any) -> Iterator[str]:
    for each in _several(value):
        if each is True:
            yield f"--{key}"
        elif each is not False:
            yield f"--{key}={_word(each)}"


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _read(options: Mapping[str, Any]) -> Iterator[Path]:
    """The files that an export with ``options`` reads, as far as the options tell."""
    for value in (*_several(options.get("weights", [])), *_several(options.get("data", []))):
        if Path(str(value)).is_absolute():
            yield Path(str(value))
    if "app-dir" in options:
        yield from _sources(Path(str(options["app-dir"])))


def _sources(folder: Path) -> Iterator[Path]:
    """Yield the Python files of ``folder`` and below: a factory may import each of them.

    Hidden folders and virtual environments are left out.
    """
    for place, folders, files in os.walk(folder):
        here = Path(place)
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and not (here / name / "pyvenv.cfg").exists()
        )
        yield from (here / name for name in sorted(files) if name.endswith(".py"))


def _plain_files(path: Path) -> list[Path]:
    """Return the files of a folder, those beside an index of shards, or the file itself."""
    if path.is_dir():
        return sorted(each for each in path.rglob("*") if each.is_file())
    if path.suffix == ".json":
        return sorted(each for each in path.parent.iterdir() if each.is_file())
    return [path]


def _sha256(path: Path, known: dict[Path, str]) -> str:
    if path not in known:
        found = hashlib.sha256()
        try:
            with open_given(path) as file:
                while part := file.read(_PART):
                    found.update(part)
        except OSError as error:
            what = f"a file of the fleet cannot be read: {error.strerror}"
            raise InputError(what, where=str(path), fix="check its path") from error
        known[path] = found.hexdigest()
    return known[path]
