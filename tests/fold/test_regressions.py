"""Graphs that the fuzz test found, shrunk, each under what was wrong with it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
import onnx_ir as ir
import onnxruntime
import pytest
from harness import assert_same, bn, fill, folded, model, norm, op_types, without_ledger
from onnx import helper
from reference64 import truth
from support import says

from normdeploy.errors import InputError
from normdeploy.fold import fold
from normdeploy.fold.layernorm.reduce import Reducer

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def parsed(text: str) -> onnx.ModelProto:
    """The model that ``text`` spells."""
    return onnx.parser.parse_model(f"{HEAD} {text}")


# -- the model that is given -----------------------------------------------------------------------

UNSORTED = """g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1,2,3,4}, float[2] k = {5,6}> {
    y = Mul (c, k)
    c = MatMul (x, w)
}"""


def test_nodes_need_not_be_sorted() -> None:
    new, _ = folded(parsed(UNSORTED))
    assert op_types(new) == {"MatMul": 1}


def test_a_model_in_memory_that_cannot_be_copied_is_refused_with_what_to_do() -> None:
    with pytest.raises(InputError, match="sort"):
        fold(ir.from_proto(parsed(UNSORTED)))


def test_the_tensor_of_a_constant_node_keeps_its_name() -> None:
    proto = parsed("""g (float[N,2] x, bool c) => (float[N,2] y) {
        y = If (c) <then_branch = a () => (float[N,2] t) {
            k = Constant <value = float[2] {1,2}> ()
            t = Sub (x, k)
        }, else_branch = b () => (float[N,2] e) { e = Relu (x) }>
    }""")
    new, _ = folded(proto)
    assert_same(proto, new)


# -- names of inputs and outputs -------------------------------------------------------------------


def interface(proto: onnx.ModelProto) -> tuple[list[str], list[str]]:
    """The names of inputs and outputs."""
    return [info.name for info in proto.graph.input], [info.name for info in proto.graph.output]


@pytest.mark.parametrize(
    "text",
    [
        "g (float[N,2] x) => (float[N,2] y) <float[2] k = {1,1}> { y = Mul (x, k) }",
        "g (float[N,2] x) => (float[N,2] r, float[N,2] y) <float k = {1}> { r = Relu (x)  y = Mul (r, k) }",
        """g (float[N,2] x, bool c) => (float[N,2] y) <float k = {1}> {
            y = If (c) <then_branch = a () => (float[N,2] t) { t = Mul (x, k) },
                        else_branch = b () => (float[N,2] e) { e = Relu (x) }>
        }""",
    ],
    ids=["a map that changes nothing", "one behind another output", "one alone in a body"],
)
def test_nothing_that_has_a_name_outside_is_renamed(text: str) -> None:
    proto = parsed(text)
    new, _ = folded(proto)
    assert interface(new) == interface(proto)
    assert_same(proto, new)


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("c = Conv (q, w)  y = BatchNormalization (c, g, b, m, var)", {"GroupNormalization": 1, "Conv": 1}),
        ("c = Conv (q, w)  d = Conv (q, v)  y = Add (c, d)", {"GroupNormalization": 1, "Conv": 1}),
    ],
    ids=["a map that folds", "a sum that merges"],
)
def test_an_output_keeps_its_shape_where_inference_knows_none(body: str, left: dict[str, int]) -> None:
    proto = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["" : 21]>
    g (float[N,4,8] x) => (float[N,3,8] y)
    <float[4] s, float[4] t, float[3,4,1] w, float[3,4,1] v, float[3] g, float[3] b, float[3] m, float[3] var> {{
        q = GroupNormalization <num_groups = 2> (x, s, t)
        {body}
    }}""")
    fill(proto.graph)
    new, _ = folded(proto)
    assert op_types(new) == left
    assert new.graph.output == proto.graph.output


# -- the ledger ------------------------------------------------------------------------------------


def test_the_ledger_lists_nodes_of_the_given_model_and_no_others() -> None:
    proto = parsed("""g (float[N,3,4] x) => (float[N,3,4] y) <float[3,1] a = {1,2,3}, float[3,1] b = {4,5,6}> {
        [first] s = Sub (x, a)
        [second] m = Mul (s, b)
        [third] y = Add (m, a)
    }""")
    new, ledger = folded(proto)
    assert op_types(new) == {"Mul": 1, "Add": 1}
    assert {entry.node: entry.kind for entry in ledger} == {"first": "Sub", "second": "Mul", "third": "Add"}


# -- what the fold must know of a graph ------------------------------------------------------------

BN = "float[3] gamma = {1,-2,3}, float[3] beta = {4,5,6}, float[3] mean = {7,8,9}, float[3] var = {1,2,3}"


def test_shapes_are_known_of_unsorted_nodes_too() -> None:
    proto = parsed("""g (float[N,2] x) => (float[N,2] y) <float[2,2] w = {1,2,3,4}, float[2] k = {5,6}> {
        y = Mul (r, k)
        r = Relu (c)
        c = MatMul (x, w)
    }""")
    new, _ = folded(proto)
    assert op_types(new) == {"MatMul": 1, "Relu": 1}


def test_global_max_pool_of_any_rank() -> None:
    proto = parsed(f"""g (float[N,3,7] x) => (float[N,3,1] y) <float[3,3,1] w = {{1,2,3,4,5,6,7,8,9}}, {BN}> {{
        c = Conv (x, w)
        p = GlobalMaxPool (c)
        a = Abs (gamma)
        y = BatchNormalization (p, a, beta, mean, var)
    }}""")
    new, ledger = folded(proto)
    assert ledger.dropped == ()
    assert op_types(new) == {"Conv": 1, "GlobalMaxPool": 1}


