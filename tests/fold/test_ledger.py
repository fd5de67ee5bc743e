"""The ledger: every norm by its module's name, what became of it, how far weights changed, and why one stayed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from harness import bn, folded, initializers, model, norm
from onnx import numpy_helper

from normdeploy.errors import InputError
from normdeploy.fold import Entry, Ledger, Note, fold
from normdeploy.fold.ledger import METADATA_KEY, left
from normdeploy.graph import MODULE_KEY


def named(proto: onnx.ModelProto, *modules: str) -> onnx.ModelProto:
    """``proto`` with a module name on each of its nodes."""
    for node, module in zip(proto.graph.node, modules, strict=True):
        node.metadata_props.add(key=MODULE_KEY, value=module)
    return proto


def two_norms() -> onnx.ModelProto:
    """One norm that folds through a Transpose, one that has to stay."""
    proto = model(
        "float[2,3,8,11] x",
        f"float[5,3,3,3] w, {bn(5)}, {bn(5, '2')}",
        "c = Conv (x, w)\n t = Transpose <perm=[0,1,3,2]> (c)\n"
        + norm("t", "n")
        + "s = Sigmoid (n)\n"
        + norm("s", "y", "2"),
    )
    return named(proto, "stem.conv", "stem", "stem.norm", "stem.act", "head.norm")


def test_every_norm_is_listed_by_its_module() -> None:
    _, ledger = folded(two_norms())
    assert [(entry.module, entry.kind, entry.norm) for entry in ledger] == [
        ("stem.norm", "BatchNormalization", True),
        ("head.norm", "BatchNormalization", True),
    ]


def test_what_became_of_a_norm_that_folded() -> None:
    _, ledger = folded(two_norms())
    entry = ledger.entries[0]
    assert (entry.outcome, entry.into, entry.through, entry.reason) == ("folded", ("stem.conv",), ("Transpose",), "")
    assert str(entry) == "folded into stem.conv through Transpose"
    assert entry.residual is not None
    assert entry.residual <= 1e-12


def test_why_a_norm_stayed() -> None:
    _, ledger = folded(two_norms())
    entry = ledger.entries[1]
    assert (entry.outcome, entry.into, entry.residual, entry.ulps) == ("left", (), None, None)
    assert entry.codes[0] == "NF001"
    assert "(Sigmoid stem.act)" in entry.reason
    assert str(entry) == f"left: {entry.reason} [{', '.join(entry.codes)}]"
    assert left(ledger) == [entry]


def test_what_would_make_it_foldable() -> None:
    proto = model("float[2,3,8,11] x", f"float[5,3,3,3] w, {bn(3)}, float[3] v", norm("x", "t")
                  + "y = Conv <pads=[1,1,1,1]> (t, w)")  # fmt: skip
    _, ledger = folded(proto)
    entry = ledger.entries[0]
    assert entry.outcome == "reduced"
    assert "its shift stays as one Add" in entry.reason
    assert entry.fix


def test_a_norm_without_a_module_is_called_by_its_node() -> None:
    proto = model("float[2,3,8,11] x", f"float[5,3,3,3] w, {bn(5)}", "c = Conv (x, w)\n" + norm("c", "y"))
    proto.graph.node[1].name = "BatchNormalization_7"
    assert folded(proto)[1].entries[0].module == "BatchNormalization_7"
    proto.graph.node[1].name = ""
    assert folded(proto)[1].entries[0].module == "y"


def test_the_names_that_torch_writes_are_understood() -> None:
    proto = model("float[2,3,8,11] x", f"float[5,3,3,3] w, {bn(5)}", "c = Conv (x, w)\n" + norm("c", "y"))
    scopes = "['', 'layer1', 'layer1.0.bn1', 'batch_norm']"
    proto.graph.node[1].metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    assert folded(proto)[1].entries[0].module == "layer1.0.bn1"


def test_the_ulps_are_those_of_the_stored_weight() -> None:
    proto = model("float[2,3,8,11] x", "float[5,3,3,3] w, float s", "c = Conv (x, w)\n y = Mul (c, s)")
    step = np.float32(1.0) + np.float32(2.0**-22)  # two ulps above 1
    weight = np.ones((5, 3, 3, 3), np.float32)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend([numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array(step), "s")])
    assert folded(proto)[1].entries[0].ulps == 2.0


def test_a_composed_norm_says_what_it_joined() -> None:
    proto = model("float[2,3,8,11] x", f"{bn(3)}, {bn(3, '2')}", "r = Sigmoid (x)\n" + norm("r", "n")
                  + norm("n", "m", "2") + "y = Sigmoid (m)")  # fmt: skip
    _, ledger = folded(named(proto, "act", "first", "second", "act2"))
    assert [(entry.module, entry.outcome) for entry in ledger] == [("first", "composed"), ("second", "left")]
    assert ledger.entries[0].into == ("second",)


def test_a_norm_that_went_with_another_says_where_it_ended() -> None:
    proto = model("float[2,3,8,11] x", f"float[5,3,1,1] w, {bn(3)}, {bn(3, '2')}", "r = Sigmoid (x)\n" + norm("r", "n")
                  + norm("n", "m", "2") + "y = Conv (m, w)")  # fmt: skip
    _, ledger = folded(named(proto, "act", "first", "second", "conv"))
    assert [(entry.module, entry.outcome, entry.into) for entry in ledger] == [
        ("first", "folded", ("conv",)),
        ("second", "folded", ("conv",)),
    ]


def test_it_travels_in_the_file(tmp_path: Path) -> None:
    result = fold(two_norms())
    ir.save(result.model, tmp_path / "model.onnx")
    props = {prop.key: prop.value for prop in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert Ledger.from_json(props[METADATA_KEY]).entries == result.ledger.entries


def test_equal_folds_give_equal_bytes() -> None:
    first, second = (ir.to_proto(fold(two_norms()).model).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second


def test_a_second_fold_remembers_the_first() -> None:
    once, first = folded(two_norms())
    twice, second = folded(once)
    props = {prop.key: prop.value for prop in twice.metadata_props}
    assert {entry.module: entry.outcome for entry in Ledger.from_json(props[METADATA_KEY])} == {
        "stem.norm": "folded",
        "head.norm": "left",
    }
    assert [entry.module for entry in second] == ["head.norm"]
    assert first.entries[0] in Ledger.from_json(props[METADATA_KEY]).entries


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"entries": 3}', '{"entries": [{"a": 1}], "notes": []}'])
def test_a_ledger_that_is_not_ours_is_replaced(text: str) -> None:
    proto = two_norms()
    proto.metadata_props.add(key=METADATA_KEY, value=text)
    new, ledger = folded(proto)
    props = {prop.key: prop.value for prop in new.metadata_props}
    assert Ledger.from_json(props[METADATA_KEY]).entries == ledger.entries


def test_json_there_and_back() -> None:
    entry = Entry(
        "a.b",
        "n",
        "BatchNormalization",
        True,
        "folded",
        ("c",),
        ("Relu", "Conv"),
        3.5,
        1e-16,
        "r",
        "f",
        ("NF001", "NF108"),
    )
    ledger = Ledger((entry,), (Note("NF415", "note"),), 1.5, 0.25, (Note("NF401", "dropped"),))
    assert Ledger.from_json(ledger.to_json()) == ledger


def test_it_is_json_of_finite_numbers() -> None:
    """A channel that is scaled to zero changes by more ulps than the dtype counts; JSON has no infinity."""
    proto = model(
        "float[2,3,8,11] x", "float[5,3,3,3] w, float[5,1,1] s = {1,0,2,3,4}", "c = Conv (x, w)\n y = Mul (c, s)"
    )
    text = folded(proto)[1].to_json()

    def no_constant(name: str) -> None:
        raise AssertionError(name)

    json.loads(text, parse_constant=no_constant)


def test_seconds_are_told_and_kept_out_of_the_file() -> None:
    new, ledger = folded(two_norms())
    assert 0.0 < ledger.validation_seconds < ledger.seconds
    props = {prop.key: prop.value for prop in new.metadata_props}
    assert Ledger.from_json(props[METADATA_KEY]).seconds == 0.0


def test_a_dump_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="the folder for the graphs cannot be made") as caught:
        fold(two_norms(), dump=str(tmp_path / "file"))
    assert (caught.value.where, caught.value.fix) == (str(tmp_path / "file"), "choose another --dump")


def test_a_dump_into_a_used_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "000-before.onnx").write_bytes(b"of another fold")
    with pytest.raises(InputError, match="is not empty") as caught:
        fold(two_norms(), dump=tmp_path)
    assert (caught.value.where, caught.value.fix) == (str(tmp_path), "empty it, or choose another --dump")
    assert [path.name for path in tmp_path.iterdir()] == ["000-before.onnx"]


def test_a_dump_shows_the_graph_before_and_after_each_step(tmp_path: Path) -> None:
    proto = model(
        "float[2,3,8,11] x",
        f"float[5,3,3,3] w, float[4,5,1,1] v, {bn(5)}, {bn(4, '2')}",
        "c = Conv (x, w)\n" + norm("c", "n") + "d = Conv (n, v)\n" + norm("d", "y", "2"),
    )
    folded(named(proto, "conv1", "norm1", "conv2", "norm/2"), dump=tmp_path / "steps")
    files = sorted((tmp_path / "steps").glob("*.onnx"))
    counts = [sum(node.op_type == "BatchNormalization" for node in onnx.load(file).graph.node) for file in files]
    assert counts[0] == 2
    assert counts[-1] == 0
    assert counts == sorted(counts, reverse=True)
    assert [file.name for file in files if "norm" in file.name] == ["001-norm1.onnx", "002-norm_2.onnx"]


def test_a_fold_without_norms_has_an_empty_ledger() -> None:
    proto = model("float[2,3,8,11] x", "float[5,3,3,3] w", "c = Conv (x, w)\n y = Relu (c)")
    new, ledger = folded(proto)
    assert ledger.entries == ()
    assert initializers(new).keys() == {"w"}


BETWEEN = "a = Add (m, b)\n t = Transpose <perm=[0,2,1]> (a)\n" + norm("t", "n") + "u = Transpose <perm=[0,2,1]> (n)\n"


def test_a_norm_that_went_into_a_product_and_its_bias_is_folded() -> None:
    """A MatMul has no bias of its own: the Add behind it was there before, and only its numbers are others."""
    proto = model(
        "float[2,4,6] x", f"float[6,10] w, float[10] b, {bn(10)}", "m = MatMul (x, w)\n" + BETWEEN + "y = Sigmoid (u)"
    )
    new, ledger = folded(proto)
    assert sorted(node.op_type for node in new.graph.node) == ["Add", "MatMul", "Sigmoid", "Transpose", "Transpose"]
    assert {(entry.kind, entry.outcome, entry.reason) for entry in ledger.norms()} == {
        ("BatchNormalization", "folded", "")
    }


def test_a_norm_that_leaves_an_add_where_none_was_is_reduced() -> None:
    proto = model(
        "float[2,4,6] x",
        f"float[6,10] w, {bn(10)}",
        "m = MatMul (x, w)\n" + BETWEEN.replace("a = Add (m, b)\n", "").replace("(a)", "(m)") + "y = Sigmoid (u)",
    )
    new, ledger = folded(proto)
    assert [node.op_type for node in new.graph.node].count("Add") == 1
    assert [entry.outcome for entry in ledger.norms()] == ["reduced"]


def test_a_norm_that_a_merged_convolution_took_has_its_proof() -> None:
    proto = model(
        "float[2,4,8,11] x",
        f"float[4,4,3,3] w, {bn(4)}",
        "c = Conv <pads=[1,1,1,1]> (x, w)\n" + norm("x", "n") + "y = Add (c, n)",
    )
    new, ledger = folded(proto)
    assert [node.op_type for node in new.graph.node] == ["Conv"]
    (entry,) = ledger.entries
    assert entry.outcome == "folded"
    assert entry.residual is not None
    assert entry.residual <= 1e-12


def test_a_sum_that_is_kept_is_not_merged() -> None:
    proto = model(
        "float[2,4,8,11] x",
        f"float[4,4,3,3] w, {bn(4)}",
        "c = Conv <pads=[1,1,1,1]> (x, w)\n" + norm("x", "n") + "y = Add (c, n)",
    )
    proto.graph.node[-1].name = "total"
    new, _ = folded(proto, keep=["total"])
    assert [node.op_type for node in new.graph.node] == ["Conv", "BatchNormalization", "Add"]
