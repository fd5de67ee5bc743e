"""Values from inside: what each module of the eager net returns, and the last that each leaves in the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from normdeploy.disk import scratch
from normdeploy.graph import module_name
from normdeploy.parity.feeds import Feed
from normdeploy.parity.reference import Arrays, Oracle
from normdeploy.runtime.eager import array_of
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.specs import TensorSpec

Array = npt.NDArray[Any]

OUTPUT = "output "
"""Before the names of the module's outputs, to tell them from the names of its modules: those hold no space."""

_EARLIER = " call "
"""Behind the name of a module that ran several times, and before the number of a call other than the last."""
_DRAWS = 4
"""As many as the verdict makes at most."""


class Observed(NamedTuple):
    """The values of modules and outputs by name, in the order they are complete, of a module for the last time.

    Attributes:
        eager: in eager's dtype.
        exact: in float64; empty where the module cannot run in it.
        rounded: in float64 with the weights rounded to 16 bits, to nearest and at random; empty for other types.
    """

    eager: Arrays
    exact: Arrays
    rounded: tuple[Arrays, ...]

    def calls(self) -> dict[str, list[str]]:
        """Return the names of all values of each module, that of its last call first."""
        found: dict[str, list[str]] = {name: [name] for name in self.eager if _EARLIER not in name}
        for name in self.eager:
            module, earlier, _ = name.partition(_EARLIER)
            if earlier and module in found:
                found[module].append(name)
        return found


def observe(module: nn.Module, specs: Sequence[TensorSpec], feed: Feed, dtype: torch.dtype | None) -> Observed:
    """Return what each module returns each time that it runs, of several tensors the first, and the outputs."""
    oracle = Oracle(module, specs, dtype)
    oracle.eager(feed.arrays)  # where it has to be emulated, that is found out now: half a run is not recorded
    with _Recorder(module) as recorder:
        eager = recorder.taken(oracle.eager(feed.arrays))
        outputs = oracle.exact(feed.arrays)
        exact = {} if outputs is None else recorder.taken(outputs)
        recorder.take()
        narrow = dtype in (torch.float16, torch.bfloat16) and outputs is not None
        draws = range(_DRAWS) if narrow else ()
        rounded = tuple(recorder.taken(oracle.rounded(feed.arrays, draw)) for draw in draws)
    return Observed(eager, exact, rounded)


class _Recorder:
    """Records what each module inside ``module`` returns; copies made meanwhile record into the same place."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._calls = module, dict[str, list[Array | None]]()

    def __enter__(self) -> _Recorder:
        self._handles = [
            inner.register_forward_hook(self._hook(name)) for name, inner in self._module.named_modules() if name
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def take(self) -> Arrays:
        """Return what the modules returned since the last time."""
        found = {
            name if index == len(calls) - 1 else f"{name}{_EARLIER}{index}": array
            for name, calls in self._calls.items()
            for index, array in enumerate(calls)
        }
        self._calls.clear()
        return {name: array for name, array in found.items() if array is not None}

    def taken(self, outputs: Arrays) -> Arrays:
        """Return the same with the ``outputs`` behind it."""
        return self.take() | {OUTPUT + name: array for name, array in outputs.items()}

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        calls = self._calls

        # a plain function, for deepcopy would copy what a bound method belongs to
        def record(_module: nn.Module, _args: Any, output: Any) -> None:
            tensor = _first(output)
            calls[name] = [*calls.pop(name, []), None if tensor is None else array_of(tensor)]  # by its last call

        return record


def _first(output: Any) -> torch.Tensor | None:
    """Return the first tensor that a module returned; None where another has its shape: which is in the graph?"""
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]
    return None if not tensors or any(other.shape == tensors[0].shape for other in tensors[1:]) else tensors[0]


def run_with_taps(model: ir.Model, feed: Feed, options: Mapping[str, str] | None = None) -> Arrays:
    """Return the model's outputs and the last value of each module, by name; ``options`` are those of its session."""
    tapped = model.clone()
    wanted = set(taps_of(tapped).values()) - {value.name for value in tapped.graph.outputs}
    tapped.graph.outputs.extend(value for node in tapped.graph for value in node.outputs if value.name in wanted)
    with scratch() as folder:
        path = folder / "tapped.onnx"
        ir.save(tapped, path, external_data="tapped.onnx.data")
        return OnnxRuntimeRunner(path, options=options)(feed.arrays)


def taps_of(model: ir.Model) -> dict[str, str]:
    """Return module name → name of the last value that the module, or one inside it, produces in the order of the
    graph.
    """
    taps: dict[str, str] = {}
    for node in model.graph:
        name = module_name(node)
        while name and node.outputs and node.outputs[0].name:
            taps[name] = node.outputs[0].name
            name = name.rpartition(".")[0]
    return taps