def test_a_function_body_says_nothing_of_types() -> None:
    proto = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (float[N,3,7] x) => (float[N,3,7] y) {{ y = local.F (x) }}
    <domain: "local", opset_import: ["" : 17]> F (x) => (y) {{
        w = Constant <value = float[3,3,1] {{1,2,3,4,5,6,7,8,9}}> ()
        {"".join(f"{name} = Constant <value = float[3] {{1,2,3}}> () " for name in ("gamma", "beta", "mean", "var"))}
        c = Conv (x, w)
        d = Conv (c, w)
        n = BatchNormalization (d, gamma, beta, mean, var)
        y = Relu (n)
    }}""")
    new, ledger = folded(proto)
    assert ledger.dropped == ()
    assert op_types(new) == {"F": 1, "Conv": 2, "Relu": 1}


# -- folding twice ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (
            """g (float[N,6,1,5] x) => (float[M,5] y) <float[5,5] w, float[5] b, float[5] s, float[1,1] d> {
                h = Tanh (x)
                m = MatMul (h, w)  c = Add (m, b)  t = Mul (c, s)
                r = Add (h, t)
                f = Flatten <axis = 3> (r)
                y = Div (f, d)
            }""",
            "Tanh MatMul Add Add Flatten Div",
        ),
        (
            """g (float[2,1,2] x) => (float[2,2,2] y) <float[1,1] k, float[2,2,3] w, float[2,2,1] v> {
                r = Relu (x)  m = Mul (r, k)
                c = Concat <axis = 1> (x, m)
                a = Conv <pads = [1,1]> (c, w)  b = Conv (c, v)
                s = Add (a, b)  y = Add (s, c)
            }""",
            "Relu Concat Conv",
        ),
    ],
    ids=["a map that went frees the way for one before", "branches that became one convolution free the way"],
)
def test_folding_twice_changes_nothing(text: str, left: str) -> None:
    proto = parsed(text)
    fill(proto.graph)
    new, _ = folded(proto)
    assert sorted(op_types(new).elements()) == sorted(left.split())
    assert without_ledger(folded(new)[0]) == without_ledger(new)
    assert_same(proto, new)


# -- probes of the proof ---------------------------------------------------------------------------

SPELLED = "v = Add (var, s)\n r = Sqrt (v)\n e = Div (d, r)\n f = Mul (e, k)\n y = Add (f, b)"
"""The rest of a norm behind its Sub."""


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (
            """g (float[N,3,7] x) => (float[N,3,7] y) <int8[3,3,1] q = {1,2,3,4,5,6,7,8,9}, float[3] d = {1,2,3},
            float[3,1] k = {4,5,6}> {
                w = DequantizeLinear <axis = 0> (q, d)
                c = Conv (x, w)
                y = Mul (c, k)
            }""",
            "DequantizeLinear Conv",
        ),
        (
            """g (float[N,3,4,5] x, float[4] f) => (float[A,B,C,D] y) <float[3,3,1,1] w, float k = {2}> {
                c = Conv (x, w)
                r = Resize <mode = "linear"> (c, , f)
                y = Mul (r, k)
            }""",
            "Conv Resize",
        ),
        (
            """g (float[N,3,4,5] x, int64[4] f) => (float[A,3,C,D] y) <float[3,3,1,1] w, float k = {2},
            int64[1] o = {0}, int64[1] a = {1}, int64[1] b = {2}, int64[1] c4 = {4}> {
                c = Conv (x, w)
                s = Shape (x)
                n = Slice (s, o, b)
                m = Slice (f, b, c4)
                z = Concat <axis = 0> (n, m)
                r = Resize <mode = "linear"> (c, , , z)
                y = Mul (r, k)
            }""",
            "Conv Shape Slice Slice Concat Resize",
        ),
        (
            """g (float[N,7] x) => (float[1,1,5] y) <float[7,5] w, int64[3] s = {1,1,5}, float k = {2}> {
                m = MatMul (x, w)
                r = Reshape (m, s)
                y = Mul (r, k)
            }""",
            "MatMul Reshape",
        ),
        (
            """g (float[N,7] x) => (float[2,5] y) <float[7,5] w, int64[2] i = {3,-5}, float[5] k> {
                m = MatMul (x, w)
                r = Gather (m, i)
                y = Mul (r, k)
            }""",
            "MatMul Gather",
        ),
        (
            """g (float[N,7] x) => (float[5] y) <float[7,5] w, int64[1] a = {0}, float[5] k> {
                m = MatMul (x, w)
                r = Squeeze (m, a)
                y = Mul (r, k)
            }""",
            "MatMul Squeeze",
        ),
        (
            """g (float[N,W] x) => (float[N,W] y) <float[3] w, float[3] b, float k = {2}> {
                m = LayerNormalization (x, w, b)
                y = Mul (m, k)
            }""",
            "LayerNormalization",
        ),
        (
            """g (float[N,3] x) => (float[N,5] y) <float[3,5] w, float[5] b, float[5] var, float s = {0.001},
            float[5] k> {
                m = Gemm (x, w, b)
                d = Sub (m, b)
"""
            + SPELLED
            + "}",
            "Gemm",
        ),
        (
            """g (float[N,3] x, int64[2] r) => (float[A,B] y) <float[3,5] w, float k = {3}> {
                m = MatMul (x, w)
                t = Tile (m, r)
                y = Mul (t, k)
            }""",
            "MatMul Tile",
        ),
        (
            """g (float[N,3] x, int64[1] e = {-1}) => (float[N,1] y) <float[3,5] w, int64[1] s = {-2}, int64[1] a = {1},
            float k = {3}> {
                m = MatMul (x, w)
                t = Slice (m, s, e, a)
                y = Mul (t, k)
            }""",
            "MatMul Slice",
        ),
        (
            """g (float[N,4,H,2] x) => (float[3,3,H,1,2] y)
            <float[4,1,1] k, int64[5] s = {3,4,0,1,2}, float[3,4,1,1,1] w> {
                t = Mul (x, k)
                r = Reshape (t, s)
                y = Conv (r, w)
            }""",
            "Reshape Conv",
        ),
        (
            """g (int64[2] i) => (float[2,3] y) <float[4,3] w = {1.07,2,3,4,5,6,7,8,9,10,11,12},
            float[3] c = {1.07,2,6}, float[3] var, float s = {0.001}, float[3] k, float[3] b> {
                t = Gather (w, i)
                d = Sub (t, c)
"""
            + SPELLED
            + "}",
            "Gather",
        ),
    ],
    ids=["DequantizeLinear of opset 13", "Resize by unknown scales", "Resize to unknown sizes",
         "Reshape that fits one batch only", "Gather from an axis of unknown size",
         "Squeeze of an axis of unknown size", "LayerNormalization over an axis of unknown size",
         "a bias that cancels", "Tile as often as an input says", "Slice to an end that is an input",
         "Reshape that fits one batch, beside a size that it keeps", "a table with elements that cancel"],
)  # fmt: skip
def test_what_can_be_folded_can_be_proven(text: str, left: str) -> None:
    proto = parsed(text)
    fill(proto.graph)
    new, ledger = folded(proto)
    assert ledger.dropped == ()
    assert sorted(op_types(new).elements()) == sorted(left.split())


def test_a_quantized_matrix_in_a_function_has_the_shape_of_its_codes() -> None:
    """No shapes are inferred there: the probe learns from what the DequantizeLinear reads."""
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21, "local" : 1]> g (float[2,3] x) => (float[2,1] y) { y = local.F (x) }
        <domain: "local", opset_import: ["" : 21]> F (x) => (y) {
            q = Constant <value = int8[3,1] {-5,1,-5}> ()
            s = Constant <value = float {0.06}> ()
            c = Constant <value = float {0.5}> ()
            k = Constant <value = float[1] {0.5}> ()
            w = DequantizeLinear (q, s)
            m = Gemm (x, w, c)
            n = BatchNormalization (m, k, k, k, k)
            y = Dropout (n)
        }""")
    new, ledger = folded(proto)
    assert ledger.dropped == ()
    left = [node.op_type for node in new.functions[0].node if node.op_type != "Constant"]
    assert left == ["DequantizeLinear", "Gemm"]


def test_a_scale_that_leaves_the_size_as_it_is_still_mixes_cells() -> None:
    proto = parsed("""g (float[1,3,4,5] x) => (float[1,3,4,5] y) <float[3,3,1,1] w, float[4,1] k,
    float[4] f = {1,1,1.2,1}> {
        c = Conv (x, w)
        r = Resize <mode = "linear"> (c, , f)
        y = Mul (r, k)
    }""")
    fill(proto.graph)
    new, ledger = folded(proto)
    assert ledger.dropped == ()
    assert says(next(iter(ledger)), "NF015")
    assert op_types(new) == op_types(proto)


def test_a_constant_of_equal_numbers_is_one_number() -> None:
    proto = parsed("""g (float[N,2,4,3] x) => (float[N,2,4,1] y) <float[3,1] w, float[2,1,1] k = {0,0}> {
        m = MatMul (x, w)
        y = Sub (k, m)
    }""")
    fill(proto.graph)
    new, ledger = folded(proto)
    assert ledger.dropped == ()
    assert op_types(new) == {"MatMul": 1}
    assert_same(proto, new)


@pytest.mark.parametrize(
    ("opset", "body"),
    [
        (12, "u = Unsqueeze <axes = [-5]> (c)  q = Squeeze <axes = [-5]> (u)"),
        (12, "u = Unsqueeze <axes = [0]> (c)  q = Squeeze <axes = [-5]> (u)"),
        (10, "f = Constant <value = float[4] {1,1,2,3}> ()  q = Resize (c, f)"),
    ],
    ids=["Unsqueeze", "Squeeze", "Resize"],
)
def test_what_older_opsets_spell_otherwise_is_proven(opset: int, body: str) -> None:
    proto = onnx.parser.parse_model(f"""<ir_version: 6, opset_import: ["" : {opset}]>
    g (float[N,3,4,5] x) => (float[N,3,A,B] y) <float[3,3,1,1] w, float[3,1,1] k> {{
        c = Conv (x, w)
        {body}
        y = Mul (q, k)
    }}""")
    fill(proto.graph)
    new, ledger = folded(proto)
    assert ledger.dropped == ()
    assert "Mul" not in op_types(new)


def test_axes_that_are_a_scalar_stand_for_one() -> None:
    """As torch's exporter writes them for attention whose heads share keys."""
    proto = parsed("""g (float[N,3,4,5] x) => (float[N,1,3,A,B] y) <float[3,3,1,1] w, float[3,1,1] k> {
        axis = Constant <value_int = 1> ()
        c = Conv (x, w)
        q = Unsqueeze (c, axis)
        y = Mul (q, k)
    }""")
    fill(proto.graph)
    new, ledger = folded(proto)
    assert ledger.dropped == ()
    assert "Mul" not in op_types(new)
    assert_same(proto, new)


def test_a_shift_that_varies_over_the_batch_of_a_matmul_is_proven() -> None:
    proto = parsed("""g (float[1,4,3,2] x) => (float[1,4,3,5] y) <float[2,5] w, float[4,1,1] k, float[4,1,1] t> {
        a = Sub (x, k)
        m = MatMul (a, w)
        y = Add (m, t)
    }""")
    fill(proto.graph)
    new, ledger = folded(proto)
    assert ledger.dropped == ()
    assert op_types(new) == {"MatMul": 1, "Add": 1}
    assert_same(proto, new)


def test_maps_that_compose_to_one_number_are_one_number() -> None:
    proto = parsed("""g (float[N,8,2] x) => (float[N,8,2] y) <float[2,2] w, float[8,1] a, float[2] zero = {0,0}> {
        h = Tanh (x)
        m = Mul (h, a)
        n = Mul (m, zero)
        y = MatMul (n, w)
    }""")
    fill(proto.graph)
    new, _ = folded(proto)
    assert op_types(new) == {"Tanh": 1, "MatMul": 1}
    assert without_ledger(folded(new)[0]) == without_ledger(new)


def test_a_scale_does_not_go_to_and_fro_between_a_norm_and_an_add() -> None:
    proto = parsed("""g (float[N,3,4] x) => (float[N,3,4] y) <float[4] s, float[3,1] k, float zero = {0}> {
        n = LayerNormalization (x, s)
        m = Mul (n, zero)
        y = Add (m, k)
    }""")
    fill(proto.graph)
    new, _ = folded(proto)
    assert op_types(new) == {"LayerNormalization": 1, "Add": 1}
    assert without_ledger(folded(new)[0]) == without_ledger(new)


def test_weights_stay_in_their_order_where_shapes_must_be_inferred_anew() -> None:
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
    g (float[N,8,8] x) => (float[N,64,8] y) <float[64,8,1] w, float[64,1] k, float[64] s, float[64] t> {
        c = Conv (x, w)
        d = Add (c, k)
        q = GroupNormalization <num_groups = 2> (d, s, t)
        y = Relu (q)
    }""")
    fill(proto.graph)
    new, _ = folded(proto)
    assert without_ledger(folded(new)[0]) == without_ledger(new)


def test_a_map_behind_a_sum_that_merges_is_seen_where_nothing_else_tells_its_rank() -> None:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (float[N,2,5] x) => (float[N,2,5] y) { y = local.F (x) }
    <opset_import: ["" : 17], domain: "local"> F (x) => (y) {
        v = Constant <value = float[2,2,1] {1,2,3,4}> ()
        w = Constant <value = float[2,2,1] {1,0,2,5}> ()
        s = Constant <value = float[2] {2,3}> ()
        t = Constant <value = float[2] {1,-1}> ()
        c = Conv (x, v)
        d = Conv (x, w)
        a = Add (c, d)
        y = BatchNormalization (a, s, t, t, s)
    }""")
    new, ledger = folded(proto)
    assert [entry.outcome for entry in ledger] == ["folded"]
    assert [node.op_type for node in new.functions[0].node if node.op_type != "Constant"] == ["Conv"]
    assert_same(proto, new)


