"""Networks of transformers: made from a configuration, their files' names from the versions that wrote them.

Of a folder nothing is run, so a network whose code lies in it is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normdeploy.errors import InputError

_CONFIG = "config.json"


def configured(function: Callable[..., Any], weights: Path | None) -> Callable[..., Any]:
    """Return a factory that calls the transformers class ``function`` with a configuration; others as they are.

    It takes ``config``, a folder or a config.json, by default the one that lies with ``weights``; its other arguments
    replace what the configuration says.
    """
    if not (isinstance(function, type) and _is_of_transformers(function)):
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


def renamed(module: nn.Module, contents: Any) -> dict[str, Any] | None:
    """Return a state dict under the names of ``module``, as transformers reads ``contents``, written by any version.

    What it does not find is left out, what it does not know stays. None where the module is none of its, or it refuses.
    """
    tensors = {name: value for name, value in contents.items() if isinstance(value, Tensor)} if contents else {}
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
