"""The build's progress as rich bars: the phases that run, one inside the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from normdeploy.engine.process import Progress


@contextmanager
def bars(console: Console) -> Iterator[Callable[[Progress], None]]:
    """Yield a callback for ``build`` that draws on ``console``; a finished phase leaves the screen."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Bars(*columns, TimeElapsedColumn(), console=console, transient=True) as drawn:
        tasks: dict[str, TaskID] = {}

        def show(progress: Progress) -> None:
            if progress.phase not in tasks:
                tasks[progress.phase] = drawn.add_task(progress.phase, total=progress.steps)
            drawn.update(tasks[progress.phase], completed=progress.step)
            if progress.step >= progress.steps:
                drawn.remove_task(tasks.pop(progress.phase))

        yield show