def test_the_ledger_is_json_also_where_more_ulps_changed_than_a_float_can_count() -> None:
    proto = parsed("""g (double[N,2] x) => (double[N,2] y) <double[2,2] w, double zero = {0}> {
        m = MatMul (x, w)
        y = Mul (m, zero)
    }""")
    fill(proto.graph)
    _, ledger = folded(proto)
    json.loads(ledger.to_json(), parse_constant=pytest.fail)


def test_a_reshape_of_unknown_sizes_to_known_ones_is_proven() -> None:
    proto = parsed("""g (float[A,B] x) => (float[1,1,3] y) <float[1,3] w, float k = {2}, int64[3] s = {1,1,1}> {
        m = Mul (x, k)
        r = Reshape (m, s)
        y = MatMul (r, w)
    }""")
    fill(proto.graph)
    new, ledger = folded(proto)
    assert ledger.dropped == ()
    assert op_types(new) == {"Reshape": 1, "MatMul": 1}


@pytest.mark.parametrize("target", ["1,3,7,0", "1,3,7,0,1", "0,3,7,0", "1,3,-1,0"])
def test_a_reshape_that_copies_a_size_nobody_knows_is_proven(target: str) -> None:
    """With a 0 for what it copies, one size is left for the other: any other probe does not fit."""
    count = target.count(",") + 1
    proto = parsed(f"""g (float[1,2,T,L] x) => (float[1,3,C,D{",1" * (count - 4)}] y)
    <float[3,2,1,1] w, float[3{",1" * (count - 2)}] k, int64[{count}] s = {{{target}}}> {{
        c = Conv (x, w)
        r = Reshape (c, s)
        y = Mul (r, k)
    }}""")
    fill(proto.graph)
    new, ledger = folded(proto)
    assert ledger.dropped == ()
    changes_nothing = target == "1,3,-1,0"  # the size that it copies is copied, and what is left is left
    assert op_types(new) == {"Conv": 1} | ({} if changes_nothing else {"Reshape": 1})
    assert_same(proto, new)


@pytest.mark.parametrize(
    "body",
    [
        "h = MatMul (x, w)  r = Concat <axis = 1> (h, c)",
        "h = MatMul (x, w)  d = MatMul (v, w)  r = Concat <axis = 1> (h, d)",
        "h = MatMul (x, w)  r = Expand (h, e)",
    ],
    ids=["beside a constant", "beside what is known", "what is expanded"],
)
def test_an_axis_that_another_operand_tells_is_probed_at_that_size(body: str) -> None:
    proto = parsed(f"""g (float[A,B,4] x, float[1,2,4] v) => (float[C,D,4] y)
    <float[4,4] w, float k = {{2}}, float[1,2,4] c, int64[3] e = {{3,5,1}}> {{
        {body}
        y = Mul (r, k)
    }}""")
    fill(proto.graph)
    new, ledger = folded(proto)
    assert ledger.dropped == ()
    assert "Mul" not in op_types(new)


