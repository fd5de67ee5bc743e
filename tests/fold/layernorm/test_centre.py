"""Level ``centre``: whole streams are centred, and their LayerNorms become RMSNorms, or nothing of them changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from norm_harness import (
    TOLERANCE,
    assert_exact,
    assert_runs,
    counts,
    deviation,
    initializers,
    norm_entries,
    reduced,
    run,
    truth,
    unchanged,
    with_values,
)
from stream_cases import CENTRED, REFUSED, Stream
from support import says

from normdeploy.fold import fold
from normdeploy.fold.graph.edits import Edit
from normdeploy.fold.graph.reader import FAILED_PROOFS
from normdeploy.fold.layernorm import centre, stream
from normdeploy.fold.operators.rows import Feature
from normdeploy.fold.operators.table import TABLE


def _centred(case: Stream, proto: onnx.ModelProto | None = None, **options: object) -> onnx.ModelProto:
    new, _ = reduced(proto or case.model(), layernorm="centre", target=case.target, **options)
    return new


def _affine(case: Stream, proto: onnx.ModelProto | None = None) -> onnx.ModelProto:
    new, _ = reduced(proto or case.model(), layernorm="affine", target=case.target)
    return new


def _rms(proto: onnx.ModelProto) -> int:
    return counts(proto)["RMSNormalization"] + counts(proto)["SimplifiedLayerNormalization"]


@pytest.mark.parametrize("case", CENTRED, ids=lambda case: case.name)
def test_a_stream_is_centred_as_a_whole(case: Stream) -> None:
    proto = case.model()
    new, ledger = reduced(proto, layernorm="centre", target=case.target)
    assert (_rms(new), counts(new)["LayerNormalization"]) == (case.rms, case.layer), [str(e.reason) for e in ledger]
    assert_exact(proto, new)
    if case.onnxruntime:
        assert_runs(new, proto)
    gone = [entry for entry in norm_entries(ledger) if "its mean is gone" in entry.reason]
    assert len(gone) == case.rms
    assert all(entry.outcome == "reduced" and entry.kind == "LayerNormalization" for entry in gone)
    assert all(entry.residual is not None and entry.residual <= 1e-12 for entry in gone)
    stayed = [entry for entry in norm_entries(ledger) if entry not in gone]
    assert all(says(entry, case.reason) for entry in stayed)


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_one_writer_or_reader_refuses_the_whole_stream(case: Stream) -> None:
    proto = case.model()
    new, ledger = reduced(proto, layernorm="centre", target=case.target)
    assert unchanged(new, _affine(case)), "nothing but what the level before does"
    assert counts(new)["LayerNormalization"] == case.layer
    entries = norm_entries(ledger)
    assert any(says(entry, case.reason) for entry in entries), [str(entry) for entry in entries]
    assert_exact(proto, new)


@pytest.mark.parametrize("level", ["off", "recognise", "affine"])
def test_lower_levels_keep_the_mean(level: str) -> None:
    new, _ = reduced(CENTRED[0].model(), layernorm=level)
    assert counts(new)["LayerNormalization"] == 2


def test_folding_again_changes_nothing() -> None:
    once = _centred(CENTRED[0])
    assert unchanged(_centred(CENTRED[0], once), once)


def test_a_kept_norm_stays_and_the_others_go() -> None:
    proto = CENTRED[0].model()
    for node in proto.graph.node:
        node.name = f"node/{node.output[0]}"
    new = _centred(CENTRED[0], proto, keep=("node/m",))
    assert (_rms(new), counts(new)["LayerNormalization"]) == (1, 1)
    assert_exact(proto, new)


# -- the weights -----------------------------------------------------------------------------------


def test_every_writer_has_no_mean_left() -> None:
    arrays = initializers(_centred(CENTRED[0]))
    for name in ("table", "pos", "w2", "c2"):
        size = np.abs(arrays[name]).max()
        assert np.abs(arrays[name].astype(np.float64).mean(axis=-1)).max() <= size * 2.0**-23, name


def test_a_tied_head_is_untied_and_keeps_its_table() -> None:
    case = next(case for case in CENTRED if case.name == "tied head")
    proto = case.model()
    new, ledger = reduced(proto, layernorm="centre")
    table = initializers(proto)["table"]
    tables = [array for array in initializers(new).values() if array.shape in ((8, 6), (6, 8))]
    assert len(tables) == 2
    assert any(np.allclose(array, table - table.mean(axis=-1, keepdims=True), atol=1e-6) for array in tables)
    assert all("a copy of" in entry.reason or entry.into for entry in norm_entries(ledger))


def test_untied_where_the_head_reads_the_table_itself() -> None:
    """Without an affine to fold, nothing has untied the head before."""
    ones = {"g2": [1.0] * 6, "b2": [0.0] * 6}
    case = next(case for case in CENTRED if case.name == "tied head")
    proto = with_values(case.model(), **ones)
    new, ledger = reduced(proto, layernorm="centre")
    np.testing.assert_array_equal(initializers(new)["table"].T, initializers(proto)["table"])  # as the head reads it
    assert _rms(new) == 2
    assert_exact(proto, new)
    assert any("a copy of" in entry.reason for entry in norm_entries(ledger))


def test_a_huge_mean_in_the_tables_is_gone_and_float32_is_better_for_it() -> None:
    case = CENTRED[0]
    proto = case.model()
    arrays = initializers(proto)
    proto = with_values(proto, table=arrays["table"] + 1e4, pos=arrays["pos"] - 3e3)
    new = _centred(case, proto)
    assert_exact(proto, new)
    feed = {"ids": np.arange(14).reshape(2, 7) % 8}
    want = truth(proto, feed)["y"]
    before, after = (float(np.abs(run(model, feed)[0] - want).max()) for model in (proto, new))
    assert after < before / 10


def test_constant_features_come_out_as_before() -> None:
    """Rows of a table that are equal for all features: all that is left of them is exactly nothing."""
    case = CENTRED[0]
    proto = with_values(case.model(), table=np.full((8, 6), 3.0), pos=np.zeros((7, 6)))
    new = _centred(case, proto)
    assert not np.any(initializers(new)["table"])
    assert_exact(proto, new)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "double"])
def test_other_dtypes(dtype: str) -> None:
    from norm_harness import model
    from stream_cases import AFFINES, LINEARS, NORMED, TABLES, TOKENS

    weights = ", ".join((AFFINES, LINEARS, TABLES)).replace("float", dtype)
    proto = model(TOKENS, weights, NORMED, outputs=f"{dtype}[] y", opset=23)
    new = _centred(CENTRED[0], proto)
    assert _rms(new) == 2
    assert_exact(proto, new)


def test_a_linear_that_annihilates_the_mean_may_read_the_stream() -> None:
    case = next(case for case in REFUSED if case.name == "a head without a norm")
    proto = case.model()
    head = initializers(proto)["head"]
    whole = np.round(head * 8) / 8
    whole[-1] -= whole.sum(axis=0)  # eighths: the columns sum to exactly 0
    proto = with_values(proto, head=whole, g2=[1.0] * 6, b2=[0.0] * 6)
    new = _centred(case, proto)
    assert _rms(new) == 2
    assert_exact(proto, new)


def test_nearly_annihilating_is_not_enough() -> None:
    case = next(case for case in REFUSED if case.name == "a head without a norm")
    proto = case.model()
    head = initializers(proto)["head"].astype(np.float64)
    proto = with_values(proto, head=head - head.mean(axis=0), g2=[1.0] * 6, b2=[0.0] * 6)
    assert _rms(_centred(case, proto)) == 0, "rounded to float32, its columns sum to 1e-8 and not to 0"


def test_a_branch_that_reads_the_stream_refuses_it() -> None:
    proto = CENTRED[0].model()
    branch = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 23]> g (bool c, float[2,7,6] z) => (float[2,7,6] t) {
            t = If (c) <then_branch = a () => (float[2,7,6] ta) { ta = Relu (z) },
                        else_branch = b () => (float[2,7,6] tb) { tb = Identity (z) }>
        }"""
    )
    proto.graph.input.append(branch.graph.input[0])
    proto.graph.node.append(branch.graph.node[0])
    proto.graph.output.append(branch.graph.output[0])
    new, ledger = reduced(proto, layernorm="centre")
    assert _rms(new) == 0
    assert all(says(entry, "NF004") for entry in norm_entries(ledger))


