"""A bundle behind Ray Serve: replicas of ``load_bundle``, which a proxy shares requests among.

::

    make .venv-ray/.installed
    .venv-ray/bin/python scripts/ray_serve_app.py out/digits_resnet --replicas 2 --port 8000

POST / takes ``{"inputs": {"x": [[...], ...]}}`` and gives ``{"outputs": {...}}``; what does not fit the model is told
with 422. A replica that dies is replaced, and what it was asked is asked of another. Each replica loads the bundle with
all its checks, and runs the golden inputs when Ray asks for its health. Ray lies in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

import normdeploy
from normdeploy.bundle.golden import judge
from normdeploy.errors import InputError

HEALTH_SECONDS = 2.0


class Served:
    """A replica."""

    def __init__(self, bundle: str) -> None:
        self.bundle = normdeploy.load_bundle(bundle, threads=1)
        self.dtypes = {spec.name: spec.dtype for spec in self.bundle.specs}

    def check_health(self) -> None:
        """Run the golden inputs; what it raises makes Ray replace this replica."""
        golden = self.bundle.golden
        judge(self.bundle(golden.inputs), golden.outputs, self.bundle.report, where=self.bundle.folder)

    async def __call__(self, request: Request) -> JSONResponse:
        """Answer a request; ``pid`` tells which replica did."""
        try:
            outputs = self.bundle(self.arrays(await request.body()))
        except InputError as error:
            return JSONResponse({"error": str(error)}, 422)
        return JSONResponse({"outputs": {name: array.tolist() for name, array in outputs.items()}, "pid": os.getpid()})

    def arrays(self, body: bytes) -> dict[str, np.ndarray]:
        """Return the inputs in ``body``; InputError where it holds none, or numbers that their type cannot hold."""
        try:
            given = json.loads(body)["inputs"]
            return {name: self.array(name, value) for name, value in given.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"the body holds no inputs: {error}", fix='send {"inputs": {"x": [[...]]}}') from error

    def array(self, name: str, value: Any) -> np.ndarray:
        """Return nested lists as an array of the type that the model takes."""
        given = np.asarray(value)
        array = given.astype(self.dtypes.get(name, given.dtype))
        if array.dtype.kind in "iub" and not np.array_equal(array, given):
            raise InputError(f"{name} has values that are none of {array.dtype}")
        return array


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    serve.start(http_options={"host": "127.0.0.1", "port": given.port})
    deployment = serve.deployment(
        Served, num_replicas=given.replicas, health_check_period_s=HEALTH_SECONDS, max_ongoing_requests=16
    )
    serve.run(deployment.bind(str(given.bundle.absolute())))
    print(f"ready: http://127.0.0.1:{given.port}; Ctrl-C ends it", flush=True)
    ended = threading.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: ended.set())
    ended.wait()
    serve.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
