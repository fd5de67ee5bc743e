"""Level ``affine``: the scale and bias of a norm go into every consumer, or stay whole with the reason."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from affine_cases import (
    AFFINE,
    INTO,
    LN,
    REFUSED,
    RMS,
    THROUGH,
    TOKENS,
    TWIN_WEIGHTS,
    TWO_LINEARS,
    Case,
    Refusal,
    twins,
)
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
from support import says


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
    assert says(norm_entries(ledger)[0], "NF111")
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
    assert any(says(entry, "NF015") for entry in ledger)


# -- twins -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("proto", [twins(), twins(one=", epsilon=1e-5", two=", stash_type=1"), twins(axis=2)],
                         ids=["equal", "defaults spelled out", "axis counted from the front"])  # fmt: skip
def test_twins_become_one(proto: onnx.ModelProto) -> None:
    new, ledger = reduced(proto)
    assert counts(new)["LayerNormalization"] == 1
    assert_exact(proto, new)
    assert sorted(entry.outcome for entry in norm_entries(ledger)) == ["composed", "reduced"]


def test_norms_with_another_epsilon_are_notwins() -> None:
    proto = twins(one=", epsilon=1e-5", two=", epsilon=1e-12")
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


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_refused(case: Refusal) -> None:
    proto = case.model()
    new, ledger = reduced(proto)
    (entry,) = norm_entries(ledger)
    assert entry.outcome == "left"
    assert says(entry, case.reason)
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
    assert says(norm_entries(ledger)[0], "NF008")


def test_a_weight_that_others_read_is_copied() -> None:
    body = LN + "p = MatMul (n, w)\n y = Add (p, b)\n z = MatMul (x, w)"
    proto = model(TOKENS, f"{AFFINE}, float[6,5] w, float[5] b", body, outputs="float[] y, float[] z")
    new, _ = reduced(proto)
    assert_exact(proto, new)
    _norm_is_bare(new, "LayerNormalization")
