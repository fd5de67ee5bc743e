"""Whatever the bytes of a bundle are, loading it either works or ends in one of our errors."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import bundle_samples as samples
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from normdeploy.bundle import load_bundle
from normdeploy.errors import InputError, VerdictError

# the folder is mended before every example, so it may be shared by them
fuzz = settings(
    max_examples=120, suppress_health_check=[*settings().suppress_health_check, HealthCheck.function_scoped_fixture]
)
SIGNED = ["report.json", "golden/inputs.npz", "golden/outputs.npz"]

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=5), scalars, max_size=3)


def mutate(data: st.DataObject, content: bytes) -> bytes:
    """Bytes replaced, inserted or cut out at one place."""
    start = data.draw(st.integers(0, len(content)))
    length = data.draw(st.integers(0, 12) | st.integers(0, len(content)))
    return content[:start] + data.draw(st.binary(max_size=12)) + content[start + length :]


def replace(data: st.DataObject, node: Any) -> Any:
    """``node`` with one of the values in it removed, renamed or replaced by another."""
    if isinstance(node, dict | list) and node and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        child = node.pop(key)
        match data.draw(st.sampled_from(["deeper", "deeper", "removed", "renamed"])):
            case "deeper" if isinstance(node, dict):
                node[key] = replace(data, child)
            case "deeper":
                node.insert(key, replace(data, child))
            case "renamed" if isinstance(node, dict):
                node[data.draw(st.text(max_size=9))] = child
        return node
    return data.draw(values)


@fuzz
@given(data=st.data())
def test_mutated_bytes_of_the_manifest(folder: Path, data: st.DataObject) -> None:
    path = folder / "manifest.json"
    content = path.read_bytes()
    try:
        path.write_bytes(mutate(data, content))
        expect(folder, InputError)
    finally:
        path.write_bytes(content)


@fuzz
@given(data=st.data())
def test_mutated_values_of_the_manifest(folder: Path, data: st.DataObject) -> None:
    path = folder / "manifest.json"
    content = path.read_bytes()
    try:
        path.write_text(json.dumps(replace(data, json.loads(content))))
        expect(folder, InputError)
    finally:
        path.write_bytes(content)


@fuzz
@given(data=st.data(), name=st.sampled_from(SIGNED))
def test_mutated_bytes_under_true_hashes(folder: Path, data: st.DataObject, name: str) -> None:
    kept = {each: (folder / each).read_bytes() for each in ("manifest.json", name)}
    try:
        (folder / name).write_bytes(mutate(data, kept[name]))
        samples.sign(folder)
        expect(folder, (InputError, VerdictError))
    finally:
        for each, content in kept.items():
            (folder / each).write_bytes(content)


@fuzz
@given(data=st.data())
def test_mutated_values_of_the_report_under_true_hashes(folder: Path, data: st.DataObject) -> None:
    kept = {each: (folder / each).read_bytes() for each in ("manifest.json", "report.json")}
    try:
        (folder / "report.json").write_text(json.dumps(replace(data, json.loads(kept["report.json"]))))
        samples.sign(folder)
        expect(folder, (InputError, VerdictError))
    finally:
        for each, content in kept.items():
            (folder / each).write_bytes(content)


def expect(folder: Path, errors: Any) -> None:
    """Load ``folder``: it works, or ends in one of ``errors``; anything else fails the test."""
    with suppress(errors):
        load_bundle(folder, threads=1)


@pytest.mark.parametrize("name", sorted(samples.FILES))
def test_every_truncation_is_noticed(folder: Path, tmp_path: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    for share in (0.0, 0.3, 0.9, 1 - 1 / len(content)):
        (folder / name).write_bytes(content[: int(share * len(content))])
        if name == "manifest.json" and json_is_whole(folder / name):
            continue  # only the last newline is gone
        with pytest.raises(InputError):
            load_bundle(folder)
    shutil.rmtree(folder)


def json_is_whole(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True