def test_a_map_is_seen_once_what_hid_its_rank_has_gone() -> None:
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
    g (float[N,2,5] x) => (float[N,2,5] y)
    <float[2] s, float[2,2,1] w, float[2,2,1] v, float k = {3}, float[2] g, float[2] b, float[2] m, float[2] var> {
        q = GroupNormalization <num_groups = 1> (x, s, s)
        c = Conv (q, w)
        d = Conv (q, v)
        a = Add (c, d)
        n = Mul (a, k)
        y = BatchNormalization (n, g, b, m, var)
    }""")
    fill(proto.graph)
    new, ledger = folded(proto)
    assert op_types(new) == {"GroupNormalization": 1, "Conv": 1}
    assert [entry.outcome for entry in ledger if entry.kind != "GroupNormalization"] == ["folded", "folded"]
    assert_same(proto, new)


def test_a_pool_over_unknown_channels_is_probed_with_those_of_its_map() -> None:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (float[N,2,5] x) => (float[N,3,1] y) { y = local.F (x) }
    <opset_import: ["" : 17], domain: "local"> F (x) => (y) {
        w = Constant <value = float[3,2,1] {1,2,3,4,5,6}> ()
        s = Constant <value = float[3] {2,3,4}> ()
        c = Conv (x, w)
        p = GlobalAveragePool (c)
        y = BatchNormalization (p, s, s, s, s)
    }""")
    new, ledger = folded(proto)
    assert [entry.outcome for entry in ledger] == ["folded"]
    assert ledger.dropped == ()
    assert_same(proto, new)


def test_channels_that_only_the_norm_knows_are_probed_by_its_size() -> None:
    """The constant of the Mul makes a leading axis, so what were the images are the channels."""
    proto = model(
        "float[N,3,2,2] x",
        "float[2,1,1,1,1] k, float[2] gamma, float[2] beta, float[2] mean, float[2] var = {1, 2}, float[3,2,1,1,1] w",
        "a = Relu (x)\n m = Mul (a, k)\n n = BatchNormalization (m, gamma, beta, mean, var)\n"
        'p = Pad <mode = "reflect", pads = [0,0,0,0,0,0,0,0,0,0]> (n)\n y = Conv (p, w)',
        opset=10,
    )
    new, ledger = folded(proto)
    assert not ledger.dropped
    assert "BatchNormalization" not in [node.op_type for node in new.graph.node]
    assert_same(proto, new)


@pytest.mark.parametrize(
    "body",
    ["a = MatMul (n, v)\n b = MatMul (n, v)\n y = Sub (a, b)", "y = Gemm <alpha = -1.0> (n, one, large)"],
    ids=["Sub", "Gemm"],
)
def test_what_cancels_in_a_difference_is_measured_by_what_was_taken_from_what(body: str) -> None:
    """Both sides are large, their difference is not, and float64 rounds the sides."""
    proto = model(
        "float[N,2] x",
        "float[2] gamma = {1.5, 0.5}, float[2] beta = {1e6, 1e6}, float[2] mean, float[2] var, float[2,2] v,"
        "float[2,2] one = {1, 0, 0, 1}, float[2] large = {1e6, 1e6}",
        f"n = BatchNormalization (x, gamma, beta, mean, var)\n {body}",
    )
    assert not folded(proto)[1].dropped


def test_what_changes_nothing_does_not_draw_a_bias_away_from_its_product() -> None:
    """As ELU is exported: Mul by 1. The Add behind the MatMul would travel through the Reshape to join it."""
    proto = model(
        "float[2,5,4] x",
        "float[4,6] w, float[6] b, int64[4] shape = {2, 5, 2, 3}, float one = {1}",
        "m = MatMul (x, w)\n a = Add (m, b)\n r = Reshape (a, shape)\n e = Mul (r, one)\n y = Sigmoid (e)",
    )
    new, _ = folded(proto)
    assert [node.op_type for node in new.graph.node] == ["MatMul", "Add", "Reshape", "Sigmoid"]
    assert_same(proto, new)


def test_what_nothing_reads_goes_before_it_is_folded_or_proven() -> None:
    proto = model(
        "float[2,4,8,6] x",
        "float[4] gamma, float[4] beta, float[4] mean, float[4] var, float k = {2}",
        "y = Relu (x)\n n = BatchNormalization (x, gamma, beta, mean, var)\n d = Div (n, x)\n z = Mul (d, k)",
    )
    new, ledger = folded(proto)
    assert [node.op_type for node in new.graph.node] == ["Relu"]
    assert not ledger.entries
    assert not ledger.dropped


def test_the_domain_of_onnx_has_two_names() -> None:
    proto = model("float[2,3,8,6] x", "float[4,3,1,1] w, float[4] gamma, float[4] beta, float[4] mean, float[4] var",
                  "c = Conv (x, w)\n y = BatchNormalization (c, gamma, beta, mean, var)", opset=17)  # fmt: skip
    proto.opset_import[0].domain = "ai.onnx"
    assert [node.op_type for node in folded(proto)[0].graph.node] == ["Conv"]


def test_an_operator_of_another_domain_is_no_norm() -> None:
    proto = model("float[2,3,8,6] x", "float[3] gamma", "n = Mul (x, gamma)\n y = Relu (n)")
    norm = proto.graph.node[0]
    norm.op_type, norm.domain = "BatchNormalization", "my.dom"
    proto.opset_import.add(domain="my.dom", version=1)
    assert not fold(proto).ledger.entries


BROKEN = {
    "parameters of another length": "c = Conv (x, w)\n y = BatchNormalization (c, g, b, m, var)",
    "a cycle": "a = Add (x, c)\n c = Relu (a)\n y = Relu (c)",
    "NF302": "a = Add (x, a)\n y = Relu (a)",
    "nobody makes what it reads": "y = Add (x, nothing)",
    "nobody makes its output": "z = Relu (x)",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_model_that_is_not_valid_is_bad_input(name: str, tmp_path: Path) -> None:
    weights = "float[4,3,1,1] w, float[3] g, float[4] b, float[4] m, float[4] var"
    proto = model("float[2,3,8,6] x", weights, BROKEN[name])
    onnx.save(proto, tmp_path / "m.onnx")
    for given in (proto, tmp_path / "m.onnx"):
        with pytest.raises(InputError, match=r"not valid ONNX|cannot be read"):
            fold(given)


def test_a_weight_with_too_few_bytes_is_bad_input() -> None:
    proto = model("float[2,3,8,6] x", "float[4,3,1,1] w, float[4] gamma, float[4] beta, float[4] mean, float[4] var",
                  "c = Conv (x, w)\n y = BatchNormalization (c, gamma, beta, mean, var)")  # fmt: skip
    weight = proto.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight), weight.name))
    weight.raw_data = weight.raw_data[:-8]
    with pytest.raises(InputError, match="not valid ONNX"):
        fold(proto)


