"""Planted mistakes: each makes a wrong model where nothing proves the plans, and is dropped where they are proven."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from harness import assert_same, bn, folded, initializers, model, norm
from onnx import numpy_helper

from normdeploy.errors import InputError, NormdeployError
from normdeploy.fold import fold, merge, weights
from normdeploy.fold.affine import AffineMap
from normdeploy.fold.graph.edits import Edit
from normdeploy.fold.graph.reader import FAILED_PROOFS, View
from normdeploy.fold.operators import attention, einsum, linear, pieces, recurrent, sampling
from normdeploy.fold.operators.rows import Maps, Row, both_ways, only_first, unchanged, unchanged_down, vector
from normdeploy.fold.operators.table import TABLE
from normdeploy.fold.plan import Step
from normdeploy.fold.proof.commute import _Square

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Plant:
    """A graph, and the mistake that ruins it."""

    name: str
    proto: onnx.ModelProto
    plant: Callable[[Patch], None]


# -- wrong maps ------------------------------------------------------------------------------------


def parameters(view: View, node: ir.Node) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(view.array(node.inputs[i]), np.float64) for i in (1, 2, 3, 4))


def rule(op: str, **changes: object) -> Callable[[Patch], None]:
    """Let the row of ``op`` have other rules."""
    return lambda patch: patch.setitem(TABLE, op, replace(TABLE[op], **changes))  # type: ignore[arg-type]


def reads(formula: Callable[..., tuple[np.ndarray, np.ndarray]]) -> Callable[[Patch], None]:
    """Let BatchNormalization be read by ``formula(gamma, beta, mean, var, eps) -> scale, shift``."""

    def read(view: View, node: ir.Node) -> AffineMap:
        scale, shift = formula(*parameters(view, node), view.attr(node, "epsilon", 1e-5))
        rank = view.require_rank(node.inputs[0], node)  # type: ignore[arg-type]
        channels = (-1, *(1,) * (rank - 2))
        return AffineMap.of(scale.reshape(channels), shift.reshape(channels), rank)

    return rule("BatchNormalization", map=read)


def folds_to(scale: np.ndarray, beta: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return scale, beta - scale * mean


CONV_NORM = model("float[2,5,8,11] x", f"float[5,5,3,3] w, {bn(5)}", "c = Conv (x, w)\n" + norm("c", "y"))
NORM_CONV = model("float[2,5,8,11] x", f"float[7,5,3,3] w, {bn(5)}", norm("x", "t") + "y = Conv (t, w)")

WRONG_MAPS = [
    Plant(f"{name}, {way}", proto, reads(formula))
    for way, proto in (("upward", CONV_NORM), ("downward", NORM_CONV))
    for name, formula in [
        ("missing sqrt", lambda g, b, m, v, e: folds_to(g / (v + e), b, m)),
        ("eps 1e-3", lambda g, b, m, v, e: folds_to(g / np.sqrt(v + 1e-3), b, m)),
        ("no eps", lambda g, b, m, v, e: folds_to(g / np.sqrt(v), b, m)),
        ("eps outside the root", lambda g, b, m, v, e: folds_to(g / (np.sqrt(v) + e), b, m)),
        ("swapped beta and mean", lambda g, b, m, v, e: folds_to(g / np.sqrt(v + e), m, b)),
        ("mean not scaled", lambda g, b, m, v, e: (g / np.sqrt(v + e), b - m)),
        ("shift lost", lambda g, b, m, v, e: (g / np.sqrt(v + e), 0 * b)),
        ("gamma lost", lambda g, b, m, v, e: folds_to(1 / np.sqrt(v + e), b, m)),
        ("channels reversed", lambda g, b, m, v, e: folds_to((g / np.sqrt(v + e))[::-1], b, m)),
    ]
]

# -- wrong rules -----------------------------------------------------------------------------------


def row(op: str, wrong: Row) -> Callable[[Patch], None]:
    """Let ``op`` have the row ``wrong``."""
    return lambda patch: patch.setitem(TABLE, op, wrong)


def attribute(where: object, name: str, wrong: object) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(where, name, wrong)


def conv_up_over_the_wrong_axis(step: Step, outs: Maps) -> dict[int, AffineMap]:
    m = only_first(step, outs)
    step.scale_weight(1, left=m.scale.reshape(1, -1, 1, 1))
    linear.scale_bias(step, m.scale.reshape(-1), m.shift.reshape(-1))
    return {}


def conv_up_without_the_old_bias(step: Step, outs: Maps) -> dict[int, AffineMap]:
    m = only_first(step, outs)
    step.scale_weight(1, left=m.scale.reshape(-1, 1, 1, 1))
    step.put(2, Edit(None, ir.DataType.FLOAT, shift=np.broadcast_to(m.shift.reshape(-1), (5,)).copy()))
    return {}


def conv_up_with_a_mistake_in_channel_2(step: Step, outs: Maps) -> dict[int, AffineMap]:
    m = only_first(step, outs)
    wrong = np.where(np.arange(m.scale.size) == 2, 1.0 + 1e-4, 1.0).reshape(m.scale.shape)
    return linear.conv_up(step, [AffineMap(m.scale * wrong, m.shift)])


def gemm_up_by_rows(step: Step, outs: Maps) -> dict[int, AffineMap]:
    m = only_first(step, outs)
    step.scale_weight(1, left=m.scale.reshape(-1, 1))
    linear._gemm_bias(step, m.scale.reshape(-1), m.shift.reshape(-1))
    return {}


def gemm_down_without_alpha(step: Step, ins: Maps) -> list[AffineMap | None]:
    m = only_first(step, ins)
    shift = np.broadcast_to(m.shift.reshape(-1), (5,))
    linear._gemm_bias(step, np.ones(()), shift @ linear.exact_weight(step))
    step.scale_weight(1, right=m.scale.reshape(-1, 1))
    return [None]


def sum_up_with_the_shift_on_both(step: Step, outs: Maps) -> dict[int, AffineMap]:
    m = only_first(step, outs)
    return {0: m, 1: m}


def sub_up_without_its_sign(step: Step, outs: Maps) -> dict[int, AffineMap]:
    m = only_first(step, outs)
    return {0: m.without_shift(), 1: m}


def depth_to_space_in_the_other_order(step: Step, m: AffineMap, upward: bool) -> AffineMap:
    return pieces._phased(step, m, 4, spread=upward, interleaved=True)


def concat_up_in_reverse(step: Step, outs: Maps) -> dict[int, AffineMap]:
    first, second = (part for _, part in sorted(pieces.concat_up(step, outs).items()))
    return {0: second, 1: first}


def transpose_the_wrong_way(step: Step, m: AffineMap, upward: bool) -> AffineMap:
    return m.moved(lambda a: np.transpose(a, step.attr("perm")))


UNCHANGED = {"up": unchanged, "down": unchanged_down}
BIG = "float[5,1,1] s = {1000, 1000, -1000, 1000, -1000}"


def table(
    name: str, weights: str, body: str, plant: Callable[[Patch], None], inputs: str = "float[2,5,8,11] x"
) -> Plant:
    return Plant(name, model(inputs, weights, body), plant)


WRONG_RULES = [
    Plant("wrong axis", CONV_NORM, rule("Conv", up=conv_up_over_the_wrong_axis)),
    table("old bias not scaled", f"float[5,5,3,3] w, float[5] b, {bn(5)}", "c = Conv (x, w, b)\n" + norm("c", "y"),
          rule("Conv", up=conv_up_without_the_old_bias)),
    table("shift through Relu with a large offset", f"float[5,5,3,3] w, {BIG}",
          "c = Conv (x, w)\n r = Relu (c)\n y = Add (r, s)", rule("Relu", **UNCHANGED)),
    table("shift through Relu, downward, with a large offset", f"float[7,5,3,3] w, {BIG}",
          "t = Add (x, s)\n r = Relu (t)\n y = Conv (r, w)", rule("Relu", **UNCHANGED)),
    table("shift through Relu with an offset beyond every probe",
          "float[5,5,3,3] w, float[5,1,1] s = {1e6,1e7,1e8,1e9,1e5}",
          "c = Conv (x, w)\n r = Relu (c)\n y = Add (r, s)", rule("Relu", **UNCHANGED)),
    table("negative scale through Relu", "float[5,5,3,3] w, float[5,1,1] s = {1,1,-1,1,1}",
          "c = Conv (x, w)\n r = Relu (c)\n y = Mul (r, s)", rule("Relu", **UNCHANGED)),
    table("negative scale through LeakyRelu", "float[5,5,3,3] w, float[5,1,1] s = {1,1,-1,1,1}",
          "c = Conv (x, w)\n r = LeakyRelu (c)\n y = Mul (r, s)", rule("LeakyRelu", **UNCHANGED)),
    table("shift into a padded conv", f"float[7,5,3,3] w, {bn(5)}", norm("x", "t") + "y = Conv <pads=[1,0,0,1]> (t, w)",
          attribute(linear, "_require_no_padding", lambda step, shape: None)),
    table("shift into a conv padded by auto_pad", f"float[7,5,3,3] w, {bn(5)}",
          norm("x", "t") + 'y = Conv <auto_pad="SAME_LOWER"> (t, w)',
          attribute(linear, "_require_no_padding", lambda step, shape: None)),
    table("shift into a strided ConvTranspose", f"float[5,7,3,3] w, {bn(5)}",
          norm("x", "t") + "y = ConvTranspose <strides=[2,2]> (t, w)",
          attribute(linear, "_require_full_kernel", lambda step, shape: None)),
    table("negative scale through MaxPool", "float[5,5,3,3] w, float[5,1,1] s = {1,1,-1,1,1}",
          "c = Conv (x, w)\n p = MaxPool <kernel_shape=[2,2]> (c)\n y = Mul (p, s)", rule("MaxPool", **UNCHANGED)),
    table("shift through counted pads", f"float[5,5,3,3] w, {bn(5)}",
          "c = Conv (x, w)\n p = AveragePool <kernel_shape=[2,2], pads=[1,1,1,1], count_include_pad=1> (c)\n"
          + norm("p", "y"), rule("AveragePool", **UNCHANGED)),
    table("shift through padded zeros", f"float[5,5,3,3] w, int64[8] q = {{0,0,1,1,0,0,1,1}}, {bn(5)}",
          "c = Conv (x, w)\n p = Pad (c, q)\n" + norm("p", "y"), rule("Pad", **UNCHANGED)),
    table("through Sigmoid", f"float[5,5,3,3] w, {bn(5)}", "c = Conv (x, w)\n p = Sigmoid (c)\n" + norm("p", "y"),
          row("Sigmoid", Row(("Sigmoid",), **UNCHANGED))),
    table("through Clip", f"float[5,5,3,3] w, float lo = {{0.0}}, float hi = {{6.0}}, {bn(5)}",
          "c = Conv (x, w)\n p = Clip (c, lo, hi)\n" + norm("p", "y"),
          row("Clip", Row(("Clip",), **UNCHANGED))),
    table("rows for columns of a Gemm", f"float[5,5] w, float[5] b, {bn(5)}", "c = Gemm (x, w, b)\n" + norm("c", "y"),
          rule("Gemm", up=gemm_up_by_rows), inputs="float[7,5] x"),
    table("alpha forgotten", f"float[5,4] w, float[4] b, {bn(5)}", norm("x", "t") + "y = Gemm <alpha=0.5> (t, w, b)",
          rule("Gemm", down=gemm_down_without_alpha), inputs="float[7,5] x"),
    table("shift to both branches", f"float[5,5,3,3] w, float[5,5,3,3] v, {bn(5)}",
          "c = Conv (x, w)\n d = Conv (x, v)\n e = Add (c, d)\n" + norm("e", "y"),
          rule("Add", up=sum_up_with_the_shift_on_both)),
    table("sign of a Sub forgotten", f"float[5,5,3,3] w, float[5,5,3,3] v, {bn(5)}",
          "c = Conv (x, w)\n d = Conv (x, v)\n e = Sub (c, d)\n" + norm("e", "y"),
          rule("Sub", up=sub_up_without_its_sign)),
    table("DCR taken for CRD", f"float[20,5,3,3] w, {bn(5)}",
          "c = Conv (x, w)\n d = DepthToSpace <blocksize=2> (c)\n" + norm("d", "y"),
          rule("DepthToSpace", **both_ways(depth_to_space_in_the_other_order))),
    table("branches of a Concat swapped", f"float[5,5,3,3] w, float[5,5,3,3] v, {bn(10)}",
          "c = Conv (x, w)\n d = Conv (x, v)\n e = Concat <axis=1> (c, d)\n" + norm("e", "y"),
          rule("Concat", up=concat_up_in_reverse)),
    table("a Transpose undone the wrong way", "float[8,5,1,1] w, float[8,1] s",
          "c = Conv (x, w)\n t = Transpose <perm=[0,2,3,1]> (c)\n y = Mul (t, s)",
          rule("Transpose", **both_ways(transpose_the_wrong_way)), inputs="float[8,5,8,8] x"),
]  # fmt: skip

# -- wrong rules of operators with gates, grids and several activations -----------------------------


def reversed_up(up: Callable[[Step, Maps], dict[int, AffineMap]], axis: int) -> Callable[..., dict[int, AffineMap]]:
    """``up`` with the channels of its map in reverse."""
    return lambda step, outs: up(step, [only_first(step, outs).moved(lambda a: np.flip(a, axis))])


def recurrent_down_without_the_shift(step: Step, ins: Maps) -> list[AffineMap | None]:
    return recurrent.recurrent_down(step, [only_first(step, ins).without_shift()])


def into_the_recurrent_bias(step: Step, moved: np.ndarray) -> None:
    step.put(3, Edit(None, ir.DataType.FLOAT, shift=np.concatenate([np.zeros_like(moved), moved], axis=1)))


def instance_norm_up_without_its_bias(step: Step, outs: Maps) -> dict[int, AffineMap]:
    factor, shift = vector(step, only_first(step, outs), axis=1)
    scale, bias = step.edit(1), step.edit(2)
    assert scale is not None
    assert bias is not None
    step.put(1, scale.scaled(left=factor))
    step.put(2, bias.shifted(shift))
    step.absorbed()
    return {}


def quotient_up_without_the_reciprocal(step: Step, outs: Maps) -> dict[int, AffineMap]:
    return {1: only_first(step, outs)}


def product_up_into_both(step: Step, outs: Maps) -> dict[int, AffineMap]:
    return dict.fromkeys((0, 1), only_first(step, outs))


TOKENS = "float[7,2,5] x"
FEATURES = "float[5] s = {2, 3, -1, 0.5, 4}, float[5] t = {1, -2, 3, 1, 2}"
GATES = f"float[1,12,3] r, {FEATURES}"
MAPPED = "m = Mul (x, s)\n a = Add (m, t)\n"

WRONG_RULES += [
    table("shift past the zeros around an image", f"float[5,5,1,1] w, float[2,4,4,2] g, {bn(5)}",
          "c = Conv (x, w)\n d = GridSample (c, g)\n" + norm("d", "y"), rule("GridSample", **UNCHANGED)),
    table("negative scale through PRelu", "float[5,5,3,3] w, float[5,1,1] k, float[5,1,1] s = {1,1,-1,1,1}",
          "c = Conv (x, w)\n r = PRelu (c, k)\n y = Mul (r, s)", rule("PRelu", **UNCHANGED)),
    table("old bias of an InstanceNormalization", f"float[5] g, float[5] b, {bn(5, 'n')}",
          "c = InstanceNormalization (x, g, b)\n" + norm("c", "y", "n"),
          rule("InstanceNormalization", up=instance_norm_up_without_its_bias)),
    table("letters of an Einsum in reverse", f"float[5,5] w, {bn(5)}",
          'c = Einsum <equation="nchw,cd->ndhw"> (x, w)\n' + norm("c", "y"),
          rule("Einsum", up=reversed_up(einsum.einsum_up, 1))),
    table("channels of a DeformConv in reverse", f"float[5,5,1,1] w, float[2,2,8,11] o, {bn(5)}",
          "c = DeformConv (x, w, o)\n" + norm("c", "y"),
          rule("DeformConv", up=reversed_up(sampling.deform_conv_up, 1))),
    table("shift of the features of an LSTM", f"float[1,12,5] w, {GATES}",
          MAPPED + "y = LSTM <hidden_size=3> (a, w, r)", rule("LSTM", down=recurrent_down_without_the_shift),
          inputs=TOKENS),
    table("shift of the features of an RNN", "float[1,3,5] w, float[1,3,3] r, " + FEATURES,
          MAPPED + "y = RNN <hidden_size=3> (a, w, r)", rule("RNN", down=recurrent_down_without_the_shift),
          inputs=TOKENS),
    table("shift in the bias that a GRU resets", "float[1,9,5] w, float[1,9,3] r, " + FEATURES,
          MAPPED + "y = GRU <hidden_size=3, linear_before_reset=1> (a, w, r)",
          attribute(recurrent, "_add_to_input_bias", into_the_recurrent_bias), inputs=TOKENS),
    table("scale of a divisor", "float[5,5,1,1] w, float s = {2}",
          "c = Conv (x, w)\n p = Sigmoid (x)\n e = Exp (p)\n z = Conv (e, w)\n d = Div (p, z)\n y = Mul (d, s)",
          rule("Div", up=quotient_up_without_the_reciprocal)),
    table("scale into both factors", "float[5,5,1,1] w, float[5,5,1,1] v, float s = {3}",
          "c = Conv (x, w)\n d = Conv (x, v)\n p = Mul (c, d)\n y = Mul (p, s)",
          rule("Mul", up=product_up_into_both)),
    Plant("scale of the keys of an Attention",
          model("float[2,4,6] x", "float[6,6] w, float[6,6] u, float k = {3}",
                "a = MatMul (x, w)\n e = Exp (x)\n b = Mul (e, k)\n z = MatMul (x, u)\n"
                "y = Attention <q_num_heads=2, kv_num_heads=2> (a, b, z)", opset=23),
          attribute(attention, "_scale_product", lambda step, queries, keys: None)),
]  # fmt: skip

PLANTS = [*WRONG_MAPS, *WRONG_RULES]


@pytest.mark.parametrize("plant", PLANTS, ids=[plant.name for plant in PLANTS])
def test_a_planted_mistake_is_caught(plant: Plant, monkeypatch: Patch) -> None:
    plant.plant(monkeypatch)
    unproven, _ = folded(plant.proto, validate=False)
    with pytest.raises(AssertionError, match="relative error"):
        assert_same(plant.proto, unproven)
    proven, ledger = folded(plant.proto)
    assert_same(plant.proto, proven)
    assert ledger.dropped
    assert all(dropped.code in FAILED_PROOFS for dropped in ledger.dropped)


FAR = table("", "float[5,5,3,3] w, float[5,1,1] s = {1e15, 2e15, 1e16, 3e14, 1e15}",
            "c = Conv (x, w)\n r = Relu (c)\n y = Add (r, s)", rule("Relu", **UNCHANGED))  # fmt: skip
"""Beside such an offset a wrong sign of an ordinary probe is lost in the rounding."""


def test_a_kink_is_held_to_its_signs_where_no_probe_is_near(monkeypatch: Patch) -> None:
    FAR.plant(monkeypatch)
    monkeypatch.setattr(_Square, "_around_breakpoint", lambda self, x, m: x)
    _, ledger = folded(FAR.proto)
    assert any(dropped.code == "NF403" for dropped in ledger.dropped)


def test_a_kink_is_probed_around_its_breakpoint(monkeypatch: Patch) -> None:
    FAR.plant(monkeypatch)
    monkeypatch.setattr(_Square, "_require_signs", lambda self: None)
    _, ledger = folded(FAR.proto)
    assert any(dropped.code == "NF401" for dropped in ledger.dropped)


def with_a_tiny_channel() -> onnx.ModelProto:
    """Channel 2 is a billionth of its neighbours, in the weight and in the norm."""
    proto = model("float[2,5,8,11] x", f"float[5,5,3,3] w, {bn(5)}", "c = Conv (x, w)\n" + norm("c", "y"))
    values = initializers(proto)
    for tensor in proto.graph.initializer:
        if tensor.name in ("w", "beta", "mean"):
            array = values[tensor.name].copy()
            array[2] *= 1e-9
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return proto


def test_a_mistake_in_one_tiny_channel_is_caught(monkeypatch: Patch) -> None:
    """It is far below the error that a norm over the whole tensor would see."""
    proto = with_a_tiny_channel()
    rule("Conv", up=conv_up_with_a_mistake_in_channel_2)(monkeypatch)
    new, ledger = folded(proto)
    assert ledger.dropped
    assert ledger.entries[0].outcome == "left"
    assert_same(proto, new)


def test_a_tiny_channel_is_no_reason_to_drop_what_is_right() -> None:
    new, ledger = folded(with_a_tiny_channel())
    assert not ledger.dropped
    assert [entry.outcome for entry in ledger] == ["folded"]
    assert_same(with_a_tiny_channel(), new)


def test_a_dropped_plan_is_named_by_its_norm(monkeypatch: Patch) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(CONV_NORM)
    proto.graph.node[1].name = "block.1.norm"
    rule("Conv", up=conv_up_over_the_wrong_axis)(monkeypatch)
    _, ledger = folded(proto)
    assert all(dropped.text.startswith("block.1.norm: ") for dropped in ledger.dropped)
    assert "NF401" in ledger.entries[0].codes


def test_a_mistake_in_one_norm_lets_others_go(monkeypatch: Patch) -> None:
    proto = model(
        "float[2,5,8,11] x",
        f"float[5,5,3,3] w, {bn(5)}, float[5,4] v, float[4] b, {bn(4, '2')}",
        "c = Conv (x, w)\n" + norm("c", "n") + "r = Relu (n)\n p = GlobalAveragePool (r)\n f = Flatten (p)\n"
        "g = Gemm (f, v, b)\n" + norm("g", "y", "2"),
    )
    rule("Conv", up=conv_up_over_the_wrong_axis)(monkeypatch)
    new, ledger = folded(proto)
    assert [entry.outcome for entry in ledger] == ["left", "folded"]
    assert_same(proto, new)


def test_a_weight_that_changes_before_it_is_written_is_an_error() -> None:
    """What is written must be, bit for bit, the rounding of what was validated."""
    weights = np.random.default_rng(0).standard_normal((5, 5, 3, 3)).astype(np.float32)
    given = ir.from_proto(CONV_NORM)
    given.graph.initializers["w"].const_value = ir.tensor(weights, name="w")
    result = fold(given)
    weights[0, 0, 0, 0] += 1.0
    written = result.model.graph.initializers["w"].const_value
    assert written is not None
    with pytest.raises(NormdeployError, match="changed between its validation and its writing"):
        written.numpy()


def other_weights(path: Path) -> None:
    """Another checkpoint of the same network, written over the file of the first."""
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), tensor.name))
    beside = (path.parent / "weights").exists()
    onnx.save(proto, path, save_as_external_data=beside, location="weights" if beside else None, size_threshold=0)


@pytest.mark.parametrize("shelf", [0, 1 << 20])
@pytest.mark.parametrize("beside", [False, True])
def test_a_file_that_is_changed_after_the_fold_is_an_error(
    tmp_path: Path, monkeypatch: Patch, beside: bool, shelf: int
) -> None:
    """No model is written whose edited weights are of one checkpoint and the others of another."""
    monkeypatch.setattr(weights, "HELD", shelf)
    proto = model("float[2,5,8,11] x", f"float[5,5,3,3] w, float[7,5,9,9] v, {bn(5)}",
                  "c = Conv (x, w)\n" + norm("c", "n") + "r = Relu (n)\n y = Conv <pads=[4,4,4,4]> (r, v)")  # fmt: skip
    path = tmp_path / "model.onnx"
    stored = onnx.ModelProto.FromString(proto.SerializeToString())  # which saving would change
    location = "weights" if beside else None
    onnx.save(stored, path, save_as_external_data=beside, location=location, size_threshold=0)
    result = fold(path)
    result.save(tmp_path / "first.onnx")
    other_weights(path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="changed"):
        result.save(tmp_path / "second.onnx")
    assert sorted(tmp_path.iterdir()) == before
    edited = result.model.graph.initializers["w"].const_value
    assert edited is not None
    with pytest.raises(InputError, match="changed"):
        edited.numpy()
    assert_same(proto, onnx.load(tmp_path / "first.onnx"))


def test_a_file_that_another_takes_the_place_of_is_still_there(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(CONV_NORM, path)
    result = fold(path)
    (tmp_path / "other.onnx").write_bytes(b"another model")
    (tmp_path / "other.onnx").replace(path)
    result.save(path)
    result.save(path)
    assert_same(CONV_NORM, onnx.load(path))


def test_weights_are_held_while_there_is_room(monkeypatch: Patch) -> None:
    monkeypatch.setattr(weights, "HELD", 2 * 40)
    evaluated, rounded = 0, Edit.rounded

    def counted(self: Edit) -> np.ndarray:
        nonlocal evaluated
        evaluated += 1
        return rounded(self)

    monkeypatch.setattr(Edit, "rounded", counted)
    nodes = [ir.node("MatMul", []) for _ in range(3)]

    def held(shelf: weights.WeightCache, node: ir.Node) -> bool:
        """Whether the edit is not asked again when its tensor is."""
        tensor = shelf.tensor((node, 1), Edit(None, ir.DataType.FLOAT, shift=np.arange(10.0)))
        before = evaluated
        np.testing.assert_array_equal(tensor.numpy(), np.arange(10, dtype=np.float32))
        return evaluated == before

    shelf = weights.WeightCache(lambda: None)
    assert [held(shelf, node) for node in nodes] == [True, True, False]
    assert [held(shelf, node) for node in nodes] == [True, True, False], "what takes another's place takes its room"
    assert not held(weights.WeightCache(None), nodes[0]), "where changes cannot be told, nothing is held"


def test_without_validation_nothing_is_measured() -> None:
    _, ledger = folded(CONV_NORM, validate=False)
    assert ledger.validation_seconds == 0.0
    assert ledger.entries[0].residual is None
    _, ledger = folded(CONV_NORM)
    assert 0.0 < ledger.validation_seconds < ledger.seconds
    assert ledger.entries[0].residual is not None


def repvgg() -> onnx.ModelProto:
    return model(
        "float[2,3,8,11] x",
        f"float[3,3,3,3] w, float[3,3,1,1] v, {bn(3)}",
        "c = Conv <pads=[1,1,1,1]> (x, w)\n d = Conv (x, v)\n" + norm("x", "e") + "s = Add (c, d)\n y = Add (s, e)",
    )


@pytest.mark.parametrize("tap", [0, 2])
def test_branches_merged_at_the_wrong_tap_are_caught(tap: int, monkeypatch: Patch) -> None:
    def wrong_taps(step: Step, large: merge.Window, small: merge.Window) -> tuple[slice, ...]:
        return tuple(slice(tap, tap + 1) if k == 1 else slice(0, k) for k in small.kernel)

    monkeypatch.setattr(merge, "_taps", wrong_taps)
    unproven, _ = folded(repvgg(), validate=False)
    with pytest.raises(AssertionError, match="relative error"):
        assert_same(repvgg(), unproven)
    proven, ledger = folded(repvgg())
    assert_same(repvgg(), proven)
    assert any(dropped.code == "NF401" for dropped in ledger.dropped)
