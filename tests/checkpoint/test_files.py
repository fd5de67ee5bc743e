from __future__ import annotations

import hashlib
import ipaddress
import os
import pickle
import shlex
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from converting import converted
from safetensors.torch import save_file
from torch import nn

from normdeploy.checkpoint.files import read
from normdeploy.checkpoint.fit import fit
from normdeploy.checkpoint.names import Names
from normdeploy.errors import InputError


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"w": torch.randn(3, 5), "half": torch.randn(4).half(), "n": torch.tensor(7), "none": torch.zeros(0, 2)}


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in one
    )


WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "zip": torch.save,
    "stream": lambda contents, path: torch.save(contents, path, _use_new_zipfile_serialization=False),
    "safetensors": save_file,
}


def refusal(path: Path, key: str | None = None) -> InputError:
    with pytest.raises(InputError) as caught:
        read(path, key=key)
    assert caught.value.where == str(path)
    assert caught.value.exit_code == 2
    return caught.value


@pytest.mark.parametrize("extension", [".safetensors", ".pt", ".bin", ""])
@pytest.mark.parametrize("writer", WRITERS)
def test_each_format_is_told_by_its_content(tmp_path: Path, writer: str, extension: str) -> None:
    path = tmp_path / f"weights{extension}"
    WRITERS[writer](state(), path)
    assert equal(read(path).data, state())


def test_a_safetensors_file_that_begins_like_a_pickle(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    for length in range(1, 300):
        save_file({"w" * length: torch.ones(2)}, path)
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes().startswith(b"\x80")
    assert list(read(path).data) == ["w" * length]


def test_everything_comes_to_the_cpu(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(state(), path)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    moved = {
        name: data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0") if name.endswith("data.pkl") else data
        for name, data in entries.items()
    }
    assert moved != entries
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in moved.items():
            archive.writestr(name, data)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(path, weights_only=True)
    assert equal(read(path).data, state())
    assert {tensor.device.type for tensor in read(path).data.values()} == {"cpu"}


def test_sha256_is_of_the_bytes_that_were_loaded(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(state(), path)
    assert read(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


# What is not there, or is no file of weights


def test_a_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "w.pt").what == "no such file"


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    assert refusal(tmp_path).what == "the folder holds no weights that can be read"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe").what == "this is a pipe, not a plain file"


def test_a_file_that_the_system_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, *_: object) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    torch.save(state(), tmp_path / "w.pt")
    monkeypatch.setattr(os, "open", denied)
    assert refusal(tmp_path / "w.pt").what == "cannot be read: Permission denied"


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_an_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert refusal(tmp_path / name).what == "the file is empty"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 10\n", "a pointer of git-lfs"),
        (b"x", "neither safetensors nor written by torch.save: begins b'x'"),
        (pickle.dumps({"a": 1}, protocol=0), "neither safetensors"),
        (b"PK\x03\x04" + bytes(100), "truncated or damaged"),
        (b"\x80\x02" + bytes(100), "truncated or damaged"),
        (pickle.dumps({"a": 1}, protocol=5), "a pickle, but not one of torch.save"),
        (pickle.dumps({"a": 1}, protocol=5)[:-3], "truncated or damaged"),
    ],
)
def test_what_is_no_file_of_weights(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    assert refusal(tmp_path / "w.pt").what.startswith(what) or what in refusal(tmp_path / "w.pt").what


def test_another_zip_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.ones(3))
    assert refusal(tmp_path / "w.npz").what == "an archive of NumPy arrays (.npz)"
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert refusal(tmp_path / "w.zip").what == "a zip archive, but not one of torch.save"


# Damage


@pytest.mark.parametrize("writer", WRITERS)
def test_every_truncation_is_refused(tmp_path: Path, writer: str) -> None:
    path = tmp_path / ("w.safetensors" if writer == "safetensors" else "w.pt")
    WRITERS[writer](state(), path)
    whole = path.read_bytes()
    for length in {1, 4, 8, 9, 20, *range(10, len(whole), 37), len(whole) - 1}:
        path.write_bytes(whole[:length])
        assert refusal(path).fix


