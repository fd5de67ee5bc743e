"""The account that an export gives of itself: everything the report says that no room has said already."""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from normdeploy.checkpoint import Checkpoint
from normdeploy.errors import plain
from normdeploy.export import Exported
from normdeploy.fold import FoldResult
from normdeploy.fold.operators.table import NORMS
from normdeploy.graph import operator
from normdeploy.parity.verdict import Verdict
from normdeploy.report import view
from normdeploy.report.schema import Report

_PACKAGES = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


def account(
    checkpoint: Checkpoint,
    exported: Exported,
    folded: FoldResult,
    verdict: Verdict,
    notes: Sequence[str],
    **more: Any,
) -> Report:
    """Return the report of one export; ``notes`` come behind those of its stages, ``more`` are fields as they are."""
    return Report(
        created=datetime.now(UTC),
        normdeploy_version=version("normdeploy"),
        packages=packages(),
        factory=checkpoint.factory,
        weights=plain(checkpoint.weights.name) if checkpoint.weights else None,
        weights_sha256=checkpoint.weights_sha256,
        trusted=dict(checkpoint.trusted),
        outputs=list(exported.outputs),
        opset=folded.model.opset_imports[""],
        precision=precision(folded.model),
        norms_before=norm_counts(exported.model),
        norms_after=norm_counts(folded.model),
        ledger=folded.ledger,
        parity=verdict,
        notes=[*checkpoint.notes, *exported.notes, *notes],
        machine=machine(),
        bytes_before=weight_bytes(exported.model),
        bytes_after=weight_bytes(folded.model),
        **more,
    )


def machine() -> str:
    """Return the processor, how many cores of it, and the system."""
    cores = os.cpu_count() or 1
    return f"{processor()}, {view.count(cores, 'core')}, {platform.system()} {platform.release()}"


def processor() -> str:
    """Return the processor's name as Linux knows it, else its architecture."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def weight_bytes(model: ir.Model) -> int:
    """Return the bytes of all initializers."""
    values = [value for graph in model.graphs() for value in graph.initializers.values()]
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def packages() -> dict[str, str]:
    """Return package → version of what takes part, Python included."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # onnxruntime comes in distributions of several names
            continue
    return found


def norm_counts(model: ir.Model) -> dict[str, int]:
    """Return operator type → how many norms of it ``model`` has."""
    return dict(Counter(operator(node) for node in model.graph.all_nodes() if operator(node) in NORMS))


def precision(model: ir.Model) -> str:
    """Return the floating-point dtypes of the weights, that of the most bytes first."""
    sizes: Counter[str] = Counter()
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.dtype.is_floating_point():
                sizes[tensor.dtype.numpy().name] += tensor.nbytes
    return ", ".join(name for name, _ in sizes.most_common()) or "no floating-point weights"
