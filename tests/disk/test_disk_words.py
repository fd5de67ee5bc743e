from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from normdeploy import disk
from normdeploy.engine import process
from normdeploy.errors import InputError, VerdictError


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Wrapped(Exception):
    """What a library makes of an error that it meets while it writes."""


@pytest.mark.parametrize("error", [full(), OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_full_disk_is_one_error_wherever_it_is_met(tmp_path: Path, error: OSError, wrapped: bool) -> None:
    def fail() -> None:
        if not wrapped:
            raise error
        try:
            raise error
        except OSError as cause:
            raise Wrapped("while writing 20 tensors: [b'...']") from cause

    with pytest.raises(InputError) as caught, disk.disk_errors(tmp_path / "out", "the plan"):
        fail()
    assert (caught.value.what, caught.value.where) == ("the disk is full", str(tmp_path / "out"))
    with pytest.raises(InputError, match="the disk is full") as caught, disk.scratch():
        fail()
    assert "TMPDIR" in caught.value.fix


def test_other_errors_come_out_as_they_are(tmp_path: Path) -> None:
    for error in (VerdictError("wrong"), RuntimeError("a bug"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, disk.disk_errors(tmp_path, "it"), disk.scratch():
            raise error
        assert caught.value is error
    with pytest.raises(InputError, match="it cannot be written: Permission denied"), disk.disk_errors(tmp_path, "it"):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_an_error_of_ours_that_a_library_wrapped_comes_out_as_itself(tmp_path: Path) -> None:
    def fail() -> None:
        try:
            raise VerdictError("the weight changed")
        except VerdictError as cause:
            raise Wrapped("while writing") from cause

    with pytest.raises(VerdictError, match="the weight"), disk.disk_errors(tmp_path, "it"):
        fail()


def test_a_builder_that_died_of_a_full_disk_is_not_blamed_on_a_module(tmp_path: Path) -> None:
    (tmp_path / "stderr.txt").write_text("Traceback ...\nOSError: [Errno 28] No space left on device\n")
    error = process._died(1, tmp_path, {})
    assert "the disk is full" in error.what
    assert "TMPDIR" in error.fix


def test_a_file_that_may_not_grow_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("old")
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, usual[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            disk.write_file(path, b"x" * 5000, replace=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]
