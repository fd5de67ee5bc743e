from __future__ import annotations

import subprocess
import sys
from itertools import product

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normdeploy.errors import InputError
from normdeploy.specs import DTYPES, Dim, TensorSpec, dynamic_dims, parse, sizes_at, tracing_sizes


def test_demo_spec() -> None:
    (spec,) = parse(["x:N=1..1..64x1x8x8@f32"])
    fixed = tuple(Dim(None, size, size, size) for size in (1, 8, 8))
    assert spec == TensorSpec("x", (Dim("N", 1, 1, 64), *fixed), "float32")
    assert str(spec) == "x:N=1..1..64x1x8x8@f32"
    assert spec.shape({"N": 5}) == (5, 1, 8, 8)
    with pytest.raises(KeyError):
        spec.shape({})


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("x:[1,3,224,224]", "x:1x3x224x224@f32"),
        ("x:[ N=1..2 , 3 ]@f16", "x:N=1..1..2x3@f16"),
        ("x:1..4x3", "x:1..1..4x3@f32"),
        ("x:1..2..4x3@bfloat16", "x:1..2..4x3@bf16"),
        ("x:4..4x3@f32", "x:4x3@f32"),
        ("x:B=4x3@f32", "x:4x3@f32"),
        ("x:BxB=1..4@bool", "x:B=1..1..4xB=1..1..4@bool"),
        ("t:[]@i64[0..999]", "t:[]@i64[0..999]"),
        ("x:1x3xH=64..128..256%4x64..256%32", "x:1x3xH=64..128..256%4x64..64..256%32@f32"),
        ("x:H=64..64%4x8%4@f32", "x:64x8@f32"),
        ("x:8@f32[-1..0.5]", "x:8@f32[-1.0..0.5]"),
        ("x:8@f32[-1e-3..-0.0]", "x:8@f32[-0.001..-0.0]"),
        ("ids:8@i64[-9223372036854775808..9223372036854775807]",) * 2,
        ("ids:8@u8[3..3]", "ids:8@u8[3..3]"),
    ],
)
def test_spellings_have_one_canonical_form(text: str, canonical: str) -> None:
    (spec,) = parse([text])
    assert str(spec) == canonical
    assert parse([canonical]) == (spec,)


def test_a_name_is_one_dimension_in_all_inputs_in_any_order() -> None:
    mask, ids = parse(["mask:BxT@i64[0..1]", "ids:B=1..4..8xT=1..64..128@i64[0..30521]"])
    assert mask.dims == ids.dims == (Dim("B", 1, 4, 8), Dim("T", 1, 64, 128))
    assert (ids.low, ids.high) == (0, 30521)
    assert dynamic_dims([mask, ids]) == {"B": ids.dims[0], "T": ids.dims[1]}
    assert sizes_at([mask, ids], "min") == {"B": 1, "T": 1}
    assert sizes_at([mask, ids], "opt") == {"B": 4, "T": 64}
    assert sizes_at([mask, ids], "max") == {"B": 8, "T": 128}
    assert parse([str(mask), str(ids)]) == (mask, ids)


def test_unnamed_ranges_are_different_dimensions_with_stable_names() -> None:
    specs = parse(["a:1..4x3x2..9", "b:1..4"])
    assert list(dynamic_dims(specs)) == ["a_d0", "a_d2", "b_d0"]


def test_a_shared_name_with_one_size_is_fixed_everywhere() -> None:
    a, b = parse(["a:B=4x3", "b:B"])
    assert a.dims[0] == b.dims[0] == Dim(None, 4, 4, 4)
    assert a.dims[0].fixed
    assert dynamic_dims([a, b]) == {}


def test_a_dimension_takes_its_multiples() -> None:
    (spec,) = parse(["x:H=8..12..20%4"])
    assert spec.dims[0] == Dim("H", 8, 12, 20, 4)
    assert [size for size in range(30) if spec.dims[0].takes(size)] == [8, 12, 16, 20]
    assert tracing_sizes([spec]) == {"H": 12}
    assert tracing_sizes(parse(["x:H=4..4..8%4xW=4..4..12%4"])) == {"H": 8, "W": 12}


