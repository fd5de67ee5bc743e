"""Level ``recognise``: every spelling of a norm becomes one operator, and nothing else does."""

from __future__ import annotations

import itertools
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from norm_harness import (
    CONTRIB,
    assert_exact,
    assert_runs,
    counts,
    hard_feeds,
    model,
    norm_entries,
    reduced,
    run,
    truth,
    unchanged,
)
from onnx.reference import ReferenceEvaluator
from spelled_cases import (
    CHANNELS_FIRST,
    CONSTANTS,
    GROUP_NORMS,
    LAYER_NORMS,
    LOOKALIKES,
    RMS_NORMS,
    ROOT,
    Lookalike,
    Spelling,
)
from support import says

from normdeploy.errors import InputError
from normdeploy.fold import Ledger, Target, fold
from normdeploy.fold.graph.reader import View
from normdeploy.fold.layernorm import recognise
from normdeploy.fold.layernorm.spellings import Core, core_at
from normdeploy.fold.ledger import METADATA_KEY

SPELLINGS = [*LAYER_NORMS, *CHANNELS_FIRST, *RMS_NORMS, *GROUP_NORMS]


def _named(name: str) -> Spelling:
    (case,) = (case for case in SPELLINGS if case.name == name)
    return case


NORMS = {"LayerNormalization", "RMSNormalization", "GroupNormalization", *CONTRIB}


@pytest.mark.parametrize("case", SPELLINGS, ids=lambda case: case.name)
def test_every_spelling_becomes_one_operator(case: Spelling) -> None:
    proto = case.model()
    new, ledger = reduced(proto, target=case.target)
    assert counts(new) == Counter(case.becomes.split()), [str(entry) for entry in ledger]
    assert_exact(proto, new)
    assert_runs(new, proto)
    (entry,) = norm_entries(ledger)
    assert entry.outcome == "reduced"
    assert "operators are one" in entry.reason
    assert entry.residual is not None
    assert entry.residual <= 1e-12
    (node,) = (node for node in new.graph.node if node.op_type in NORMS)
    (epsilon,) = (attr.f for attr in node.attribute if attr.name == "epsilon")
    assert epsilon == np.float32(case.epsilon), "epsilon is as it was given"


@pytest.mark.parametrize(
    ("inputs", "back", "code"),
    [
        ("float[N,7,6] x", "int64[3] t = {-1, 7, 1}", "NF009"),
        ("float[2,6,6] x", "int64[3] t = {2, 1, 6}", "NF312"),
    ],
)
def test_it_is_told_where_the_axes_of_a_mean_are_wrong_and_where_they_are_not_known(
    inputs: str, back: str, code: str
) -> None:
    """A Reshape of what has another rank; the shape of its result may be lost to who infers shapes."""
    body = """n = ReduceMean (x, last) u = Unsqueeze (n, zeroth) m = Reshape (u, t) d = Sub (x, m) s = Mul (d, d)
        v = ReduceMean (s, last) e = Add (v, eps) r = Sqrt (e) y = Div (d, r)"""
    proto = model(inputs, f"{CONSTANTS}, int64[1] zeroth = {{0}}, {back}", body)
    _, ledger = reduced(proto)
    (entry,) = norm_entries(ledger)
    assert says(entry, code)


@pytest.mark.parametrize("case", LOOKALIKES, ids=lambda case: case.name)
def test_lookalikes_stay_as_they_are(case: Lookalike) -> None:
    proto = case.model()
    new, ledger = reduced(proto)
    assert not NORMS & set(counts(new)) - set(counts(proto))
    if not unchanged(new, proto):  # constant factors beside it are maps, and may have been composed
        assert_exact(proto, new)
    entries = norm_entries(ledger)
    if case.reason is None:
        assert not entries
    else:
        (entry,) = entries  # one norm, one entry, in however many places it looks like one
        assert says(entry, case.reason), str(entry)
        assert entry.outcome == "left"


def test_off_recognises_nothing() -> None:
    proto = LAYER_NORMS[0].model()
    new, ledger = reduced(proto, layernorm="off")
    assert unchanged(new, proto)
    assert not norm_entries(ledger)


def test_recognise_alone_keeps_the_affine_in_the_norm() -> None:
    case = _named("scale, bias and a linear")
    new, _ = reduced(case.model(), layernorm="recognise")
    (norm,) = (node for node in new.graph.node if node.op_type == "LayerNormalization")
    assert len(norm.input) == 3
    assert counts(new) == Counter(["LayerNormalization", "MatMul", "Add"])
    assert_exact(case.model(), new)


@pytest.mark.parametrize("option", ["layernorm", "target"])
def test_unknown_words_are_one_error(option: str) -> None:
    with pytest.raises(InputError, match=f"{option} must be one of"):
        fold(LAYER_NORMS[0].model(), **{option: "everything"})


