"""Norms that stay spelled out keep the scale by which ONNX Runtime makes one operator of them; others give it away."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

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
NUMBERS = "float two = {2}, float one = {1}, float eps = {0.00001}, float minus_half = {-0.5}, float scale = {1.75}"
MEAN = "mean = ReduceMean <axes: ints = [-1]> (x) n = Sub (x, mean) "
N = {"layer": MEAN, "rms": "n = Identity (x) "}
SQUARES = "square = Pow (n, two) variance = ReduceMean <axes: ints = [-1]> (square) shifted = Add (variance, eps) "
ROOT = SQUARES + "root = Sqrt (shifted) "
ONE_OPERATOR = {
    "divided": ROOT + "d = Div (n, root) s = Mul (d, gamma) ",
    "scale first": ROOT + "d = Div (n, root) s = Mul (gamma, d) ",
    "by 1 / root": ROOT + "r = Div (one, root) d = Mul (n, r) s = Mul (d, gamma) ",
    "by 1 / root, the other way round": ROOT + "r = Div (one, root) d = Mul (r, n) s = Mul (gamma, d) ",
    "last axis by its number": ROOT.replace("[-1]", "[2]") + "d = Div (n, root) s = Mul (d, gamma) ",
}
RECIPROCAL = ROOT + "r = Reciprocal (root) d = Mul (n, r) s = Mul (d, gamma) "
"""As torch.onnx writes torch.rsqrt."""
MANY_OPERATORS = {
    "n n": ROOT.replace("Pow (n, two)", "Mul (n, n)") + "d = Div (n, root) s = Mul (d, gamma) ",
    "a power": SQUARES + "r = Pow (shifted, minus_half) d = Mul (n, r) s = Mul (d, gamma) ",
    "one scale for all": ROOT + "d = Div (n, root) s = Mul (d, scale) ",
}
TAILS = {"layer": "y0 = Add (s, beta) ", "rms": "y0 = Identity (s) "}


def model(kind: str, spelling: str, *, behind: str = "y = MatMul (y0, w)", opset: int = 14) -> onnx.ModelProto:
    """A norm between two products."""
    body = f"x = MatMul (i, v) {N[kind]} {spelling} {TAILS[kind]} {behind}"
    text = f"g (float[2,5,6] i) => (float[2,5,6] y) <{NUMBERS}> {{ {body} }}"
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in WEIGHTS.items())
    return proto


def truth(kind: str, *, scale: float | None = None, behind: float = 1.0) -> np.ndarray:
    """What the model computes, in float64."""
    i, v, w, gamma, beta = (array.astype(np.float64) for array in (X, *WEIGHTS.values()))
    x = i @ v
    n = x - x.mean(axis=-1, keepdims=True) if kind == "layer" else x
    y = n / np.sqrt((n**2).mean(axis=-1, keepdims=True) + 1e-5) * (gamma if scale is None else scale)
    return behind * (y + beta if kind == "layer" else y) @ w


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


@pytest.mark.parametrize("spelling", MANY_OPERATORS)
@pytest.mark.parametrize("kind", N)
def test_a_norm_that_no_runtime_knows_gives_its_scale_away(kind: str, spelling: str, tmp_path: Path) -> None:
    given = model(kind, MANY_OPERATORS[spelling])
    assert one_operator(given, tmp_path) == 0
    scale = 1.75 if "scale)" in MANY_OPERATORS[spelling] else None
    result, new = folded(given, truth(kind, scale=scale), tmp_path)
    assert "NF023" not in codes(result)
    assert not [node for node in new.graph.node if {"gamma", "scale"} & {*node.input}]


@pytest.mark.parametrize("spelling", [RECIPROCAL, RECIPROCAL.replace("Mul (n, r)", "Mul (r, n)")])
@pytest.mark.parametrize("kind", N)
def test_a_reciprocal_is_written_as_a_quotient(kind: str, spelling: str, tmp_path: Path) -> None:
    given = model(kind, spelling)
    assert one_operator(given, tmp_path) == 0
    result, new = folded(given, truth(kind), tmp_path)
    assert one_operator(new, tmp_path) == 1
    assert "NF023" in codes(result)
    assert "written as a quotient, by which runtimes know a norm: 1 Mul" in "".join(map(str, result.ledger.notes))


@pytest.mark.parametrize("change", [
    ("Mul (d, gamma)", "Mul (d, scale)"), ("Pow (n, two)", "Mul (n, n)"), ("s = Mul (d, gamma)", "s = Add (d, r)"),
    ("[-1]> (square)", "[1]> (square)"),
])  # fmt: skip
def test_a_reciprocal_stays_where_no_runtime_would_know_the_norm(change: tuple[str, str], tmp_path: Path) -> None:
    given = model("rms", RECIPROCAL.replace(*change))
    want = session(given, tmp_path / "optimized.onnx").run(None, {"i": X})[0]
    _, new = folded(given, want, tmp_path)
    assert "Reciprocal" in [node.op_type for node in new.graph.node]


@pytest.mark.parametrize("spelling", [ONE_OPERATOR["divided"], RECIPROCAL])
def test_tensorrt_knows_no_norm_by_its_scale(spelling: str, tmp_path: Path) -> None:
    result, new = folded(model("rms", spelling), truth("rms"), tmp_path, target="tensorrt")
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
