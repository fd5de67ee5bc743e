"""Errors of the rooms that serve commands, in the words of somebody who calls a function: without their options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from normdeploy.errors import InputError

_WORDS = {
    r"give the inputs as @[@\w ]+": "cast the inputs",
    r"let the factory return": "give",
    r"the factory leaves": "the module has",
    r", in the factory,| in the factory": "",
    r"input specs": "example inputs",
    r"--input ": "",
}
_CLAUSES = re.compile(r"(?=; |, or )")
_OF_COMMANDS = re.compile(r"--\w|need one name|by its place|ask for sizes")
_ELSE = "give other example inputs, or change forward"


@contextmanager
def in_python() -> Iterator[None]:
    """Raise any InputError again with the advice of it that a caller from Python can follow."""
    try:
        yield
    except InputError as error:
        advice = [part for part in _CLAUSES.split(_reworded(error.fix)) if not _OF_COMMANDS.search(part)]
        fix = re.sub("^(; or |; |, or )", "", "".join(advice)) or (error.fix and _ELSE)
        raise InputError(_reworded(error.what), where=_reworded(error.where), fix=fix) from error


def _reworded(text: str) -> str:
    for of_commands, word in _WORDS.items():
        text = re.sub(of_commands, word, text)
    return text
