"""Level ``affine``: the scale and bias of a norm go into every consumer, or stay whole with the reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from norm_harness import (
    assert_exact,
    assert_runs,
    counts,
    initializers,
    model,
    norm_entries,
    parameters,
    reduced,
    unchanged,
    with_values,
)

LN = "n = LayerNormalization <axis=-1, epsilon=1e-5> (x, gamma, beta)\n"
RMS = "n = RMSNormalization <axis=-1, epsilon=1e-6> (x, gamma)\n"
TOKENS = "float[N,7,6] x"
AFFINE = "float[6] gamma, float[6] beta"


@dataclass(frozen=True)
class Case:
    """A norm over the last of three axes, ``n``, and what reads it; ``becomes`` counts what is left."""

    name: str
    weights: str
    body: str
    becomes: str
    outputs: str = "float[] y"
    opset: int = 21

    def model(self, norm: str = LN, affine: str = AFFINE, opset: int = 0) -> onnx.ModelProto:
        return model(TOKENS, f"{affine}, {self.weights}", norm + self.body, outputs=self.outputs,
                     opset=opset or self.opset)  # fmt: skip


INTO = [
    Case("matmul", "float[6,5] w, float[5] b", "p = MatMul (n, w)\n y = Add (p, b)", "MatMul Add"),
    Case("matmul, bias in front", "float[6,5] w, float[5] b", "p = MatMul (n, w)\n y = Add (b, p)", "MatMul Add"),
    Case("gemm", "float[6,5] w, float[5] b", "f = Flatten <axis=2> (n)\n y = Gemm (f, w, b)", "Flatten Gemm"),
    Case("gemm transposed, scaled", "float[5,6] w, float[5] b",
         "f = Flatten <axis=2> (n)\n y = Gemm <transB=1, alpha=0.5, beta=2.0> (f, w, b)", "Flatten Gemm"),
    Case("gemm without bias", "float[5,6] w", "f = Flatten <axis=2> (n)\n y = Gemm <transB=1> (f, w)", "Flatten Gemm"),
    Case("q k v", "float[6,5] q, float[6,5] k, float[6,8] v, float[5] qb, float[5] kb, float[8] vb",
         "q0 = MatMul (n, q)\n q1 = Add (q0, qb)\n k0 = MatMul (n, k)\n k1 = Add (k0, kb)\n v0 = MatMul (n, v)\n"
         "v1 = Add (v0, vb)\n kt = Transpose <perm=[0,2,1]> (k1)\n s = MatMul (q1, kt)\n p = Softmax <axis=-1> (s)\n"
         "y = MatMul (p, v1)",
         "MatMul MatMul MatMul Add Add Add Transpose MatMul Softmax MatMul"),
    Case("1x1 conv through transpose", "float[5,6,1] w, float[5] b",
         "t = Transpose <perm=[0,2,1]> (n)\n y = Conv (t, w, b)", "Transpose Conv"),
    Case("constant on the left through transpose", "float[5,6] w, float[5,1] b",
         "t = Transpose <perm=[0,2,1]> (n)\n p = MatMul (w, t)\n y = Add (p, b)", "Transpose MatMul Add"),
    Case("a weight for each token", "float[7,6,5] w, float[5] b, int64[1] two = {2}",
         "u = Unsqueeze (n, two)\n p = MatMul (u, w)\n y = Add (p, b)", "Unsqueeze MatMul Add"),
]  # fmt: skip

BEHIND = "p = MatMul (m, w)\n y = Add (p, b)"
LINEAR = "float[6,5] w, float[5] b"
THROUGH = [
    Case("dropout", LINEAR, "m = Dropout (n)\n" + BEHIND, "Dropout MatMul Add"),
    Case("identity", LINEAR, "m = Identity (n)\n" + BEHIND, "Identity MatMul Add"),
    Case("reshape", f"{LINEAR}, int64[2] to = {{-1, 6}}", "m = Reshape (n, to)\n" + BEHIND, "Reshape MatMul Add"),
    Case("flatten of all features", "float[42,5] w, float[5] b", "m = Flatten (n)\n y = Gemm (m, w, b)",
         "Flatten Gemm"),
    Case("slice of tokens", f"{LINEAR}, int64[1] a = {{1}}, int64[1] z = {{4}}, int64[1] axis = {{1}}",
         "m = Slice (n, a, z, axis)\n" + BEHIND, "Slice MatMul Add"),
    Case("class token by gather", f"{LINEAR}, int64 first = {{0}}", "m = Gather <axis=1> (n, first)\n" + BEHIND,
         "Gather MatMul Add"),
    Case("slice of features", "float[3,5] w, float[5] b, int64[1] a = {1}, int64[1] z = {6}, int64[1] axis = {2}, "
         "int64[1] step = {2}", "m = Slice (n, a, z, axis, step)\n" + BEHIND, "Slice MatMul Add"),
    Case("mean over tokens", f"{LINEAR}, int64[1] axis = {{1}}", "m = ReduceMean <keepdims=0> (n, axis)\n" + BEHIND,
         "ReduceMean MatMul Add"),
    Case("split of tokens", f"{LINEAR}, int64[2] parts = {{3, 4}}",
         "m, r = Split <axis=1> (n, parts)\n p = MatMul (m, w)\n y = Add (p, b)\n q = MatMul (r, w)\n z = Add (q, b)",
         "Split MatMul Add MatMul Add", outputs="float[] y, float[] z"),
    Case("concat with itself", f"{LINEAR}", "m = Concat <axis=1> (n, n)\n" + BEHIND, "Concat MatMul Add"),
    Case("two ways", "float[6,5] w, float[5] b, float[4,6,1] k",
         "p = MatMul (n, w)\n y = Add (p, b)\n t = Transpose <perm=[0,2,1]> (n)\n z = Conv (t, k)",
         "MatMul Add Transpose Conv", outputs="float[] y, float[] z"),
]  # fmt: skip


def _norm_is_bare(new: onnx.ModelProto, op_type: str) -> None:
    ((scale, *bias),) = parameters(new, op_type)
    assert np.all(scale == 1)
    assert not bias


@pytest.mark.parametrize("case", [*INTO, *THROUGH], ids=lambda case: case.name)
def test_layer_norm_affine_goes_into_every_consumer(case: Case) -> None:
    proto = case.model()
    new, ledger = reduced(proto)
    _norm_is_bare(new, "LayerNormalization")
    assert counts(new) == Counter(["LayerNormalization", *case.becomes.split()])
    assert_exact(proto, new)
    assert_runs(new, proto)
    (entry,) = norm_entries(ledger)
    assert (entry.outcome, entry.residual is not None and entry.residual <= 1e-12) == ("reduced", True)
    assert entry.into


@pytest.mark.parametrize("case", [*INTO, *THROUGH], ids=lambda case: case.name)
def test_rms_norm_scale_goes_into_every_consumer(case: Case) -> None:
    proto = case.model(RMS, "float[6] gamma", opset=23)
    new, _ = reduced(proto)
    _norm_is_bare(new, "RMSNormalization")
    assert counts(new)["MatMul"] + counts(new)["Gemm"] + counts(new)["Conv"] == sum(
        case.becomes.split().count(heavy) for heavy in ("MatMul", "Gemm", "Conv")
    )
    assert_exact(proto, new)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "double"])
def test_other_dtypes(dtype: str) -> None:
    text = f"{dtype}[N,7,6] x", f"{dtype}[6] gamma, {dtype}[6] beta, {dtype}[6,5] w, {dtype}[5] b"
    proto = model(*text, LN + "p = MatMul (n, w)\n y = Add (p, b)", outputs=f"{dtype}[] y")
    new, _ = reduced(proto)
    _norm_is_bare(new, "LayerNormalization")
    assert_exact(proto, new)


def test_several_axes() -> None:
    proto = model("float[N,5,6] x", "float[5,6] gamma, float[5,6] beta, float[30,4] w",
                  "n = LayerNormalization <axis=1> (x, gamma, beta)\n f = Flatten (n)\n y = Gemm (f, w)")  # fmt: skip
    new, _ = reduced(proto)
    _norm_is_bare(new, "LayerNormalization")
    assert_exact(proto, new)
    assert_runs(new, proto)


# -- strange values --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "gamma",
    [[0.0] * 6, [0, 1, 0, -2, 0, 3], [-1.5e-9] * 6, [-1.5e-9, 1, 1, 1, 1, 1], [1e-30, 1e30, 1, 1, 1, 1]],
    ids=["all zero", "some zero", "all tiny", "one tiny", "far apart"],
)
def test_strange_scales_are_carried_exactly(gamma: list[float]) -> None:
    proto = with_values(INTO[0].model(), gamma=gamma)
    new, _ = reduced(proto)
    _norm_is_bare(new, "LayerNormalization")
    assert_exact(proto, new)
    stored, weight = initializers(new)["w"], initializers(proto)["w"].astype(np.float64)
    np.testing.assert_allclose(stored, np.array(gamma)[:, None] * weight, rtol=2.0**-23)


def test_a_product_that_overflows_leaves_the_norm_whole() -> None:
    proto = with_values(INTO[0].model(), gamma=[3e38] * 6, w=[[9.0] * 5] * 6)
    new, ledger = reduced(proto)
    assert initializers(new).keys() == initializers(proto).keys()
    assert "overflows float" in norm_entries(ledger)[0].reason
    assert norm_entries(ledger)[0].outcome == "left"


def test_a_norm_with_nothing_to_take_off_is_untouched() -> None:
    proto = with_values(INTO[0].model(), gamma=[1.0] * 6, beta=[0.0] * 6)
    new, _ = reduced(proto)
    np.testing.assert_array_equal(initializers(new)["w"], initializers(proto)["w"])
    assert_exact(proto, new)


# -- what follows a norm merges into it ------------------------------------------------------------


@pytest.mark.parametrize("norm", [LN, RMS], ids=["LayerNormalization", "RMSNormalization"])
def test_mul_and_add_behind_a_norm_merge_and_go_on(norm: str) -> None:
    body = "a = Mul (n, s)\n b = Add (a, t)\n p = MatMul (b, w)\n y = Add (p, c)"
    weights = "float[6] s, float[6] t, float[6,5] w, float[5] c"
    affine = AFFINE if norm is LN else "float[6] gamma"
    proto = model(TOKENS, f"{affine}, {weights}", norm + body, opset=23)
    new, _ = reduced(proto)
    assert counts(new) == Counter(["LayerNormalization" if norm is LN else "RMSNormalization", "MatMul", "Add"])
    assert_exact(proto, new)


def test_mul_and_add_merge_even_where_the_norm_is_an_output() -> None:
    proto = model(TOKENS, f"{AFFINE}, float[6] s, float[6] t", LN + "a = Mul (s, n)\n y = Add (a, t)")
    new, _ = reduced(proto)
    assert counts(new) == Counter(["LayerNormalization"])
    assert_exact(proto, new)
    assert_runs(new, proto)


def test_what_varies_over_tokens_does_not_merge() -> None:
    proto = model(TOKENS, f"{AFFINE}, float[7,1] s", LN + "y = Mul (n, s)")
    new, ledger = reduced(proto)
    assert counts(new) == Counter(["LayerNormalization", "Mul"])
    assert_exact(proto, new)
    assert any("an axis that is mixed here" in entry.reason for entry in ledger)


# -- twins -----------------------------------------------------------------------------------------

TWO_LINEARS = "p = MatMul (n, w)\n y = Add (p, wb)\n q = MatMul (m, v)\n z = Add (q, vb)\n"
TWINS = (
    "n = LayerNormalization <axis=-1{one}> (x, gamma, beta)\n m = LayerNormalization <axis={axis}{two}> (x, g, b)\n"
    + TWO_LINEARS
)
TWIN_WEIGHTS = "float[6,5] w, float[6,4] v, float[5] wb, float[4] vb, float[6] g, float[6] b"


def _twins(*, one: str = "", two: str = "", axis: int = -1) -> onnx.ModelProto:
    body = TWINS.format(one=one, two=two, axis=axis)
    return model(TOKENS, f"{AFFINE}, {TWIN_WEIGHTS}", body, outputs="float[] y, float[] z")


@pytest.mark.parametrize("proto", [_twins(), _twins(one=", epsilon=1e-5", two=", stash_type=1"), _twins(axis=2)],
                         ids=["equal", "defaults spelled out", "axis counted from the front"])  # fmt: skip
def test_twins_become_one(proto: onnx.ModelProto) -> None:
    new, ledger = reduced(proto)
    assert counts(new)["LayerNormalization"] == 1
    assert_exact(proto, new)
    assert sorted(entry.outcome for entry in norm_entries(ledger)) == ["composed", "reduced"]


def test_norms_with_another_epsilon_are_no_twins() -> None:
    proto = _twins(one=", epsilon=1e-5", two=", epsilon=1e-12")
    new, _ = reduced(proto)
    assert counts(new)["LayerNormalization"] == 2
    assert_exact(proto, new)


def test_a_norm_whose_statistics_are_read_is_no_twin() -> None:
    body = (
        "n = LayerNormalization (x, gamma, beta)\n m, mean = LayerNormalization (x, g, b)\n"
        + TWO_LINEARS
        + "s = Relu (mean)"
    )
    proto = model(TOKENS, f"{AFFINE}, {TWIN_WEIGHTS}", body, outputs="float[] y, float[] z, float[] s")
    new, _ = reduced(proto)
    assert counts(new)["LayerNormalization"] == 2
    assert_exact(proto, new)


def test_one_of_twins_that_stays_whole_stays_two() -> None:
    body = (
        "n = LayerNormalization (x, gamma, beta)\n m = LayerNormalization (x, g, b)\n"
        "p = MatMul (n, w)\n y = Add (p, c)\n z = Relu (m)"
    )
    proto = model(
        TOKENS, f"{AFFINE}, float[6,5] w, float[5] c, float[6] g, float[6] b", body, outputs="float[] y, float[] z"
    )
    new, ledger = reduced(proto)
    assert counts(new)["LayerNormalization"] == 2
    assert_exact(proto, new)
    assert sorted(entry.outcome for entry in norm_entries(ledger)) == ["left", "reduced"]


# -- refusals --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """A norm that must keep its scale and bias, bit for bit, and the reason."""

    name: str
    weights: str
    body: str
    reason: str
    outputs: str = "float[] y"
    inputs: str = TOKENS
    affine: str = AFFINE


REFUSED = [
    Refusal("post-LN output feeds the residual", "float[6,6] w", LN + "p = MatMul (n, w)\n y = Add (p, n)",
            "the branches of the sum do not have the same scale"),
    Refusal("post-LN, deeper", "float[6,6] w", LN + "p = MatMul (n, w)\n r = Relu (p)\n q = Add (r, n)\n y = Relu (q)",
            "a shift would move its kink"),
    Refusal("graph output", "", LN.replace("n =", "y ="), "is an output of the model"),
    Refusal("graph output beside a linear", "float[6,5] w", LN + "y = MatMul (n, w)", "is an output of the model",
            outputs="float[] y, float[] n"),
    Refusal("one reader is not linear", "float[6,5] w, float[5] b",
            LN + "p = MatMul (n, w)\n y = Add (p, b)\n z = Sigmoid (n)", "no affine map",
            outputs="float[] y, float[] z"),
    Refusal("no bias behind to take the shift", "float[6,5] w", LN + "y = MatMul (n, w)", "is an output of the model"),
    Refusal("a product of two values", "", LN + "t = Transpose <perm=[0,2,1]> (n)\n y = MatMul (n, t)",
            "neither operand is constant"),
    Refusal("padded convolution", "float[5,6,3] k", LN + "t = Transpose <perm=[0,2,1]> (n)\n"
            "y = Conv <pads=[1,1]> (t, k)", "padded cells"),
    Refusal("dynamic scale", "float[6,5] w", LN + "y = MatMul (n, w)", "not constant",
            inputs=f"{TOKENS}, float[6] gamma", affine="float[6] beta"),
    Refusal("dynamic bias", "float[6,5] w", LN + "y = MatMul (n, w)", "not constant",
            inputs=f"{TOKENS}, float[6] beta", affine="float[6] gamma"),
    Refusal("weight is an input", "float b", LN + "y = MatMul (n, w)", "neither operand is constant",
            inputs=f"{TOKENS}, float[6,5] w"),
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_refused(case: Refusal) -> None:
    weights = ", ".join(text for text in (case.affine, case.weights) if text)
    proto = model(case.inputs, weights, case.body, outputs=case.outputs)
    new, ledger = reduced(proto)
    (entry,) = norm_entries(ledger)
    assert entry.outcome == "left"
    assert case.reason in entry.reason
    assert unchanged(new, proto)


def test_off_leaves_the_norm_whole() -> None:
    proto = INTO[0].model()
    new, ledger = reduced(proto, layernorm="off")
    assert initializers(new)["gamma"].tobytes() == initializers(proto)["gamma"].tobytes()
    assert norm_entries(ledger)[0].outcome == "left"


def test_kept_by_name() -> None:
    proto = INTO[0].model()
    proto.graph.node[0].name = "encoder.norm"
    new, ledger = reduced(proto, keep=("encoder.*",))
    assert initializers(new)["gamma"].tobytes() == initializers(proto)["gamma"].tobytes()
    assert norm_entries(ledger)[0].reason == "kept, as asked"


def test_a_weight_that_others_read_is_copied() -> None:
    body = LN + "p = MatMul (n, w)\n y = Add (p, b)\n z = MatMul (x, w)"
    proto = model(TOKENS, f"{AFFINE}, float[6,5] w, float[5] b", body, outputs="float[] y, float[] z")
    new, _ = reduced(proto)
    assert_exact(proto, new)
    _norm_is_bare(new, "LayerNormalization")
