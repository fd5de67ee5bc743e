"""The module itself as a runner: the baseline that a deployed model is measured against, and its float64 reference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import nn

from normdeploy.errors import InputError, NormdeployError
from normdeploy.export import advice, dtypes
from normdeploy.export.call import HOW, arguments, bind_inputs
from normdeploy.export.values import example_inputs, flatten_outputs
from normdeploy.runtime.placement import CPU, Placement
from normdeploy.runtime.runner import check_names, first_line
from normdeploy.runtime.widths import (
    Convert,
    KeepFloat64,
    OwnEpsilon,
    RoundResults,
    converted,
    rounded_to,
    swapped,
    to_dtype,
)
from normdeploy.specs import TensorSpec, sizes_at


class EagerRunner:
    """PyTorch on the CPU in inference mode.

    Args:
        module: in eval mode; while it runs in another ``dtype``, its parameters and buffers are swapped.
        specs: its inputs, by forward's parameter names.
        dtype: the type of parameters, buffers and floating inputs; None leaves the module as it is.
        threads: torch's threads while it runs; 0 leaves them as they are.
        emulate: for 16 bits, round weights and results of the float32 module instead of running it in ``dtype``.
        weights: what becomes of each parameter and buffer, where casting to ``dtype`` is not it.
        constants: in float64, what becomes of all that depends on no input where it meets something that does.
        placement: a copy of the module runs there; a CPU's is the module itself.
        compiled: run what ``torch.compile`` makes of it.

    Raises:
        InputError: the specs do not fit forward, or forward raises.
    """

    def __init__(
        self,
        module: nn.Module,
        specs: Sequence[TensorSpec],
        *,
        dtype: torch.dtype | None = None,
        threads: int = 0,
        emulate: bool = False,
        weights: Convert | None = None,
        constants: Convert | None = None,
        placement: Placement = CPU,
        compiled: bool = False,
    ) -> None:
        bind_inputs(module, specs)
        self._device = placement.device
        if self._device != "cpu":
            module = on_device(module, placement)
        self._module, self._specs, self._dtype, self._threads = module, specs, dtype, threads
        self._emulate, self._compiled, self._outputs = emulate, compiled, tuple[str, ...]()
        self._call: Callable[..., Any] = torch.compile(module, dynamic=False) if compiled else module
        self._held = {} if dtype is None else converted(module, weights or _conversion(dtype, emulate))
        self._constants = constants
        self._own = {tensor: tensor.dtype for tensor in self._held}
        self.widened = 0
        self.name = "eager" if dtype is None else f"eager {str(dtype).removeprefix('torch.')}"
        self.inputs = tuple(spec.name for spec in specs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return names of the outputs; known once the module has run, so asking first runs it at its smallest sizes."""
        if not self._outputs:
            self._run(example_inputs(self._specs, sizes_at(self._specs, "min")))
        return self._outputs

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; the arrays are copied, for a forward may work in place."""
        check_names(feeds, self.inputs, self.name)
        outputs = self._run({name: _tensor(array) for name, array in feeds.items()})
        narrow = self._dtype if self._emulate else None
        return {name: array_of(tensor.cpu(), narrow) for name, tensor in outputs.items()}

    def launcher(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """Return what runs forward once on ``feeds``, which lie on its device already; a GPU's work may end later."""
        check_names(feeds, self.inputs, self.name)
        args, kwargs = self._arguments({name: _tensor(array) for name, array in feeds.items()})
        return lambda: self._forward(args, kwargs)

    def _arguments(self, feeds: Mapping[str, torch.Tensor]) -> tuple[Sequence[Any], Mapping[str, Any]]:
        cast = {name: self._cast(tensor) for name, tensor in feeds.items()}
        return arguments(self._module, self._specs, {name: tensor.to(self._device) for name, tensor in cast.items()})

    def _forward(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        with swapped(self._module, self._held), torch.inference_mode(), self._width():
            return self._call(*args, **kwargs)

    def _run(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self._threads and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        try:
            with torch.compiler.set_stance("default" if self._compiled else "force_eager"):
                result = self._forward(*self._arguments(feeds))
        except NormdeployError:
            raise
        except Exception as error:
            shapes = ", ".join(f"{name} {list(tensor.shape)} {tensor.dtype}" for name, tensor in feeds.items())
            raise InputError(
                f"forward raises {type(error).__name__}: {first_line(error)}",
                where=f"{self.name} {type(self._module).__name__}, inputs {shapes}",
                fix=dtypes.advice(self._module, self._specs)
                or advice.of_lengths(error)
                or f"check the input specs against forward; {HOW}",
            ) from error
        outputs = flatten_outputs(result, specs=self._specs)
        self._outputs = tuple(outputs)
        return outputs

    @contextmanager
    def _width(self) -> Iterator[None]:
        """Keep the module in its width: float64 all the way, or rounded to 16 bits behind each operator."""
        if self._emulate and self._dtype is not None:
            with RoundResults(self._dtype):
                yield
        elif self._dtype == torch.float64:
            before = torch.get_default_dtype()
            keep = KeepFloat64(self._own, before, self._constants)
            torch.set_default_dtype(torch.float64)
            try:
                with OwnEpsilon(self._own_dtype(before)), keep:
                    yield
            finally:
                torch.set_default_dtype(before)
                self.widened += keep.widened
        else:
            yield

    def _own_dtype(self, default: torch.dtype) -> torch.dtype:
        """Return the dtype that the module itself computes in: that of its weights, where they have one."""
        real = {dtype for dtype in self._own.values() if dtype.is_floating_point}
        return real.pop() if len(real) == 1 else default

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._dtype is None:
            return tensor
        convert = rounded_to(self._dtype, torch.float32) if self._emulate else to_dtype(self._dtype)
        return convert(tensor)


def on_device(module: nn.Module, placement: Placement) -> nn.Module:
    """Return a copy of ``module`` on a GPU, where float32 products are rounded to TF32 as it is asked for."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = placement.tf32
    return copy.deepcopy(module).to(placement.device)


def _conversion(dtype: torch.dtype, emulate: bool) -> Convert:
    return rounded_to(dtype, torch.float32) if emulate else to_dtype(dtype)


def _tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:  # torch reads no array of this type; its bits are the same
        return torch.tensor(array.view(np.int16)).view(torch.bfloat16)
    return torch.tensor(array)


def array_of(tensor: torch.Tensor, narrow: torch.dtype | None = None) -> np.ndarray[Any, Any]:
    """Return a copy of ``tensor``, in ``narrow`` where it is float32; a nested one is padded with zeros."""
    tensor = tensor.detach()  # a parameter that is returned as it is
    if tensor.is_nested:
        tensor = torch.nested.to_padded_tensor(tensor, 0.0)
    if narrow is not None and tensor.dtype == torch.float32:
        tensor = tensor.to(narrow)
    if tensor.is_sparse:
        tensor = tensor.to_dense()
    if tensor.dtype == torch.bfloat16:
        shape = tuple(tensor.shape)
        bits: np.ndarray[Any, Any] = tensor.contiguous().view(-1).view(torch.int16).numpy()
        return np.array(bits.view(ml_dtypes.bfloat16).reshape(shape))
    return np.array(tensor.resolve_conj().resolve_neg().numpy(), order="C")
