"""What the judge of random graphs allows: each allowance lets its graph pass, and a wrong fold of it is still seen."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import properties
import pytest
from differences import different
from harness import model
from in_runtime import elsewhere
from onnx import numpy_helper
from properties import Violation, check
from reals import Truth
from strategies import Case

from normdeploy.fold import fold


def case_of(proto: onnx.ModelProto, **feeds: np.ndarray) -> Case:
    return Case(proto, proto, (feeds,))


def folded(proto: onnx.ModelProto) -> onnx.ModelProto:
    return ir.to_proto(fold(proto).model)


def changed(proto: onnx.ModelProto, name: str, change: Callable[[np.ndarray], object]) -> onnx.ModelProto:
    """``proto`` with another initializer of that name."""
    copied = copy.deepcopy(proto)
    (tensor,) = (item for item in copied.graph.initializer if item.name == name)
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(change(array), array.dtype), name))
    return copied


def normal(*shape: int) -> np.ndarray:
    """Numbers of 32 bits, in 64."""
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32).astype(np.float64)


def long(*shape: int) -> np.ndarray:
    """Numbers that fill 64 bits."""
    return np.random.default_rng(7).standard_normal(shape)


# -- a bias of 32-bit integers is rounded by whoever dequantizes it --------------------------------

BIASED = model(
    "float[N,2,5] x",
    """float[3,2,1] w, int32[3] q = {1073741825, 2000000011, 1500000001}, float scale = {1e-9},
    float[3] far = {1.0737419, 2, 1.5}, float[3] b = {0, 0, 0}, float[3] ones = {1, 1, 1}""",
    """z = Sub (x, x)
    bias = DequantizeLinear (q, scale)
    c = Conv (z, w, bias)
    y = BatchNormalization <epsilon = 0.0> (c, ones, b, far, ones)""",
)


def test_a_bias_of_integers_is_rounded_and_a_wrong_one_is_seen() -> None:
    """What the rounding leaves of the difference of two numbers near 1 is all there is of the result."""
    case = case_of(BIASED, x=normal(2, 2, 5))
    check(case)
    new = folded(BIASED)
    assert [node.op_type for node in new.graph.node][-1] == "Conv"
    (bias,) = (node.input[2] for node in new.graph.node if node.op_type == "Conv")
    assert list(different(case, changed(new, bias, lambda array: array + np.float32(1e-5))))


# -- the largest of what should be equal is chosen by rounding -------------------------------------

WHICH = """s = Add (a, c)
    e = Add (x, d)
    u = Unsqueeze (s, last)
    v = Unsqueeze (e, last)
    p = Concat <axis = 2> (u, v)
    t, y = MaxPool <kernel_shape = [2]> (p)"""

CHOSEN = model(
    "double[N,6] x",
    "double far = {1000.1}, double c = {-1000.1}, double[6] d = {0, 0, 0, 0, 0, 0}, int64[1] last = {2}",
    f"a = Add (x, far)\n{WHICH}",
    outputs="int64[] y",
)
"""The larger of x + 1000.1 - 1000.1 and x."""


def choosing(**constants: float) -> onnx.ModelProto:
    """The larger of x + c and x + d, as a fold might leave it."""
    weights = ", ".join(f"double {name} = {{{value!r}}}" for name, value in constants.items())
    return model(
        "double[N,6] x", f"{weights}, int64[1] last = {{2}}", f"a = Identity (x)\n{WHICH}", outputs="int64[] y"
    )


def test_what_rounding_chooses_is_no_violation() -> None:
    case = case_of(CHOSEN, x=long(4, 6))
    check(case)
    assert "Add" not in {node.op_type for node in folded(CHOSEN).graph.node}
    of_two = Truth(CHOSEN)(case.feeds[0])["y"] % 2
    assert 0 < of_two.sum() < of_two.size


@pytest.mark.parametrize("constants", [{"c": 1e-3, "d": 0.0}, {"c": 0.0, "d": 1e-3}, {"c": 0.0, "d": 1e-9}])
def test_a_wrong_fold_that_always_chooses_one_is_seen(constants: dict[str, float]) -> None:
    """Rounding may choose either in the original, and so hid it; in what was made of it, rounding chooses nothing."""
    case = case_of(CHOSEN, x=long(4, 6))
    assert list(different(case, choosing(**constants)))


@pytest.mark.parametrize("constants", [{"c": 0.5, "d": 0.0}, {"c": 0.0, "d": 0.5}])
def test_a_wrong_fold_that_leaves_the_choice_to_rounding_is_seen(constants: dict[str, float]) -> None:
    """Of one number twice the first is chosen; where that was chosen before, nothing is wrong to see."""
    proto = choosing(**constants)
    case = case_of(proto, x=long(4, 6))
    assert not list(different(case, proto))
    assert bool(list(different(case, choosing(c=0.0, d=0.0)))) == (constants["d"] > 0)


# -- what is infinite in 16 bits -------------------------------------------------------------------

HALVES = {"w": [[[1], [2]], [[-1], [1]]], "k": [[0.5], [3]], "a": 2, "one": 1}


def halves(**constants: float) -> onnx.ModelProto:
    """A map behind a convolution, and exp(-a h), in 16 bits."""
    body = """c = Conv (x, w)
    y = Mul (c, k)
    m = Mul (h, a)
    e = Exp (m)
    z = Div (one, e)"""
    weights = "float16[2,2,1] w, float16[2,1] k, float16 a, float16 one"
    proto = model("float16[1,2,3] x, float16[1] h", weights, body, outputs="float16[] y, float16[] z")
    for name, numbers in (HALVES | constants).items():
        proto = changed(proto, name, lambda _, numbers=numbers: numbers)
    return proto


def test_what_depends_on_the_infinite_is_not_compared_and_all_else_is() -> None:
    proto, new = halves(), halves(a=0.001)
    infinite = case_of(proto, x=normal(1, 2, 3), h=np.array([1000.0]))
    assert not list(elsewhere(infinite, new))
    finite = case_of(proto, x=normal(1, 2, 3), h=np.array([2.0]))
    assert [problem.partition(":")[0] for problem in elsewhere(finite, new)] == ["z"]
    wrong = changed(new, "w", lambda array: -array)
    assert [problem.partition(":")[0] for problem in elsewhere(infinite, wrong)] == ["y"]


@pytest.mark.parametrize(("x", "told"), [(1.0, ["y"]), (20000.0, [])])
def test_what_only_the_fold_makes_infinite_in_16_bits_is_seen(x: float, told: list[str]) -> None:
    """It is right over the real numbers, and ONNX Runtime, which computes it in float32, gives the right ones too."""
    numbers = np.array(HALVES["w"], np.float64), np.array(HALVES["k"], np.float64)
    new = halves(w=numbers[0] * 2.0**15, k=numbers[1] * 2.0**-15)
    case = case_of(halves(), x=np.full((1, 2, 3), x), h=np.array([2.0]))
    assert not list(different(case, new))
    assert not list(elsewhere(case, halves()))
    assert [problem.partition(":")[0] for problem in elsewhere(case, new)] == told


# -- numbers below the smallest normal one ---------------------------------------------------------

VANISHING = model("double[N,3] x", "double[3] k = {0.5, 1.5, 3}", "s = Softmax <axis = 1> (x)\n y = Mul (s, k)")


@pytest.mark.parametrize(("factor", "seen"), [(1 + 2.0**-52, False), (1 + 1e-9, True)])
def test_the_last_place_of_what_vanishes_is_rounding_and_no_more(factor: float, seen: bool) -> None:
    """Found by the fuzzing: 1.6e-312 has 11 digits, of which no moved weight shows the last."""
    case = case_of(VANISHING, x=np.array([[300.0, -436.4, -416.4]]))
    constant = {tensor.name for tensor in VANISHING.graph.initializer}.pop()
    assert bool(list(different(case, changed(VANISHING, constant, lambda k: k * factor)))) == seen


# -- a MaxPool of which ONNX Runtime makes fewer cells ---------------------------------------------

POOLED = model(
    "float[1,2,7,7] x",
    "float[2,2,1,1] w = {1, 2, -1, 1}, float[2,1,1] k = {0.5, 3}",
    """p = MaxPool <auto_pad = "SAME_UPPER", dilations = [2, 2], kernel_shape = [2, 2], strides = [2, 2]> (x)
    c = Conv (x, w)
    y = Mul (c, k)""",
    outputs="float[] p, float[] y",
)


def test_what_a_pool_with_fewer_cells_has_no_part_in_is_compared() -> None:
    case = case_of(POOLED, x=normal(1, 2, 7, 7))
    check(case)
    wrong = changed(folded(POOLED), "w", lambda array: array * 1.5)
    assert [problem.partition(":")[0] for problem in elsewhere(case, wrong)] == ["y"]


# -- a sum that swallows what is added to it ------------------------------------------------------

SWALLOWED = model(
    "float[N,4] x",
    "float[4,4] w = {0.3, -1.1, 0.7, 2, 1.4, 0.6, -0.8, 0.5, -1.9, 0.9, 1.2, 0.1, -0.4, 1.6, 0.8, -0.2},"
    " float[4] k = {0.4, -0.9, 1.3, 0.2}, float[4,4] v = {1, 0, 2, 0, 0, 1, 0, 2, 1, 1, 0, 0, 0, 0, 1, 1}",
    """m = MatMul (x, w)
    r = Abs (m)
    s = Sub (m, k)
    d = Sub (s, r)
    y = Tanh (d)
    z = MatMul (m, v)""",
    outputs="float[] y, float[] z",
)
"""``tanh(x w - k - |x w|)``: where ``x w`` is large and positive, nothing is left of ``k`` in any precision."""

LATER = copy.deepcopy(SWALLOWED)
LATER.graph.node[2].input[:], LATER.graph.node[2].output[:] = ["m", "r"], ["s"]
LATER.graph.node[3].input[:] = ["s", "k"]
"""``k`` taken off the difference, as the fold may have it: it is kept."""


@pytest.mark.parametrize("size", [1.0, 1e20])
def test_what_a_sum_swallows_is_no_violation_and_a_lost_shift_is(size: float) -> None:
    """Found by the fuzzing: a shift of 0.4 is subtracted from 1e25."""
    case = case_of(SWALLOWED, x=normal(5, 4) * size)
    assert not list(different(case, LATER))
    assert size > 1 or list(different(case, changed(LATER, "k", lambda k: k * 0)))
    assert list(different(case, changed(LATER, "v", lambda v: v * 1.01)))  # the other output


# -- an exponent -----------------------------------------------------------------------------------

POWERED = model(
    "float[N,4] x", "float two = {2}, float[4] k = {0.1, 0.7, 1.3, 2.1}, float[4] c = {0.9, 6.3, 11.7, 18.9}",
    "p = Pow (x, two)\n m = Mul (p, k)\n y = Sub (m, c)",
)  # fmt: skip
"""``k x² - c``, of which hardly anything is left where x is 3 or -3."""


def test_an_exponent_is_not_moved_as_a_weight_is_and_a_wrong_one_is_seen() -> None:
    """Found by the fuzzing: a norm that is spelled out came out as no number, so nothing explained its rounding."""
    case = case_of(POWERED, x=np.full((2, 4), -3.0))
    assert not list(different(case, changed(POWERED, "k", lambda k: np.nextafter(k, np.float32(9)))))
    assert list(different(case, changed(POWERED, "two", lambda _: 4)))
    assert list(different(case, changed(POWERED, "k", lambda k: k * 1.0001)))


# -- a norm of data far from zero ------------------------------------------------------------------

FAR = model(
    "float[N,2,1] x",
    "int64[3] to = {1, 1, 4}, float[2] s = {0.7, -0.1}, float[2] b = {0.0001, -0.0015}, float[2,1] k = {-0.2, 0.45}",
    """e = Expand (x, to)
    n = InstanceNormalization <epsilon = 0.01> (e, s, b)
    y = Add (n, k)""",
)


def test_a_norm_of_data_far_from_zero_may_lose_its_bias_in_the_runtime_and_nowhere_else() -> None:
    """Found by the fuzzing: ONNX Runtime computes a x + (b - a mean), here 1e8 - 1e8."""
    case = case_of(FAR, x=np.array([[[1.78e7], [2.95e7]], [[4.14e7], [8.15e7]]]))
    check(case)
    new = folded(FAR)
    assert [node.op_type for node in new.graph.node] == ["Expand", "InstanceNormalization"]
    bias = new.graph.node[1].input[2]
    assert list(different(case, changed(new, bias, lambda array: array * (1 + 1e-5))))
    assert list(elsewhere(case, changed(new, bias, lambda array: array + 1e4)))
    near = case_of(FAR, x=normal(2, 2, 1))
    assert list(elsewhere(near, changed(new, bias, lambda array: array * 1.1)))


# -- folding again ---------------------------------------------------------------------------------


def test_a_norm_whose_size_shows_when_what_hid_it_is_gone_is_taken_by_the_next_fold() -> None:
    """The output, which takes the place of what made it, declares a size that nobody can infer."""
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[2,3,9] x, int64[1] end) => (float[2,3,?] y, float[2,3,8] z)
    <int64[1] first = {0}, int64[1] last = {2}, float eps = {0.1}, float one = {1}> {
        d = Slice (x, first, end, last)
        z = Mul (d, one)
        m = ReduceMean <axes = [-1]> (d)
        c = Sub (d, m)
        q = Mul (c, c)
        v = ReduceMean <axes = [-1]> (q)
        e = Add (v, eps)
        r = Sqrt (e)
        y = Div (c, r)
    }""")
    check(case_of(proto, x=normal(2, 3, 9), end=np.array([8])))
    assert "LayerNormalization" in {node.op_type for node in folded(folded(proto)).graph.node}


def test_a_second_fold_that_finds_what_the_first_left_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = model("float[N,4] x", "float[4,4] w, float[4] k", "c = MatMul (x, w)\n y = Mul (c, k)")
    folds = iter([False, True])

    def lazy(given: object, **options: object) -> object:
        if next(folds, True):
            return fold(given, **options)  # type: ignore[arg-type]
        return fold(given, keep=["*"], **options)  # type: ignore[arg-type]

    monkeypatch.setattr(properties, "fold", lazy)
    with pytest.raises(Violation, match="folding twice changes something"):
        check(case_of(proto, x=normal(3, 4)))
