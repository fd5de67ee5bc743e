"""What must stay as it is: structurally and numerically untouched, with the reason in the ledger."""

from typing import Any

import onnx
import pytest
from cases import Case, ids
from cases_refusals import NOT_CONSTANT, NOT_LINEAR, NOT_ONE_CONVOLUTION, NOT_PER_CHANNEL
from harness import assert_same, bn, check_fold, check_refusal, folded, initializers, model, norm, op_types, parsed
from support import says

from normdeploy.errors import InputError
from normdeploy.fold import fold, weights


@pytest.mark.parametrize("case", NOT_LINEAR, ids=ids(NOT_LINEAR))
def test_not_linear(case: Case) -> None:
    check_refusal(case.model(), case.reason)


@pytest.mark.parametrize("case", NOT_CONSTANT, ids=ids(NOT_CONSTANT))
def test_not_constant(case: Case) -> None:
    check_refusal(case.model(), case.reason)


@pytest.mark.parametrize("case", NOT_PER_CHANNEL, ids=ids(NOT_PER_CHANNEL))
def test_not_per_channel(case: Case) -> None:
    check_refusal(case.model(), case.reason)


@pytest.mark.parametrize("case", NOT_ONE_CONVOLUTION, ids=ids(NOT_ONE_CONVOLUTION))
def test_branches_that_are_no_single_convolution(case: Case) -> None:
    check_refusal(case.model(), case.reason)


def conv_norm() -> onnx.ModelProto:
    return model("float[2,3,8,11] x", f"float[5,3,3,3] w, {bn(5)}", "c = Conv (x, w)\n" + norm("c", "y"))


@pytest.mark.parametrize(("name", "reason"), [("w", "NF102"), ("mean", "NF102")])
def test_from_ir_version_4_an_initializer_that_is_an_input_is_no_constant(name: str, reason: str) -> None:
    proto = conv_norm()
    (tensor,) = (item for item in proto.graph.initializer if item.name == name)
    proto.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
    check_refusal(proto, reason)


def test_an_operator_of_another_domain_is_not_what_its_name_says() -> None:
    proto = conv_norm()
    proto.graph.node[0].domain = "com.example"
    proto.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    new, ledger = folded(proto)
    assert op_types(new) == {"Conv": 1, "BatchNormalization": 1}
    assert says(ledger.entries[0], "NF009")


def test_integers_are_no_maps() -> None:
    check_refusal(model("int64[5] x", "int64[1] k = {3}", "y = Mul (x, k)", outputs="int64[5] y"), reason="")


@pytest.mark.parametrize("pattern", ["block.1.norm", "block.*", "*norm"])
def test_a_norm_that_is_kept_stays(pattern: str) -> None:
    proto = conv_norm()
    proto.graph.node[1].name = "block.1.norm"
    new, ledger = folded(proto, keep=(pattern,))
    assert op_types(new) == {"Conv": 1, "BatchNormalization": 1}
    assert says(ledger.entries[0], "NF008")
    assert initializers(new).keys() == initializers(proto).keys()


def test_a_kept_norm_lets_others_go() -> None:
    proto = model(
        "float[2,3,8,11] x",
        f"float[5,3,3,3] w, {bn(5)}, {bn(5, '2')}",
        "c = Conv (x, w)\n" + norm("c", "n") + "r = Relu (n)\n" + norm("r", "y", "2"),
    )
    proto.graph.node[3].name = "kept"
    new, _ = folded(proto, keep=("kept",))
    assert op_types(new) == {"Conv": 1, "Relu": 1, "BatchNormalization": 1}
    assert_same(proto, new)


@pytest.mark.parametrize("keep", [("somewhere.else",), ("n", "nom"), ("",)])
def test_a_pattern_that_fits_no_name_is_refused(keep: tuple[str, ...]) -> None:
    """Whoever asks for a norm to stay has a reason; a slip of the pen must not cost it."""
    with pytest.raises(InputError, match="nothing has a name that is to be kept"):
        fold(conv_norm(), keep=keep)


def test_a_text_is_no_list_of_patterns() -> None:
    with pytest.raises(InputError, match="keep must be a list of texts") as caught:
        fold(conv_norm(), keep="norm")
    assert caught.value.fix == "give ['norm']"


@pytest.mark.parametrize("given", [None, 3, b"model.onnx", [], conv_norm().graph])
def test_what_is_no_model_is_refused(given: Any) -> None:
    with pytest.raises(InputError, match="this is no model") as caught:
        fold(given)
    assert caught.value.where == f"a value of type {type(given).__name__}"


@pytest.mark.parametrize("given", [None, 3, [3], [None]])
@pytest.mark.parametrize("option", ["keep", "inputs_are_constants"])
def test_what_is_no_list_of_texts_is_refused(option: str, given: Any) -> None:
    options: dict[str, Any] = {option: given}
    with pytest.raises(InputError, match=f"{option} must be a list of texts") as caught:
        fold(conv_norm(), **options)
    assert caught.value.fix == "give a list of texts"


def test_a_large_shared_weight_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = model(
        "float[N,3,8,11] x",
        f"float[3,3,1,1] w, {bn(3)}",
        "c = Conv (x, w)\n" + norm("c", "n") + "y = Conv (n, w)",
    )
    check_fold(proto, "Conv Conv")
    monkeypatch.setattr(weights, "COPY_LIMIT", 8)
    check_refusal(proto, "NF113")


BORDER = """
<ir_version: 10, opset_import: ["": 21]> g (float[2,3,8,11] x, bool k) => (float[2,5,6,9] y)
<float[5,3,3,3] w, float[5] gamma, float[5] beta, float[5] mean, float[5] var> {
    c = Conv (x, w)
    y = If (k) <
        then_branch = yes () => (float[2,5,6,9] a) { a = BatchNormalization (c, gamma, beta, mean, var) },
        else_branch = no () => (float[2,5,6,9] b) { b = Identity (c) }
    >
}
"""


def test_no_map_crosses_the_border_of_a_body() -> None:
    proto = parsed(BORDER)
    new, ledger = folded(proto)
    assert op_types(new) == op_types(proto)
    assert ledger.entries[0].outcome == "left"
    assert_same(proto, new)


def test_nothing_passes_a_squeeze_of_an_empty_list_of_axes() -> None:
    """ONNX Runtime takes it for all axes of size 1, and shape inference for none."""
    proto = model(
        "float[2,3,8,11] x", f"float[5,3,3,3] w, {bn(5)}, int64[0] none = {{}}",
        "c = Conv (x, w)\np = GlobalAveragePool (c)\nt = Squeeze (p, none)\n" + norm("t", "y"),
    )  # fmt: skip
    check_refusal(proto, "NF009")
