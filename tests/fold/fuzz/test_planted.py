"""The property test can fail: rules are made wrong, the proof that would stop them is out, and check() sees it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from properties import Violation, bare, check
from runs import each_case
from strategies import Case

from normdeploy.fold import fold, merge
from normdeploy.fold.affine import AffineMap
from normdeploy.fold.graph.reader import View
from normdeploy.fold.operators import linear, poolers
from normdeploy.fold.operators.rows import Maps, both_ways, only_first
from normdeploy.fold.operators.table import TABLE
from normdeploy.fold.plan import Step
from normdeploy.fold.proof import commute

pytestmark = pytest.mark.xdist_group("planted")  # one process draws the graphs

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]

GRAPHS = 1200


@functools.cache
def drawn() -> list[tuple[Case, bytes]]:
    """The graphs that every mistake must be seen in, and what becomes of them without one."""
    found: list[Case] = []
    each_case(0, GRAPHS, found.append, shrink=False, plain=True)  # so that each mistake is met
    return [(case, outcome(case)) for case in found]


def outcome(case: Case) -> bytes:
    return bare(ir.to_proto(fold(case.given, validate=False).model))


def changed(graphs: list[tuple[Case, bytes]]) -> Iterator[Case]:
    """Those that fold in another way than they did; nothing can be seen in the others."""
    return (case for case, right in graphs if outcome(case) != right)


def rule(op: str, **changes: Any) -> Plant:
    """Let the row of ``op`` have other rules."""
    return lambda patch: patch.setitem(TABLE, op, replace(TABLE[op], **changes))


def any_channels_pass(op: str) -> Plant:
    """Let every map over the channels pass ``op`` as it is."""

    def unchanged(step: Step, m: AffineMap, upward: bool) -> AffineMap:
        before, after = (step.view.require_shape(ends[0], step.node) for ends in (step.node.inputs, step.node.outputs))
        if any(axis != 1 for axis in m.axes) or before[:2] != after[:2]:
            raise step.refuse("NF020", "it varies over cells, or the channels are not what they were")
        return m

    return lambda patch: patch.setitem(TABLE, op, replace(TABLE[op], **both_ways(unchanged)))


def nothing_is_checked(name: str) -> Plant:
    return lambda patch: patch.setattr(linear, name, lambda *args: None)


def read_wrong(formula: Callable[..., tuple[np.ndarray, np.ndarray]]) -> Plant:
    """Let BatchNormalization be ``formula(gamma, beta, mean, var, eps) -> scale, shift`` wherever it is a map."""
    right = TABLE["BatchNormalization"].map
    assert right is not None

    def read(view: View, node: ir.Node) -> AffineMap | None:
        found = right(view, node)
        if found is None:
            return None
        parameters = (np.asarray(view.array(node.inputs[i]), np.float64) for i in (1, 2, 3, 4))
        scale, shift = formula(*parameters, view.attr(node, "epsilon", 1e-5))
        channels = (-1, *(1,) * (found.rank - 2))
        return AffineMap.of(scale.reshape(channels), shift.reshape(channels), found.rank)

    return rule("BatchNormalization", map=read)


def folds_to(scale: np.ndarray, beta: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return scale, beta - scale * mean


def conv_up_in_reverse(step: Step, outs: Maps) -> dict[int, AffineMap]:
    return linear.conv_up(step, [only_first(step, outs).moved(lambda a: np.flip(a, 1))])


def conv_up_over_the_wrong_axis(step: Step, outs: Maps) -> dict[int, AffineMap]:
    m, weight = only_first(step, outs), step.edit(1)
    if weight is None or tuple(m.axes) != (1,) or not m.size(1) == weight.shape[0] == weight.shape[1]:
        return linear.conv_up(step, outs)
    step.scale_weight(1, left=m.scale.reshape(-1, *(1,) * (len(weight.shape) - 2)))
    linear.scale_bias(step, m.scale.reshape(-1), m.shift.reshape(-1))
    return {}


def conv_up_a_thousandth_off(step: Step, outs: Maps) -> dict[int, AffineMap]:
    """In the last channel alone."""
    m = only_first(step, outs)
    wrong = np.where(np.arange(m.scale.size) == m.scale.size - 1, 1.001, 1.0).reshape(m.scale.shape)
    return linear.conv_up(step, [AffineMap(m.scale * wrong, m.shift)])


def sum_up_with_the_shift_on_both(step: Step, outs: Maps) -> dict[int, AffineMap]:
    right = poolers.sum_up(step, outs)
    return {index: AffineMap(m.scale, only_first(step, outs).shift) for index, m in right.items()}


def sub_up_without_its_sign(step: Step, outs: Maps) -> dict[int, AffineMap]:
    first, second = poolers.sum_up(step, outs).values()
    return {0: first.without_shift(), 1: AffineMap(second.scale, only_first(step, outs).shift)}


def taps_in_the_corner(step: Step, large: merge.Window, small: merge.Window) -> tuple[slice, ...]:
    return tuple(slice(0, k) for k in small.kernel)


WRONG: dict[str, Plant] = {
    "missing sqrt": read_wrong(lambda g, b, m, v, e: folds_to(g / (v + e), b, m)),
    "swapped beta and mean": read_wrong(lambda g, b, m, v, e: folds_to(g / np.sqrt(v + e), m, b)),
    "eps 1e-3": read_wrong(lambda g, b, m, v, e: folds_to(g / np.sqrt(v + 1e-3), b, m)),
    "wrong axis of a Conv": rule("Conv", up=conv_up_over_the_wrong_axis),
    "channels of a Conv in reverse": rule("Conv", up=conv_up_in_reverse),
    "one channel a thousandth off": rule("Conv", up=conv_up_a_thousandth_off),
    "shift into a padded Conv": nothing_is_checked("_require_no_padding"),
    "shift into a cropped ConvTranspose": nothing_is_checked("_require_full_kernel"),
    "shift through Relu": any_channels_pass("Relu"),
    "negative scale through LeakyRelu": any_channels_pass("LeakyRelu"),
    "negative scale through MaxPool": any_channels_pass("MaxPool"),
    "shift through counted pads": any_channels_pass("AveragePool"),
    "shift through padded zeros": any_channels_pass("Pad"),
    "shift on both branches of a sum": rule("Add", up=sum_up_with_the_shift_on_both),
    "sign of a Sub forgotten": rule("Sub", up=sub_up_without_its_sign),
    "branches merged at the wrong tap": lambda patch: patch.setattr(merge, "_taps", taps_in_the_corner),
}


@pytest.mark.parametrize("plant", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_rule_is_seen(plant: Plant, monkeypatch: Patch) -> None:
    graphs = drawn()
    plant(monkeypatch)
    for proof in ("residual", "square"):
        monkeypatch.setattr(commute, proof, lambda *args: 0.0)
    monkeypatch.setattr(merge, "TOLERANCE", math.inf)
    with pytest.raises(Violation, match="times what rounding the weights can do"):
        list(map(check, changed(graphs)))
