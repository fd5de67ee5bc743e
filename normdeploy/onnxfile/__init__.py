"""ONNX files: read as what anyone may have made, and written weight by weight."""

from normdeploy.onnxfile.read import adopt, check, data_files, from_message, load, metadata, require_unchanged
from normdeploy.onnxfile.tensors import FileTensor
from normdeploy.onnxfile.write import save

__all__ = [
    "FileTensor",
    "adopt",
    "check",
    "data_files",
    "from_message",
    "load",
    "metadata",
    "require_unchanged",
    "save",
]
