"""Norms that stay spelled out keep the scale by which ONNX Runtime makes one operator of them; others give it away."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from reference64 import truth as reference

from normdeploy.fold import FoldResult, fold

RANDOM = np.random.default_rng(23)
X = RANDOM.standard_normal((2, 5, 6)).astype(np.float32) * 2 + 1
WEIGHTS = {
    "v": RANDOM.standard_normal((6, 6)),
    "w": RANDOM.standard_normal((6, 6)),
    "gamma": RANDOM.uniform(0.5, 2.0, 6),
    "beta": RANDOM.standard_normal(6),
}
WEIGHTS = {name: array.astype(np.float32) for name, array in WEIGHTS.items()}
VIEWS = {
    f"{name}{rank}": WEIGHTS[name].reshape((1,) * (rank - 1) + (6,)) for name in ("gamma", "beta") for rank in (2, 3)
}
NUMBERS = "float two = {2}, float one = {1}, float eps = {0.00001}, float minus_half = {-0.5}, float scale = {1.75}, "
NUMBERS += "float half = {0.5}, float six = {6}, int64[1] last = {-1}, float[5] rows = {1, 2, 3, 4, 5}"
MEAN = "mean = ReduceMean <axes: ints = [-1]> (x) n = Sub (x, mean) "
TAIL = "y0 = Add (s, beta) "
N = {"layer": MEAN, "rms": "n = Identity (x) "}
SQUARES = "square = Pow (n, two) variance = ReduceMean <axes: ints = [-1]> (square) shifted = Add (variance, eps) "
ROOT = SQUARES + "root = Sqrt (shifted) "
QUOTIENT = "d = Div (n, root) s = Mul (d, gamma) "
ONE_OPERATOR = {
    "divided": ROOT + "d = Div (n, root) s = Mul (d, gamma) ",
    "scale first": ROOT + "d = Div (n, root) s = Mul (gamma, d) ",
    "by 1 / root": ROOT + "r = Div (one, root) d = Mul (n, r) s = Mul (d, gamma) ",
    "by 1 / root, the other way round": ROOT + "r = Div (one, root) d = Mul (r, n) s = Mul (gamma, d) ",
    "last axis by its number": ROOT.replace("[-1]", "[2]") + "d = Div (n, root) s = Mul (d, gamma) ",
}
MANY_OPERATORS = {
    "n n": ROOT.replace("Pow (n, two)", "Mul (n, n)") + QUOTIENT,
    "a reciprocal, as torch.onnx writes torch.rsqrt": ROOT + "r = Reciprocal (root) d = Mul (n, r) s = Mul (d, gamma) ",
    "a reciprocal, the other way round": ROOT + "r = Reciprocal (root) d = Mul (r, n) s = Mul (gamma, d) ",
    "a power": SQUARES + "r = Pow (shifted, minus_half) d = Mul (n, r) s = Mul (d, gamma) ",
    "a root by a power": SQUARES + "root = Pow (shifted, half) " + QUOTIENT,
    "scale of three axes": (ROOT + QUOTIENT).replace("gamma", "gamma3"),
    "scale of two axes": (ROOT + QUOTIENT).replace("gamma", "gamma2"),
    "scaled first": ROOT + "g = Mul (n, gamma) s = Div (g, root) ",
    "a sum over a count": (ROOT + QUOTIENT).replace(
        "variance = ReduceMean <axes: ints = [-1]> (square)", "sum = ReduceSum (square, last) variance = Div (sum, six)"
    ),
    "no scale": ROOT + "s = Div (n, root) ",
    "one scale for all": ROOT + "d = Div (n, root) s = Mul (d, scale) ",
}
PUT_BACK = (ROOT + QUOTIENT).replace(
    "variance = ReduceMean <axes: ints = [-1]> (square)",
    "flat = ReduceMean <axes: ints = [-1], keepdims: int = 0> (square) variance = Unsqueeze (flat, last)",
)
"""A spelling that runtimes know once its mean keeps the axis."""
SCALES = {"no scale": 1.0, "one scale for all": 1.75}
OF_MOMENTS = (
    "square = Mul (x, x) squares = ReduceMean <axes: ints = [-1]> (square) own = Mul (mean, mean) "
    "variance = Sub (squares, own) shifted = Add (variance, eps) root = Sqrt (shifted) "
)
LAYERS = {
    "bias of three axes": (ROOT + QUOTIENT + "y0 = Add (s, beta3) ", True),
    "no bias": (ROOT + QUOTIENT + "y0 = Identity (s) ", False),
    "neither scale nor bias": (ROOT + "y0 = Div (n, root) ", False),
    "centred twice, squared by a product": (
        ROOT.replace("Pow (n, two)", "Mul (m, m)").replace("square", "m = Sub (x, mean) square", 1)
        + QUOTIENT + TAIL, True,
    ),
    "of moments": (OF_MOMENTS + QUOTIENT + TAIL, True),
    "multiplied out, as Keras writes it": (
        OF_MOMENTS + "r = Reciprocal (root) k = Mul (r, gamma) left = Mul (x, k) right = Mul (mean, k) "
        "rest = Sub (beta, right) y0 = Add (left, rest) ", True,
    ),
}  # fmt: skip
"""Whole LayerNorms, and whether they have a bias."""
TAILS = {"layer": TAIL, "rms": "y0 = Identity (s) "}


def model(
    kind: str, spelling: str, *, tail: str | None = None, behind: str = "y = MatMul (y0, w)", opset: int = 14
) -> onnx.ModelProto:
    """A norm between two products."""
    body = f"x = MatMul (i, v) {N[kind]} {spelling} {TAILS[kind] if tail is None else tail} {behind}"
    if opset >= 18:
        body = body.replace("ReduceMean <axes: ints = [-1]> (square)", "ReduceMean (square, last)")
        body = body.replace(
            "ReduceMean <axes: ints = [-1], keepdims: int = 0> (square)",
            "ReduceMean <keepdims: int = 0> (square, last)",
        )
    text = f"g (float[2,5,6] i) => (float[2,5,6] y) <{NUMBERS}> {{ {body} }}"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    arrays = WEIGHTS | VIEWS
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    return proto


def truth(kind: str, *, scale: float | None = None, bias: bool = True) -> np.ndarray:
    """What the model computes, in float64."""
    i, v, w, gamma, beta = (array.astype(np.float64) for array in (X, *WEIGHTS.values()))
    x = i @ v
    n = x - x.mean(axis=-1, keepdims=True) if kind == "layer" else x
    y = n / np.sqrt((n**2).mean(axis=-1, keepdims=True) + 1e-5) * (gamma if scale is None else scale)
    return np.asarray((y + beta if kind == "layer" and bias else y) @ w)


def session(proto: onnx.ModelProto, path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads, options.optimized_model_filepath = 4, 1, str(path)
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def one_operator(proto: onnx.ModelProto, tmp_path: Path) -> int:
    """How many norms ONNX Runtime runs as one operator."""
    session(proto, tmp_path / "optimized.onnx")
    made = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    return made["LayerNormalization"] + made["SimplifiedLayerNormalization"]


def folded(
    proto: onnx.ModelProto, want: np.ndarray, tmp_path: Path, **options: str
) -> tuple[FoldResult, onnx.ModelProto]:
    result = fold(proto, **options)
    new = ir.to_proto(result.model)
    if options.get("target") != "onnxruntime":  # whose own operator ONNX does not know
        onnx.checker.check_model(new, full_check=True)
    (got,) = session(new, tmp_path / "optimized.onnx").run(None, {"i": X})
    np.testing.assert_allclose(got, want, rtol=0, atol=4e-6 * np.abs(want).max())
    return result, new


def codes(result: FoldResult) -> set[str]:
    return {code for entry in result.ledger.entries for code in entry.codes}


@pytest.mark.parametrize("spelling", ONE_OPERATOR)
@pytest.mark.parametrize("kind", N)
def test_a_norm_that_a_runtime_knows_stays_one_operator(kind: str, spelling: str, tmp_path: Path) -> None:
    given = model(kind, ONE_OPERATOR[spelling])
    assert one_operator(given, tmp_path) == 1
    result, new = folded(given, truth(kind), tmp_path)
    assert one_operator(new, tmp_path) == 1
    assert "NF023" in codes(result)


@pytest.mark.parametrize(("kind", "opset"), [("layer", 14), ("rms", 14), ("rms", 18)])
def test_a_norm_whose_axis_is_put_back_is_one_operator(kind: str, opset: int, tmp_path: Path) -> None:
    given = model(kind, PUT_BACK, opset=opset)
    assert one_operator(given, tmp_path) == 0
    result, new = folded(given, truth(kind), tmp_path)
    assert one_operator(new, tmp_path) == 1
    assert "NF023" in codes(result)


def told_adds(given: onnx.ModelProto, **options: str) -> list[str]:
    """What becomes of each Add that is told of, but for the bias of a norm that stays spelled out."""
    entries = fold(given, **options).ledger.entries
    return [entry.outcome for entry in entries if entry.kind == "Add" and "NF023" not in entry.codes]


@pytest.mark.parametrize("options", [{}, {"target": "tensorrt"}, {"layernorm": "off"}])
@pytest.mark.parametrize("spelling", ["divided", "n n", "a power", "an axis put back"])
def test_the_epsilon_of_a_norm_is_no_map_that_was_left(spelling: str, options: dict[str, str]) -> None:
    given = model("rms", (ONE_OPERATOR | MANY_OPERATORS | {"an axis put back": PUT_BACK})[spelling])
    assert told_adds(given, **options) == []


@pytest.mark.parametrize("change", [("root = Sqrt", "root = Abs"), ("(square)", "(n)")])
def test_a_shift_of_another_mean_or_with_another_reader_is_told(change: tuple[str, str]) -> None:
    assert told_adds(model("rms", ONE_OPERATOR["divided"].replace(*change))) == ["left"]


NAMES = {"layer": "LayerNormalization", "rms": "RMSNormalization"}


def is_respelled(given: onnx.ModelProto, want: np.ndarray, kind: str, tmp_path: Path, **options: str) -> bool:
    """Whether ONNX Runtime runs what was made of ``given`` as one norm, and the notes tell of it."""
    result, new = folded(given, want, tmp_path, **options)
    session(new, tmp_path / "optimized.onnx")
    made = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    one = "LayerNormalization" if kind == "layer" else "SimplifiedLayerNormalization"
    told = f"spelled as runtimes know it: 1 {NAMES[kind]}" in "".join(map(str, result.ledger.notes))
    assert told == ("NF023" in codes(result))
    return told and made == {"MatMul": 2, one: 1}


@pytest.mark.parametrize("spelling", MANY_OPERATORS)
@pytest.mark.parametrize(("kind", "opset"), [("layer", 14), ("rms", 14), ("rms", 18)])
def test_a_norm_that_no_runtime_knows_is_spelled_as_one(kind: str, opset: int, spelling: str, tmp_path: Path) -> None:
    given = model(kind, MANY_OPERATORS[spelling], opset=opset)
    assert one_operator(given, tmp_path) == 0
    assert is_respelled(given, truth(kind, scale=SCALES.get(spelling)), kind, tmp_path)


@pytest.mark.parametrize("target", ["onnx", "onnxruntime"])
@pytest.mark.parametrize("spelling", LAYERS)
def test_a_whole_layernorm_is_spelled_as_one(spelling: str, target: str, tmp_path: Path) -> None:
    text, bias = LAYERS[spelling]
    want = truth("layer", scale=1.0 if "neither" in spelling else None, bias=bias)
    assert is_respelled(model("layer", text, tail=""), want, "layer", tmp_path, target=target)


def test_a_shift_behind_goes_into_the_bias_of_the_norm_where_a_convolution_is_in_front(tmp_path: Path) -> None:
    given = model("layer", MANY_OPERATORS["n n"], behind="z = Mul (y0, zero) s2 = Add (z, gamma) y = Abs (s2)")
    given.graph.node[0].CopyFrom(onnx.helper.make_node("Conv", ["i", "kernel"], ["x"]))
    zero = WEIGHTS["beta"] * (np.arange(6) > 0)  # which no shift can follow
    kernel = np.random.default_rng(5).standard_normal((5, 5, 1)).astype(np.float32)
    arrays = {"zero": zero, "kernel": kernel}
    given.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    _, new = folded(given, reference(given, {"i": X})["y"], tmp_path)
    session(new, tmp_path / "optimized.onnx")
    made = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert made == ["Conv", "LayerNormalization", "Abs"]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("kind", N)
def test_other_dtypes_are_spelled_in_themselves(kind: str, dtype: type, tmp_path: Path) -> None:
    name = "float16" if dtype is np.float16 else "double"
    body = f"x = MatMul (i, v) {N[kind]} {ROOT + QUOTIENT} {TAILS[kind]} y = Identity (y0)"
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 14]> g ({name}[2,5,6] i) => ({name}[2,5,6] y) '
        f"{{ {body.replace('Pow (n, two)', 'Mul (n, n)')} }}"
    )
    arrays = {name: WEIGHTS[name].astype(dtype) for name in ("v", "gamma", "beta")} | {
        "eps": np.array(np.float32(1e-5), dtype)
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    given = X.astype(dtype)
    result = fold(proto)
    assert "spelled as runtimes know it" in "".join(map(str, result.ledger.notes))
    (got,) = session(ir.to_proto(result.model), tmp_path / "optimized.onnx").run(None, {"i": given})
    v, gamma, beta = (arrays[name].astype(np.float64) for name in ("v", "gamma", "beta"))
    x = given.astype(np.float64) @ v
    n = x - x.mean(axis=-1, keepdims=True) if kind == "layer" else x
    epsilon = float(arrays["eps"])
    want = n / np.sqrt((n**2).mean(axis=-1, keepdims=True) + epsilon) * gamma + (beta if kind == "layer" else 0)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-2 if dtype is np.float16 else 1e-12)


@pytest.mark.parametrize("narrow", [10, 16])
def test_a_mean_of_rounded_values_is_none_of_the_values(narrow: int) -> None:
    """A LayerNorm of the values is not what it computes: of equal numbers the difference is what rounding took."""
    rounded = f"h = Cast <to: int = {narrow}> (x) e = Cast <to: int = 1> (h) mean = ReduceMean <axes: ints = [-1]> (e) "
    given = model("layer", rounded + "n = Sub (x, mean) " + ROOT + QUOTIENT, opset=17)
    del given.graph.node[1:3]  # the mean of the values themselves, and their difference from it
    assert [node.op_type for node in given.graph.node[:5]] == ["MatMul", "Cast", "Cast", "ReduceMean", "Sub"]
    new = ir.to_proto(fold(given).model)
    assert "LayerNormalization" not in {node.op_type for node in new.graph.node}
    rows = np.broadcast_to(np.float32(300.7), X.shape)
    want, got = (plain(proto, {"i": rows}) for proto in (given, new))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def plain(proto: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    """What ONNX Runtime computes without fusing anything."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    made = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(made.run(None, feed)[0])


