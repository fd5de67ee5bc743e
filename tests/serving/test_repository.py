"""``normdeploy package``: the repository it writes, and the bundles and options that it refuses."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bundle_samples as samples
import numpy as np
import pytest
from serving_samples import bundle_of
from support import tree

from normdeploy.bundle import load_bundle
from normdeploy.cli import main
from normdeploy.engine.sidecar import Sidecar
from normdeploy.errors import InputError
from normdeploy.serving.kserve import KServe
from normdeploy.serving.options import Serving, check_options
from normdeploy.serving.repository import package
from normdeploy.serving.schema import parse_config

X = np.random.default_rng(3).standard_normal((2, 3)).astype(np.float32)


def config_of(repository: Path, name: str) -> Any:
    return parse_config((repository / name / "config.pbtxt").read_text())


def dims(tensors: Any) -> list[tuple[str, list[int]]]:
    return [(tensor.name, list(tensor.dims)) for tensor in tensors]


def test_a_bundle_becomes_version_one_and_stays_a_bundle(small: Path, tmp_path: Path) -> None:
    (made,) = package([small], tmp_path / "deep" / "repo")
    assert (made.name, made.version, made.batch) == ("small", 1, "N")
    assert tree(made.folder).keys() == tree(small).keys()
    np.testing.assert_array_equal(load_bundle(made.folder)(samples.INPUTS)["y"], samples.golden().outputs["y"])
    config = config_of(tmp_path / "deep" / "repo", "small")
    assert (config.name, config.backend, config.max_batch_size) == ("small", "onnxruntime", 4)
    assert dims(config.input) == [("x", [5]), ("ids", [1])]
    assert dims(config.output) == [("y", [64]), ("top", [1])]
    assert [tensor.HasField("reshape") for tensor in config.input] == [False, True]
    assert list(config.input[1].reshape.shape) == []
    assert config.HasField("dynamic_batching")


def test_the_warm_up_is_the_first_golden_row(small: Path, tmp_path: Path) -> None:
    package([small], tmp_path)
    (warmup,) = config_of(tmp_path, "small").model_warmup
    for name, shape in (("x", [5]), ("ids", [1])):
        entry = warmup.inputs[name]
        data = (tmp_path / "small" / "warmup" / entry.input_data_file).read_bytes()
        assert list(entry.dims) == shape
        np.testing.assert_array_equal(np.frombuffer(data, samples.INPUTS[name].dtype), samples.INPUTS[name][0].ravel())


def test_the_next_version_leaves_the_first_as_it_is(small: Path, tmp_path: Path) -> None:
    package([small], tmp_path)
    before = tree(tmp_path)
    assert package([small], tmp_path)[0].version == 2
    after = tree(tmp_path)
    assert {name: content for name, content in after.items() if not name.startswith("small/2/")} == before
    shutil.rmtree(tmp_path / "small" / "1")
    assert package([small], tmp_path)[0].version == 3


def test_dimensions_that_vary_are_minus_one(tmp_path: Path) -> None:
    signature, body = "(float[N, T] x, float[1] s) => (float[N, T] y)", "y = Mul (x, s)"
    inputs = {"x": X, "s": np.array([2], np.float32)}
    bundle = bundle_of(tmp_path / "b", signature, body, ["x:N=1..2..4xT=1..3..9", "s:1"], inputs)
    (made,) = package([bundle], tmp_path / "repo")
    config = config_of(tmp_path / "repo", "b")
    assert made.batch is None
    assert "not put together" in made.notes[0]
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert dims(config.input) == [("x", [-1, -1]), ("s", [1])]
    assert (tmp_path / "repo" / "b" / "warmup" / "golden_1").read_bytes() == inputs["s"].tobytes()


SCALARS = {
    "taken": ("(float[N, T] x, float s) => (float[N, T] y)", "y = Mul (x, s)", "s"),
    "given": ("(float[N, T] x, float[1] s) => (float y)", "m = Mul (x, s) y = ReduceSum <keepdims = 0> (m)", "y"),
}


@pytest.mark.parametrize(("signature", "body", "name"), SCALARS.values(), ids=SCALARS.keys())
def test_a_scalar_outside_a_batch_is_refused(tmp_path: Path, signature: str, body: str, name: str) -> None:
    shape: tuple[int, ...] = () if name == "s" else (1,)
    inputs = {"x": X, "s": np.full(shape, 2, np.float32)}
    specs = ["x:N=1..2..4xT=1..3..9", "s:[]" if name == "s" else "s:1"]
    bundle = bundle_of(tmp_path / "b", signature, body, specs, inputs)
    with pytest.raises(InputError, match="takes and gives no scalar") as caught:
        package([bundle], tmp_path / "repo")
    assert caught.value.where == name
    assert os.listdir(tmp_path) == ["b"]


MIXES = {
    "softmax over the batch": "y = Softmax <axis = 0> (x)",
    "its mean": "m = ReduceMean <keepdims = 1> (x) y = Sub (x, m)",
    "the row before": "y = CumSum (x, zero)",
}


@pytest.mark.parametrize("body", MIXES.values(), ids=MIXES.keys())
def test_a_model_that_mixes_the_rows_of_a_batch_is_not_batched(tmp_path: Path, body: str) -> None:
    body = body.replace("y = CumSum", "zero = Constant <value_int = 0> () y = CumSum")
    bundle = bundle_of(tmp_path / "b", "(float[N, 3] x) => (float[N, 3] y)", body, ["x:N=1..2..4x3"], {"x": X})
    (made,) = package([bundle], tmp_path / "repo")
    assert made.batch is None
    assert "y of a row changes by" in made.notes[0]
    assert config_of(tmp_path / "repo", "b").max_batch_size == 0


def test_rows_that_meet_for_rare_values_alone_are_not_batched(tmp_path: Path) -> None:
    """No row that is drawn shows it: only the largest id of the range makes the others another answer."""
    signature = "(int64[N, 3] ids) => (float[N, 3] y)"
    body = (
        "axes = Constant <value_ints = [0]> () most = ReduceMax (ids, axes) last = Constant <value_ints = [49]> ()"
        "seen = Equal (most, last) f = Cast <to = 1> (seen) g = Cast <to = 1> (ids) y = Add (f, g)"
    )
    inputs = {"ids": np.array([[1, 2, 3], [4, 5, 6]])}
    bundle = bundle_of(tmp_path / "b", signature, body, ["ids:N=1..2..8x3@i64[0..49]"], inputs)
    run = load_bundle(bundle)
    alone, beside = (run(ids=np.array(rows))["y"][0] for rows in ([[1, 2, 3]], [[1, 2, 3], [49, 49, 49]]))
    assert not np.array_equal(alone, beside)
    (made,) = package([bundle], tmp_path / "repo")
    assert made.batch is None
    assert "ReduceMax 'most' works along the batch" in made.notes[0]


def test_other_dimensions_are_tried_at_another_size(tmp_path: Path) -> None:
    """At the golden length a window is a row; at others it has parts of two, and not all batches have whole windows."""
    body = (
        "w = Constant <value_ints = [-1, 6]> () r = Reshape (x, w) s = Softmax (r) all = Shape (x) y = Reshape (s, all)"
    )
    inputs = {"x": np.ones((2, 6), np.float32)}
    signature = "(float[N, T] x) => (float[N, T] y)"
    bundle = bundle_of(tmp_path / "b", signature, body, ["x:N=1..2..6xT=3..6..9%3"], inputs)
    (made,) = package([bundle], tmp_path / "repo")
    assert made.batch is None
    assert "cannot be told: onnxruntime refuses" in made.notes[0]


def test_what_triton_does_not_hold_is_told(small: Path, tmp_path: Path) -> None:
    inputs = {"x": np.ones((2, 4, 4), np.float32), "mask": np.ones((2, 4), np.float32)}
    signature = "(float[N, T, 4] x, float[N, T] mask) => (float[N, T, 4] y)"
    body = "axes = Constant <value_ints = [2]> () m = Unsqueeze (mask, axes) y = Mul (x, m)"
    specs = ["x:N=1..2..4xT=2..4..8%2x4", "mask:N=1..2..4xT=2..4..8%2"]
    two = bundle_of(tmp_path / "two", signature, body, specs, inputs)
    notes = [note for made in package([small, two], tmp_path / "repo") for note in made.notes]
    assert notes == [
        "Triton does not refuse what the bundle would; its clients must keep to: ids from 0.0 to 6.0",
        "a row of ids is one number, which Triton takes and gives as N x 1",
        "Triton does not refuse what the bundle would; its clients must keep to: "
        "T from 2 to 8 in steps of 2, the same wherever it stands",
    ]


@pytest.mark.parametrize("spec", ["x:N=2..2..4x3", "x:N=2..4..8%2x3"])
def test_a_batch_that_a_single_row_is_not_is_not_batched(tmp_path: Path, spec: str) -> None:
    inputs = {"x": np.concatenate([X, X])}
    bundle = bundle_of(tmp_path / "b", "(float[N, 3] x) => (float[N, 3] y)", "y = Relu (x)", [spec], inputs)
    assert package([bundle], tmp_path / "repo")[0].batch is None


def test_many_at_once_make_a_version_each(small: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        made = [*pool.map(lambda _: package([small], tmp_path / "deep" / "repo")[0], range(6))]
    assert sorted(each.version for each in made) == [1, 2, 3, 4, 5, 6]
    assert sorted(os.listdir(tmp_path / "deep" / "repo")) == ["README.md", "small"]
    assert all(load_bundle(each.folder).manifest for each in made)


@pytest.mark.parametrize("kind", ["a folder without a model", "a file"])
def test_nothing_is_added_to_what_triton_cannot_serve(small: Path, tmp_path: Path, kind: str) -> None:
    package([small], tmp_path)
    (tmp_path / "small" / "2").mkdir() if "folder" in kind else (tmp_path / "small" / "2").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(InputError, match="version 2 has no model.onnx" if "folder" in kind else "Triton takes 2 for"):
        package([small], tmp_path)
    assert tree(tmp_path) == before


def test_another_delay_is_another_config(small: Path, tmp_path: Path) -> None:
    package([small], tmp_path)
    with pytest.raises(InputError, match="another dynamic_batching"):
        package([small], tmp_path, serving=Serving(queue_delay=50))


def test_there_is_no_version_behind_the_last(small: Path, tmp_path: Path) -> None:
    package([small], tmp_path)
    (tmp_path / "small" / "1").rename(tmp_path / "small" / str(2**63 - 1))
    before = tree(tmp_path)
    with pytest.raises(InputError, match="Triton knows no larger number"):
        package([small], tmp_path)
    assert tree(tmp_path) == before


def test_another_interface_is_no_version_of_the_model(small: Path, tmp_path: Path) -> None:
    package([small], tmp_path / "repo")
    other = bundle_of(tmp_path / "b", "(float[N, 3] x) => (float[N, 3] y)", "y = Relu (x)", ["x:N=1..2..4x3"], {"x": X})
    before = tree(tmp_path / "repo")
    with pytest.raises(InputError, match="another input, output, and its versions share one config"):
        package([other], tmp_path / "repo", name="small")
    with pytest.raises(InputError, match="another instance_group"):
        package([small], tmp_path / "repo", serving=Serving(instances=2))
    assert tree(tmp_path / "repo") == before


def test_options_are_in_the_config(small: Path, tmp_path: Path) -> None:
    serving = Serving(gpus="0,2", instances=3, queue_delay=250, accelerate=True)
    package([small], tmp_path, name="m", serving=serving)
    config = config_of(tmp_path, "m")
    (group,) = config.instance_group
    assert (group.kind, group.count, list(group.gpus)) == (group.KIND_GPU, 3, [0, 2])
    assert config.dynamic_batching.max_queue_delay_microseconds == 250
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, dict(accelerator.parameters)) == ("tensorrt", {"precision_mode": "FP32"})
    assert "--gpus all" in (tmp_path / "README.md").read_text()


def sidecar(backend: str) -> Sidecar:
    return Sidecar.model_construct(backend=backend, backend_version="1.7", precision="float32")


REFUSED: dict[str, tuple[Serving, dict[str, str], str | None, str]] = {
    "rtx": (Serving(platform="tensorrt", gpus="0"), {}, "tensorrt_rtx", "built by tensorrt_rtx, whose plans"),
    "no engine": (Serving(platform="tensorrt", gpus="0"), {}, None, "the bundle has no engine"),
    "engine on a CPU": (Serving(platform="tensorrt"), {}, "tensorrt", "an engine runs on a GPU"),
    "accelerated CPU": (Serving(accelerate=True), {}, None, "needs a GPU"),
    "graphs": (Serving(cuda_graphs=True, gpus="0"), {}, None, "CUDA graphs of TensorRT engines"),
    "no ids": (Serving(gpus="0,gpu1"), {}, None, "no ids of GPUs"),
    "twice": (Serving(gpus="0,0"), {}, None, "no ids of GPUs"),
    "none": (Serving(instances=0), {}, None, "no such number"),
    "an option": (Serving(), {"disabled_optimizers": "GeluFusion"}, None, "disabled_optimizers = GeluFusion, which"),
}


@pytest.mark.parametrize(("serving", "options", "engine", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_triton_cannot_do_is_refused(
    small: Path, serving: Serving, options: dict[str, str], engine: str | None, message: str
) -> None:
    manifest = load_bundle(small).manifest.model_copy(update={"session_options": options})
    with pytest.raises(InputError, match=message):
        check_options(serving, manifest, None if engine is None else sidecar(engine), "bundle")


def test_an_engine_of_the_full_tensorrt_is_taken(small: Path) -> None:
    manifest = load_bundle(small).manifest
    check_options(Serving(platform="tensorrt", gpus="0", cuda_graphs=True), manifest, sidecar("tensorrt"), "bundle")


def test_a_bundle_that_is_not_whole_leaves_no_repository(small: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(small, tmp_path / "broken"))
    (broken / "report.json").write_text("{}")
    with pytest.raises(InputError, match="altered"):
        package([broken], tmp_path / "repo")
    assert os.listdir(tmp_path) == ["broken"]


NAMES: dict[str, Callable[[Path], tuple[list[Path], str | None]]] = {
    "a path": lambda bundle: ([bundle], "a/b"),
    "a number": lambda bundle: ([bundle], "7"),
    "empty": lambda bundle: ([bundle], ""),
    "hidden": lambda bundle: ([bundle], ".m"),
    "two of one name": lambda bundle: ([bundle, bundle], None),
}


@pytest.mark.parametrize("given", NAMES.values(), ids=NAMES.keys())
def test_a_name_that_is_none_is_refused(small: Path, tmp_path: Path, given: Any) -> None:
    bundles, name = given(small)
    with pytest.raises(InputError, match=r"cannot be the name of a model|two bundles are called"):
        package(bundles, tmp_path / "repo", name=name)
    assert not (tmp_path / "repo").exists()


@pytest.mark.parametrize("place", [".", "golden", "new/deep"])
def test_a_bundle_is_no_repository(small: Path, tmp_path: Path, place: str) -> None:
    bundle = Path(shutil.copytree(small, tmp_path / "bundle"))
    before = tree(bundle)
    with pytest.raises(InputError, match="lies in a bundle"):
        package([small], bundle / place)
    assert tree(bundle) == before


def test_an_inference_service_of_somebody_else_adds_no_version(small: Path, tmp_path: Path) -> None:
    (tmp_path / "inferenceservice.yaml").write_text("mine")
    with pytest.raises(InputError, match="is not one that normdeploy wrote"):
        package([small], tmp_path, kserve=KServe(storage="pvc://models/repository"))
    assert os.listdir(tmp_path) == ["inferenceservice.yaml"]


def test_a_readme_of_somebody_else_is_kept(small: Path, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    package([small], tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_the_command_tells_what_it_added(
    small: Path, digits_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "repo")
    assert main(["package", str(small), str(digits_bundle), "-o", out]) == 0
    said = capsys.readouterr().out
    assert "small version 1, served in batches along N" in said
    assert "bundle version 1, served in batches along N" in said
    assert main(["package", str(small), "-o", out, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["version"] == 2
    assert main(["package", "-o", out]) == 2
    assert "no bundle is given" in capsys.readouterr().err
