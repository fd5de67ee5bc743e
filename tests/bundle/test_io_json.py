from __future__ import annotations

import json
from pathlib import Path

import bundle_samples as samples
import onnx
import pytest

from normdeploy import onnxfile
from normdeploy.bundle import load_bundle
from normdeploy.bundle.contents import contents
from normdeploy.bundle.interface import interface_of
from normdeploy.errors import InputError
from normdeploy.specs import parse

N = {"name": "N", "min": 1, "usual": 2, "max": 4, "multiple": 1}


def fixed(size: int) -> dict[str, object]:
    return {"name": None, "min": size, "usual": size, "max": size, "multiple": 1}


def test_io_json_is_plain_json(folder: Path) -> None:
    assert json.loads((folder / "io.json").read_text()) == {
        "schema_version": 1,
        "inputs": [
            {"name": "x", "dtype": "float32", "dims": [N, fixed(5)], "low": None, "high": None},
            {"name": "ids", "dtype": "int64", "dims": [N], "low": 0, "high": 6},
        ],
        "outputs": [
            {"name": "y", "dtype": "float32", "dims": [N, fixed(64)], "low": None, "high": None},
            {"name": "top", "dtype": "int64", "dims": [N, fixed(1)], "low": None, "high": None},
        ],
        "dimensions": {"N": "axis 0 of the inputs x, ids and axis 0 of the outputs y, top"},
    }


def test_multiples_scalars_and_sizes_that_the_graph_does_not_state(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 20]>
    g (float[1, _h] x, float s) => (float[1, _h] y, float[2*_h] z, float t, float u) { y = Mul (x, s) }"""
    model = onnx.parser.parse_model(text.replace("2*_h", "twice"))
    model.graph.output[3].type.tensor_type.ClearField("shape")
    onnx.save(model, tmp_path / "model.onnx")
    shapes = onnxfile.shapes(tmp_path / "model.onnx")
    assert shapes == {"x": [1, "_h"], "s": [], "y": [1, "_h"], "z": ["twice"], "t": [], "u": None}
    found = interface_of(parse(["x:1xH=64..128..256%4", "s:[]"]), dict.fromkeys("yztu", "float32"), shapes)
    named = {"name": "H", "min": 64, "usual": 128, "max": 256, "multiple": 4}
    unknown = {"name": "twice", "min": None, "usual": None, "max": None, "multiple": 1}
    assert found.inputs[1].dims == ()
    assert [[axis.model_dump() for axis in each.dims] for each in found.outputs] == [
        [fixed(1), named], [unknown], [], []
    ]  # fmt: skip
    assert found.dimensions == {"H": "axis 1 of the input x and axis 1 of the output y"}


def test_an_older_bundle_has_none_and_loads(folder: Path) -> None:
    stated = load_bundle(folder).interface
    (folder / "io.json").unlink()
    samples.sign(folder)
    assert load_bundle(folder).interface == stated == contents(folder).interface


@pytest.mark.parametrize("change", ["other dtype", "no output", "other size"])
def test_an_interface_of_another_bundle_is_refused(folder: Path, change: str) -> None:
    def edit(raw: dict[str, list[dict[str, list[dict[str, int]]]]]) -> None:
        match change:
            case "other dtype":
                raw["outputs"][0]["dtype"] = "int8"  # type: ignore[assignment]
            case "no output":
                raw["outputs"].pop()
            case _:
                raw["inputs"][0]["dims"][1]["max"] = 6

    samples.edit(folder, edit, "io.json")
    samples.sign(folder)
    for read in (load_bundle, contents):
        with pytest.raises(InputError, match="other inputs or outputs than the manifest") as caught:
            read(folder)
        assert caught.value.where.endswith("io.json")


def test_contents_are_compared_with_the_manifest(folder: Path) -> None:
    found = contents(folder)
    assert found.report == samples.report()
    assert found.sizes == {name: (folder / name).stat().st_size for name in samples.FILES - {"manifest.json"}}
    (folder / "model.onnx").write_bytes(b"other")
    with pytest.raises(InputError, match=r"altered: 'model\.onnx'"):
        contents(folder)
    with pytest.raises(InputError, match="it is no folder"):
        contents(folder / "model.onnx")