@pytest.mark.parametrize("between", ["Cast <to: int = 10> (x)", "Identity (x)"])
def test_values_that_are_rounded_for_all_are_the_values(between: str) -> None:
    text = f"""<ir_version: 8, opset_import: ["" : 14]> g (float16[2,5,6] i) => (float[2,5,6] y) <{NUMBERS}> {{
        x = Cast <to: int = 1> (i) h = {between} e = Cast <to: int = 1> (h) mean = ReduceMean <axes: ints = [-1]> (e)
        k = Cast <to: int = 1> (h) n = Sub (k, mean) {ROOT} y = Div (n, root) }}"""
    (norm,) = [entry for entry in fold(onnx.parser.parse_model(text)).ledger.entries if entry.norm]
    assert norm.kind == "LayerNormalization"


def test_float16_whose_squares_are_float32_stays_as_it_is(tmp_path: Path) -> None:
    """In float16 the squares would be infinite."""
    body = (
        "x = Neg (i) n = Cast <to: int = 1> (x) q = Mul (n, n) a = ReduceMean <axes: ints = [-1]> (q) t = Add (a, eps) "
        "root = Sqrt (t) r = Reciprocal (root) r16 = Cast <to: int = 10> (r) d = Mul (x, r16) y = Mul (d, gamma)"
    )
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 14]> g (float16[2,5,6] i) => (float16[2,5,6] y) '
        f"<float eps = {{0.00001}}> {{ {body} }}"
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(WEIGHTS["gamma"].astype(np.float16), "gamma"))
    result = fold(proto)
    assert "spelled as runtimes know it" not in "".join(map(str, result.ledger.notes))
    given = (X * 300).astype(np.float16)
    (got,) = session(ir.to_proto(result.model), tmp_path / "optimized.onnx").run(None, {"i": given})
    x, gamma = -given.astype(np.float64), WEIGHTS["gamma"].astype(np.float16).astype(np.float64)
    want = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * gamma
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-2)


