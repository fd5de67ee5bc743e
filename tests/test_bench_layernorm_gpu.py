"""What of the GPU benchmark needs none: its cases, its checks, its table. No timing is judged."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import bench_layernorm_gpu as script
from layernorm_peers import peers

SMALL = [replace(case, features=min(case.features, 1023)) for case in script.SMALL]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_what_it_times_is_right(case: script.Case) -> None:
    assert script.is_right(case, 5, "cpu")


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_a_wrong_kernel_is_seen(case: script.Case) -> None:
    def wrong(kind: script.Kind, i: script.Inputs) -> tuple[torch.Tensor, ...]:
        return script.ours(kind, replace(i, gamma=i.gamma * 1.05))

    assert script.worst_error(case, 50, "cpu", wrong) > script.limit_of(case)


@pytest.mark.parametrize("kind", script.KINDS)
def test_eager_is_the_same_norm(kind: script.Kind) -> None:
    case = script.Case(kind, 64, "float32")
    assert script.worst_error(case, 9, "cpu", script.eager) <= script.worst_error(case, 9, "cpu") + 16


def test_bytes_are_what_a_norm_must_move() -> None:
    assert script.Case("LN", 1024, "bfloat16").nbytes == 2 * script.MOVED
    assert script.Case("add+LN", 1024, "bfloat16").nbytes == 4 * script.MOVED
    assert script.Case("LN+int8", 1024, "float16").nbytes == script.MOVED * 3 // 2
    assert script.Case("LN+fp8", 1024, "float32").nbytes == script.MOVED * 5 // 4


def test_the_table_has_rates_and_ratios() -> None:
    row = script.Row("LN", 1024, "bfloat16", 2 * 10**9, {"normdeploy": (0.9, 1.0, 1.1), "eager": (1.9, 2.5, 3.0)})
    console = Console(width=120, record=True)
    console.print(script.table([row], copy=4000.0))
    text = console.export_text()
    assert row.rate("normdeploy") == pytest.approx(2000.0)
    for shown in ("a copy: 4000 GB/s", "2000", "0.50", "eager 2.50"):
        assert shown in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and it would be measured")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([]) == 3
    assert "no NVIDIA GPU" in capsys.readouterr().err


def test_the_cases_are_those_that_were_promised() -> None:
    cases = script.cases()
    assert len(set(cases)) == len(cases) == 5 * 11 * 3
    assert {case.features for case in cases} >= {256, 131_072}
    assert cases[0].dtype == "bfloat16", "what is deployed most comes first"
    assert all(case.rows * case.features * torch.empty(0, dtype=script.DTYPES[case.dtype]).element_size()
               <= script.MOVED for case in cases)  # fmt: skip


def row(kind: str, features: int, **milliseconds: float) -> script.Row:
    times = {name.replace("_", "."): (ms, ms, ms) for name, ms in milliseconds.items()}
    return script.Row(kind, features, "bfloat16", 10**9, times)


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (row("LN", 4096, normdeploy=1.0, eager=2.0, torch_compile=1.0), []),
        (row("LN", 4096, normdeploy=1.06, eager=2.0), ["0.94 of a copy, not 0.95"]),
        (row("LN", 65536, normdeploy=1.06, eager=2.0), []),
        (row("LN", 65536, normdeploy=1.2, eager=2.0), ["0.83 of a copy, not 0.90"]),
        (row("LN", 256, normdeploy=9.0, QuACK=8.9), ["0.99 times as fast as QuACK, not 1"]),
        (row("add+LN", 256, normdeploy=1.0, separate=1.2), ["1.20 times as fast as separate, not 1.25"]),
        (row("LN+int8", 256, normdeploy=1.0, separate=1.9), ["1.90 times as fast as separate, not 2"]),
        (row("LN+fp8", 256, normdeploy=1.0, separate=2.1), []),
    ],
)
def test_a_goal_that_is_missed_is_said(measured: script.Row, said: list[str]) -> None:
    found = script.missed([measured], copy=1000.0)
    assert [text.partition(": ")[2] for text in found] == said
    assert all(text.startswith(f"{measured.kind} {measured.features:,} bfloat16: ") for text in found)


@pytest.mark.parametrize("kind", script.KINDS)
def test_runners_of_a_kind(kind: script.Kind) -> None:
    found, left = script.runners(kind)
    assert {"normdeploy", "eager", "torch.compile"} <= set(found)
    assert ("separate" in found) is (kind not in ("LN", "RMS"))
    assert set(left) <= {"Liger", "QuACK", "Triton tutorial"}


def test_the_separate_pair_is_the_same_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "_compiled_add", torch.add)
    monkeypatch.setattr(script, "_compiled_quantize", script._quantize)
    for kind in ("add+LN", "LN+int8", "LN+fp8"):
        case = script.Case(kind, 96, "float16")
        assert script.worst_error(case, 9, "cpu", script.separate) <= script.limit_of(case)


def module(name: str, **members: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(members)
    return made


def test_peers_are_called_as_they_declare_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-ins have the signatures of liger-kernel 0.8.5 and quack-kernels 0.6.5."""

    class LigerLayerNorm(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, X: torch.Tensor, W: torch.Tensor, B: torch.Tensor, eps: float) -> torch.Tensor:
            return torch.nn.functional.layer_norm(X, W.shape, W, B, eps)

    class LigerRMSNorm(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, X: torch.Tensor, W: torch.Tensor, eps: float, offset: float = 0.0, casting_mode: str = "llama",
            in_place: bool = True, row_mode: Any = None,
        ) -> torch.Tensor:  # fmt: skip
            return torch.nn.functional.rms_norm(X, W.shape, W, eps)

    def layernorm_fwd(
        x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, eps: float = 1e-6,
        return_rstd: bool = False, return_mean: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        assert weight.dtype == torch.float32
        return torch.nn.functional.layer_norm(x.float(), weight.shape, weight, bias, eps).to(x.dtype)

    def rmsnorm_fwd(
        x: torch.Tensor, weight: torch.Tensor | None = None, bias: Any = None, residual: Any = None,
        out_dtype: Any = None, residual_dtype: Any = None, eps: float = 1e-6, store_rstd: bool = False,
        weight_offset: float = 0.0,
    ) -> tuple[torch.Tensor, torch.Tensor, None]:  # fmt: skip
        assert weight is not None
        return torch.nn.functional.rms_norm(x, weight.shape, weight, eps), x, None

    liger = "liger_kernel.ops."
    for made in (
        module(liger + "layer_norm", LigerLayerNormFunction=LigerLayerNorm),
        module(liger + "rms_norm", LigerRMSNormFunction=LigerRMSNorm),
        module("quack.rmsnorm", layernorm_fwd=layernorm_fwd, rmsnorm_fwd=rmsnorm_fwd),
    ):
        monkeypatch.setitem(sys.modules, made.__name__, made)
    for kind in ("LN", "RMS"):
        found, _ = peers(kind)
        case = script.Case(kind, 96, "bfloat16")
        for name in ("Liger", "QuACK"):
            error = script.worst_error(case, 9, "cpu", script._as_runner(found[name]))
            assert error <= script.PEER_LIMIT * script.limit_of(case)


def test_peers_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("liger_kernel.ops.layer_norm", "quack.rmsnorm", "triton"):
        monkeypatch.setitem(sys.modules, name, None)
    found, left = peers("LN")
    assert found == {}
    assert set(left) == {"Liger", "QuACK", "Triton tutorial"}


def test_its_own_budget_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that a case moves by a minute, a budget of three minutes has three cases."""
    now = 0.0

    def measured(case: script.Case) -> script.Row:
        nonlocal now
        now += 60.0
        return row(case.kind, case.features, normdeploy=1.0)

    monkeypatch.setattr(script, "measured", measured)
    monkeypatch.setattr(script, "_wrong", lambda cases: ["wrong"] if cases[0].kind == "RMS" else [])
    monkeypatch.setattr(script.time, "monotonic", lambda: now)
    rows, wrong = script.run_cases(170.0)
    assert [(each.kind, each.features) for each in rows] == [("LN", 256), ("add+LN", 256), ("LN+int8", 256)]
    assert wrong == ["wrong"]


def test_one_call_writes_a_table_and_a_document(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of main, with a stand-in for the GPU alone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a stand-in")
    monkeypatch.setattr(script, "_wrong", lambda cases: [])
    monkeypatch.setattr(script, "copied", lambda: 1000.0)
    monkeypatch.setattr(script, "sanitized", lambda seconds: "compute-sanitizer is not installed")
    monkeypatch.setattr(script, "measured", lambda case: row(case.kind, case.features, normdeploy=1.0, eager=0.5))
    assert script.main(["--json", str(tmp_path / "gpu.json")]) == 0
    said = capsys.readouterr().out
    assert "0.50 times as fast as eager, not 1" in said
    assert "0 of 165 cases left out" in said
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert document["gpu"] == "a stand-in"
    assert len(document["rows"]) == 165
    assert document["missed"]
    assert script.main(["--minutes", "0"]) == 0
    assert "165 of 165 cases left out" in capsys.readouterr().out


SANITIZER = """#!/bin/sh
echo "$@" >> {calls}
case "$2" in {tool}) {then};; esac
"""


@pytest.mark.parametrize(
    ("tool", "then", "said"),
    [
        ("none", ":", "memcheck and racecheck found nothing"),
        ("memcheck", "echo an invalid read; exit 9", "memcheck found: an invalid read\n"),
        ("racecheck", "echo a hazard; exit 9", "racecheck found: a hazard\n"),
        ("racecheck", "exec sleep 60", "racecheck was not done in 1 s"),
    ],
)
def test_compute_sanitizer_runs_the_small_shapes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tool: str, then: str, said: str
) -> None:
    calls, program = tmp_path / "calls", tmp_path / "compute-sanitizer"
    program.write_text(SANITIZER.format(calls=calls, tool=tool, then=then))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert script.sanitized(1.0) == said
    expected = f"--error-exitcode 9 {sys.executable} {script.__file__} --small"
    lines = calls.read_text().splitlines()
    tools = ["memcheck"] if tool == "memcheck" else ["memcheck", "racecheck"]
    assert lines == [f"--tool {name} {expected}" for name in tools]


def test_without_compute_sanitizer_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert script.sanitized(1.0) == "compute-sanitizer is not installed"
