"""Measurements of artefacts that are right, subtly wrong, and not comparable at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from stand_ins import FunctionRunner, onnxruntime_runner
from torch import nn

from normdeploy.errors import UnavailableError, VerdictError
from normdeploy.export import to_graph
from normdeploy.fold import fold
from normdeploy.parity.compare import measure
from normdeploy.parity.feeds import Feed, random_feeds
from normdeploy.parity.metrics import EXACT
from normdeploy.parity.verdict import judge
from normdeploy.runtime.eager import EagerRunner
from normdeploy.specs import parse

SPECS = parse(["x:N=1..2..4x5@f32"])
FEEDS = random_feeds(SPECS)


class Module(nn.Module):
    """A function of x as a module, with a weight of its own."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.linspace(-1, 1, 15).reshape(5, 3), requires_grad=False)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x, self.weight)


LINEAR = Module(lambda x, w: x @ w)
WEIGHT = LINEAR.weight.numpy()


def linear(x: np.ndarray) -> dict[str, np.ndarray]:
    """What LINEAR computes, rounded once."""
    return {"output": (x.astype(np.float64) @ WEIGHT.astype(np.float64)).astype(np.float32)}


def test_errors_of_both_are_measured_against_float64() -> None:
    measurements, reference, notes, _ = measure(LINEAR, SPECS, FunctionRunner(linear), FEEDS)
    assert (reference, notes) == ("float64", ())
    assert [m.feed for m in measurements] == ["random N=2", "random N=1", "random N=4"]
    for feed, measured in zip(FEEDS, measurements, strict=True):
        exact = feed.arrays["x"].astype(np.float64) @ WEIGHT.astype(np.float64)
        eager = (torch.from_numpy(feed.arrays["x"]) @ LINEAR.weight).numpy()
        for array, errors in ((eager, measured.eager), (linear(feed.arrays["x"])["output"], measured.deployed)):
            assert errors.max_abs == pytest.approx(np.abs(array - exact).max(), rel=1e-6)
            assert errors.rms == pytest.approx(np.linalg.norm(array - exact) / np.linalg.norm(exact), rel=1e-6)
        assert (measured.output, measured.shape, measured.dtype) == ("output", eager.shape, "float32")
        assert measured.reference == "float64"
    assert judge(measurements).passed


@pytest.mark.parametrize("fault", [1e-4, 1e-5])
def test_a_small_fault_in_one_weight_fails(fault: float) -> None:
    def wrong(x: np.ndarray) -> dict[str, np.ndarray]:
        weight = WEIGHT.copy()
        weight[2, 1] += fault
        return {"output": x @ weight}

    verdict = judge(measure(LINEAR, SPECS, FunctionRunner(wrong), FEEDS).measurements)
    assert not verdict.passed
    assert verdict.smallest_k > 4


def test_a_real_export_passes_before_and_after_the_fold(four_blocks: nn.Module) -> None:
    specs = parse(["x:N=1..2..4x5x7x6"])
    model = to_graph(four_blocks, specs).model
    for deployed in (model, fold(model).model):
        measured = measure(four_blocks, specs, onnxruntime_runner(deployed), random_feeds(specs))
        assert measured.reference == "float64"
        assert len(measured.measurements) == 3
        assert judge(measured.measurements).passed


