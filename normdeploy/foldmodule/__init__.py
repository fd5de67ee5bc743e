"""Folded weights back in PyTorch: a module whose weights took in its norms, made from its exported graph's fold."""
