"""What was read from a file stays what it was, whatever is written over the file afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import models.digits
import normdeploy
from normdeploy.cli import main
from normdeploy.doctor import partial
from normdeploy.doctor.moments import Moments
from normdeploy.doctor.partial import Partial
from normdeploy.parity.feeds import data_feed
from normdeploy.specs import parse


def overwrite(path: Path) -> None:
    """Other bytes in the same file, of the same length."""
    length = path.stat().st_size
    with path.open("r+b") as file:
        file.write(b"\x41" * length)


def test_moments_of_a_partial_result(tmp_path: Path) -> None:
    channels = torch.arange(4, dtype=torch.float64)
    moments = Moments(8, channels, channels + 1, 2, channels + 2, channels + 3, 7.0)
    path = tmp_path / "one.part"
    path.write_bytes(Partial("a" * 64, 2, {"norm": moments}).to_bytes())
    found = partial.read(path).moments["norm"]
    overwrite(path)
    assert torch.equal(found.mean, channels)
    assert torch.equal(found.m2, channels + 1)
    assert torch.equal(found.batch_means, channels + 2)
    assert torch.equal(found.batch_variances, channels + 3)


def test_a_folded_module(tmp_path: Path) -> None:
    path = tmp_path / "folded.safetensors"
    weights = Path(__file__).parent.parent / "models" / "digits_resnet.safetensors"
    command = ["export", "--model", "models.digits:resnet", "--weights", str(weights), "--no-bench"]
    specs = ["--input", "x:N=1..1..64x1x8x8@f32"]
    assert main([*command, *specs, "--out", str(tmp_path / "bundle"), "--to-torch", str(path)]) == 0
    module = normdeploy.load_folded(models.digits.resnet(), path)
    x = torch.from_numpy(np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32))
    with torch.no_grad():
        before = module(x)
        overwrite(path)
        assert torch.equal(module(x), before)


def test_feeds(tmp_path: Path) -> None:
    path, x = tmp_path / "x.safetensors", torch.arange(6, dtype=torch.float32).reshape(2, 3)
    save_file({"x": x}, path)
    feed = data_feed(parse(["x:2x3@f32"]), path)
    overwrite(path)
    assert np.array_equal(feed.arrays["x"], x.numpy())
