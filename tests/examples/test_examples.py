"""The programs under scripts/examples, run as their users run them.

That of FastAPI wants an environment with FastAPI (``make test-examples``), that in C++ the headers of ONNX Runtime,
which no Python package has: name the folder of a release in ONNXRUNTIME_HOME.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from socket import socket
from time import sleep
from typing import Any

import numpy as np
import pytest
from support import ROOT

EXAMPLES = ROOT / "scripts" / "examples"
FASTAPI = ROOT / ".venv-examples" / "bin" / "python"
CALLS, THREADS = 60, 12


def test_the_client_of_triton(digits_bundle: Path, tmp_path: Path) -> None:
    from normdeploy.errors import UnavailableError
    from normdeploy.serving.environment import ready_environment
    from normdeploy.serving.repository import package
    from normdeploy.serving.server import ports, running

    try:
        python = ready_environment() / "bin" / "python"
    except UnavailableError as error:
        pytest.skip(str(error))
    package([digits_bundle], tmp_path / "repo")
    with running(tmp_path / "repo", ports()) as server:
        addresses = ["--http", server.http.removeprefix("http://"), "--grpc", server.grpc.removeprefix("grpc://")]
        command = [python, EXAMPLES / "triton_client.py", digits_bundle, "--model", digits_bundle.name, *addresses]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert [line.split()[0] for line in done.stdout.splitlines()] == ["HTTP", "gRPC"]
        wrong = tmp_path / digits_bundle.name
        shutil.copytree(digits_bundle, wrong)
        golden = dict(np.load(wrong / "golden" / "outputs.npz"))
        np.savez(wrong / "golden" / "outputs.npz", **{name: array + 1e-3 for name, array in golden.items()})
        command[2] = wrong
        assert subprocess.run(command, capture_output=True, check=False).returncode == 1


# -- FastAPI ----------------------------------------------------------------------------------


def free_port() -> int:
    with closing(socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def asked(port: int, path: str, body: Any = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


@pytest.mark.real
def test_fastapi_answers_many_clients_at_once(digits_bundle: Path, tmp_path: Path) -> None:
    if not FASTAPI.exists():
        pytest.skip("FastAPI has no environment: make test-examples")
    from normdeploy.bundle import load_bundle

    bundle, port = load_bundle(digits_bundle), free_port()
    command = [FASTAPI, "-m", "uvicorn", "--app-dir", EXAMPLES, "fastapi_app:app", "--port", str(port)]
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(command, env={**os.environ, "BUNDLE": str(digits_bundle)}, stdout=log, stderr=log)
    try:
        for _ in range(600):
            assert process.poll() is None, (tmp_path / "log").read_text()
            try:
                status, told = asked(port, "/healthz")
                break
            except urllib.error.URLError:
                sleep(0.1)
        assert (status, told["model"], told["rows together"]) == (200, "models.digits:resnet", 64)

        def call(seed: int) -> float:
            rows = 1 + seed % 5
            x = np.random.default_rng(seed).standard_normal((rows, 1, 8, 8)).astype(np.float32)
            status, answer = asked(port, "/predict", {"inputs": {"x": x.tolist()}})
            assert status == 200, answer
            return float(np.abs(np.array(answer["outputs"]["output"]) - bundle(x=x)["output"]).max())

        with ThreadPoolExecutor(THREADS) as pool:
            assert max(pool.map(call, range(CALLS))) < 1e-5
        huge = np.full((1, 1, 8, 8), 1e38, np.float32)
        assert np.isnan(bundle(x=huge)["output"]).all()
        status, answer = asked(port, "/predict", {"inputs": {"x": huge.tolist()}})
        assert (status, answer["outputs"]["output"]) == (200, [["NaN"] * 10]), "null is no answer"
        status, answer = asked(port, "/predict", {"inputs": {"x": [[[["Infinity"] * 8] * 8]]}})
        assert (status, answer["outputs"]["output"]) == (200, [["NaN"] * 10])
        wrong = ([[[[None] * 8] * 8]], [[1.0]], "words", [[1.0], [1.0, 2.0]])
        for body in (*({"x": each} for each in wrong), {"y": [1]}, {}):
            status, answer = asked(port, "/predict", {"inputs": body})
            assert (status, "inputs of the bundle" in str(answer) or "no numbers" in str(answer)) == (422, True)
        assert asked(port, "/predict", [1])[0] == 422
        status, told = asked(port, "/healthz")
        assert status == 200
        assert told["runs"] < CALLS, "no two requests were run together"
    finally:
        process.terminate()
        process.wait()
        log.close()


# -- C++ --------------------------------------------------------------------------------------


def test_the_program_in_cpp(digits_bundle: Path, tmp_path: Path) -> None:
    home = Path(os.environ.get("ONNXRUNTIME_HOME", "/usr"))
    headers = next(iter((home / "include").glob("**/onnxruntime_c_api.h")), None)
    if headers is None or shutil.which("g++") is None:
        pytest.skip("no g++, or no headers of ONNX Runtime: name its release folder in ONNXRUNTIME_HOME")
    program, library = tmp_path / "infer", home / "lib"
    build = ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{headers.parent}", EXAMPLES / "infer.cpp"]
    subprocess.run([*build, f"-L{library}", f"-Wl,-rpath,{library}", "-lonnxruntime", "-o", program], check=True)
    inputs, outputs = (np.load(digits_bundle / "golden" / f"{kind}.npz") for kind in ("inputs", "outputs"))
    command = [program, digits_bundle / "model.onnx", "x", "output", *map(str, inputs["x"].shape)]
    done = subprocess.run(command, input=inputs["x"].tobytes(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.frombuffer(done.stdout, np.float32).reshape(outputs["output"].shape)
    np.testing.assert_allclose(found, outputs["output"], rtol=0, atol=1e-5 * np.abs(outputs["output"]).max())
    short = subprocess.run(command, input=inputs["x"].tobytes()[:-4], capture_output=True, check=False)
    assert (short.returncode, short.stderr) == (1, b"input.bin is too short\n")
