"""A real Triton serves packaged bundles on loopback: right, under load, while models change and after it was killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bundle_samples as samples
import numpy as np
import onnx_ir as ir
import pytest

from normdeploy.bundle import Golden, load_bundle, write
from normdeploy.cli import main
from normdeploy.errors import InputError, UnavailableError, VerdictError
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.serving import perf_analyzer
from normdeploy.serving.ask import Address, Answers, address, ask, golden_feeds
from normdeploy.serving.check import check, require_right
from normdeploy.serving.measure import measure
from normdeploy.serving.repository import package
from normdeploy.serving.server import Server, dry_run, ports, running

pytestmark = pytest.mark.xdist_group("triton")  # one process makes its environment


@pytest.fixture(scope="module")
def served(
    triton: Path, small: Path, digits_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("served") / "repo"
    package([small, digits_bundle], repository)
    with running(repository, ports()) as server:
        yield server


def post(server: Server, path: str, body: bytes, **headers: str) -> tuple[int, bytes]:
    request = urllib.request.Request(f"{server.http}{path}", body, headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def infer(x: Any, ids: Any) -> bytes:
    def tensor(name: str, kind: str, array: Any) -> dict[str, Any]:
        array = np.asarray(array)
        return {"name": name, "datatype": kind, "shape": array.shape, "data": array.ravel().tolist()}

    return json.dumps({"inputs": [tensor("x", "FP32", x), tensor("ids", "INT64", ids)]}).encode()


INFER = "/v2/models/small/infer"


# -- right answers -----------------------------------------------------------------------------


def test_it_gives_what_the_model_means(served: Server) -> None:
    """By a client that is not ours, against NumPy in float64."""
    status, body = post(served, INFER, infer(samples.INPUTS["x"], samples.INPUTS["ids"][:, None]))
    assert status == 200, body
    found = {each["name"]: np.reshape(each["data"], each["shape"]) for each in json.loads(body)["outputs"]}
    exact = samples.expected(samples.INPUTS, np.float64)
    np.testing.assert_allclose(found["y"], exact["y"], rtol=0, atol=1e-5 * np.abs(exact["y"]).max())
    np.testing.assert_array_equal(found["top"], exact["top"])


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("name", ["small", "bundle"])
def test_golden_outputs_come_over_both_protocols(
    served: Server, small: Path, digits_bundle: Path, protocol: str, name: str
) -> None:
    (result,) = check([getattr(served, protocol)], small if name == "small" else digits_bundle)
    assert (result.model, result.version, result.problem) == (name, "1", "")


def test_check_fails_where_another_model_is_served(
    served: Server, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = scaled(tmp_path / "other", 1.001)
    arguments = ["check", served.http, served.grpc, "--model", "small", "--bundle"]
    assert main([*arguments, str(small)]) == 0
    assert capsys.readouterr().out.count("small version 1 gives the golden outputs") == 2
    assert main([*arguments, str(other)]) == 1
    said = capsys.readouterr()
    assert "y is off by" in said.out
    assert "small is not served right" in said.err
    assert main(["check", served.http, "--bundle", str(small), "--model", "none"]) == 1
    assert "unknown model" in capsys.readouterr().err


def test_a_server_that_is_not_there_fails_the_check(triton: Path, small: Path) -> None:
    at = ports()
    results = check([f"http://127.0.0.1:{at.http}", f"grpc://127.0.0.1:{at.grpc}"], small)
    assert all(result.problem for result in results)
    with pytest.raises(VerdictError, match="small is not served right"):
        require_right(results)


def test_requests_are_put_together_and_each_gets_its_own_answer(served: Server, small: Path) -> None:
    feeds = golden_feeds(load_bundle(small), batches=[1, 2, 4])
    answers = ask(address(served.grpc), "small", feeds, clients=8, seconds=2.0)
    assert (answers.wrong, answers.errors) == (0, 0), answers.messages
    assert len(answers.seconds) > 20
    assert answers.rows is not None
    assert answers.rows > sum(len(feed["inputs"]["x"]) for feed in feeds) / len(feeds)


def test_the_latency_stands_beside_that_in_process(
    served: Server, small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(perf_analyzer, "find", lambda: None)
    loads = measure([served.http], small, clients=[1, 2], seconds=0.3)
    assert [(load.where, load.clients) for load in loads] == [
        ("in process", 1), ("in process", 2), (served.http, 1), (served.http, 2)
    ]  # fmt: skip
    assert all(0 < load.p50_ms <= load.p90_ms <= load.p99_ms and load.per_second > 0 for load in loads)
    arguments = ["bench", served.grpc, "--bundle", str(small), "--clients", "1", "--seconds", "0.2"]
    assert main([*arguments, "--json"]) == 0
    assert [each["where"] for each in json.loads(capsys.readouterr().out)] == ["in process", served.grpc]
    assert main(arguments[:2]) == 2
    assert main([*arguments, "--model", "none"]) == 1


@pytest.mark.skipif(perf_analyzer.find() is None, reason="perf_analyzer is not on the PATH")
def test_perf_analyzer_measures_where_it_is(served: Server, small: Path) -> None:
    _, http, grpc = measure([served.http, served.grpc], small, clients=[2], seconds=0.5)
    assert [http.where, grpc.where] == [f"{served.http} (perf_analyzer)", f"{served.grpc} (perf_analyzer)"]
    for load in (http, grpc):
        assert 0 < load.p50_ms <= load.p90_ms <= load.p99_ms
        assert load.per_second > 0
        assert load.rows is not None
        assert load.rows >= 1


# -- bad requests ------------------------------------------------------------------------------

X, IDS = samples.INPUTS["x"], samples.INPUTS["ids"][:, None]
BAD: dict[str, tuple[str, bytes, dict[str, str]]] = {
    "shape": (INFER, infer(X[:, :4], IDS), {}),
    "more rows than it takes": (INFER, infer(np.ones((5, 5)), np.ones((5, 1), np.int64)), {}),
    "unequal rows": (INFER, infer(X, IDS[:2]), {}),
    "dtype": (INFER, infer(X, IDS).replace(b"INT64", b"INT32"), {}),
    "missing input": (INFER, json.dumps({"inputs": json.loads(infer(X, IDS))["inputs"][:1]}).encode(), {}),
    "values outside": (INFER, infer(X, IDS + 100), {}),
    "unknown model": ("/v2/models/none/infer", infer(X, IDS), {}),
    "unknown version": ("/v2/models/small/versions/9/infer", infer(X, IDS), {}),
    "no JSON": (INFER, b"{", {}),
    "a header beyond the body": (INFER, infer(X, IDS), {"Inference-Header-Content-Length": "999999"}),
    "2 GB claimed": (INFER, infer(X, IDS).replace(b"[3, 5]", b"[107374183, 5]"), {}),
}


def cut_off(server: Server, claimed: int) -> None:
    """Begin a request that claims more bytes than it has, and hang up."""
    with socket.create_connection(("127.0.0.1", server.at.http), timeout=10) as connection:
        connection.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {claimed}\r\n\r\n".encode() + b"{")


def test_bad_requests_get_errors_while_others_are_served(served: Server, small: Path) -> None:
    others = Clients(address(served.http), golden_feeds(load_bundle(small)), clients=2, seconds=3.0, think=0.01)
    for path, body, headers in BAD.values():
        status, said = post(served, path, body, **headers)
        assert 400 <= status < 600, (path, body, said)
        assert said
    for claimed in (1000, 2 << 30):
        cut_off(served, claimed)
    answers = others.answers()
    assert (answers.wrong, answers.errors) == (0, 0), answers.messages
    assert len(answers.seconds) > 10


# -- changes under load ------------------------------------------------------------------------


class Clients:
    """Clients that ask in the background."""

    def __init__(self, where: Address, feeds: list[dict[str, Any]], **options: Any) -> None:
        self._found: list[Answers] = []
        self._thread = threading.Thread(target=lambda: self._found.append(ask(where, "small", feeds, **options)))
        self._thread.start()

    def answers(self) -> Answers:
        self._thread.join()
        return self._found[0]


def scaled(folder: Path, factor: float) -> Path:
    """A bundle like ``small``, whose y is that much larger."""
    model = samples.model()
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy() * np.float32(factor), name=value.name)
    outputs = OnnxRuntimeRunner(ir.to_proto(model).SerializeToString(), threads=1)(samples.INPUTS)
    return write(folder, model=model, report=samples.report(), golden=Golden(samples.INPUTS, outputs))


def load_again(server: Server) -> None:
    assert post(server, "/v2/repository/models/small/load", b"")[0] == 200


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_new_version_and_back_while_clients_ask(triton: Path, small: Path, tmp_path: Path, protocol: str) -> None:
    repository = tmp_path / "repo"
    package([small], repository)
    second = scaled(tmp_path / "second", 3.0)
    (feed,), (other,) = golden_feeds(load_bundle(small)), golden_feeds(load_bundle(second))
    feed["outputs"] = {"1": feed["outputs"][""], "2": other["outputs"][""]}
    with running(repository, ports()) as server:
        clients = Clients(address(getattr(server, protocol)), [feed], clients=4, seconds=5.0, think=0.005)
        time.sleep(1.5)
        assert package([second], repository, name="small")[0].version == 2
        load_again(server)
        time.sleep(0.7)
        shutil.move(repository / "small" / "2", tmp_path / "withdrawn")
        load_again(server)
        answers = clients.answers()
        assert server.models() == [("small", "1")]
    assert (answers.wrong, answers.errors) == (0, 0), answers.messages
    assert min(answers.versions["1"], answers.versions["2"]) > 10


def test_a_version_that_is_half_copied_is_not_taken(triton: Path, small: Path, tmp_path: Path) -> None:
    """Weights of which the end is missing run, and answer wrong: the version before goes on, until all is there."""
    repository = tmp_path / "repo"
    package([small], repository)
    whole = package([scaled(tmp_path / "second", 3.0)], repository, name="small")[0].folder
    half = repository / "small" / "2" / "model.onnx"
    model = ir.load(whole / "model.onnx")
    weight = next(iter(model.graph.initializers.values()))
    weight.const_value = ir.tensor(np.zeros_like(weight.const_value.numpy()), name=weight.name)
    content = half.read_bytes()
    ir.save(model, half)
    with pytest.raises(InputError, match=r"not as it was written; altered: 'model\.onnx'"):
        dry_run(repository, ports())
    shutil.move(repository / "small" / "2", tmp_path / "2")
    with running(repository, ports()) as server:
        shutil.move(tmp_path / "2", repository / "small" / "2")
        status, told = post(server, "/v2/repository/models/small/load", b"")
        assert (status, b"model.onnx is not as it was packaged" in told) == (400, True)
        assert server.models() == [("small", "1")]
        half.write_bytes(content)
        load_again(server)
        assert server.models() == [("small", "2")]


def test_a_server_that_is_killed_gives_errors_and_no_wrong_answer(triton: Path, small: Path, tmp_path: Path) -> None:
    package([small], tmp_path / "repo")
    at = ports()
    clients = None
    with running(tmp_path / "repo", at) as server:
        clients = Clients(address(server.http), golden_feeds(load_bundle(small)), clients=4, seconds=9.0, think=0.01)
        time.sleep(2.5)
        os.killpg(server.process.pid, signal.SIGKILL)
        server.process.wait()
    with running(tmp_path / "repo", at):
        restarted = time.monotonic()
        answers = clients.answers()
        assert time.monotonic() - restarted > 0.5
    assert answers.errors > 0
    assert answers.wrong == 0, answers.messages
    assert len(answers.seconds) > 20


# -- the command -------------------------------------------------------------------------------


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The process of ``command``, which does not outlive a test that fails."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


SERVE = [sys.executable, "-c", "import sys; from normdeploy.cli import main; sys.exit(main())", "serve"]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_serve_tells_where_and_ends_cleanly(triton: Path, small: Path, tmp_path: Path, end: signal.Signals) -> None:
    package([small], tmp_path / "repo")
    command = [*SERVE, str(tmp_path / "repo"), "--json", "--log", str(tmp_path / "log")]
    with started(command) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(8)]
        told = json.loads("".join(lines))
        assert told["models"] == {"small": "1"}
        with urllib.request.urlopen(told["metrics"], timeout=10) as response:
            assert b"nv_inference_count" in response.read()
        process.send_signal(end)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert "Started HTTPService" in (tmp_path / "log").read_text()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(told["http"], timeout=5)


def test_no_triton_outlives_a_serve_that_is_killed(triton: Path, small: Path, tmp_path: Path) -> None:
    package([small], tmp_path / "repo")
    command = [*SERVE, str(tmp_path / "repo"), "--json"]
    with started(command) as process:
        assert process.stdout is not None
        told = json.loads("".join(process.stdout.readline() for _ in range(8)))
        process.kill()
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(told["http"], timeout=5)
        except urllib.error.HTTPError:
            time.sleep(0.1)
        except OSError:
            return
    pytest.fail("Triton still answers")


def test_a_model_that_fails_to_load_is_told(triton: Path, small: Path, tmp_path: Path) -> None:
    package([small], tmp_path)
    config = tmp_path / "small" / "config.pbtxt"
    config.write_text(config.read_text() + 'parameters { key: "no_such" value { string_value: "1" } }\n')
    with (
        pytest.raises(UnavailableError, match="Triton has ended, with exit code 1") as caught,
        running(tmp_path, ports()),
    ):
        pass
    assert "knows no parameter no_such" in caught.value.where


def test_a_dry_run_tells_the_command_and_starts_nothing(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NORMDEPLOY_CACHE", str(tmp_path / "cache"))
    package([small], tmp_path / "repo")
    assert main(["serve", str(tmp_path / "repo"), "--dry-run", "--http-port", "8765"]) == 0
    said = capsys.readouterr().out
    assert f"--model-repository={tmp_path / 'repo'}" in said
    assert "--http-address=127.0.0.1 --http-port=8765" in said
    assert not (tmp_path / "cache").exists()
    config = tmp_path / "repo" / "small" / "config.pbtxt"
    config.write_text(config.read_text().replace("KIND_CPU", "KIND_GPU"))
    with pytest.raises(InputError, match="it wants the GPU 0, and this machine has none"):
        dry_run(tmp_path / "repo", ports())


def test_ports_are_three_and_free() -> None:
    at = ports()
    assert len({at.http, at.grpc, at.metrics}) == 3
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for wrong in ((taken.getsockname()[1], 0, 0), (70000, 0, 0), (8000, 8000, 0)):
            with pytest.raises(InputError):
                ports(*wrong)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://", "https://a:1", "http://a", "http://a:b", "grpc://a:1/x"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InputError, match="no address of a server"):
        address(url)
