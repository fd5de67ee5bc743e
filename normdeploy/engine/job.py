"""What the two processes of a build say to each other, as JSON files in one folder."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

JOB, RESULT, PLAN, LOG = "job.json", "result.json", "plan", "log.txt"
TF32_OVERRIDE = "NVIDIA_TF32_OVERRIDE"
"""The environment variable that CUDA's libraries read when they are loaded, and TensorRT's builder before its flags."""

Ranges = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


@dataclass(frozen=True)
class Job:
    """What to build.

    Attributes:
        backend: its package.
        model: path of the ONNX file.
        operators: the operator types in it.
        profiles: input name → (min, opt, max) shapes, one dictionary a profile.
        lint_only: only ask which operators are unknown.
        sm: compute capabilities to aim at.
        workspace: most bytes of scratch memory.
        level: builder optimization level, 0 to 5.
        version_compatible, refit: flags of the same name.
        timing_cache: folder of the timing caches.
        gpu: the GPU at hand, as the timing cache's key names it.
        plugin_sm: the compute capability that LayerNorm plugins are compiled for; None where there are none.
    """

    backend: str
    model: str
    operators: tuple[str, ...]
    profiles: tuple[Ranges, ...]
    lint_only: bool = False
    sm: tuple[str, ...] = ()
    workspace: int | None = None
    level: int | None = None
    version_compatible: bool = False
    refit: bool = False
    timing_cache: str | None = None
    gpu: str | None = None
    plugin_sm: int | None = None

    def write(self, folder: Path) -> None:
        """Leave the job in ``folder``."""
        (folder / JOB).write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, folder: Path) -> Job:
        """Return the job in ``folder``."""
        return cls(**json.loads((folder / JOB).read_text()))


@dataclass(frozen=True)
class ParserError:
    """One error of the ONNX parser."""

    node: str
    operator: str
    what: str


@dataclass(frozen=True)
class Result:
    """What came of it; the plan, if there is one, lies beside it.

    Attributes:
        error: class, what, where and fix of an error of ours.
        version: the backend's.
        unknown_operators: operator types that the backend does not know; nothing was built then.
        parser_errors, builder_errors: what they said where they failed.
        warnings: the backend's.
        targets: compute capabilities aimed at.
        timing_cache_key: the cache that was used.
        layers: the ``Layers:`` message of the log.
        inspector: the inspector's JSON, where there is a GPU.
    """

    error: tuple[str, str, str, str] | None = None
    version: str = ""
    unknown_operators: tuple[str, ...] = ()
    parser_errors: tuple[ParserError, ...] = ()
    builder_errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    timing_cache_key: str | None = None
    layers: str = ""
    inspector: str = ""

    def replace(self, **changes: Any) -> Result:
        """Return the same with ``changes``."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> str:
        """Return the inverse of :meth:`read`."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Result:
        """Return the result in ``folder``."""
        raw = json.loads((folder / RESULT).read_text())
        errors = tuple(ParserError(**item) for item in raw.pop("parser_errors"))
        lists: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()
        }
        return cls(parser_errors=errors, **lists)