@pytest.mark.parametrize("writer", WRITERS)
def test_damage_is_refused_or_harmless_but_never_a_crash(tmp_path: Path, writer: str) -> None:
    path, random, refused = tmp_path / "w.bin", np.random.default_rng(0), 0
    WRITERS[writer](state(), path)
    whole = path.read_bytes()
    for _ in range(300):
        content = bytearray(whole)
        for place in random.integers(len(content), size=random.integers(1, 4)):
            content[place] = random.integers(256)
        path.write_bytes(content)
        try:
            read(path)
        except InputError:
            refused += 1
    assert refused > 20


def test_a_flipped_bit_in_the_values_of_an_archive_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(state(), path)
    content = bytearray(path.read_bytes())
    content[bytes(content).index(state()["w"].numpy().tobytes()) + 3] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["w"], state()["w"]), "torch does not see it"
    assert "damaged" in refusal(path).what


def test_an_archive_saved_without_checksums_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state(), path)
    finally:
        torch.serialization.set_crc32_options(before)
    assert equal(read(path).data, state())


# Code


class Attack:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


class System:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def _raw(protocol: int) -> Callable[[Any, Path], None]:
    return lambda contents, path: path.write_bytes(pickle.dumps(contents, protocol)) and None


PICKLERS = {
    **{name: WRITERS[name] for name in ("zip", "stream")},
    "zip protocol 4": lambda contents, path: torch.save(contents, path, pickle_protocol=4),
    "stream protocol 4": lambda contents, path: torch.save(
        contents, path, pickle_protocol=4, _use_new_zipfile_serialization=False
    ),
    "pickle 2": _raw(2),
    "pickle 5": _raw(5),
}


@pytest.mark.parametrize("writer", PICKLERS)
def test_an_attack_is_refused_with_its_globals_and_does_not_run(tmp_path: Path, writer: str) -> None:
    target, path = tmp_path / "touched", tmp_path / "w.pt"
    attack = {"w": torch.ones(2), "a": System(f"touch {target}"), "b": System(f"touch {target}"), "c": Attack(target)}
    PICKLERS[writer](attack, path)
    error = refusal(path)
    assert not target.exists()
    assert error.what.startswith("the file is a pickle that runs code when loaded: it calls ")
    listed = error.what.rpartition("calls ")[2].split(", ")
    assert {"posix.system", "pathlib.PosixPath"} <= set(listed)
    assert listed == sorted(set(listed))
    assert not any("_rebuild" in name or "OrderedDict" in name for name in listed)


def test_the_attack_would_have_worked(tmp_path: Path) -> None:
    target, path = tmp_path / "touched", tmp_path / "w.pt"
    torch.save({"a": System(f"touch {target}")}, path)
    torch.load(path, weights_only=False)
    assert target.exists()


def _program(path: Path) -> None:
    torch.export.save(torch.export.export(net(), (torch.ones(2, 3),)), path)


HOST = ipaddress.IPv4Address(1)
"""An object of a class that nobody knows from checkpoints."""
CODE: dict[str, tuple[Callable[[Path], None], str]] = {
    "whole module": (lambda path: torch.save(net(), path), "torch.nn.modules.batchnorm.BatchNorm1d"),
    "whole module, stream": (lambda path: WRITERS["stream"](net(), path), "torch.nn.modules.linear.Linear"),
    "module under a key": (lambda path: torch.save({"state_dict": net(), "epoch": 3}, path), "Sequential"),
    "an object beside": (
        lambda path: torch.save({"state_dict": net().state_dict(), "from": HOST}, path),
        "IPv4Address",
    ),
    "a generator": (
        lambda path: torch.save({**net().state_dict(), "rng": np.random.default_rng()}, path),
        "numpy.random",
    ),
    "raw pickle of arrays": (
        lambda path: (
            path.write_bytes(
                pickle.dumps(
                    {"model": {name: value.numpy() for name, value in net().state_dict().items()}, "author": "me"}
                )
            )
            and None
        ),
        "numpy",
    ),
    "torchscript": (lambda path: torch.jit.save(torch.jit.script(net()), path), "a TorchScript program"),
    "program": (_program, "a program of torch.export"),
}


