"""``package.module:attribute`` → the nn.Module that calling it returns.

The import path is the interpreter's own without the current directory, with ``app_dir`` in front: what a name means
must not depend on where the command is started, unless it means nothing elsewhere. Once the factory has returned,
``app_dir`` comes last: what forward imports is found, and no file in it takes the place of a package used here.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from torch import nn

from normdeploy.checkpoint.configured import configured
from normdeploy.errors import InputError, NormdeployError, words

_LATER: list[str] = []
"""What stands last on sys.path: the folder of the latest factory, then those of earlier ones."""
_SYNTAX = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def build(
    factory: str, *, app_dir: Path | None, model_args: Mapping[str, str], weights: Path | None = None
) -> tuple[nn.Module, tuple[str, ...]]:
    """Import ``factory``, call it with ``model_args``, and return its module with notes. Raises InputError.

    A class of transformers is called with its configuration: ``config`` of ``model_args``, else what lies beside
    ``weights``. What the user's code prints goes to stderr: stdout belongs to the result.
    """
    module_name, attribute = _parts(factory)
    with import_path(app_dir), _undone(), redirect_stdout(sys.stderr):
        notes = _shadowed(module_name, app_dir)
        function = _attribute(_import(module_name, factory, app_dir), attribute, factory)
        arguments = {name: _literal(text) for name, text in model_args.items()}
        return _call(configured(function, weights), factory, arguments), notes


def _parts(factory: str) -> tuple[str, str]:
    if not _SYNTAX.fullmatch(factory):
        fix = "write package.module:factory with dots, e.g. models.digits:resnet, and --app-dir for its folder"
        raise InputError(f"{factory!r} does not name a factory", where="--model", fix=fix)
    module_name, _, attribute = factory.partition(":")
    return module_name, attribute


def usual_app_dir(factory: str) -> Path | None:
    """Return the current folder where the module of ``factory`` is found in it and nowhere else, else None."""
    module_name, _ = _parts(factory)
    with import_path(None):
        try:
            elsewhere = importlib.util.find_spec(module_name.partition(".")[0]) is not None
        except (ImportError, ValueError):
            elsewhere = True
    return None if elsewhere or _source(Path.cwd(), module_name) is None else Path()


def call(function: str, *, app_dir: Path | None) -> Any:
    """Import ``function``, ``package.module:name``, call it without arguments and return what it returns."""
    if not _SYNTAX.fullmatch(function):
        raise InputError(f"{function!r} does not name a function", where="--data", fix="write package.module:function")
    module_name, _, attribute = function.partition(":")
    with import_path(app_dir), _undone(), redirect_stdout(sys.stderr):
        found = _attribute(_import(module_name, function, app_dir), attribute, function)
        try:
            return found()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise InputError(f"{function} raised {_told(error)}", where=f"--data {function}") from error


@contextmanager
def import_path(app_dir: Path | None) -> Iterator[None]:
    """Put ``app_dir`` first on sys.path, and last afterwards if all goes well; hide the current directory meanwhile."""
    if app_dir is not None and not (app_dir.is_dir() and os.access(app_dir, os.R_OK | os.X_OK)):
        raise InputError(
            "no such folder, or none that may be read",
            where=f"--app-dir {app_dir}",
            fix="give the folder that holds the package",
        )
    added = [] if app_dir is None else [str(app_dir.resolve())]
    before = list(sys.path)
    # Python itself puts the current directory there in these two forms: as "", or as the first entry (python -m).
    hidden = [entry for index, entry in enumerate(before) if entry == "" or (index == 0 and entry == os.getcwd())]
    kept = before[1:] if hidden and hidden[0] == before[0] else before
    sys.path[:] = added + [entry for entry in kept if entry not in ("", *added)]
    importlib.invalidate_caches()
    try:
        yield
    except BaseException:
        sys.path[:] = before
        raise
    _LATER[:] = added + [entry for entry in _LATER if entry in sys.path and entry not in added]
    own = [entry for entry in sys.path if entry not in _LATER]
    sys.path[:] = [entry for entry in hidden if entry not in _LATER] + own + _LATER


def _shadowed(module_name: str, app_dir: Path | None) -> tuple[str, ...]:
    """Refuse a module that is already imported from elsewhere; note others that ``app_dir`` has but that are too."""
    if app_dir is None:
        return ()
    tops = {path.stem for path in app_dir.iterdir()}
    elsewhere = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in tops and isinstance(module, ModuleType):
            imported, here = module.__dict__.get("__file__"), _source(app_dir, name)
            if imported and here and Path(imported).resolve() != here.resolve():
                elsewhere[name] = f"{name} is already imported from {imported}, not from {app_dir}"
    for name, what in elsewhere.items():
        if f"{module_name}.".startswith(f"{name}."):
            raise InputError(what, where=f"--app-dir {app_dir}", fix="load it in a new Python process")
    return tuple(elsewhere.values())


def _source(folder: Path, module_name: str) -> Path | None:
    base = folder.joinpath(*module_name.split("."))
    return next((path for path in (base / "__init__.py", base.with_name(f"{base.name}.py")) if path.is_file()), None)


def _import(module_name: str, factory: str, app_dir: Path | None) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise InputError(
                f"there is no module {error.name!r} on the import path",
                where=factory,
                fix=_app_dir(module_name, app_dir),
            ) from error
        raise InputError(
            f"importing {module_name} failed: {error}",
            where=_place(error, factory),
            fix=f"install what provides {error.name!r}" if error.name else "",
        ) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: a script that parses its arguments when it is imported
        raise InputError(
            f"importing {module_name} raised {_told(error)}", where=_place(error, factory), fix="correct the module"
        ) from error


def _app_dir(module_name: str, app_dir: Path | None) -> str:
    if app_dir is None and _source(Path.cwd(), module_name):
        return "add --app-dir .  (the current directory is not on the import path)"
    return "give --app-dir, the folder that holds its outermost package, or correct the name"


def _attribute(module: ModuleType, attribute: str, factory: str) -> Callable[..., Any]:
    owner: Any = module
    for name in attribute.split("."):
        try:
            owner = getattr(owner, name)
        except AttributeError as error:
            near = difflib.get_close_matches(name, [other for other in dir(owner) if other[:1] != "_"])
            fix = f"did you mean {' or '.join(near)}?" if near else "correct the name after the colon"
            where = str(getattr(module, "__file__", None) or module.__name__)
            raise InputError(f"{module.__name__} has no {attribute!r}", where=where, fix=fix) from error
        except Exception as error:  # a package that imports its parts when they are asked for
            raise InputError(f"getting {factory} raised {_told(error)}", where=_place(error, factory)) from error
    if isinstance(owner, nn.Module) or not callable(owner):
        fix = "name a function or class that takes the --model-arg values and returns the module"
        raise InputError(f"{attribute} is {_a(owner)}, not a factory", where=factory, fix=fix)
    return owner  # type: ignore[no-any-return] # callable() narrows Any to nothing


@contextmanager
def _undone() -> Iterator[None]:
    """Undo what the user's code changes of the process: its folder, to which paths are relative, and numpy's errors."""
    before = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with np.errstate():
            yield
    finally:
        os.fchdir(before)
        os.close(before)


def _call(function: Callable[..., Any], factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    _require_bindable(function, factory, arguments)
    try:
        module = function(**arguments)
    except (NormdeployError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit and classes of the factory's own too
        fix = "correct the factory, or its --model-arg values"
        raise InputError(f"{factory} raised {_told(error)}", where=_place(error, factory), fix=fix) from error
    if not isinstance(module, nn.Module):
        raise InputError(f"{factory} returned {_a(module)}, not an nn.Module", fix="let the factory return the module")
    return module


def _require_bindable(function: Callable[..., Any], factory: str, arguments: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return  # some callables written in C have none: calling them tells
    try:
        signature.bind(**arguments)
    except TypeError as error:
        fix = f"give --model-arg NAME=VALUE for {factory.partition(':')[2]}{signature}"
        raise InputError(f"wrong arguments for the factory: {error}", where=factory, fix=fix) from None


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {text}" if (text := words(error)) else type(error).__name__


def _place(error: BaseException, factory: str) -> str:
    """The innermost line outside Python's import machinery and this file; ``factory`` where there is none."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    ours = ("<frozen", __file__, str(importlib.__file__))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else factory


def _a(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"
