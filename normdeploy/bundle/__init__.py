"""The deployment folder: the ONNX model with its evidence, written whole or not at all, and checked when it is read.

::

    model.onnx  (model.onnx.data)   the model; its weights beside it above 1.5 GB
    manifest.json                   what it is, where it came from, sha256 of every other file
    io.json                         its inputs and outputs, for other programs
    report.json  report.html        what became of each norm, parity, latency
    model.plan  model.plan.json     a TensorRT engine and what it was built by, for and from, where one was asked for
    golden/inputs.npz  outputs.npz  one feed, and what the model made of it where it was exported

Loaded when first used: who runs a bundle writes none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from normdeploy.lazy import loaded_from

if TYPE_CHECKING:
    from normdeploy.bundle.failed import remove_failed as remove_failed
    from normdeploy.bundle.failed import write_failed as write_failed
    from normdeploy.bundle.golden import Golden as Golden
    from normdeploy.bundle.load import load_bundle as load_bundle
    from normdeploy.bundle.loaded import Bundle as Bundle
    from normdeploy.bundle.manifest import Manifest as Manifest
    from normdeploy.bundle.target import check_target as check_target
    from normdeploy.bundle.writing import write as write

_HOME = {
    "Bundle": "loaded",
    "Golden": "golden",
    "Manifest": "manifest",
    "check_target": "target",
    "load_bundle": "load",
    "remove_failed": "failed",
    "write": "writing",
    "write_failed": "failed",
}
__all__ = ["Bundle", "Golden", "Manifest", "check_target", "load_bundle", "remove_failed", "write", "write_failed"]

__getattr__ = loaded_from(__name__, _HOME)
