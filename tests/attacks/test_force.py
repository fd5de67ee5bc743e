"""What is replaced or removed is what normdeploy wrote, by its content, or the one file that was named."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import bundle_samples as samples
import onnx
import pytest
from support import tree

from normdeploy.bundle import load_bundle, write, writing
from normdeploy.disk import rename, rooms, tidy
from normdeploy.errors import InputError
from normdeploy.pipeline import fold_file

WRITE: Any = writing


def export(folder: Path, **changes: Any) -> Path:
    given: dict[str, Any] = {"model": samples.model(), "report": samples.report(), "golden": samples.golden()}
    return write(folder, **(given | changes))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- a bundle ---


@pytest.mark.parametrize("hashes", [True, False], ids=["true hashes", "no hashes"])
@pytest.mark.parametrize("names", [["thesis.txt"], ["thesis.txt", "sub/a.bin"], ["model.onnx"], ["report.json"]])
def test_a_manifest_alone_makes_no_bundle(tmp_path: Path, names: list[str], hashes: bool) -> None:
    folder = tmp_path / "mine"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"my work on {name}")
    ours = hashes and not names[0].endswith("txt")  # written under the names of a bundle, as it was written: a bundle
    files = {name: digest(folder / name) if hashes else "" for name in names}
    (folder / "manifest.json").write_text(json.dumps({"normdeploy_version": "x", "files": files}))
    before = tree(tmp_path)
    if ours:
        assert load_bundle(export(folder, force=True))
        return
    with pytest.raises(InputError, match="is not replaced"):
        export(folder, force=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", sorted(samples.FILES - {"manifest.json"}))
def test_a_file_that_was_written_to_is_not_replaced(bundle: Path, name: str) -> None:
    with (bundle / name).open("ab") as file:
        file.write(b"my own notes")
    before = tree(bundle.parent)
    with pytest.raises(InputError, match="no longer what was written there"):
        export(bundle, force=True)
    assert tree(bundle.parent) == before


STEPS = ["_save_model", "render", "check", "_install"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["notes.txt", "golden/notes.txt", "new/folder/notes.txt"])
def test_a_file_added_while_the_new_one_is_made_is_kept(
    bundle: Path, step: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = getattr(WRITE, step)

    def added(*arguments: Any) -> Any:
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_text("three days of work")
        return before(*arguments)

    monkeypatch.setattr(WRITE, step, added)
    old = tree(bundle)
    with pytest.raises(InputError, match=r"notes\.txt"):
        export(bundle, force=True)
    assert tree(bundle) == old | {name: b"three days of work"}
    assert os.listdir(bundle.parent) == ["bundle"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_file_added_at_the_very_last_moment_is_kept_and_told(
    bundle: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look and the rename."""
    usual = rename._renamed

    def added(source: Path, target: Path, flag: int) -> bool:
        if not (bundle.parent / "done").exists():
            (bundle.parent / "done").touch()
            (bundle / "notes.txt").write_text("three days of work")
        return exchange and usual(source, target, flag)

    monkeypatch.setattr(rename, "_renamed", added)
    with pytest.raises(InputError, match="it was kept") as caught:
        export(bundle, model_args={"width": "8"}, force=True)
    assert load_bundle(bundle).manifest.model_args == {"width": "8"}
    assert tree(Path(caught.value.where)) == {"notes.txt": b"three days of work"}
    tidy(bundle.parent)  # nor does the next one remove it
    assert tree(Path(caught.value.where)) == {"notes.txt": b"three days of work"}


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("inside", ["notes.txt", None])
def test_a_folder_made_meanwhile_is_not_replaced_unasked(
    tmp_path: Path, inside: str | None, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, before, usual = tmp_path / "b", WRITE._install, rename._renamed

    def made(*arguments: Any) -> Any:
        target.mkdir()
        if inside:
            (target / inside).write_text("mine")
        return before(*arguments)

    monkeypatch.setattr(WRITE, "_install", made)
    monkeypatch.setattr(rename, "_renamed", lambda *arguments: exchange and usual(*arguments))
    with pytest.raises(InputError, match="exists already"):
        export(target)
    assert tree(target) == ({inside: b"mine"} if inside else {})
    assert os.listdir(tmp_path) == ["b"]


def test_of_two_exports_to_one_new_place_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, before = tmp_path / "b", WRITE.check

    def overtaken(new: Path) -> None:
        monkeypatch.setattr(WRITE, "check", before)
        export(target, model_args={"width": "8"})
        before(new)

    monkeypatch.setattr(WRITE, "check", overtaken)
    with pytest.raises(InputError, match="exists already"):
        export(target)
    assert load_bundle(target).manifest.model_args == {"width": "8"}


# --- what a killed writer seems to have left ---


def room_of(folder: Path, **parts: Any) -> Path:
    room = folder / ".normdeploy-0123456789ab.tmp"
    room.mkdir(parents=True)
    if "journal" in parts:
        (room / "journal.json").write_text(json.dumps(parts["journal"]))
    return room


def known(*paths: Path) -> list[tuple[str, str]]:
    return [(path.name, digest(path)) for path in paths]


@pytest.mark.parametrize("part", ["new", "old"])
def test_a_forged_room_leads_nowhere_else(tmp_path: Path, part: str) -> None:
    """Its journal knows my files by their true sha256, and its folder is a link to them."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("my work")
    for target in ("out", "../mine", "/etc"):
        room = room_of(tmp_path / "work", journal={"target": target, "known": known(mine / "thesis.txt")})
        (room / part).symlink_to(mine, target_is_directory=True)
        tidy(room.parent)
        assert (mine / "thesis.txt").read_text() == "my work"
        shutil.rmtree(room.parent)


@pytest.mark.parametrize(
    "journal", [{}, [], {"target": 1}, {"target": "b", "known": [1]}, {"target": "b", "known": {}}]
)
def test_a_room_with_a_journal_that_says_nothing_is_left_alone(tmp_path: Path, journal: Any) -> None:
    room = room_of(tmp_path, journal=journal)
    (room / "old").mkdir()
    (room / "old" / "notes.txt").write_text("mine")
    (tmp_path / "b").mkdir()
    tidy(tmp_path)
    assert (room / "old" / "notes.txt").read_text() == "mine"


def test_a_room_in_use_is_left_alone(tmp_path: Path) -> None:
    with rooms.room(tmp_path / "b") as place:
        place.new.write_text("half")
        tidy(tmp_path)
        assert place.new.read_text() == "half"
    assert os.listdir(tmp_path) == []


# --- a file ---


def graph(path: Path, location: str) -> None:
    """An older output, from elsewhere, that names ``location`` as its weights."""
    tensor = onnx.TensorProto(name="z", data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    value = onnx.helper.make_tensor_value_info("z", 1, [1])
    path.write_bytes(onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [value], [tensor])).SerializeToString())


OUTSIDE = ["out.onnx.d/../../precious.data", "../precious.data", "{root}/precious.data", "precious.link", "kept.data"]


@pytest.mark.parametrize("location", OUTSIDE)
def test_what_the_old_output_names_is_not_removed(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "unpacked"
    (folder / "out.onnx.d").mkdir(parents=True)
    for path in (
        tmp_path / "precious.data",
        folder / "kept.data",
        folder / "out.onnx.data",
        folder / "out.onnx.1.data",
    ):
        path.write_text("not part of any model")
    (folder / "out.onnx.0123456789abcdef.data").write_text("called like ours, and none of ours")
    (folder / "precious.link").symlink_to(tmp_path / "precious.data")
    source = tmp_path / "m.onnx"
    source.write_bytes(onnx.parser.parse_model(_RELU).SerializeToString())
    graph(folder / "out.onnx", location.format(root=tmp_path))
    before = tree(tmp_path)
    fold_file(source, folder / "out.onnx", force=True)
    after = tree(tmp_path)
    assert {name for name in before if before[name] != after.get(name)} == {"unpacked/out.onnx"}


_RELU = '<ir_version: 8, opset_import: ["": 18]> g (float[2] x) => (float[2] y) { y = Relu (x) }'


@pytest.mark.parametrize("dangling", [True, False])
@pytest.mark.parametrize("force", [True, False])
def test_nothing_is_written_through_a_link(tmp_path: Path, dangling: bool, force: bool) -> None:
    """An archive can bring one, under the name that its reader will give."""
    source, target = tmp_path / "m.onnx", tmp_path / "profile"
    source.write_bytes(onnx.parser.parse_model(_RELU).SerializeToString())
    if not dangling:
        target.write_text("mine")
    (tmp_path / "out.onnx").symlink_to(target)
    before = tree(tmp_path)
    with pytest.raises(InputError, match="is a link"):
        fold_file(source, tmp_path / "out.onnx", force=force)
    assert tree(tmp_path) == before
    assert (tmp_path / "out.onnx").is_symlink()


def test_a_bundle_is_not_made_where_a_link_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a link"):
        export(tmp_path / "out", force=True)
    assert os.listdir(tmp_path) == ["out"]


def test_weights_that_a_copy_of_the_old_output_reads_are_kept(tmp_path: Path) -> None:
    head = '<ir_version: 8, opset_import: ["": 18]> g (float[9,9] x) => (float[9,9] y)'
    text = f"{head} <float[9,9] w = {{%s}}> {{ y = Add (x, w) }}"
    for number in (1, 2):
        proto = onnx.parser.parse_model(text % ", ".join([str(number)] * 81))
        (tmp_path / f"m{number}.onnx").write_bytes(proto.SerializeToString())
    out = tmp_path / "out.onnx"
    fold_file(tmp_path / "m1.onnx", out, external_above=0)
    (data,) = tmp_path.glob("out.onnx.*.data")
    shutil.copy(out, tmp_path / "kept.onnx")
    fold_file(tmp_path / "m2.onnx", out, external_above=0, force=True)
    assert onnx.load(tmp_path / "kept.onnx").graph.initializer[0].raw_data
    assert len(list(tmp_path.glob("out.onnx.*.data"))) == 2
    (tmp_path / "kept.onnx").unlink()
    fold_file(tmp_path / "m2.onnx", out, external_above=0, force=True)
    assert not data.exists()
