"""Two builders behind one interface, found at run time by what is installed; features by hasattr, never by version.

``tensorrt`` builds on the GPU that it builds for. It is written to the API that its documentation gives for 10.15 to
11.x and has not been executed. ``tensorrt_rtx`` builds ahead of time, without a GPU, for a list of compute
capabilities; it is built with in every test run.
"""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from normdeploy.errors import InputError, UnavailableError

_RTX_AVOIDED = ("SM75",)  # it has no float32 matrix product: float32 models fail there


class Backend(ABC):
    """One builder: what it needs, and the settings that only it has.

    Attributes:
        name: how it is called on the command line, and its Python package.
        title: how it is called in a message.
        install: the command that installs it.
        needs_gpu: whether it builds only on a machine with a GPU.
        keeps_timings: whether it fills a timing cache.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    install: ClassVar[str]
    needs_gpu: ClassVar[bool]
    keeps_timings: ClassVar[bool]

    def is_installed(self) -> bool:
        """Return True if its package is there; importing it, which may start CUDA, is left to the builder's process."""
        return importlib.util.find_spec(self.name) is not None

    @abstractmethod
    def network_flags(self, trt: Any) -> int:
        """Return the flags of a strongly typed network, in which precision is what the graph says."""

    def register_plugins(self, trt: Any, sm: int) -> None:
        """Register the LayerNorm plugins, compiled for the compute capability ``sm``, such as 90."""
        raise AssertionError("choose_for_plugins lets no other backend through")

    @abstractmethod
    def set_targets(self, trt: Any, config: Any, sm: Sequence[str]) -> tuple[str, ...]:
        """Aim ``config`` at compute capabilities such as ``89``; gives those aimed at, none for the GPU at hand."""


class TensorRT(Backend):
    """The full TensorRT, 10.15 to 11.x."""

    name = "tensorrt"
    title = "TensorRT"
    install = "pip install 'normdeploy[gpu]'"
    needs_gpu = True
    keeps_timings = True

    def network_flags(self, trt: Any) -> int:
        """Return the flags that there are: version 11 is always strongly typed, and may have lost the flag for it."""
        names = ("STRONGLY_TYPED", "PREFER_AOT_PYTHON_PLUGINS")
        flags = [getattr(trt.NetworkDefinitionCreationFlag, name, None) for name in names]
        return sum(1 << int(flag) for flag in flags if flag is not None)

    def register_plugins(self, trt: Any, sm: int) -> None:
        """Register the LayerNorm plugins, compiled for the compute capability ``sm``, such as 90."""
        from normdeploy.engine import plugin, plugin_v3

        plugin.register(importlib.import_module("tensorrt.plugin"), trt, sm)
        plugin_v3.register(trt, sm)

    def set_targets(self, trt: Any, config: Any, sm: Sequence[str]) -> tuple[str, ...]:
        """Refuse targets: it builds for the GPU at hand and no other."""
        if sm:
            raise InputError(
                "TensorRT builds for the GPU at hand only",
                where=f"--sm {','.join(sm)}",
                fix="leave --sm out, or build with --backend tensorrt_rtx",
            )
        return ()


class TensorRTRTX(Backend):
    """TensorRT for RTX: ahead of time, for several GPUs, compiled to the end on the GPU that loads it."""

    name = "tensorrt_rtx"
    title = "TensorRT-RTX"
    install = "pip install 'normdeploy[rtx]'"
    needs_gpu = False
    keeps_timings = False

    def network_flags(self, trt: Any) -> int:
        """Return no flags: all its networks are strongly typed."""
        return 0

    def set_targets(self, trt: Any, config: Any, sm: Sequence[str]) -> tuple[str, ...]:
        """Set those in ``sm``, or every one it knows that can compute all precisions."""
        names = [name for name in dir(trt.ComputeCapability) if name.startswith("SM")]
        known = sorted(names, key=lambda name: int(name.removeprefix("SM")))
        wanted = [f"SM{each}" for each in sm] or [name for name in known if name not in _RTX_AVOIDED]
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise InputError(
                f"{self.title} builds for no {', '.join(unknown)}",
                where=f"--sm {','.join(sm)}",
                fix=f"choose among {', '.join(name.removeprefix('SM') for name in known)}",
            )
        config.num_compute_capabilities = len(wanted)
        for index, name in enumerate(wanted):
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
        return tuple(wanted)


BACKENDS: tuple[Backend, ...] = (TensorRT(), TensorRTRTX())
"""In the order they are preferred, where they can be used."""


def choose(name: str | None, *, gpu: bool, sm: Sequence[str] = ()) -> Backend:
    """Return the backend called ``name``, or the first that can build here; target capabilities mean TensorRT-RTX.

    Raises InputError for an unknown name, UnavailableError with the command that installs what is missing.
    """
    if name is None:
        usable = [each for each in BACKENDS if each.is_installed() and (gpu or not each.needs_gpu)]
        usable = [each for each in usable if not (sm and each.needs_gpu)]
        return usable[0] if usable else _refuse_all(gpu)
    backend = next((each for each in BACKENDS if each.name == name), None)
    if backend is None:
        raise InputError(f"there is no backend {name!r}", fix=f"choose among {', '.join(b.name for b in BACKENDS)}")
    if not backend.is_installed():
        raise UnavailableError(f"{backend.title} is not installed", fix=backend.install)
    if backend.needs_gpu and not gpu:
        raise UnavailableError(f"{backend.title} builds on a GPU, and this machine has none", fix=BACKENDS[1].install)
    return backend


def choose_for_plugins(
    name: str | None, *, gpu: bool, sm: Sequence[str] = (), who: str = "--plugin", instead: str = "leave --plugin out"
) -> Backend:
    """Do as :func:`choose`, for a model with LayerNorm plugins, which only the full TensorRT takes.

    TensorRT-RTX has no plugins: its network has no ``add_plugin``, and its parser ends the process at one. A refusal
    says ``who`` needs TensorRT, and what to do ``instead``, where there is anything: InputError for options that no
    machine can do, UnavailableError where TensorRT or a GPU is missing.
    """
    full, ahead = BACKENDS
    other = f", or {instead}" if instead else ""
    given = {"--backend": name if name == ahead.name else "", "--sm": ",".join(sm)}
    contrary = {option: value for option, value in given.items() if value}
    if contrary:
        what = f"{who} needs the full TensorRT, which builds for the GPU at hand alone"
        where = " ".join(f"{option} {value}" for option, value in contrary.items())
        raise InputError(what, where=where, fix=f"leave {' and '.join(contrary)} out{other}")
    fix = f"{full.install} on a machine with an NVIDIA GPU{other}"
    try:
        return choose(name or full.name, gpu=gpu)
    except UnavailableError as error:
        raise UnavailableError(f"{who} needs the full TensorRT: {error.what}", fix=fix) from error


def _refuse_all(gpu: bool) -> Backend:
    full, ahead = BACKENDS
    there = f"{full.title} is installed but needs a GPU" if full.is_installed() and not gpu else "none is installed"
    raise UnavailableError(
        "no TensorRT that can build on this machine", where=there, fix=full.install if gpu else ahead.install
    )
