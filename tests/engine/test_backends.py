from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from normdeploy.engine.backends import BACKENDS, Backend, TensorRT, TensorRTRTX, choose
from normdeploy.errors import InputError, UnavailableError


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_installed(*names: str) -> None:
        monkeypatch.setattr(Backend, "is_installed", lambda self: self.name in names)

    return set_installed


@pytest.mark.parametrize(
    ("there", "gpu", "sm", "expected"),
    [
        (["tensorrt", "tensorrt_rtx"], True, (), "tensorrt"),
        (["tensorrt", "tensorrt_rtx"], False, (), "tensorrt_rtx"),
        (["tensorrt", "tensorrt_rtx"], True, ("89",), "tensorrt_rtx"),
        (["tensorrt_rtx"], True, (), "tensorrt_rtx"),
    ],
)
def test_the_first_backend_that_can_build_here_is_taken(
    installed: Any, there: list[str], gpu: bool, sm: tuple[str, ...], expected: str
) -> None:
    installed(*there)
    assert choose(None, gpu=gpu, sm=sm).name == expected


@pytest.mark.parametrize("gpu", [True, False])
def test_without_a_backend_the_command_that_installs_one_is_given(installed: Any, gpu: bool) -> None:
    installed()
    with pytest.raises(UnavailableError) as caught:
        choose(None, gpu=gpu)
    assert caught.value.exit_code == 3
    assert caught.value.fix == f"pip install 'normdeploy[{'gpu' if gpu else 'rtx'}]'"


def test_tensorrt_alone_on_a_machine_without_a_gpu_says_that(installed: Any) -> None:
    installed("tensorrt")
    with pytest.raises(UnavailableError, match=r"TensorRT is installed but needs a GPU(.|\n)*normdeploy\[rtx\]"):
        choose(None, gpu=False)
    with pytest.raises(UnavailableError, match="this machine has none"):
        choose("tensorrt", gpu=False)


def test_a_backend_by_name_must_exist_and_be_installed(installed: Any) -> None:
    installed()
    with pytest.raises(InputError, match=r"'openvino'(.|\n)*tensorrt, tensorrt_rtx"):
        choose("openvino", gpu=True)
    with pytest.raises(UnavailableError, match=r"TensorRT-RTX is not installed(.|\n)*normdeploy\[rtx\]"):
        choose("tensorrt_rtx", gpu=False)


def test_only_one_that_builds_ahead_aims_at_compute_capabilities() -> None:
    with pytest.raises(InputError, match="--backend tensorrt_rtx"):
        TensorRT().set_targets(None, None, ["89"])
    assert TensorRT().set_targets(None, None, []) == ()


def test_an_unknown_compute_capability_is_refused_with_those_that_are_known(rtx: None) -> None:
    import tensorrt_rtx as trt  # the enumeration of the real one

    with pytest.raises(InputError, match=r"SM90, SM1(.|\n)*--sm 90,89,1(.|\n)*75, 80, 86, 89, 120"):
        TensorRTRTX().set_targets(trt, None, ["90", "89", "1"])


def test_a_strongly_typed_network_is_asked_for_where_there_is_a_choice() -> None:
    ten = SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=1))
    eleven = SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace())
    assert TensorRT().network_flags(ten) == 2
    assert TensorRT().network_flags(eleven) == TensorRTRTX().network_flags(eleven) == 0
    assert [backend.name for backend in BACKENDS] == ["tensorrt", "tensorrt_rtx"]
