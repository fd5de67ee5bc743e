"""Torch's exporter from outside: what it may print, and what it leaves behind in the module it traces."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

from torch import nn


@contextlib.contextmanager
def quiet(verbose: bool) -> Iterator[None]:
    """Keep this thread's warnings, logs and prints from the user; ``verbose`` shows them all, on stderr."""
    if verbose:
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(_Muted(sys.stdout)),
            contextlib.redirect_stderr(_Muted(sys.stderr)),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class _Muted(io.TextIOBase):
    """A stream that swallows what this thread writes; others, such as a progress display, still reach the user."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._thread else self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding


@contextlib.contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Give every attribute of every submodule back as it was: a forward that keeps a value would keep a traced one."""
    before = [(vars(part), dict(vars(part))) for part in module.modules()]
    containers = [value for _, attributes in before for value in attributes.values() if type(value) in _CONTAINERS]
    contents = [(container, copy.copy(container)) for container in containers]
    try:
        yield
    finally:
        for container, content in [*contents, *before]:
            _refill(container, content)


_CONTAINERS = (dict, list, set, type(nn.Module()._forward_hooks))


def _refill(container: Any, content: Any) -> None:
    container.clear()
    (container.extend if isinstance(container, list) else container.update)(content)
