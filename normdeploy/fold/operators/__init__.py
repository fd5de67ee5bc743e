"""One rule an operator: how an affine map passes it, upward and downward, or the reason why not."""
