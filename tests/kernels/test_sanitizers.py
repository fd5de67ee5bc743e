"""The kernel under Address-, UndefinedBehavior- and ThreadSanitizer; a planted mistake of each kind is caught."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
from on_cpu import needs_compiler, run
from test_on_cpu import given, rows_of

from normdeploy.kernels.variants import Norm, Variant, variant

pytestmark = needs_compiler
MEMORY = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")
THREADS = ("-fsanitize=thread", "-g")

ODD = Norm(1023, dtype="float16", residual=True, keep_sum=True)
PATHS = {
    "a block": Variant(ODD, 64, 1, 1, 3),
    "several rows a block": variant(Norm(77, dtype="bfloat16", gamma="storage", beta="storage"), 80),
    "a cluster": Variant(Norm(1030, output="int8"), 64, 1, 2, 3),
    "a part in shared memory": Variant(Norm(1031, dtype="bfloat16", gamma="storage", beta="storage"), 64, 1, 1, 3, 1),
    "one weight": Variant(Norm(520, uniform=True, gamma="storage", beta="storage", dtype="float16"), 64, 1, 1, 2),
    "streamed": Variant(ODD, 64, 1, 1, 0),
}


@pytest.mark.parametrize("flags", [MEMORY, THREADS], ids=["memory", "threads"])
@pytest.mark.parametrize("name", PATHS)
def test_sanitizers_find_nothing(name: str, flags: tuple[str, ...]) -> None:
    path = PATHS[name]
    x = np.delete(rows_of(path.norm.features, path.norm.dtype), [4, 5], axis=0)  # int of NaN is nobody's contract
    run(path, given(path.norm, x[:3]), flags)


def planted(mistake: str, flags: tuple[str, ...]) -> str:
    """Return what the sanitizer says of a kernel with ``mistake``; fails where it says nothing."""
    x = rows_of(ODD.features, ODD.dtype)[:2]
    with pytest.raises(subprocess.CalledProcessError) as failure:
        run(Variant(ODD, 64, 1, 1, 3), given(ODD, x), flags, mistake)
    return str(failure.value.stderr)


def test_a_missing_barrier_is_a_data_race() -> None:
    assert "data race" in planted("block_barrier(); -> ;", THREADS)


def test_a_bound_that_is_off_by_one_is_an_overflow() -> None:
    said = planted("unsigned(first + j) < unsigned(N) -> unsigned(first + j) < unsigned(N + 1)", MEMORY)
    assert "heap-buffer-overflow" in said
