"""Parity: whether the deployed artefact computes what eager PyTorch computes, without guessed tolerances."""
