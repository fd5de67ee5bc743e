"""Bundles that someone else laid out: nothing outside the folder is read, nothing waits, and nothing is swapped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import bundle_samples as samples
import numpy as np
import pytest

from normdeploy import disk
from normdeploy.bundle import files, load, load_bundle, write
from normdeploy.cli import main
from normdeploy.disk import rename
from normdeploy.errors import InputError

ODD: dict[str, Callable[[Path], object]] = {
    "link": lambda path: path.symlink_to("/etc/passwd"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "endless link": lambda path: path.symlink_to("/dev/zero"),
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
}


@pytest.mark.parametrize("name", sorted(samples.FILES))
@pytest.mark.parametrize("make", ODD.values(), ids=ODD.keys())
def test_no_command_follows_or_waits_for_what_is_no_file(
    bundle: Path, name: str, make: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
) -> None:
    (bundle / name).unlink()
    make(bundle / name)
    arguments = [["report", str(bundle)], ["explain", str(bundle)], ["build", str(bundle), "-o", str(bundle / "../p")]]
    for argument in arguments:
        main(argument)  # each reads other files; none may wait, or end in anything but a message of ours
        said = capsys.readouterr().err
        assert "root:" not in said
        assert "bug" not in said
    with pytest.raises(InputError):
        load_bundle(bundle)
    if make is not Path.mkdir:  # an empty folder is nobody's work
        with pytest.raises(InputError):
            export(bundle, force=True)
    assert os.path.lexists(bundle / name)


@pytest.mark.parametrize("inner", ["golden", "."])
def test_a_folder_of_the_bundle_that_is_a_link_is_not_entered(bundle: Path, tmp_path: Path, inner: str) -> None:
    """The bundle's own path may be one: that is the user's word."""
    folder = bundle / inner
    shutil.move(folder, tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    if inner == ".":
        assert load_bundle(bundle).folder == bundle
    else:
        with pytest.raises(InputError, match="missing"):
            load_bundle(bundle)


@pytest.mark.parametrize(
    "name", ["json.py", "sitecustomize.py", "golden/numpy.py", "../outside", "/etc/passwd", "a\0b"]
)
def test_a_manifest_lists_the_files_of_a_bundle_and_no_others(bundle: Path, name: str) -> None:
    if "\0" not in name and not name.startswith(("/", ".")):
        (bundle / name).write_text("print('code')")
    samples.sign(bundle)
    samples.edit(bundle, lambda manifest: manifest["files"].setdefault(name, "0" * 64))
    with pytest.raises(InputError, match="no part of a bundle"):
        load_bundle(bundle)


def export(folder: Path, **changes: Any) -> Path:
    given: dict[str, Any] = {"model": samples.model(), "report": samples.report(), "golden": samples.golden()}
    return write(folder, **(given | changes))


@pytest.fixture
def two(bundle: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A bundle, and another one of which every file is different, which computes something else."""
    other = export(tmp_path / "other", model_args={"width": "8"})
    return bundle, other


STEPS = ["files_in", "open_plain", "_copied", "read_plain", "_opened", "_check_engine"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("times", [1, 3])
def test_a_bundle_that_is_replaced_while_it_loads_is_one_of_the_two(
    two: tuple[Path, Path], step: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole: its manifest, its report and its model are of one export. The hashes alone would not tell."""
    bundle, other = two
    room = load if hasattr(load, step) else files
    before = getattr(room, step)
    left = [times]

    def replaced(*arguments: Any, **named: Any) -> Any:
        if left[0]:
            left[0] -= 1
            swap(bundle, other)
        return before(*arguments, **named)

    monkeypatch.setattr(room, step, replaced)
    loaded = load_bundle(bundle)
    assert left[0] < times
    where = (
        bundle
        if json.loads((bundle / "manifest.json").read_text())["model_args"] == loaded.manifest.model_args
        else other
    )
    for name in samples.FILES - {"manifest.json"}:
        assert (loaded.copy / name).read_bytes() == (where / name).read_bytes()


def swap(first: Path, second: Path) -> None:
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def test_a_file_written_to_while_it_is_read_is_not_what_runs(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its place, in the very inode: what is hashed has to be what is run."""
    model, opened = (bundle / "model.onnx").read_bytes(), load._opened
    expected = load_bundle(bundle)(samples.INPUTS)

    def scribbled(*arguments: Any, **named: Any) -> Any:
        (bundle / "model.onnx").write_bytes(b"\0" * len(model))
        (bundle / "report.json").write_text("{}")
        return opened(*arguments, **named)

    monkeypatch.setattr(load, "_opened", scribbled)
    loaded = load_bundle(bundle)
    for name, array in loaded(samples.INPUTS).items():
        np.testing.assert_array_equal(array, expected[name])
    assert loaded.report == samples.report()


def test_the_copy_goes_with_the_bundle(bundle: Path) -> None:
    loaded = load_bundle(bundle)
    copy = loaded.copy
    assert copy.is_dir()
    assert copy.stat().st_mode & 0o077 == 0, "nobody else writes to what was checked"
    del loaded
    assert not copy.exists()


def test_a_copy_that_a_killed_process_left_is_removed_by_the_next(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    child = os.fork()
    if child == 0:
        path, _ = disk.new_scratch()
        shutil.copytree(bundle, path / "copy")
        os._exit(0)  # and so its lock is gone
    os.waitpid(child, 0)
    (left,) = (tmp_path / "scratch").iterdir()
    loaded = load_bundle(bundle)
    assert not left.exists()
    assert list((tmp_path / "scratch").iterdir()) == [loaded.copy]
    load_bundle(bundle)
    assert loaded.copy.exists(), "one in use is nobody else's to remove"


def test_nothing_of_a_bundle_that_is_refused_stays(bundle: Path) -> None:
    copy = load_bundle(bundle).copy
    (bundle / "report.json").write_text("{}")
    before = set(copy.parent.glob(".normdeploy-*"))
    with pytest.raises(InputError):
        load_bundle(bundle)
    assert set(copy.parent.glob(".normdeploy-*")) <= before


def test_one_that_is_replaced_all_the_time_is_never_a_mix(two: tuple[Path, Path]) -> None:
    bundle, other = two
    done = threading.Event()

    def replace() -> None:
        while not done.is_set():
            rename.exchange(bundle, other)
            time.sleep(0.002)

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(20):
            with suppress(InputError):  # replaced faster than it can be read
                loaded = load_bundle(bundle, threads=1)
                digest = hashlib.sha256(loaded.model_path.read_bytes()).hexdigest()
                assert digest == loaded.manifest.files["model.onnx"]
    finally:
        done.set()
        thread.join()