def test_kept_by_name() -> None:
    proto = LAYER_NORMS[0].model()
    for node in proto.graph.node:
        node.name = f"norm/{node.output[0]}"
    new, _ = reduced(proto, keep=("norm/*",))
    assert unchanged(new, proto)


def test_the_operator_bears_the_module_and_node_of_the_division() -> None:
    proto = LAYER_NORMS[0].model()
    for node in proto.graph.node:
        node.name = f"node/{node.output[0]}"
        node.metadata_props.add(key="normdeploy.module", value="encoder.norm")
    new, ledger = reduced(proto)
    (entry,) = norm_entries(ledger)
    assert (entry.module, entry.node, new.graph.node[0].name) == ("encoder.norm", "node/y", "node/y")
    assert new.graph.node[0].metadata_props[0].value == "encoder.norm"


# -- dtypes ----------------------------------------------------------------------------------------


def _attribute(proto: onnx.ModelProto, name: str) -> int:
    (value,) = (attr.i for node in proto.graph.node for attr in node.attribute if attr.name == name)
    return int(value)


def test_statistics_of_16_bits_are_float32() -> None:
    case = _named("half precision throughout")
    new, _ = reduced(case.model())
    assert _attribute(new, "stash_type") == onnx.TensorProto.FLOAT


def test_statistics_of_float64_are_float64() -> None:
    case = _named("double precision throughout")
    new, _ = reduced(case.model())
    assert _attribute(new, "stash_type") == onnx.TensorProto.DOUBLE


def test_half_precision_with_large_values_no_longer_overflows() -> None:
    case = _named("half precision throughout")
    proto = case.model()
    new, _ = reduced(proto)
    x = (np.random.default_rng(3).standard_normal((2, 7, 6)) * 2000).astype(np.float16)
    want = truth(proto, {"x": x})["y"]
    assert np.abs(run(new, {"x": x})[0] - want).max() < 0.01
    with np.errstate(all="ignore"):
        (spelled,) = ReferenceEvaluator(proto).run(None, {"x": x})
    assert not np.allclose(spelled, want, atol=0.1), "squares overflow where they are float16: that is the point"


# -- hard rows, as onnxruntime runs them -----------------------------------------------------------


@pytest.mark.parametrize("case", [LAYER_NORMS[0], *(c for c in LAYER_NORMS if c.name.startswith("moments"))],
                         ids=lambda case: case.name)  # fmt: skip
def test_huge_means_come_out_as_well_as_float32_can_tell(case: Spelling) -> None:
    proto = case.model()
    new, _ = reduced(proto)
    feed = next(feed for name, feed in hard_feeds(proto) if name == "huge mean")
    error = np.abs(run(new, feed)[0] - truth(proto, feed)["y"]).max()
    # x - mean is off by half an ulp of 1e4; E[x²] - E[x]² in float32 would be off by more than the variance.
    assert error < 1e4 * 2.0**-22


@pytest.mark.parametrize("case", LAYER_NORMS[:10], ids=lambda case: case.name)
def test_constant_rows_are_exactly_zero(case: Spelling) -> None:
    proto = case.model()
    new, _ = reduced(proto)
    feed = next(feed for name, feed in hard_feeds(proto) if name == "constant rows")
    assert not np.any(run(new, feed)[0])


def test_constant_rows_survive_the_epsilon_of_bert() -> None:
    case = _named("epsilon of BERT")
    new, _ = reduced(case.model())
    assert not np.any(run(new, {"x": np.full((1, 7, 6), 3.0, np.float32)})[0])


def test_group_norms_keep_large_means_in_onnxruntime() -> None:
    """It has no kernel for the operator: what was exact by InstanceNormalization would be off by a tenth."""
    proto = GROUP_NORMS[0].model()
    kept, ledger = reduced(proto, target="onnxruntime")
    one, _ = reduced(proto)
    x = (1e3 + np.random.default_rng(5).standard_normal((2, 6, 8, 11))).astype(np.float32)
    errors = [np.abs(run(each, {"x": x})[0] - truth(proto, {"x": x})["y"]).max() for each in (proto, kept, one)]
    assert errors[1] <= 2 * errors[0] < 1e-3 < 0.01 < errors[2], "or ONNX Runtime has learnt it: then let it have one"
    assert says(norm_entries(ledger)[0], "NF316")


@pytest.mark.parametrize(("target", "notes"), [("onnx", 1), ("onnxruntime", 0), ("tensorrt", 0)])
def test_who_runs_a_group_norm_is_told_of_large_means(target: Target, notes: int) -> None:
    _, ledger = reduced(GROUP_NORMS[0].model(), target=target)
    assert [note.code for note in ledger.notes] == ["NF411"] * notes


