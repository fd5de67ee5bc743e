"""What the user says about the names in a file: the entry, prefixes, renamings, and what need not match."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from normdeploy import errors
from normdeploy.errors import InputError, plain

SHOWN = 20
"""How many names a message lists."""


@dataclass(frozen=True)
class Rename:
    """``OLD=NEW``: a whole name, or with one star in each the same for whatever it stands for."""

    old: str
    new: str

    @classmethod
    def parse(cls, text: str) -> Rename:
        """Return the renaming that ``text`` spells. Raises InputError."""
        old, equals, new = text.partition("=")
        if not (equals and old and new) or old.count("*") > 1 or new.count("*") != old.count("*"):
            fix = "write --rename OLD=NEW, with one star in both or in none, e.g. --rename '*.gamma=*.weight'"
            raise InputError("a renaming that cannot be read", where=f"--rename {text}", fix=fix)
        return cls(old, new)

    def __call__(self, name: str) -> str:
        """Return the new name; ``name`` itself where it is not the old one."""
        if "*" not in self.old:
            return self.new if name == self.old else name
        head, _, tail = self.old.partition("*")
        if len(name) < len(head) + len(tail) or not (name.startswith(head) and name.endswith(tail)):
            return name
        return self.new.replace("*", name[len(head) : len(name) - len(tail)])

    def __str__(self) -> str:
        return f"{self.old}={self.new}"


@dataclass(frozen=True)
class Names:
    """How the names of a file become those of the module; None where the user did not say.

    Attributes:
        key: dotted path of the entry that holds the state dict.
        strip: taken off the start of every name that has it.
        rename: then applied, one after the other.
        add: then put before every name.
        ignore: patterns (fnmatch) of names in the file that the module need not have.
        allow: patterns of names in the module that the file need not have.
    """

    key: str | None = None
    strip: str | None = None
    rename: Sequence[Rename] = ()
    add: str | None = None
    ignore: Sequence[str] = ()
    allow: Sequence[str] = ()

    def flags(self) -> str:
        """Return the options that say the same on a command line."""
        given: list[tuple[str, str | None]] = [("--weights-key", self.key), ("--strip-prefix", self.strip)]
        given += [("--rename", str(each)) for each in self.rename]
        given += [("--add-prefix", self.add)]
        given += [("--ignore-unexpected", pattern) for pattern in self.ignore]
        given += [("--allow-missing", pattern) for pattern in self.allow]
        return " ".join(f"{flag} {_quoted(value)}" for flag, value in given if value is not None)

    def may_miss(self, name: str) -> bool:
        """Return True if the file need not have ``name``; norm statistics must be named by the pattern itself."""
        last = name.rpartition(".")[2]
        statistics = last in ("running_mean", "running_var")
        return any(fnmatchcase(name, p) and (not statistics or "running_" in p) for p in self.allow)

    def ignores(self, name: str) -> bool:
        """Return True if the module need not have ``name``."""
        return any(fnmatchcase(name, pattern) for pattern in self.ignore)


def listed(names: Iterable[str], shown: int = SHOWN) -> str:
    """Return ``names`` as a message lists them: the first ones, and how many more there are."""
    return errors.listed(map(plain, names), shown)


def _quoted(text: str) -> str:
    """Return ``text`` as a shell reads it; what is not printable as bash, zsh and ksh spell it, on one line."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(f"\\{char}" if char in "\\'" else plain(char) for char in text) + "'"
