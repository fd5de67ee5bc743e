"""The ledger: every norm of a model, by module name, and what became of it.

It travels inside the ONNX file as ``metadata_props["normdeploy.ledger"]`` and in a bundle's report.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Literal

from normdeploy.errors import listed

if TYPE_CHECKING:
    from pydantic_core import CoreSchema

METADATA_KEY = "normdeploy.ledger"

KEPT = "NF008"
"""The code of a norm that the user wanted to stay."""
MEAN_IS_GONE = "its mean is gone"
"""How the reason of a LayerNorm begins that lost its mean."""

_SHOWN = 12
"""Names that a sentence lists; JSON has all."""

Outcome = Literal["folded", "composed", "reduced", "left"]


@dataclass(frozen=True)
class Entry:
    """What became of one norm or constant affine map.

    Attributes:
        module: PyTorch module name, or the node's name where the model carries none.
        node: the node's name in the graph that was given.
        kind: operator type, e.g. ``BatchNormalization``.
        norm: whether it is a normalization (False: a plain constant Mul, Add, ...).
        outcome: folded (nothing is left), composed (merged into one map that stays),
            reduced (a LayerNorm that lost its affine or its mean), left (untouched).
        into: names of the modules whose weights took the map.
        through: operators that the map passed on its way, in order.
        ulps: largest change of a stored weight, in units in the last place; None if no weight took it.
        residual: largest relative error of the float64 validation; None if nothing was rewritten.
        reason: why it was left; empty otherwise.
        fix: what would make it foldable; empty otherwise.
        codes: of each reason, in their order; ``normdeploy explain CODE`` tells more.
    """

    module: str
    node: str
    kind: str
    norm: bool
    outcome: Outcome
    into: tuple[str, ...] = ()
    through: tuple[str, ...] = ()
    ulps: float | None = None
    residual: float | None = None
    reason: str = ""
    fix: str = ""
    codes: tuple[str, ...] = ()

    def __str__(self) -> str:
        path = f" through {listed(self.through, _SHOWN)}" if self.through else ""
        if self.outcome == "left":
            return f"left: {self.reason} [{', '.join(self.codes)}]"
        return f"{self.outcome} into {listed(self.into, _SHOWN)}{path}" if self.into else self.outcome + path


class Note(str):
    """Something else to know of a fold: a sentence that ends in its code, of which ``normdeploy explain CODE`` tells
    more. In JSON it is an object of both.

    Attributes:
        code: the code.
        text: the sentence without it.
    """

    code: str
    text: str

    def __new__(cls, code: str, text: str) -> Note:
        """Return the sentence with its code behind it."""
        note = super().__new__(cls, f"{text} [{code}]")
        note.code, note.text = code, text
        return note

    def __reduce__(self) -> tuple[type[Note], tuple[str, str]]:
        return Note, (self.code, self.text)  # what a copy is made of

    def record(self) -> dict[str, str]:
        """Return what JSON holds of it."""
        return {"code": self.code, "text": self.text}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type, handler: object) -> CoreSchema:
        from pydantic_core import core_schema as schema  # only where there is something to read

        each = schema.typed_dict_field(schema.str_schema())
        record = schema.typed_dict_schema({"code": each, "text": each}, extra_behavior="forbid")
        read = schema.no_info_after_validator_function(lambda told: cls(**told), record)
        return schema.json_or_python_schema(
            json_schema=read,
            python_schema=schema.union_schema([schema.is_instance_schema(cls), read]),
            serialization=schema.plain_serializer_function_ser_schema(cls.record, return_schema=record),
        )


@dataclass(frozen=True)
class Ledger:
    """All entries of one fold, with notes, those on the plans whose proof failed by themselves, and the seconds.

    ``schema_version`` goes up when a field changes its meaning or goes away. Version 2: notes have codes.
    """

    entries: tuple[Entry, ...] = ()
    notes: tuple[Note, ...] = ()
    seconds: float = 0.0
    validation_seconds: float = 0.0
    dropped: tuple[Note, ...] = ()
    schema_version: Literal[2] = 2

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def norms(self) -> tuple[Entry, ...]:
        """Return the entries of normalization layers only."""
        return tuple(entry for entry in self.entries if entry.norm)

    def to_json(self) -> str:
        """Return one line of JSON with sorted keys: the same fold gives the same text, but for its seconds."""
        told = {name: [note.record() for note in getattr(self, name)] for name in ("notes", "dropped")}
        return json.dumps(asdict(self) | told, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Ledger:
        """Return the inverse of :meth:`to_json`; ValueError on any other text, which a file can hold."""
        from pydantic import TypeAdapter  # only where there is something to read

        return TypeAdapter(cls).validate_json(text, strict=True)


def with_history(ledger: Ledger, previous: str | None) -> Ledger:
    """Return what the file keeps: also what an earlier fold did; no seconds, so that equal folds give equal bytes."""
    kept: tuple[Entry, ...] = ()
    new = ledger.entries
    if previous is not None:
        try:
            changed = {(entry.module, entry.node) for entry in new if entry.outcome != "left"}
            kept = tuple(
                e for e in Ledger.from_json(previous) if (e.module, e.node) not in changed and e.outcome != "left"
            )
            before = {(entry.module, entry.node) for entry in kept}  # a norm reduced before has nothing left to give
            new = tuple(e for e in new if e.outcome != "left" or (e.module, e.node) not in before)
        except ValueError:
            kept, new = (), ledger.entries  # not ours to understand: the new ledger says what is true now
    return replace(ledger, entries=kept + new, seconds=0.0, validation_seconds=0.0)


def left(entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries that stayed as they were."""
    return [entry for entry in entries if entry.outcome == "left"]
