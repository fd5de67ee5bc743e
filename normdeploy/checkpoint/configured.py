"""Classes of transformers, which are made from a configuration: a folder's ``config.json``, and what changes it.

The weights are loaded as any others are; of the folder nothing is run, so a network whose code lies in it is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from normdeploy.errors import InputError

_CONFIG = "config.json"


def configured(function: Callable[..., Any], weights: Path | None) -> Callable[..., Any]:
    """Return a factory that calls the transformers class ``function`` with a configuration; others as they are.

    It takes ``config``, a folder or a config.json, by default the one that lies with ``weights``; its other arguments
    replace what the configuration says.
    """
    if not (isinstance(function, type) and function.__module__.partition(".")[0] == "transformers"):
        return function
    make = getattr(function, "from_config", None) or getattr(function, "_from_config", None)
    return function if make is None else _factory(make, _folder(weights))


def _factory(make: Callable[..., Any], folder: Path | None) -> Callable[..., Any]:
    def build(config: Any = folder, **changes: Any) -> Any:
        if config is None:
            fix = "give --weights the folder that has one, or --model-arg config=FOLDER"
            raise InputError(f"there is no {_CONFIG} to build the network from", where="--model", fix=fix)
        if not isinstance(config, str | Path):
            return make(config, **changes)
        from transformers import AutoConfig  # only here: a class of it was named

        read = AutoConfig.from_pretrained(str(config), local_files_only=True, trust_remote_code=False, **changes)
        return make(read)

    return build


def _folder(weights: Path | None) -> Path | None:
    if weights is None:
        return None
    folder = weights if weights.is_dir() else weights.parent
    return folder if (folder / _CONFIG).is_file() else None
