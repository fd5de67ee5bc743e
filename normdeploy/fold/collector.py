"""Python's collector of cycles, kept from what lives long while a graph is worked on."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_NEVER = 2**31 - 1
_lock = threading.Lock()
_at_work = 0
_before = gc.get_threshold()


@contextmanager
def young_objects_only() -> Iterator[None]:
    """Let Python look for cycles among new objects only; the last one that leaves restores what was set before.

    A graph is many thousand objects that live to the end: to look through all of them, and through those of every
    imported module, again and again is a tenth of a fold, and finds nothing.
    """
    global _at_work, _before
    with _lock:
        if not _at_work:
            _before = gc.get_threshold()
            gc.set_threshold(*_before[:2], _NEVER)
        _at_work += 1
    try:
        yield
    finally:
        with _lock:
            _at_work -= 1
            if not _at_work:
                gc.set_threshold(*_before)
