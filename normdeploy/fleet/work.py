"""One export of a fleet in a process of its own, here or on a worker of Ray; and what came of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

from normdeploy import child
from normdeploy.disk import scratch
from normdeploy.errors import UnavailableError
from normdeploy.fleet.plan import Job

_TAIL = 8
"""Lines of an error that are kept."""


class Outcome(NamedTuple):
    """What an export ended with: its exit code, the seconds it took, and the end of what it said on stderr."""

    code: int
    seconds: float
    said: str


class Exports:
    """The exports that run in this process's children; interrupted, none of them goes on."""

    def __init__(self, out: Path) -> None:
        self._out, self._running, self._ends = out.absolute(), set[child.Process](), False

    def __call__(self, job: Job) -> Outcome:
        """Export ``job`` into its folder."""
        begin = time.monotonic()
        with scratch() as folder:
            with (folder / "stderr.txt").open("w") as stderr:
                words = ("export", *job.arguments, "--out", str(self._out / job.name), "--force")
                process = child.start("normdeploy", *words, folder=folder, stderr=stderr)
            self._running.add(process)
            if self._ends:
                process.send_signal(signal.SIGINT)
            process.communicate()  # its report is a file
            self._running.discard(process)
            lines = (folder / "stderr.txt").read_text(errors="replace").splitlines()
        told = next((index for index, line in enumerate(lines) if line.startswith("error:")), -_TAIL)
        return Outcome(process.returncode, time.monotonic() - begin, "\n".join(lines[told:][:_TAIL]))

    def end(self) -> None:
        """Interrupt what runs, as Ctrl-C would: what it has begun to write is removed."""
        self._ends = True
        for process in [*self._running]:
            process.send_signal(signal.SIGINT)


def here(jobs: Sequence[Job], out: Path, at_once: int) -> Iterator[tuple[Job, Outcome]]:
    """Run ``jobs``, ``at_once`` of them at a time, and yield each when it has ended."""
    exports = Exports(out)
    with ThreadPoolExecutor(at_once) as pool:
        waiting: dict[Future[Outcome], Job] = {pool.submit(exports, job): job for job in jobs}
        try:
            while waiting:
                for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(done), done.result()
        except BaseException:
            for future in waiting:
                future.cancel()
            exports.end()
            raise


def over_ray(jobs: Sequence[Job], out: Path, at_once: int, address: str) -> Iterator[tuple[Job, Outcome]]:
    """Run ``jobs`` as tasks of the Ray cluster at ``address``, ``at_once`` of them at a time, one core each.

    Its workers must see the same files by the same names. A task whose worker dies is a failed export. Raises
    UnavailableError where Ray is not installed or nobody answers.
    """
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UnavailableError("Ray is not installed", where="--ray", fix="pip install ray, or leave it out") from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except Exception as error:  # whatever its client raises where nobody answers
        what = f"the Ray cluster cannot be reached: {type(error).__name__}: {error}"
        raise UnavailableError(what, where=f"--ray {address}", fix="start it: ray start --head") from error
    task = ray.remote(num_cpus=1, max_retries=0)(_task)
    queue, running = list(reversed(jobs)), dict[Any, Job]()
    try:
        while queue or running:
            while queue and len(running) < at_once:
                job = queue.pop()
                running[task.remote(job, out.absolute())] = job
            for done in ray.wait([*running])[0]:
                yield running.pop(done), _outcome(ray, done)
    finally:
        for left in running:
            ray.cancel(left, force=True)
        ray.shutdown()


def _task(job: Job, out: Path) -> Outcome:
    return Exports(out)(job)


def _outcome(ray: Any, done: Any) -> Outcome:
    try:
        found: Outcome = ray.get(done)
    except ray.exceptions.RayError as error:
        return Outcome(UnavailableError.exit_code, 0.0, f"error: the Ray task failed: {str(error).splitlines()[0]}")
    return found
