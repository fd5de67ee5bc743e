"""The deployment folder: the ONNX model with its evidence, written whole or not at all, and checked when it is read.

::

    model.onnx  (model.onnx.data)   the model; its weights beside it above 1.5 GB
    manifest.json                   what it is, where it came from, sha256 of every other file
    io.json                         its inputs and outputs, for other programs
    report.json  report.html        what became of each norm, parity, latency
    model.plan  model.plan.json     a TensorRT engine and what it was built by, for and from, where one was asked for
    golden/inputs.npz  outputs.npz  one feed, and what the model made of it where it was exported
"""

from normdeploy.bundle.failed import remove_failed, write_failed
from normdeploy.bundle.golden import Golden
from normdeploy.bundle.load import Bundle, load_bundle
from normdeploy.bundle.manifest import Manifest
from normdeploy.bundle.write import check_target, write

__all__ = ["Bundle", "Golden", "Manifest", "check_target", "load_bundle", "remove_failed", "write", "write_failed"]