def test_a_module_that_loses_much_itself_allows_as_much_and_no_more() -> None:
    """x + 3e4 − 3e4 in float32 is off by 1e-3; an artefact that is as far off passes, one 20 times farther does not."""
    lossy = Module(lambda x, w: ((x + 3e4) - 3e4) @ w)

    def artefact(times: float) -> Any:
        def run(x: np.ndarray) -> dict[str, np.ndarray]:
            rounded = (x + np.float32(3e4)) - np.float32(3e4)
            return {"output": ((x + times * (rounded - x)) @ WEIGHT).astype(np.float32)}

        return FunctionRunner(run)

    same = measure(lossy, SPECS, artefact(1.0), FEEDS).measurements
    assert all(1e-4 < m.eager.rms < 1e-2 for m in same)
    assert judge(same).passed
    assert not judge(measure(lossy, SPECS, artefact(20.0), FEEDS).measurements).passed


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda x: {"logits": x @ WEIGHT}, "missing output; unexpected logits"),
        (lambda x: {**linear(x), "extra": x}, "unexpected extra"),
        (lambda x: {"output": (x @ WEIGHT)[:1]}, r"output is float32\[1, 3\], eager's is float32\[2, 3\]"),
        (lambda x: {"output": (x @ WEIGHT)[..., None]}, r"output is float32\[2, 3, 1\]"),
        (lambda x: {"output": (x @ WEIGHT).astype(np.float64)}, r"output is float64\[2, 3\]"),
        (lambda x: {"output": (x @ WEIGHT).astype(np.int64)}, r"output is int64\[2, 3\]"),
    ],
)
def test_outputs_that_are_not_eagers_are_refused(outputs: Any, message: str) -> None:
    with pytest.raises(VerdictError, match=message) as caught:
        measure(LINEAR, SPECS, FunctionRunner(outputs), FEEDS)
    assert "random N=2" in caught.value.where


def test_outputs_of_other_names_are_compared_by_the_option_that_is_told() -> None:
    runner = FunctionRunner(lambda x: {"logits": x @ WEIGHT})
    with pytest.raises(VerdictError) as caught:
        measure(LINEAR, SPECS, runner, FEEDS)
    names = caught.value.fix.rpartition("--output-names ")[2]
    assert judge(measure(LINEAR, SPECS.with_outputs(names.split(",")), runner, FEEDS).measurements).passed


def test_an_artefact_that_does_not_run_on_a_feed_fails_by_its_name() -> None:
    def breaks(x: np.ndarray) -> dict[str, np.ndarray]:
        if len(x) == 4:
            raise RuntimeError("shape mismatch")
        return linear(x)

    with pytest.raises(VerdictError, match="shape mismatch") as caught:
        measure(LINEAR, SPECS, FunctionRunner(breaks), FEEDS)
    assert "random N=4" in caught.value.where


def test_a_runtime_that_is_missing_is_no_verdict() -> None:
    def missing(x: np.ndarray) -> dict[str, np.ndarray]:
        raise UnavailableError("no such device")

    with pytest.raises(UnavailableError):
        measure(LINEAR, SPECS, FunctionRunner(missing), FEEDS)


def top(x: torch.Tensor, w: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"best": (x @ w).argmax(1), "positive": (x @ w) > 0}


@pytest.mark.parametrize("fault", [False, True])
def test_integers_and_booleans_must_be_eagers(fault: bool) -> None:
    def artefact(x: np.ndarray) -> dict[str, np.ndarray]:
        y = x @ WEIGHT
        best, positive = y.argmax(1), y > 0
        positive[-1, -1] ^= fault
        return {"best": best, "positive": positive}

    measured = measure(Module(top), SPECS, FunctionRunner(artefact), FEEDS)
    assert {(m.output, m.dtype, m.reference) for m in measured.measurements} == {
        ("best", "int64", "eager"),
        ("positive", "bool", "eager"),
    }
    verdict = judge(measured.measurements)
    assert verdict.passed is not fault
    assert {judgement.measurement.output for judgement in verdict.failures()} == ({"positive"} if fault else set())


def test_a_tie_is_judged_as_eager_breaks_it() -> None:
    """1e8 + 1 equals 1e8 in float32 and not in float64: argmax differs, and eager's is the one to deploy."""
    tie = Module(lambda x, w: torch.stack([x[:, 0] + 1e8, x[:, 0] + (1e8 + 1)], 1).argmax(1))
    ones = [Feed("data", {"x": np.ones((2, 5), np.float32)})]
    for index, passed in ((0, True), (1, False)):
        answer = np.full(2, index)
        measured = measure(tie, SPECS, FunctionRunner(lambda x, answer=answer: {"output": answer}), ones)
        assert judge(measured.measurements).passed is passed
        assert any("differs in 2 whole numbers" in note for note in measured.notes)


