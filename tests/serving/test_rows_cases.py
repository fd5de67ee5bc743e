"""The rules of rows on onnx's own node cases: what moves when an input is changed, onnx.reference says.

A rule may name more than moves, and never less.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

from normdeploy.serving.rows.call import Call, Mask, operator
from normdeploy.serving.rows.table import INDICES, RULES

LEFT_OUT = re.compile(
    r"_expanded|training|random|bernoulli|float8|float4|e4m3|e5m2|e2m1|int4|bfloat16|_bf16|string|sequence|optional"
)
BITS = 3
MOST = 10_000  # elements: larger cases take seconds in onnx.reference
WITHOUT_CASE = {"Cast", "CastLike", "GlobalLpPool", "SimplifiedLayerNormalization"}
"""Their cases are in types that NumPy has not, or there are none."""


def cases() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some divide by zero when they are made
        from onnx.backend.test.case.node import collect_testcases

        found = [case for case in collect_testcases(None) if not LEFT_OUT.search(case.name)]
    return [case for case in found if len(case.model.graph.node) == 1 and operator(case.model.graph.node[0]) in RULES]


def moved(array: np.ndarray, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``array`` with other values where ``chosen``, of the range that it has."""
    if array.dtype == bool:
        return np.where(chosen, ~array, array)
    if array.dtype.kind in "iu":
        return np.where(chosen, rng.permutation(array.ravel()).reshape(array.shape), array)
    other = array + rng.uniform(0.1, 0.9, array.shape) * rng.choice([-1, 1], array.shape)
    return np.where(chosen, other, array).astype(array.dtype)


def differs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    different = a != b
    return different & ~((a != a) & (b != b))


def masks_of(inputs: list[np.ndarray | None], axis: int) -> list[Mask | None]:
    """The places along ``axis`` of each input are the rows, from one on again where there are too many."""
    made: list[Mask | None] = []
    for array in inputs:
        if array is None:
            made.append(None)
        elif array.ndim == 0:
            made.append(np.full((), 1, np.uint8))
        else:
            at = axis % array.ndim
            bits = (1 << (np.arange(array.shape[at]) % BITS)).astype(np.uint8)
            made.append(
                np.broadcast_to(bits.reshape([-1 if each == at else 1 for each in range(array.ndim)]), array.shape)
            )
    return made


def changes(
    evaluate: ReferenceEvaluator, feed: dict[str, Any], masks: dict[str, Mask]
) -> Iterator[tuple[int, list[Any]]]:
    """The number of a row, and what comes out when its elements are others."""
    rng = np.random.default_rng(0)
    for row in range(BITS):
        other = {
            name: moved(array, masks[name] >> row & 1 == 1, rng) if name in masks else array
            for name, array in feed.items()
        }
        yield row, evaluate.run(None, other)


def wrong(case: Any, arrays: list[np.ndarray | None], axis: int) -> Iterator[str]:
    """The outputs of a case that depend on more than its operator's rule says.

    Indices are of no row here: changed, they would leave the range.
    """
    node, outputs = case.model.graph.node[0], case.data_sets[0][1]
    places = INDICES.get(operator(node), ())
    masks = [
        np.zeros_like(mask) if mask is not None and place in places else mask
        for place, mask in enumerate(masks_of(arrays, axis))
    ]
    known = {place: arrays[place] for place in places if place < len(arrays) and arrays[place] is not None}
    shapes = {place: np.shape(output) for place, output in enumerate(outputs)}
    found = RULES[operator(node)](Call(node, masks, known, shapes, case.model.opset_import[0].version))
    given = [(name, array, mask) for name, array, mask in zip(node.input, arrays, masks, strict=True) if name]
    feed = {name: array for name, array, _ in given}
    evaluate = ReferenceEvaluator(case.model)
    first = evaluate.run(None, feed)
    for row, others in changes(evaluate, feed, {name: mask for name, _, mask in given if mask.any()}):
        for place, (before, after) in enumerate(zip(first, others, strict=True)):
            unnamed = np.broadcast_to(found[place], np.shape(before)) >> row & 1 == 0
            if np.shape(before) != np.shape(after) or (differs(np.asarray(before), np.asarray(after)) & unnamed).any():
                yield f"{case.name}: output {place}, row {row}"


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_no_rule_names_less_than_moves(axis: int) -> None:
    tried, found = set[str](), list[str]()
    for case in cases():
        given = iter(case.data_sets[0][0])
        arrays = [np.asarray(next(given)) if name else None for name in case.model.graph.node[0].input]
        if all(array is None or (array.dtype.kind in "biufc" and array.size <= MOST) for array in arrays):
            with np.errstate(all="ignore"):
                found += wrong(case, arrays, axis)
            tried.add(operator(case.model.graph.node[0]))
    assert not found
    assert {name for name in RULES if "::" not in name} - tried <= WITHOUT_CASE
