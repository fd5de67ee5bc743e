"""The judge of graphs in float64 allows what float64 loses, and no more."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from differences import different
from harness import model
from properties import check
from reals import Truth
from strategies import Case

from normdeploy.fold import fold

VARIANCE = """m = ReduceMean (s, last)
d = Sub (s, m)
q = Mul (d, d)
y = ReduceMean (q, last)"""


def variance(weights: str, shifted: str) -> onnx.ModelProto:
    """The variance of each row of ``s``, which ``shifted`` makes."""
    weights = f"{weights}, int64[1] last = {{-1}}"
    return model("double[N,4] x", weights, f"{shifted}\n{VARIANCE}", outputs="double[] y")


def far_from_zero() -> onnx.ModelProto:
    return variance("double c = {100}", "s = Add (x, c)")


def rows() -> np.ndarray:
    return np.random.default_rng(5).uniform(-0.2, 0.2, (6, 4))


def exact_variances(x: np.ndarray) -> np.ndarray:
    """In rational numbers; the shift by 100 changes no variance."""
    found = []
    for row in x:
        numbers = [Fraction(float(number)) for number in row]
        mean = sum(numbers) / 4
        found.append(float(sum((number - mean) ** 2 for number in numbers) / 4))
    return np.array(found)[:, None]


def spread(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    at = Truth(proto)({"x": x})["y"]
    return np.max([np.abs(Truth(proto, seed=seed)({"x": x})["y"] - at) for seed in range(10)], axis=0)


def test_a_variance_far_from_zero_may_lose_what_it_loses_and_little_more() -> None:
    proto, x = far_from_zero(), rows()
    exact = exact_variances(x)
    lost = np.abs(Truth(proto)({"x": x})["y"] - exact)
    assert (lost / exact).max() > 1e-14  # a hundred units, which moving the weights need not show
    assert (lost <= 4 * spread(proto, x)).all()
    assert spread(proto, x).max() < 100 * lost.max()


@pytest.mark.parametrize("moves", ["Reshape (x, shape)", "Transpose (x)", "Relu (x)", "Concat <axis = 0> (x, x)"])
def test_what_hands_numbers_on_loses_nothing(moves: str) -> None:
    proto = model("double[N,4] x", "int64[2] shape = {4, -1}", f"y = {moves}", outputs="double[] y")
    assert not spread(proto, rows()).any()


def test_a_right_fold_of_such_a_variance_is_no_violation_and_a_wrong_one_is() -> None:
    """Found by the fuzzing: two shifts became one, and a variance moved by what either order of sums rounds."""
    numbers = ", ".join(map(str, rows().reshape(-1)[:12]))
    weights = f"double[3,4] table = {{{numbers}}}, double[2] scale = {{0.7, 0.9}}, double[2] bias = {{0.3, 0.1}}"
    shifted = """g = Gather (table, x)
        n = InstanceNormalization (g, scale, bias)
        s = Add (n, far)"""
    proto = variance(f"{weights}, double[2,1] far = {{1e6, 2e6}}", shifted)
    proto.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("x", onnx.TensorProto.INT64, ["N", 2]))
    case = Case(proto, proto, ({"x": np.array([[0, 1], [2, 0]])},))
    check(case)
    right = ir.to_proto(fold(proto).model)
    assert not any(node.op_type == "Add" for node in right.graph.node)
    assert not list(different(case, right))
    for tensor in right.graph.initializer:
        if onnx.numpy_helper.to_array(tensor).tolist() == [0.7, 0.9]:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array([0.7, 0.9 + 1e-5]), tensor.name))
    assert list(different(case, right))
