"""A fleet of exports: which ones there are, which are run again, and that a failed one stops no other."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

from normdeploy.cli import main
from normdeploy.errors import InputError, UnavailableError, VerdictError
from normdeploy.fleet import run, work
from normdeploy.fleet.plan import Job, digest, read_fleet
from normdeploy.fleet.run import export_all, require_passed
from normdeploy.fleet.work import Outcome

MODEL = """
[[model]]
name = "{name}"
model = "net:make"
weights = "{name}.bin"
input = ["x:1x3"]
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    folder = tmp_path / "fleet"
    folder.mkdir()
    (folder / "net.py").write_text("def make(): ...")
    for name in "ab":
        (folder / f"{name}.bin").write_text(name)
    path = folder / "fleet.toml"
    path.write_text('[defaults]\napp-dir = "."\n' + MODEL.format(name="a") + MODEL.format(name="b"))
    return path


# -- what it asks for --------------------------------------------------------------------------


def test_a_model_is_exported_for_each_precision_and_target(fleet: Path) -> None:
    several = 'precision = ["fp32", "fp16"]\ntarget = ["onnx", "tensorrt"]\nno-bench = true\nopset = 20\nplugin = false'
    fleet.write_text(fleet.read_text() + several)
    jobs = read_fleet(fleet)
    assert [job.name for job in jobs] == ["a", "b-fp32-onnx", "b-fp32-tensorrt", "b-fp16-onnx", "b-fp16-tensorrt"]
    here = str(fleet.parent)
    assert jobs[0].arguments == (f"--app-dir={here}", "--model=net:make", f"--weights={here}/a.bin", "--input=x:1x3")
    assert jobs[4].arguments[-4:] == ("--no-bench", "--opset=20", "--precision=fp16", "--target=tensorrt")
    assert jobs[0].files == (fleet.parent / "a.bin", fleet.parent / "net.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it has no"),
        ("[[model]]", "no name of a model"),
        ('[[model]]\nname = "../a"', "no name of a model"),
        ('[[model]]\nname = "a"', "no factory"),
        ("model = 1", "it has no|alone"),
        ("model = [1]", "model is no table"),
        ("[fleet]", "alone"),
        ("[[model", "cannot be read"),
        ('[defaults]\ntrust = ["x.pt"]\n[[model]]', "trust is no option"),
        ('[defaults]\nout = "x"\n[[model]]', "out is no option"),
        (MODEL.format(name="a") * 2, "two exports have one name"),
    ],
)
def test_what_is_no_fleet_is_one_message(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "fleet.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_fleet(tmp_path / "fleet.toml")
    with pytest.raises(InputError, match="does not exist"):
        read_fleet(tmp_path / "none.toml")


def test_what_is_trusted_is_typed(fleet: Path) -> None:
    trusted = fleet.parent / "a.bin"
    assert read_fleet(fleet, [trusted])[1].arguments[-2:] == ("--trust", str(trusted))


@pytest.mark.parametrize(
    "changed", ["weights", "option", "factory", "beside", "package", "below", "version", "environment", "nothing"]
)
def test_what_an_export_depends_on_is_in_its_digest(fleet: Path, changed: str) -> None:
    here = fleet.parent
    layers = {
        "beside": here / "layers.py",
        "package": here / "nets" / "parts" / "layers.py",
        "below": here / "common" / "layers" / "norms.py",
        "environment": here / "venv" / "lib" / "layers.py",
    }
    for path in layers.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("SIZE = 3")
    (here / "venv" / "pyvenv.cfg").touch()
    if changed == "package":
        (fleet.parent / "net.py").rename(fleet.parent / "nets" / "net.py")
        fleet.write_text(fleet.read_text().replace("net:make", "nets.net:make"))
    before = digest(read_fleet(fleet)[0], "1", {})
    if changed == "weights":
        (fleet.parent / "a.bin").write_text("c")
    if changed == "option":
        fleet.write_text(fleet.read_text().replace("1x3", "1x4"))
    if changed == "factory":
        (fleet.parent / "net.py").write_text("def make(): return 1")
    if changed in layers:
        layers[changed].write_text("SIZE = 4")
    same = digest(read_fleet(fleet)[0], "2" if changed == "version" else "1", {}) == before
    assert same == (changed in ("nothing", "environment"))


def test_the_shards_that_an_index_names_are_in_the_digest(fleet: Path) -> None:
    index, shard = fleet.parent / "model.safetensors.index.json", fleet.parent / "model-00001-of-00001.safetensors"
    index.write_text(f'{{"weight_map": {{"w": "{shard.name}"}}}}')
    shard.write_text("old")
    fleet.write_text(fleet.read_text().replace("a.bin", index.name))
    before = digest(read_fleet(fleet)[0], "1", {})
    assert digest(read_fleet(fleet)[0], "1", {}) == before
    shard.write_text("new")
    assert digest(read_fleet(fleet)[0], "1", {}) != before


# -- what is run -------------------------------------------------------------------------------


class Exported:
    """In the place of the processes: what each export is to end with, and which ones were asked for."""

    def __init__(self, bundle: Path, codes: dict[str, int]) -> None:
        self.bundle, self.codes, self.asked = bundle, codes, list[str]()

    def __call__(self, jobs: Sequence[Job], out: Path, at_once: int) -> Iterator[tuple[Job, Outcome]]:
        for job in jobs:
            self.asked.append(job.name)
            code = self.codes.get(job.name, 0)
            if code == 0:
                shutil.copytree(self.bundle, out / job.name, dirs_exist_ok=True)
            yield job, Outcome(code, 1.0, f"error: exit {code} <b>")

    def take(self) -> list[str]:
        asked, self.asked = self.asked, []
        return asked


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch, digits_bundle: Path) -> Exported:
    found = Exported(digits_bundle, {})
    monkeypatch.setattr(work, "here", found)
    return found


