"""The probes of what slides a window are small, and yet see each cell of the kernel and each pad: planted mistakes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from harness import assert_same, bn, folded, model, norm, op_types

from normdeploy.fold import fold
from normdeploy.fold.affine import AffineMap, Array
from normdeploy.fold.graph.edits import ONE, Edit
from normdeploy.fold.operators import linear, moved
from normdeploy.fold.operators.rows import Maps, only_first, vector
from normdeploy.fold.operators.table import TABLE
from normdeploy.fold.plan import Step
from normdeploy.fold.proof import commute

Patch = pytest.MonkeyPatch


def is_wrong_unless_proven(proto: onnx.ModelProto) -> bool:
    """Whether what is planted shows in the result where nothing is validated; and where it is, it must not."""
    new, ledger = folded(proto)
    assert_same(proto, new)
    try:
        assert_same(proto, folded(proto, validate=False)[0])
    except AssertionError:
        assert ledger.dropped
        return True
    return False


def shift_into(operator: str, kernel: int, stride: int, size: int, padding: str) -> onnx.ModelProto:
    """A norm in front of a convolution over one axis."""
    weight = f"float[3,2,{kernel}]" if operator == "Conv" else f"float[2,3,{kernel}]"
    attributes = f"<strides = [{stride}], {padding}>"
    return model(f"float[1,2,{size}] x", f"{weight} w, {bn(2)}", norm("x", "t") + f"y = {operator} {attributes} (t, w)")


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "padding"),
    [
        *((k, s, n, f"pads = [0, {p}]") for k, s, p, n in [
            (4, 4, 2, 30), (4, 4, 1, 31), (3, 3, 1, 8), (8, 8, 4, 28), (14, 14, 6, 50), (16, 16, 8, 40), (10, 5, 3, 32),
            (3, 2, 1, 10), (7, 4, 3, 32), (2, 3, 1, 7), (3, 1, 1, 9),
        ]),
        *((k, s, n, f"pads = [{p}, 0]") for k, s, p, n in [(2, 3, 1, 6), (3, 4, 2, 11), (3, 1, 2, 9), (5, 2, 4, 9)]),
        *((k, s, n, f'auto_pad = "{way}"') for k, s, n in [(3, 4, 17), (3, 2, 8), (4, 1, 9), (2, 2, 7)]
          for way in ("SAME_UPPER", "SAME_LOWER")),
    ],
)  # fmt: skip
def test_a_shift_into_any_pad_is_seen(kernel: int, stride: int, size: int, padding: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(linear, "_require_no_padding", lambda *_: None)
    assert is_wrong_unless_proven(shift_into("Conv", kernel, stride, size, padding))


@pytest.mark.parametrize(
    ("kernel", "stride", "size", "padding"),
    [(1, 2, 6, "pads = [0, 2]"), (1, 2, 6, "pads = [2, 0]"), (3, 1, 7, "pads = [1, 1]"), (3, 2, 7, "pads = [2, 2]"),
     (2, 3, 6, "pads = [0, 0]")],
)  # fmt: skip
def test_a_shift_where_a_transposed_kernel_is_cut_is_seen(
    kernel: int, stride: int, size: int, padding: str, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(linear, "_require_full_kernel", lambda *_: None)
    assert is_wrong_unless_proven(shift_into("ConvTranspose", kernel, stride, size, padding))


WINDOWS = [
    (kernel, stride, dilation, pads)
    for kernel, stride, dilation in itertools.product((1, 2, 3), (1, 2, 3, 4), (1, 2))
    for pads in ([0, 0], [1, 0], [0, 1], [1, 1])
    if max(pads) <= dilation * (kernel - 1)
]


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_a_mistake_in_any_element_of_a_kernel_is_seen(operator: str, monkeypatch: Patch) -> None:
    scaled, element = Edit.scaled, 0

    def with_a_mistake(self: Edit, *, left: Array = ONE, right: Array = ONE) -> Edit:
        edit = scaled(self, left=left, right=right)
        if self.original is None or len(edit.shape) != 3:
            return edit
        factor = np.ones(edit.shape)
        factor.flat[element] = 3.0
        return scaled(edit, left=factor)

    monkeypatch.setattr(Edit, "scaled", with_a_mistake)
    for kernel, stride, dilation, pads in WINDOWS:
        attributes = f"<strides = [{stride}], dilations = [{dilation}], pads = [{pads[0]}, {pads[1]}]>"
        body = f"c = {operator} {attributes} (x, w)\n" + norm("c", "y")
        proto = model("float[1,2,13] x", f"float[2,2,{kernel}] w, {bn(2)}", body)
        for chosen in range(4 * kernel):
            element = chosen
            assert is_wrong_unless_proven(proto), (kernel, stride, dilation, pads, element)


@pytest.mark.parametrize("indices", ["int64[3]", "int64[2,3]"])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_mistake_in_any_row_of_a_table_is_seen(axis: int, indices: str, monkeypatch: Patch) -> None:
    scaled, row = Edit.scaled, 0

    def with_a_mistake(self: Edit, *, left: Array = ONE, right: Array = ONE) -> Edit:
        edit = scaled(self, left=left, right=right)
        factor = np.ones(edit.shape)
        factor[(slice(None),) * axis + (row,)] = 3.0
        return scaled(edit, left=factor)

    monkeypatch.setattr(Edit, "scaled", with_a_mistake)
    for chosen in range(4):
        row = chosen
        proto = model(f"{indices} i", "float[4,4] w, float k", f"t = Gather <axis = {axis}> (w, i)\ny = Mul (t, k)")
        new, ledger = folded(proto)
        assert ledger.dropped, row
        assert [node.op_type for node in new.graph.node] == ["Gather", "Mul"]


def test_a_large_table_is_probed_from_end_to_end(monkeypatch: Patch) -> None:
    monkeypatch.setattr(moved, "LARGEST_PROBE", 12)
    asked: list[list[int]] = []
    run = commute.run

    def watched(op_type: str, attributes: object, inputs: Sequence[np.ndarray | None], *rest: int) -> list[Array]:
        if op_type == "Gather" and inputs[1] is not None:
            asked.append(inputs[1].ravel().tolist())
        return run(op_type, attributes, inputs, *rest)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr(commute, "run", watched)
    proto = model("int64[3] i", "float[10,4] w, float k", "t = Gather (w, i)\ny = Mul (t, k)")
    new, _ = folded(proto)
    assert [node.op_type for node in new.graph.node] == ["Gather"]
    assert asked
    assert all(rows == [0, 4, 9] for rows in asked)


@pytest.mark.parametrize("pads", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_no_probe_comes_out_empty(kernel: int, stride: int, pads: int, monkeypatch: Patch) -> None:
    def wrong(step: Step, outs: Maps) -> dict[int, object]:
        _, shift = vector(step, only_first(step, outs), axis=1)
        step.scale_weight(1, left=np.asarray(7.0))
        linear.scale_bias(step, np.ones(()), np.broadcast_to(shift * 3, (3,)))
        return {}

    monkeypatch.setitem(TABLE, "ConvTranspose", replace(TABLE["ConvTranspose"], up=wrong))
    attributes = f"<strides = [{stride}], pads = [{pads}, {pads}]>"
    body = f"c = ConvTranspose {attributes} (x, w)\n" + norm("c", "y")
    assert is_wrong_unless_proven(model("float[1,2,12] x", f"float[2,3,{kernel}] w, {bn(3)}", body))


@pytest.mark.parametrize(("operator", "ceil_mode"), [("MaxPool", 0), ("AveragePool", 0), ("AveragePool", 1)])
def test_maps_pass_pools_at_every_stride(operator: str, ceil_mode: int) -> None:
    for kernel, stride in itertools.product((1, 2, 3), (1, 2, 3)):
        attributes = f"<kernel_shape = [{kernel}], strides = [{stride}], ceil_mode = {ceil_mode}>"
        body = f"c = Conv (x, w)\np = {operator} {attributes} (c)\ny = Mul (p, pos)"
        proto = model("float[1,2,13] x", "float[3,2,2] w, float[3,1] pos", body)
        new, ledger = folded(proto)
        assert not ledger.dropped
        assert [node.op_type for node in new.graph.node] == ["Conv", operator]
        assert_same(proto, new)


def test_a_lazy_weight_is_evaluated_a_few_times_and_not_once_a_part() -> None:
    asked = 0

    def weight() -> ir.Tensor:
        nonlocal asked
        asked += 1
        return ir.tensor(np.ones((600, 600), np.float32), name="w")

    given = ir.from_proto(
        model("float[4,600] x", "float[600,600] w, float[600] k", "m = MatMul (x, w)\ny = Mul (m, k)")
    )
    lazy = ir.LazyTensor(weight, dtype=ir.DataType.FLOAT, shape=ir.Shape([600, 600]), name="w")
    given.graph.initializers["w"].const_value = lazy
    result = fold(given)
    assert [node.op_type for node in result.model.graph] == ["MatMul"]
    ir.to_proto(result.model)
    assert asked < 10


@pytest.mark.parametrize(
    ("inputs", "weights", "body"),
    [
        ("float[2,4] x", "float[4,0] w, float[0] k", "m = MatMul (x, w)\ny = Mul (m, k)"),
        ("float[1,4,5] x", f"float[0,4,3] w, {bn(0)}", "c = Conv (x, w)\n" + norm("c", "y")),
    ],
    ids=["no columns", "no channels"],
)
def test_empty_constants_are_left(inputs: str, weights: str, body: str) -> None:
    proto = model(inputs, weights, body)
    new, ledger = folded(proto)
    assert not ledger.dropped
    assert [node.op_type for node in new.graph.node] == [node.op_type for node in proto.graph.node]


def test_a_product_that_sums_nothing_is_folded() -> None:
    proto = model("float[2,0] x", "float[0,3] w, float[3] k", "m = MatMul (x, w)\ny = Mul (m, k)")
    new, ledger = folded(proto)
    assert not ledger.dropped
    assert [node.op_type for node in new.graph.node] == ["MatMul"]
    assert_same(proto, new)


# -- long axes are probed short --------------------------------------------------------------------

LONG = {
    "Transpose": ("float[2,48,64] x", "t = Transpose <perm = [0, 2, 1]> (m)\ny = MatMul (w, t)"),
    "Reshape in front": (
        "float[2,48,64] x",
        "a = Constant <value_ints = [2, 48, 4, 16]> ()\nb = Constant <value_ints = [0, -1, 64]> ()\n"
        "s = Reshape (m, a)\nt = Reshape (s, b)\ny = MatMul (t, v)",
    ),
    "Reshape behind": (
        "float[2,64,48] x",
        "a = Constant <value_ints = [2, 4, 16, 48]> ()\nb = Constant <value_ints = [2, 64, 48]> ()\n"
        "s = Reshape (m, a)\nt = Reshape (s, b)\ny = MatMul (w, t)",
    ),
}  # fmt: skip
"""The data, and what stands between a scale over its axis of 64 and the weight that takes it."""


def long_axes(name: str) -> onnx.ModelProto:
    given, body = LONG[name]
    over = "64" if given.startswith("float[2,48") else "64,1"
    return model(given, f"float[{over}] k, float[5,64] w, float[64,5] v", f"m = Mul (x, k)\n{body}")


@pytest.mark.parametrize("name", LONG)
def test_a_long_axis_that_stays_by_itself_is_probed_short(name: str, monkeypatch: Patch) -> None:
    seen: list[tuple[int, ...]] = []
    normal = commute.normal

    def noted(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
        seen.append(shape)
        return normal(random, shape)

    monkeypatch.setattr(commute, "normal", noted)
    proto = long_axes(name)
    new, ledger = folded(proto)
    assert_same(proto, new)
    assert "Mul" not in op_types(new)
    assert not ledger.dropped
    assert seen
    assert not any(48 in shape for shape in seen)


@pytest.mark.parametrize("name", LONG)
def test_a_map_that_passes_in_reverse_is_seen_beside_a_long_axis(name: str, monkeypatch: Patch) -> None:
    op = name.split()[0]
    down = TABLE[op].down
    assert down is not None

    def reversed_at_first(step: Step, ins: Maps) -> list[AffineMap | None]:
        wrong = step.data().producer() in step.plan.remainders  # right behind the norm
        return [m.moved(np.flip) if wrong and m is not None else m for m in down(step, ins)]

    monkeypatch.setitem(TABLE, op, replace(TABLE[op], down=reversed_at_first))
    assert is_wrong_unless_proven(long_axes(name))


@pytest.mark.parametrize("shape", ["[2, 64, 48]", "[2, 32, 96]", "[48, 2, 64]"])
def test_a_long_axis_that_is_mixed_with_another_is_probed_as_it_is(shape: str) -> None:
    body = f"s = Constant <value_ints = {shape}> ()\nt = Reshape (m, s)\ny = Relu (t)"
    proto = model("float[2,48,64] x", "float[64] posk", f"m = Mul (x, posk)\n{body}")
    new, _ = folded(proto)
    assert_same(proto, new)


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_a_bias_of_unknown_rank_is_a_vector(operator: str) -> None:
    """It was drawn with the rank of the data, which no output fits: the plan was dropped."""
    proto = model("float[1,3,4] x, float[3] e", "float[3,3,1] w, float[3,1] k",
                  f"t = Mul (x, k)\n c = Identity (e)\n y = {operator} (t, w, c)")  # fmt: skip
    (maker,) = (node for node in proto.graph.node if node.op_type == "Identity")
    maker.domain, maker.op_type = "of.nobody", "Bias"
    proto.opset_import.append(onnx.helper.make_opsetid("of.nobody", 1))
    del proto.graph.value_info[:]
    new, ledger = folded(proto)
    assert not ledger.dropped
    assert [node.op_type for node in new.graph.node] == ["Bias", operator]
    arrays = [{t.name: onnx.numpy_helper.to_array(t) for t in each.graph.initializer} for each in (proto, new)]
    inner = (1, 3, 1) if operator == "Conv" else (3, 1, 1)
    np.testing.assert_allclose(arrays[1]["w"], arrays[0]["w"] * arrays[0]["k"].reshape(inner), rtol=1e-6)