STAYS = {
    "a product of two values": ("square = Pow (n, two)", "product = Mul (n, i) square = Abs (product)"),
    "an epsilon for each row": ("shifted = Add (variance, eps)", "shifted = Add (variance, gamma)"),
    "another axis": ("[-1]> (square)", "[1]> (square)"),
    "two axes": ("[-1]> (square)", "[-2, -1]> (square)"),
    "a fourth power": ("square = Pow (n, two)", "part = Mul (n, n) square = Mul (part, part)"),
    "a root of a root": ("d = Div (n, root)", "more = Sqrt (root) d = Div (n, more)"),
    "a root that is read again": ("s = Mul (d, gamma)", "t = Mul (d, gamma) s = Add (t, root)"),
}
"""Read by their last letters as norms, and none that runtimes know."""


@pytest.mark.parametrize("change", STAYS)
@pytest.mark.parametrize("kind", N)
def test_what_is_no_such_norm_stays(kind: str, change: str, tmp_path: Path) -> None:
    given = model(kind, (ROOT + QUOTIENT).replace(*STAYS[change]))
    result, _ = folded(given, reference(given, {"i": X})["y"], tmp_path)
    assert "spelled as runtimes know it" not in "".join(map(str, result.ledger.notes))


@pytest.mark.parametrize("given", ["shifted = Add (variance, eps)", "shifted = Identity (variance)"])
@pytest.mark.parametrize("kind", N)
def test_one_without_an_epsilon_stays_as_it_is(kind: str, given: str, tmp_path: Path) -> None:
    """An Add of 0 changes nothing, and goes: what is spelled with it was spelled anew by each fold."""
    proto = model(kind, (ROOT + QUOTIENT).replace("shifted = Add (variance, eps)", given))
    (eps,) = (tensor for tensor in proto.graph.initializer if tensor.name == "eps")
    eps.CopyFrom(onnx.numpy_helper.from_array(np.zeros((), np.float32), "eps"))
    _, once = folded(proto, reference(proto, {"i": X})["y"], tmp_path)
    twice = ir.to_proto(fold(once).model)
    assert [(node.name, node.input, node.output) for node in twice.graph.node] == [
        (node.name, node.input, node.output) for node in once.graph.node
    ]
    assert one_operator(once, tmp_path) == 0