@pytest.mark.parametrize(
    ("texts", "what"),
    [
        (["x:1x3", "x:1x4"], "more than once"),
        (["x:Bx3"], "'B' has no range"),
        (["x:maxlen=1..4x3"], "'ma' has no range"),
        (["x:[maxlen=1..4,3]"], "not a dimension"),
        (["x:B=1..4", "y:B=1..8"], "B.*1..1..4 elsewhere"),
        (["x:B=4..8%4", "y:B=4..8"], "B.*4..4..8%4 elsewhere"),
        (["x:H=64..130..256%4"], "no multiples of 4"),
        (["x:H=64..128..256%0"], "no multiples of 0"),
        (["x:H=64..128..256%"], "not a dimension"),
        (["x:H=64..128..256%4%2"], "not a dimension"),
        (["x:B=1..4xB=1..2..4"], "'B' is"),
        (["x:B=4", "y:B=5"], "'B' is"),
        (["a:1..4", "b:a_d0=1..9"], "'a_d0' is"),
        (["x:4..2x3"], "out of order"),
        (["x:1..9..8"], "out of order"),
        (["x:4..2..8"], "out of order"),
        (["x:0x3"], "size of 0"),
        (["x:0..1..4"], "size of 0"),
        (["x:1x3@f8"], "unknown dtype 'f8'"),
        (["x:1x3@F32"], "unknown dtype 'F32'"),
        (["x:1x3@"], "cannot be read"),
        (["x:-1x3"], "not a dimension"),
        (["x:1.5x3"], "not a dimension"),
        (["x:1...4"], "not a dimension"),
        (["x:1..2..3..4"], "not a dimension"),
        (["x:99999999999"], "not a dimension"),
        (["x:٣x3"], "not a dimension"),
        (["x:B="], "not a dimension"),
        (["x:B=C"], "not a dimension"),
        (["x:B=1..4C"], "not a dimension"),
        (["x:1xx3"], "not a dimension"),
        (["x:1x3x"], "not a dimension"),
        (["x:[1,,3]"], "not a dimension"),
        (["x:"], "cannot be read"),
        (["x"], "cannot be read"),
        ([""], "cannot be read"),
        (["x:[1,3"], "cannot be read"),
        (["x:1x3[0..1]"], "cannot be read"),
        (["x:1x3@f32[1]"], "cannot be read"),
        (["x:1x3@f32@f32"], "cannot be read"),
        ([":1x3"], "cannot be the name"),
        (["1x:1x3"], "cannot be the name"),
        (["a b:1x3"], "cannot be the name"),
        (["x:4@i64[0..1.5]"], "not a range of int64"),
        (["x:4@i64[a..b]"], "not a range of int64"),
        (["x:4@f32[a..b]"], "not a range of float32"),
        (["x:4@i64[5..4]"], "no range of int64"),
        (["x:4@u8[0..256]"], "no range of uint8"),
        (["x:4@i8[-129..0]"], "no range of int8"),
        (["x:4@bool[0..2]"], "no range of bool"),
        (["x:4@f32[nan..1]"], "no range of float32"),
        (["x:4@f32[0..inf]"], "no range of float32"),
        (["x:4@f16[0..65505]"], "no range of float16"),
    ],
)
def test_refusals_name_the_input_and_the_fix(texts: list[str], what: str) -> None:
    with pytest.raises(InputError, match=what) as caught:
        parse(texts)
    assert caught.value.where in [f"--input {text}" for text in texts]
    assert caught.value.fix


@pytest.mark.parametrize("dtype", DTYPES.values())
def test_value_limits_are_those_of_the_dtype(dtype: str) -> None:
    if "float" in dtype:
        most: float = float(ml_dtypes.finfo(dtype).max)
    else:
        most = 1 if dtype == "bool" else int(np.iinfo(dtype).max)
    assert parse([f"x:4@{dtype}[0..{most}]"])[0].high == most


def test_tracing_sizes_of_the_demo() -> None:
    assert tracing_sizes(parse(["x:N=1..1..64x1x8x8@f32"])) == {"N": 2}


def test_tracing_takes_opt_where_it_can() -> None:
    sizes = tracing_sizes(parse(["x:N=1..1..4x3xH=32..64..256xW=32..64..256"]))
    assert sizes == {"N": 2, "H": 32, "W": 64}


def test_tracing_moves_a_wide_dimension_out_of_a_narrow_ones_way() -> None:
    assert tracing_sizes(parse(["x:A=1..2..9xB=1..1..2"])) == {"A": 3, "B": 2}


def test_tracing_repeats_a_size_only_where_the_ranges_force_it() -> None:
    assert tracing_sizes(parse(["x:A=1..2xB=1..2"])) == {"A": 2, "B": 2}
    assert tracing_sizes(parse(["x:A=1..2x2"])) == {"A": 2}
    assert sorted(tracing_sizes(parse(["x:A=1..3xB=1..3x2x3"])).values()) == [2, 3]


_dims = st.tuples(st.integers(1, 6), st.integers(0, 4), st.integers(0, 4)).map(
    lambda steps: (steps[0], steps[0] + steps[1], steps[0] + steps[1] + steps[2])
)


@given(st.lists(_dims, min_size=1, max_size=4), st.lists(st.integers(1, 8), max_size=2))
def test_tracing_sizes_are_as_distinct_as_the_ranges_allow(
    ranges: list[tuple[int, int, int]], fixed: list[int]
) -> None:
    parts = [f"D{index}={low}..{opt}..{high}" for index, (low, opt, high) in enumerate(ranges)]
    specs = parse(["a:" + "x".join(parts + [str(size) for size in fixed])])
    dims, sizes = dynamic_dims(specs), tracing_sizes(specs)
    assert list(sizes) == list(dims)
    assert all(max(2, dim.min) <= sizes[name] <= dim.max for name, dim in dims.items())

    constants = {dim.min for dim in specs[0].dims if dim.fixed}

    def collisions(values: tuple[int, ...]) -> tuple[int, int]:
        return len(values) - len(set(values)), sum(value in constants for value in values)

    every = product(*(range(max(2, dim.min), dim.max + 1) for dim in dims.values()))
    best = min(collisions(values) for values in every)
    assert collisions(tuple(sizes.values()))[0] == best[0]
    if best[0] == 0:
        assert collisions(tuple(sizes.values())) == best


def test_specs_import_without_torch_or_onnx() -> None:
    code = "import sys, normdeploy.specs; print([m for m in ('torch', 'onnx', 'onnx_ir', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
