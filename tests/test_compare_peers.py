"""The comparison with other folders judges rightly, and the graphs that are traps catch no fold of ours."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from normdeploy.fold import fold

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from peers import counting, judge, table
from peers.borrowed import bn, model, norm

GRAPHS = {graph.name: graph for graph in table.graphs()}
TRAPS = [graph for graph in GRAPHS.values() if graph.group == "traps"]
NOT_DONE = {"traps: a norm inside a function"}
"""The border of a function stops every map; folders that inline it first fold more."""


@pytest.mark.parametrize("graph", TRAPS, ids=lambda graph: graph.name)
def test_no_trap_catches_the_fold(graph: table.Graph, tmp_path: Path) -> None:
    ir.save(fold(graph.model).model, tmp_path / "out.onnx")
    found = judge.outcome(graph, judge.questions(graph.model), tmp_path / "out.onnx", 0.0)
    assert not found.wrong
    assert not found.invalid
    assert found.did(graph) == (graph.is_fold and graph.name not in NOT_DONE)


@pytest.mark.parametrize("graph", GRAPHS.values(), ids=lambda graph: graph.name)
def test_every_graph_is_valid_and_none_counts_as_folded_before(graph: table.Graph) -> None:
    onnx.checker.check_model(graph.model, full_check=True)
    assert graph.left is None or 0 <= graph.left < counting.passes_in_onnx(graph.model)


def graph() -> table.Graph:
    proto = model("float[2,3,8,11] x", f"float[5,3,3,3] w, {bn(5)}", "c = Conv (x, w)\n" + norm("c", "y"))
    return table.Graph("conv and norm", "test", proto, 0)


def judged(proto: onnx.ModelProto, folder: Path) -> judge.Outcome:
    onnx.save(proto, folder / "out.onnx")
    return judge.outcome(graph(), judge.questions(graph().model), folder / "out.onnx", 0.0)


def folded() -> onnx.ModelProto:
    return ir.to_proto(fold(graph().model).model)


def test_a_fold_is_done(tmp_path: Path) -> None:
    assert judged(folded(), tmp_path).did(graph())


def test_a_graph_as_it_was_is_right_but_not_done(tmp_path: Path) -> None:
    found = judged(graph().model, tmp_path)
    assert not found.wrong
    assert found.left == 1
    assert not found.did(graph())


def test_one_weight_that_is_off_is_wrong(tmp_path: Path) -> None:
    proto = folded()
    weight = numpy_helper.to_array(proto.graph.initializer[0]).copy()
    weight[3] *= 1.001
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, proto.graph.initializer[0].name))
    assert "is off by" in judged(proto, tmp_path).wrong
    weight[3] = np.inf
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, proto.graph.initializer[0].name))
    assert "is not finite" in judged(proto, tmp_path).wrong


def test_a_model_that_the_checker_refuses_is_invalid(tmp_path: Path) -> None:
    proto = folded()
    proto.graph.node[0].op_type = "Convolution"
    assert judged(proto, tmp_path).invalid


def test_a_model_that_lost_an_output_is_invalid(tmp_path: Path) -> None:
    proto = folded()
    proto.graph.node[0].output[0] = proto.graph.output[0].name = "z"
    assert judged(proto, tmp_path).invalid == "without y"


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("y = Add (x, k)", 1),
        ("m = MatMul (x, w)\n y = Add (m, k)", 0),
        ("m = MatMul (x, w)\n t = Transpose <perm=[1,0]> (m)\n u = Add (t, k)\n y = Mul (u, k)", 1),
        ("m = MatMul (x, w)\n n = MatMul (x, w)\n y = Add (m, n)", 1),
        ("s = Sqrt (k)\n d = Mul (k, s)\n y = Relu (x)", 0),
    ],
)
def test_what_counts_as_a_pass(body: str, left: int) -> None:
    assert counting.passes_in_onnx(model("float[5,5] x", "float[5,5] w, float k", body)) == left
