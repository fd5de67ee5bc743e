"""Looks at a module before it is deployed: which norms it has, in which mode, with which statistics."""
