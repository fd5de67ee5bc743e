"""The layer table as the terminal shows it; the sidecar's own JSON is what machines read."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from normdeploy.engine.layers import EngineLayer


def layer_table(layers: Sequence[EngineLayer]) -> Table:
    """Return one row a layer: what it is, the modules and operators in it, its precision and its kernel."""
    table = Table(title=f"{len(layers)} engine layers")
    for heading in ("layer", "modules", "operators", "precision", "tactic"):
        table.add_column(heading, overflow="fold")
    for layer in layers:
        precision = f"{layer.precision}, averages in {layer.statistics}" if _mixed(layer) else layer.precision
        row = (layer.kind, ", ".join(layer.modules), ", ".join(layer.operators), precision, layer.tactic)
        table.add_row(*map(Text, row))  # a name's square brackets are no markup
    return table


def _mixed(layer: EngineLayer) -> bool:
    return layer.statistics not in ("", layer.precision)
