"""Latency of the deployed artefact beside eager PyTorch's, with its uncertainty."""
