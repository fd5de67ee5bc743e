"""External data, wherever a model can name it: inside the model's folder, a plain file, or one error; never lost."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

import normdeploy
from normdeploy import onnxfile, pipeline
from normdeploy.cli import main
from normdeploy.errors import InputError

WEIGHT = np.arange(36, dtype=np.float32).reshape(4, 1, 3, 3) - 17
NAMED = [*"sbmv"]


def elsewhere(location: str, **more: str) -> TensorProto:
    """A weight in the file ``location``."""
    tensor = TensorProto(name="W", data_type=1, dims=WEIGHT.shape, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def constant(tensor: TensorProto) -> NodeProto:
    return helper.make_node("Constant", [], ["W"], value=tensor)


def norm() -> list[TensorProto]:
    return [numpy_helper.from_array(np.array([1, 2, 3, 4], np.float32), name) for name in NAMED]


def nodes() -> list[NodeProto]:
    conv = helper.make_node("Conv", ["x", "W"], ["c"], name="conv")
    return [conv, helper.make_node("BatchNormalization", ["c", *NAMED], ["y"], name="bn")]


def info(name: str, *shape: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def whole(
    graph_nodes: list[NodeProto], initializers: list[TensorProto], functions: tuple[onnx.FunctionProto, ...] = ()
) -> onnx.ModelProto:
    graph = helper.make_graph(graph_nodes, "g", [info("x", 1, 1, 8, 8)], [info("y", 1, 4, 6, 6)], initializers)
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, functions=functions)


def in_initializer(tensor: TensorProto) -> onnx.ModelProto:
    return whole(nodes(), [tensor, *norm()])


def in_constant(tensor: TensorProto) -> onnx.ModelProto:
    return whole([constant(tensor), *nodes()], norm())


def in_body(tensor: TensorProto) -> onnx.ModelProto:
    yes = helper.make_node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
    bodies = [
        helper.make_graph([helper.make_node("Conv", ["x", "W"], ["y"])], "b", [], [info("y", 1, 4, 6, 6)], [tensor])
    ]
    bodies.append(
        helper.make_graph(
            [constant(tensor), helper.make_node("Conv", ["x", "W"], ["y"])], "c", [], [info("y", 1, 4, 6, 6)]
        )
    )
    return whole([yes, helper.make_node("If", ["yes"], ["y"], then_branch=bodies[0], else_branch=bodies[1])], [])


def in_function(tensor: TensorProto) -> onnx.ModelProto:
    body = [constant(tensor), helper.make_node("Conv", ["x", "W"], ["y"])]
    function = helper.make_function("f", "F", ["x"], ["y"], body, [helper.make_opsetid("", 18)])
    return whole([helper.make_node("F", ["x"], ["y"], domain="f")], [], (function,))


def in_function_body(tensor: TensorProto) -> onnx.ModelProto:
    inner = in_body(tensor).graph
    function = helper.make_function("f", "F", ["x"], ["y"], list(inner.node), [helper.make_opsetid("", 18)])
    return whole([helper.make_node("F", ["x"], ["y"], domain="f")], [], (function,))


PLACES = [in_initializer, in_constant, in_body, in_function, in_function_body]


def in_tensors(tensor: TensorProto) -> onnx.ModelProto:
    node = helper.make_node("Own", ["x"], ["o"], domain="com.x")
    node.attribute.append(AttributeProto(name="many", type=AttributeProto.TENSORS, tensors=[tensor]))
    return whole([node, *nodes()], [numpy_helper.from_array(WEIGHT, "W"), *norm()])


def in_sparse(tensor: TensorProto) -> onnx.ModelProto:
    made = whole(nodes(), norm())
    indices = numpy_helper.from_array(np.arange(36), "i")
    made.graph.sparse_initializer.add(values=tensor, indices=indices, dims=WEIGHT.shape)
    return made


def in_sparse_attribute(tensor: TensorProto) -> onnx.ModelProto:
    node = helper.make_node("Constant", [], ["W"])
    node.attribute.append(AttributeProto(name="sparse_value", type=AttributeProto.SPARSE_TENSOR))
    node.attribute[0].sparse_tensor.indices.CopyFrom(tensor)
    return whole([node, *nodes()], norm())


def in_training(tensor: TensorProto) -> onnx.ModelProto:
    made = in_initializer(numpy_helper.from_array(WEIGHT, "W"))
    made.training_info.add().initialization.initializer.append(tensor)
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a model, a file of somebody else's beside it, and another one as the current one."""
    for name in ("model", "private", "here", "model/deep"):
        (tmp_path / name).mkdir()
    WEIGHT.tofile(tmp_path / "private" / "key.bin")
    WEIGHT.tofile(tmp_path / "here" / "w.bin")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "model"


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def run(path: Path) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8)})[0])


