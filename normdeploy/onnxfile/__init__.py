"""ONNX files: read as what anyone may have made, and written weight by weight.

Loaded when first used: to look a file through takes no onnx_ir.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from normdeploy.lazy import loaded_from

if TYPE_CHECKING:
    from normdeploy.onnxfile.look import check as check
    from normdeploy.onnxfile.look import data_files as data_files
    from normdeploy.onnxfile.look import made_by as made_by
    from normdeploy.onnxfile.look import metadata as metadata
    from normdeploy.onnxfile.look import shapes as shapes
    from normdeploy.onnxfile.read import adopt as adopt
    from normdeploy.onnxfile.read import from_message as from_message
    from normdeploy.onnxfile.read import had_training_info as had_training_info
    from normdeploy.onnxfile.read import load as load
    from normdeploy.onnxfile.read import require_unchanged as require_unchanged
    from normdeploy.onnxfile.tensors import FileTensor as FileTensor
    from normdeploy.onnxfile.write import save as save

_HOME = {
    "FileTensor": "tensors",
    "adopt": "read",
    "check": "look",
    "data_files": "look",
    "from_message": "read",
    "had_training_info": "read",
    "load": "read",
    "made_by": "look",
    "metadata": "look",
    "require_unchanged": "read",
    "save": "write",
    "shapes": "look",
}
__all__ = [
    "FileTensor",
    "adopt",
    "check",
    "data_files",
    "from_message",
    "had_training_info",
    "load",
    "made_by",
    "metadata",
    "require_unchanged",
    "save",
    "shapes",
]

__getattr__ = loaded_from(__name__, _HOME)
