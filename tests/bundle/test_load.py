from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundle_samples as samples
import numpy as np
import onnx
import onnxruntime
import pytest

from normdeploy.bundle import load_bundle
from normdeploy.bundle.golden import save
from normdeploy.errors import InputError, VerdictError

X, IDS = samples.INPUTS["x"], samples.INPUTS["ids"]


def test_a_bundle_computes_what_the_model_means(folder: Path) -> None:
    bundle = load_bundle(str(folder))
    inputs = {"x": np.random.default_rng(1).standard_normal((4, 5)).astype(np.float32), "ids": np.array([1, 5, 0, 6])}
    outputs, exact = bundle(inputs), samples.expected(inputs, np.float64)
    assert list(outputs) == list(bundle.manifest.outputs) == ["y", "top"]
    np.testing.assert_allclose(outputs["y"], exact["y"], rtol=0, atol=1e-5 * np.abs(exact["y"]).max())
    np.testing.assert_array_equal(outputs["top"], exact["top"])
    np.testing.assert_array_equal(bundle(**inputs)["y"], outputs["y"])
    np.testing.assert_array_equal(bundle({"x": inputs["x"]}, ids=inputs["ids"])["y"], outputs["y"])


def test_it_knows_what_was_written(folder: Path) -> None:
    bundle = load_bundle(folder)
    assert bundle.report == samples.report()
    assert bundle.folder == folder
    assert bundle.model_path.read_bytes() == (folder / "model.onnx").read_bytes()
    assert [str(spec) for spec in bundle.specs] == [*samples.SPECS[:1], "ids:N=1..2..4@i64[0..6]"]
    np.testing.assert_array_equal(bundle.golden.inputs["x"], X)
    assert set(bundle.manifest.files) == samples.FILES - {"manifest.json"}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"x": X}, "input ids is missing"),
    "unknown": ({"x": X, "ids": IDS, "mask": IDS}, "there is no input 'mask'"),
    "dtype": ({"x": X.astype(np.float64), "ids": IDS}, "x is float64, not float32"),
    "integers for floats": ({"x": np.ones((3, 5), np.int64), "ids": IDS}, "x is int64, not float32"),
    "byte order": ({"x": X.astype(">f4"), "ids": IDS}, "x is >f4, not float32"),
    "a list": ({"x": X.tolist(), "ids": IDS}, "x is float64, not float32"),
    "objects": ({"x": [None], "ids": IDS}, "x is object, not float32"),
    "ragged": ({"x": [[1.0], [1.0, 2.0]], "ids": IDS}, "x cannot be made an array"),
    "rank": ({"x": X[0], "ids": IDS}, r"x has shape \(5,\), not 2 dimensions"),
    "fixed size": ({"x": X[:, :4], "ids": IDS}, "axis 1 of x has size 4, not 5"),
    "above the range": ({"x": np.ones((5, 5), np.float32), "ids": np.zeros(5, np.int64)}, "size 5, not 1..4"),
    "below the range": ({"x": X[:0], "ids": IDS[:0]}, "axis 0 of x has size 0, not 1..4"),
    "unequal": ({"x": X, "ids": IDS[:2]}, "axis 0 of ids has size 2, but dimension N is 3 elsewhere"),
    "values above": ({"x": X, "ids": IDS + 1}, r"values from .*, outside \[0..6\]"),
    "values below": ({"x": X, "ids": IDS - 1}, r"values from .*, outside \[0..6\]"),
}


@pytest.mark.parametrize(("inputs", "message"), WRONG.values(), ids=WRONG.keys())
def test_an_input_that_does_not_fit_is_named(folder: Path, inputs: dict[str, Any], message: str) -> None:
    bundle = load_bundle(folder)
    with pytest.raises(InputError, match=message) as caught:
        bundle(inputs)
    assert caught.value.where == "the inputs of the bundle"
    assert "x:N=1..2..4x5@f32" in caught.value.fix or "array" in message


def test_inputs_without_names_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="told by name, and a ndarray has none") as caught:
        load_bundle(folder)(X)  # type: ignore[arg-type]
    assert "give {'x': …} or x=…" in caught.value.fix


