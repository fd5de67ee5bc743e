from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from normdeploy.errors import InputError
from normdeploy.trust import is_trusted, read_once


def test_what_is_hashed_is_what_was_read(tmp_path: Path) -> None:
    data = b"abc" * 100_000
    (tmp_path / "f").write_bytes(data)
    content = read_once(tmp_path / "f")
    (tmp_path / "f").write_bytes(b"another")
    assert content.data == data
    assert content.sha256 == hashlib.sha256(data).hexdigest()


def test_what_is_no_plain_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(InputError, match="not a plain file"):
            read_once(path)
    with pytest.raises(InputError, match="no such file"):
        read_once(tmp_path / "nowhere")


def test_trust_is_by_exact_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pt").touch()
    (tmp_path / "link.pt").symlink_to("w.pt")
    assert is_trusted(tmp_path / "w.pt", [Path("w.pt")])
    assert is_trusted(Path("./w.pt"), [tmp_path / "other", tmp_path / "w.pt"])
    assert not is_trusted(Path("link.pt"), [Path("w.pt")])
    assert not is_trusted(Path("w.pt"), [Path("link.pt"), tmp_path, Path()])
    assert not is_trusted(Path("w.pt"), [])