@pytest.mark.parametrize("level", ["off", "affine"])
def test_one_that_is_centred_twice_stays_one_operator(level: str, tmp_path: Path) -> None:
    spelling = (ROOT + QUOTIENT).replace("square = Pow (n, two)", "m = Sub (x, mean) square = Pow (m, two)")
    given = model("layer", spelling)
    assert one_operator(given, tmp_path) == 1
    _, new = folded(given, truth("layer"), tmp_path, layernorm=level)
    assert one_operator(new, tmp_path) == 1


def test_a_scale_of_other_axes_is_none_of_the_norm(tmp_path: Path) -> None:
    given = model("rms", ROOT + "d = Div (n, root) turned = Unsqueeze (rows, last) s = Mul (d, turned) ")
    _, new = folded(given, reference(given, {"i": X})["y"], tmp_path)
    assert [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node].count("Mul") == 1
    assert one_operator(new, tmp_path) == 1


@pytest.mark.parametrize(("between", "read_again", "stays"), [
    ("x = Add (z, i)", "", True), ("x = Add (z, gamma)", "", False), ("x = Mul (z, i)", "", False),
    ("x = Add (z, i)", "y2 = Identity (x)", False),
])  # fmt: skip
@pytest.mark.parametrize("kind", N)
def test_a_layernorm_of_a_sum_stays_as_it_is(
    kind: str, between: str, read_again: str, stays: bool, tmp_path: Path
) -> None:
    """ONNX Runtime would make one operator of both, which is slower on the CPU than all of them."""
    given = model(kind, MANY_OPERATORS["n n"])
    text = (
        f"z = MatMul (i, v) {between} {N[kind]} {MANY_OPERATORS['n n']} {TAILS[kind]} y1 = MatMul (y0, w) {read_again}"
    )
    text += " y = Add (y1, y2)" if read_again else " y = Identity (y1)"
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 14]> g (float[2,5,6] i) => (float[2,5,6] y) <{NUMBERS}> {{ {text} }}'
    )
    proto.graph.initializer.extend(given.graph.initializer[-len(WEIGHTS | VIEWS) :])
    result, _ = folded(proto, reference(proto, {"i": X})["y"], tmp_path)
    told = "spelled as runtimes know it" in "".join(map(str, result.ledger.notes))
    assert told != (stays and kind == "layer")


