"""The graph as the fold reads it, and what is done to its stored tensors."""
