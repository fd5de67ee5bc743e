"""A weights file → what it holds, without running anything that is in it.

The format is told by the content, so a wrong extension does no harm: safetensors, or the zip archive or the older
pickle stream of torch.save, read with ``weights_only=True``. What runs code (a pickle with other globals, TorchScript,
an exported program) is refused with a command that converts it, to be run where the file is trusted.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import pickle
import pickletools
import re
import shlex
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.serialization import get_unsafe_globals_in_checkpoint

from normdeploy.errors import InputError

_HARMLESS = re.compile(r"torch\._utils\._rebuild_\w+|collections\.OrderedDict|torch\.\w+Storage")
_CHUNK = 1 << 20
_PICKLES_IN_STREAM = 4  # magic number, protocol, system, object; raw storages follow

_LOAD = {
    "pickle": (
        "x = torch.load(sys.argv[1], 'cpu', weights_only=False); x = x.get({key!r}, x) if isinstance(x, dict) else x"
    ),
    "torchscript": "x = torch.jit.load(sys.argv[1], 'cpu')",
    "program": "x = torch.export.load(sys.argv[1]).state_dict",
}
_SAVE = (
    "x = getattr(x, 'state_dict', lambda: x)(); "
    "torch.save({k: v for k, v in x.items() if torch.is_tensor(v)}, sys.argv[2])"
)


def read(path: Path, key: str | None = None) -> Any:
    """What ``path`` holds, its tensors on the CPU; ``key`` is only named in the advice. Raises InputError."""
    try:
        kind = _kind(path)
        if kind == "safetensors":
            return load_file(path, device="cpu")
        if kind == "zip":
            _check_archive(path, key)
        # An open file, because a path would be judged by its extension. The warnings are about the format's age.
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror or error}", where=str(path)) from error
    except pickle.UnpicklingError as error:
        if unsafe := _unsafe_globals(path):
            what = f"the file is a pickle that runs code when loaded: it calls {', '.join(unsafe)}"
            raise InputError(what, where=str(path), fix=_conversion("pickle", path, key)) from error
        raise _damaged(path) from error
    # A damaged file reaches any line of two parsers, and each has errors of its own.
    except Exception as error:
        raise _damaged(path, str(error) if isinstance(error, SafetensorError) else "") from error


def sha256(path: Path) -> str:
    """The sha256 of the file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _kind(path: Path) -> Literal["safetensors", "zip", "pickle"]:
    if not path.exists():
        raise InputError("no such file", where=str(path), fix="check --weights")
    if not path.is_file():
        inside = sorted(each.name for each in path.glob("*") if each.suffix in {".safetensors", ".pt", ".pth", ".bin"})
        fix = f"give the file itself{', e.g. ' + str(path / inside[0]) if inside else ''}"
        raise InputError("not a file", where=str(path), fix=fix)
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise InputError("the file is empty", where=str(path), fix="get it again: its download or its saving failed")
    # safetensors: 8 bytes of header length, then JSON. It may begin with any byte, so it is asked first.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= path.stat().st_size:
        return "safetensors"
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(b"\x80"):
        return "pickle"
    if path.suffix == ".safetensors":
        raise _damaged(path)
    raise _unknown(path, head)


def _unknown(path: Path, head: bytes) -> InputError:
    fix = "give a .safetensors file, or a state dict written by torch.save"
    if head.startswith(b"version https://git-lfs"):
        return InputError("a pointer of git-lfs, not the file itself", where=str(path), fix="run git lfs pull")
    return InputError(f"neither safetensors nor written by torch.save: begins {head[:16]!r}", where=str(path), fix=fix)


def _check_archive(path: Path, key: str | None) -> None:
    """Refuse archives that are programs, and those whose checksums disagree (torch.load does not look at them)."""
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
        if "constants.pkl" in names:
            what = "the file is a TorchScript program, which runs code when loaded"
            raise InputError(what, where=str(path), fix=_conversion("torchscript", path, key))
        if "archive_format" in names:
            what = "the file is a program of torch.export, which can run code when loaded"
            raise InputError(what, where=str(path), fix=_conversion("program", path, key))
        if "data.pkl" not in names:
            fix = "give a .safetensors file, or a state dict written by torch.save"
            raise InputError("a zip archive, but not one of torch.save", where=str(path), fix=fix)
        for entry in archive.infolist():
            if entry.CRC:  # 0 where it was saved without checksums
                with archive.open(entry) as file:
                    while file.read(_CHUNK):
                        pass


def _unsafe_globals(path: Path) -> list[str]:
    """What the pickle would import beyond what weights_only allows, sorted; empty where that cannot be told."""
    # torch's own list knows neither the older stream nor newer pickle protocols.
    for listing in (get_unsafe_globals_in_checkpoint, _disassembled):
        with contextlib.suppress(Exception):  # of a file that may be damaged anywhere
            return sorted(listing(str(path)))
    return []


def _disassembled(path: str) -> set[str]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            record = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            found = set(_globals(io.BytesIO(archive.read(record))))
    else:
        with open(path, "rb") as file:
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


def _conversion(kind: str, path: Path, key: str | None) -> str:
    code = f"import sys, torch; {_LOAD[kind].format(key=key or 'state_dict')}; {_SAVE}"
    target = path.with_suffix(".weights.pt")
    return (
        "only if you trust where the file comes from, convert it to a plain state dict (this runs its code):\n"
        f"  python -c {shlex.quote(code)} {shlex.quote(str(path))} {shlex.quote(str(target))}"
    )


def _damaged(path: Path, detail: str = "") -> InputError:
    what = f"the file is truncated or damaged{': ' + detail if detail else ''}"
    return InputError(what, where=str(path), fix="get it again, and compare its size or checksum with the source's")