def half_linear(x: np.ndarray, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """LINEAR in float16 with float32 borders, as a 16-bit graph has them."""
    return {"output": (x.astype(np.float16) @ WEIGHT.astype(np.float16)).astype(dtype)}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_eager_runs_in_the_deployed_dtype_and_the_artefact_may_return_wider(dtype: Any) -> None:
    runner = FunctionRunner(lambda x: half_linear(x, dtype))
    measured = measure(LINEAR, SPECS, runner, FEEDS, dtype=torch.float16)
    assert {m.dtype for m in measured.measurements} == {"float16"}
    assert all(1e-5 < m.eager.rms < 1e-2 for m in measured.measurements)
    assert judge(measured.measurements).passed
    # the same artefact does not pass as float32
    as_float32 = measure(LINEAR, SPECS, FunctionRunner(half_linear), FEEDS)
    assert not judge(as_float32.measurements).passed


def test_without_float64_eager_is_the_reference_and_the_floor_is_raised() -> None:
    # the bits of a value are others in float64
    stubborn = Module(lambda x, w: x.view(torch.int32).view(torch.float32) @ w)
    measured = measure(stubborn, SPECS, FunctionRunner(linear), FEEDS)
    assert measured.reference == "eager"
    assert any("cannot run in float64" in note for note in measured.notes)
    assert all(m.eager == EXACT and m.reference == "eager" for m in measured.measurements)
    assert judge(measured.measurements, reference=measured.reference).passed
    shifted = FunctionRunner(lambda x: {"output": linear(x)["output"] * np.float32(1 + 1e-4)})
    assert not judge(measure(stubborn, SPECS, shifted, FEEDS).measurements).passed


def far(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.cat([x @ w, torch.full_like(x[:, :1], torch.finfo(x.dtype).min)], 1)


@pytest.mark.parametrize(("fault", "passed"), [(0.0, True), (1.0, False)])
def test_where_eager_is_far_from_float64_zeros_do_not_pass(fault: float, passed: bool) -> None:
    """The least number of the dtype is another one in float64, so that e_eager is 1 and 4 times that allows all."""

    def artefact(x: np.ndarray) -> dict[str, np.ndarray]:
        least = np.full((len(x), 1), np.finfo(np.float32).min)
        return {"output": np.concatenate([x @ WEIGHT, least], 1).astype(np.float32) * np.float32(1 - fault)}

    measured = measure(Module(far), SPECS, FunctionRunner(artefact), FEEDS)
    assert {m.reference for m in measured.measurements} == {"eager"}
    assert any("is off by 1 of the output" in note for note in measured.notes)
    assert judge(measured.measurements).passed is passed


@pytest.mark.parametrize(("artefact", "passed"), [(np.inf, True), (65504.0, False), (np.nan, False)])
def test_where_eager_overflows_the_artefact_must_overflow_alike(artefact: float, passed: bool) -> None:
    big = Module(lambda x, w: x * 60000)
    feeds = [Feed("data", {"x": np.array([[2.0] * 5, [0.5] * 5], np.float32)})]
    runner = FunctionRunner(lambda x: {"output": np.array([[artefact] * 5, [30000] * 5], np.float16)})
    measured = measure(big, SPECS, runner, feeds, dtype=torch.float16)
    assert any("NaN or infinite" in note for note in measured.notes)
    assert judge(measured.measurements).passed is passed


def test_where_eager_overflows_everywhere_there_is_nothing_to_judge() -> None:
    feeds = [Feed("data", {"x": np.full((2, 5), 2, np.float32)})]
    runner = FunctionRunner(lambda x: {"output": np.full((2, 5), np.inf, np.float16)})
    measured = measure(Module(lambda x, w: x * 60000), SPECS, runner, feeds, dtype=torch.float16)
    verdict = judge(measured.measurements)
    assert not verdict.passed
    assert verdict.blind == ("output",)


def spelled_norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """What squares beyond 65504 make infinite in float16, so that the rest of the row becomes 0."""
    d = x - x.mean(-1, keepdim=True)
    return d / ((d * d).mean(-1, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize(
    ("fault", "held_to", "passed"),
    [(0.0, "float64", True), (2e-3, "float64", True), (2e-2, "float64", False), (1.0, "eager", True)],
)
def test_an_artefact_that_is_right_where_eager_overflows_inside_passes(
    fault: float, held_to: str, passed: bool
) -> None:
    """With nothing allowed but the floor; and so does one that is eager to the last zero."""
    feeds = [Feed("outliers", {"x": np.array([[3e4, 1, -2, 3, 4], [1, 2, 3, 5, -3e4]], np.float32)})]

    def artefact(x: np.ndarray) -> dict[str, np.ndarray]:
        wide = x.astype(np.float64)
        normed = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
        return {"output": (normed * (1 - fault)).astype(np.float32)}

    measured = measure(Module(spelled_norm), SPECS, FunctionRunner(artefact), feeds, dtype=torch.float16)
    (only,) = measured.measurements
    assert (only.reference, only.eager) == (held_to, EXACT)
    assert any("float16 itself is off by 1 of the output" in note and held_to in note for note in measured.notes)
    assert judge(measured.measurements).passed is passed


def test_nan_of_the_module_is_expected_of_the_artefact_too() -> None:
    x = np.array([[-1.0, 4.0, np.nan, 0.0, np.inf]], np.float32)
    feeds = [Feed("data", {"x": x}, ("x holds NaN",))]
    root = Module(lambda x, w: x.sqrt())
    with np.errstate(invalid="ignore"):
        good = np.sqrt(x)
    measured = measure(root, SPECS, FunctionRunner(lambda x: {"output": good}), feeds)
    assert judge(measured.measurements).passed
    assert measured.notes == ("x holds NaN",)
    flushed = np.nan_to_num(good)
    assert not judge(measure(root, SPECS, FunctionRunner(lambda x: {"output": flushed}), feeds).measurements).passed


def test_outputs_without_elements_pass_if_they_have_eagers_shape() -> None:
    none = Module(lambda x, w: x[:, :0])
    runner = FunctionRunner(lambda x: {"output": x[:, :0]})
    assert judge(measure(none, SPECS, runner, FEEDS).measurements).passed
    with pytest.raises(VerdictError, match=r"float32\[0, 2\], eager's is float32\[2, 0\]"):
        measure(none, SPECS, FunctionRunner(lambda x: {"output": x[:, :0].T}), FEEDS)


def test_a_shape_that_float64_changes_is_judged_against_eager() -> None:
    kept = Module(lambda x, w: x[(x + 1e9) > 1e9])  # no x of ordinary size survives that in float32
    runner = FunctionRunner(lambda x: {"output": x[(x + np.float32(1e9)) > np.float32(1e9)]})
    measured = measure(kept, SPECS, runner, FEEDS)
    assert {m.shape for m in measured.measurements} == {(0,)}
    assert any("float64 returns the shape" in note for note in measured.notes)
    assert judge(measured.measurements).passed


@pytest.mark.parametrize(("fault", "passed"), [(0.0, True), (1e-9, False)])
def test_the_runtime_of_a_float64_module_is_held_to_its_graph(fault: float, passed: bool) -> None:
    """ONNX holds the eps of a LayerNorm as a float32: in float64 the graph is 1e-13 off from the module, and right."""
    module, specs = nn.LayerNorm(16).double().eval().requires_grad_(False), parse(["input:N=1..2..4x16@f64"])
    graph = to_graph(module, specs).model
    runner = onnxruntime_runner(graph)
    deployed = FunctionRunner(lambda input: {"output": runner({"input": input})["output"] * (1 + fault)})
    feeds = random_feeds(specs)
    measured = measure(module, specs, deployed, feeds, graph=graph)
    verdict = judge(measured.measurements)
    assert max(each.measurement.deployed.rms for each in verdict.of("graph")) > 64 * 2**-52, "eager is no such measure"
    assert [each.passed for each in verdict.of("graph")] == [True] * len(feeds)
    assert [each.passed for each in verdict.of("runtime")] == [passed] * len(feeds)


def test_corners_judge_a_float64_module_too() -> None:
    module, specs = Module(lambda x, w: x @ w.double()), parse(["x:N=1..2..4x5@f64"])
    corner = Feed("floats: mean 100", {"x": np.full((2, 5), 100.0)}, corner=True)
    off = FunctionRunner(lambda x: {"output": x @ WEIGHT.astype(np.float64) * (1.0 if x.max() < 50 else 1.01)})
    verdict = judge(measure(module, specs, off, (*random_feeds(specs), corner)).measurements)
    assert [each.measurement.feed for each in verdict.failures()] == ["floats: mean 100"]


def test_a_float64_module_is_its_own_reference() -> None:
    specs = parse(["x:3x5@f64"])
    module = Module(lambda x, w: x @ w)
    module.weight.data = module.weight.data.double()
    feeds = random_feeds(specs)
    runner = FunctionRunner(lambda x: {"output": x @ module.weight.numpy()})
    measured = measure(module, specs, runner, feeds)
    assert {m.reference for m in measured.measurements} == {"eager"}
    assert judge(measured.measurements).passed
    single = FunctionRunner(lambda x: {"output": (x.astype(np.float32) @ WEIGHT).astype(np.float64)})
    assert not judge(measure(module, specs, single, feeds).measurements).passed


def test_every_output_of_a_nested_result_is_measured() -> None:
    def nested(x: torch.Tensor, w: torch.Tensor) -> dict[str, Any]:
        return {"logits": x @ w, "states": [x, x.exp()], "none": None}

    module = Module(nested)
    runner = EagerRunner(module, SPECS)
    measured = measure(module, SPECS, runner, FEEDS[:1])
    assert [m.output for m in measured.measurements] == ["logits", "states.0", "states.1"]
    assert all(m.eager == m.deployed for m in measured.measurements)


STEP = 1 / 32
STEPS = Module(lambda x, w: torch.fake_quantize_per_tensor_affine(x @ w, STEP, 0, -128, 127))


def unmoved() -> np.ndarray:
    """Return rows on which eager in float16 takes the very steps that float64 does."""
    for seed in range(400):
        x = np.random.default_rng(seed).standard_normal((20, 5)).astype(np.float32)
        narrow, exact = (EagerRunner(STEPS, SPECS, dtype=dtype)({"x": x}) for dtype in (torch.float16, torch.float64))
        if np.array_equal(narrow["output"], exact["output"]):
            return x
    raise AssertionError("there are such rows")


@pytest.mark.parametrize(("steps", "passed"), [(0, True), (1, True), (6, False)])
def test_behind_a_quantization_one_step_is_chance_and_several_are_a_fault(steps: int, passed: bool) -> None:
    """Whether eager makes a step is one draw of chance: others of it do, and never six."""
    x = unmoved()

    def artefact(x: np.ndarray) -> dict[str, np.ndarray]:
        exact = EagerRunner(STEPS, SPECS, dtype=torch.float64)({"x": x})["output"]
        exact[7, 1] += steps * STEP
        return {"output": exact.astype(np.float16)}

    measured = measure(STEPS, SPECS, FunctionRunner(artefact), [Feed("rows", {"x": x})], dtype=torch.float16)
    assert judge(measured.measurements).passed is passed
