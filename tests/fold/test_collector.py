"""The collector of cycles: what was set before a fold is set after it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

from normdeploy.fold.collector import young_objects_only


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[tuple[int, int, int]]:
    """Those that were set, which stand again behind each test."""
    before = gc.get_threshold()
    gc.set_threshold(701, 11, 13)
    yield (701, 11, 13)
    gc.set_threshold(*before)


def test_old_objects_are_left_alone_and_young_ones_are_not(thresholds: tuple[int, int, int]) -> None:
    full = gc.get_stats()[2]["collections"]
    with young_objects_only():
        assert gc.get_threshold()[:2] == thresholds[:2]
        young = gc.get_stats()[1]["collections"]
        kept = [[number] for number in range(200_000)]
        assert gc.get_stats()[1]["collections"] > young
        assert gc.get_stats()[2]["collections"] == full
    assert len(kept) == 200_000
    assert gc.get_threshold() == thresholds


def test_what_was_set_is_restored_after_an_error(thresholds: tuple[int, int, int]) -> None:
    with pytest.raises(KeyError), young_objects_only():
        raise KeyError
    assert gc.get_threshold() == thresholds


def test_the_last_of_several_threads_restores(thresholds: tuple[int, int, int]) -> None:
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        with young_objects_only():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=work)
    with young_objects_only():
        thread.start()
        assert inside.wait(10)
    assert gc.get_threshold() != thresholds
    leave.set()
    thread.join(10)
    assert gc.get_threshold() == thresholds