# -- edits -----------------------------------------------------------------------------------------


def _edit() -> tuple[Edit, np.ndarray]:
    array = np.random.default_rng(2).standard_normal((3, 4)).astype(np.float32)
    return Edit(ir.tensor(array), ir.DataType.FLOAT), array.astype(np.float64)


def test_a_centring_comes_after_all_factors() -> None:
    edit, array = _edit()
    factor, shift = np.arange(1.0, 5.0), np.arange(4.0)
    whole = array * factor + shift
    edited = edit.scaled(left=factor).shifted(shift).without_mean(-1)
    np.testing.assert_allclose(edited.exact(), whole - whole.mean(-1, keepdims=True), atol=1e-15)
    assert edited.rounded().dtype == np.float32
    assert edited.shape == (3, 4)


def test_what_follows_a_centring_acts_on_the_centred_tensor() -> None:
    edit, array = _edit()
    centred = array - array.mean(-1, keepdims=True)
    factor = np.arange(1.0, 5.0)
    np.testing.assert_allclose(edit.without_mean(-1).scaled(right=factor).exact(), centred * factor, atol=1e-15)
    np.testing.assert_allclose(edit.without_mean(-1).shifted(factor).exact(), centred + factor, atol=1e-15)


def test_a_centring_is_a_projection() -> None:
    edit, array = _edit()
    once = edit.without_mean(-1)
    np.testing.assert_array_equal(once.without_mean(-1).exact(), once.exact())
    both = array - array.mean(0, keepdims=True)
    both = both - both.mean(1, keepdims=True)
    np.testing.assert_allclose(edit.without_mean(0).without_mean(1).exact(), both, atol=1e-15)


