"""What makes something deployable: export, fold, build, and what comes before them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from normdeploy.cli import output, streams
from normdeploy.cli.config import NAME
from normdeploy.cli.options import (
    EagerOptions,
    Level,
    Names,
    ParityOptions,
    Precision,
    Talk,
    Target,
    counts,
    listed,
    named,
)
from normdeploy.cli.paths import Data, Given, OtherOut, Out
from normdeploy.errors import VerdictError
from normdeploy.specs import parse


def export(
    *,
    model: str,
    out: Out,
    eager: EagerOptions = EagerOptions(),
    parity: ParityOptions = ParityOptions(),
    opset: int | None = None,
    keep: tuple[str, ...] = (),
    layernorm: Level = "affine",
    target: Target = "onnx",
    tune: bool = False,
    precision: Precision | None = None,
    engine: bool = False,
    sm: str = "",
    plugin: bool = False,
    plugin_form: Literal["aot", "python"] = "aot",
    to_torch: OtherOut = None,
    force: bool = False,
    no_bench: bool = False,
    seconds: float = 2.0,
    threads: int | None = None,
    processes: int = 3,
    batch: str = "",
    compare: Literal["torch.compile"] | None = None,
    talk: Talk = Talk(),
) -> int:
    """Turn a trained checkpoint into a verified deployment folder.

    Args:
        model: package.module:factory, a function that returns the module.
        out: the folder to write.
        opset: ONNX opset; by default 20, with --precision bf16 22.
        keep: pattern of module names whose norms stay as they are.
        layernorm: how far LayerNorms go: one operator each, their scale and bias gone, or RMSNorms.
        target: what will run the model; onnxruntime allows an operator of its own.
        tune: measure the forms of its LayerNorms on this machine, and deploy the one that is faster and right.
        precision: what the deployed model computes in; by default what the module does.
        engine: build a TensorRT engine into the bundle.
        sm: compute capabilities to build it for, e.g. 86,89,120; by default all that the backend knows.
        plugin: write a graph with LayerNorm plugins too, for the full TensorRT; with --target tensorrt.
        plugin_form: aot, compiled into the engine, or python, for shapes that change, launched by Python.
        to_torch: a safetensors file for the weights of the module with its norms folded, to serve PyTorch.
        force: replace an older bundle, if every file in it is as it was written, and a .safetensors file of --to-torch.
        no_bench: leave the latency out.
        seconds: to measure the latency for, at each size.
        threads: of each runner; by default one core is left to the rest of the machine.
        processes: fresh ones to measure it in, which share the seconds.
        batch: sizes of the inputs' first dimension to measure at too, one after another, e.g. 1,8,64.
        compare: what else to measure beside it.
    """
    inputs, criteria, source, batches = parity.inputs(), parity.criteria(), eager.source(), counts(batch, "--batch")
    from normdeploy import pipeline
    from normdeploy.pipeline.places import check_export

    check_export(out, to_torch, model=model, data=parity.data, source=source, force=force)
    try:
        with streams.working(talk) as progress:
            report = pipeline.export(
                model, inputs, out, output_names=listed(parity.output_names), data=parity.data,
                opset=opset, keep=keep, layernorm=layernorm, target=target, tune=tune, precision=precision,
                engine=engine, sm=listed(sm), plugin=plugin, plugin_form=plugin_form, to_torch=to_torch, force=force,
                bench=not no_bench, seed=parity.seed, criteria=criteria, verbose=talk.verbose,
                progress=progress, seconds=seconds, threads=threads, processes=processes,
                batches=batches, compiled=compare is not None, command=output.command_line(), **source,
            )  # fmt: skip
    except (pipeline.ParityError, pipeline.NotRunError) as error:
        output.report(error.report, talk)
        raise
    output.report(report, talk, out)
    return 0


def export_all(
    fleet: Given,
    /,
    *,
    out: Out,
    at_once: Annotated[int, Parameter(name=["--jobs", "-j"])] = 1,
    ray: str | None = None,
    trust: tuple[Path, ...] = (),
    force: bool = False,
    talk: Talk = Talk(),
) -> int:
    """Run many exports, each in a process of its own: checkpoints, precisions and targets of a fleet.toml.

    What passed, and depends on nothing that has changed, is not run again. A failed one does not stop the others.

    Args:
        fleet: the file that lists them.
        out: the folder for the bundles, fleet.html with all verdicts, and fleet.json.
        at_once: exports that run at a time.
        ray: address of the Ray cluster to run them on, e.g. auto; its workers see the same files.
        trust: a file, by its own path, that may run code when it is opened.
        force: run all again.
    """
    from normdeploy.fleet.run import export_all as run
    from normdeploy.fleet.run import require_passed

    with streams.fleet(talk) as told:
        rows = run(fleet, out, at_once=at_once, ray=ray, force=force, trust=trust, told=told)
    output.exports(rows, talk, out)
    require_passed(rows)
    return 0


def fold(
    model: Given,
    /,
    *,
    out: Out,
    keep: tuple[str, ...] = (),
    layernorm: Level = "affine",
    target: Target = "onnx",
    inputs_are_constants: Names = (),
    precision: Precision | None = None,
    plugin: bool = False,
    plugin_form: Literal["aot", "python"] = "aot",
    dump: Path | None = None,
    strict: bool = False,
    force: bool = False,
    talk: Talk = Talk(),
) -> int:
    """Fold the norms of an ONNX file into its weights.

    Args:
        model: the ONNX file.
        out: the file to write; large weights go beside it.
        keep: pattern of module names whose norms stay as they are.
        layernorm: how far LayerNorms go: one operator each, their scale and bias gone, or RMSNorms.
        target: what will run the model; onnxruntime allows an operator of its own.
        inputs_are_constants: inputs of the model with a default value that no caller overrides, or all.
        plugin: write LayerNorms as the plugin's operators, for the full TensorRT alone; with --target tensorrt.
        plugin_form: aot, compiled into the engine, or python, for shapes that change, launched by Python.
        precision: what the folded model computes in; its inputs and outputs stay float32.
        dump: an empty or new folder for the graph before and after each step.
        strict: exit 1, and write nothing, where a step failed its proof.
        force: replace the file named by --out, where that ends in .onnx.
    """
    from normdeploy import pipeline
    from normdeploy.pipeline.places import check_model

    check_model(model, out, beside={} if dump is None else {"--dump": dump}, force=force)
    with streams.working(talk):
        ledger = pipeline.fold_file(
            model, out, keep=keep, layernorm=layernorm, target=target, inputs_are_constants=inputs_are_constants,
            precision=precision, plugin=plugin, plugin_form=plugin_form, dump=dump, strict=strict, force=force,
        )  # fmt: skip
    output.ledger(ledger, talk, out, precision or "fp32")
    return 0


def build(
    model: Given,
    /,
    *,
    out: Out,
    input: tuple[str, ...] = (),
    sm: str = "",
    precision: Precision | None = None,
    backend: Literal["tensorrt", "tensorrt_rtx"] | None = None,
    workspace: int | None = None,
    level: int | None = None,
    layers: bool = False,
    plugin: bool = False,
    plugin_form: Literal["aot", "python"] = "aot",
    force: bool = False,
    talk: Talk = Talk(),
) -> int:
    """Build a TensorRT engine, and tell what its layers are made of.

    Args:
        model: a bundle, which knows its inputs, or an ONNX file.
        out: the plan to write; what it was built by, for and from goes beside it, in a file with .json appended.
        input: name:dims@dtype, once for each input of an ONNX file whose shape is not fixed.
        sm: compute capabilities to build for, e.g. 86,89,120; TensorRT-RTX only, which builds for all without.
        precision: what the engine computes in; by default what the model computes in.
        backend: by default the first that can build here.
        workspace: most scratch memory, in MiB.
        level: 0, a fast build, to 5, a fast engine.
        layers: show each layer, with the PyTorch modules in it.
        plugin: let normdeploy's LayerNorm plugin run the norms; the full TensorRT only.
        plugin_form: aot, compiled into the engine, or python, for shapes that change, launched by Python.
        force: replace the file named by --out, where that ends in .plan, .engine or .trt, and its sidecar.
    """
    parse(input)
    from normdeploy import pipeline
    from normdeploy.pipeline.places import check_plan

    check_plan(model, out, force=force)
    with streams.building(talk) as progress:
        built = pipeline.build(
            model, out, input, precision=precision, backend=backend, sm=listed(sm), workspace_mib=workspace,
            level=level, plugin=plugin, plugin_form=plugin_form, force=force, progress=progress,
        )  # fmt: skip
    output.engine(built.sidecar, talk, out, layers=layers)
    return 0


def calibrate(
    *,
    model: str,
    out: Out | None = None,
    eager: EagerOptions = EagerOptions(),
    input: tuple[str, ...] = (),
    data: Data = (),
    batch: int = 32,
    only: tuple[str, ...] = (),
    momentum: float | None = None,
    pooled: bool = False,
    partial: Path | None = None,
    merge: Annotated[tuple[Path, ...], Parameter(consume_multiple=True)] = (),
    force: bool = False,
    talk: Talk = Talk(),
) -> int:
    """Estimate the running statistics of a network's BatchNorms again, on data, into a new checkpoint.

    Args:
        model: package.module:factory, a function that returns the module.
        out: the safetensors file to write.
        input: name:dims@dtype, once for each input.
        data: .npz, safetensors, or module:function that yields batches; several times.
        batch: items that are run at once.
        only: pattern of names of the norms to estimate; all by default.
        momentum: update as training does, in the order of the data; by default the average over all batches.
        pooled: the variance of all values together, not the average of those of the batches.
        partial: a file for what was counted, to stop and go on with, or to merge.
        merge: such files, of other machines, to be added.
        force: replace the file named by --out, where that ends in .safetensors.
    """
    source = eager.source()
    parse(input)
    from normdeploy import pipeline
    from normdeploy.pipeline.places import check_calibrate

    check_calibrate(out, partial, merge, model=model, data=data, source=source, force=force)
    with streams.working(talk), streams.counting() as counted:
        found = pipeline.calibrate(
            model, input, out, data=data, batch=batch, only=only, momentum=momentum, pooled=pooled, partial=partial,
            merge=merge, force=force, counted=counted, **source,
        )  # fmt: skip
    output.calibrated(found, talk, out or partial)
    return 0


def doctor(
    *,
    model: str,
    eager: EagerOptions = EagerOptions(),
    input: tuple[str, ...] = (),
    input_value: tuple[str, ...] = (),
    data: Data = (),
    select: Names = (),
    ignore: Names = (),
    talk: Talk = Talk(),
) -> int:
    """Tell what is wrong with the norms of a network, and what folding will do to each; exit 1 on errors.

    Args:
        model: package.module:factory, a function that returns the module.
        input: name:dims@dtype[low..high], once for each input; guessed where none is given.
        input_value: NAME=VALUE, an argument of forward that is no tensor.
        data: real inputs, to hold the statistics to: .npz, safetensors, or module:function.
        select: patterns of codes to look for, e.g. ND006 or ND01*; all by default.
        ignore: patterns of codes to leave out.
    """
    source, values = eager.source(), [f"{name}={value}" for name, value in named(input_value, "--input-value").items()]
    parse(input)
    from normdeploy import pipeline

    with streams.working(talk) as progress:
        found = pipeline.doctor(
            model, (*input, *values), data=data, select=select, ignore=ignore, progress=progress, **source
        )
    output.diagnosis(found, talk)
    return VerdictError.exit_code if found.errors else 0


def init(
    *,
    model: str,
    out: Out = Path(NAME),
    eager: EagerOptions = EagerOptions(),
    force: bool = False,
    talk: Talk = Talk(),
) -> int:
    """Write a normdeploy.toml for a module: its options, and inputs that its forward takes.

    Args:
        model: package.module:factory, a function that returns the module.
        out: the file to write; normdeploy export reads it where it is called normdeploy.toml.
        force: replace the file named by --out, where that ends in .toml.
    """
    source = eager.source()
    from normdeploy import pipeline
    from normdeploy.pipeline.places import check_init

    check_init(out, model=model, source=source, force=force)
    with streams.working(talk):
        text = pipeline.init(model, out, force=force, **source)
    print(text, end="")
    return 0
