"""Each row of the lint, with what the real parser makes of the same graph; and what the lint must let pass."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from nets import graph

from normdeploy.engine.backends import TensorRTRTX
from normdeploy.engine.job import Job, Result
from normdeploy.engine.lint import Problem, lint, refuse, unsupported
from normdeploy.engine.process import run
from normdeploy.errors import InputError
from normdeploy.specs import parse

C = 8
ONE, HALF = np.ones(C, np.float32), np.ones(C, np.float16)
BAD: dict[str, tuple[ir.Model, str, str]] = {
    "training BatchNorm": (
        graph(
            f"(float[2,{C},4,4] x) => (float[2,{C},4,4] y)"
            " { y, rm, rv = BatchNormalization<training_mode=1>(x, s, s, m, v) }",
            s=ONE,
            m=ONE,
            v=ONE,
        ),
        "net.y [",
        "training mode",
    ),
    "LayerNorm statistics": (
        graph(
            f"(float[2,4,{C}] x) => (float[2,4,{C}] y, float[2,4,1] m) {{ y, m, i = LayerNormalization(x, s) }}", s=ONE
        ),
        "net.y [",
        "Mean and InvStdDev",
    ),
    "LayerNorm types": (
        graph(f"(float16[2,4,{C}] x) => (float16[2,4,{C}] y) {{ y = LayerNormalization(x, s) }}", s=ONE),
        "net.y [",
        "FLOAT and FLOAT16",
    ),
    "int16 input": (graph("(int16[2,4] x) => (float[2,4] y) { y = Cast<to=1>(x) }"), "x:", "INT16"),
}
"""What the parser rejects: graph, the place that the lint names, a part of what it says."""

SILENT: dict[str, tuple[ir.Model, str, str]] = {
    "norm in float16": (
        graph(
            f"""(float16[2,4,{C}] x) => (float16[2,4,{C}] y) {{ m = ReduceMean(x, axes) d = Sub(x, m) q = Mul(d, d)
                v = ReduceMean(q, axes) e = Add(v, eps) r = Sqrt(e) y = Div(d, r) }}""",
            axes=np.array([-1]),
            eps=np.array(1e-5, np.float16),
        ),
        "net.",
        "squares overflow",
    ),
    "norm in bfloat16": (
        graph(
            f"(bfloat16[2,{C}] x) => (bfloat16[2,{C}] y) {{ q = Mul(x, x) v = ReduceMean(q, axes) r = Sqrt(v)"
            " y = Div(x, r) }",
            axes=np.array([-1]),
        ),
        "net.",
        "BFLOAT16",
    ),
    "float64": (graph("(double[2,4] x) => (double[2,4] y) { y = Relu(x) }"), "net.y [", "computed in float32"),
    "64-bit constant": (
        graph("(int64[2,4] x) => (int64[2,4] y) { y = Add(x, k) }", k=np.array(2**40)),
        "net.y [",
        "exceeds 32 bits",
    ),
}
"""What the builder takes without a word, and should not be given."""


def parser_says(model: ir.Model, folder: Path, **job: object) -> Result:
    for index, node in enumerate(model.graph.all_nodes()):
        node.name = node.name or f"node_{index}"
    ir.save(model, folder / "model.onnx")
    operators = tuple({node.op_type for node in model.graph.all_nodes()})
    specs = ({str(value.name): (tuple(value.shape.numpy()),) * 3 for value in model.graph.inputs},)
    return run(Job("tensorrt_rtx", str(folder / "model.onnx"), operators, specs, **job), folder, {}, None)


@pytest.mark.parametrize("name", BAD)
def test_what_the_parser_rejects_is_found_before_and_named(name: str, rtx: None, tmp_path: Path) -> None:
    model, place, words = BAD[name]
    (problem,) = lint(model, ())
    assert place in str(problem)
    assert words in problem.what
    assert problem.fix
    assert parser_says(model, tmp_path).parser_errors


@pytest.mark.parametrize("name", SILENT)
def test_what_the_builder_takes_without_a_word_is_found(name: str, rtx: None, tmp_path: Path) -> None:
    model, place, words = SILENT[name]
    problems = lint(model, ())
    assert any(place in str(problem) and words in problem.what for problem in problems)
    result = parser_says(model, tmp_path)
    assert not result.parser_errors
    assert not result.builder_errors


GOOD = {
    "float32 LayerNorm": graph(f"(float[2,4,{C}] x) => (float[2,4,{C}] y) {{ y = LayerNormalization(x, s) }}", s=ONE),
    "float16 LayerNorm": graph(
        f"(float16[2,4,{C}] x) => (float16[2,4,{C}] y) {{ y = LayerNormalization(x, s) }}", s=HALF
    ),
    "float32 norm spelled out": graph(
        f"(float[2,{C}] x) => (float[2,{C}] y) {{ q = Mul(x, x) v = ReduceMean(q, axes) r = Sqrt(v) y = Div(x, r) }}",
        axes=np.array([-1]),
    ),
    "BatchNorm": graph(
        f"(float[2,{C},4,4] x) => (float[2,{C},4,4] y) {{ y = BatchNormalization(x, s, s, s, s) }}", s=ONE
    ),
    "Slice to the end": graph(
        "(float[2,4] x) => (float[2,3] y) { y = Slice(x, a, b, c) }",
        a=np.array([1]),
        b=np.array([2**63 - 1]),
        c=np.array([1]),
    ),
    "bool, int8 and uint8": graph(
        "(bool[2] b, uint8[2] u, int8[2] i) => (float[2] y)"
        " { p = Cast<to=1>(b) q = Cast<to=1>(u) r = Cast<to=1>(i) y = Sum(p, q, r) }"
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_can_be_built_is_not_complained_about(name: str, rtx: None, tmp_path: Path) -> None:
    assert lint(GOOD[name], ()) == ()
    result = parser_says(GOOD[name], tmp_path)
    assert not result.parser_errors
    assert not result.builder_errors


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ([], 'a dynamic shape without a range; give its range: --input "x:1..1..8x4@f32"'),
        (["x:2x4", "y:2x4"], "the model has no such input; its inputs are x"),
        (["x:2x4@f16"], "the spec says float16, the model FLOAT"),
        (["x:2x4x1"], "the spec has 3 dimensions, the model 2"),
        (["x:1..8x5"], "dimension 1 is 4 in the model, 5..5 in the spec"),
        (["x:1..8x2..4"], "dimension 1 is 4 in the model, 2..4 in the spec"),
    ],
)
def test_input_specs_that_do_not_fit_are_problems(spec: list[str], words: str) -> None:
    model = graph("(float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    assert words in str(lint(model, parse(spec))[0])
    assert lint(model, parse(["x:N=1..8x4"])) == ()


def test_operators_the_backend_does_not_know_are_named_with_their_modules(rtx: None, tmp_path: Path) -> None:
    model = graph("(float[4] x) => (float[4] y) { d = Det(x) e = my.Thing(d) y = Relu(e) }")
    unknown = parser_says(model, tmp_path).unknown_operators
    assert set(unknown) == {"Det", "Thing"}
    first, second = unsupported(model, unknown, TensorRTRTX.title)
    assert "net.d" in str(first)
    assert "does not know the operator Det" in first.what
    assert "operator my::Thing" in second.what


def test_all_problems_are_in_one_error() -> None:
    problems = [Problem(f"layer{index}", f"node{index}", "is wrong", "mend it") for index in range(23)]
    with pytest.raises(InputError) as caught:
        refuse(problems)
    message = str(caught.value)
    assert "23 problems" in message
    assert message.count("mend it") == 20
    assert "and 3 more" in message
    refuse([])


def test_statistics_asked_for_in_16_bits_are_a_problem() -> None:
    text = f"(bfloat16[2,4,{C}] x) => (bfloat16[2,4,{C}] y) {{ y = LayerNormalization<stash_type=16>(x, s) }}"
    (problem,) = lint(graph(text, s=np.ones(C, ml_dtypes.bfloat16)), ())
    assert "16 bits" in problem.what
