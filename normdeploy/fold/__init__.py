"""The heart: affine maps travel from the norms into the weights of their neighbours, and each step is proven.

Loaded when first used: who reads a ledger needs none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from normdeploy.lazy import loaded_from

if TYPE_CHECKING:
    from normdeploy.fold.driver import FoldResult as FoldResult
    from normdeploy.fold.driver import fold as fold
    from normdeploy.fold.ledger import Entry as Entry
    from normdeploy.fold.ledger import Ledger as Ledger
    from normdeploy.fold.ledger import Note as Note
    from normdeploy.fold.levels import Level as Level
    from normdeploy.fold.levels import Target as Target

_HOME = {
    "Entry": "ledger",
    "FoldResult": "driver",
    "Ledger": "ledger",
    "Level": "levels",
    "Note": "ledger",
    "Target": "levels",
    "fold": "driver",
}
__all__ = ["Entry", "FoldResult", "Ledger", "Level", "Note", "Target", "fold"]

__getattr__ = loaded_from(__name__, _HOME)
