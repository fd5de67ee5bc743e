"""KServe: the InferenceService by which a cluster serves a Triton repository, with autoscaling and a canary."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from normdeploy.disk import write_file
from normdeploy.errors import InputError
from normdeploy.serving.readme import IMAGE

FILE = "inferenceservice.yaml"
_MARK = "# normdeploy package writes this file; kubectl apply -f applies it"
_URI = re.compile(r"[a-z][a-z0-9+.-]*://\S+", re.A)
_STEP = 256
"""MiB that the memory is rounded up to; a server without a model takes twice as much."""

_MOST = 1 << 31
"""Numbers of Kubernetes have 32 bits."""

Metric = Literal["concurrency", "rps", "cpu", "memory"]


@dataclass(frozen=True, kw_only=True)
class KServe:
    """How a cluster serves a repository.

    Attributes:
        storage: where the cluster finds the repository: ``pvc://claim/path``, ``s3://bucket/path``, ...
        min_replicas: pods at least; with 0 the last one ends where nobody asks.
        max_replicas: pods at most.
        scale_metric: what more pods are started by; None leaves it to KServe.
        scale_target: how much of that a pod is to have: requests at once, or a second; per cent of CPU or memory.
        canary: per cent of the requests that a new revision gets; None for all, once it is ready.
    """

    storage: str
    min_replicas: int = 1
    max_replicas: int = 1
    scale_metric: Metric | None = None
    scale_target: int | None = None
    canary: int | None = None


def check_kserve(kserve: KServe) -> None:
    """Raise InputError for what no cluster can be asked."""
    if not _URI.fullmatch(kserve.storage):
        fix = "write e.g. --kserve pvc://models/repository, where the repository will lie"
        raise InputError("no place that KServe loads from", where=f"--kserve {kserve.storage}", fix=fix)
    if not 0 <= kserve.min_replicas <= kserve.max_replicas < _MOST or kserve.max_replicas < 1:
        given = f"--min-replicas {kserve.min_replicas} --max-replicas {kserve.max_replicas}"
        raise InputError("no range of replicas", where=given, fix="give at least 0, and at most as many or more")
    target = kserve.scale_target
    if (kserve.scale_metric is None) != (target is None) or (target is not None and not 0 < target < _MOST):
        fix = "give both, e.g. --scale-metric concurrency --scale-target 8"
        raise InputError("a metric and its target go together", where="--scale-metric, --scale-target", fix=fix)
    if kserve.canary is not None and not 0 <= kserve.canary <= 100:
        raise InputError("no share of the requests", where=f"--canary {kserve.canary}", fix="give 0 to 100 per cent")


def inference_service(
    name: str, versions: Mapping[str, int], nbytes: int, kserve: KServe, *, gpus: int = 0
) -> dict[str, Any]:
    """Return the InferenceService of the repository ``name``, whose models have ``versions`` as their latest.

    These are an annotation of the pods: a new version makes a new revision, which a canary is. ``nbytes`` are those of
    the models, of which a pod is given three times the memory, and ``gpus`` how many it needs.
    """
    memory = f"{_STEP * (2 + math.ceil(3 * nbytes / (_STEP << 20)))}Mi"
    resources: dict[str, Any] = {"requests": {"cpu": "1", "memory": memory}, "limits": {"memory": memory}}
    if gpus:
        resources["limits"]["nvidia.com/gpu"] = str(gpus)
    predictor: dict[str, Any] = {
        "annotations": {"normdeploy/versions": " ".join(f"{each}={number}" for each, number in versions.items())},
        "minReplicas": kserve.min_replicas,
        "maxReplicas": kserve.max_replicas,
    }
    if kserve.scale_metric is not None:
        predictor |= {"scaleMetric": kserve.scale_metric, "scaleTarget": kserve.scale_target}
    if kserve.canary is not None:
        predictor["canaryTrafficPercent"] = kserve.canary
    predictor["model"] = {
        "modelFormat": {"name": "triton"},
        "runtime": "kserve-tritonserver",
        "runtimeVersion": IMAGE.partition(":")[2],
        "protocolVersion": "v2",
        "storageUri": kserve.storage,
        "resources": resources,
    }
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": _label(name)},
        "spec": {"predictor": predictor},
    }


def write_kserve(repository: Path, document: Mapping[str, Any]) -> Path:
    """Write ``document`` into ``repository``, and return its path.

    Raises InputError where somebody else's file has its name.
    """
    path = require_ours(repository)
    write_file(path, "\n".join([_MARK, *_yaml(document), ""]).encode(), replace=True)
    return path


def require_ours(repository: Path) -> Path:
    """Return where the InferenceService lies in ``repository``; InputError where somebody else's file has its name."""
    path = repository / FILE
    try:
        ours = path.read_text(encoding="utf-8").startswith(_MARK)
    except FileNotFoundError:
        ours = True
    except (OSError, UnicodeError):
        ours = False
    if not ours:
        what = "the file is not one that normdeploy wrote, and is not replaced"
        raise InputError(what, where=str(path), fix="move it away, or package without --kserve")
    return path


def _label(name: str) -> str:
    """Return ``name`` as Kubernetes takes it: a DNS label that begins with a letter (RFC 1035)."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return (label if label[:1].isalpha() else f"models-{label}")[:50].strip("-")


def _yaml(value: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """The lines of a mapping in YAML; a scalar of JSON is one of YAML."""
    for key, each in value.items():
        word = key if re.fullmatch(r"[A-Za-z]\w*", key) else json.dumps(key)
        if isinstance(each, Mapping):
            yield f"{indent}{word}:"
            yield from _yaml(each, f"{indent}  ")
        else:
            yield f"{indent}{word}: {json.dumps(each)}"