def test_a_split_of_images_whose_sizes_may_be_overridden_lets_the_channels_pass() -> None:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[4,3,2,2] x, int64[2] sizes) => (float[A,2,2,2] y, float[B,2,2,2] z)
        <float[3] gamma = {-0.6, 0.35, 1}, float[3] beta = {1, 2, 3}, float[3] mean = {0, 1, 0},
         float[3] var = {1, 2, 3}, int64[2] sizes = {1, 3}, float[2,3,1,1] w = {1, 2, 3, 4, 5, 6}>
        { n = BatchNormalization (x, gamma, beta, mean, var)  a, b = Split <axis = 0> (n, sizes)
          y = Conv (a, w)  z = Conv (b, w) }""")
    new, ledger = folded(proto)
    assert not ledger.dropped
    assert "BatchNormalization" not in op_types(new)
    assert_same(proto, new)


RESIZED = 'r = Resize <coordinate_transformation_mode = "align_corners", mode = "cubic"> (c, roi, {})\n'


@pytest.mark.parametrize("inputs", ["float[2,3,8,6] x, float[0] roi", "float[2,3,8,6] x, float[8] roi"])
@pytest.mark.parametrize("target", ["scales", "none, sizes"])
def test_a_map_passes_a_resize_whatever_fills_the_crop_that_it_does_not_read(inputs: str, target: str) -> None:
    weights = f"float[4,3,1,1] w, {bn(4)}, float[4] scales = {{1, 1, 2, 1.2}}, int64[4] sizes = {{2, 4, 5, 7}}"
    weights += ", float[0] none"
    proto = model(inputs, weights, f"c = Conv (x, w)\n {RESIZED.format(target)} {norm('r', 'y')}", opset=13)
    new, ledger = folded(proto)
    assert not ledger.dropped
    assert "BatchNormalization" not in op_types(new)
    assert_same(proto, new)


def test_a_body_that_tells_no_types_is_cleaned_at_once() -> None:
    branch = "(float[2,4,8,6] {0}) {{ a{0} = Conv (x, w)  b{0} = Cast <to = 1> (a{0})  {0} = Exp (b{0}) }}"
    body = f"y = If (yes) <then_branch = t () => {branch.format('t')}, else_branch = e () => {branch.format('e')}>"
    proto = model("float[2,3,8,6] x, bool yes", "float[4,3,1,1] w", body, outputs="float[2,4,8,6] y")
    new, _ = folded(proto)
    assert op_types(new) == {"If": 1, "Conv": 2, "Exp": 2}
    assert without_ledger(folded(new)[0]) == without_ledger(new)


@pytest.mark.parametrize("spare", ["Relu", "Neg"])
def test_a_note_says_that_types_are_not_what_the_opset_lists_even_where_the_norm_folds(spare: str) -> None:
    proto = model("float[2,3,8,6] x", f"float[4,3,1,1] w, {bn(4)}", f"c = Conv (x, w)\n {norm('c', 'y')}")
    proto.graph.initializer.append(helper.make_tensor("odd", onnx.TensorProto.FLOAT8E4M3FN, [2], [1.0, 2.0]))
    proto.graph.node.append(helper.make_node(spare, ["odd"], ["odder"]))
    proto.graph.output.append(helper.make_tensor_value_info("odder", onnx.TensorProto.FLOAT8E4M3FN, [2]))
    ledger = fold(proto).ledger
    assert [entry.outcome for entry in ledger] == ["folded"]
    assert any(note.code == "NF414" for note in ledger.notes)


@pytest.mark.parametrize("bounds", ["1 -1 1", "100 0 -2", "-5 100 2", "7 -3 1", "-1 -100 -1"])
@pytest.mark.parametrize("opset", [9, 13])
def test_a_map_passes_a_slice_that_leaves_nothing_of_two_cells(bounds: str, opset: int) -> None:
    start, end, step = bounds.split()
    inputs = f"starts = {{{start}}}, int64[1] ends = {{{end}}}, int64[1] axes = {{2}}, int64[1] steps = {{{step}}}"
    cut = "s = Slice (c, starts, ends, axes, steps)\n"
    if opset < 10:
        if step != "1":
            pytest.skip("Slice had no steps before opset 10")
        cut = f"s = Slice <starts = [{start}], ends = [{end}], axes = [2]> (c)\n"
    weights = f"float[4,3,1,1] w, {bn(4)}, int64[1] {inputs}"
    proto = model("float[2,3,L,6] x", weights, f"c = Conv (x, w)\n {cut} {norm('s', 'y')}", opset=opset, ir_version=8)
    new, ledger = folded(proto)
    assert not ledger.dropped
    assert op_types(new) == {"Conv": 1, "Slice": 1}
    assert_same(proto, new)


IN_A_FUNCTION = """<ir_version: 9, opset_import: ["" : 17, "local" : 1]>
    g (float[2,3,8,6] x, bool yes) => (float[2,4,8,6] y) { y = local.F (x, yes) }
    <domain: "local", opset_import: ["" : 17]> F (a, c) => (d) {
      w = Constant <value = float[4,3,1,1] {1,2,3,4,5,6,7,8,9,10,11,12}> ()
      g = Constant <value = float[4] {0.5, -1, 2, 3}> ()  m = Constant <value = float[4] {1, 2, 3, 4}> ()
      d = If (c) <then_branch = t () => (float[2,4,8,6] p) { q = Conv (a, w)  p = BatchNormalization (q, g, m, m, m) },
                  else_branch = e () => (float[2,4,8,6] r) { r = Conv (a, w) }> }"""


def test_a_norm_in_a_body_of_a_function_is_folded_and_listed() -> None:
    proto = onnx.parser.parse_model(IN_A_FUNCTION)
    new, ledger = folded(proto)
    assert [entry.outcome for entry in ledger] == ["folded"]
    assert op_types(new) == {"If": 1, "Conv": 2, "F": 1}
    for yes in (True, False):
        feed = {"x": np.random.default_rng(3).standard_normal((2, 3, 8, 6)).astype(np.float32), "yes": np.array(yes)}
        want, got = (truth(onnx.inliner.inline_local_functions(p), feed)["y"] for p in (proto, new))
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_norm_that_nothing_reads_once_a_sequence_is_opened_is_said_to_be_gone() -> None:
    body = norm("x", "n") + "q = SequenceConstruct (n, x)\n e = SequenceAt (q, one)\n y = Relu (e)"
    proto = model("float[2,3,8,6] x", f"{bn(3)}, int64 one = {{1}}", body)
    new, ledger = folded(proto)
    assert op_types(new) == {"Relu": 1}
    assert any(note.code == "NF415" and "1 BatchNormalization" in note.text for note in ledger.notes)


def test_a_norm_in_a_body_that_nothing_reads_once_a_sequence_is_opened_is_said_to_be_gone() -> None:
    branches = ", ".join(
        f"{name}_branch = {name}_body () => (float[2,3,8,6] {name}_out) {{ {norm('x', f'{name}_out')} }}"
        for name in ("then", "else")
    )
    body = f"n = If (yes) <{branches}>\n q = SequenceConstruct (n, x)\n e = SequenceAt (q, one)\n y = Relu (e)"
    proto = model("float[2,3,8,6] x, bool yes", f"{bn(3)}, int64 one = {{1}}", body)
    new, ledger = folded(proto)
    assert op_types(new) == {"Relu": 1}
    assert any(note.code == "NF415" and "2 BatchNormalization" in note.text for note in ledger.notes)


def test_what_a_body_alone_reads_goes_with_the_sequence_that_it_was_read_for() -> None:
    body = (
        "c = Conv (x, w)\n y = If (yes) <then_branch = t () => (float[2,3,8,6] p) { q = SequenceConstruct (c, x)"
        "  e = SequenceAt (q, one)  p = Relu (e) }, else_branch = f () => (float[2,3,8,6] r) { r = Neg (x) }>"
    )
    proto = model("float[2,3,8,6] x, bool yes", "float[3,3,1,1] w, int64 one = {1}", body)
    new, _ = folded(proto)
    assert op_types(new) == {"If": 1, "Relu": 1, "Neg": 1}
    assert not {item.name for item in new.graph.initializer} & {"w", "one"}


def test_a_sequence_that_was_handed_on_is_opened_at_once() -> None:
    body = "q = SequenceConstruct (x, x)\n p = Identity (q)\n e = SequenceAt (p, one)\n c = Conv (e, w)\n"
    proto = model("float[2,3,8,6] x", f"float[4,3,1,1] w, {bn(4)}, int64 one = {{1}}", body + norm("c", "y"))
    new, _ = folded(proto)
    assert op_types(new) == {"Conv": 1}
    assert_same(proto, new)


def test_elements_of_a_sequence_are_not_told_to_be_of_one_size() -> None:
    body = (
        "c = Conv (x, w)\n" + norm("c", "n") + "q = SplitToSequence <axis = 0> (n, two)\n a = SequenceAt (q, zero)\n"
        "b = SequenceAt (q, one)\n s = Softmax (b)\n m = Mul (s, a)\n d = SequenceInsert (q, m)\n"
        "y = SequenceAt (d, two)"
    )
    weights = f"float[4,3,1,1] w, {bn(4)}, int64 zero = {{0}}, int64 one = {{1}}, int64 two = {{2}}"
    proto = model("float[3,3,8,6] x", weights, body, opset=17, ir_version=8)
    new, _ = folded(proto)
    assert op_types(new)["BatchNormalization"] == 0
    names = [dim.dim_param for info in new.graph.value_info for dim in dims_of(info.type)]
    assert not any(name.startswith("unk__") for name in names)
    feed = {"x": np.random.default_rng(0).standard_normal((3, 3, 8, 6)).astype(np.float32)}
    session = onnxruntime.InferenceSession(new.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, feed)[0], truth(proto, feed)["y"], rtol=1e-4, atol=1e-5)


def dims_of(kind: onnx.TypeProto) -> Iterable[onnx.TensorShapeProto.Dimension]:
    """The dimensions of a tensor, or of the elements of a sequence."""
    return (kind.sequence_type.elem_type if kind.HasField("sequence_type") else kind).tensor_type.shape.dim


@pytest.mark.parametrize("meeting", ["Concat <axis = 1> (n, a)", "SequenceConstruct (n, a)"])
def test_maps_of_tensors_of_other_sizes_that_are_read_together_are_no_partners(meeting: str) -> None:
    taken = "" if meeting.startswith("Concat") else "s = SequenceAt (t, one)\n"
    body = f"{norm('x', 'n')} c = Conv (z, v)\n a = Add (c, k)\n t = {meeting}\n {taken} y = MatMul (n, w)\n "
    body += "o = Relu (t)" if not taken else "o = Relu (s)"
    weights = f"{bn(3)}, float[9,3,1] v, float[9,1] k, float[5,5] w, int64 one = {{1}}"
    proto = model("float[2,3,5] x, float[2,3,5] z", weights, body, outputs="float[2,3,5] y, float[2,N,5] o")
    new, ledger = folded(proto)
    assert not ledger.dropped
    assert_same(proto, new)


@pytest.mark.parametrize(
    "bounds", ["starts, far, axes, step", "starts, end, axes", "start, ends, axes", "late, far, axes"]
)
def test_a_map_passes_a_slice_of_cells_whose_bounds_are_not_all_constant(bounds: str) -> None:
    held = "int64[1] starts = {3}, int64[1] ends = {-4}, int64[1] far = {9}, int64[1] axes = {2}, int64[1] late = {-2}"
    body = f"c = Conv (x, w)\n s = Slice (c, {bounds})\n {norm('s', 'y')}"
    proto = model(
        "float[2,3,L,6] x, int64[1] step, int64[1] start, int64[1] end", f"float[4,3,1,1] w, {bn(4)}, {held}", body
    )
    new, ledger = folded(proto)
    assert not ledger.dropped
    assert op_types(new) == {"Conv": 1, "Slice": 1}


@pytest.mark.parametrize("product", ["MatMul (c, w)", "Gemm (c, w)", "MatMul (w, c)"])
def test_a_map_over_rows_that_a_product_keeps_is_probed_with_as_many(product: str) -> None:
    axis = int(product == "MatMul (w, c)")
    sizes = ("[3,6]", "[3,6]", "[12,6]", "[3,12]") if axis else ("[6,3]", "[6,3]", "[3,4]", "[12,4]")
    body = f"a = Mul (x, k)\n b = Mul (z, l)\n c = Concat <axis = {axis}> (a, b)\n y = {product}"
    rows = "float[1,6] k = {1,2,3,4,5,6}, float[1,6] l = {6,5,4,3,2,1}" if axis else None
    rows = rows or "float[6,1] k = {1,2,3,4,5,6}, float[6,1] l = {6,5,4,3,2,1}"
    width = "float[4,3] w" if axis else "float[3,4] w"
    proto = model(f"float{sizes[0]} x, float{sizes[1]} z", f"{rows}, {width}", body)
    new, ledger = folded(proto)
    assert not ledger.dropped
    assert_same(proto, new)


def test_a_type_that_only_the_model_tells_is_taken_into_account_at_once() -> None:
    head = '<ir_version: 9, opset_import: ["" : 17, "my.own" : 1]> g (float[2,3,8,6] x) => (float[2,3,8,6] y)'
    body = "s = my.own.Bend (x)  n = Tanh (s)  c = Cast <to = 1> (n)  y = Relu (c)"
    proto = onnx.parser.parse_model(f"{head} <float[2,3,8,6] s> {{ {body} }}")
    assert op_types(folded(proto)[0]) == {"Bend": 1, "Tanh": 1, "Relu": 1}


def test_a_constant_that_was_let_in_may_be_edited_where_what_it_meets_has_no_known_size() -> None:
    numbers = ",".join(f"{(i * 37) % 19 / 10 - 0.9:.1f}" for i in range(96))
    proto = parsed(f"""g (float[N,3] x, float[M,3] y) => (float[8,4] z, float[2,4] u)
    <float[8,4,3] w = {{{numbers}}}, float[3] s = {{0.5,1,2}}, float[3] b = {{71,-130,170}}, float[4] k = {{1,2,3,4}},
    float[4] v = {{2,3,4,5}}, float[4,4] q = {{1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}},
    float[2,8] p = {{1,2,3,4,5,6,7,8,1,1,2,2,3,3,4,4}}> {{
        r = Concat <axis = 0> (x, y)
        a = PRelu (r, r)
        c = BatchNormalization (a, s, s, b, s)
        d = Sub (c, b)
        f = Mul (d, s)
        h = Add (f, b)
        e = Einsum <equation = "ab,axb->ax"> (h, w)
        m = Sub (e, k)
        n = Div (m, v)
        o = Mul (n, v)
        t = Add (o, k)
        z = MatMul (t, q)
        u = MatMul (p, n)
    }}""")
    new, _ = folded(proto)
    feeds = {"x": np.full((3, 3), 0.5, np.float32), "y": np.arange(15, dtype=np.float32).reshape(5, 3) - 7}
    now = truth(new, feeds)
    for name, was in truth(proto, feeds).items():
        assert np.max(np.abs(was - now[name])) <= 1e-5 * np.max(np.abs(was))
    assert op_types(new)["BatchNormalization"] == 0


def test_a_bias_of_integers_whose_axis_a_call_says_is_left() -> None:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (float[N,2] x) => (float[N,2] y) { y = local.f <axis = 0> (x) }
    <opset_import: ["" : 17], domain: "local"> f <axis> (x) => (y) {
        q = Constant <value = int32[2] {3,4}> ()
        s = Constant <value = float[2] {0.5,2}> ()
        b = DequantizeLinear <axis: int = @axis> (q, s)
        y = Add (x, b)
    }""")
    new, _ = folded(proto)
    assert op_types(new)["DequantizeLinear"] == 1


