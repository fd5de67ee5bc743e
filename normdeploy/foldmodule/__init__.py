"""Folded weights back in PyTorch: a module whose weights took in its norms, made from its exported graph's fold."""

from normdeploy.foldmodule.module import fold_module

__all__ = ["fold_module"]