JOINED = """
a = MatMul (x, k)
t = Add (a, x)
m = ReduceMean (t, last)
d = Sub (t, m)
s = Mul (d, d)
v = ReduceMean (s, last)
e = Add (v, eps)
r = Sqrt (e)
z = Div (d, r)
y = {}
"""


@pytest.mark.parametrize(
    ("end", "target", "notes"),
    [
        ("Mul (z, gamma)", "onnx", 1), ("Mul (z, gamma)", "onnxruntime", 1), ("Mul (z, gamma)", "tensorrt", 0),
        ("Add (z, t)", "onnx", 0),
    ],
    ids=["any runtime", "ONNX Runtime", "TensorRT", "the sum is read again"],
)  # fmt: skip
def test_who_runs_a_norm_that_is_joined_with_a_sum_is_told(end: str, target: Target, notes: int) -> None:
    """The advice is tried: with it ONNX Runtime joins none, without it one."""
    proto = Spelling("joined", JOINED.format(end), weights="float[6,6] k, float[6] gamma").model()
    new, ledger = reduced(proto, target=target)
    assert [note.code for note in ledger.notes] == ["NF421"] * notes
    assert "SkipLayerNormalization" not in _optimized(proto)
    assert ("SkipLayerNormalization" in _optimized(new)) is (notes == 1 or target == "tensorrt")
    assert "SkipLayerNormalization" not in _optimized(new, disabled_optimizers=["SkipLayerNormFusion"])


def _optimized(proto: onnx.ModelProto, **options: list[str]) -> set[str]:
    """The operators that ONNX Runtime makes of a model."""
    with tempfile.TemporaryDirectory() as folder:
        settings = onnxruntime.SessionOptions()
        settings.optimized_model_filepath = f"{folder}/optimized.onnx"
        onnxruntime.InferenceSession(proto.SerializeToString(), settings, **options)
        return {node.op_type for node in onnx.load(settings.optimized_model_filepath).graph.node}


