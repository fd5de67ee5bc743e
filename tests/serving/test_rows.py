"""Where the rows of a batch can meet: graphs whose answer is plain, whatever values they are given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from normdeploy.serving.rows.trace import meeting

RNG = np.random.default_rng(0)
FEEDS = {
    "x": RNG.standard_normal((3, 4)).astype(np.float32),
    "ids": np.array([[0, 1], [2, 0], [1, 1]], np.int64),
    "image": RNG.standard_normal((3, 2, 4, 4)).astype(np.float32),
}
TYPES = {"x": "float[N, 4] x", "ids": "int64[N, 2] ids", "image": "float[N, 2, 4, 4] image"}
TABLE = "table = Constant <value_floats = [0.0, 1.0, 2.0, 3.0]> ()"
ROWS = "s = Shape <start = 0, end = 1> (x)"
COUNT = "zero = Constant <value_int = 0> () one = Constant <value_int = 1> () n = Squeeze (s)"


def met(folder: Path, inputs: str, body: str, opset: int = 20) -> str:
    names = inputs.split()
    signature = f"({', '.join(TYPES[name] for name in names)}) => (float y)"
    domains = f'"": {opset}, "com.microsoft": 1, "mine": 1'
    text = f"<ir_version: 8, opset_import: [{domains}]>\ng {signature} {{ {body} }}"
    onnx.save(onnx.parser.parse_model(text), folder / "model.onnx")
    feed = {name: FEEDS[name] for name in names}
    found = meeting(folder / "model.onnx", feed, {name: array[:-1] for name, array in feed.items()})
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]
    return found


APART = {
    "element by element": ("x", "y = Relu (x)"),
    "a norm over features": ("x", "m = ReduceMean <keepdims = 1, axes = [1]> (x) y = Sub (x, m)", 17),
    "turned and back": ("x", "t = Transpose <perm = [1, 0]> (x) u = Exp (t) y = Transpose <perm = [1, 0]> (u)"),
    "windows as rows": (
        "image",
        "w = Constant <value_ints = [-1, 4]> () r = Reshape (image, w) s = Softmax (r)"
        "b = Constant <value_ints = [-1, 2, 16]> () y = Reshape (s, b)",
    ),
    "the shape of the input": ("x", "s = Shape (x) t = Transpose <perm = [1, 0]> (x) y = Reshape (x, s)"),
    "a product with itself": ("image", "t = Transpose <perm = [0, 1, 3, 2]> (image) y = MatMul (image, t)"),
    "letters": ("x", 'y = Einsum <equation = "bi,bj->bij"> (x, x)'),
    "an embedding": ("ids", f"{TABLE} y = Gather (table, ids)"),
    "its own element": ("x", "a = ArgMax <axis = 1> (x) y = GatherElements <axis = 1> (x, a)"),
    "the place of the largest, row by row": (
        "x",
        f"{ROWS} {COUNT} r = Range (zero, n, one) c = Constant <value_ints = [-1, 1]> () i = Reshape (r, c)"
        "a = ArgMax <axis = 1> (x) j = Concat <axis = 1> (i, a) y = GatherND (x, j)",
    ),
    "as many zeros as rows": (
        "x",
        f"{ROWS} c = Constant <value_ints = [4]> () t = Concat <axis = 0> (s, c) z = ConstantOfShape (t)y = Add (x, z)",
    ),
    "a convolution": (
        "image",
        "w = Constant <value_floats = [1.0, 2.0, 3.0, 4.0]> () c = Constant <value_ints = [2, 2, 1, 1]> ()"
        "k = Reshape (w, c) y = Conv (image, k)",
    ),
    "the largest of each row": (
        "x",
        "k = Constant <value_ints = [2]> () v, i = TopK <axis = 1> (x, k) e = Constant <value_float = 0.0> ()"
        "n = Mul (x, e) y = ScatterElements <axis = 1> (n, i, v)",
    ),
    "a token for each row": (
        "image",
        "s = Shape <start = 0, end = 1> (image) o = Constant <value_ints = [2, 4, 4]> ()"
        "t = Constant <value_ints = [1, 1, 1]> () z = Concat <axis = 0> (s, t) w = Constant <value_float = 2.0> ()"
        "c = Constant <value_ints = [1, 2, 4, 4]> () e = Expand (w, c) b = Tile (e, z)"
        "y = Concat <axis = 1> (b, image)",
    ),
}


@pytest.mark.parametrize("case", APART.values(), ids=APART.keys())
def test_rows_that_stay_apart(tmp_path: Path, case: tuple[str, str] | tuple[str, str, int]) -> None:
    assert met(tmp_path, *case) == ""


MEET = {
    "a maximum that is seldom reached": (
        "ids",
        "a = ReduceMax <axes = [0], keepdims = 1> (ids) l = Constant <value_ints = [49]> () e = Equal (a, l)"
        "f = Cast <to = 1> (e) g = Cast <to = 1> (ids) y = Add (f, g)",
        "ReduceMax",
        17,
    ),
    "above six": (
        "x",
        "a = ReduceMax <axes = [0], keepdims = 1> (x) l = Constant <value_float = 6.0> () d = Sub (a, l) r = Relu (d)"
        "y = Add (x, r)",
        "ReduceMax",
        17,
    ),
    "rows that are sorted": (
        "x",
        "k = Constant <value_ints = [1]> () v, i = TopK <axis = 0> (x, k) y = Add (x, v)",
        "TopK",
    ),
    "summed up": ("x", "zero = Constant <value_int = 0> () y = CumSum (x, zero)", "CumSum"),
    "the other way round": (
        "x",
        "a = Constant <value_ints = [-1]> () b = Constant <value_ints = [-9]> () c = Constant <value_ints = [0]> ()"
        "y = Slice (x, a, b, c, a)",
        "Slice 'y' works along the batch",
    ),
    "the row before": (
        "x",
        "p = Constant <value_ints = [1, 0, -1, 0]> () y = Pad (x, p)",
        "Pad 'y' works along the batch",
    ),
    "a row that a row chooses": (
        "x",
        "a = ArgMax <axis = 1, keepdims = 0> (x) l = Constant <value_ints = [1]> () m = Min (a, l)"
        "y = Gather <axis = 0> (x, m)",
        "Gather",
    ),
    "every other row's product": ("x", "t = Transpose (x) p = MatMul (x, t) y = Relu (p)", "MatMul"),
    "letters": ("x", 'y = Einsum <equation = "bi,ci->bi"> (x, x)', "Einsum"),
    "divided by how many": ("x", f"{ROWS} f = Cast <to = 1> (s) y = Div (x, f)", "how many rows there are"),
    "its number": (
        "x",
        f"{ROWS} {COUNT} r = Range (zero, n, one) f = Cast <to = 1> (r) c = Constant <value_ints = [-1, 1]> ()"
        "g = Reshape (f, c) y = Add (x, g)",
        "how many rows there are",
    ),
    "what stands in a table for how many": (
        "x",
        f"{TABLE} {ROWS} e = Gather (table, s) y = Add (x, e)",
        "how many rows",
    ),
    "a scale of all": (
        "x",
        "q, s, z = DynamicQuantizeLinear (x) y = DequantizeLinear (q, s, z)",
        "DynamicQuantizeLinear",
    ),
    "a branch that a row takes": (
        "x",
        "m = ReduceMax <keepdims = 0> (x) l = Constant <value_float = 6.0> () c = Greater (m, l)"
        "y = If (c) <then_branch = t () => (a) { a = Neg (x) }, else_branch = e () => (b) { b = Identity (x) }>",
        "ReduceMax",
        17,
    ),
    "seven rows before": (
        "x",
        "p = Constant <value_ints = [7, 0, 0, 0]> () b = Pad (x, p) z = Constant <value_ints = [0]> ()"
        f"{ROWS} l = Slice (b, z, s, z) y = Sub (x, l)",
        "Pad 'b' works along the batch",
    ),
    "rows from the fifth on": (
        "x",
        "a = Constant <value_ints = [4]> () e = Constant <value_ints = [9223372036854775807]> ()"
        "z = Constant <value_ints = [0]> () f = Slice (x, a, e, z) m = ReduceMax <keepdims = 1> (f, z) y = Add (x, m)",
        "Slice 'f' works along the batch",
    ),
    "how many are large": (
        "x",
        "six = Constant <value_float = 6.0> () g = Greater (x, six) n = NonZero (g)"
        "c = Shape <start = 1> (n) f = Cast <to = 1> (c) y = Add (x, f)",
        "NonZero",
    ),
    "all rows where there are many": (
        "x",
        f"{ROWS} t = Constant <value_ints = [10]> () b = Greater (s, t) o = Constant <value_ints = [0]> ()"
        "i = Constant <value_ints = [1]> () a = Where (b, o, i) m = ReduceMax <keepdims = 1> (x, a) y = Sub (x, m)",
        "the axes of ReduceMax",
    ),
    "as many columns as rows": (
        "x",
        f"{ROWS} z = Constant <value_ints = [0]> () o = Constant <value_ints = [1]> () c = Slice (x, z, s, o)"
        "m = ReduceMax <keepdims = 1> (c, o) y = Sub (x, m)",
        "works along the batch",
    ),
    "a table of places": (
        "x",
        "t = Constant <value_floats = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0]> ()"
        f"{ROWS} z = Constant <value_ints = [0]> () p = Slice (t, z, s, z) c = Constant <value_ints = [-1, 1]> ()"
        "r = Reshape (p, c) y = Add (x, r)",
        "how many rows there are",
    ),
    "a sum of ones": (
        "x",
        f"{ROWS} z = Constant <value_ints = [0]> () o = ConstantOfShape <value = float[1] {{1}}> (s)"
        "n = ReduceSum <keepdims = 1> (o, z) y = Div (x, n)",
        "ReduceSum 'n' works along the batch",
    ),
    "rows as columns": (
        "image",
        "c = Constant <value_ints = [2, -1]> () r = Reshape (image, c) z = Constant <value_ints = [1]> ()"
        "m = ReduceMax <keepdims = 1> (r, z) d = Sub (r, m) k = Constant <value_ints = [-1, 2, 4, 4]> ()"
        "y = Reshape (d, k)",
        "ReduceMax 'm' works along the batch",
    ),
    "statistics of the batch": (
        "image",
        "a = Constant <value_floats = [1.0, 1.0]> () b = Constant <value_floats = [0.0, 0.0]> ()"
        "y, m, v = BatchNormalization <training_mode = 1> (image, a, b, b, a)",
        "BatchNormalization",
    ),
    "places in the whole batch": (
        "image",
        "p, i = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (image) f = Cast <to = 1> (i) y = Add (p, f)",
        "the indices of MaxPool",
    ),
}


@pytest.mark.parametrize("case", MEET.values(), ids=MEET.keys())
def test_rows_that_meet(tmp_path: Path, case: tuple[str, str, str] | tuple[str, str, str, int]) -> None:
    inputs, body, word, *opset = case
    assert word in met(tmp_path, inputs, body, *opset)


def test_a_row_meets_none_in_a_function(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 20, "mine": 1]>
    g (float[N, 4] x) => (float[N, 4] y) { y = mine.most (x) }
    <domain: "mine", opset_import: ["": 20]>
    most (a) => (b) { m = ReduceMax <keepdims = 1> (a) b = Sub (a, m) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    assert "ReduceMax" in meeting(tmp_path / "model.onnx", {"x": FEEDS["x"]}, {"x": FEEDS["x"][:2]})