def test_a_constant_is_as_large_as_it_is_and_not_as_inference_says() -> None:
    """As torch's tracing export writes the token types of a BERT: ``b`` is constant, its table is read twice."""
    proto = parsed("""g (int64[2,5] ids) => (float[2,5,8] y, float[2,5,8] z)
    <float[9,8] w, float[9,8] t, int64[2,5] c, float[8] s, float[u,5,8] b> {
        a = Gather (w, ids)
        b = Gather (t, c)
        h = Add (a, b)
        y = Mul (h, s)
        z = Gather (t, ids)
    }""")
    fill(proto.graph)
    new, ledger = folded(proto)
    assert not ledger.dropped
    assert op_types(new) == {"Gather": 2, "Add": 1}
    feeds = {"ids": np.arange(10).reshape(2, 5) % 9}
    for name, was in truth(proto, feeds).items():
        np.testing.assert_allclose(truth(new, feeds)[name], was, rtol=1e-6, atol=1e-6)


def test_a_gather_from_unknown_channels_is_probed_with_those_of_its_map() -> None:
    """An operator that nobody knows hides how many there are; the probe had one more than the indices need."""
    proto = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17, "mine" : 1]>
    g (float[2,4,4] x) => (float[2,6,4] y, float[2,4,4] z)
    <float[4,4,1] v, float[6,4,1] w, {bn(4)}, int64[4] i = {{1,3,0,2}}> {{
        u = mine.Unknown (x)
        c = Conv (u, v)
        z = Relu (c)
        n = BatchNormalization (c, gamma, beta, mean, var)
        t = Gather <axis = 1> (n, i)
        y = Conv (t, w)
    }}""")
    fill(proto.graph)
    new, ledger = folded(proto)
    assert not ledger.dropped
    assert op_types(new)["BatchNormalization"] == 0
    for each in (proto, new):  # what is not known is nothing that the fold may touch
        each.graph.node[0].CopyFrom(helper.make_node("Identity", ["x"], ["u"]))
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 4)).astype(np.float32)}
    for name, was in truth(proto, feeds).items():
        np.testing.assert_allclose(truth(new, feeds)[name], was, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("given", ["", "float[3,1] c"])
def test_a_gemm_takes_a_shift_in_place_of_a_bias_that_it_does_not_read_where_that_is_constant(given: str) -> None:
    """With beta 0, C is not read: of a constant one a bias is made, one that a caller may give is left alone."""
    inputs = f"float[3,2] x{', ' * bool(given)}{given}"
    weights = "float[2,5] w" if given else "float[2,5] w, float[3,1] c"
    proto = parsed(f"""g ({inputs}) => (float[3,5] y) <{weights}, float k = {{2}}> {{
        v = Gemm <alpha = 0.5, beta = 0.0> (x, w, c)
        y = Sub (v, k)
    }}""")
    fill(proto.graph)
    new, ledger = folded(proto)
    assert not ledger.dropped
    assert op_types(new) == ({"Gemm": 1, "Sub": 1} if given else {"Gemm": 1})
    feeds = {"x": np.arange(6, dtype=np.float32).reshape(3, 2), "c": np.full((3, 1), np.float32(1e3))}
    feeds = {info.name: feeds[info.name] for info in proto.graph.input}
    np.testing.assert_allclose(truth(new, feeds)["y"], truth(proto, feeds)["y"], rtol=1e-6)


def test_a_weight_in_a_body_of_a_function_is_copied_under_a_name_of_its_own() -> None:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    g (float[2,3,4] x, bool p) => (float[2,3,4] y) { y = local.F (x, p) }
    <opset_import: ["" : 17], domain: "local"> F (x, p) => (y) {
        y = If (p) <then_branch = one () => (float[2,3,4] a)
            <float[3,3,1] w = {1,2,3,4,5,6,7,8,9}, float[3] b = {2,3,4}> {
                c = Conv (x, w, b)
                a = BatchNormalization (c, b, b, b, b)
            }, else_branch = two () => (float[2,3,4] e) { e = Relu (x) }>
    }""")
    new, ledger = folded(proto)
    assert [entry.outcome for entry in ledger] == ["folded"]
    for taken in (True, False):
        feeds = {"x": np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 11, "p": np.array(taken)}
        flat = [onnx.inliner.inline_local_functions(each) for each in (proto, new)]
        was, now = (truth(each, feeds)["y"] for each in flat)
        np.testing.assert_allclose(now, was, rtol=1e-6)