@pytest.mark.parametrize("kind", CODE)
def test_code_is_refused_with_a_conversion_that_works(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "it's here.pt"  # a name that a shell would trip over
    error = refusal(coded(kind, path))
    assert CODE[kind][1] in error.what
    assert "only if you trust" in error.fix
    assert f"or add --trust {shlex.quote(str(path))}" in error.fix
    converted(error.fix)
    assert equal(read(tmp_path / "it's here.weights.pt").data, dict(net().state_dict()))


@pytest.mark.parametrize("kind", CODE)
def test_trust_by_the_exact_path_opens_it_and_its_hash_is_kept(tmp_path: Path, kind: str) -> None:
    path = coded(kind, tmp_path / "w.pt")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    contents = read(path, trust=[path])
    assert contents.trusted == {"w.pt": digest}
    assert digest in contents.notes[-1]
    module = net(seed=1)
    fit(module, contents.data, file=path, names=Names())
    assert equal(module.state_dict(), dict(net().state_dict()))
    for other in (tmp_path, path.with_name("v.pt")):
        with pytest.raises(InputError, match=r"runs? code"):
            read(path, trust=[other])


def test_trust_that_is_not_needed_is_said(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "w.pt")
    contents = read(tmp_path / "w.pt", trust=[tmp_path / "w.pt"])
    assert contents.trusted == {}
    assert "--trust was not needed" in contents.notes[0]


def coded(kind: str, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit is deprecated, its files are still about
        CODE[kind][0](path)
    return path


@pytest.mark.parametrize(
    ("contents", "key"),
    [
        ({"ema": net(), "state_dict": {}}, "ema"),
        ({"ema": {"module": net().state_dict(), "from": HOST}}, "ema.module"),
    ],
)
def test_the_conversion_uses_the_given_key(tmp_path: Path, contents: Any, key: str) -> None:
    torch.save(contents, tmp_path / "w.pt")
    error = refusal(tmp_path / "w.pt", key)
    assert "without --weights-key" in error.fix
    converted(error.fix)
    assert equal(read(tmp_path / "w.weights.pt").data, dict(net().state_dict()))


def test_the_conversion_keeps_what_lies_beside_the_weights(tmp_path: Path) -> None:
    optimizer = torch.optim.AdamW(net().parameters())
    torch.save({"model": net(), "ema": net().state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "w.pt")
    converted(refusal(tmp_path / "w.pt").fix)
    contents = read(tmp_path / "w.weights.pt").data
    assert equal(contents["model"], dict(net().state_dict()))
    assert equal(contents["ema"], dict(net().state_dict()))


def test_a_conversion_that_finds_nothing_fails(tmp_path: Path) -> None:
    torch.save({"from": HOST}, tmp_path / "w.pt")
    command = next(line for line in refusal(tmp_path / "w.pt").fix.splitlines() if line.startswith("  "))
    done = subprocess.run([sys.executable, *shlex.split(command)[1:]], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "no tensor was found" in done.stderr
    assert not (tmp_path / "w.weights.pt").exists()


def test_an_allowed_pickle_keeps_its_structure(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"epoch": 3, "state_dict": OrderedDict(a=torch.ones(2)), "lr": [0.1]}, path)
    contents = read(path).data
    assert (contents["epoch"], contents["lr"]) == (3, [0.1])
    assert torch.equal(contents["state_dict"]["a"], torch.ones(2))


def test_reading_leaves_the_file_alone(tmp_path: Path) -> None:
    path, copy = tmp_path / "w.pt", tmp_path / "copy.pt"
    torch.save(state(), path)
    shutil.copy2(path, copy)
    read(path)
    assert path.read_bytes() == copy.read_bytes()
