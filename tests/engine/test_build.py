"""Real builds by TensorRT-RTX, which needs no GPU: what comes out, and what is said when nothing does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from nets import graph
from rich.console import Console

from normdeploy.engine import build, read_plan
from normdeploy.engine.backends import Backend
from normdeploy.engine.job import LOG, PLAN, TF32_OVERRIDE, Job
from normdeploy.engine.process import Progress, run
from normdeploy.engine.progress import bars
from normdeploy.engine.sidecar import sha256
from normdeploy.errors import InputError, UnavailableError, VerdictError
from normdeploy.specs import parse

pytestmark = pytest.mark.usefixtures("rtx")

SPECS = parse(["x:N=1..4..16x3x8x8@f32"])
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def net() -> ir.Model:
    return graph(
        """(float[N,3,8,8] x) => (float[N,5] y) {
            conv = Conv<pads=[1,1,1,1]>(x, w) act = Relu(conv) p = GlobalAveragePool(act) f = Flatten(p)
            y = Gemm<transB=1>(f, fc) }""",
        w=normal(16, 3, 3, 3),
        fc=normal(5, 16),
    )


def test_a_plan_its_sidecar_and_its_layers(tmp_path: Path) -> None:
    built = build(net(), SPECS, sm=["86", "89", "120"])
    assert built.plan[:4] == b"vtrt"  # the magic of a plan, little-endian
    sidecar = built.sidecar
    assert (sidecar.backend, sidecar.precision, sidecar.gpu, sidecar.tf32) == ("tensorrt_rtx", "fp32", None, False)
    assert sidecar.compute_capabilities == ("SM86", "SM89", "SM120")
    assert (sidecar.inputs, sidecar.outputs) == (("x",), ("y",))
    assert (sidecar.sha256, sidecar.size) == (sha256(built.plan), len(built.plan))
    assert [str(span) for each in sidecar.profiles for span in each.values()] == ["1..4..16x3x8x8"]
    (conv,) = [layer for layer in built.layers if "Conv" in layer.operators and not layer.moves]
    assert (conv.modules, conv.operators, conv.precision) == (("net.conv", "net.act"), ("Conv", "Relu"), "fp32")
    assert conv.tactic
    assert conv.inputs
    assert conv.outputs
    assert read_plan(built.write(tmp_path / "model.plan")) == (built.plan, sidecar)


def test_the_same_model_gives_the_same_plan_and_is_not_changed() -> None:
    model = net()
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    first, second = build(model, SPECS, precision="fp16"), build(model, SPECS, precision="fp16")
    assert first.plan == second.plan
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_a_file_is_built_as_the_graph_in_it_with_its_weights_beside_it(tmp_path: Path) -> None:
    model = net()
    model.graph.name = "g"
    ir.save(model, tmp_path / "model.onnx", external_data="model.onnx.data", size_threshold_bytes=0)
    assert (tmp_path / "model.onnx.data").stat().st_size > 0
    assert build(tmp_path / "model.onnx", SPECS).plan == build(model, SPECS).plan


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_engine_computes_in_what_was_asked(precision: str) -> None:
    model = graph(
        "(float[N,8] x) => (float[N,5] y) { h = MatMul(x, a) n = LayerNormalization(h, s) y = MatMul(n, b) }",
        a=normal(8, 16),
        s=normal(16),
        b=normal(16, 5),
    )
    built = build(model, parse(["x:1..8x8"]), precision=precision)  # type: ignore[arg-type]
    products = [layer for layer in built.layers if "MatMul" in layer.operators and not layer.moves]
    assert [layer.precision for layer in products] == [precision] * 2
    (norm,) = [layer for layer in built.layers if "LayerNormalization" in layer.operators]
    assert norm.statistics == "fp32"


def test_a_float32_engine_is_not_shipped_as_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the precision step to fail silently, both the graph and the built engine would be refused."""
    monkeypatch.setattr("normdeploy.engine.builder.to_precision", lambda model, precision: model.clone())
    with pytest.raises(VerdictError, match=r"graph does not compute in fp16(.|\n)*net\.conv \(Conv\)"):
        build(net(), SPECS, precision="fp16")
    monkeypatch.setattr("normdeploy.engine.builder.wrong_precision", lambda model, precision: ())
    with pytest.raises(VerdictError, match=r"engine does not compute in fp16(.|\n)*net\.conv, net\.act: fp32"):
        build(net(), SPECS, precision="fp16")


RAW = """
import sys
import tensorrt_rtx as trt
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(0)
assert trt.OnnxParser(network, logger).parse_from_file(sys.argv[1])
config = builder.create_builder_config()
config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM89, 0)
profile = builder.create_optimization_profile()
profile.set_shape("x", (4, 64), (4, 64), (4, 64))
config.add_optimization_profile(profile)
assert config.get_flag(trt.BuilderFlag.TF32)
if sys.argv[3] == "off":
    config.clear_flag(trt.BuilderFlag.TF32)
open(sys.argv[2], "wb").write(bytes(builder.build_serialized_network(network, config)))
"""
"""The backend by itself, whose default is to round float32 products to 10 bits."""


