"""What the doctor finds: a code, how bad it is, at which module, in one sentence. Knows no PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from normdeploy.errors import InputError

Severity = Literal["error", "warning", "note"]
"""An error makes the deployed network another one, or none; a warning may; a note is good to know."""

SEVERITIES: dict[str, Severity] = {
    "ND001": "error",
    "ND002": "warning",
    "ND003": "error",
    "ND004": "error",
    "ND005": "error",
    "ND006": "warning",
    "ND007": "warning",
    "ND008": "note",
    "ND009": "warning",
    "ND010": "warning",
    "ND011": "warning",
    "ND012": "note",
    "ND013": "warning",
    "ND014": "error",
    "ND015": "warning",
    "ND016": "warning",
    "ND017": "note",
    "ND018": "warning",
    "ND019": "error",
    "ND020": "note",
}
"""How bad what each code says is."""


@dataclass(frozen=True)
class Finding:
    """One thing that is to be known of a norm.

    Attributes:
        code: of its page, which ``normdeploy explain`` shows.
        severity: how bad it is.
        module: dotted module name; empty for the module itself, or all of it.
        message: one sentence, with its numbers.
    """

    code: str
    severity: Severity
    module: str
    message: str

    def __str__(self) -> str:
        return f"{self.code} {self.severity} {called(self.module)}: {self.message}"


def called(module: str) -> str:
    """Return the dotted name of a module as users are told it: the whole of it has none."""
    return module or "(the module itself)"


def finding(code: str, module: str, message: str) -> Finding:
    """Return what ``code`` says of ``module``."""
    return Finding(code, SEVERITIES[code], module, message)


def chosen(findings: Iterable[Finding], select: Sequence[str], ignore: Sequence[str]) -> tuple[Finding, ...]:
    """Return the findings whose code a pattern of ``select`` fits (all where there is none), and none of ``ignore``.

    A pattern is a code, or ``ND01*``, in capitals or not. Raises InputError for one that fits no code.
    """
    select, ignore = [each.upper() for each in select], [each.upper() for each in ignore]
    for pattern in (*select, *ignore):
        if not any(fnmatchcase(code, pattern) for code in SEVERITIES):
            option = "--select" if pattern in select else "--ignore"
            fix = f"codes are {min(SEVERITIES)} to {max(SEVERITIES)}; normdeploy explain {min(SEVERITIES)} shows one"
            raise InputError(f"no check has the code {pattern!r}", where=option, fix=fix)
    return tuple(
        each
        for each in findings
        if (not select or any(fnmatchcase(each.code, pattern) for pattern in select))
        and not any(fnmatchcase(each.code, pattern) for pattern in ignore)
    )