def test_a_gemm_is_probed_with_the_axes_that_its_c_has() -> None:
    """With transA a C of one number from a caller was probed as if there were three columns."""
    proto = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 17]>
    g (float[8,7] x, float[1] c, float[7,1] d, float[1,1] e) => (float[7,1] y, float[7,1] z, float[7,1] u)
    <float[8,1] w, float[8,1] v, float[8,1] s, float[8,1] t> {
        m = Neg (x)
        a = Mul (m, s)
        y = Gemm <transA = 1> (a, w, c)
        b = Mul (x, s)
        z = Gemm <transA = 1> (b, v, d)
        f = Mul (x, t)
        u = Gemm <transA = 1> (f, v, e)
    }""")
    fill(proto.graph)
    new, ledger = folded(proto)
    assert not ledger.dropped
    assert op_types(new) == {"Gemm": 3}
    rng = np.random.default_rng(0)
    shapes = {"x": (8, 7), "c": (1,), "d": (7, 1), "e": (1, 1)}
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    for name, was in truth(proto, feeds).items():
        np.testing.assert_allclose(truth(new, feeds)[name], was, rtol=1e-5, atol=1e-5)


def test_a_product_of_unknown_rank_with_a_quantized_matrix_is_probed_with_the_rank_of_its_result() -> None:
    """The body of a Scan says nothing of what it reads; the matrix has fewer axes than the result."""
    proto = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 19]>
    g (float[2] h, float[5,1,4,4,4] x) => (float[2] last, float[5,1,4,1,4] y)
    <int8[1,4] q = {1,9,-4,6}, float scale = {0.5}, float[4,1,1] k = {0.5,1.25,1.5,2}> {
        last, y = Scan <num_scan_inputs = 1, body = one (float[] state, float[] part) =>
            (float[2] n, float[1,4,1,4] t) {
            n = Neg (state)
            w = DequantizeLinear (q, scale)
            m = MatMul (w, part)
            o = Neg (m)
            t = Mul (k, o)
        }> (h, x)
    }""")
    fill(proto.graph)
    new, ledger = folded(proto)
    assert not ledger.dropped
    assert op_types(new)["Neg"] == 1  # of the state
    feeds = {"h": np.ones(2, np.float32), "x": np.random.default_rng(1).standard_normal((5, 1, 4, 4, 4), np.float32)}
    np.testing.assert_allclose(truth(new, feeds)["y"], truth(proto, feeds)["y"], rtol=1e-6, atol=1e-6)