def of_merged_branches(given: onnx.ModelProto) -> onnx.ModelProto:
    """The model with a sum for its first node, of which a fold makes one convolution."""
    branches = [
        onnx.helper.make_node("Conv", ["i", "kernel"], ["one_branch"]),
        onnx.helper.make_node("Conv", ["i", "other"], ["conv"]),
        onnx.helper.make_node("Mul", ["conv", "scale"], ["other_branch"]),
        onnx.helper.make_node("Add", ["one_branch", "other_branch"], ["x"]),
    ]
    nodes = [*branches, *given.graph.node[1:]]
    del given.graph.node[:]
    given.graph.node.extend(nodes)
    for name in ("kernel", "other"):
        kernel = RANDOM.standard_normal((5, 5, 1)).astype(np.float32)
        given.graph.initializer.append(onnx.numpy_helper.from_array(kernel, name))
    return given


@pytest.mark.parametrize("kind", N)
def test_a_layernorm_of_a_sum_that_is_merged_is_spelled_at_once(kind: str, tmp_path: Path) -> None:
    """What it read was a sum only until the fold made one convolution of that; a second fold finds nothing to do."""
    given = of_merged_branches(model(kind, MANY_OPERATORS["n n"]))
    result, new = folded(given, reference(given, {"i": X})["y"], tmp_path)
    assert f"spelled as runtimes know it: 1 {NAMES[kind]}" in "".join(map(str, result.ledger.notes))
    assert one_operator(new, tmp_path) == 1
    assert [node.op_type for node in new.graph.node][:2] == ["Conv", "ReduceMean" if kind == "layer" else "Pow"]
    again = fold(new)
    assert not again.ledger.notes
    assert [node.op_type for node in again.model.graph] == [node.op_type for node in new.graph.node]


