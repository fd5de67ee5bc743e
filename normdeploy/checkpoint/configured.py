"""Networks of transformers: made from a configuration, their files' names from the versions that wrote them.

Of a folder nothing is run, so a network whose code lies in it is refused.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normdeploy.errors import InputError
from normdeploy.limits import more_memory
from normdeploy.trust import read_once

_CONFIG = "config.json"
_BYTES, _SPARE = 1 << 24, 1 << 31
"""Most bytes of one, and what making its network may take in memory beyond eight times its weights."""
_MOST = (
    (re.compile(r"(layers?|depths?|blocks)$"), 1 << 12),
    (re.compile(r"^(num|n)_"), 1 << 20),
    (re.compile(""), 1 << 31),
)
"""The largest whole number that a key which the pattern is found in can have; the first counts."""


def configured(function: Callable[..., Any], weights: Path | None) -> Callable[..., Any]:
    """Return a factory that calls the transformers class ``function`` with a configuration; others as they are.

    It takes ``config``, a folder or a config.json, by default the one that lies with ``weights``; its other arguments
    replace what the configuration says.
    """
    if not (isinstance(function, type) and _is_of_transformers(function)):
        return function
    make = getattr(function, "from_config", None) or getattr(function, "_from_config", None)
    return function if make is None else _factory(make, _folder(weights), weights)


def _factory(make: Callable[..., Any], folder: Path | None, weights: Path | None) -> Callable[..., Any]:
    of_any_class = {"trust_remote_code": False} if make.__name__ == "from_config" else {}  # it would ask on stdin

    def build(config: Any = folder, **changes: Any) -> Any:
        if config is None:
            fix = "give --weights the folder that has one, or --model-arg config=FOLDER"
            raise InputError(f"there is no {_CONFIG} to build the network from", where="--model", fix=fix)
        if not isinstance(config, str | Path):
            return make(config, **changes)
        if "trust_remote_code" in changes:
            raise _code("trust_remote_code is not taken: nothing in a folder is run", "--model-arg")
        _require_harmless(Path(config))
        from transformers import AutoConfig  # only here: a class of it was named

        try:
            with more_memory(_SPARE + 8 * _size(weights or Path(config))):
                read = AutoConfig.from_pretrained(
                    str(config), local_files_only=True, trust_remote_code=False, **changes
                )
                return make(read, **of_any_class)
        except ValueError as error:
            if "trust_remote_code" not in str(error):
                raise
            raise _code("the code of the network lies in its folder, and is not run", str(config)) from error

    return build


def _size(weights: Path) -> int:
    files = weights.iterdir() if weights.is_dir() else [weights]
    return sum(file.stat().st_size for file in files if file.is_file())


def _code(what: str, where: str) -> InputError:
    fix = "install the package that has the network, and name a function that builds it: --model package.module:factory"
    return InputError(what, where=where, fix=fix)


def _require_harmless(config: Path) -> None:
    """Raise InputError for a config.json that names code, or whose counts no network has."""
    file = config / _CONFIG if config.is_dir() else config
    content = read_once(file).data
    if len(content) > _BYTES:
        raise InputError(
            f"it has more than {_BYTES:,} bytes", where=str(file), fix="give the network's own config.json"
        )
    try:
        pairs = [("", json.loads(content))]
    except (ValueError, RecursionError) as error:
        raise InputError(f"no JSON that can be read: {error}", where=str(file), fix="copy the file again") from error
    while pairs:
        key, value = pairs.pop()
        if isinstance(value, dict):
            pairs += value.items()
        elif isinstance(value, list):
            pairs += [(key, each) for each in value]
        elif isinstance(value, str) and key.endswith("_implementation") and "/" in value:
            raise _code(f"{key} names a kernel that would be fetched and run: {value}", str(file))
        elif isinstance(value, int) and abs(value) > next(most for pattern, most in _MOST if pattern.search(key)):
            fix = "give the network's own config.json"
            raise InputError(f"{key} is {value:,}, which no network has", where=str(file), fix=fix)


def _folder(weights: Path | None) -> Path | None:
    if weights is None:
        return None
    folder = weights if weights.is_dir() else weights.parent
    return folder if (folder / _CONFIG).is_file() else None


def renamed(module: nn.Module, contents: Any) -> dict[str, Any] | None:
    """Return a state dict under the names of ``module``, as transformers reads ``contents``, written by any version.

    What it does not find is left out, what it does not know stays. None where the module is none of its, or it refuses.
    """
    entries = contents.items() if isinstance(contents, Mapping) else ()
    tensors = {name: value for name, value in entries if isinstance(value, Tensor)}
    if not (_is_of_transformers(type(module)) and hasattr(module, "config") and tensors):
        return None
    from transformers.utils import logging as told  # only here: a module of it is at hand

    before, bars = logging.root.manager.disable, told.is_progress_bar_enabled()
    logging.disable(logging.CRITICAL)
    told.disable_progress_bar()
    try:
        network, found = type(module).from_pretrained(  # type: ignore[attr-defined] # of its own class
            None,
            config=module.config,
            state_dict=dict(tensors),
            output_loading_info=True,
            dtype=next(iter(tensors.values())).dtype,
        )
    except Exception:  # another library's loading may raise anything: then its names are of no help
        return None
    finally:
        logging.disable(before)
        if bars:
            told.enable_progress_bar()
    state = {name: value for name, value in network.state_dict().items() if name not in found["missing_keys"]}
    # transformers tells what it does not know under new names too: whatever stands there will be refused.
    return state | {name: tensors.get(name, torch.empty(0)) for name in found["unexpected_keys"]}


def _is_of_transformers(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "transformers"
