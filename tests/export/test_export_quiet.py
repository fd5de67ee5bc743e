"""Exporting says nothing of its own accord, and gives the process back as it found it."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import warnings

import pytest
import torch
from exporting import export
from torch import nn

from normdeploy.errors import InputError
from normdeploy.export.quiet import quiet, unchanged

NOISY = """
import sys, torch, warnings
sys.path.insert(0, {tests!r})
from exporting import export
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.rnn = nn.Conv3d(1, 2, 1, bias=False), nn.LSTM(4, 4)
    def forward(self, x, y):
        print("a print of the module")
        warnings.warn("a warning of the module")
        return {{"a": self.conv(x), "none": None, "b": self.rnn(y)[0]}}

class Refused(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x

export(Net(), "x:N=1..2..4x1x2x3x4", "y:3xNx4", verbose={verbose})
try:
    export(Refused(), "x:N=1..2..4x3", verbose={verbose})
except Exception as error:
    assert "control flow" in str(error), error
print("done")
"""


def output_of(verbose: bool) -> tuple[str, str]:
    """Stdout and stderr of a fresh process, where torch's once-only messages are still to come."""
    code = NOISY.format(tests=str(__file__.rpartition("/")[0]), verbose=verbose)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_nothing_is_printed() -> None:
    assert output_of(verbose=False) == ("done\n", "")


def test_verbose_shows_what_torch_and_the_module_say_on_stderr() -> None:
    stdout, stderr = output_of(verbose=True)
    assert stdout == "done\n"
    assert all(text in stderr for text in ("[torch.onnx]", "a print of the module", "a warning of the module"))


@pytest.mark.parametrize("fails", [False, True])
def test_logging_warnings_and_streams_are_given_back(fails: bool) -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return x if not fails or x.sum() > 0 else -x

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return forward(x)

    before = sys.stdout, sys.stderr, list(warnings.filters), logging.root.manager.disable
    try:
        export(Net(), "x:N=1..2..4x3")
    except InputError:
        assert fails
    assert (sys.stdout, sys.stderr, list(warnings.filters), logging.root.manager.disable) == before


def test_another_threads_progress_still_reaches_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet(False):
        print("mine")
        print("mine too", file=sys.stderr)
        other = threading.Thread(target=lambda: print("progress", file=sys.stderr))
        other.start()
        other.join()
    assert capsys.readouterr() == ("", "progress\n")


def test_unchanged_restores_attributes_and_containers_even_after_an_error() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    module.names, module.table = ["a"], {"k": 1}

    def change() -> None:
        module.names.append("b")
        module.table["k"] = 2
        module.new = 1
        module[0].register_buffer("extra", torch.zeros(1))
        module[0].train(False)
        raise RuntimeError

    with pytest.raises(RuntimeError), unchanged(module):
        change()
    assert (module.names, module.table) == (["a"], {"k": 1})
    assert not hasattr(module, "new")
    assert list(module.state_dict()) == ["0.weight", "0.bias"]
    assert module[0].training