def test_nothing_is_told_of_a_sum_that_is_merged(tmp_path: Path) -> None:
    """ONNX Runtime has no sum to join the norm with."""
    given = of_merged_branches(model("layer", MANY_OPERATORS["n n"], opset=18))
    result, new = folded(given, reference(given, {"i": X})["y"], tmp_path)
    assert [node.op_type for node in new.graph.node][:2] == ["Conv", "LayerNormalization"]
    assert one_operator(new, tmp_path) == 1
    assert "NF421" not in {note.code for note in result.ledger.notes}


@pytest.mark.parametrize(("other", "scales", "fused"), [("gamma", 1, 1), ("beta", 2, 0)])
def test_norms_of_one_value_by_one_scale_are_one(other: str, scales: int, fused: int, tmp_path: Path) -> None:
    """ONNX Runtime makes one of what is spelled twice, and then one operator, only if both read the same scale."""
    norms = [
        f"q{end} = Mul (x, x) v{end} = ReduceMean <axes: ints = [-1]> (q{end}) e{end} = Add (v{end}, eps) "
        f"r{end} = Sqrt (e{end}) d{end} = Div (x, r{end}) y{end} = Mul (d{end}, {scale})"
        for end, scale in ((1, "gamma"), (2, other))
    ]
    given = model("rms", " ".join(norms), tail="", behind="z1 = MatMul (y1, w) z2 = MatMul (y2, v) y = Mul (z1, z2)")
    result, new = folded(given, reference(given, {"i": X})["y"], tmp_path)
    assert "spelled as runtimes know it: 2" in "".join(map(str, result.ledger.notes))
    held = {tensor.name for tensor in new.graph.initializer}
    assert len({node.input[1] for node in new.graph.node if node.op_type == "Mul"} & held) == scales
    assert one_operator(new, tmp_path) == fused


@pytest.mark.parametrize("options", [{"layernorm": "off"}, {"target": "tensorrt"}])
def test_nothing_is_spelled_anew_where_nobody_would_know_it(options: dict[str, str], tmp_path: Path) -> None:
    result, _ = folded(model("layer", MANY_OPERATORS["n n"]), truth("layer"), tmp_path, **options)
    assert "spelled as runtimes know it" not in "".join(map(str, result.ledger.notes))


