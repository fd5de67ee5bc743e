from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundle_samples as samples
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from bundle_samples import tree

from normdeploy.bundle import Golden, check_target, load_bundle, write, writing
from normdeploy.errors import InputError, VerdictError


def export(folder: Path, **changes: Any) -> Path:
    given: dict[str, Any] = {"model": samples.model(), "report": samples.report(), "golden": samples.golden()}
    return write(folder, **(given | changes))


def test_a_bundle_has_its_files_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    written = export(tmp_path / "made" / "on the way" / "bundle")
    assert written == tmp_path / "made" / "on the way" / "bundle"
    files = {name for name, content in tree(tmp_path).items() if content is not None}
    assert files == {f"made/on the way/bundle/{name}" for name in samples.FILES}


def test_the_manifest_says_what_it_is_and_hashes_every_other_file(tmp_path: Path) -> None:
    options = {"disabled_optimizers": "SkipLayerNormFusion"}
    folder = export(tmp_path / "bundle", model_args={"width": "8"}, session_options=options)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"] == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in samples.FILES - {"manifest.json"}
    }
    assert manifest["inputs"] == samples.SPECS
    assert list(manifest["outputs"].items()) == [("y", "float32"), ("top", "int64")]
    assert manifest["weights_sha256"] == "cd" * 32
    assert (manifest["factory"], manifest["model_args"]) == ("models.small:net", {"width": "8"})
    assert manifest["session_options"] == options


def test_the_same_export_gives_the_same_bytes(tmp_path: Path) -> None:
    assert tree(export(tmp_path / "one")) == tree(export(tmp_path / "two"))


def test_it_can_be_read_by_others(tmp_path: Path) -> None:
    folder = export(tmp_path / "bundle")
    plain = tmp_path / "plain"
    plain.mkdir()
    assert (folder.stat().st_mode, os.listdir(tmp_path)) == (plain.stat().st_mode, os.listdir(tmp_path))


@pytest.mark.parametrize("external_above", [0, 3000])
def test_large_weights_lie_beside_the_model(tmp_path: Path, external_above: int) -> None:
    folder = export(tmp_path / "bundle", external_above=external_above)
    proto = onnx.load(folder / "model.onnx", load_external_data=False)
    assert {
        entry.value for each in proto.graph.initializer for entry in each.external_data if entry.key == "location"
    } == {"model.onnx.data"}
    assert (folder / "model.onnx.data").stat().st_size == sum(array.nbytes for array in samples.WEIGHTS.values())
    assert "model.onnx.data" in load_bundle(folder).manifest.files
    moved = folder.rename(tmp_path / "moved")
    np.testing.assert_array_equal(load_bundle(moved)(samples.INPUTS)["y"], samples.golden().outputs["y"])


def test_weights_up_to_the_threshold_stay_in_the_model(tmp_path: Path) -> None:
    weights = sum(array.nbytes for array in samples.WEIGHTS.values())
    assert not (export(tmp_path / "at", external_above=weights) / "model.onnx.data").exists()
    assert (export(tmp_path / "above", external_above=weights - 1) / "model.onnx.data").exists()


