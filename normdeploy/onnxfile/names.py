"""What a model may name once: where a name is given twice, each reader would choose for itself what it means."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import onnx

from normdeploy.errors import InputError
from normdeploy.onnxfile.functions import graphs

_OWN = ("", "ai.onnx")


def require_unique_names(model: onnx.ModelProto, where: str) -> None:
    """Refuse a model in which two inputs, weights, functions or opsets have one name.

    ONNX Runtime loads most of these, and takes the first or the last.

    Raises:
        InputError: with the name.
    """
    for what, names in _named(model):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            told = f"the model is not valid ONNX: two {what} have the name {twice[0][:80]!r}"
            raise InputError(told, where=where, fix="export it again")


def _named(model: onnx.ModelProto) -> Iterator[tuple[str, Iterable[str]]]:
    for graph in graphs(model):
        yield "inputs", (info.name for info in graph.input)
        yield "weights", _weights(graph)
    for function in model.functions:
        yield f"inputs of the function {function.name[:80]!r}", function.input
    yield "functions", (f"{each.domain}::{each.name}:{each.overload}" for each in model.functions)
    opsets = {("" if each.domain in _OWN else each.domain, each.version) for each in model.opset_import}
    yield "opsets", (domain for domain, _ in opsets)  # one that is listed twice, as by skl2onnx, is no choice


def _weights(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (tensor.name for tensor in graph.initializer)
    yield from (tensor.values.name for tensor in graph.sparse_initializer)
