"""Every refusal has a code, every code its page and an input that gives it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cases
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from cases import ids
from cases_refusals import NOT_ONE_CONVOLUTION
from harness import bn, model, norm
from onnx import TensorProto, helper

from normdeploy.fold import Ledger, fold, merge, weights
from normdeploy.fold.affine import AffineMap
from normdeploy.fold.codes import PAGES
from normdeploy.fold.graph import state
from normdeploy.fold.graph.reader import FAILED_PROOFS, Refused, View
from normdeploy.fold.graph.state import GraphState
from normdeploy.fold.layernorm import centre, stream
from normdeploy.fold.operators.maps import Spelling
from normdeploy.fold.operators.rows import unchanged
from normdeploy.fold.operators.table import TABLE
from normdeploy.fold.proof import commute

TESTS = Path(__file__).parent.parent
FOLD = TESTS.parent / "normdeploy" / "fold"
CODES = {page.code for page in PAGES}
IMAGE, CONV = "float[2,3,8,11] x", "float[5,3,3,3] w"
Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Case:
    """A graph, how it is folded, what is broken in the fold for it, and the code that comes out."""

    code: str
    body: str
    weights: str = ""
    inputs: str = IMAGE
    level: str = "affine"
    break_: Callable[[Patch], None] = lambda patch: None
    opset: int = 21
    outputs: str = "float[] y"

    def ledger(self, patch: Patch) -> Ledger:
        """Fold it."""
        proto = model(self.inputs, self.weights, self.body, opset=self.opset, outputs=self.outputs)
        self.break_(patch)
        return fold(proto, layernorm=self.level).ledger  # type: ignore[arg-type]  # one of the levels


def row(name: str, **changes: object) -> Callable[[Patch], None]:
    """Let the row of an operator state other things."""
    return lambda patch: patch.setitem(TABLE, name, replace(TABLE[name], **changes))  # type: ignore[arg-type]


def give_up(patch: Patch) -> None:
    """Let journeys be no longer than one operator in a graph."""
    patch.setattr(state, "_STEPS", 0)
    patch.setattr(state, "_STEPS_PER_NODE", 0)


def fail_to_run(patch: Patch) -> None:
    """Let nothing run in float64."""

    def run(*arguments: object) -> None:
        raise NotImplementedError

    patch.setattr(commute, "run", run)


def fail_to_infer(patch: Patch) -> None:
    """Let ONNX infer no shapes."""

    def infer(*arguments: object, **options: object) -> None:
        raise ValueError("no shapes")

    patch.setattr(onnx.shape_inference, "infer_shapes", infer)


def overlook_problems(patch: Patch) -> None:
    """Let the search for a stream find nothing against it."""

    def explore(view: GraphState, node: ir.Node) -> stream.Stream:
        found = stream.stream_at(view, node)
        found.problems.clear()
        return found

    patch.setattr(centre, "stream_at", explore)


CONV_NORM = "c = Conv (x, w)\n" + norm("c", "y")
STREAM = "e = Gather (table, i)\n x = Add (e, pos)\n n = LayerNormalization (x, g)\n"
TOKENS: dict[str, Any] = {
    "inputs": "int64[2,7] i",
    "weights": "float[8,6] table, float[7,6] pos, float[6] g, float[6,5] h",
    "level": "centre",
    "opset": 23,
}

CASES = [
    Case("NF006", "s = Sigmoid (x)\n t = Mul (s, k)\n u = Add (t, b)\n y = Sigmoid (u)",
         "float[3,1,1] k, float[3,1,1] b"),
    Case("NF007", CONV_NORM, f"{CONV}, {bn(5)}", break_=give_up),
    Case("NF103", "d = DequantizeLinear (q, step)\n m = Mul (d, k)\n y = Add (x, m)",
         "int8[2,3,8,11] q, float step = {0.5}, float[3,1,1] k", break_=row("DequantizeLinear", up=unchanged)),
    Case("NF107", "m = MatMul (x, w)\n y = Mul (m, k)", "float[11,0] w, float[0] k"),
    Case("NF114", "s = Sigmoid (x)\n" + norm("s", "n") + "u = Add (n, k)\n y = Sigmoid (u)", f"float[11] k, {bn(3)}"),
    Case("NF115", CONV_NORM, f"{CONV}, {bn(5)}", break_=row("Conv", parameters={})),
    Case("NF314", "m = ReduceMean (x, last)\n d = Sub (x, m)\n s = Mul (d, d)\n v = ReduceMean (s, last)\n"
         "e = Add (v, eps)\n r = Sqrt (e)\n a = Cast <to=10> (d)\n b = Cast <to=10> (r)\n y = Div (a, b)",
         "int64[1] last = {-1}, float eps = {0.00001}", inputs="float[2,7,6] x", outputs="float16[] y"),
    Case("NF317", "n = LayerNormalization (x, g)\n a = Add (n, b)\n y = Sigmoid (a)", "float[11] g, float[8,1] b"),
    Case("NF320", STREAM + "u = MatMul (n, h)\n z = Sigmoid (x)\n v = MatMul (z, h)\n y = Add (u, v)", **TOKENS),
    Case("NF414", "c = Conv (x, w)\n" + norm("c", "d") + "y = Relu (d)", f"{CONV}, {bn(5)}", break_=fail_to_infer),
    Case("NF402", CONV_NORM, f"{CONV}, {bn(5)}", break_=fail_to_run),
    Case("NF404", STREAM + "y = MatMul (n, h)", break_=overlook_problems, outputs="float[] y, float[] x", **TOKENS),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.code)
def test_an_input_gives_the_code(case: Case, monkeypatch: Patch) -> None:
    ledger = case.ledger(monkeypatch)
    assert case.code in codes(ledger), [str(entry) for entry in ledger]


def codes(ledger: Ledger) -> set[str]:
    """The codes of all entries and notes of ``ledger``."""
    return {code for entry in ledger for code in entry.codes} | {note.code for note in (*ledger.notes, *ledger.dropped)}


def test_an_attribute_that_is_a_parameter_of_a_function() -> None:
    node = ir.node("Concat", [ir.val("x")], {"axis": ir.RefAttr("axis", "a", ir.AttributeType.INT)})
    with pytest.raises(Refused) as refused:
        View(21, 10).require_known_attributes(node)
    assert refused.value.codes == ("NF010",)


def test_an_output_of_unknown_type() -> None:
    node = ir.node("Mul", [ir.val("x"), ir.val("k")])
    with pytest.raises(Refused) as refused:
        weights.constants(node, Spelling("Mul", AffineMap.of(2.0, 0.0, 2), {"scale": np.full(1, 2.0)}))
    assert refused.value.codes == ("NF109",)


def refused_merger(proto: onnx.ModelProto) -> Refused:
    """Why the sum that ends ``proto`` is no single convolution."""
    graph = ir.from_proto(proto).graph
    with pytest.raises(Refused) as refused:
        merge.merger(GraphState.of(View(21, 10), graph), graph[-1])
    return refused.value


def test_an_input_that_is_missing() -> None:
    proto = model(IMAGE, "", "y = Sum (x, x)")
    proto.graph.node[0].input[1] = ""
    assert refused_merger(proto).codes == ("NF013",)


@pytest.mark.parametrize("case", NOT_ONE_CONVOLUTION, ids=ids(NOT_ONE_CONVOLUTION))
def test_branches_that_are_no_single_convolution(case: cases.Case) -> None:
    assert refused_merger(case.model()).codes == ("NF101" if case.name == "a weight that is an input" else "NF214",)


# -- notes -----------------------------------------------------------------------------------------


def test_inputs_with_a_default_value() -> None:
    proto = model(IMAGE, f"{CONV}, {bn(5)}", CONV_NORM)
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [5, 3, 3, 3]))
    assert {"NF102", "NF412"} <= codes(fold(proto).ledger)


def test_functions_that_bear_names_of_operators() -> None:
    proto = model(IMAGE, f"{CONV}, {bn(5)}", CONV_NORM)
    opset = [helper.make_opsetid("", 21)]
    proto.functions.append(helper.make_function("", "Mul", "a", "b", [helper.make_node("Neg", "a", "b")], opset))
    assert codes(fold(proto).ledger) == {"NF413"}


# -- all of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", sorted(CODES))
def test_a_test_asserts_the_code(code: str) -> None:
    """In this folder, or where the command that notes it is tested."""
    texts = (path.read_text() for path in TESTS.rglob("*.py"))
    assert any(f'"{code}' in text for text in texts)


def refusals(path: Path) -> Iterator[ast.Call]:
    """Every call that makes a refusal."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if called in ("Refused", "refuse", "_broken"):
                yield node


@pytest.mark.parametrize("path", sorted(FOLD.rglob("*.py")), ids=lambda path: str(path.relative_to(FOLD)))
def test_every_refusal_has_a_code_with_a_page(path: Path) -> None:
    for call in refusals(path):
        first = call.args[0]
        handed_on = isinstance(first, ast.Starred | ast.Name)  # of a row, or of whoever asked for it
        assert handed_on or (isinstance(first, ast.Constant) and first.value in CODES), ast.unparse(call)


def test_every_row_that_stops_a_map_says_why() -> None:
    assert {row.why[0] for row in TABLE.values()} <= CODES
    assert FAILED_PROOFS <= CODES


def test_every_page_is_used() -> None:
    source = "".join(path.read_text() for path in FOLD.parent.rglob("*.py") if "codes" not in path.parts)
    assert {code for code in CODES if f'"{code}"' not in source} == set()