def test_weights_that_lie_in_a_file_elsewhere_come_along(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    ir.save(samples.model(), tmp_path / "source" / "m.onnx", external_data="w.bin")
    model = ir.load(tmp_path / "source" / "m.onnx")
    folder = export(tmp_path / "bundle", model=model)
    shutil.rmtree(tmp_path / "source")
    np.testing.assert_array_equal(load_bundle(folder)(samples.INPUTS)["y"], samples.golden().outputs["y"])


def test_an_existing_bundle_is_replaced_by_force_only(folder: Path) -> None:
    before = tree(folder.parent)
    with pytest.raises(InputError, match="exists already") as caught:
        export(folder)
    assert "--force" in caught.value.fix
    assert tree(folder.parent) == before
    export(folder, model_args={"width": "8"}, force=True)
    assert load_bundle(folder).manifest.model_args == {"width": "8"}
    assert os.listdir(folder.parent) == ["bundle"]


def test_through_a_link_the_folder_behind_it_is_replaced(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    assert export(tmp_path / "link", model_args={"width": "8"}, force=True) == folder
    assert (tmp_path / "link").is_symlink()
    assert load_bundle(folder).manifest.model_args == {"width": "8"}


def test_an_empty_folder_is_replaced_by_force(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="exists already"):
        export(tmp_path / "empty")
    assert load_bundle(export(tmp_path / "empty", force=True))


def home(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def other_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"files": {"model.onnx": 1}}')


def list_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[1]")


def deep_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[" * 100_000)


def own_notes(folder: Path) -> None:
    (folder / "golden" / "notes.txt").write_text("mine")


def own_link(folder: Path) -> None:
    (folder / "data").symlink_to(folder.parent, target_is_directory=True)


def is_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("mine")


@pytest.mark.parametrize(
    "change",
    [home, other_manifest, list_manifest, deep_manifest, own_notes, own_link, is_a_file],
    ids=lambda f: f.__name__,
)
def test_what_is_not_only_a_bundle_is_never_replaced(folder: Path, change: Callable[[Path], None]) -> None:
    change(folder)
    before = tree(folder.parent)
    with pytest.raises(InputError) as caught:
        check_target(folder, force=True)
    assert caught.value.where == str(folder)
    with pytest.raises(InputError):
        export(folder, force=True)
    assert tree(folder.parent) == before


def test_the_files_in_the_way_are_named_but_not_all_of_them(folder: Path) -> None:
    for i in range(9):
        (folder / f"mine_{i}.txt").touch()
    with pytest.raises(InputError, match=r"'mine_0.txt', .*'mine_4.txt' and 4 more that no bundle's manifest lists"):
        check_target(folder, force=True)


@pytest.mark.parametrize("version", [0, 2, "three"])
def test_a_bundle_of_another_version_is_replaced_too(folder: Path, version: Any) -> None:
    samples.edit(folder, lambda manifest: manifest.update(schema_version=version, unknown=1))
    (folder / "report.html").unlink()
    assert load_bundle(export(folder, force=True))


def test_the_target_is_checked_without_touching_anything(tmp_path: Path) -> None:
    assert check_target(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert tree(tmp_path) == {}


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="a file is in the way") as caught:
        check_target(tmp_path / "file" / "a" / "bundle")
    assert caught.value.where == str(tmp_path / "file")
    assert tree(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize("folder", ["/proc/normdeploy/bundle", "/proc/bundle"])
def test_a_parent_that_takes_no_folder(folder: str) -> None:
    with pytest.raises(InputError, match="cannot be written") as caught:
        export(Path(folder))
    assert caught.value.fix == "choose another --out"


def test_a_parent_that_cannot_be_written_is_told_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written here"):
        check_target(Path("/proc/bundle"))  # the super-user may write anywhere else
    check_target(tmp_path / "new" / "bundle")
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        export(tmp_path / ("x" * 300))
    assert tree(tmp_path) == {}
    assert load_bundle(export(tmp_path / ("x" * 255)))


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def patch(monkeypatch: pytest.MonkeyPatch, name: str, function: Callable[..., Any]) -> None:
    owner: Any = writing
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    monkeypatch.setattr(owner, last, function)


STEPS = ["onnxfile.save", "render", "golden_feed.save", "check", "_install"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("exists", [True, False])
def test_a_full_disk_at_any_step_leaves_everything_as_it_was(
    folder: Path, step: str, exists: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = folder if exists else folder.parent / "new" / "deep" / "bundle"
    before = tree(folder.parent)
    patch(monkeypatch, step, full)
    with pytest.raises(InputError, match="the disk is full") as caught:
        export(target, force=True)
    assert (caught.value.exit_code, caught.value.where) == (2, str(target))
    assert tree(folder.parent) == before


@pytest.mark.parametrize("limit", [100, 2000, 5000])
def test_a_disk_that_really_takes_no_more(folder: Path, limit: int) -> None:
    before = tree(folder.parent)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    given = {"model": samples.model(), "report": samples.report(), "golden": samples.golden()}
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, usual[1]))
    try:
        with pytest.raises(InputError, match=r"no file may be so large \(ulimit -f\)"):
            export(folder, force=True, **given)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert tree(folder.parent) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_an_interrupt_leaves_everything_as_it_was(
    folder: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(folder.parent)

    def interrupt(*_: Any) -> None:
        raise error

    patch(monkeypatch, "_install", interrupt)
    with pytest.raises(error):
        export(folder, force=True)
    assert tree(folder.parent) == before


def test_a_bundle_whose_golden_outputs_are_not_the_models_own_is_not_written(folder: Path) -> None:
    before = tree(folder.parent)
    inputs, outputs = samples.golden()
    with pytest.raises(VerdictError, match="y is off by"):
        export(folder, golden=Golden(inputs, {**outputs, "y": outputs["y"] * 1.001}), force=True)
    assert tree(folder.parent) == before
