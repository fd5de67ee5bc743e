"""``normdeploy.toml``: options of ``normdeploy export`` from the current folder; what is typed wins.

It is read for ``export`` alone, and what it sets is said: a file in a folder from elsewhere may not change what the
other commands do, and may not say what is trusted.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cyclopts import App
from cyclopts.argument import ArgumentCollection
from cyclopts.config import Toml

from normdeploy.errors import InputError

NAME = "normdeploy.toml"
_COMMAND = "export"
_TYPED = ("trust",)
_LARGE = 1 << 63
_MOST = 1 << 14
"""Bytes: tomllib's time and memory grow with the square of a dotted key."""


class ExportConfig(Toml):
    """The table ``[export]`` of ``normdeploy.toml``, as cyclopts asks for it."""

    def __init__(self) -> None:
        super().__init__(NAME)

    def __call__(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Give ``arguments`` what was not typed. Raises InputError for what the file may not say."""
        if commands != (_COMMAND,) or not Path(NAME).is_file():
            return
        if Path(NAME).stat().st_size > _MOST:
            raise InputError(f"it has more than {_MOST:,} bytes", where=NAME, fix="give options alone, or remove it")
        try:
            table = self.config.get(_COMMAND, {})
        except Exception as error:
            raise InputError(f"cannot be read: {error}", where=NAME, fix="correct the file, or remove it") from error
        if others := [name for name in self.config if name != _COMMAND]:
            what = f"there is no table but [{_COMMAND}]"
            raise InputError(what, where=f"{NAME}: {', '.join(others)}", fix="remove it")
        if not isinstance(table, dict):
            raise InputError("export is no table", where=NAME, fix="write [export], and the options below it")
        if typed := [name for name in table if name in _TYPED]:
            what = f"{typed[0]} is only taken from the command line"
            raise InputError(what, where=NAME, fix=f"type --{typed[0]} PATH")
        if large := [name for name, value in table.items() if isinstance(value, int) and abs(value) >= _LARGE]:
            raise InputError(f"the number {large[0]} is too large", where=NAME, fix="correct it")
        given = {argument.name for argument in arguments if argument.tokens}
        used = [name for name in table if _option(name) not in given]
        super().__call__(app, commands, arguments)
        if used:
            print(f"note: from {NAME}: {', '.join(map(_option, used))}", file=sys.stderr)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
