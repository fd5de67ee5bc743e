"""The module itself as a runner: the baseline that a deployed model is measured against, and its float64 reference."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import torch
from torch import nn

from normdeploy.errors import InputError, NormdeployError
from normdeploy.export.call import HOW, arguments, bind_inputs
from normdeploy.export.values import example_inputs, flatten_outputs
from normdeploy.runtime.runner import check_names, first_line
from normdeploy.specs import TensorSpec, sizes_at


class EagerRunner:
    """PyTorch on the CPU in inference mode.

    Args:
        module: in eval mode; it is run as it is, or copied where ``dtype`` is given.
        specs: its inputs, by forward's parameter names.
        dtype: run a copy whose parameters, buffers and floating inputs are of this dtype.
        threads: torch's threads while it runs; 0 leaves them as they are.

    Raises:
        InputError: the specs do not fit forward, or forward raises.
    """

    def __init__(
        self, module: nn.Module, specs: Sequence[TensorSpec], *, dtype: torch.dtype | None = None, threads: int = 0
    ) -> None:
        bind_inputs(module, specs)
        self._module = module if dtype is None else copy.deepcopy(module).to(dtype)
        self._specs, self._dtype, self._threads = specs, dtype, threads
        self._outputs: tuple[str, ...] = ()
        self.name = "eager" if dtype is None else f"eager {str(dtype).removeprefix('torch.')}"
        self.inputs = tuple(spec.name for spec in specs)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs; known once the module has run, so asking first runs it at its smallest sizes."""
        if not self._outputs:
            self._run(example_inputs(self._specs, sizes_at(self._specs, "min")))
        return self._outputs

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once; the arrays are copied, for a forward may work in place."""
        check_names(feeds, self.inputs, self.name)
        return {name: _array(tensor) for name, tensor in self._run({n: _tensor(a) for n, a in feeds.items()}).items()}

    def _run(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self._threads and torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        try:
            cast = {name: self._cast(tensor) for name, tensor in feeds.items()}
            args, kwargs = arguments(self._module, self._specs, cast)
            with torch.inference_mode():
                result = self._module(*args, **kwargs)
        except NormdeployError:
            raise
        except Exception as error:
            shapes = ", ".join(f"{name} {list(tensor.shape)} {tensor.dtype}" for name, tensor in feeds.items())
            raise InputError(
                f"forward raises {type(error).__name__}: {first_line(error)}",
                where=f"{self.name} {type(self._module).__name__}, inputs {shapes}",
                fix=f"check the input specs against forward; {HOW}",
            ) from error
        outputs = flatten_outputs(result, specs=self._specs)
        self._outputs = tuple(outputs)
        return outputs

    def _cast(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._dtype) if self._dtype is not None and tensor.is_floating_point() else tensor


def _tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype == ml_dtypes.bfloat16:  # torch reads no array of this type; its bits are the same
        return torch.tensor(array.view(np.int16)).view(torch.bfloat16)
    return torch.tensor(array)


def _array(tensor: torch.Tensor) -> np.ndarray:
    tensor = tensor.detach()  # a parameter that is returned as it is
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return np.ascontiguousarray(tensor.numpy())
