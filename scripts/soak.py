"""Let clients ask a real Triton, and threads a bundle in process, for a while, and compare each answer.

``make soak`` runs it for ten minutes. Eight clients, half over HTTP and half over gRPC, send the golden inputs in
batches of many sizes to a packaged bundle; then sixteen threads share one loaded bundle. Exit code 1 where an answer is
wrong, beyond the bound of parity (in process: by a bit), or lost.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from normdeploy.bundle import Bundle, load_bundle
from normdeploy.errors import UnavailableError
from normdeploy.serving.ask import Answers, address, ask, golden_feeds
from normdeploy.serving.environment import ready_environment
from normdeploy.serving.repository import Packaged, package
from normdeploy.serving.server import Server, ports, running

BATCHES = (1, 2, 3, 5, 8, 13, 32)
CLIENTS, THREADS = 8, 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--seconds", type=float, default=600.0, help="for all of them together")
    parser.add_argument("--may-skip", action="store_true", help="exit 0 where Triton cannot be installed")
    given = parser.parse_args()
    try:
        ready_environment()
    except UnavailableError as error:
        print(f"skipped: {error}" if given.may_skip else error, file=sys.stderr)
        return 0 if given.may_skip else error.exit_code
    share = given.seconds / len(given.bundles)
    with tempfile.TemporaryDirectory() as folder:
        made = package(given.bundles, Path(folder) / "repository")
        with running(Path(folder) / "repository", ports()) as server:
            right = [served(server, each, 0.8 * share) for each in made]
    return 0 if all([*right, *(in_process(path, 0.2 * share) for path in given.bundles)]) else 1


def served(server: Server, model: Packaged, seconds: float) -> bool:
    """Let the clients ask for ``model``; print what they saw, and return whether all of it was right."""
    bundle = load_bundle(model.folder, threads=1)
    largest = bundle.specs[0].dims[0].max if model.batch else 0
    feeds = golden_feeds(bundle, [rows for rows in BATCHES if rows <= largest])
    before = resident(server)
    with ThreadPoolExecutor(2) as pool:
        both = [
            pool.submit(ask, address(url), model.name, feeds, clients=CLIENTS // 2, seconds=seconds)
            for url in (server.http, server.grpc)
        ]
        found = {name: job.result() for name, job in zip(("HTTP", "gRPC"), both, strict=True)}
    for protocol, answers in found.items():
        print(f"{model.name}  {protocol}  {CLIENTS // 2} clients  {told(answers)}")
    print(f"{model.name}  resident memory of the server: {before:.0f} MB before, {resident(server):.0f} MB after")
    return all(each.seconds and not each.wrong and not each.errors for each in found.values())


def told(answers: Answers) -> str:
    p50, p99 = 1e3 * np.percentile(answers.seconds, (50, 99)) if answers.seconds else (np.nan, np.nan)
    rows = "" if answers.rows is None else f"  {answers.rows:.1f} rows a run"
    problems = f"  {' | '.join(answers.messages)}" if answers.messages else ""
    return (
        f"{len(answers.seconds):,} right  {answers.wrong} wrong  {answers.errors} lost  "
        f"p50 {p50:.2f} ms  p99 {p99:.2f} ms{rows}{problems}"
    )


def in_process(path: Path, seconds: float) -> bool:
    """Let threads share one bundle; print what they saw, and return whether each answer was that of one thread."""
    bundle = load_bundle(path, threads=1)
    expected = bundle(bundle.golden.inputs)
    right, wrong, end = [0] * THREADS, [0] * THREADS, time.monotonic() + seconds

    def call(thread: int) -> None:
        while time.monotonic() < end:
            same = equal(bundle, expected)
            right[thread] += same
            wrong[thread] += not same

    threads = [threading.Thread(target=call, args=(index,)) for index in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{path.name}  in process  {THREADS} threads  {sum(right):,} right  {sum(wrong)} wrong")
    return sum(right) > 0 and sum(wrong) == 0


def equal(bundle: Bundle, expected: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(array, expected[name]) for name, array in bundle(bundle.golden.inputs).items())


def resident(server: Server) -> float:
    """Return the megabytes that the processes of the server's group hold in memory."""
    total = 0
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and os.getpgid(int(entry.name)) == server.process.pid:
                total += int((entry / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            continue  # it has ended
    return total / 1e6


if __name__ == "__main__":
    sys.exit(main())
