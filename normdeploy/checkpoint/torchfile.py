"""What torch.save and its relatives wrote → what it holds; without trust nothing of it runs."""

from __future__ import annotations

import contextlib
import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import torch
from torch import nn
from torch.serialization import get_unsafe_globals_in_checkpoint

from normdeploy.checkpoint import convert
from normdeploy.checkpoint.formats import CODE, damaged
from normdeploy.checkpoint.standins import STAND_INS, allowing
from normdeploy.errors import InputError
from normdeploy.trust import Content

_HARMLESS = re.compile(r"torch\._utils\._rebuild_\w+|collections\.OrderedDict|torch\.\w+Storage")
_METADATA = "torch.distributed.checkpoint.metadata.Metadata"
_CHUNK = 1 << 20
_PICKLES_IN_STREAM = 4  # magic number, protocol, system, object; raw storages follow


def load_plain(content: Content, kind: str, key: str | None) -> Any:
    """Return what a file of torch.save holds, its tensors on the CPU, without running anything of it.

    Raises InputError where it is damaged, or can only be loaded by running code; ``key`` is named in the advice.
    """
    path = content.path
    if kind in CODE:
        raise InputError(CODE[kind], where=str(path), fix=convert.of_code(kind, path, key))
    if kind == "torch.save in parts":
        what = "a shard of a distributed checkpoint: several archives in one file"
        raise InputError(what, where=str(path), fix=convert.filled(convert.DISTRIBUTED, path.parent))
    try:
        _check_sums(content)
        # The warnings are about the format's age.
        with warnings.catch_warnings(), allowing(STAND_INS):
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(content.data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = unsafe_globals(content)
        if _METADATA in unsafe:
            what = "the metadata of a distributed checkpoint, whose weights lie beside it"
            raise InputError(what, where=str(path), fix=convert.filled(convert.DISTRIBUTED, path.parent)) from error
        if unsafe:
            raise InputError(
                f"the file is a pickle that runs code when loaded: it calls {', '.join(unsafe)}",
                where=str(path),
                fix=convert.of_code(kind, path, key),
            ) from error
        if kind == "pickle" and _is_whole_pickle(content.data):
            what = "a pickle, but not one of torch.save"
            raise InputError(what, where=str(path), fix=convert.of_code(kind, path, key)) from error
        raise damaged(path) from error
    # A damaged file reaches any line of the parser, and each has errors of its own.
    except Exception as error:
        raise damaged(path) from error


def load_trusted(content: Content, kind: str) -> Any:
    """Return what a file holds that runs code when it is loaded; it runs. Modules in it become their state dicts."""
    file = io.BytesIO(content.data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind == "torchscript":
                module = torch.jit.load(file, "cpu")  # type: ignore[no-untyped-call] # torch leaves it untyped
                return module.state_dict()
            if kind == "program":
                return torch.export.load(file).state_dict
            if kind == "pickle":
                return _plain(pickle.load(file))
            return _plain(torch.load(file, map_location="cpu", weights_only=False))
    except Exception as error:  # its own code may raise anything
        raise InputError(
            f"loading it raises {type(error).__name__}: {error}",
            where=str(content.path),
            fix="give --app-dir, the folder of the code that it needs, and install the packages that it imports",
        ) from error


def _plain(contents: Any) -> Any:
    if isinstance(contents, nn.Module):
        return _plain(contents.state_dict())
    if isinstance(contents, np.ndarray):
        return torch.from_numpy(contents)
    if isinstance(contents, torch.Tensor):
        return _whole(contents)
    if isinstance(contents, dict):
        made = OrderedDict((name, _plain(value)) for name, value in contents.items())
        if hasattr(contents, "_metadata"):
            made._metadata = contents._metadata  # type: ignore[attr-defined]  # a state dict's versions
        return made
    return contents


def _whole(tensor: Any) -> Any:
    """Return a tensor that is spread over processes, or quantized, as one of numbers."""
    if hasattr(tensor, "full_tensor"):
        return tensor.full_tensor()
    known = type(tensor) in (torch.Tensor, nn.Parameter, nn.Buffer) and not tensor.is_quantized
    return tensor if known else tensor.dequantize()


def _check_sums(content: Content) -> None:
    """Raise at an archive whose checksums disagree with what is in it: torch.load does not look at them."""
    if not content.data.startswith(b"PK"):
        return
    with zipfile.ZipFile(io.BytesIO(content.data)) as archive:
        for entry in archive.infolist():
            if entry.CRC:  # 0 where it was saved without checksums
                with archive.open(entry) as file:
                    while file.read(_CHUNK):
                        pass


def unsafe_globals(content: Content) -> list[str]:
    """Return what the pickle would import beyond what weights_only allows, sorted; nothing where it cannot be told."""
    # torch's own list knows neither the older stream nor newer pickle protocols.
    for listing in (get_unsafe_globals_in_checkpoint, _disassembled):
        with contextlib.suppress(Exception), allowing({}):  # of a file that may be damaged anywhere
            return sorted(listing(io.BytesIO(content.data)))
    return []


def _is_whole_pickle(data: bytes) -> bool:
    try:
        return [operation.name for operation, _, _ in pickletools.genops(data)][-1] == "STOP"
    except ValueError:
        return False


def _disassembled(file: IO[bytes]) -> set[str]:
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            record = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            found = set(_globals(io.BytesIO(archive.read(record))))
    else:
        file.seek(0)
        found = set(_globals(file))
    return {name for name in found if not _HARMLESS.fullmatch(name)}


def _globals(stream: IO[bytes]) -> Iterator[str]:
    """Every ``module.name`` that the pickles in ``stream`` import, read without executing any."""
    try:
        for _ in range(_PICKLES_IN_STREAM):
            texts: list[str] = []
            memo: list[str] = []
            for operation, argument, _position in pickletools.genops(stream):
                if operation.name == "GLOBAL":
                    yield str(argument).replace(" ", ".")
                elif operation.name == "STACK_GLOBAL":
                    yield ".".join(texts[-2:])
                elif operation.name == "MEMOIZE":
                    memo.append(texts[-1] if texts else "")
                elif operation.name in {"BINGET", "LONG_BINGET"} and memo:
                    texts.append(memo[int(str(argument))])
                elif isinstance(argument, str):
                    texts.append(argument)
    except Exception:
        return  # the end, or damage: what was found so far is what can be said
