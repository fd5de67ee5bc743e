"""LSTM, GRU and RNN take a map of their input features into the weights of the input, in every direction and layout."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from cases import Case, ids
from harness import assert_same, bn, check_fold, check_refusal, folded, initializers, model, op_types
from recurrence64 import GRU, LSTM, RNN
from torch import nn

# fmt: off
# A table: a case a row, as wide as the page.

X = "float[4,2,3] x"
PRE = "m = Mul (x, k)\n t = Add (m, a)\n"
MAP = "float[3] k, float[3] a"


def weights(gates: int, directions: int = 1, *, bias: bool = True) -> str:
    """W, R and B of a recurrent network from 3 features to 5 hidden units."""
    rows = gates * 5
    parts = f"float[{directions},{rows},3] w, float[{directions},{rows},5] r"
    return f"{MAP}, {parts}" + (f", float[{directions},{2 * rows}] b" if bias else "")


INTO = [
    *[Case(f"{op} {name}", X, weights(gates, directions, bias=bias),
           PRE + f"y, h = {op} <hidden_size=5{attributes}> (t, w, r{', b' * bias})", op, onnxruntime=onnxruntime)
      for op, gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1))
      for name, directions, bias, attributes, onnxruntime in [
          ("forward", 1, True, "", True),
          ("NF208", 1, False, "", True),
          ("reverse", 1, True, ', direction="reverse"', True),
          ("bidirectional", 2, True, ', direction="bidirectional"', True),
          ("bidirectional without a bias", 2, False, ', direction="bidirectional"', True),
          ("clipped", 1, True, ", clip=0.5", True),
      ]],
    Case("GRU linear before its reset", X, weights(3),
         PRE + "y = GRU <hidden_size=5, linear_before_reset=1> (t, w, r, b)",
         "GRU"),
    Case("GRU linear before its reset, bidirectional, without a bias", X, weights(3, 2, bias=False),
         PRE + 'y = GRU <hidden_size=5, linear_before_reset=1, direction="bidirectional"> (t, w, r)', "GRU"),
    Case("LSTM batch first", "float[2,4,3] x", weights(4),
         PRE + "y = LSTM <hidden_size=5, layout=1> (t, w, r, b)", "LSTM",
         onnxruntime=False),
    Case("GRU batch first, both ways", "float[2,4,3] x", weights(3, 2),
         PRE + 'y, h = GRU <hidden_size=5, layout=1, direction="bidirectional"> (t, w, r, b)', "GRU",
         outputs="float[] y, float[] h", onnxruntime=False),
    Case("LSTM with lengths that are an input", X + ", int32[2] l", weights(4),
         PRE + "y, h, c = LSTM <hidden_size=5> (t, w, r, b, l)", "LSTM", outputs="float[] y, float[] h, float[] c",
         onnxruntime=False),
    Case("LSTM with lengths, states and peepholes", X + ", float[1,2,5] h0, float[1,2,5] c0",
         weights(4) + ", int32[2] l = {2,4}, float[1,15] p",
         PRE + "y, h, c = LSTM <hidden_size=5> (t, w, r, b, l, h0, c0, p)", "LSTM",
         outputs="float[] y, float[] h, float[] c"),
    Case("LSTM with lengths, in reverse", X, weights(4) + ", int32[2] l = {2,4}",
         PRE + 'y, h = LSTM <hidden_size=5, direction="reverse"> (t, w, r, b, l)', "LSTM",
         outputs="float[] y, float[] h"),
    Case("LSTM with coupled gates and other activations", X, weights(4, bias=False),
         PRE + 'y = LSTM <hidden_size=5, input_forget=1, activations=["Sigmoid","Relu","Softsign"]> (t, w, r)', "LSTM"),
    Case("LSTM of which only the last state is read", X, weights(4, bias=False),
         PRE + ", h = LSTM <hidden_size=5> (t, w, r)\n y = Identity (h)", "LSTM"),
    Case("LSTM of unknown length and batch", "float[T,N,3] x", weights(4, bias=False),
         PRE + "y = LSTM <hidden_size=5> (t, w, r)", "LSTM"),
    Case("LSTM at opset 7", X, weights(4), PRE + "y = LSTM <hidden_size=5> (t, w, r, b)", "LSTM", opset=7,
         onnxruntime=False),
    Case("a norm over the features, transposed to LSTM", "float[N,3,T] x",
         f"float[1,20,3] w, float[1,20,5] r, float[1,40] b, {bn(3)}",
         "n = BatchNormalization (x, gamma, beta, mean, var)\n t = Transpose <perm=[2,0,1]> (n)\n"
         "y = LSTM <hidden_size=5> (t, w, r, b)", "Transpose LSTM"),
    Case("one map into two networks that share their weights", X, weights(3),
         PRE + "y = GRU <hidden_size=5> (t, w, r, b)\n y2 = GRU <hidden_size=5, linear_before_reset=1> (t, w, r, b)",
         "GRU GRU", outputs="float[] y, float[] y2"),
    Case("one map into an LSTM and a MatMul", X, weights(4) + ", float[3,4] v, float[4] vb",
         PRE + "y = LSTM <hidden_size=5> (t, w, r, b)\n n = MatMul (t, v)\n o = Add (n, vb)\n y2 = Relu (o)",
         "LSTM MatMul Add Relu", outputs="float[] y, float[] y2"),
]

REFUSED = [
    Case("a map over the steps", X, "float[4,1,1] k, float[1,5,3] w, float[1,5,5] r",
         "t = Mul (x, k)\n y = RNN <hidden_size=5> (t, w, r)", reason="NF016"),
    Case("a map over the samples", X, "float[2,1] k, float[1,5,3] w, float[1,5,5] r",
         "t = Mul (x, k)\n y = RNN <hidden_size=5> (t, w, r)", reason="NF016"),
    Case("a map over the output", X, "float[5] k, float[1,5,3] w, float[1,5,5] r",
         "t = RNN <hidden_size=5> (x, w, r)\n y = Mul (t, k)", reason="NF001 (RNN"),
    Case("a map over the first state", X + ", float[1,2,5] h0", "float[5] k, float[1,5,3] w, float[1,5,5] r",
         "t = Mul (h0, k)\n y = RNN <hidden_size=5> (x, w, r, , , t)",
         reason="NF011 (RNN"),
    Case("a weight that is an input", X + ", float[1,5,3] w", "float[3] k, float[1,5,5] r",
         "t = Mul (x, k)\n y = RNN <hidden_size=5> (t, w, r)", reason="NF101 (RNN"),
    Case("a bias that is an input", X + ", float[1,10] b", "float[3] a, float[1,5,3] w, float[1,5,5] r",
         "t = Add (x, a)\n y = RNN <hidden_size=5> (t, w, r, b)", reason="NF101 (RNN"),
    Case("a weight that is quantized", X, "float[3] k, int8[1,5,3] q, float s = {0.1}, float[1,5,5] r",
         "t = Mul (x, k)\n w = DequantizeLinear (q, s)\n y = RNN <hidden_size=5> (t, w, r)",
         reason="NF120"),
]
# fmt: on


@pytest.mark.parametrize("case", INTO, ids=ids(INTO))
def test_into_the_weights_of_the_input(case: Case) -> None:
    ledger = check_fold(case.model(), case.becomes, onnxruntime=case.onnxruntime)
    assert all(entry.outcome == "folded" for entry in ledger if "x" in entry.into)


@pytest.mark.parametrize("case", REFUSED, ids=ids(REFUSED))
def test_refused(case: Case) -> None:
    check_refusal(case.model(), case.reason)


def test_a_weight_that_others_read_keeps_its_numbers() -> None:
    body = PRE + "y = RNN <hidden_size=5> (t, w, r)\n y2 = RNN <hidden_size=5> (x, w, r)"
    proto = model(X, weights(1, bias=False), body, outputs="float[] y, float[] y2")
    new, _ = folded(proto)
    assert op_types(new) == {"RNN": 2}
    np.testing.assert_array_equal(initializers(new)["w"], initializers(proto)["w"])
    assert_same(proto, new)


def test_a_weight_with_a_default_that_a_caller_may_override_stays() -> None:
    proto = model(X, weights(1, bias=False), PRE + "y = RNN <hidden_size=5> (t, w, r)")
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [1, 5, 3]))
    check_refusal(proto, "NF102 (RNN")


def test_a_weight_that_is_computed_of_constants_may_have_a_shape_that_nobody_inferred() -> None:
    body = PRE + "o = Reshape (w, n)\n y = RNN <hidden_size=5> (t, o, r)"
    proto = model(X, weights(1, bias=False) + ", int64[3] n = {1,5,3}", body)
    info = onnx.helper.make_tensor_value_info("o", onnx.TensorProto.FLOAT, [1, None, None])
    proto.graph.value_info.append(info)
    check_fold(proto, "RNN")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "double"])
def test_it_keeps_its_dtype(dtype: str) -> None:
    body = PRE + "y = LSTM <hidden_size=5> (t, w, r)"
    declared = weights(4, bias=False).replace("float", dtype)
    proto = model(X.replace("float", dtype), declared, body, outputs=f"{dtype}[] y", opset=22)
    check_fold(proto, "LSTM", onnxruntime=False)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_formulas_of_these_tests_are_pytorchs(kind: type[nn.RNNBase], bidirectional: bool) -> None:
    torch.manual_seed(0)
    network, x = kind(3, 5, bidirectional=bidirectional).double(), torch.randn(7, 2, 3, dtype=torch.float64)
    order = {nn.LSTM: [0, 3, 1, 2], nn.GRU: [1, 0, 2], nn.RNN: [0]}[kind]  # PyTorch: i f g o, and r z n

    def gates(name: str, suffix: str) -> np.ndarray:
        parts = np.split(getattr(network, f"{name}_l0{suffix}").detach().numpy(), len(order))
        return np.concatenate([parts[i] for i in order])

    ends = ["", "_reverse"][: 1 + bidirectional]
    w, r = (np.stack([gates(name, end) for end in ends]) for name in ("weight_ih", "weight_hh"))
    b = np.stack([np.concatenate([gates("bias_ih", end), gates("bias_hh", end)]) for end in ends])
    attributes = {"linear_before_reset": 1, "direction": "bidirectional" if bidirectional else "forward"}
    formula = {nn.LSTM: LSTM, nn.GRU: GRU, nn.RNN: RNN}[kind]
    y, *_ = formula._run(formula.__new__(formula), x.numpy(), w, r, b, **attributes)
    expected = network(x)[0].detach().numpy().reshape(7, 2, len(ends), 5).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)
