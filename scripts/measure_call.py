"""What a call of a loaded bundle costs beside a bare session of ONNX Runtime on the same file: the limit is 1.15.

``bundle(...)`` checks names, dtypes, shapes and values, a binding (``bundle.bind``) values alone. The calls take turns,
in an order that is drawn anew in each round, on the golden inputs and one thread; medians are compared, and the middle
half of the ratios over parts of the run is shown. Exit code 1 where the limit is passed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnxruntime

import normdeploy
from normdeploy.bench.timers import collection_off

LIMIT = 1.15
_PARTS, _WARM_UP = 20, 500


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=20_000)
    given = parser.parse_args()
    bundle = normdeploy.load_bundle(given.bundle, threads=1)
    feeds, bound = dict(bundle.golden.inputs), bundle.bind(bundle.golden.inputs)
    session = bare(bundle.model_path)
    binding = session.io_binding()
    for name, array in bound.inputs.items():
        binding.bind_cpu_input(name, array)
    for name in bound.outputs:
        binding.bind_output(name)
    calls: dict[str, Callable[[], object]] = {
        "a bare session, run": lambda: session.run(None, feeds),
        "a bare session, run_with_iobinding": lambda: session.run_with_iobinding(binding),
        "bundle(...)": lambda: bundle(feeds),
        "bundle.bind(...)": bound,
    }
    times = measure(calls, given.rounds)
    base = times["a bare session, run"]
    for name, samples in times.items():
        low, _, high = statistics.quantiles(ratios(samples, base), n=4)
        ratio = statistics.median(samples) / statistics.median(base)
        print(f"{name:36}{statistics.median(samples):8.1f} µs  {ratio:.2f} times  ({low:.2f} to {high:.2f})")
    return 0 if statistics.median(times["bundle(...)"]) <= LIMIT * statistics.median(base) else 1


def bare(model: Path) -> onnxruntime.InferenceSession:
    """Return a session with one thread, and ONNX Runtime's own settings otherwise."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def measure(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return microseconds of each call, round by round."""
    order, times = random.Random(0), {name: list[float]() for name in calls}
    with collection_off():
        for index in range(_WARM_UP + rounds):
            for name in order.sample([*calls], len(calls)):
                call = calls[name]
                begin = time.perf_counter_ns()
                call()
                if index >= _WARM_UP:
                    times[name].append((time.perf_counter_ns() - begin) / 1e3)
    return times


def ratios(samples: Sequence[float], base: Sequence[float]) -> list[float]:
    """Return the ratio of the medians in each of several parts of the run."""
    size = max(1, len(samples) // _PARTS)
    starts = range(0, len(samples) - size + 1, size)
    return [statistics.median(samples[i : i + size]) / statistics.median(base[i : i + size]) for i in starts]


if __name__ == "__main__":
    sys.exit(main())
