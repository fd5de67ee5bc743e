"""Golden feeds sent to a server, from a process of its own, and what its clients saw there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np

from normdeploy import child
from normdeploy.bundle import Bundle
from normdeploy.bundle.golden import allowed
from normdeploy.disk import scratch
from normdeploy.errors import InputError, UnavailableError
from normdeploy.serving.environment import ready_environment

_TAIL = 3


@dataclass(frozen=True)
class Address:
    """Where a server answers: ``protocol`` and ``host:port``."""

    protocol: Literal["http", "grpc"]
    host: str

    def __str__(self) -> str:
        return f"{self.protocol}://{self.host}"


@dataclass(frozen=True)
class Answers:
    """What clients saw of a server.

    Attributes:
        elapsed: seconds that they asked.
        rows: rows that an execution of the model had on average, as the server counts; None where it did not say.
        largest_batch: the most rows of a request that the server takes; 0 where it knows no batches.
        seconds: how long each right answer took.
        wrong: answers outside the bounds.
        errors: requests without an answer.
        messages: the most frequent problems.
        versions: version of the model → its answers.
    """

    elapsed: float
    rows: float | None
    largest_batch: int
    seconds: tuple[float, ...]
    wrong: int
    errors: int
    messages: tuple[str, ...]
    versions: dict[str, int]


def address(url: str) -> Address:
    """Return what ``url`` names, ``http://host:port`` or ``grpc://host:port``. Raises InputError for another."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "grpc") or not parts.hostname or port is None or parts.path.strip("/"):
        fix = "write http://127.0.0.1:8000 or grpc://127.0.0.1:8001, as normdeploy serve prints them"
        raise InputError("no address of a server", where=url, fix=fix)
    return Address("grpc" if parts.scheme == "grpc" else "http", parts.netloc)


def golden_feeds(bundle: Bundle, batches: Sequence[int] = ()) -> list[dict[str, Any]]:
    """Return the golden feed, with the bounds of its outputs; of each size in ``batches`` one with that many rows.

    What is expected of these is what the bundle gives here.
    """
    bounds = {name: allowed(name, dtype, bundle.report) for name, dtype in bundle.manifest.outputs.items()}
    feeds = [{"inputs": bundle.golden.inputs, "outputs": {"": bundle.golden.outputs}, "bounds": bounds}]
    for rows in batches:
        inputs = {name: np.resize(array, (rows, *array.shape[1:])) for name, array in bundle.golden.inputs.items()}
        feeds.append({"inputs": inputs, "outputs": {"": bundle.runner(inputs)}, "bounds": bounds})
    return feeds


def ask(
    where: Address,
    model: str,
    feeds: Sequence[Mapping[str, Any]],
    *,
    clients: int = 1,
    seconds: float = 60.0,
    requests: int | None = None,
    version: str = "",
    think: float = 0.0,
    pause: float = 0.05,
) -> Answers:
    """Let ``clients`` send ``feeds`` to a server in turn, and return what they saw.

    They end after ``seconds``, or ``requests`` each; ``think`` seconds follow on an answer, ``pause`` on an error. Of a
    feed that several versions may answer, ``outputs`` has those of each version, of ``""`` those of any.

    Raises UnavailableError where the clients cannot be had.
    """
    python = ready_environment() / "bin" / "python"
    with scratch() as folder:
        job = {
            "protocol": where.protocol, "address": where.host, "model": model, "version": version,
            "clients": clients, "seconds": seconds, "requests": requests, "think": think, "pause": pause,
            "feeds": _written(folder, feeds),
        }  # fmt: skip
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        with (folder / "stderr.txt").open("w") as stderr:
            process = child.start("normdeploy.serving.client", str(folder), folder=folder, stderr=stderr, python=python)
            try:
                told, _ = process.communicate()
            except BaseException:
                process.kill()
                process.wait()
                raise
        if process.returncode != 0:
            said = (folder / "stderr.txt").read_text(errors="replace").splitlines()[-_TAIL:]
            fix = "remove the environment of Triton, which is made again"
            raise UnavailableError("the clients cannot run", where=" | ".join(said), fix=fix)
        found = json.loads(told.splitlines()[-1])
    found.update(seconds=tuple(found["seconds"]), messages=tuple(found["messages"]))
    return Answers(**found)


def _written(folder: Path, feeds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Write the arrays of ``feeds`` to files, and return the same with the files' names."""
    described = []
    for place, feed in enumerate(feeds):
        outputs = {
            version: _saved(folder, f"{place}-{index}", arrays)
            for index, (version, arrays) in enumerate(feed["outputs"].items())
        }
        inputs = _saved(folder, f"{place}-in", feed["inputs"])
        described.append({"inputs": inputs, "outputs": outputs, "bounds": feed["bounds"]})
    return described


def _saved(folder: Path, stem: str, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    names = {name: f"{stem}-{index}.npy" for index, name in enumerate(arrays)}
    for name, array in arrays.items():
        np.save(folder / names[name], array, allow_pickle=False)
    return names
