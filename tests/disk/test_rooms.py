"""A room is there for who made it, whoever tidies up beside it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from normdeploy.disk import rooms


def test_a_room_that_is_tidied_away_while_it_is_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may take a room that is made and not locked yet for one whose process is gone."""
    opened, taken = os.open, []

    def after_a_tidier(path: Any, *arguments: Any, **named: Any) -> int:
        if not taken:
            taken.append(path)
            shutil.rmtree(path)
        return opened(path, *arguments, **named)

    monkeypatch.setattr(rooms.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(rooms.os, "open", after_a_tidier)
    with rooms.scratch() as place:
        assert taken
        assert place.is_dir()
        assert place != taken[0]
    assert list(tmp_path.iterdir()) == []