@pytest.mark.parametrize("spelling", ["n n", "a reciprocal, the other way round"])
def test_tensorrt_knows_no_norm_by_its_scale(spelling: str, tmp_path: Path) -> None:
    result, new = folded(model("rms", MANY_OPERATORS[spelling]), truth("rms"), tmp_path, target="tensorrt")
    assert "NF023" not in codes(result)
    assert not [node for node in new.graph.node if "gamma" in node.input]


@pytest.mark.parametrize("axes", [("-1", "-1"), ("2", "2"), ("2", "-1"), ("-1", "2")])
@pytest.mark.parametrize("root", ["d = Div (n, root)", "r = Reciprocal (root) d = Mul (n, r)"])
def test_a_norm_of_unknown_rank_is_right(root: str, axes: tuple[str, str], tmp_path: Path) -> None:
    spelled = ONE_OPERATOR["divided"].replace("d = Div (n, root)", root).replace("[-1]", f"[{axes[1]}]")
    mean = MEAN.replace("[-1]", f"[{axes[0]}]").replace("(x)", "(h)").replace("Sub (x,", "Sub (h,")
    body = f"x = MatMul (i, v) h = Reshape (x, s0) {mean} {spelled} {TAILS['layer']} y = MatMul (y0, w)"
    text = f"g (float[2,5,6] i, int64[R] s0) => (float[A,B,6] y) <{NUMBERS}> {{ {body} }}"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 14]> {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in WEIGHTS.items())
    new = ir.to_proto(fold(proto).model)
    (got,) = session(new, tmp_path / "optimized.onnx").run(None, {"i": X, "s0": np.array(X.shape)})
    np.testing.assert_allclose(got, truth("layer"), rtol=0, atol=4e-6 * np.abs(truth("layer")).max())


BEHIND = {
    "a scale": ("z = Mul (y0, scale)", lambda y: 1.75 * y),
    "a vector": ("z = Mul (beta, y0)", lambda y: WEIGHTS["beta"] * y),
    "a quotient": ("z = Div (y0, scale)", lambda y: y / 1.75),
}


@pytest.mark.parametrize("map_", BEHIND)
@pytest.mark.parametrize("kind", N)
def test_a_map_behind_goes_into_the_scale(kind: str, map_: str, tmp_path: Path) -> None:
    text, compute = BEHIND[map_]
    given = model(kind, ONE_OPERATOR["divided"], behind=f"{text} t = Softplus (z) y = MatMul (t, w)")
    w = WEIGHTS["w"].astype(np.float64)
    want = np.logaddexp(0.0, compute(truth(kind) @ np.linalg.inv(w))) @ w
    result, new = folded(given, want, tmp_path)
    assert one_operator(new, tmp_path) == 1
    assert [entry.outcome for entry in result.ledger if entry.module == "z"] == ["folded"]
    assert len(new.graph.node) == len(given.graph.node) - 1 - sum(
        node.op_type == "Identity" for node in given.graph.node
    )


@pytest.mark.parametrize(("kind", "opset", "options"), [
    ("rms", 17, {}), ("layer", 17, {"layernorm": "off"}), ("rms", 17, {"layernorm": "off"}),
])  # fmt: skip
def test_where_there_is_no_operator_or_none_is_wanted(
    kind: str, opset: int, options: dict[str, str], tmp_path: Path
) -> None:
    result, new = folded(model(kind, ONE_OPERATOR["divided"], opset=opset), truth(kind), tmp_path, **options)
    assert one_operator(new, tmp_path) == 1
    assert "NF023" in codes(result)


@pytest.mark.parametrize(("kind", "opset", "options", "operator"), [
    ("layer", 17, {}, "LayerNormalization"), ("rms", 14, {"target": "onnxruntime"}, "SimplifiedLayerNormalization"),
])  # fmt: skip
def test_where_there_is_an_operator_the_scale_goes_on(
    kind: str, opset: int, options: dict[str, str], operator: str, tmp_path: Path
) -> None:
    result, new = folded(model(kind, ONE_OPERATOR["divided"], opset=opset), truth(kind), tmp_path, **options)
    assert [node.op_type for node in new.graph.node].count(operator) == 1
    assert "NF023" not in codes(result)