# -- the proof -------------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[Spelling, Callable[[Core], Core]]] = {
    "another epsilon": (LAYER_NORMS[0], lambda core: replace(core, epsilon=2.0 * core.epsilon)),
    "no epsilon": (_named("epsilon of BERT"), lambda core: replace(core, epsilon=0.0)),
    "the mean is not taken off": (LAYER_NORMS[0], lambda core: replace(core, kind="RMSNormalization")),
    "the mean is taken off": (RMS_NORMS[0], lambda core: replace(core, kind="LayerNormalization")),
    "one axis more": (LAYER_NORMS[0], lambda core: replace(core, axes=(1, 2))),
    "another axis": (LAYER_NORMS[0], lambda core: replace(core, axes=(1,))),
    "one axis less": (_named("several axes"), lambda core: replace(core, axes=(2,))),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_proof_catches_a_matcher_that_is_wrong(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, spoil = MISTAKES[mistake]

    def wrong(view: View, node: ir.Node) -> Core | None:
        core = core_at(view, node)
        return None if core is None else spoil(core)

    monkeypatch.setattr(recognise, "core_at", wrong)
    proto = case.model()
    result = fold(proto)
    assert [dropped.code for dropped in result.ledger.dropped] == ["NF401"]
    assert unchanged(ir.to_proto(result.model), proto)


# -- all parts with all parts ------------------------------------------------------------------

DIFFERENCES = ["d = Sub (x, m)\n", "g = Neg (m)\n d = Add (g, x)\n", "g = Neg (m)\n d = Add (x, g)\n"]
SQUARES = ["s = Mul (d, d)\n", "s = Pow (d, two)\n", "s = Pow (d, itwo)\n"]
MEANS = [
    "v = ReduceMean (s, last)\n",
    "v = ReduceMean (s, third)\n",
    "a = ReduceMean <keepdims=0> (s, last)\n v = Unsqueeze (a, last)\n",
    "a = ReduceSum (s, last)\n v = Div (a, six)\n",
    "a = ReduceSum (s, last)\n b = Mul (a, two)\n c = Mul (six, two)\n v = Div (b, c)\n",
]
EPSILONS = ["e = Add (v, eps)\n", "e = Add (eps, v)\n", "w = Relu (v)\n e = Add (w, eps)\n"]
QUOTIENTS = [
    "r = Sqrt (e)\n y = Div (d, r)",
    "r = Pow (e, half)\n y = Div (d, r)",
    "r = Sqrt (e)\n i = Reciprocal (r)\n y = Mul (i, d)",
    "r = Sqrt (e)\n i = Div (one, r)\n y = Mul (d, i)",
    "r = Pow (e, mhalf)\n y = Mul (d, r)",
    "i = Reciprocal (e)\n r = Sqrt (i)\n y = Mul (d, r)",
    "r = Sqrt (e)\n t = Mul (gamma, d)\n y = Div (t, r)",
    "r = Sqrt (e)\n i = Reciprocal (r)\n k = Mul (gamma, i)\n y = Mul (d, k)",
    "r = Sqrt (e)\n i = Reciprocal (r)\n k = Mul (gamma, i)\n p = Mul (x, k)\n q = Mul (m, k)\n y = Sub (p, q)",
]
COMBINED = list(itertools.product(DIFFERENCES, SQUARES, MEANS, EPSILONS, QUOTIENTS))


def test_every_part_goes_with_every_other() -> None:
    for parts in random.Random(0).sample(COMBINED, 80):  # of 1,215; seeded
        body = "m = ReduceMean (x, last)\n" + "".join(parts)
        proto = model("float[N,7,6] x", f"{CONSTANTS}, float six = {{6.0}}, float[6] gamma", body, opset=21)
        new, _ = reduced(proto)
        assert counts(new) == Counter(["LayerNormalization"]), body
        assert_exact(proto, new)


# -- more than one norm ----------------------------------------------------------------------------


def test_norms_that_share_their_mean_are_both_recognised() -> None:
    body = ROOT + "y = Div (d, r)\n i = Reciprocal (r)\n z = Mul (d, i)"
    proto = model("float[N,7,6] x", CONSTANTS, body, outputs="float[] y, float[] z", opset=21)
    new, ledger = reduced(proto)
    assert counts(new) == Counter(["LayerNormalization"] * 2)
    assert [entry.outcome for entry in norm_entries(ledger)] == ["reduced", "reduced"]
    assert_exact(proto, new)


def test_one_norm_behind_another() -> None:
    second = (
        "m2 = ReduceMean (y, last)\n d2 = Sub (y, m2)\n s2 = Mul (d2, d2)\n v2 = ReduceMean (s2, last)\n"
        "e2 = Add (v2, eps)\n i2 = Pow (e2, mhalf)\n z = Mul (d2, i2)"
    )
    body = ROOT + "y = Div (d, r)\n" + second
    proto = model("float[N,7,6] x", CONSTANTS, body, outputs="float[] z", opset=21)
    new, _ = reduced(proto)
    assert counts(new) == Counter(["LayerNormalization"] * 2)
    assert_exact(proto, new)


def test_folding_again_changes_nothing() -> None:
    for case in (LAYER_NORMS[0], CHANNELS_FIRST[1], RMS_NORMS[0], GROUP_NORMS[0]):
        once, _ = reduced(case.model())
        twice, _ = reduced(once)
        assert unchanged(twice, once)


def test_the_file_remembers_what_the_first_fold_did() -> None:
    once, _ = reduced(LAYER_NORMS[0].model())
    twice, _ = reduced(once)
    remembered = [_kept_ledger(proto) for proto in (once, twice)]
    assert remembered[0] == remembered[1]
    assert "operators are one" in remembered[1].norms()[0].reason


def _kept_ledger(proto: onnx.ModelProto) -> Ledger:
    (text,) = (prop.value for prop in proto.metadata_props if prop.key == METADATA_KEY)
    return Ledger.from_json(text)


# -- affine that does not belong -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axis"), [("7,1", "tokens"), ("N,7,6", "tokens and batch")], ids=["per token", "per element of a batch"]
)
def test_a_scale_over_other_axes_stays_behind(shape: str, axis: str) -> None:
    weights = f"{CONSTANTS}, float[{shape}] scale".replace("N", "2")
    proto = model("float[2,7,6] x", weights, ROOT + "z = Div (d, r)\n y = Mul (z, scale)", opset=21)
    new, _ = reduced(proto)
    assert counts(new) == Counter(["LayerNormalization", "Mul"]), axis
    assert_exact(proto, new)


def test_a_vector_as_long_as_channels_and_tokens_goes_where_numpy_puts_it() -> None:
    """Channels first with as many tokens as channels: a vector scales tokens, and is no scale of the norm."""
    body = (
        "m = ReduceMean (x, second)\n d = Sub (x, m)\n s = Mul (d, d)\n v = ReduceMean (s, second)\n"
        "e = Add (v, eps)\n r = Sqrt (e)\n z = Div (d, r)\n y = Mul (z, gamma)"
    )
    proto = model("float[N,6,6] x", f"{CONSTANTS}, float[6] gamma", body, opset=21)
    new, _ = reduced(proto)
    assert counts(new) == Counter(["Transpose", "LayerNormalization", "Transpose", "Mul"])
    assert_exact(proto, new)