@pytest.mark.parametrize("override", [None, "0", "1"])
def test_float32_products_are_not_rounded_to_tf32(
    override: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the environment says: to the builder, NVIDIA_TF32_OVERRIDE=1 is stronger than the flag."""
    monkeypatch.delenv(TF32_OVERRIDE, raising=False)
    model = graph("(float[4,64] x) => (float[4,64] y) { y = MatMul(x, w) }", w=normal(64, 64))
    next(iter(model.graph)).name = "product"
    ir.save(model, tmp_path / "model.onnx")
    plans = {}
    for tf32 in ("on", "off"):
        command = [sys.executable, "-c", RAW, str(tmp_path / "model.onnx"), str(tmp_path / tf32), tf32]
        subprocess.run(command, check=True)
        plans[tf32] = (tmp_path / tf32).read_bytes()
    profiles = ({"x": ((4, 64),) * 3},)
    job = Job("tensorrt_rtx", str(tmp_path / "model.onnx"), ("MatMul",), profiles, sm=("89",))
    if override is not None:
        monkeypatch.setenv(TF32_OVERRIDE, override)
    run(job, tmp_path, {}, None)
    assert (tmp_path / PLAN).read_bytes() == plans["off"]
    assert plans["off"] != plans["on"]


def test_several_profiles_are_built_and_their_layers_told_apart() -> None:
    more = parse(["x:N=32..32..64x3x8x8@f32"])
    built = build(net(), SPECS, more_profiles=[more])
    assert [str(each["x"]) for each in built.sidecar.profiles] == ["1..4..16x3x8x8", "32..32..64x3x8x8"]
    assert {layer.profile for layer in built.layers if "Conv" in layer.operators} == {0, 1}


def test_fixed_inputs_need_no_spec() -> None:
    model = graph("(float[2,4] x, int64[2] i) => (float[2,4] y) { g = Gather(x, i) y = Relu(g) }")
    assert [list(each) for each in build(model).sidecar.profiles] == [["x", "i"]]


def test_names_of_nodes_may_be_missing_repeated_or_strange() -> None:
    model = net()
    for node, name in zip(model.graph, ["a [b]", "a [b]", None, "", "ü\n"], strict=True):
        node.name = name
    named = {name for layer in build(model, SPECS).layers for name in layer.modules}
    assert {"net.conv", "net.act", "net.p", "net.y"} <= named


def test_progress_is_told_and_drawn() -> None:
    steps: list[Progress] = []
    build(net(), SPECS, progress=steps.append)
    phases = {step.phase for step in steps}
    assert "Building engine" in phases
    assert all(0 <= step.step <= step.steps for step in steps)
    assert all(any(step.phase == phase and step.step == step.steps for step in steps) for phase in phases)
    with Path(os.devnull).open("w") as nowhere, bars(Console(file=nowhere, force_terminal=True)) as show:
        for step in steps:
            show(step)


# --- what cannot be built ---


def test_every_problem_is_listed_at_once() -> None:
    model = graph(
        """(float[N,8] x, int16[2] i) => (double[N,8] y, float[N,8] z) {
            a, m, v = LayerNormalization(x, s) b = Det(a) c = my.Thing(b) y = Cast<to=11>(a) z = Relu(c) }""",
        s=np.ones(8, np.float32),
    )
    with pytest.raises(InputError) as caught:
        build(model)
    message = str(caught.value)
    for part in ("--input", "net.a [", "INT16", "operator Det", "my::Thing", "float64"):
        assert part in message, part
    assert caught.value.exit_code == 2


def test_a_graph_with_problems_does_not_reach_the_builder() -> None:
    """The second operator takes the builder's process down."""
    model = graph(
        "(double[1,8,16,16] x) => (double[1,8,16,16] y) { r = Relu(x) y = my.MyelinWeightsTransformPlugin(r) }"
    )
    with pytest.raises(InputError, match="float64 would be computed in float32"):
        build(model)


def test_functions_are_inlined_under_the_names_of_their_modules() -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18, "local" : 1]>
        g (float[2,4] x) => (float[2,4] y) { a = local.twice(x) y = local.twice(a) }
        <domain: "local", opset_import: ["" : 18]> twice (v) => (w) { r = Softmax(v) w = Add(r, r) }"""
    )
    built = build(ir.from_proto(proto))
    assert sum(layer.operators.count("Softmax") for layer in built.layers) == 2


def test_the_parsers_errors_name_the_module() -> None:
    model = graph("(float[2,8] x, int64[1] k) => (float[2,8] y) { r = Relu(x) y = ReduceMean(r, k) }")
    with pytest.raises(InputError, match=r"parser refuses the model: 1 problem(.|\n)*net\.y \[.*build-time constant"):
        build(model)


def test_the_builders_errors_name_the_module() -> None:
    """The oldest compute capability has no float32 matrix product."""
    with pytest.raises(InputError, match=r"cannot build the model(.|\n)*net\.y: .*FP32 GEMM is not supported"):
        build(net(), SPECS, sm=["75"])


def test_too_little_workspace_says_so() -> None:
    model = graph(
        "(float[N,64] x) => (float[N,64] y) { h = MatMul(x, a) r = Softmax(h) y = MatMul(r, a) }", a=normal(64, 64)
    )
    specs = parse(["x:1..4096x64"])
    build(model, specs, workspace_mib=64)
    with pytest.raises(InputError, match=r"out of workspace: no kernel fits in 0 MiB(.|\n)*larger --workspace"):
        build(model, specs, workspace_mib=0)


def test_a_plugin_that_kills_the_builder_is_a_message(scratch: Path) -> None:
    """A plugin of the library's own, which is found, created, and then takes its process down."""
    model = graph("(float[1,8,16,16] x) => (float[1,8,16,16] y) { r = Relu(x) y = my.MyelinWeightsTransformPlugin(r) }")
    with pytest.raises(InputError) as caught:
        build(model)
    assert "process died (SIG" in caught.value.what
    assert "net.y (MyelinWeightsTransformPlugin)" in caught.value.where
    assert list(scratch.iterdir()) == []


