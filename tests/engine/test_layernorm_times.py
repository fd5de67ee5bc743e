"""Native LayerNorm unless the plugin is recorded faster; the record is read and written, and a bad one refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from normdeploy.engine import layernorm_times
from normdeploy.engine.layernorm_times import Spread, Times, is_faster, record, shipped, times_for, user_file
from normdeploy.errors import InputError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config"


def spread(least: float, most: float) -> Spread:
    return Spread(least=least, median=(least + most) / 2, most=most)


SLOW, FAST, BETWEEN = spread(2.0, 2.2), spread(1.0, 1.2), spread(1.1, 2.1)


def times(native: Spread, plugin: Spread, **more: Any) -> Times:
    given = {"operator": "LayerNorm", "dtype": "float16", "features": 1024, "rows": 64} | more
    return Times(native=native, plugin=plugin, **given)


def test_native_unless_recorded_faster() -> None:
    assert not is_faster([], "LayerNorm", "float16", 1024)
    assert is_faster([times(SLOW, FAST)], "LayerNorm", "float16", 1024)
    assert not is_faster([times(FAST, SLOW)], "LayerNorm", "float16", 1024)
    assert not is_faster([times(SLOW, BETWEEN)], "LayerNorm", "float16", 1024), "their spreads overlap"
    both = [times(SLOW, FAST), times(FAST, SLOW, rows=4096)]
    assert not is_faster(both, "LayerNorm", "float16", 1024), "at every number of rows"


@pytest.mark.parametrize(
    ("operator", "dtype", "features", "same"),
    [
        ("LayerNorm", "float16", 1024, True),
        ("LayerNorm", "float16", 768, True),  # up to the same power of 2
        ("LayerNorm", "float16", 512, False),
        ("LayerNorm", "float16", 1025, False),
        ("AddLayerNorm", "float16", 1024, False),
        ("LayerNorm", "float32", 1024, False),
    ],
)
def test_a_class_says_nothing_of_another(operator: str, dtype: str, features: int, same: bool) -> None:
    assert is_faster([times(SLOW, FAST)], operator, dtype, features) is same


def test_none_is_shipped_so_far() -> None:
    assert shipped().gpus == {}
    assert times_for("NVIDIA H200") == []


def test_a_record_is_kept_by_gpu(home: Path) -> None:
    assert record("A", [times(SLOW, FAST)]) == home / "normdeploy" / "layernorm.json" == user_file()
    record("B", [times(FAST, SLOW)])
    record("A", [times(SLOW, FAST, features=64)])
    assert list(times_for("A")) == [times(SLOW, FAST, features=64)], "a later one replaces an older one"
    assert list(times_for("B")) == [times(FAST, SLOW)]
    assert times_for("C") == []


def test_the_users_record_comes_before_the_shipped_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layernorm_times, "shipped", lambda: layernorm_times.Records(gpus={"A": [times(FAST, SLOW)]}))
    assert list(times_for("A")) == [times(FAST, SLOW)]
    record("A", [times(SLOW, FAST)])
    assert list(times_for("A")) == [times(SLOW, FAST)]


GOOD = json.loads(layernorm_times.Records(gpus={"A": [times(SLOW, FAST)]}).to_json())


def changed(*path: Any, to: Any) -> str:
    document = json.loads(json.dumps(GOOD))
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return json.dumps(document)


ENTRY = ("gpus", "A", 0)
HOSTILE = {
    "no JSON": "{",
    "not an object": "[1, 2]",
    "deep": "[" * 100_000,
    "another version": changed("schema_version", to=2),
    "an unknown key": changed(*ENTRY, "code", to="import os"),
    "an unknown operator": changed(*ENTRY, "operator", to="../../etc"),
    "NaN": json.dumps(GOOD).replace("1.1", "NaN"),
    "infinite": json.dumps(GOOD).replace("1.2", "1e999"),
    "zero": changed(*ENTRY, "plugin", "least", to=0.0),
    "negative": changed(*ENTRY, "plugin", "least", to=-1.0),
    "text for a number": changed(*ENTRY, "features", to="1024"),
    "half a feature": changed(*ENTRY, "features", to=1024.5),
    "a huge number": changed(*ENTRY, "features", to=10**400),
    "out of order": changed(*ENTRY, "plugin", "least", to=9.0),
    "an empty name": json.dumps({"schema_version": 1, "gpus": {"": []}}),
    "too large": " " * (1 << 23),
    "not text": "\udcff\udcfe",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_file_that_is_no_record_is_one_message(what: str) -> None:
    path = user_file()
    path.parent.mkdir(parents=True)
    path.write_bytes(HOSTILE[what].encode(errors="surrogateescape"))
    before = path.read_bytes()
    for use in (lambda: times_for("A"), lambda: record("A", [times(SLOW, FAST)])):
        with pytest.raises(InputError) as refused:
            use()
        assert "\n" not in refused.value.what
        assert "layernorm.json" in f"{refused.value.where} {refused.value.what}"
    assert path.read_bytes() == before, "it is the user's, and stays"


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    path = user_file()
    path.parent.mkdir(parents=True)
    (tmp_path / "other.json").write_text(json.dumps(GOOD))
    path.symlink_to(tmp_path / "other.json")
    with pytest.raises(InputError):
        times_for("A")
