from __future__ import annotations

import dataclasses
import math
import pickle
import zipfile
from pathlib import Path

import bundle_samples as samples
import ml_dtypes
import numpy as np
import pytest

from normdeploy.bundle.golden import allowed, judge, load, save
from normdeploy.errors import InputError, VerdictError

DTYPES = ["float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]


@pytest.mark.parametrize("shape", [(2, 3), (), (0, 4)])
def test_every_dtype_comes_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 2, shape)
    arrays = {f"of {dtype}": values.astype(np.dtype(dtype)) for dtype in DTYPES}
    save(tmp_path / "a.npz", arrays)
    back = load(tmp_path / "a.npz", {f"of {dtype}": dtype for dtype in DTYPES})
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)


def test_bits_of_bfloat16_and_views_come_back(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(4, 6)[::2, ::-1].T
    save(tmp_path / "a.npz", {"x": array})
    np.testing.assert_array_equal(load(tmp_path / "a.npz", {"x": "bfloat16"})["x"], array)


@pytest.mark.parametrize("name", ["file", "self", "a/b", "../up", "é", "x.npy", "allow_pickle"])
def test_any_name_comes_back(tmp_path: Path, name: str) -> None:
    save(tmp_path / "a.npz", {name: np.ones(3)})
    assert list(load(tmp_path / "a.npz", {name: "float64"})) == [name]


def test_numpy_reads_it_as_well(tmp_path: Path) -> None:
    save(tmp_path / "a.npz", samples.INPUTS)
    with np.load(tmp_path / "a.npz") as archive:
        np.testing.assert_array_equal(archive["x"], samples.INPUTS["x"])


@pytest.mark.parametrize(
    "dtypes", [{}, {"x": "float32", "y": "float32"}, {"y": "float32"}, {"x": "float64"}, {"x": "?"}]
)
def test_other_names_or_dtypes_are_refused(tmp_path: Path, dtypes: dict[str, str]) -> None:
    save(tmp_path / "a.npz", {"x": np.ones(3, np.float32)})
    with pytest.raises(InputError, match="the manifest says"):
        load(tmp_path / "a.npz", dtypes)


class Code:
    def __reduce__(self) -> tuple[object, ...]:
        return (pytest.fail, ("code of the file ran",))


def header(text: bytes) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


HOSTILE = {
    "empty": b"",
    "pickle": header(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n") + pickle.dumps(Code()),
    "bare pickle": pickle.dumps(Code()),
    "a terabyte": header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (10**11,)}\n"),
    "more than memory": header(b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000000,)}\n"),
    "nested": header(b"(" * 5000),
    "unfinished": header(b"{'descr': '''"),
    "negative": header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}\n"),
    "short": header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}\n") + b"1234",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_array_is_refused(tmp_path: Path, content: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", content)
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path / "a.npz", {"x": "float32"})


def test_what_could_unpack_into_more_than_it_is_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(10**6, np.float32))
    with pytest.raises(InputError, match="compressed"):
        load(tmp_path / "a.npz", {"x": "float32"})


def off(share: float) -> dict[str, np.ndarray]:
    """The golden outputs, with y off by ``share`` of what is allowed in the RMS of its error."""
    outputs = dict(samples.golden().outputs)
    y = outputs["y"].astype(np.float64)
    rms, _ = allowed("y", "float32", samples.report())
    outputs["y"] = (y * (1 + share * rms)).astype(np.float32)
    return outputs


def test_another_machine_may_round_otherwise() -> None:
    golden = samples.golden().outputs
    for share in (0.0, 0.7, -0.7):
        judge(off(share), golden, samples.report(), where=Path("b"))
    for share in (1.5, -1.5):
        with pytest.raises(VerdictError, match=r"y is off by .* \(RMS\) .* allowed"):
            judge(off(share), golden, samples.report(), where=Path("b"))


def test_two_machines_within_the_parity_bound_agree_and_no_further_ones() -> None:
    report = samples.report()
    assert report.parity is not None
    bound = report.parity.judgements[0].bound_rms
    assert allowed("y", "float32", report)[0] == 2 * bound


def test_integers_must_be_equal() -> None:
    golden = samples.golden().outputs
    other = {**golden, "top": golden["top"] + np.array([[0], [0], [1]])}
    assert allowed("top", "int64", samples.report()) == (0.0, 0.0)
    with pytest.raises(VerdictError, match="top is off by"):
        judge(other, golden, samples.report(), where=Path("b"))


@pytest.mark.parametrize("change", [lambda y: y[:2], lambda y: y.astype(np.float64), lambda y: np.full_like(y, np.nan)])
def test_another_shape_dtype_or_nan_is_refused(change: object) -> None:
    golden = samples.golden().outputs
    assert callable(change)
    with pytest.raises(VerdictError, match="golden outputs"):
        judge({**golden, "y": change(golden["y"])}, golden, samples.report(), where=Path("b"))


def test_without_a_finite_bound_the_floor_holds() -> None:
    report, floor = samples.report(), 64 * float(np.finfo(np.float32).eps)
    unjudged = report.model_copy(update={"parity": None})
    assert allowed("y", "float32", unjudged) == (2 * floor, 2 * floor)
    assert report.parity is not None
    judgement = dataclasses.replace(report.parity.judgements[0], bound_rms=math.inf, bound_max=math.nan)
    parity = dataclasses.replace(report.parity, judgements=(judgement,))
    assert allowed("y", "float32", report.model_copy(update={"parity": parity})) == (2 * floor, 2 * floor)
