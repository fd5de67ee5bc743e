"""Two replicas behind Ray Serve, one of which is killed under load: no answer is wrong, and it is replaced."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import closing
from pathlib import Path
from socket import socket

import numpy as np
import pytest
from support import ROOT

from normdeploy.bundle import load_bundle

PYTHON = ROOT / ".venv-ray" / "bin" / "python"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not PYTHON.exists(), reason="Ray lies in .venv-ray, which make test-ray makes"),
]
CLIENTS, BEFORE, AFTER = 4, 4.0, 25.0


def test_a_replica_that_dies_gives_no_wrong_answer(digits_bundle: Path, tmp_path: Path) -> None:
    with closing(socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    app = [PYTHON, ROOT / "scripts" / "ray_serve_app.py", digits_bundle, "--replicas", "2", "--port", str(port)]
    environment = {**os.environ, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(app, env=environment, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        _require_ready(process, tmp_path)
        seen = _under_load(digits_bundle, port)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        log.close()
    assert seen["wrong"] == 0
    assert seen["right"] > 100
    assert seen["killed"] == 1
    assert seen["new replicas"] >= 1
    assert process.returncode == 0


def _require_ready(process: subprocess.Popen[str], folder: Path) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("ready"):
            return
    raise AssertionError((folder / "log").read_text()[-2000:])


def _under_load(bundle: Path, port: int) -> Counter[str]:
    """Let clients ask, kill the replica that answered last, and count what they saw."""
    loaded = load_bundle(bundle, threads=1)
    seen, pids, lock, end = Counter[str](), Counter[int](), threading.Lock(), threading.Event()
    first: set[int] = set()

    def client(seed: int) -> None:
        generator = np.random.default_rng(seed)
        while not end.is_set():
            x = generator.standard_normal((1 + seed, 1, 8, 8)).astype(np.float32)
            body = json.dumps({"inputs": {"x": x.tolist()}}).encode()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", body, timeout=30) as response:
                    answer = json.loads(response.read())
                wanted = loaded(x=x)["output"]
                close = np.allclose(answer["outputs"]["output"], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
                with lock:
                    seen["right" if close else "wrong"] += 1
                    pids[answer["pid"]] += 1
            except (OSError, urllib.error.HTTPError):
                with lock:
                    seen["errors"] += 1

    clients = [threading.Thread(target=client, args=(seed,)) for seed in range(CLIENTS)]
    for each in clients:
        each.start()
    time.sleep(BEFORE)
    with lock:
        first = {*pids}
    os.kill(max(first), signal.SIGKILL)
    seen["killed"] += 1
    until = time.monotonic() + AFTER
    while time.monotonic() < until and not {*pids} - first:
        time.sleep(0.2)
    end.set()
    for each in clients:
        each.join()
    seen["new replicas"] = len({*pids} - first)
    print(dict(seen))
    return seen
