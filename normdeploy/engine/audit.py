"""The engine computes in what was asked: judged from the layer table, after the build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from normdeploy.engine.layers import EngineLayer
from normdeploy.errors import VerdictError, listed
from normdeploy.precision import HEAVY, NORMS, Precision

_SHOWN = 10


def require_precision(
    layers: Sequence[EngineLayer],
    precision: Precision,
    expected: Mapping[str, str],
    *,
    quantized: bool = False,
    norm_nodes: Sequence[str] = (),
) -> tuple[str, ...]:
    """Raise VerdictError, with every layer that differs, unless the engine computes in ``precision``.

    - Every convolution, matrix product and recurrence must multiply in it; an int8 or fp8 one passes in a graph that
      was quantized on purpose (``quantized``).
    - Every norm, as one operator or as one of ``norm_nodes`` where it is spelled out, must average in float32.
    - The table must say so: ``expected`` are the nodes that multiply in the graph, by name, and what users call them.
      A table without any of them asserts nothing, and is refused.

    Gives notes on what the table does not say: which of ``expected`` it lacks, and the norms in kernels whose names do
    not spell their operators. For those the types of the strongly typed graph hold, which was built.
    """
    told = _told(layers)
    lacking = [name for node, name in expected.items() if node not in told]
    if not layers or (expected and len(lacking) == len(expected)):
        raise VerdictError(
            "the builder gave no table of its layers, so the precision of the engine cannot be asserted",
            fix="report it, with the backend's version",
        )
    wrong = [_describe(layer, layer.precision) for layer in _misfits(layers, precision, quantized)]
    norms = [layer for layer in layers if _is_norm(layer, norm_nodes)]
    wrong += [_describe(layer, f"statistics in {layer.statistics}") for layer in norms if _averages_narrow(layer)]
    if wrong:
        raise VerdictError(
            f"the engine does not compute in {precision} with float32 norm statistics",
            where=listed(wrong, _SHOWN, by="; "),
            fix="export the model in float32 and build with --precision; report it if it persists",
        )
    silent = sorted({name for layer in norms if _is_silent(layer) for name in layer.modules})
    notes = {"the layer table does not say in what these average": silent, "the layer table lacks": lacking}
    return tuple(f"{text}: {listed(names, _SHOWN, by='; ')}" for text, names in notes.items() if names)


def _told(layers: Sequence[EngineLayer]) -> set[str]:
    """The nodes of which the table says in what they are computed."""
    return {node for layer in layers if layer.precision for node in layer.nodes}


def _misfits(layers: Sequence[EngineLayer], precision: Precision, quantized: bool) -> list[EngineLayer]:
    """The layers that multiply in another type.

    An operator's name is on the kernels that move its data too. Those count only where no other carries it: the
    operator is inside a generated kernel then, and one of them must fit.
    """
    by_node: dict[str, list[EngineLayer]] = {}
    for layer in layers:
        for node, operator in zip(layer.nodes, layer.operators, strict=True):
            if operator in HEAVY and layer.precision:
                by_node.setdefault(f"{layer.profile}:{node}", []).append(layer)
    misfits: list[EngineLayer] = []
    for group in by_node.values():
        multiplying = [layer for layer in group if not layer.moves]
        unfit = [layer for layer in multiplying or group if not _fits(layer, precision, quantized)]
        misfits += unfit if multiplying or len(unfit) == len(group) else []
    return list(dict.fromkeys(misfits))


def _fits(layer: EngineLayer, precision: Precision, quantized: bool) -> bool:
    return layer.precision == precision or (quantized and layer.precision in ("int8", "fp8", "fp4", "int4"))


def _is_norm(layer: EngineLayer, norm_nodes: Sequence[str]) -> bool:
    batch = {"BatchNormalization"}  # linear at inference: it averages nothing
    return not (NORMS - batch).isdisjoint(layer.operators) or not set(norm_nodes).isdisjoint(layer.nodes)


def _averages_narrow(layer: EngineLayer) -> bool:
    return layer.statistics not in ("", "fp32")


def _is_silent(layer: EngineLayer) -> bool:
    return not layer.statistics and layer.precision not in ("", "fp32")


def _describe(layer: EngineLayer, found: str) -> str:
    return f"{', '.join(layer.modules) or layer.name}: {found}"
