"""The codes of the fold, ``NF…``: why a norm or map was left, why a plan was dropped, what a note says.

A new kind of refusal is one more page in the file of its family, and a case in ``tests/fold/test_fold_codes.py`` that
gives its code.
"""

from __future__ import annotations

from normdeploy.fold.codes import conditions, norms, proofs, travel, weights

PAGES = (*travel.PAGES, *weights.PAGES, *conditions.PAGES, *norms.PAGES, *proofs.PAGES)
"""Every page of the family, in the order of the codes."""
