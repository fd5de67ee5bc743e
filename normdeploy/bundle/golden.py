"""The golden feed: one set of inputs, and the outputs that the model gave for them where it was exported.

They are stored as ``.npz``, but for two traits of ``numpy.savez``: any array name is legal here, and bfloat16, of
which numpy writes the bytes and forgets the type, is restored from the dtypes that the manifest states.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # also teaches numpy the name "bfloat16"
import numpy as np
import numpy.typing as npt

from normdeploy.disk.arrays import Header, read_arrays
from normdeploy.errors import InputError, VerdictError
from normdeploy.parity.metrics import errors
from normdeploy.parity.verdict import Criteria
from normdeploy.report import view
from normdeploy.report.schema import Report

Array = npt.NDArray[Any]

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest time a zip file can state: the same arrays give the same bytes."""


class Golden(NamedTuple):
    """Input name → array, and output name → array."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


def save(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write ``arrays`` as an uncompressed .npz."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy", _EPOCH), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, _storable(array), allow_pickle=False)


def load(path: Path, dtypes: Mapping[str, str]) -> dict[str, Array]:
    """Return the arrays that :func:`save` wrote; InputError unless they are exactly those that ``dtypes`` names and
    types.
    """
    try:
        with path.open("rb") as file:
            arrays = read_arrays(file, lambda headers: _accept(path, headers, dtypes))
    except InputError:
        raise
    except Exception as error:  # zipfile, numpy and the header's parser raise a dozen types on bytes from elsewhere
        raise _unfit(path, f"cannot be read: {error}") from error
    return {name: _typed(path, name, arrays[name], dtype) for name, dtype in dtypes.items()}


def judge(actual: Mapping[str, Array], golden: Mapping[str, Array], report: Report, *, where: Path) -> None:
    """Raise VerdictError where an output on this machine is not the one of the machine of the export.

    Another processor may round otherwise, so equality would be too much to ask. But the parity bound holds on both
    machines, against one reference: their outputs can lie at most twice that bound apart, by the triangle inequality.
    Outputs that were never judged keep to the floor, and so do those whose bound is infinite.
    """
    problems = [problem for name in golden if (problem := _difference(name, actual[name], golden[name], report))]
    if problems:
        raise VerdictError(
            f"the model does not give its golden outputs on this machine: {'; '.join(problems)}",
            where=str(where),
            fix="run it with the package versions of its manifest, or export it again on this machine",
        )


def allowed(output: str, dtype: str, report: Report) -> tuple[float, float]:
    """Return how far ``output`` may lie from its golden one, as (RMS, max) errors: twice its parity bound, or the
    floor's.
    """
    judged = report.parity.of("runtime") if report.parity else ()
    mine = [judgement for judgement in judged if judgement.measurement.output == output]
    floor = (report.parity.criteria if report.parity else Criteria()).floor(dtype, "eager")
    rms = max((one.bound_rms for one in mine if math.isfinite(one.bound_rms)), default=floor)
    largest = max((one.bound_max for one in mine if math.isfinite(one.bound_max)), default=floor)
    return 2 * rms, 2 * largest


def _difference(name: str, actual: Array, golden: Array, report: Report) -> str:
    if (actual.shape, actual.dtype) != (golden.shape, golden.dtype):
        return f"{name} is {actual.dtype} {actual.shape}, not {golden.dtype} {golden.shape}"
    found, (rms, largest) = errors(actual, golden, golden.dtype.name), allowed(name, golden.dtype.name, report)
    if found.finite and found.rms <= rms and found.max <= largest:
        return ""
    bounds = f"{view.sig(rms)} and {view.sig(largest)}"
    return f"{name} is off by {view.sig(found.rms)} (RMS) and {view.sig(found.max)} (max), allowed {bounds}"


def _storable(array: Array) -> Array:
    return array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array


def _accept(path: Path, headers: Mapping[str, Header], dtypes: Mapping[str, str]) -> None:
    """Refuse arrays before they are read: other names, or more than the file has room for."""
    if headers.keys() != dtypes.keys():
        raise _unfit(path, f"hold {', '.join(headers) or 'nothing'}, the manifest says {', '.join(dtypes)}")
    if sum(math.prod(each.shape) * each.dtype.itemsize for each in headers.values()) > path.stat().st_size:
        raise _unfit(path, "are compressed, or overlap")  # so a small file cannot unpack into a large one


def _typed(path: Path, name: str, array: Array, dtype: str) -> Array:
    if dtype == "bfloat16" and array.dtype == np.uint16:
        return array.view(ml_dtypes.bfloat16)
    if array.dtype.name != dtype:
        raise _unfit(path, f"hold {name} as {array.dtype}, the manifest says {dtype}")
    return array


def _unfit(path: Path, what: str) -> InputError:
    return InputError(f"the golden arrays {what}", where=str(path), fix="export the bundle again")
