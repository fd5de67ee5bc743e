"""What of the GPU benchmark needs none: its cases, its checks, its table. No timing is judged."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

import bench_layernorm_gpu as script

SMALL = [replace(case, features=min(case.features, 1023)) for case in script.SMALL]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_what_it_times_is_right(case: script.Case) -> None:
    assert script.is_right(case, 5, "cpu")


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_a_wrong_kernel_is_seen(case: script.Case) -> None:
    def wrong(kind: script.Kind, i: script.Inputs) -> tuple[torch.Tensor, ...]:
        return script.ours(kind, replace(i, gamma=i.gamma * 1.05))

    limit = script.QUANTIZED_LIMIT if case.kind in script.QUANTIZED else script.LIMITS[case.dtype]
    assert script.worst_error(case, 50, "cpu", wrong) > limit


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
