"""What a file names twice: each reader would choose for itself, so it is one error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import normdeploy
from normdeploy.cli import main
from normdeploy.errors import InputError


def model() -> onnx.ModelProto:
    """A Conv and a BatchNormalization, in front of a function and an If."""
    draw = np.random.default_rng(0)
    weights = [numpy_helper.from_array(draw.standard_normal((4, 3, 3, 3)).astype(np.float32), "w")]
    weights += [numpy_helper.from_array(draw.uniform(0.5, 1.5, 4).astype(np.float32), name) for name in "sbmv"]
    weights.append(numpy_helper.from_array(np.array(True), "yes"))
    x, y, z = (helper.make_tensor_value_info(name, 1, shape) for name, shape in
               (("x", [1, 3, 8, 8]), ("y", [1, 4, 6, 6]), ("z", [1, 4, 6, 6])))  # fmt: skip
    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    body = helper.make_graph([helper.make_node("Add", ["f", "one"], ["z"])], "body", [], [z], [one])
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", *"sbmv"], ["n"]),
        helper.make_node("F", ["n"], ["f"], domain="f"),
        helper.make_node("If", ["yes"], ["y"], then_branch=body, else_branch=body),
    ]
    function = helper.make_function(
        "f", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 18)]
    )
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10, functions=[function])


def weight(made: onnx.ModelProto) -> None:
    """ONNX Runtime takes the last one, onnx_ir another."""
    made.graph.initializer.append(numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w"))


def weight_of_a_body(made: onnx.ModelProto) -> None:
    made.graph.node[3].attribute[0].g.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "one"))


def sparse_weight(made: onnx.ModelProto) -> None:
    values, indices = (
        numpy_helper.from_array(np.ones(1, np.float32), "s"),
        numpy_helper.from_array(np.zeros(1, int), ""),
    )
    made.graph.sparse_initializer.add(values=values, indices=indices, dims=[4])


def opset(made: onnx.ModelProto) -> None:
    made.opset_import.append(helper.make_opsetid("ai.onnx", 7))


def function(made: onnx.ModelProto) -> None:
    made.functions.append(made.functions[0])
    made.functions[1].node[0].op_type = "Neg"


TWICE: dict[str, tuple[Callable[[onnx.ModelProto], object], str]] = {
    "weight": (weight, "two weights have the name 'w'"),
    "weight of a body": (weight_of_a_body, "two weights have the name 'one'"),
    "sparse weight": (sparse_weight, "two weights have the name 's'"),
    "input": (lambda made: made.graph.input.append(made.graph.input[0]), "two inputs have the name 'x'"),
    "function": (function, "two functions have the name 'f::F:'"),
    "input of a function": (lambda made: made.functions[0].input.append("a"), "two inputs of the function 'F' have"),
    "opset": (opset, "two opsets have the name ''"),
}


@pytest.mark.parametrize("name", TWICE)
def test_a_name_that_is_given_twice_is_one_error(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, said = TWICE[name]
    made = model()
    assert normdeploy.fold(made).model is not None
    change(made)
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    assert main(["fold", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "o.onnx")]) == 2
    assert f"the model is not valid ONNX: {said}" in capsys.readouterr().err
    with pytest.raises(InputError, match="not valid ONNX"):
        normdeploy.fold(made)


def test_an_opset_that_is_listed_twice_is_no_choice(tmp_path: Path) -> None:
    """As skl2onnx lists it."""
    made = model()
    made.opset_import.append(made.opset_import[0])
    made.opset_import.append(helper.make_opsetid("ai.onnx", made.opset_import[0].version))
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    assert main(["fold", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "o.onnx")]) == 0
    onnx.checker.check_model(tmp_path / "o.onnx", full_check=True)


@pytest.mark.parametrize(
    ("version", "said"),
    [(2**62, f"the model has opset {2**62}"), (-5, "there is no opset -5"), (None, "the model does not say its opset")],
)
def test_an_opset_that_is_none_is_one_error(
    version: int | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = model()
    if version is None:
        made.opset_import.pop(0)
    else:
        made.opset_import[0].version = version
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    assert main(["fold", str(tmp_path / "m.onnx"), "-o", str(tmp_path / "o.onnx")]) == 2
    assert said in capsys.readouterr().err
