"""A call checks once what can be checked once, and never less; bound memory gives what a call gives."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bundle_samples as samples
import numpy as np
import pytest

from normdeploy.bundle import Bundle, load_bundle
from normdeploy.bundle.inputs import Gate
from normdeploy.errors import InputError
from normdeploy.specs import parse

THREADS, CALLS = 16, 40
X, IDS = samples.INPUTS["x"], samples.INPUTS["ids"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from normdeploy.bundle import write

    folder = tmp_path_factory.mktemp("called") / "bundle"
    write(folder, model=samples.model(), report=samples.report(), golden=samples.golden())
    return load_bundle(folder, threads=1)


def feeds(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    rows = 1 + seed % 4
    return {"x": generator.standard_normal((rows, 5)).astype(np.float32), "ids": generator.integers(0, 7, rows)}


def close(actual: Any, inputs: dict[str, np.ndarray]) -> bool:
    exact = samples.expected(inputs, np.float64)
    same = np.allclose(actual["y"], exact["y"], rtol=0, atol=1e-5 * np.abs(exact["y"]).max())
    return bool(same and np.array_equal(actual["top"], exact["top"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X.astype(np.float64)}, "x is float64"),
        ({"x": X.astype(">f4")}, "x is >f4"),
        ({"x": X[:2]}, "dimension N is 2 elsewhere"),
        ({"ids": IDS - 1}, "values from -1"),
        ({"ids": IDS + 1}, "values from 1 to 7"),
        ({"mask": IDS}, "no input 'mask'"),
        ({"x": X[:, :4]}, "size 4, not 5"),
    ],
)
def test_what_passed_once_does_not_let_another_through(bundle: Bundle, change: dict[str, Any], message: str) -> None:
    for _ in range(2):
        assert close(bundle(samples.INPUTS), samples.INPUTS)
        with pytest.raises(InputError, match=message):
            bundle({**samples.INPUTS, **change})
    with pytest.raises(InputError, match="ids is missing"):
        bundle({"x": X})


def test_known_shapes_still_take_lists_and_views(bundle: Bundle) -> None:
    wide = np.repeat(X, 2, axis=1)[:, ::2]
    assert not wide.flags.c_contiguous
    assert close(bundle(x=wide, ids=IDS.tolist()), samples.INPUTS)


def test_nan_is_no_value_and_passes_where_floats_have_a_range() -> None:
    gate = Gate(parse(["x:N=1..2..4@f32[-1..1]"]))
    for values in ([0.5, 1.0], [np.nan, 1.0], [0.25, -1.0]):
        assert gate({"x": np.array(values, np.float32)})["x"].shape == (2,)
    with pytest.raises(InputError, match="outside"):
        gate({"x": np.array([np.nan, 1.5], np.float32)})


def test_more_shapes_than_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normdeploy.bundle.inputs._REMEMBERED", 2)
    gate = Gate(parse(["x:N=1..2..9"]))
    for rows in (*range(1, 10), *range(1, 10)):
        assert gate({"x": np.zeros(rows, np.float32)})["x"].shape == (rows,)
    with pytest.raises(InputError, match="size 10"):
        gate({"x": np.zeros(10, np.float32)})


def test_threads_share_a_bundle(bundle: Bundle) -> None:
    wrong: list[int] = []

    def call(thread: int) -> None:
        for index in range(CALLS):
            inputs = feeds(thread * CALLS + index)
            if not close(bundle(inputs), inputs):
                wrong.append(thread)

    threads = [threading.Thread(target=call, args=(index,)) for index in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_bound_memory_is_read_and_written_in_place(bundle: Bundle) -> None:
    inputs, out = feeds(2), {"y": np.empty((3, 64), np.float32), "top": np.empty((3, 1), np.int64)}
    call = bundle.bind(inputs, out=out)
    assert call.inputs["x"] is inputs["x"]
    for seed in (6, 10, 14):
        for name, array in feeds(seed).items():
            inputs[name][:] = array
        assert call() == call.outputs
        assert call.outputs["y"] is out["y"]
        assert close(out, feeds(seed))


def test_threads_bind_memory_of_their_own(bundle: Bundle) -> None:
    wrong: list[int] = []

    def call(thread: int) -> None:
        bound = bundle.bind(feeds(thread))
        for index in range(CALLS):
            new = feeds(thread + 4 * index)
            for name, array in new.items():
                bound.inputs[name][:] = array
            if not close(bound(), new):
                wrong.append(thread)

    threads = [threading.Thread(target=call, args=(index,)) for index in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_bound_values_stay_within_their_ranges(bundle: Bundle) -> None:
    call = bundle.bind({"x": X.copy(), "ids": IDS.copy()})
    before = call()["y"].copy()
    call.inputs["ids"][0] = 7
    with pytest.raises(InputError, match="values from 0 to 7"):
        call()
    np.testing.assert_array_equal(call.outputs["y"], before)


def outputs() -> dict[str, np.ndarray]:
    return {"y": np.empty((3, 64), np.float32), "top": np.empty((3, 1), np.int64)}


def wrong_outputs() -> Iterator[tuple[dict[str, Any], str]]:
    frozen = outputs()
    frozen["y"].flags.writeable = False
    yield {"y": outputs()["y"]}, "output top is missing"
    yield {**outputs(), "z": X}, "there is no output 'z'"
    yield {**outputs(), "y": np.empty((3, 64))}, "y is float64"
    yield {**outputs(), "y": np.empty((64, 3), np.float32)}, r"y is float32 \(64, 3\), not float32 \(3, 64\)"
    yield {**outputs(), "y": np.empty((64, 3), np.float32).T}, "not contiguous"
    yield frozen, "read-only"
    yield {**outputs(), "y": [1.0]}, "y is a list"


@pytest.mark.parametrize(("out", "message"), [*wrong_outputs()])
def test_outputs_that_cannot_be_written_to(bundle: Bundle, out: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        bundle.bind(samples.INPUTS, out=out)


def test_an_output_is_not_written_over_an_input(bundle: Bundle) -> None:
    memory = np.zeros(3 * 64, np.float32)
    inputs = {"x": memory[:15].reshape(3, 5), "ids": IDS}
    with pytest.raises(InputError, match="y shares memory with x"):
        bundle.bind(inputs, out={**outputs(), "y": memory.reshape(3, 64)})


def test_a_bundle_in_its_own_process_binds_nothing(folder: Path) -> None:
    isolated = load_bundle(folder, isolated=True)
    assert close(isolated(samples.INPUTS), samples.INPUTS)
    with pytest.raises(InputError, match="shares no memory"):
        isolated.bind(samples.INPUTS)
