"""The heart: affine maps travel from the norms into the weights of their neighbours, and each step is proven."""

from normdeploy.fold.driver import FoldResult, fold
from normdeploy.fold.layernorm.reduce import Level
from normdeploy.fold.layernorm.targets import Target
from normdeploy.fold.ledger import Entry, Ledger

__all__ = ["Entry", "FoldResult", "Ledger", "Level", "Target", "fold"]
