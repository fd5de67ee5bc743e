"""Files that cannot be folded: one message that names the file at fault, before anything is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from normdeploy.errors import InputError
from normdeploy.fold import fold


def external(folder: Path) -> Path:
    """A Gemm whose weight lies in ``weights.data`` beside the model."""
    weight = numpy_helper.from_array(np.ones((5, 3), np.float32), "w")
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])]
    graph = helper.make_graph([helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], "g", inputs, outputs, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.data", size_threshold=0)
    return path


def test_whole_external_data_is_read(tmp_path: Path) -> None:
    assert [node.op_type for node in fold(external(tmp_path)).model.graph] == ["Gemm"]


@pytest.mark.parametrize("kept", [None, 8])
def test_missing_and_short_external_data_are_named(tmp_path: Path, kept: int | None) -> None:
    path, data = external(tmp_path), tmp_path / "weights.data"
    whole = data.read_bytes()
    data.unlink()
    if kept is not None:
        data.write_bytes(whole[:kept])
    with pytest.raises(InputError, match="too short" if kept else "cannot be read: No such file") as caught:
        fold(path)
    assert caught.value.where == str(data)
    assert "external data" in caught.value.fix


@pytest.mark.parametrize("kind", [onnx.ModelProto, ir.Model])
def test_missing_external_data_of_a_model_in_memory_is_named(kind: type, tmp_path: Path) -> None:
    path = external(tmp_path)
    (tmp_path / "weights.data").unlink()
    given = ir.load(path) if kind is ir.Model else onnx.load(path, load_external_data=False)
    with pytest.raises(InputError, match=r"weights\.data"):
        fold(given)


@pytest.mark.parametrize("location", ["../weights.data", "/weights.data"])
def test_a_model_that_names_a_file_elsewhere_is_named(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own name, also where it is given by one without a folder."""
    proto = onnx.load(external(tmp_path), load_external_data=False)
    for tensor in proto.graph.initializer:
        tensor.external_data[0].value = location
    (tmp_path / "named.onnx").write_bytes(proto.SerializeToString())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="names a file that is not read") as caught:
        fold("named.onnx")
    assert caught.value.where == "named.onnx"


@pytest.mark.parametrize(
    "empty", [onnx.ModelProto(), ir.from_proto(onnx.ModelProto(ir_version=8, graph={"name": "g"}))]
)
def test_a_model_of_nothing_is_none(empty: onnx.ModelProto | ir.Model) -> None:
    with pytest.raises(InputError, match="cannot be read as an ONNX model: it has no outputs"):
        fold(empty)


def test_a_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder"):
        fold(tmp_path)


@pytest.mark.parametrize(
    ("imports", "message"),
    [
        ([], "does not say its opset"),
        ([helper.make_opsetid("com.x", 1)], "does not say its opset"),
        ([helper.make_opsetid("", 999)], "opset 999, and the installed onnx knows up to"),
        ([helper.make_opsetid("", 0)], "there is no opset 0"),
    ],
)
def test_a_model_of_an_unknown_opset_is_refused(
    tmp_path: Path, imports: list[onnx.OperatorSetIdProto], message: str
) -> None:
    path = external(tmp_path)
    proto = onnx.load(path)
    del proto.opset_import[:]
    proto.opset_import.extend(imports)
    with pytest.raises(InputError, match=message) as caught:
        fold(proto)
    assert caught.value.where == "opset_import"


def test_a_function_of_an_unknown_opset_is_refused(tmp_path: Path) -> None:
    proto = onnx.load(external(tmp_path))
    node = helper.make_node("Relu", ["a"], ["b"])
    proto.functions.append(helper.make_function("own", "f", ["a"], ["b"], [node], [helper.make_opsetid("", 999)]))
    with pytest.raises(InputError, match="opset 999"):
        fold(proto)