@pytest.mark.parametrize("location", ["w.bin", "deep/w.bin", "./deep//w.bin"])
@pytest.mark.parametrize("build", PLACES)
def test_what_lies_inside_is_read_and_goes_with_the_model(
    build: Callable[[TensorProto], onnx.ModelProto], location: str, folder: Path
) -> None:
    """Never lost: the folded model runs without the file, and gives what the given one gives."""
    path = saved(build(elsewhere(location, offset="144")), folder)
    np.concatenate([np.full(36, np.nan, np.float32), WEIGHT.ravel()]).tofile(folder / location)
    expected, out = run(path), folder / "out" / "o.onnx"
    out.parent.mkdir()
    assert main(["fold", str(path), "-o", str(out)]) == 0
    for file in folder.glob("**/w.bin"):
        file.unlink()
    np.testing.assert_allclose(run(out), expected, rtol=1e-5, atol=1e-5)


OUTSIDE = ["/etc/passwd", "../private/key.bin", "deep/../../private/key.bin", "deep/..", "..", ".", "", "none.bin"]


@pytest.mark.parametrize("location", [*OUTSIDE, "link.bin", "linked/key.bin", "pipe", "device", "deep"])
@pytest.mark.parametrize("build", [*PLACES, in_tensors, in_sparse, in_sparse_attribute, in_training])
def test_what_lies_outside_is_no_weight(
    build: Callable[[TensorProto], onnx.ModelProto], location: str, folder: Path
) -> None:
    private = folder.parent / "private"
    (folder / "link.bin").symlink_to(private / "key.bin")
    (folder / "linked").symlink_to(private)
    (folder / "device").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe")
    path = saved(build(elsewhere(location)), folder)
    with pytest.raises(InputError):
        normdeploy.fold(path)


@pytest.mark.parametrize(
    "more",
    [
        {"offset": "1"},
        {"offset": str(2**63)},
        {"offset": "-144"},
        {"offset": "9" * 10_000},
        {"offset": "0x0"},
        {"length": "4"},
        {"length": "145"},
        {"length": "-1"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("build", PLACES)
def test_a_place_that_the_file_does_not_have_is_none(
    build: Callable[[TensorProto], onnx.ModelProto], more: dict[str, str], folder: Path
) -> None:
    WEIGHT.tofile(folder / "w.bin")
    with pytest.raises(InputError, match="'W'"):
        normdeploy.fold(saved(build(elsewhere("w.bin", **more)), folder))


def test_two_locations_are_none(folder: Path) -> None:
    """One reader takes the first, another the last."""
    WEIGHT.tofile(folder / "w.bin")
    tensor = elsewhere("w.bin")
    tensor.external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(InputError, match="no clear location"):
        normdeploy.fold(saved(in_constant(tensor), folder))


@pytest.mark.parametrize(
    "arguments",
    [
        ["fold", "-o", "o.onnx"],
        ["explain"],
        ["bench", "--input", "x:1x1x8x8", "--seconds", "0.1"],
        ["build", "-o", "o.plan", "--sm", "89"],
    ],
)
def test_no_command_reads_it(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(in_function(elsewhere("../private/key.bin")), folder)
    assert main([arguments[0], str(path), *arguments[1:]]) == 2
    said = capsys.readouterr().err
    assert "'../private/key.bin'" in said
    assert "a file outside its folder is named" in said


def test_a_bundle_does_not_read_it(folder: Path) -> None:
    """Also where its own hashes are right."""
    for reader in (onnxfile.check, onnxfile.metadata, onnxfile.data_files, onnxfile.load, pipeline.ledger_of):
        with pytest.raises(InputError, match="a file outside its folder is named"):
            reader(saved(in_function_body(elsewhere("../private/key.bin")), folder))


@pytest.mark.parametrize("kind", [onnx.ModelProto, ir.Model])
@pytest.mark.parametrize("build", PLACES)
def test_of_a_model_in_memory_nothing_is_read_from_the_current_folder(
    build: Callable[[TensorProto], onnx.ModelProto], kind: type, folder: Path
) -> None:
    given = build(elsewhere("w.bin"))
    with pytest.raises(InputError, match=r"w\.bin.*nothing says in which folder"):
        normdeploy.fold(given if kind is onnx.ModelProto else ir.from_proto(given))


def test_a_large_weight_anywhere_is_kept(folder: Path) -> None:
    """Also where it stands in the model's own file and is read only when it is asked for."""
    large = np.random.default_rng(0).standard_normal((4, 1, 40, 40)).astype(np.float32)
    for build in PLACES:
        path = saved(build(numpy_helper.from_array(large, "W")), folder)
        kept = [
            np.array_equal(np.asarray(each), large)
            for each in tensors(onnxfile.load(path))
            if each.shape == large.shape
        ]
        assert kept == [True] * len(kept) != []


def tensors(model: ir.Model) -> Iterator[np.ndarray]:
    yield from (
        value.const_value.numpy()
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value
    )
    for graph in (model.graph, *model.functions.values()):
        for node in graph.all_nodes():
            yield from (
                attribute.value.numpy()
                for attribute in node.attributes.values()
                if attribute.type == ir.AttributeType.TENSOR
            )
