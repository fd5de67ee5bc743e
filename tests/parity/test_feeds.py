"""Random feeds cover the ranges of the specs; data files are taken as they are or refused with all their problems."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from normdeploy.errors import InputError
from normdeploy.parity.feeds import data_feed, random_feeds
from normdeploy.specs import parse

IMAGE = parse(["x:N=1..2..4x3x5@f32"])
TOKENS = parse(["ids:B=1..2..3xT=2..5..9@i64[0..30]", "mask:BxT@i64[0..1]"])


def test_every_end_of_every_dimension_is_met_once() -> None:
    feeds = random_feeds(TOKENS)
    assert [feed.name for feed in feeds] == [
        "random B=2 T=5",
        "random B=1 T=5",
        "random B=3 T=5",
        "random B=2 T=2",
        "random B=2 T=9",
    ]
    shapes = [(2, 5), (1, 5), (3, 5), (2, 2), (2, 9)]
    for feed, shape in zip(feeds, shapes, strict=True):
        assert {name: array.shape for name, array in feed.arrays.items()} == {"ids": shape, "mask": shape}


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("x:2x3", ["random"]),
        ("x:N=1..1..4x3", ["random N=1", "random N=4"]),
        ("x:N=2..4..4x3", ["random N=4", "random N=2"]),
    ],
)
def test_no_feed_is_repeated(spec: str, names: list[str]) -> None:
    assert [feed.name for feed in random_feeds(parse([spec]))] == names


def test_the_seed_decides_the_values() -> None:
    first, again, other = (random_feeds(IMAGE, seed=seed)[0].arrays["x"] for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    small, large = (feed.arrays["x"] for feed in random_feeds(IMAGE)[1:])
    assert not np.array_equal(small[0], large[0])  # each feed has values of its own


def test_floats_are_standard_normal() -> None:
    values = random_feeds(parse(["x:100x100@f32"]))[0].arrays["x"]
    assert values.dtype == np.float32
    assert abs(values.mean()) < 0.05
    assert abs(values.std() - 1) < 0.05


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32", "f64"])
def test_floats_keep_their_dtype_and_range(dtype: str) -> None:
    spec = parse([f"x:50x50@{dtype}[-2..6]"])[0]
    values = random_feeds([spec])[0].arrays["x"]
    assert values.dtype.name == spec.dtype
    wide = values.astype(np.float64)
    assert -2 <= wide.min() < -1.9
    assert 5.9 < wide.max() <= 6
    assert abs(wide.mean() - 2) < 0.2  # uniform


def test_a_range_as_wide_as_the_dtype_does_not_overflow() -> None:
    top = 1.7976931348623157e308
    assert np.isfinite(random_feeds(parse([f"x:9x9@f64[-{top}..{top}]"]))[0].arrays["x"]).all()


@pytest.mark.parametrize(("dtype", "low", "high"), [("i8", -128, 127), ("u8", 0, 255), ("i64", 0, 2), ("i32", 5, 5)])
def test_integers_reach_both_ends(dtype: str, low: int, high: int) -> None:
    spec = parse([f"x:60x60@{dtype}[{low}..{high}]"])[0]
    values = random_feeds([spec])[0].arrays["x"]
    assert values.dtype.name == spec.dtype
    assert set(np.unique(values).tolist()) == set(range(low, high + 1))


def test_the_widest_integers_can_be_drawn() -> None:
    values = random_feeds(parse([f"x:100@i64[{-(2**63)}..{2**63 - 1}]"]))[0].arrays["x"]
    assert len(np.unique(values)) == 100


def test_booleans_are_both_unless_the_range_says_otherwise() -> None:
    free, fixed = (random_feeds(parse([text]))[0].arrays["m"] for text in ("m:90@bool", "m:90@bool[1..1]"))
    assert free.dtype == fixed.dtype == np.bool_
    assert 20 < free.sum() < 70
    assert fixed.all()


def test_integers_without_a_range_are_refused_by_name() -> None:
    with pytest.raises(InputError) as caught:
        random_feeds(parse(["x:2@f32", "ids:2x3@i64", "kind:2@i32"]))
    assert caught.value.where == "ids, kind"
    assert "--data" in caught.value.fix


def saved(folder: Path, **arrays: np.ndarray) -> Path:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return path


def test_data_is_taken_as_it_is(tmp_path: Path) -> None:
    ids, mask = np.arange(6).reshape(2, 3), np.ones((2, 3), np.int64)
    feed = data_feed(TOKENS, saved(tmp_path, mask=mask, ids=ids))
    assert (feed.name, feed.notes, list(feed.arrays)) == ("data", (), ["ids", "mask"])
    assert np.array_equal(feed.arrays["ids"], ids)
    assert np.array_equal(feed.arrays["mask"], mask)


def test_compressed_fortran_and_foreign_byte_order_give_the_same_values(tmp_path: Path) -> None:
    x = np.arange(30, dtype=np.float32).reshape(2, 3, 5)
    np.savez_compressed(tmp_path / "data.npz", x=np.asfortranarray(x.astype(">f4")))
    loaded = data_feed(IMAGE, tmp_path / "data.npz").arrays["x"]
    assert loaded.dtype == np.dtype("=f4")
    assert loaded.flags.c_contiguous
    assert np.array_equal(loaded, x)


def test_bfloat16_survives_numpys_file_format(tmp_path: Path) -> None:
    x = np.array([[1.5, -2.0, 3e38]], ml_dtypes.bfloat16)
    loaded = data_feed(parse(["x:1x3@bf16"]), saved(tmp_path, x=x)).arrays["x"]
    assert loaded.dtype == ml_dtypes.bfloat16
    assert np.array_equal(loaded.view(np.uint16), x.view(np.uint16))


def test_a_scalar_stays_one(tmp_path: Path) -> None:
    assert data_feed(parse(["t:[]@i64"]), saved(tmp_path, t=np.array(3))).arrays["t"].shape == ()


def test_nan_and_infinities_are_taken_and_noted(tmp_path: Path) -> None:
    x = np.zeros((1, 3, 5), np.float32)
    x[0, 0, :3] = np.nan, np.inf, -np.inf
    feed = data_feed(IMAGE, saved(tmp_path, x=x))
    assert np.array_equal(feed.arrays["x"], x, equal_nan=True)
    assert feed.notes == ("data.npz: x holds 3 values that are NaN or infinite",)


X = np.zeros((2, 3, 5), np.float32)
PAIR = np.zeros((2, 3), np.int64)


@pytest.mark.parametrize(
    ("specs", "arrays", "messages"),
    [
        (IMAGE, {"y": X}, ["input x is missing", "there is no input 'y'"]),
        (IMAGE, {"x": X.astype(np.float64)}, ["x is float64, not float32"]),
        (IMAGE, {"x": X[0]}, ["x has shape (3, 5), not 3 dimensions"]),
        (IMAGE, {"x": np.zeros((5, 3, 5), np.float32)}, ["axis 0 of x has size 5, not 1..4"]),
        (IMAGE, {"x": np.zeros((0, 3, 5), np.float32)}, ["axis 0 of x has size 0, not 1..4"]),
        (IMAGE, {"x": X.transpose(0, 2, 1)}, ["axis 1 of x has size 5, not 3", "axis 2 of x has size 3, not 5"]),
        (TOKENS, {"ids": PAIR, "mask": PAIR[:, :2]}, ["axis 1 of mask has size 2, but dimension T is 3 elsewhere"]),
        (TOKENS, {"ids": PAIR + 31, "mask": PAIR}, ["ids has values from 31 to 31, outside [0..30]"]),
        (TOKENS, {"ids": PAIR - 1, "mask": PAIR}, ["ids has values from -1 to -1"]),
        (TOKENS, {"ids": PAIR.astype(np.int32), "mask": PAIR == 0}, ["ids is int32, not int64", "mask is bool"]),
    ],
)
def test_data_that_does_not_fit_is_refused_with_all_its_problems(
    tmp_path: Path, specs: tuple, arrays: dict[str, np.ndarray], messages: list[str]
) -> None:
    path = saved(tmp_path, **arrays)
    with pytest.raises(InputError) as caught:
        data_feed(specs, path)
    for message in messages:
        assert message in caught.value.what
    assert caught.value.where == str(path)
    assert "--input" in caught.value.fix


class Evil:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_pickles_are_refused_and_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    inside = saved(tmp_path, x=np.array([Evil(trace)], dtype=object))
    bare = tmp_path / "bare.npz"
    bare.write_bytes(pickle.dumps(Evil(trace)))
    for path in (inside, bare):
        with pytest.raises(InputError):
            data_feed(IMAGE, path)
    assert not trace.exists()


def test_files_that_are_no_archive_are_refused(tmp_path: Path) -> None:
    array = tmp_path / "x.npy"
    np.save(array, X)
    empty = tmp_path / "empty.npz"
    empty.touch()
    for path in (array, empty, tmp_path, tmp_path / "missing.npz"):
        with pytest.raises(InputError) as caught:
            data_feed(IMAGE, path)
        assert caught.value.where == str(path)


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000000,), }",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        b"{'descr': ('<f4', (2, 'x')), 'fortran_order': False, 'shape': (1,), }",
    ],
)
def test_crafted_headers_are_refused(tmp_path: Path, header: bytes) -> None:
    header = header.ljust(117) + b"\n"
    path = tmp_path / "crafted.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8))
    with pytest.raises(InputError, match="cannot be read"):
        data_feed(IMAGE, path)


@pytest.mark.parametrize("compressed", [False, True])
def test_every_damaged_file_is_refused_or_read_as_something_that_fits(tmp_path: Path, compressed: bool) -> None:
    """Truncated at, and flipped in, many places: an InputError or a feed of the right shape, never anything else."""
    (np.savez_compressed if compressed else np.savez)(tmp_path / "good.npz", x=X)
    good = (tmp_path / "good.npz").read_bytes()
    path = tmp_path / "bad.npz"
    refused = 0
    for place in range(0, len(good), 3):
        for bad in (good[:place], good[:place] + bytes([good[place] ^ 0x55]) + good[place + 1 :]):
            path.write_bytes(bad)
            try:
                assert data_feed(IMAGE, path).arrays["x"].shape == X.shape
            except InputError:
                refused += 1
    assert refused > len(good) // 3  # every truncation at least
