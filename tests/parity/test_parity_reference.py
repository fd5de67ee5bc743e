"""The float64 reference is float64 all the way, or it is none."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from normdeploy.errors import InputError
from normdeploy.parity.reference import Oracle
from normdeploy.specs import parse

SPECS = parse(["x:N=1..2..4x5@f32"])
X = np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
WIDE = torch.from_numpy(X.astype(np.float64))


class Lambda(nn.Module):
    """Any function of x as a module."""

    def __init__(self, function) -> None:  # noqa: ANN001
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def rms_norm(x: torch.Tensor) -> torch.Tensor:
    """As language models spell it: in float32, whatever the input."""
    wide = x.to(torch.float32)
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def rms_norm_in_float64(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


CASTS = {
    "to(dtype) and back": (rms_norm, rms_norm_in_float64),
    "float()": (lambda x: x.float().exp(), torch.exp),
    "half()": (lambda x: x.half().exp(), torch.exp),
    "type(tensor type)": (lambda x: x.type(torch.float32).exp(), torch.exp),
    "softmax(dtype)": (lambda x: F.softmax(x, 1, dtype=torch.float32), lambda x: F.softmax(x, 1)),
    "sum(dtype)": (lambda x: x.sum(1, dtype=torch.float32), lambda x: x.sum(1)),
    "zeros_like(dtype)": (lambda x: torch.zeros_like(x, dtype=torch.float32).add_(x).exp(), torch.exp),
}


@pytest.mark.parametrize("name", CASTS)
def test_casts_inside_the_module_do_not_round_the_reference(name: str) -> None:
    module, expected = CASTS[name]
    oracle = Oracle(Lambda(module), SPECS)
    exact = oracle.exact({"x": X})
    assert exact is not None
    assert exact["output"].dtype == np.float64
    np.testing.assert_allclose(exact["output"], expected(WIDE).numpy(), rtol=1e-14)
    assert any("kept in float64" in note for note in oracle.notes)
    # eager itself is left as it is
    np.testing.assert_array_equal(oracle.eager({"x": X})["output"], module(torch.from_numpy(X)).numpy())


def test_a_module_without_casts_needs_no_note() -> None:
    oracle = Oracle(Lambda(rms_norm_in_float64), SPECS)
    np.testing.assert_allclose(oracle.exact({"x": X})["output"], rms_norm_in_float64(WIDE).numpy(), rtol=1e-14)
    assert oracle.notes == {}


def test_constants_made_in_float32_are_exact_and_accuse_nobody() -> None:
    positions = torch.arange(5, dtype=torch.float32)
    oracle = Oracle(Lambda(lambda x: x + torch.arange(5, dtype=torch.float32)), SPECS)
    np.testing.assert_array_equal(oracle.exact({"x": X})["output"], (WIDE + positions).numpy())
    assert oracle.notes == {}


def write_into_default(x: torch.Tensor) -> torch.Tensor:
    buffer = torch.zeros(x.shape)
    buffer[:] = x
    return buffer.to(x.dtype).exp()


class Uncopyable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.exp()


class Rotation(nn.Module):
    """A turn by a complex buffer, whose imaginary part a cast to a real type would drop."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("turn", torch.polar(torch.ones(5), torch.linspace(0, 3, 5)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(torch.complex(x, x.flip(1)) * self.turn)


def rotated() -> np.ndarray:
    turn = Rotation().turn.numpy().astype(np.complex128)
    y = (X + 1j * X[:, ::-1]).astype(np.complex128) * turn
    return np.stack([y.real, y.imag], -1)


PLAIN = torch.linspace(-1, 1, 25, dtype=torch.float32).reshape(5, 5)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Lambda(write_into_default), np.exp(WIDE.numpy())),
        (Lambda(lambda x: x.type_as(torch.zeros(1)).exp()), np.exp(WIDE.numpy())),
        (Lambda(lambda x: x @ torch.ones(5, 5)), WIDE.numpy().sum(1, keepdims=True).repeat(5, 1)),
        (Lambda(lambda x: x @ PLAIN), WIDE.numpy() @ PLAIN.numpy().astype(np.float64)),
        (Lambda(lambda x: (x * 1000).long().float() / 255), np.trunc(WIDE.numpy() * 1000) / 255),
        (Uncopyable(), np.exp(WIDE.numpy())),
        (Rotation(), rotated()),
    ],
    ids=["new tensor", "type_as", "ones", "attribute", "integers", "lock", "complex"],
)
def test_what_is_not_a_parameter_is_float64_too(module: nn.Module, expected: np.ndarray) -> None:
    exact = Oracle(module, SPECS).exact({"x": X})
    assert exact is not None
    np.testing.assert_allclose(exact["output"], expected, rtol=1e-14, atol=1e-15)


