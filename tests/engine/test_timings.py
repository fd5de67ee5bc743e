from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from normdeploy.engine.timings import cache_key, locked
from normdeploy.errors import InputError

HOLDER = """
import sys, time
from pathlib import Path
from normdeploy.engine.timings import locked
with locked(Path(sys.argv[1]), "k") as cache:
    print("held", flush=True)
    time.sleep(0.5)
    cache.store(b"from the other process")
"""


def test_another_version_or_gpu_is_another_cache() -> None:
    key = cache_key("tensorrt", "11.4.0", "NVIDIA L40S (SM89)")
    assert key == "tensorrt-11.4.0-NVIDIA_L40S_SM89_.timings"
    assert (
        len({key, cache_key("tensorrt", "11.3.0", "NVIDIA L40S (SM89)"), cache_key("tensorrt", "11.4.0", "H200")}) == 3
    )


def test_what_is_stored_is_loaded_and_the_folder_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    with locked(folder, "k") as cache:
        assert cache.load() == b""
        cache.store(b"timings")
    with locked(folder, "k") as cache:
        assert cache.load() == b"timings"
        cache.store(b"")  # a builder that kept none does not erase
        assert cache.load() == b"timings"
    assert sorted(path.name for path in folder.iterdir()) == ["k", "k.lock"]


def test_a_second_build_waits_for_the_first_and_sees_what_it_stored(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        begin = time.monotonic()
        with locked(tmp_path, "k") as cache:
            assert cache.load() == b"from the other process"
        assert time.monotonic() - begin > 0.3
    assert holder.returncode == 0


def test_a_holder_that_is_killed_lets_go(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER.replace("0.5", "60"), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()
        with locked(tmp_path, "k") as cache:
            assert cache.load() == b""


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="timing cache"), locked(tmp_path / "file", "k"):
        pass
