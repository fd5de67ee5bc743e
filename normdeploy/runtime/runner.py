"""What every runtime looks like from outside: a callable on named arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from normdeploy.errors import InputError, words


class Runner(Protocol):
    """A model that is ready to run, of any runtime."""

    @property
    def name(self) -> str:
        """Return what a report calls it: ``eager``, ``eager float64``, ``onnxruntime``."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Return names of the arrays it takes."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return names of the arrays it gives, in order."""

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once. bfloat16 arrays are of ml_dtypes' type; the arrays given are not changed."""


@runtime_checkable
class DeviceRunner(Runner, Protocol):
    """A model whose inputs can lie where it runs."""

    def launcher(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """Return what runs once on ``feeds``, which it has copied there; on a GPU it may end before the run does."""


def check_names(feeds: Mapping[str, np.ndarray], inputs: Sequence[str], runner: str) -> None:
    """Raise InputError unless ``feeds`` has exactly the arrays that the runner takes."""
    if set(feeds) != set(inputs):
        raise InputError(
            f"{runner} takes the inputs {', '.join(inputs)}",
            where=f"it was given {', '.join(feeds) or 'none'}",
            fix="give one array for each input, by its name",
        )


def first_line(error: BaseException) -> str:
    """Return the first line of a backend's message that says something."""
    return next((line.strip() for line in words(error).splitlines() if line.strip()), type(error).__name__)