# -- mutants ---------------------------------------------------------------------------------------

BOTH_HALVES = [case for case in REFUSED if case.opset == 23 and case.target == "onnx"]


@pytest.mark.parametrize("case", BOTH_HALVES, ids=lambda case: case.name)
def test_the_proof_refuses_what_the_search_should_have(case: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that overlooks every problem: the proof must see each of them by itself."""
    monkeypatch.setattr(centre, "stream_at", _changed(lambda found: found.problems.clear()))
    result = fold(case.model(), layernorm="centre")
    blamed = [entry for entry in result.ledger if FAILED_PROOFS & set(entry.codes)]
    assert blamed, "nothing was proven wrong"
    assert any(dropped.code in FAILED_PROOFS for dropped in result.ledger.dropped)
    assert sum("its mean is gone" in entry.reason for entry in result.ledger) <= case.layer - len(blamed)


def _state(patch: pytest.MonkeyPatch, name: str, **told: object) -> None:
    """Let the row of an operator state what is not so."""
    patch.setitem(TABLE, name, replace(TABLE[name], **told))  # type: ignore[arg-type]


def _overlook(patch: pytest.MonkeyPatch, what: str) -> None:
    """A search that has learnt one thing wrongly."""
    if what == "Relu reads shapes alone":
        _state(patch, "Relu", shape_only=True)
    elif what == "Relu moves elements":
        _state(patch, "Relu", carries=True)
    elif what == "every linear annihilates the mean":
        patch.setattr(stream._Explorer, "_is_annihilated", lambda self, node, index, axis: node.op_type == "MatMul")
    elif what == "every norm writes without a mean":
        _state(patch, "LayerNormalization", centre=lambda step, axis: iter(()))
    elif what == "every convolution has a common mean":
        _state(patch, "Conv", centre=lambda step, axis: iter([Feature(1, 0), Feature(2, 0)]))
    else:
        assert what == "every product scales by one number"
        ends = lambda self, node, index, axis: ({0: axis}, {0: axis}) if index in (None, 0) else None  # noqa: E731
        patch.setattr(stream._Explorer, "_through_scaling", ends)


OVERLOOKED = {
    "a tap": "Relu reads shapes alone",
    "an activation writes": "Relu moves elements",
    "a head without a norm": "every linear annihilates the mean",
    "a linear branch without a norm": "every linear annihilates the mean",
    "post-LN": "every norm writes without a mean",
    "a depthwise convolution": "every convolution has a common mean",
    "a gate that is not constant": "every product scales by one number",
}


@pytest.mark.parametrize(("name", "what"), OVERLOOKED.items(), ids=OVERLOOKED)
def test_a_search_that_is_wrong_in_one_rule_is_caught(name: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the proof; and where nothing is proven, by what these tests compare."""
    proto = next(case for case in REFUSED if case.name == name).model()
    _overlook(monkeypatch, what)
    result = fold(proto, layernorm="centre")
    assert any(dropped.code in FAILED_PROOFS for dropped in result.ledger.dropped)
    assert deviation(proto, ir.to_proto(result.model)) <= TOLERANCE["float32"]
    mutant = ir.to_proto(fold(proto, layernorm="centre", validate=False).model)
    assert _rms(mutant) > _rms(ir.to_proto(result.model))
    assert deviation(proto, mutant) > 1e3 * TOLERANCE["float32"]


@pytest.mark.parametrize("slot", range(4))
def test_a_writer_that_is_left_uncentred_is_caught(slot: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(found: stream.Stream) -> None:
        found.weights.pop(list(found.weights)[slot])

    monkeypatch.setattr(centre, "stream_at", _changed(forget))
    proto = CENTRED[0].model()
    result = fold(proto, layernorm="centre")
    assert result.ledger.dropped[0].code in FAILED_PROOFS
    assert not any(node.op_type == "RMSNormalization" for node in result.model.graph)
    unproven = ir.to_proto(fold(proto, layernorm="centre", validate=False).model)
    assert _rms(unproven) == 2
    assert deviation(proto, unproven) > 1e3 * TOLERANCE["float32"], "these tests see the mutant too"


@pytest.mark.parametrize("name", ["a head without a norm", "a tap", "pooled into a head", "pooled output"])
def test_a_reader_that_keeps_the_mean_would_be_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(centre, "stream_at", _changed(lambda found: found.problems.clear()))
    proto = next(case for case in REFUSED if case.name == name).model()
    monkeypatch.setattr(centre, "proven", lambda plan, square: None)
    mutant = ir.to_proto(fold(proto, layernorm="centre", validate=False).model)
    assert _rms(mutant) == 2
    assert deviation(proto, mutant) > 1e3 * TOLERANCE["float32"]


def test_centring_over_the_wrong_axis_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def turn(found: stream.Stream) -> None:
        found.weights = {slot: None if axis is None else 0 for slot, axis in found.weights.items()}

    monkeypatch.setattr(centre, "stream_at", _changed(turn))
    result = fold(CENTRED[0].model(), layernorm="centre")
    assert result.ledger.dropped[0].code in FAILED_PROOFS


def _changed(change: Callable[[stream.Stream], None]) -> Callable[..., stream.Stream]:
    def explore(*arguments: object) -> stream.Stream:
        found = stream.stream_at(*arguments)  # type: ignore[arg-type]
        change(found)
        return found

    return explore
