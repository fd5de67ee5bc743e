"""Planted mistakes in rules for attention and quantized weights: seen by the proof, and where it is out, by numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from harness import folded, model, op_types, parsed

from normdeploy.fold.affine import AffineMap, Array
from normdeploy.fold.graph.granules import Granules
from normdeploy.fold.operators import attention, multi_head
from normdeploy.fold.operators.rows import Maps
from normdeploy.fold.operators.table import TABLE
from normdeploy.fold.plan import Quantized, Step

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]

MULTI_HEAD = "com.microsoft::MultiHeadAttention"
"""Its full name, and how it is written."""
CALL = "y0 = com.microsoft.MultiHeadAttention <num_heads=3> "


def run(proto: onnx.ModelProto) -> np.ndarray:
    """What ONNX Runtime makes of random inputs."""
    rng, options = np.random.default_rng(3), onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {item.name: rng.standard_normal(item.shape).astype(np.float32) for item in session.get_inputs()}
    return np.asarray(session.run(None, feeds)[0])


def is_right(proto: onnx.ModelProto, new: onnx.ModelProto) -> bool:
    """Whether both give the same there, to what rounding the weights can do."""
    right, got = run(proto), run(new)
    return bool(np.abs(right - got).max() <= 1e-4 * np.abs(right).max())


def require_seen(proto: onnx.ModelProto, plant: Plant, monkeypatch: Patch) -> None:
    """Fold without the mistake, with it, and with it and without proofs."""
    new, ledger = folded(proto)
    assert op_types(new) != op_types(proto), "nothing folds, so nothing could be seen"
    assert is_right(proto, new)
    plant(monkeypatch)
    new, ledger = folded(proto)
    assert ledger.dropped, "the proof did not see it"
    assert is_right(proto, new)
    assert not is_right(proto, folded(proto, validate=False)[0])


# -- MultiHeadAttention ----------------------------------------------------------------------------


def attends(weights: str, body: str) -> onnx.ModelProto:
    head = '<ir_version: 8, opset_import: ["": 17, "com.microsoft": 1]>'
    data = "float[2,7,12] q, float[2,7,12] k, float[2,7,12] v"
    return parsed(f"{head} g ({data}) => (float[2,7,5] y) <float[2,7,12] y0, {weights}, float[12,5] o> {{ {body} }}")


BEHIND = attends(
    "float[12,12] w, float[36] b, float[12] s",
    f"c = MatMul (v, w)\n{CALL} (q, k, c, b)\n m = Mul (y0, s)\n r = Relu (m)\n y = MatMul (r, o)",
)
"""A scale that goes up to V, and into its part of the bias."""
ON_V = attends("float[36] b, float[12] s", f"c = Mul (v, s)\n{CALL} (q, k, c, b)\n y = MatMul (y0, o)")
"""A scale that goes down from V, and out of its part of the bias."""
ON_Q = attends("float pos", f"c = Mul (q, pos)\n{CALL} (c, k, v)\n y = MatMul (y0, o)")
"""A number that goes into the scale of the products."""


def bias_part(chosen: Callable[[Array, int], Array]) -> Plant:
    """Let the factor of the bias be what ``chosen`` makes of it and of the number of features."""
    right = multi_head._scale_values

    def scaled(step: Step, m: AffineMap, of_bias: Array) -> None:
        right(step, m, of_bias)
        slot = (step.node, multi_head._BIAS)
        edit = step.plan.edits[slot]
        step.plan.edits[slot] = replace(edit, left=chosen(edit.left, of_bias.size))

    return lambda patch: patch.setattr(multi_head, "_scale_values", scaled)


def down_in_reverse(step: Step, ins: Maps) -> list[AffineMap | None]:
    first, *rest = multi_head.multi_head_down(step, ins)
    return [None if first is None else first.moved(lambda a: np.flip(a, 2)), *rest]


def twice_the_number(step: Step, scale: float) -> None:
    right(step, 2.0 * scale)


right = attention.put_scale

WRONG_HEADS: dict[str, tuple[onnx.ModelProto, Plant]] = {
    "a bias that keeps its numbers": (BEHIND, bias_part(lambda left, size: np.ones(left.shape))),
    "the bias of Q for that of V": (BEHIND, bias_part(lambda left, size: np.roll(left, size))),
    "the inverse factor of a bias": (ON_V, bias_part(lambda left, size: 1.0 / left)),
    "features in reverse": (
        ON_V,
        lambda patch: patch.setitem(TABLE, MULTI_HEAD, replace(TABLE[MULTI_HEAD], down=down_in_reverse)),
    ),
    "twice the number on Q": (ON_Q, lambda patch: patch.setattr(attention, "put_scale", twice_the_number)),
}


@pytest.mark.parametrize(("proto", "plant"), WRONG_HEADS.values(), ids=WRONG_HEADS.keys())
def test_a_mistake_of_multi_head_attention_is_seen(proto: onnx.ModelProto, plant: Plant, monkeypatch: Patch) -> None:
    require_seen(proto, plant, monkeypatch)


# -- DequantizeLinear ------------------------------------------------------------------------------

CODES = "{11,22,-3,54,5,66,-127,8,9,10,11,-12,13,127,15}"
IMAGE = "float[2,3,8,11] x"
SIGNED = model(
    IMAGE, f"int8[5,3,1,1] q = {CODES}, float[5] pos, float[5,1,1] k = {{1,-2,3,-4,0.5}}",
    "w = DequantizeLinear <axis=0> (q, pos)\n c = Conv (x, w)\n y = Mul (c, k)",
)  # fmt: skip
AROUND = model(
    IMAGE,
    "int8[5,3,1,1] q = {11,2,-13,4,25,6,-7,8,9,40,11,-12,13,17,15}, float[5] pos, int8[5] z = {3,-9,2,11,14}, "
    "float[5,1,1] k = {-1,0,3,-2,0.5}",
    "w = DequantizeLinear <axis=0> (q, pos, z)\n c = Conv (x, w)\n y = Mul (c, k)",
)
"""Zero points, factors of both signs and 0."""


def turned(wrong: Callable[[Quantized, Array], Any]) -> Plant:
    return lambda patch: patch.setattr(Quantized, "_turn", wrong)


def around_zero(self: Quantized, signs: Array) -> None:
    self.step.put(0, self.codes.scaled(left=signs))


def sizes_in_reverse(patch: Patch) -> None:
    shared = Granules.shared

    def flipped(self: Granules, factor: Array) -> Array | None:
        found = shared(self, factor)
        return None if found is None else np.flip(found)

    patch.setattr(Granules, "shared", flipped)


WRONG_CODES: dict[str, tuple[onnx.ModelProto, Plant]] = {
    "signs forgotten": (SIGNED, turned(lambda self, signs: None)),
    "every sign turned": (SIGNED, turned(lambda self, signs: around_zero(self, -np.ones_like(signs)))),
    "mirrored at 0 and not at the zero point": (AROUND, turned(around_zero)),
    "scales in reverse": (SIGNED, sizes_in_reverse),
}


@pytest.mark.parametrize(("proto", "plant"), WRONG_CODES.values(), ids=WRONG_CODES.keys())
def test_a_mistake_of_a_quantized_weight_is_seen(proto: onnx.ModelProto, plant: Plant, monkeypatch: Patch) -> None:
    require_seen(proto, plant, monkeypatch)
