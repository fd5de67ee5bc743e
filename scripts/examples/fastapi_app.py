"""A bundle behind FastAPI: requests that wait at the same moment are run together, and /healthz asks the model itself.

::

    pip install 'normdeploy[cpu]' fastapi uvicorn
    BUNDLE=out/digits_resnet uvicorn --app-dir scripts/examples fastapi_app:app

POST /predict takes ``{"inputs": {"x": [[...], ...]}}``, rows along the first axis, and gives ``{"outputs": {...}}``.
JSON has no number for what is none: it is one of the strings "NaN", "Infinity" and "-Infinity" both ways, as in
Protocol Buffers' JSON. ``null`` is refused.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from fastapi import Body, FastAPI, HTTPException, Request

import normdeploy
from normdeploy.bundle.golden import judge
from normdeploy.errors import InputError, VerdictError
from normdeploy.serving.batch import batch_axis, mixed_rows

Arrays = dict[str, np.ndarray]
MOST_WAIT = 1024
"""Requests that may wait; further ones are turned away."""


@dataclass
class Batcher:
    """Runs what waits together, as many rows as the model takes, and gives each request its own rows.

    It does so only where the model was seen to give a row the same alone and beside others.
    """

    bundle: normdeploy.Bundle
    queue: asyncio.Queue[tuple[Arrays, asyncio.Future[Arrays]]] = field(
        default_factory=lambda: asyncio.Queue(MOST_WAIT)
    )
    runs: int = 0

    def __post_init__(self) -> None:
        axis = batch_axis(self.bundle.interface)
        may = axis is not None and not mixed_rows(self.bundle, axis)
        self.most = self.bundle.specs[0].dims[0].max if may else 0

    async def ask(self, feed: Arrays) -> Arrays:
        """Return the outputs for ``feed``. Raises asyncio.QueueFull where too many wait."""
        answer: asyncio.Future[Arrays] = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((feed, answer))
        return await answer

    async def work(self) -> None:
        """Answer for ever."""
        first = await self.queue.get()
        while True:
            waiting, left = self.together(first)
            try:
                outputs = await asyncio.to_thread(self.bundle, joined([feed for feed, _ in waiting]))
                self.runs += 1
                answers = parted(outputs, [rows(feed) for feed, _ in waiting]) if self.most else [outputs]
                for (_, answer), own in zip(waiting, answers, strict=True):
                    if not answer.done():
                        answer.set_result(own)
            except Exception as error:  # whatever it is, it is of these requests alone
                for _, answer in waiting:
                    if not answer.done():
                        answer.set_exception(error)
            first = left or await self.queue.get()

    def together(self, first: Any) -> tuple[list[Any], Any]:
        """Return what is run with ``first``, of what waits, and the one that no longer fits."""
        taken, total = [first], rows(first[0])
        while self.most and not self.queue.empty():
            following = self.queue.get_nowait()
            total += rows(following[0])
            if total > self.most or shapes(following[0]) != shapes(first[0]):
                return taken, following
            taken.append(following)
        return taken, None


def rows(feed: Arrays) -> int:
    """Return how many rows a feed has."""
    return next((len(array) for array in feed.values() if array.ndim), 1)


def shapes(feed: Arrays) -> list[tuple[int, ...]]:
    """Return the shapes of a row."""
    return [array.shape[1:] for array in feed.values()]


def joined(feeds: list[Arrays]) -> Arrays:
    """Return one feed of all rows."""
    return feeds[0] if len(feeds) == 1 else {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}


def parted(outputs: Arrays, counts: list[int]) -> list[Arrays]:
    """Return the outputs of each feed, which had ``counts`` rows."""
    ends = np.cumsum(counts)[:-1]
    parts = {name: np.split(array, ends) for name, array in outputs.items()}
    return [{name: part[index] for name, part in parts.items()} for index in range(len(counts))]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the bundle, which checks it, before the first request is taken."""
    app.state.batcher = Batcher(normdeploy.load_bundle(os.environ["BUNDLE"], threads=1))
    worker = asyncio.create_task(app.state.batcher.work())
    yield
    worker.cancel()
    with suppress(asyncio.CancelledError):
        await worker


app = FastAPI(lifespan=lifespan)


@app.post("/predict")
async def predict(request: Request, inputs: Annotated[dict[str, Any], Body(embed=True)]) -> dict[str, Any]:
    """Answer a request; one that does not fit the model is told why, and hurts nobody else."""
    batcher: Batcher = request.app.state.batcher
    dtypes = {spec.name: spec.dtype for spec in batcher.bundle.specs}
    try:
        feed = batcher.bundle.gate({name: typed(value, dtypes.get(name)) for name, value in inputs.items()})
        outputs = await batcher.ask(feed)
    except InputError as error:
        raise HTTPException(422, str(error)) from error
    except asyncio.QueueFull as error:
        raise HTTPException(503, "too many requests wait") from error
    return {"outputs": {name: listed(array) for name, array in outputs.items()}}


def listed(array: np.ndarray) -> Any:
    """Return ``array`` as nested lists, with a string for what JSON has no number for: a library may write null."""
    if array.dtype.kind in "iub" or np.isfinite(array).all():
        return array.tolist()
    values = array.astype(object)
    for is_so, text in ((np.isnan, "NaN"), (np.isposinf, "Infinity"), (np.isneginf, "-Infinity")):
        values[is_so(array)] = text
    return values.tolist()


def typed(value: Any, dtype: str | None) -> np.ndarray:
    """Return nested lists as an array of ``dtype``; InputError where they are none, or lose something in it."""
    try:
        given = np.asarray(value)
        if given.dtype == object:  # null, which NumPy would take for NaN
            raise TypeError("there is null, an object or a number beyond 64 bits among them")
        array = given.astype(dtype or given.dtype)
    except (TypeError, ValueError) as error:
        raise InputError(f"these are no numbers: {error}") from error
    if array.dtype.kind in "iub" and not np.array_equal(array, given):
        raise InputError(f"these are no values of {dtype}")
    return array


@app.get("/healthz")
async def healthz(request: Request) -> dict[str, Any]:
    """Run the golden inputs as any request is run; 503 where their outputs do not come out."""
    batcher: Batcher = request.app.state.batcher
    bundle = batcher.bundle
    try:
        judge(await batcher.ask(dict(bundle.golden.inputs)), bundle.golden.outputs, bundle.report, where=bundle.folder)
    except (VerdictError, asyncio.QueueFull) as error:
        raise HTTPException(503, str(error) or "too many requests wait") from error
    return {"model": bundle.manifest.factory, "runs": batcher.runs, "rows together": batcher.most}
