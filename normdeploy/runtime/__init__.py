"""Eager PyTorch, ONNX Runtime and TensorRT behind one small protocol."""
