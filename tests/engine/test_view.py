from __future__ import annotations

from io import StringIO

from rich.console import Console

from normdeploy.engine.layers import EngineLayer
from normdeploy.engine.view import layer_table


def test_each_layer_is_a_row_with_its_modules_and_what_it_averages_in() -> None:
    conv = EngineLayer("a", "correlation", ("stem.conv", "stem"), ("Conv", "Relu"), "fp16", "", "CASK", ("x",), ("r",))
    norm = EngineLayer("b", "kgen", ("norm",), ("LayerNormalization",), "fp16", "fp32", "k_0x1f", ("r",), ("n",))
    moved = EngineLayer("c", "kgen", (), (), "fp32", "fp32", "[bold]k_0x2f", ("n",), ("y",))
    console = Console(file=StringIO(), width=160)
    console.print(layer_table([conv, norm, moved]))
    first, second, third = (line for line in console.file.getvalue().splitlines() if "│" in line)  # type: ignore[attr-defined]
    assert all(part in first for part in ("correlation", "stem.conv, stem", "Conv, Relu", "fp16", "CASK"))
    assert "fp16, averages in fp32" in second
    assert "averages" not in third
    assert "[bold]k_0x2f" in third
    assert "3 engine layers" in console.file.getvalue()  # type: ignore[attr-defined]
