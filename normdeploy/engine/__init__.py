"""Graph → TensorRT plan: lint, profiles, build, layer table, sidecar. Loaded when first used, as a build is lean.

What has been executed: everything up to and including real TensorRT-RTX plans, on machines without a GPU. What has
not: the full TensorRT backend and everything that needs a GPU (the inspector, the timing cache, deserialising) is
written to the vendors' documentation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from normdeploy.lazy import loaded_from

if TYPE_CHECKING:
    from normdeploy.engine.backends import BACKENDS as BACKENDS
    from normdeploy.engine.builder import EngineBuild as EngineBuild
    from normdeploy.engine.builder import build as build
    from normdeploy.engine.builder import require_targets as require_targets
    from normdeploy.engine.layers import EngineLayer as EngineLayer
    from normdeploy.engine.sidecar import Sidecar as Sidecar
    from normdeploy.engine.sidecar import read_plan as read_plan

_HOME = {
    "BACKENDS": "backends",
    "EngineBuild": "builder",
    "build": "builder",
    "EngineLayer": "layers",
    "Sidecar": "sidecar",
    "read_plan": "sidecar",
    "require_targets": "builder",
}
__all__ = ["BACKENDS", "EngineBuild", "EngineLayer", "Sidecar", "build", "read_plan", "require_targets"]

__getattr__ = loaded_from(__name__, _HOME)
