"""perf_analyzer's command and table; its own program runs in test_triton.py, where it is on the PATH."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from normdeploy.errors import UnavailableError
from normdeploy.serving.ask import Address
from normdeploy.serving.perf_analyzer import Timing, find, read, timed

# What perf_analyzer 2.51 wrote of a Triton, and said on its standard output.
TABLE = """Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,\
Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency
2,3383.16,28,320,68,8,135,24,0,410,718,924,4810
"""
SAID = """  Server:
    Inference count: 12585
    Execution count: 12542
    Successful request count: 12585
"""
STAND_IN = f"""#!{sys.executable}
import json, pathlib, shutil, sys
shutil.copy("inputs.json", {{kept!r}})
pathlib.Path({{kept!r}}).with_suffix(".args").write_text(json.dumps(sys.argv[1:]))
pathlib.Path("latency.csv").write_text({TABLE!r})
print({SAID!r})
"""


def stand_in(folder: Path, text: str) -> Path:
    program = folder / "perf_analyzer"
    program.write_text(text)
    program.chmod(0o755)
    return program


def test_its_microseconds_become_milliseconds_and_its_rows_answers() -> None:
    names, values = (line.split(",") for line in TABLE.splitlines())
    row = dict(zip(names, values, strict=True))
    assert read(row, SAID, 4) == Timing(0.41, 0.718, 4.81, 3383.16 / 4, 12585 / 12542)
    assert read(row, "", 1).rows is None


@pytest.mark.parametrize("largest_batch", [0, 8])
def test_it_is_given_the_golden_inputs(largest_batch: int, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    program = stand_in(tmp_path, STAND_IN.format(kept=str(kept)))
    x, ids = np.arange(12, dtype=np.float16).reshape(2, 2, 3), np.array([5, 7])
    where = Address("grpc", "127.0.0.1:8001")
    found = timed(program, where, "m", {"x": x, "ids": ids}, largest_batch=largest_batch, clients=3, seconds=0.5)
    assert found.per_second == 3383.16 / (2 if largest_batch else 1)
    items = json.loads(kept.read_text())["data"]
    wanted = [(x[0], ids[:1]), (x[1], ids[1:])] if largest_batch else [(x, ids)]
    assert len(items) == len(wanted)
    for item, arrays in zip(items, wanted, strict=True):
        for name, array in zip(("x", "ids"), arrays, strict=True):
            got = np.frombuffer(base64.b64decode(item[name]["b64"]), array.dtype).reshape(item[name]["shape"])
            np.testing.assert_array_equal(got, array)
    told = json.loads(kept.with_suffix(".args").read_text())
    options = dict(zip(told[::2], told[1::2], strict=True))
    assert options.items() >= {
        "-m": "m", "-u": "127.0.0.1:8001", "-i": "grpc", "-b": "2" if largest_batch else "1",
        "--concurrency-range": "3", "--measurement-interval": "500",
    }.items()  # fmt: skip


def test_what_it_says_where_it_cannot_measure_is_told(tmp_path: Path) -> None:
    program = stand_in(tmp_path, f"#!{sys.executable}\nraise SystemExit('libb64.so.0d is missing')\n")
    with pytest.raises(UnavailableError, match=r"cannot measure: libb64\.so\.0d is missing"):
        timed(program, Address("http", "h:1"), "m", {"x": np.ones((1, 2))}, largest_batch=1, clients=1, seconds=1.0)


def test_it_is_looked_for_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find() is None
    program = stand_in(tmp_path, STAND_IN)
    assert find() == program