def test_what_is_done_and_unchanged_is_skipped(fleet: Path, tmp_path: Path, exported: Exported) -> None:
    out = tmp_path / "out"

    def again(**options: Any) -> list[str]:
        export_all(fleet, out, **options)
        return exported.take()

    assert again() == ["a", "b"]
    assert again() == []
    assert again(force=True) == ["a", "b"]
    (fleet.parent / "b.bin").write_text("changed")
    assert again() == ["b"]
    (out / "a" / "report.html").write_text("damaged")
    assert again() == ["a"]
    shutil.rmtree(out / "b")
    assert again() == ["b"]
    fleet.write_text(fleet.read_text() + MODEL.format(name="c"))  # of which the weights are missing
    assert again() == ["c"]
    assert again() == ["c"]


@pytest.mark.parametrize(("code", "error"), [(1, VerdictError), (2, InputError), (3, InputError), (-9, InputError)])
def test_a_failed_export_stops_no_other_and_is_run_again(
    fleet: Path, tmp_path: Path, exported: Exported, code: int, error: type[Exception]
) -> None:
    exported.codes = {"a": code}
    rows = export_all(fleet, tmp_path / "out")
    assert [row.code for row in rows] == [code, 0]
    with pytest.raises(error, match="1 of 2 exports failed"):
        require_passed(rows)
    exported.take()
    exported.codes = {}
    require_passed(export_all(fleet, tmp_path / "out"))
    assert exported.take() == ["a"]


def test_a_stop_loses_nothing_that_was_done(
    fleet: Path, tmp_path: Path, exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_all(fleet, tmp_path / "out", told=told)
    assert exported.take() == ["a"]
    assert "1 of 1 exports passed, 1 wait" in (tmp_path / "out" / "fleet.html").read_text()
    export_all(fleet, tmp_path / "out")
    assert exported.take() == ["b"]


class Links(HTMLParser):
    """The links of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links, self.text, self.tags = list[str](), "", set[str]()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [str(value) for name, value in attrs if name == "href"]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_has_every_verdict(fleet: Path, tmp_path: Path, exported: Exported) -> None:
    exported.codes = {"b": 2}
    export_all(fleet, tmp_path / "out")
    page = Links((tmp_path / "out" / "fleet.html").read_text())
    assert page.links == ["a/report.html"]
    assert (tmp_path / "out" / page.links[0]).is_file()
    for said in ("1 of 2 exports passed", "BatchNormalization 9 → 0", "The graph is right", "error: exit 2 <b>"):
        assert said in page.text
    assert "b" not in page.tags


def test_a_damaged_state_is_one_message(fleet: Path, tmp_path: Path, exported: Exported) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "fleet.json").write_text("{")
    with pytest.raises(InputError, match="not a state"):
        export_all(fleet, tmp_path / "out")
    with pytest.raises(InputError, match="exports at a time"):
        export_all(fleet, tmp_path / "out", at_once=0)


def test_without_ray_it_is_said(fleet: Path, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="Ray is not installed"):
        export_all(fleet, tmp_path / "out", ray="auto")


def test_real_exports_run_at_once_in_their_own_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fleet.toml").write_text(f"""
[defaults]
app-dir = "{ROOT}"
no-bench = true
[[model]]
name = "mlp"
model = "models.digits:conv1d"
input = ["x:N=1..1..64x1x8x8@f32"]
[[model]]
name = "nobody"
model = "models.digits:nobody"
input = ["x:1x3"]
""")
    command = ["export-all", str(tmp_path / "fleet.toml"), "-o", str(tmp_path / "out"), "-j", "2", "--json"]
    assert main(command) == 2
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["state"]) for row in rows] == [("mlp", "passed"), ("nobody", "refused")]
    assert "nobody" in rows[1]["said"]
    assert rows[1]["said"].startswith("error:")
    begin = time.monotonic()
    assert main(command) == 2
    assert [row["again"] for row in json.loads(capsys.readouterr().out)] == [False, True]
    assert time.monotonic() - begin < 60
    assert run.STATE in {path.name for path in (tmp_path / "out").iterdir()}
