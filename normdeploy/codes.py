"""Stable codes of what commands say: one page each, which ``normdeploy explain CODE`` prints.

A code never changes its meaning, and never comes back for another; prose around it may. Each family of codes has its
pages in a module of its own, which is imported when one of its codes is looked up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module

from normdeploy.errors import InputError

FAMILIES = {"ND": "normdeploy.doctor.codes", "NF": "normdeploy.fold.codes", "NT": "normdeploy.foldmodule.codes"}
"""The first two letters of a code, and the module whose ``PAGES``, a tuple, explain that family."""

_CODE = re.compile(r"[A-Z]{2}\d{3}")


@dataclass(frozen=True)
class Page:
    """What there is to know of one code.

    Attributes:
        code: two letters and three digits.
        title: a few words, for headings and tables.
        what: what was found.
        why: why that decides as it does.
        example: the smallest thing that gives this code.
        fix: what a user can do.
    """

    code: str
    title: str
    what: str
    why: str
    example: str
    fix: str


def is_code(text: str) -> bool:
    """Return whether ``text`` is written as a code, in capitals or not, known or not."""
    return _CODE.fullmatch(text.upper()) is not None


def page(code: str) -> Page:
    """Return the page of ``code``, which may be written in small letters.

    Raises:
        InputError: there is no such code, or ``code`` is not written as one.
    """
    if not is_code(code):
        what = "neither a bundle or a file that is there, nor a code"
        fix = f"check the path, or write a code such as NF201; codes begin with {' or '.join(FAMILIES)}"
        raise InputError(what, where=code, fix=fix)
    code = code.upper()
    module = FAMILIES.get(code[:2])
    pages: dict[str, Page] = {} if module is None else {each.code: each for each in import_module(module).PAGES}
    if code not in pages:
        known = f"choose among: {', '.join(pages)}" if pages else f"codes begin with {' or '.join(FAMILIES)}"
        raise InputError(f"there is no code {code!r}", where="explain", fix=known)
    return pages[code]
