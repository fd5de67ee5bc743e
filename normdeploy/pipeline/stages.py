"""What every verb shares without PyTorch: the stages' clock, and what can be measured with."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from normdeploy.errors import InputError

Progress = Callable[[str, float | None], None]
"""Called with a stage's name and None when it begins, and with its name and seconds when it has ended."""
PROCESSES = 3
"""Fresh ones that a latency is measured in."""
_MOST_PROCESSES = 10


@dataclass
class Stages:
    """A clock for named stages: ``with stages("fold"): ...``."""

    progress: Progress | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Time ``stage``, and tell the progress callback; a stage that raises has no end."""
        self._tell(stage, None)
        begin = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - begin
        self._tell(stage, self.seconds[stage])

    def _tell(self, stage: str, seconds: float | None) -> None:
        if self.progress is not None:
            self.progress(stage, seconds)


def usual_threads() -> int:
    """Return the threads to measure with: all but one of PyTorch's own, or of the cores where nobody has imported it.

    Threads that meet at a barrier wait for the last one, so where every core is taken, whatever else the machine does
    counts a thousandfold.
    """
    torch = sys.modules.get("torch")
    own = os.environ.get("OMP_NUM_THREADS", "")
    cores = int(own) if own.isdecimal() else len(os.sched_getaffinity(0))
    return max(1, (cores if torch is None else torch.get_num_threads()) - 1)


def require_measurable(threads: int, seconds: float, processes: int) -> None:
    """Raise InputError for numbers that nothing can be measured with on this machine."""
    cores = os.cpu_count() or 1
    if not 1 <= threads <= cores or not 0 < seconds < math.inf or not 1 <= processes <= _MOST_PROCESSES:
        raise InputError(
            "this cannot be measured",
            where=f"--threads {threads} --seconds {seconds:g} --processes {processes}",
            fix=f"give 1 to {cores} threads, as many as this machine has cores, a positive, finite time, and 1 to "
            f"{_MOST_PROCESSES} processes",
        )
