"""``normdeploy bench URL``: how fast a server answers, beside the same model in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from normdeploy.bundle import Bundle, load_bundle
from normdeploy.errors import VerdictError
from normdeploy.serving import perf_analyzer
from normdeploy.serving.ask import address, ask, golden_feeds
from normdeploy.serving.check import model_name


@dataclass(frozen=True)
class Load:
    """The latency of right answers under the load of so many clients, each of which waits for its answer.

    Attributes:
        where: the address, with perf_analyzer where that measured, or ``in process``.
        clients: that ask at once.
        p50_ms, p90_ms, p99_ms: percentiles of the time for one answer.
        per_second: answers.
        rows: rows that an execution of the model had on average: more than a request has where Triton makes batches.
    """

    where: str
    clients: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    per_second: float
    rows: float | None


def measure(
    urls: Sequence[str],
    bundle: Path,
    *,
    model: str | None = None,
    clients: Sequence[int] = (1, 8),
    seconds: float = 2.0,
) -> list[Load]:
    """Return how fast the model of ``bundle`` answers its golden inputs: in process, then at each of ``urls``.

    Each row is measured for ``seconds``. Where perf_analyzer is on the ``PATH``, it measures the servers, after clients
    of our own have looked at their answers. Raises VerdictError where a server gives a wrong answer, or an error, and
    UnavailableError where perf_analyzer cannot measure.
    """
    addresses = [address(url) for url in urls]
    loaded = load_bundle(bundle, threads=1)
    feeds, name = golden_feeds(loaded), model or model_name(loaded)
    program = perf_analyzer.find()
    loads = [_in_process(loaded, count, seconds) for count in clients]
    for where in addresses:
        for count in clients:
            answers = ask(where, name, feeds, clients=count, seconds=seconds if program is None else min(seconds, 1.0))
            if answers.wrong or answers.errors or not answers.seconds:
                what = f"{answers.wrong} wrong answers and {answers.errors} errors: {' | '.join(answers.messages)}"
                raise VerdictError(
                    what, where=str(where), fix="normdeploy check tells whether the model is the bundle's"
                )
            if program is None:
                loads.append(_load(str(where), count, answers.seconds, answers.elapsed, answers.rows))
                continue
            timing = perf_analyzer.timed(
                program, where, name, loaded.golden.inputs,
                largest_batch=answers.largest_batch, clients=count, seconds=seconds,
            )  # fmt: skip
            loads.append(Load(f"{where} ({perf_analyzer.NAME})", count, *timing))
    return loads


def _load(where: str, clients: int, taken: Sequence[float], elapsed: float, rows: float | None) -> Load:
    p50, p90, p99 = (float(1e3 * value) for value in np.percentile(taken, (50, 90, 99)))
    return Load(where, clients, p50, p90, p99, len(taken) / elapsed, rows)


def _in_process(bundle: Bundle, clients: int, seconds: float) -> Load:
    """Measure ``clients`` threads that call the model, which runs with one thread a call."""
    taken: list[list[float]] = [[] for _ in range(clients)]
    start = time.monotonic()

    def call(mine: list[float]) -> None:
        while time.monotonic() - start < seconds:
            before = time.perf_counter()
            bundle.runner(bundle.golden.inputs)
            mine.append(time.perf_counter() - before)

    threads = [threading.Thread(target=call, args=(mine,)) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = [each for mine in taken for each in mine]
    return _load("in process", clients, together, time.monotonic() - start, None)