def test_all_that_is_wrong_is_said_at_once(folder: Path) -> None:
    with pytest.raises(InputError, match=r"no input 'y'; x is float64, not float32; axis 1 of x has size 4"):
        load_bundle(folder)(x=np.ones((3, 4)), y=1, ids=IDS)


@pytest.mark.parametrize("name", sorted(samples.FILES - {"manifest.json"}))
@pytest.mark.parametrize("change", ["missing", "altered", "link", "pipe", "folder"])
def test_a_file_that_is_not_as_it_was_is_named(folder: Path, tmp_path: Path, name: str, change: str) -> None:
    path = folder / name
    if change == "altered":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.rename(tmp_path / "aside")
    if change == "link":
        path.symlink_to(tmp_path / "aside")
    if change == "pipe":
        os.mkfifo(path)
    if change == "folder":
        path.mkdir()
    said = {"link": "not a plain file", "pipe": "not a plain file", "folder": "missing"}.get(change, change)
    with pytest.raises(InputError, match=f"{said}: '{name}'"):
        load_bundle(folder)


@pytest.mark.parametrize("name", ["extra.txt", "golden/.hidden", "deep/er/file", "new\nline\x1b"])
def test_a_file_too_many_is_named(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    with pytest.raises(InputError, match="extra: ") as caught:
        load_bundle(folder)
    assert repr(name) in str(caught.value)
    assert "\x1b" not in str(caught.value)


PATHS = [
    "../x",
    "/etc/passwd",
    "a/../../x",
    "./x",
    "a//b",
    "",
    "a\\..\\x",
    "C:x",
    ".hidden",
    "a/",
    "x\n",
    "x\x00",
    "manifest.json",
]


@pytest.mark.parametrize("name", PATHS)
def test_a_manifest_names_only_files_of_its_folder(folder: Path, name: str) -> None:
    samples.edit(folder, lambda manifest: manifest["files"].update({name: "00" * 32}))
    with pytest.raises(InputError, match="not a manifest") as caught:
        load_bundle(folder)
    assert "missing" not in str(caught.value)


def newer(manifest: dict[str, Any]) -> None:
    manifest["schema_version"] = 2


def without_model(manifest: dict[str, Any]) -> None:
    del manifest["files"]["model.onnx"]


def bad_hash(manifest: dict[str, Any]) -> None:
    manifest["files"]["model.onnx"] = "AB" * 32


def other_input(manifest: dict[str, Any]) -> None:
    manifest["inputs"] = ["z:N=1..2..4x5@f32", "ids:N@i64[0..6]"]


def smaller_range(manifest: dict[str, Any]) -> None:
    manifest["inputs"] = ["x:N=1..2..2x5@f32", "ids:N@i64[0..6]"]


def bad_spec(manifest: dict[str, Any]) -> None:
    manifest["inputs"] = ["x:N=4..1x5@f32"]


def other_output(manifest: dict[str, Any]) -> None:
    manifest["outputs"] = {"y": "float32", "bottom": "int64"}


def other_dtype(manifest: dict[str, Any]) -> None:
    manifest["outputs"]["y"] = "float64"


def loads_code(manifest: dict[str, Any]) -> None:
    manifest["session_options"] = {"register_custom_ops_library": "/tmp/evil.so"}


def writes_files(manifest: dict[str, Any]) -> None:
    manifest["session_options"] = {"optimized_model_filepath": "/tmp/written.onnx"}


def bad_option(manifest: dict[str, Any]) -> None:
    manifest["session_options"] = {"graph_optimization_level": "most"}


def option(name: str, value: str) -> Callable[[dict[str, Any]], None]:
    def change(manifest: dict[str, Any]) -> None:
        manifest["session_options"] = {name: value}

    change.__name__ = f"{name} {value!r}"
    return change


LISTS = ["", ",", "A,", "A,,B", "A B", "A;B", "../A", "A\n", "/tmp/evil.so", "1", "A" * 65, ",".join(["A"] * 33)]
VALUES = [option("disabled_optimizers", value) for value in LISTS]
VALUES += [option("session.set_denormal_as_zero", "1"), option("session.intra_op.allow_spinning", "0")]
VALUES += [option("graph_optimization_level", "disable"), option("enable_mem_pattern", "0")]

CHANGES = [newer, without_model, bad_hash, other_input, smaller_range, bad_spec, other_output, other_dtype]
CHANGES += [loads_code, writes_files, bad_option]


@pytest.mark.parametrize("change", [*CHANGES, *VALUES], ids=lambda change: change.__name__)
def test_a_manifest_that_does_not_fit_is_refused(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    samples.edit(folder, change)
    with pytest.raises(InputError):
        load_bundle(folder)


@pytest.mark.parametrize("value", ["SkipLayerNormFusion", "SkipLayerNormFusion,NoSuch_Fusion2"])
def test_the_session_is_made_with_the_options_of_the_manifest(
    folder: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    session = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *args, **named: seen.append(named) or session(*args, **named)
    )
    samples.edit(folder, option("disabled_optimizers", value))
    load_bundle(folder)
    assert [named["disabled_optimizers"] for named in seen] == [value.split(",")]


def test_a_newer_bundle_is_named_as_such(folder: Path) -> None:
    samples.edit(folder, newer)
    with pytest.raises(InputError, match="not a manifest that this normdeploy reads: schema_version"):
        load_bundle(folder)


def test_names_that_the_model_does_not_have_are_refused(folder: Path) -> None:
    samples.edit(folder, lambda manifest: manifest.update(inputs=["z:N=1..2..4x5@f32", "ids:N@i64[0..6]"]))
    save(folder / "golden" / "inputs.npz", {"z": X, "ids": IDS})
    samples.sign(folder)
    with pytest.raises(InputError, match=r"the manifest says \['ids', 'z'\]"):
        load_bundle(folder)


def test_golden_arrays_that_do_not_fit_are_laid_to_the_bundle(folder: Path) -> None:
    samples.edit(folder, smaller_range)
    with pytest.raises(InputError, match=r"golden arrays do not fit: axis 0 of x has size 3, not 1\.\.2") as caught:
        load_bundle(folder)
    assert caught.value.where == str(folder)


@pytest.mark.parametrize("path", ["", "missing", "missing/\0", "x" * 300])
def test_what_is_no_bundle_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(InputError):
        load_bundle(tmp_path / path)


def test_a_file_is_no_bundle(folder: Path) -> None:
    with pytest.raises(InputError, match="not a bundle"):
        load_bundle(folder / "model.onnx")


def test_golden_outputs_that_do_not_come_out_fail_the_verdict(folder: Path) -> None:
    outputs = samples.golden().outputs
    save(folder / "golden" / "outputs.npz", {**outputs, "y": outputs["y"] + np.float32(1e-3)})
    samples.sign(folder)
    with pytest.raises(VerdictError, match="does not give its golden outputs on this machine: y is off by") as caught:
        load_bundle(folder)
    assert caught.value.exit_code == 1


def test_another_model_under_true_hashes_fails_the_verdict(folder: Path) -> None:
    proto = onnx.load(folder / "model.onnx")
    table = onnx.numpy_helper.to_array(proto.graph.initializer[1]) * np.float32(1.0001)
    proto.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(table, "table"))
    onnx.save(proto, folder / "model.onnx")
    samples.sign(folder)
    with pytest.raises(VerdictError, match="y is off by"):
        load_bundle(folder)


@pytest.mark.parametrize("location", ["../secret.bin", "{parent}/secret.bin", "link.bin"])
def test_a_model_reads_no_weights_outside_its_bundle(folder: Path, location: str) -> None:
    proto = onnx.load(folder / "model.onnx")
    table = proto.graph.initializer[1]
    (folder.parent / "secret.bin").write_bytes(table.raw_data)
    (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
    table.ClearField("raw_data")
    table.data_location = onnx.TensorProto.EXTERNAL
    table.external_data.add(key="location", value=location.format(parent=folder.parent))
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    if location != "link.bin":
        (folder / "link.bin").unlink()
    samples.sign(folder)
    with pytest.raises(InputError):
        load_bundle(folder)


def test_a_copied_bundle_is_the_same_bundle(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy of it")
    np.testing.assert_array_equal(load_bundle(copy)(samples.INPUTS)["y"], load_bundle(folder)(samples.INPUTS)["y"])
