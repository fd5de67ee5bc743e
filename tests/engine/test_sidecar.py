from __future__ import annotations

import json
from pathlib import Path

import pytest

from normdeploy.engine.layers import EngineLayer
from normdeploy.engine.profiles import Range
from normdeploy.engine.sidecar import Sidecar, read_plan, require_backend, require_gpu, sha256, sidecar_path, write_plan
from normdeploy.errors import InputError, UnavailableError

PLAN = b"vtrt" + bytes(range(200))
LAYER = EngineLayer("n", "gemm", ("fc",), ("Gemm",), "fp16", "", "t", ("x",), ("y",), ("node_fc",))


def sidecar(**changes: object) -> Sidecar:
    fields: dict[str, object] = {
        "backend": "tensorrt_rtx",
        "backend_version": "1.7.1.116",
        "gpu": None,
        "compute_capabilities": ("SM86", "SM89"),
        "inputs": ("x",),
        "outputs": ("y",),
        "profiles": ({"x": Range((1, 3), (2, 3), (4, 3))},),
        "precision": "fp16",
        "sha256": sha256(PLAN),
        "size": len(PLAN),
        "timing_cache_key": None,
        "options": {"level": 3},
        "layers": (LAYER,),
    }
    return Sidecar.model_validate(fields | changes)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return write_plan(tmp_path / "model.plan", PLAN, sidecar())


def test_what_is_written_is_read(written: Path) -> None:
    assert read_plan(written) == (PLAN, sidecar())
    assert sorted(path.name for path in written.parent.iterdir()) == ["model.plan", "model.plan.json"]
    document = json.loads(sidecar_path(written).read_text())
    assert document["layers"][0]["modules"] == ["fc"]
    assert document["profiles"] == [{"x": {"min": [1, 3], "opt": [2, 3], "max": [4, 3]}}]


def test_a_plan_has_the_rights_of_any_new_file(written: Path) -> None:
    """Who may read the folder may load the bundle."""
    other = written.parent / "other"
    other.touch()
    for path in (written, sidecar_path(written)):
        assert path.stat().st_mode == other.stat().st_mode


def test_an_existing_plan_is_replaced_only_when_told(written: Path) -> None:
    with pytest.raises(InputError, match=r"exists already(.|\n)*--force"):
        write_plan(written, b"new", sidecar(sha256=sha256(b"new")))
    assert read_plan(written)[0] == PLAN
    write_plan(written, b"new", sidecar(sha256=sha256(b"new")), force=True)
    assert read_plan(written)[0] == b"new"


@pytest.mark.parametrize("damage", [PLAN[:-1], PLAN[:50] + b"\0" + PLAN[51:], b"", PLAN + b"x"])
def test_a_damaged_plan_is_refused_before_anything_reads_it(written: Path, damage: bytes) -> None:
    written.write_bytes(damage)
    with pytest.raises(InputError, match=r"SHA-256 differs(.|\n)*build it again"):
        read_plan(written)


def test_a_plan_without_its_sidecar_or_with_a_damaged_one_is_refused(written: Path) -> None:
    path = sidecar_path(written)
    text = path.read_text()
    for damage in ("{", text[: len(text) // 2], text.replace('"fp16"', '"fp17"', 1), text.replace('"backend"', '"x"')):
        path.write_text(damage)
        with pytest.raises(InputError, match="sidecar is damaged"):
            read_plan(written)
    path.unlink()
    with pytest.raises(InputError, match="cannot read the plan's sidecar"):
        read_plan(written)


def test_a_missing_plan_and_an_unwritable_folder_are_one_message(tmp_path: Path) -> None:
    write_plan(tmp_path / "a.plan", PLAN, sidecar()).unlink()
    with pytest.raises(InputError, match="cannot read the plan"):
        read_plan(tmp_path / "a.plan")
    with pytest.raises(InputError, match="the plan cannot be written"):
        write_plan(tmp_path / "a.plan.json" / "a.plan", PLAN, sidecar())


@pytest.mark.parametrize("name", ["a.plan.json", f"a.plan.{sha256(PLAN)[:16]}.json"])
def test_a_file_that_is_no_sidecar_is_not_taken_for_one(tmp_path: Path, name: str) -> None:
    """Only the plan was named; what lies where its sidecar goes may be anything."""
    (tmp_path / name).write_text('{"my": "notes"}')
    with pytest.raises(InputError, match=r"exists already|file that is none"):
        write_plan(tmp_path / "a.plan", PLAN, sidecar())
    with pytest.raises(InputError, match="a file that is none"):
        write_plan(tmp_path / "a.plan", PLAN, sidecar(), force=True)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, '{"my": "notes"}')]


def test_a_plan_of_another_version_is_refused_with_what_to_run() -> None:
    require_backend(sidecar(), "1.7.1.116")
    with pytest.raises(InputError, match=r"1\.7\.1\.116, and 1\.8\.0 (.|\n)*pip install tensorrt_rtx==1\.7\.1\.116"):
        require_backend(sidecar(), "1.8.0")
    require_backend(sidecar(options={"version_compatible": True}), "1.8.0")
    with pytest.raises(UnavailableError, match=r"not installed(.|\n)*normdeploy\[rtx\]"):
        require_backend(sidecar(), None)
    with pytest.raises(InputError, match="'other'"):
        require_backend(sidecar(backend="other"), "1")


def test_a_plan_for_another_gpu_is_refused_with_what_to_run() -> None:
    require_gpu(sidecar(), "NVIDIA L40S (SM89)", ["SM89"])
    with pytest.raises(InputError, match=r"SM86, SM89, and this GPU is RTX 5090 \(SM120\)(.|\n)*--sm 120"):
        require_gpu(sidecar(), "RTX 5090 (SM120)", ["SM120"])
    own = sidecar(backend="tensorrt", compute_capabilities=(), gpu="NVIDIA L40S (SM89)")
    require_gpu(own, "NVIDIA L40S (SM89)", ["SM89"])
    with pytest.raises(InputError, match=r"built on NVIDIA L40S \(SM89\), and this GPU is H200"):
        require_gpu(own, "H200 (SM90)", ["SM90"])
    with pytest.raises(UnavailableError, match="this machine has none"):
        require_gpu(sidecar(), None, [])
