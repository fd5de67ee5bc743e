"""Faults of a repository that protobuf parses without a word are found before a server is started."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from normdeploy.errors import InputError
from normdeploy.serving.faults import require_sound
from normdeploy.serving.repository import package
from normdeploy.serving.schema import config_text, parse_config


@pytest.fixture
def repository(small: Path, tmp_path: Path) -> Path:
    package([small], tmp_path / "repo")
    return tmp_path / "repo"


def test_a_packaged_one_has_none(repository: Path) -> None:
    assert require_sound(repository, backends=["onnxruntime"], gpus=0) == ["small"]


CHANGED = {
    "dims of 0": ("dims: 5", "dims: 0", "x has a dimension of size 0"),
    "dims of -2": ("dims: 64", "dims: -2", "y has a dimension of size -2"),
    "other dims": ("dims: 5", "dims: 6", r"x has dims \[6\] in the config, which the model does not take"),
    "no dims": ("  dims: 64\n", "", "y has no dims"),
    "no type": ("TYPE_FP32", "TYPE_INVALID", "x has no data_type"),
    "other type": ("TYPE_FP32", "TYPE_FP16", "x is float16 in the config, and float32 in the model"),
    "unknown field": ("dims: 5", "dimms: 5", "cannot be read"),
    "another tensor": ('name: "y"', 'name: "z"', "the config has z, and the model has not"),
    "backend": ('backend: "onnxruntime"', 'backend: "onyx"', "the backend 'onyx' is none of"),
    "batch": ("max_batch_size: 4", "max_batch_size: 5", "max_batch_size is 5, and axis 0 of x takes less"),
    "no batch": ("max_batch_size: 4", "max_batch_size: 0", "dynamic_batching needs a max_batch_size"),
    "a scalar without batches": (
        "max_batch_size: 4",
        "max_batch_size: 0",
        "ids is a scalar, which Triton knows in batches alone",
    ),
    "negative batch": ("max_batch_size: 4", "max_batch_size: -1", "max_batch_size is -1"),
    "gpu": ("kind: KIND_CPU", "kind: KIND_GPU gpus: 1", "it wants the GPU 1, and this machine has none"),
    "name": ('name: "small"', 'name: "other"', "the config's name is 'other'"),
    "version": ("latest {\n    num_versions: 1\n  }", "specific { versions: 3 }", "its version policy wants 3"),
    "file": ('default_model_filename: "model.onnx"', 'default_model_filename: "m.onnx"', "version 1 has no m.onnx"),
    "warm-up": ("golden_1", "golden_9", "the warm-up data of ids, warmup/golden_9, is missing"),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), CHANGED.values(), ids=CHANGED.keys())
def test_a_fault_is_told(repository: Path, old: str, new: str, message: str) -> None:
    path = repository / "small" / "config.pbtxt"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=message) as caught:
        require_sound(repository, backends=["onnxruntime"], gpus=0)
    assert "small: " in caught.value.what


def test_missing_parts_are_told(repository: Path, tmp_path: Path) -> None:
    shutil.rmtree(repository / "small" / "1")
    (repository / "empty").mkdir()
    with pytest.raises(InputError, match=r"(?s)empty: config.pbtxt cannot be read.*small: it has no version"):
        require_sound(repository)
    for missing in (tmp_path / "nothing", small_file(tmp_path)):
        with pytest.raises(InputError, match="no repository"):
            require_sound(missing)
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="there is no model"):
        require_sound(tmp_path / "bare")


@pytest.mark.parametrize("name", ["007", "0", str(2**63), "٣"])
def test_a_number_that_is_no_version_is_told(repository: Path, name: str) -> None:
    shutil.copytree(repository / "small" / "1", repository / "small" / name)
    with pytest.raises(InputError, match=f"Triton takes {name} for no version"):
        require_sound(repository)


def small_file(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file"


def test_a_damaged_model_is_told(repository: Path) -> None:
    (repository / "small" / "1" / "model.onnx").write_bytes(b"\x0a\xff")
    with pytest.raises(InputError, match="small: version 1: "):
        require_sound(repository)


def test_a_config_survives_the_way_out_and_back(repository: Path) -> None:
    config = parse_config((repository / "small" / "config.pbtxt").read_text())
    assert parse_config(config_text(config)) == config
    with pytest.raises(ValueError, match="no_such_field"):
        parse_config("no_such_field: 1")
