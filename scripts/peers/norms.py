"""The graphs with layer norms that all folders get: the tables of tests/fold/layernorm."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import onnx

from peers import counting
from peers.borrowed import affine_cases, norm_model, spelled_cases, stream_cases
from peers.graph import Graph

SPELLED = {
    "layer norms spelled out": spelled_cases.LAYER_NORMS,
    "layer norms over channels": spelled_cases.CHANNELS_FIRST,
    "RMS norms spelled out": spelled_cases.RMS_NORMS,
    "group norms spelled out": spelled_cases.GROUP_NORMS,
}
TOKENS = "float[N,7,6] x"
GROUPS = (
    *SPELLED,
    "no norms",
    "scales and biases of norms",
    "norms of one value",
    "layer norms to RMS norms",
)
"""All groups of this file."""

COMMON = ("layer norms spelled out", "RMS norms spelled out")
"""Groups whose cases also come as exporters write them."""

OLD = {
    "layer norm below opset 17": "layer norms spelled out",
    "rms norm below opset 23": "RMS norms spelled out",
    "group norm spelled out below opset 21": "group norms spelled out",
}
"""What is no lookalike: ONNX has no operator for it at that opset, but a runtime may have one of its own."""


def graphs() -> list[Graph]:
    """All graphs with layer norms."""
    return [*_spelled(), *_lookalikes(), *_affines(), *_twins(), *_streams()]


def _spelled() -> Iterator[Graph]:
    for group, cases in SPELLED.items():
        for case in cases:
            old = case if "layer" not in group else replace(case, opset=min(case.opset, 18))
            yield _becoming(group, case.name, old.model(), case.becomes, "parts")
            usual = _as_exporters_do(old)
            if group in COMMON and usual.body != old.body:
                yield _becoming(group, f"{case.name}, as exporters write it", usual.model(), case.becomes, "parts")
    for case in spelled_cases.LOOKALIKES:
        if case.name in OLD:
            yield Graph(f"{OLD[case.name]}: {case.name}", OLD[case.name], case.model(), 0, "parts")


def _as_exporters_do(case: Any) -> Any:
    """The spelling with squares by Pow, and with the scale and bias that nearly every norm has."""
    body = re.sub(r"= Mul \((\w+), \1\)", r"= Pow (\1, two)", case.body)
    if case.inputs != TOKENS or "gamma" in case.weights or "beta" in case.weights or " " in case.becomes:
        return replace(case, body=body)
    start, end = body.rsplit("y = ", 1)
    if case.becomes == "LayerNormalization":
        tail, weights = "usual = Mul (core, gamma)\n y = Add (usual, beta)", "float[6] gamma, float[6] beta"
    else:
        tail, weights = "y = Mul (gamma, core)", "float[6] gamma"
    weights = ", ".join(text for text in (case.weights, weights) if text)
    return replace(case, body=f"{start}core = {end}\n {tail}", weights=weights)


def _lookalikes() -> Iterator[Graph]:
    for case in spelled_cases.LOOKALIKES:
        if case.name not in OLD:
            yield Graph(f"no norms: {case.name}", "no norms", case.model(), None, "parts")


def _affines() -> Iterator[Graph]:
    group = "scales and biases of norms"
    for case in (*affine_cases.INTO, *affine_cases.THROUGH):
        yield _becoming(group, f"layer norm, {case.name}", case.model(), case.becomes, "tails")
        rms = case.model(affine_cases.RMS, "float[6] gamma", opset=23)
        yield _becoming(group, f"RMS norm, {case.name}", rms, case.becomes, "tails")
    behind = norm_model(
        TOKENS, f"{affine_cases.AFFINE}, float[6] s, float[6] t",
        affine_cases.LN + "a = Mul (n, s)\n b = Add (a, t)\n y = Relu (b)",
    )  # fmt: skip
    yield Graph(f"{group}: a Mul and an Add join the norm before them", group, behind, 0)
    for case in affine_cases.REFUSED:
        yield Graph(f"{group}: {case.name}", group, case.model(), None, "tails")


def _becoming(group: str, name: str, proto: onnx.ModelProto, becomes: str, counted: counting.Counted) -> Graph:
    left = counting.passes_named(becomes.split(), counting.sums_in_onnx(proto), counted)
    is_less = left < counting.left_in_onnx(proto, counted)
    return Graph(f"{group}: {name}", group, proto, left if is_less else None, counted)


def _twins() -> Iterator[Graph]:
    group = "norms of one value"
    made = {
        "equal": affine_cases.twins(),
        "defaults spelled out": affine_cases.twins(one=", epsilon=1e-5", two=", stash_type=1"),
        "axis counted from the front": affine_cases.twins(axis=2),
    }
    for name, proto in made.items():
        yield Graph(f"{group}: {name}", group, proto, 1, "norms")
    other = affine_cases.twins(one=", epsilon=1e-5", two=", epsilon=1e-12")
    yield Graph(f"{group}: another epsilon", group, other, None, "norms")


def _streams() -> Iterator[Graph]:
    group = "layer norms to RMS norms"
    for case in stream_cases.CENTRED:
        proto = case.model()
        yield Graph(f"{group}: {case.name}", group, proto, counting.left_in_onnx(proto, "means") - case.rms, "means")
    for case in stream_cases.REFUSED:
        yield Graph(f"{group}: {case.name}", group, case.model(), None, "means")