MEMORY = torch.zeros(2, 5)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Lambda(lambda x: MEMORY.copy_(x).exp()), "rounds float64 to less"),
        (Lambda(lambda x: (x.view(torch.int32) & 0x7FFFFFFF).view(torch.float32)), "reads the bits"),
    ],
)
def test_what_has_no_float64_reference_says_why(module: nn.Module, reason: str) -> None:
    oracle = Oracle(module, SPECS)
    assert oracle.exact({"x": X}) is None
    assert oracle.exact({"x": X}) is None
    (note,) = oracle.notes
    assert reason in note
    assert "judged against eager in its own dtype" in note
    assert "output" in oracle.eager({"x": X})


@pytest.mark.parametrize("draw", [0, 1, 2])
def test_rounded_weights_are_off_by_what_the_type_loses(draw: int) -> None:
    module = nn.Linear(64, 32)
    x = np.random.default_rng(1).standard_normal((16, 64)).astype(np.float32)
    oracle = Oracle(module, parse(["input:16x64"]), torch.float16)
    exact, rounded = oracle.exact({"input": x}), oracle.rounded({"input": x}, draw)
    assert exact is not None
    error = np.linalg.norm(rounded["output"] - exact["output"]) / np.linalg.norm(exact["output"])
    assert 2**-14 < error < 2**-11


class OnlyFloat32(nn.Module):
    """A norm that insists on float32, as CLIP's: the product behind it does not run in float16."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 64), nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(F.layer_norm(self.a(x).to(torch.float32), (64,)))


def test_a_module_that_does_not_run_in_16_bits_is_emulated() -> None:
    torch.manual_seed(0)
    oracle = Oracle(OnlyFloat32(), SPECS, torch.float16)
    outputs, exact = oracle.eager({"x": X}), oracle.exact({"x": X})
    assert outputs["output"].dtype == np.float16
    error = np.linalg.norm(outputs["output"] - exact["output"]) / np.linalg.norm(exact["output"])
    assert 2**-14 < error < 2**-9
    assert any("is emulated" in note for note in oracle.notes)


def test_the_module_is_not_changed() -> None:
    module = nn.Linear(5, 3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}

    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    assert Oracle(Wrapper(), SPECS).exact({"x": X}) is not None
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, before[name])


def test_an_error_of_eager_itself_is_the_users() -> None:
    def fails(x: torch.Tensor) -> torch.Tensor:
        raise ValueError("no such size")

    with pytest.raises(InputError, match="no such size"):
        Oracle(Lambda(fails), SPECS).eager({"x": X})


class Encoder(nn.Module):
    """An encoder whose padding is masked: PyTorch may fuse it, and then gives NaN for a row of padding alone."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.layers(x, src_key_padding_mask=mask)


def test_what_the_fused_path_gives_otherwise_is_told_once_an_output() -> None:
    torch.manual_seed(0)
    module = Encoder().eval()
    oracle = Oracle(module, parse(["x:2xT=2..4..8x8@f32", "mask:2xT@bool"]))
    x = np.random.default_rng(0).standard_normal((2, 4, 8)).astype(np.float32)
    masks = {"whole": [[False] * 4] * 2, "short": [[False] * 4, [True] * 4], "none": [[True] * 4] * 2}
    for name, mask in masks.items():
        feed = {"x": x, "mask": np.array(mask)}
        oracle.other_path(name, feed, oracle.eager(feed))
    with torch.inference_mode():
        assert module(torch.from_numpy(x), torch.tensor(masks["short"]))[1].isnan().all()
    (note,) = oracle.told()
    assert note.startswith("output: PyTorch's fused path of attention")
    assert "gives NaN, infinity or another shape on short and 1 more" in note
