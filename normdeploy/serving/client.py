"""The process that asks a server: it runs in Triton's own environment, where tritonclient is, and judges each answer.

It is given a folder: ``job.json`` says what to ask, ``feeds/`` holds inputs and expected outputs as .npy files. What it
saw it prints as one line of JSON. Everything that a server does wrong is counted here, nothing is raised.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  # teaches NumPy the name "bfloat16"
import numpy as np

from normdeploy.parity.metrics import errors

Arrays = dict[str, np.ndarray]
_MESSAGES = 3
"""Different errors that are told."""
_TIMEOUT = 60.0
"""Seconds for one request."""


@dataclass(frozen=True)
class Feed:
    """Inputs, and what is expected of them.

    Attributes:
        outputs: version of the model → its outputs; those of ``""`` are expected of any other version.
        bounds: output → how far off it may be, as (RMS, max) error.
    """

    inputs: Arrays
    outputs: Mapping[str, Arrays]
    bounds: Mapping[str, tuple[float, float]]

    def as_triton(self, *, batched: bool) -> Feed:
        """Return the same with the dimension that Triton wants of a scalar, or of a row that is one."""

        def sent(array: np.ndarray) -> np.ndarray:
            return array[..., None] if array.ndim == int(batched) else array

        outputs = {version: _each(sent, arrays) for version, arrays in self.outputs.items()}
        return Feed(_each(sent, self.inputs), outputs, self.bounds)

    def wrong(self, answer: Arrays, version: str) -> str:
        """Return what is wrong with ``answer``, of ``version``; empty where it is within the bounds."""
        wanted = self.outputs.get(version, self.outputs.get(""))
        if wanted is None:
            return f"version {version} answers, which nobody put there"
        for name, expected in wanted.items():
            actual = answer[name]
            if (actual.shape, actual.dtype) != (expected.shape, expected.dtype):
                return f"{name} is {actual.dtype} {actual.shape}, not {expected.dtype} {expected.shape}"
            if np.array_equal(actual, expected):
                continue
            found, (rms, largest) = errors(actual, expected, expected.dtype.name), self.bounds[name]
            if not (found.finite and found.rms <= rms and found.max <= largest):
                allowed = f"{rms:.3g} and {largest:.3g}"
                return f"{name} is off by {found.rms:.3g} (RMS) and {found.max:.3g} (max), allowed {allowed}"
        return ""

    @property
    def names(self) -> list[str]:
        """Return the outputs that are asked for."""
        return [*next(iter(self.outputs.values()))]


def _each(change: Callable[[np.ndarray], np.ndarray], arrays: Arrays) -> Arrays:
    return {name: change(array) for name, array in arrays.items()}


class Seen:
    """What the clients saw: how long each right answer took, in seconds, wrong answers and errors."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.wrong: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.versions: Counter[str] = Counter()
        self.rows: float | None = None
        self.largest_batch = 0

    def document(self, elapsed: float) -> dict[str, Any]:
        """Return all of it as JSON takes it; ``elapsed`` is how many seconds the clients ran."""
        return {
            "elapsed": elapsed,
            "rows": self.rows,
            "largest_batch": self.largest_batch,
            "seconds": self.seconds,
            "wrong": self.wrong.total(),
            "errors": self.errors.total(),
            "messages": [text for text, _ in (self.wrong + self.errors).most_common(_MESSAGES)],
            "versions": self.versions,
        }


async def load(job: Mapping[str, Any], feeds: Sequence[Feed]) -> dict[str, Any]:
    """Let ``clients`` ask one after the other for ``seconds``, or ``requests`` times each, and return what they saw.

    ``think`` seconds follow on an answer, ``pause`` on an error, so that a server which is down is not asked without
    end.
    """
    connection = (_Grpc if job["protocol"] == "grpc" else _Http)(job["address"], job["model"], job["version"])
    seen, start = Seen(), time.monotonic()
    try:
        seen.largest_batch = await connection.largest_batch()
        fitted = [feed.as_triton(batched=seen.largest_batch > 0) for feed in feeds]
        before = await connection.counts()
        await asyncio.gather(*(_client(connection, job, fitted, seen, n, start) for n in range(job["clients"])))
        seen.rows = _per_execution(before, await connection.counts())
    except Exception as error:  # no server, no such model: as for a request
        seen.errors[_first_line(error)] += 1
    finally:
        await connection.close()
    return seen.document(time.monotonic() - start)


def _per_execution(before: tuple[int, int], after: tuple[int, int]) -> float | None:
    """Return the rows that an execution had on average, of two pairs of rows and executions so far."""
    rows, executions = (now - then for then, now in zip(before, after, strict=True))
    return rows / executions if executions > 0 else None


