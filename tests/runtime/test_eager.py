"""Eager PyTorch as a runner: in its own dtype, in float64, by names, without side effects on what it is given."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn
from torch._higher_order_ops.while_loop import while_loop

from normdeploy.errors import InputError
from normdeploy.runtime.eager import EagerRunner
from normdeploy.specs import parse

X = np.linspace(-2, 3, 6, dtype=np.float32).reshape(2, 3)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> dict[str, Any]:
        return {"logits": self.linear(x), "none": None, "more": (ids + 1, x)}


def runner(dtype: torch.dtype | None = None) -> EagerRunner:
    torch.manual_seed(0)
    return EagerRunner(Net().eval(), parse(["x:N=1..2..4x3", "ids:N@i64[0..9]"]), dtype=dtype)


def test_it_runs_in_its_own_dtype_by_name() -> None:
    run = runner()
    outputs = run({"ids": np.array([1, 2]), "x": X})
    assert (run.name, run.inputs) == ("eager", ("x", "ids"))
    assert run.outputs == tuple(outputs) == ("logits", "more.0", "more.1")
    assert [array.dtype for array in outputs.values()] == [np.float32, np.int64, np.float32]
    torch.manual_seed(0)
    linear = Net().linear
    expected = X @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
    np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-6)  # three terms in float32


def test_float64_is_a_copy_that_leaves_the_module_in_float32() -> None:
    module = Net().eval()
    run = EagerRunner(module, parse(["x:2x3", "ids:2@i64"]), dtype=torch.float64)
    outputs = run({"x": X, "ids": np.array([1, 2])})
    assert run.name == "eager float64"
    assert [array.dtype for array in outputs.values()] == [np.float64, np.int64, np.float64]
    weight, bias = (p.detach().numpy().astype(np.float64) for p in module.linear.parameters())
    np.testing.assert_allclose(outputs["logits"], X.astype(np.float64) @ weight.T + bias, rtol=1e-15)
    assert module.linear.weight.dtype == torch.float32


class Bare(nn.Module):
    """RMSNorms without an epsilon, as a module, by functions, by names."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        more = nn.functional.rms_norm(x, (3,)), torch.rms_norm(x, (3,)), torch.rms_norm(input=x, normalized_shape=(3,))
        return self.norm(x), *more, nn.functional.rms_norm(x, (3,), eps=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_norm_without_an_epsilon_has_in_float64_that_of_its_own_dtype(dtype: torch.dtype) -> None:
    small = X * 1e-4
    name, own = ("f32", np.float32) if dtype == torch.float32 else ("f64", np.float64)
    run = EagerRunner(Bare().eval().to(dtype), parse([f"x:2x3@{name}"]), dtype=torch.float64)
    outputs = run({"x": small.astype(own)})
    x = small.astype(np.float64)
    for array, epsilon in zip(outputs.values(), [torch.finfo(dtype).eps] * 4 + [1e-3], strict=True):
        want = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon)
        np.testing.assert_allclose(array, want, rtol=1e-14)


def test_outputs_are_known_before_the_first_run() -> None:
    assert runner().outputs == ("logits", "more.0", "more.1")


def test_an_array_is_not_changed_by_a_forward_that_works_in_place() -> None:
    class InPlace(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mul_(2)

    given = X.copy()
    run = EagerRunner(InPlace(), parse(["x:2x3"]))
    np.testing.assert_array_equal(run({"x": given})["output"], 2 * X)
    np.testing.assert_array_equal(given, X)


def test_an_output_that_is_an_input_is_a_copy_under_another_name() -> None:
    class Same(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"x": x}

    outputs = EagerRunner(Same(), parse(["x:2x3"]))({"x": X})
    assert list(outputs) == ["x_out"]
    assert not np.shares_memory(outputs["x_out"], X)


def test_bfloat16_goes_in_and_out_bit_by_bit() -> None:
    module = nn.Identity()
    given = np.array([[1.5, -0.0, np.inf]], ml_dtypes.bfloat16)
    output = EagerRunner(module, parse(["input:1x3@bf16"]))({"input": given})["output"]
    assert output.dtype == ml_dtypes.bfloat16
    assert output.tobytes() == given.tobytes()


def test_threads_are_set_for_torch() -> None:
    before = torch.get_num_threads()
    try:
        run = EagerRunner(nn.ReLU(), parse(["input:2x3"]), threads=1)
        torch.set_num_threads(2)
        run({"input": X})
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("feeds", [{}, {"x": X}, {"x": X, "ids": X, "more": X}, {"x": X, "id": X}], ids=str)
def test_other_names_are_refused(feeds: dict[str, np.ndarray]) -> None:
    with pytest.raises(InputError, match="takes the inputs x, ids"):
        runner()(feeds)


def test_what_forward_raises_is_one_error_with_the_shapes() -> None:
    with pytest.raises(InputError, match="forward raises RuntimeError: mat1 and mat2") as caught:
        runner()({"x": np.zeros((2, 5), np.float32), "ids": np.array([1, 2])})
    assert "x [2, 5] torch.float32" in caught.value.where


def test_specs_that_do_not_fit_forward_are_refused_at_once() -> None:
    with pytest.raises(InputError, match="requires the input 'ids'"):
        EagerRunner(Net(), parse(["x:2x3"]))


class Branches(nn.Module):
    """One of two bodies of torch.cond runs, and a loop behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cond(x[0, 0] > 0, lambda x: self.norm(self.linear(x)), lambda x: x * 2 + 1, (x,))
        zero = torch.zeros((), dtype=torch.int64)
        step = lambda i, x: (i + 1, torch.tanh(self.linear(x)))  # noqa: E731 # as networks write it
        return while_loop(lambda i, x: i < 2, step, (zero, x))[1]  # type: ignore[no-any-return]  # torch's Any


def in_numpy(module: Branches, x: np.ndarray) -> np.ndarray:
    weight, bias = (part.detach().double().numpy() for part in (module.linear.weight, module.linear.bias))
    x = x.astype(np.float64)
    y = (x @ weight.T + bias) / np.sqrt(1 + 1e-5) if x[0, 0] > 0 else x * 2 + 1
    for _ in range(2):
        y = np.tanh(y @ weight.T + bias)
    return y


def test_bodies_of_control_flow_run_in_the_width_of_what_is_around_them() -> None:
    """In turn and at other sizes: torch compiles such bodies when they are called, and remembers how that went."""
    torch.manual_seed(0)
    module, spec = Branches().eval(), parse(["x:N=1..2..4x3"])
    runs = [EagerRunner(module, spec), EagerRunner(module, spec, dtype=torch.float64)]
    runs.append(EagerRunner(module, spec, dtype=torch.float16, emulate=True))
    for rows in (2, 3, 4):
        for sign in (1, -1):
            x = (sign * np.linspace(0.5, 2, 3 * rows)).astype(np.float16).astype(np.float32).reshape(rows, 3)
            for run, bound in zip(runs, (1e-6, 1e-14, 4e-3), strict=True):
                output = run({"x": x})["output"]
                np.testing.assert_allclose(output.astype(np.float64), in_numpy(module, x), rtol=0, atol=bound)
            assert np.abs(output.astype(np.float64) - in_numpy(module, x)).max() > 1e-5  # rounded to 16 bits inside
