"""One error tree: every error says what is wrong, where, and how to fix it, and carries the exit code.

Exit codes: 0 done and the verdict passed, 1 the verdict failed, 2 usage or unreadable input,
3 this machine cannot (no GPU, no TensorRT).
"""

from __future__ import annotations

from collections.abc import Iterable


def plain(text: str) -> str:
    """Return ``text`` with each character that is not printable spelled out, line breaks among them.

    Names in files are anyone's: they may neither steer a terminal, nor turn its text around, nor begin a line of their
    own in a message.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def listed(items: Iterable[object], most: int, *, by: str = ", ") -> str:
    """Return ``items`` as a message lists them: the first ``most``, with ``by`` between, and how many more."""
    told = [str(item) for item in items]
    behind = by if "\n" in by else " "
    return by.join(told[:most]) + (f"{behind}and {len(told) - most} more" if len(told) > most else "")


def printable(text: str) -> str:
    """Return ``text``, whose line breaks are ours, with every other character as by :func:`plain`."""
    return "\n".join(map(plain, text.split("\n")))


def words(error: BaseException) -> str:
    """Return what ``error``, which anyone's code may have raised, says: at most a page, nothing where it cannot."""
    try:
        return cut(str(error))
    except Exception:
        return ""


_PAGE, _LINE = 4000, 1000
"""Characters of a message that is shown, and of each of its lines."""


def cut(text: str, line: int = _LINE) -> str:
    """Return ``text``, in which there may be anyone's words: at most a page of it, of each line ``line`` characters."""
    shown = "\n".join(part if len(part) <= line else f"{part[:line]} ..." for part in text[:_PAGE].split("\n"))
    return shown if len(text) <= _PAGE else f"{shown} ... ({len(text):,} characters in all)"


def _own_lines(text: str) -> str:
    """Return ``text`` as by :func:`printable`, a line break before what looks like a part of an error spelled out."""
    first, *rest = printable(text).split("\n")
    return first + "".join(f"\\n{line}" if line.lstrip().startswith(_PARTS) else f"\n{line}" for line in rest)


_PARTS = ("error:", "where:", "fix:", "note:")
"""With these a line of a message begins: no name in one may forge it."""


class NormdeployError(Exception):
    """Base of every error that a user can cause or meet.

    Args:
        what: one sentence that says what is wrong.
        where: the file, argument, module name or node name it is wrong at.
        fix: what the user can do about it.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        self.what, self.where, self.fix = cut(_own_lines(what)), cut(plain(where)), cut(_own_lines(fix), line=_PAGE)
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [self.what, self.where and f"  where: {self.where}", self.fix and f"  fix: {self.fix}"]
        return "\n".join(part for part in parts if part)


class InputError(NormdeployError):
    """What was given cannot be read or used (exit code 2)."""


class VerdictError(NormdeployError):
    """The job ran and its verdict is a failure (exit code 1)."""

    exit_code = 1


class UnavailableError(NormdeployError):
    """This machine cannot do it: no GPU, or a backend that is not installed (exit code 3)."""

    exit_code = 3


class MissingKernelError(UnavailableError):
    """The runtime has no kernel for an operator of the model, in the type that it computes in (exit code 3)."""


EXPORT_ONLY = ("filelock", "matplotlib", "onnx_ir", "onnxscript", "safetensors", "threadpoolctl", "torch")
"""Packages that making bundles takes, and running them does not."""


def missing(error: ModuleNotFoundError) -> UnavailableError | None:
    """Return the error that says what to install, where a package is missing that the runtime comes without."""
    name = (error.name or "").partition(".")[0]
    if name not in EXPORT_ONLY:
        return None
    return UnavailableError(f"{name} is not installed", fix="pip install 'normdeploy[export]'")
