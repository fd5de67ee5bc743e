"""Names on graphs that torch writes rarely: functions, repeated calls, scopes that are no modules."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes
import pytest

from normdeploy.export.labels import label_nodes, merge_tied, name_values, own_outputs
from normdeploy.export.shapes import infer_shapes
from normdeploy.graph import MODULE_KEY

SCOPES = "pkg.torch.onnx.name_scopes"


def model_of(text: str) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 20, "local" : 1]>\n{text}')


@pytest.mark.parametrize(
    ("scopes", "name"),
    [
        (["", "module", "module.layers.0", "conv2d"], "layers.0"),
        (["", "module", "module.layers.0@1", "conv2d_1"], "layers.0"),
        (["", "module", "add"], ""),
        (["_empty_nn_module_stack_from_metadata_hook", "sym_size"], ""),
        (["mul_2"], ""),
        (["", "module", "module.gone", "module.layers.0.deep", "mul"], ""),
    ],
)
def test_a_node_is_named_by_its_innermost_module(scopes: list[str], name: str) -> None:
    model = model_of("agraph (float[2] x) => (float[2] y) { y = Relu(x) }")
    (node,) = model.graph
    node.metadata_props.update({SCOPES: repr(scopes), "pkg.torch.onnx.stack_trace": 'File "/secret.py"'})
    label_nodes(model, {"", "layers.0"})
    assert node.metadata_props == {MODULE_KEY: name}


def test_the_body_of_a_function_gets_the_name_of_who_calls_it() -> None:
    model = model_of(
        """agraph (float[2] x) => (float[2] y) { h = local.twice(x)  y = local.twice(h) }
        <domain: "local", opset_import: ["" : 20]> twice (a) => (b) { b = Add(a, a) }"""
    )
    for node, scope in zip(model.graph, ("module.first", "module.second"), strict=True):
        node.metadata_props[SCOPES] = repr(["", "module", scope, "call"])
    label_nodes(model, {"", "first", "second"})
    passes.InlinePass()(model)
    assert [(n.op_type, n.metadata_props[MODULE_KEY]) for n in model.graph] == [("Add", "first"), ("Add", "second")]


def test_nodes_inside_a_body_take_the_name_of_the_node_around_it() -> None:
    model = model_of(
        """agraph (bool c, float[2] x) => (float[2] y) {
            y = If (c) <then_branch = t () => (float[2] a) { a = Relu(x) },
                        else_branch = e () => (float[2] b) { b = Neg(x) }>
        }"""
    )
    next(iter(model.graph)).metadata_props[SCOPES] = repr(["", "module", "module.gate", "cond"])
    label_nodes(model, {"", "gate"})
    names = {n.op_type: n.metadata_props[MODULE_KEY] for n in ir.traversal.RecursiveGraphIterator(model.graph)}
    assert names == {"If": "gate", "Relu": "gate", "Neg": "gate"}


def test_outputs_become_values_of_their_own() -> None:
    model = model_of("agraph (float[2] x) => (float[2] h, float[2] h, float[2] x) { h = Relu(x) }")
    own_outputs(model.graph)
    name_values(model.graph, ["x"], ["h", "again", "x_out"])
    assert [value.name for value in model.graph.outputs] == ["h", "again", "x_out"]
    assert len(set(model.graph.outputs)) == 3
    assert all(value.producer() is not None for value in model.graph.outputs)
    passes.CheckerPass(full_check=True)(model)


def test_names_move_to_those_who_asked_even_where_they_are_taken_crosswise() -> None:
    model = model_of(
        "agraph (float[2] a, float[2] b) => (float[2] c, float[2] d) { c = Add(a, b)  e = Neg(c)  d = Neg(e) }"
    )
    name_values(model.graph, ["b", "a"], ["e", "c"])
    inner = next(iter(model.graph)).outputs[0].uses()[0].node.outputs[0]
    assert [v.name for v in model.graph.inputs] == ["b", "a"]
    assert [v.name for v in model.graph.outputs] == ["e", "c"]
    assert inner.name not in {"a", "b", "c", "e"}
    passes.CheckerPass(full_check=True)(model)


def test_a_constant_gives_way_to_a_parameter_of_its_name() -> None:
    model = model_of(
        """agraph (float[2] x) => (float[2] y) <float[2] val_0 = {1, 2}, float[2] p = {3, 4}>
        { h = Mul(x, val_0)  y = Mul(h, p) }"""
    )
    initializers = model.graph.initializers
    parameter, constant = initializers["p"], initializers["val_0"]
    parameter.name = "module.val_0"
    del initializers["val_0"]
    initializers.add(constant)  # behind the parameter, as what cleaning makes is
    name_values(model.graph, ["x"], ["y"])
    assert (parameter.name, constant.name) == ("val_0", "val_0_1")
    assert dict(initializers) == {"val_0": parameter, "val_0_1": constant}


def test_a_size_that_onnx_only_numbers_has_no_name() -> None:
    """onnx calls it unk__0, and calls another one that on the next run: two sizes would pass for one."""
    model = model_of("agraph (float[N,3] x) => (float[N,M] y) { i = NonZero(x)  y = Cast <to: int = 1> (i) }")
    infer_shapes(model)
    node = next(iter(model.graph))
    assert [str(dim) for dim in node.outputs[0].shape] == ["2", "None"]
    assert [str(dim) for dim in model.graph.outputs[0].shape] == ["N", "M"]


def test_equal_weights_that_are_two_tensors_are_not_merged() -> None:
    model = model_of(
        """agraph (float[2] x) => (float[2] y) <float[2] v = {1, 2}, float[2] w = {1, 2}>
        { h = Mul(x, v)  y = Mul(h, w) }"""
    )
    merge_tied(model)
    assert set(model.graph.initializers) == {"v", "w"}