STANDARDIZED = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1,3,4,4] x) => (float[1,2,4,4] y)
<float[1,6,1] w = {1,2,3,4,5,6}, float[6] s = {1,2,1,2,1,2}, float[6] b = {0,1,0,1,0,1}, float[6] m = {1,1,2,1,1,1},
 float[6] v = {1,2,3,4,5,6}, int64[4] to = {2,3,1,1}, float k = {0.5}> {
    n = BatchNormalization (w, s, b, m, v)
    r = NAME (n, to)
    c = Conv (x, r)
    y = Mul (c, k)
}"""


@pytest.mark.parametrize("is_local", [True, False])
def test_a_norm_of_weights_goes_with_them(is_local: bool) -> None:
    """Networks without norms standardize their weights by one: once the weights were edited, it was looked at again."""
    text = STANDARDIZED.replace("NAME", "local.Reshape" if is_local else "Reshape")
    if is_local:
        text = text.replace('"" : 17', '"" : 17, "local" : 1')
        text += '<domain: "local", opset_import: ["" : 17]> Reshape (a, d) => (e) { e = Reshape (a, d) }'
    proto = onnx.parser.parse_model(text)
    new, ledger = folded(proto)
    assert not ledger.dropped
    assert [entry.outcome for entry in ledger] == ["folded", "folded"]
    assert op_types(new) == {"Conv": 1}
    feeds = {"x": np.random.default_rng(0).standard_normal((1, 3, 4, 4), np.float32)}
    np.testing.assert_allclose(truth(new, feeds)["y"], truth(proto, feeds)["y"], rtol=1e-6, atol=1e-6)


def in_onnxruntime(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("opset", [9, 13, 14, 17])
def test_a_norm_of_weights_trains_in_no_version(opset: int) -> None:
    """ONNX's reference takes one of opset 9 to 13 for training, whatever it has to give."""
    proto = onnx.parser.parse_model(STANDARDIZED.replace("NAME", "Reshape").replace('"" : 17', f'"" : {opset}'))
    new, _ = folded(proto)
    assert op_types(new) == {"Conv": 1}
    weights = np.arange(1.0, 7.0)
    scale, shift, mean, variance = [1, 2, 1, 2, 1, 2], [0, 1, 0, 1, 0, 1], [1, 1, 2, 1, 1, 1], np.arange(1.0, 7.0)
    normal = (weights - mean) / np.sqrt(variance + 1e-5) * scale + shift
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 4), np.float32)
    want = 0.5 * np.einsum("oi,nihw->nohw", normal.reshape(2, 3), x.astype(np.float64))
    np.testing.assert_allclose(in_onnxruntime(new, x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("opset", "made"), [(11, "Softmax <axis=1> (w)"), (9, "LogSoftmax <axis=1> (w)"), (12, "Hardmax <axis=1> (w)")]
)
def test_a_constant_of_which_the_reference_has_another_version_is_none(opset: int, made: str) -> None:
    text = f"""<ir_version: 7, opset_import: ["" : {opset}]> g (float[1,3,4,4] x) => (float[1,2,4,4] y)
        <float[2,3,1,1] w = {{1,2,3,4,5,6}}, float k = {{0.5}}> {{ r = {made} c = Conv (x, r) y = Mul (c, k) }}"""
    proto = onnx.parser.parse_model(text)
    new, _ = folded(proto)
    x = np.random.default_rng(0).standard_normal((1, 3, 4, 4), np.float32)
    np.testing.assert_allclose(in_onnxruntime(new, x), in_onnxruntime(proto, x), rtol=1e-5, atol=1e-6)


MADE = {
    "Split": ("a, r = Split <axis = 1> (wide)", (7, 11, 13)),
    "Split by sizes": ("r, a = Split <axis = 0, split = [3, 1]> (tall)", (7, 11)),
    "Split, uneven": ("r, a = Split <axis = 0, num_outputs = 2> (long)", (18, 21)),
    "Gemm": ("r = Gemm <transA = 1, alpha = 0.5, beta = 2.0> (p, q, b)", (7, 9, 11, 13, 21)),
    "Einsum": ('r = Einsum <equation = "ij,ik->jk"> (p, q)', (12, 21)),
    "InstanceNormalization": ("n = InstanceNormalization (cells, s, s) r = Reshape (n, to)", (7, 9, 21)),
    "LayerNormalization": ("r = LayerNormalization <axis = 1> (small, b, b)", (17, 21)),
    "BatchNormalization": ("n = BatchNormalization (cells, s, s, s, s) r = Reshape (n, to)", (9, 13, 14, 15, 21)),
}


@pytest.mark.parametrize(("body", "opset"), [(body, opset) for body, opsets in MADE.values() for opset in opsets])
def test_a_weight_that_is_made_of_constants_is_what_onnxruntime_makes_of_it(body: str, opset: int) -> None:
    text = f"""<ir_version: 7, opset_import: ["" : {opset}]> g (float[4,3] x) => (float[4,2] y)
        <float[2] b = {{0.5, 2}}, float[3] s = {{1, 2, 3}}, float[2] k = {{0.5, 3}}, int64[2] to = {{3, 2}}>
        {{ {body} c = MatMul (x, r) y = Mul (c, k) }}"""
    proto, random = onnx.parser.parse_model(text), np.random.default_rng(0)
    shapes = {
        "wide": (3, 4),
        "tall": (4, 2),
        "long": (5, 2),
        "p": (2, 3),
        "q": (2, 2),
        "cells": (1, 3, 2),
        "small": (3, 2),
    }
    read = {name for node in proto.graph.node for name in node.input}
    for name in shapes.keys() & read:
        array = random.standard_normal(shapes[name]).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    new, _ = folded(proto)
    assert op_types(new) == {"MatMul": 1}
    x = random.standard_normal((4, 3)).astype(np.float32)
    np.testing.assert_allclose(in_onnxruntime(new, x), in_onnxruntime(proto, x), rtol=1e-5, atol=1e-5)


LARGE = {
    "LayerNormalization": "n = LayerNormalization (large, ones)",
    "InstanceNormalization": "n = InstanceNormalization (large, ones, b)",
    "BatchNormalization": "n = BatchNormalization (large, s, b, m, v)",
    "Gemm": "f = Reshape (large, flat) n = Gemm <transA = 1, alpha = 0.0001> (f, f)",
}


@pytest.mark.parametrize("body", LARGE.values(), ids=LARGE)
def test_a_norm_of_constants_in_16_bits_does_not_overflow_on_the_way(body: str) -> None:
    """The square of 600 is no float16, and it is none that a runtime rounds to one."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float16[n,m] x) => (float16[n,2] y)
        <int64[2] flat = {{1, 8}}, int64[2] to = {{-1, 2}}>
        {{ {body} w = Reshape (n, to) c = MatMul (x, w) y = Mul (c, k) }}"""
    given = {
        "large": [[[600, -600, 250, -280], [500, 300, -700, 90]]], "ones": np.ones(4 if "Layer" in body else 2),
        "s": [400, 300], "b": [0, 1], "m": [-500, 900], "v": [60000, 20000], "k": [0.5, 2],
    }  # fmt: skip
    proto = onnx.parser.parse_model(text)
    for name in given.keys() & {name for node in proto.graph.node for name in node.input}:
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(given[name], np.float16), name))
    new, _ = folded(proto)
    assert op_types(new) == {"MatMul": 1}
    x = np.eye(32 if "Gemm" in body else 4, dtype=np.float16)
    np.testing.assert_allclose(in_onnxruntime(new, x), in_onnxruntime(proto, x), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("number", [np.inf, np.nan, 3e38])
def test_a_norm_of_what_is_not_finite_or_becomes_so_is_left_to_the_runtime(number: float) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[1,1,4] x) => (float[1,1,4] y)
        <float[1] s = {9}, float[1] b = {-9e30}, float[1] v = {1}> {
        n = BatchNormalization (k, s, b, b, v) a = Add (x, n) y = Mul (a, s) }"""
    proto = onnx.parser.parse_model(text)
    constant = np.array([[[number, 1, 2, 3]]], np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(constant, "k"))
    new, _ = folded(proto)
    assert op_types(new)["BatchNormalization"] == 1
    x = np.zeros((1, 1, 4), np.float32)
    np.testing.assert_allclose(in_onnxruntime(new, x), in_onnxruntime(proto, x), rtol=1e-5)


@pytest.mark.parametrize("kept", ["the type", "nothing"])
def test_a_mistake_of_ours_is_not_blamed_on_an_output_without_a_shape(
    kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checker takes no such output; every runtime does, and so does a fold."""
    proto = model("float[2,3,8,6] x", "float[4,3,1,1] w, float[4] g", "c = Conv (x, w)\n y = Add (c, c)")
    kind = proto.graph.output[0].type
    kind.tensor_type.ClearField("shape") if kept == "the type" else proto.graph.output[0].ClearField("type")
    onnx.save(proto, tmp_path / "m.onnx")
    assert fold(proto).model is not None

    def fails(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Reducer, "reduce", fails)
    for given in (proto, tmp_path / "m.onnx", ir.from_proto(proto)):
        with pytest.raises(ZeroDivisionError):
            fold(given)
    proto.graph.node[0].input[1] = "nowhere"
    with pytest.raises(InputError, match="not valid ONNX"):
        fold(proto)