def test_a_profile_that_does_not_cover_the_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"x: dimension 1 is 3 in the model, 4\.\.4 in the spec"):
        build(net(), parse(["x:1..4x4x8x8"]))
    with pytest.raises(InputError, match=r"x: dimension 2 is 8 in the model, 8\.\.16 in the spec"):
        build(net(), SPECS, more_profiles=[parse(["x:1..4x3x8..16x8"])])


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x0a" * 50])
def test_a_damaged_model_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    with pytest.raises(InputError):
        build(tmp_path / "model.onnx", SPECS)
    with pytest.raises(InputError, match="the model file does not exist") as caught:
        build(tmp_path / "missing", SPECS)  # a bundle or an ONNX file: nothing tells which was meant
    assert caught.value.fix == "check its path"


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match="optimization level"):
        build(net(), SPECS, level=6)
    assert build(net(), SPECS, level=0).sidecar.options == {"level": 0}
    with pytest.raises(InputError, match="SM90"):
        build(net(), SPECS, sm=["90"])


def test_the_optimization_level_reaches_the_builder(tmp_path: Path) -> None:
    model = graph("(float[2,4] x) => (float[2,4] y) { y = Relu(x) }")
    next(iter(model.graph)).name = "act"
    ir.save(model, tmp_path / "model.onnx")
    for level in (0, 5):
        profiles = ({"x": ((2, 4),) * 3},)
        run(Job("tensorrt_rtx", str(tmp_path / "model.onnx"), ("Relu",), profiles, level=level), tmp_path, {}, None)
        assert ("at optimization level 0" in (tmp_path / LOG).read_text()) == (level == 0)


def test_without_a_backend_nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backend, "is_installed", lambda self: False)
    with pytest.raises(UnavailableError, match=r"no TensorRT(.|\n)*pip install 'normdeploy\["):
        build(net(), SPECS)


def test_a_timing_cache_is_said_to_be_of_no_use_here(tmp_path: Path) -> None:
    built = build(net(), SPECS, timing_cache=tmp_path / "cache")
    assert built.sidecar.timing_cache_key is None
    assert "no timing cache was used: this backend times no kernels" in built.sidecar.notes
    assert not (tmp_path / "cache").exists()


def test_an_interrupt_in_the_middle_kills_the_builder_and_leaves_no_file(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[str]] = []

    class Recorded(subprocess.Popen[str]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)

    def interrupt(progress: Progress) -> None:
        started[0].send_signal(signal.SIGSTOP)  # a build that would not end by itself
        raise KeyboardInterrupt

    monkeypatch.setattr("normdeploy.child.subprocess.Popen", Recorded)
    with pytest.raises(KeyboardInterrupt):
        build(net(), SPECS, progress=interrupt)
    assert [process.returncode for process in started] == [-signal.SIGKILL]
    assert list(scratch.iterdir()) == []


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_build import SPECS, net
from normdeploy.engine import build
def tell(progress):
    print(progress.phase, flush=True)
    sys.stdin.readline()  # stays in the middle of the build until it is interrupted
build(net(), SPECS, progress=tell).write(Path({out!r}))
"""


def test_ctrl_c_leaves_no_half_plan(tmp_path: Path) -> None:
    out, scratch = tmp_path / "out", tmp_path / "scratch"
    out.mkdir()
    scratch.mkdir()
    script = SCRIPT.format(tests=str(Path(__file__).parent), out=str(out / "model.plan"))
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(scratch)},
    ) as process:
        assert process.stdout is not None
        deadline = threading.Timer(60, process.kill)
        deadline.start()
        assert process.stdout.readline().strip() == "Building engine"
        assert len(list(scratch.iterdir())) == 1
        process.send_signal(signal.SIGINT)
        process.wait()
        deadline.cancel()
    assert process.returncode == -signal.SIGINT
    assert list(out.iterdir()) == list(scratch.iterdir()) == []