async def _client(
    connection: Any, job: Mapping[str, Any], feeds: Sequence[Feed], seen: Seen, index: int, start: float
) -> None:
    turn = 0
    while (job["requests"] is None or turn < job["requests"]) and time.monotonic() - start < job["seconds"]:
        feed = feeds[(index + turn) % len(feeds)]
        turn += 1
        before = time.perf_counter()
        try:
            answer, version = await connection.ask(feed)
        except Exception as error:  # a server that is down, or refuses: each client library has its own types
            seen.errors[_first_line(error)] += 1
            await asyncio.sleep(job["pause"])
            continue
        took = time.perf_counter() - before
        seen.versions[version] += 1
        if problem := feed.wrong(answer, version):
            seen.wrong[problem] += 1
        else:
            seen.seconds.append(took)
        if job["think"]:
            await asyncio.sleep(job["think"])


class _Http:
    """Requests over HTTP, tensors as bytes."""

    def __init__(self, address: str, model: str, version: str) -> None:
        import tritonclient.http.aio as client

        self._client, self._library = client.InferenceServerClient(address, conn_limit=1000), client
        self._model, self._version = model, version

    async def largest_batch(self) -> int:
        """Return the most rows of a request that the server takes; 0 where it knows no batches."""
        return int((await self._client.get_model_config(self._model, self._version))["max_batch_size"])

    async def counts(self) -> tuple[int, int]:
        """Return the rows, and the executions, of the model so far."""
        found = await self._client.get_inference_statistics(self._model)
        return _counts(found["model_stats"])

    async def ask(self, feed: Feed) -> tuple[Arrays, str]:
        """Return the outputs by name, and the version that gave them."""
        inputs = [self._input(name, array) for name, array in feed.inputs.items()]
        outputs = [self._library.InferRequestedOutput(name, binary_data=True) for name in feed.names]
        result = await self._client.infer(
            self._model, inputs, model_version=self._version, outputs=outputs, timeout=int(_TIMEOUT * 1e6)
        )
        return {name: result.as_numpy(name) for name in feed.names}, str(result.get_response()["model_version"])

    def _input(self, name: str, array: np.ndarray) -> Any:
        made = self._library.InferInput(name, list(array.shape), _datatype(array))
        return made.set_data_from_numpy(array, binary_data=True)

    async def close(self) -> None:
        """Close its connections."""
        await self._client.close()


class _Grpc:
    """Requests over gRPC."""

    def __init__(self, address: str, model: str, version: str) -> None:
        import tritonclient.grpc.aio as client

        self._client, self._library = client.InferenceServerClient(address), client
        self._model, self._version = model, version

    async def largest_batch(self) -> int:
        """Return the most rows of a request that the server takes; 0 where it knows no batches."""
        found = await self._client.get_model_config(self._model, self._version, as_json=True)
        return int(found["config"].get("max_batch_size", 0))

    async def counts(self) -> tuple[int, int]:
        """Return the rows, and the executions, of the model so far."""
        found = await self._client.get_inference_statistics(self._model, as_json=True)
        return _counts(found["model_stats"])

    async def ask(self, feed: Feed) -> tuple[Arrays, str]:
        """Return the outputs by name, and the version that gave them."""
        inputs = []
        for name, array in feed.inputs.items():
            made = self._library.InferInput(name, list(array.shape), _datatype(array))
            inputs.append(made.set_data_from_numpy(array))
        outputs = [self._library.InferRequestedOutput(name) for name in feed.names]
        result = await self._client.infer(
            self._model, inputs, model_version=self._version, outputs=outputs, client_timeout=_TIMEOUT
        )
        return {name: result.as_numpy(name) for name in feed.names}, str(result.get_response().model_version)

    async def close(self) -> None:
        """Close its connections."""
        await self._client.close()


def _counts(models: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    rows = sum(int(each.get("inference_count", 0)) for each in models)
    return rows, sum(int(each.get("execution_count", 0)) for each in models)


def _datatype(array: np.ndarray) -> str:
    from tritonclient.utils import np_to_triton_dtype

    return str(np_to_triton_dtype(array.dtype))


def _first_line(error: BaseException) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def feeds_in(folder: Path, described: Sequence[Mapping[str, Any]]) -> list[Feed]:
    """Return the feeds whose arrays lie in ``folder``, as the job describes them."""
    return [
        Feed(
            _loaded(folder, each["inputs"]),
            {version: _loaded(folder, files) for version, files in each["outputs"].items()},
            {name: (rms, largest) for name, (rms, largest) in each["bounds"].items()},
        )
        for each in described
    ]


def _loaded(folder: Path, files: Mapping[str, str]) -> Arrays:
    return {name: np.load(folder / file, allow_pickle=False) for name, file in files.items()}


def main() -> None:
    """Do the job in the folder that is named on the command line."""
    folder = Path(sys.argv[1])
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    print(json.dumps(asyncio.run(load(job, feeds_in(folder, job["feeds"])))))


if __name__ == "__main__":
    main()
