"""The command line: one function a command, which parses, calls and prints.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done and the verdict passed, 1 the verdict failed,
2 usage or unreadable input, 3 this machine cannot, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter

from normdeploy.cli import output
from normdeploy.cli.config import NAME, ExportConfig
from normdeploy.cli.options import (
    EagerOptions,
    KServeOptions,
    Level,
    Names,
    Out,
    ParityOptions,
    Precision,
    ServingOptions,
    Talk,
    Target,
    Where,
    byte_count,
    counts,
    listed,
    named,
    share,
)
from normdeploy.errors import InputError, VerdictError


def _version() -> str:
    from importlib.metadata import version

    return version("normdeploy")


def _shown(default: object) -> str | None:
    """Return a default as the help shows it; nothing for an option that is off."""
    return None if default is None or default is False or default in ((), "") else str(default)


app = App(
    name="normdeploy",
    help="Makes trained PyTorch networks deployable: norms folded away, parity proven, bundle delivered.",
    help_format="plaintext",
    version=_version,
    default_parameter=Parameter(negative=(), show_default=_shown),
    config=ExportConfig(),
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
)


def main(arguments: Sequence[str] | None = None, *, ends: bool = False) -> int:
    """Run the command that ``arguments`` (the process's own by default) spell, and return its exit code.

    Where the process ``ends`` with it, a Ctrl-C after the command is ignored.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    with output.Guard(debug="--debug" in given, ends=ends) as guard:
        try:
            guard.code = app(given) or 0
        except CycloptsError as error:  # in words of its own, and with names of anyone's in it
            command = " ".join(error.command_chain or ())
            raise InputError(
                " ".join(str(error).split()), fix=f"see normdeploy {command} --help".replace("  ", " ")
            ) from error
    return guard.code


@app.command
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
    to_torch: Path | None = None,
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
        opset: ONNX opset; by default 20.
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
        force: replace an older bundle.
        no_bench: leave the latency out.
        seconds: to measure the latency for, at each size.
        threads: of each runner; by default one core is left to the rest of the machine.
        processes: fresh ones to measure it in, which share the seconds.
        batch: sizes of the inputs' first dimension to measure at too, one after another, e.g. 1,8,64.
        compare: what else to measure beside it.
    """
    from normdeploy import pipeline

    try:
        with output.working(talk) as progress:
            report = pipeline.export(
                model, parity.inputs(), out, output_names=listed(parity.output_names), data=parity.data,
                opset=opset, keep=keep, layernorm=layernorm, target=target, tune=tune, precision=precision,
                engine=engine, sm=listed(sm), plugin=plugin, plugin_form=plugin_form, to_torch=to_torch, force=force,
                bench=not no_bench, seed=parity.seed, criteria=parity.criteria(), verbose=talk.verbose,
                progress=progress, seconds=seconds, threads=threads, processes=processes,
                batches=counts(batch, "--batch"), compiled=compare is not None, command=output.command_line(),
                **eager.source(),
            )  # fmt: skip
    except pipeline.ParityError as error:
        output.report(error.report, talk)
        raise
    output.report(report, talk, out)
    return 0


@app.command
def calibrate(
    *,
    model: str,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    eager: EagerOptions = EagerOptions(),
    input: tuple[str, ...] = (),
    data: tuple[str, ...] = (),
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
        force: replace an older file.
    """
    from normdeploy import pipeline

    with output.working(talk), output.counting() as counted:
        found = pipeline.calibrate(
            model, input, out, data=data, batch=batch, only=only, momentum=momentum, pooled=pooled, partial=partial,
            merge=merge, force=force, counted=counted, **eager.source(),
        )  # fmt: skip
    output.calibrated(found, talk, out or partial)
    return 0


@app.command
def doctor(
    *,
    model: str,
    eager: EagerOptions = EagerOptions(),
    input: tuple[str, ...] = (),
    input_value: tuple[str, ...] = (),
    data: tuple[str, ...] = (),
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
    from normdeploy import pipeline

    values = [f"{name}={value}" for name, value in named(input_value, "--input-value").items()]
    with output.working(talk) as progress:
        found = pipeline.doctor(
            model, (*input, *values), data=data, select=select, ignore=ignore, progress=progress, **eager.source()
        )
    output.diagnosis(found, talk)
    return VerdictError.exit_code if found.errors else 0


@app.command
def fold(
    model: Path,
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
        force: replace an older file.
    """
    from normdeploy import pipeline

    with output.working(talk):
        ledger = pipeline.fold_file(
            model, out, keep=keep, layernorm=layernorm, target=target, inputs_are_constants=inputs_are_constants,
            precision=precision, plugin=plugin, plugin_form=plugin_form, dump=dump, strict=strict, force=force,
        )  # fmt: skip
    output.ledger(ledger, talk, out)
    return 0


@app.command
def verify(
    artefact: Path,
    /,
    *,
    model: str,
    eager: EagerOptions = EagerOptions(),
    parity: ParityOptions = ParityOptions(),
    where: Where = Where(),
    talk: Talk = Talk(),
) -> int:
    """Judge a bundle, an ONNX file or a plan against the eager module it came from.

    Args:
        artefact: a bundle, which knows its inputs, or an ONNX file or a plan, which need --input.
        model: package.module:factory, a function that returns the module.
    """
    from normdeploy import pipeline

    with output.working(talk) as progress:
        verdict = pipeline.verify(
            artefact, model, parity.inputs(), output_names=listed(parity.output_names), data=parity.data,
            seed=parity.seed, criteria=parity.criteria(), placement=where.placement(), progress=progress,
            **eager.source(),
        )  # fmt: skip
    output.verdict(verdict, talk)
    return 0 if verdict.passed else VerdictError.exit_code


@app.command
def bisect(
    artefact: Path,
    /,
    *,
    model: str,
    eager: EagerOptions = EagerOptions(),
    parity: ParityOptions = ParityOptions(),
    where: Where = Where(),
    max_memory: str = "1GB",
    talk: Talk = Talk(),
) -> int:
    """Name the module where a graph goes wrong, and the node that the runtime computes worst.

    Args:
        artefact: a bundle, which knows its inputs, or an ONNX file, which needs --input.
        model: package.module:factory, a function that returns the module.
        max_memory: of the values that are held at once, e.g. 500MB or 2GB.
    """
    from normdeploy import pipeline

    limit = byte_count(max_memory)
    with output.working(talk) as progress:
        verdict = pipeline.bisect(
            artefact, model, parity.inputs(), output_names=listed(parity.output_names), data=parity.data,
            seed=parity.seed, criteria=parity.criteria(), max_memory=limit, placement=where.placement(),
            progress=progress, **eager.source(),
        )  # fmt: skip
    output.verdict(verdict, talk)
    return 0 if verdict.passed else VerdictError.exit_code


@app.command
def judge(report: Path, /, *, k: float | None = None, floor_eps: float | None = None, talk: Talk = Talk()) -> int:
    """Judge the measurements of a saved report again, by other criteria; nothing is run.

    Args:
        report: report.json, or the folder it lies in.
        k: an error of k times eager's own passes.
        floor_eps: and that many ε of the output's dtype on top.
    """
    from normdeploy import pipeline
    from normdeploy.cli.options import criteria

    with output.working(talk):
        verdict = pipeline.judge_again(pipeline.report_of(report), criteria(k, floor_eps))
    output.verdict(verdict, talk)
    return 0 if verdict.passed else VerdictError.exit_code


@app.command
def bench(
    artefact: str | None = None,
    /,
    *more: str,
    layernorm: bool = False,
    model: str | None = None,
    input: tuple[str, ...] = (),
    eager: EagerOptions = EagerOptions(),
    seconds: float = 2.0,
    threads: int | None = None,
    processes: int = 3,
    batch: str = "",
    compare: Literal["torch.compile"] | None = None,
    against: Path | None = None,
    fail_above: str = "5%",
    where: Where = Where(),
    bundle: Path | None = None,
    clients: str = "1,8",
    talk: Talk = Talk(),
) -> int:
    """Measure the latency of a bundle, an ONNX file or a plan, or of the servers at URLs that serve a bundle.

    Args:
        artefact: a bundle, which knows its inputs, or an ONNX file or a plan, which need --input; or a URL.
        more: URLs.
        layernorm: measure no artefact, but TensorRT's own LayerNorms beside the plugins, for builds on this GPU.
        model: package.module:factory; without it the artefact is measured alone.
        input: name:dims@dtype[low..high], once for each input.
        seconds: to measure for.
        threads: of each runner; by default one core is left to the rest of the machine.
        processes: fresh ones to measure in, which share the seconds.
        batch: sizes of the inputs' first dimension to measure at, one after another, e.g. 1,8,64.
        compare: what else to measure beside it.
        against: an older report.json, or its folder; exit 1 where this is slower than it.
        fail_above: slower by how much.
        bundle: that the servers at the URLs serve; it is measured in this process too.
        clients: that ask a server at once, one row of the table each.
    """
    if artefact is not None and "://" in artefact:
        return _bench_servers((artefact, *more), bundle, model, clients, seconds, talk)
    if more or bundle is not None:
        raise InputError("only servers are measured together", where=" ".join(more), fix="give URLs, and --bundle")
    from normdeploy import pipeline

    if layernorm != (artefact is None):
        given = "--layernorm measures this machine alone" if layernorm else "no artefact is given"
        raise InputError(given, fix="normdeploy bench BUNDLE, or normdeploy bench --layernorm")
    if artefact is None:
        with output.working(talk) as progress:
            file, times = pipeline.bench_layernorm(progress)
        output.layernorms(file, times, talk)
        return 0
    limit = share(fail_above)
    sizes: list[int | None] = [*counts(batch, "--batch")] or [None]
    if compare is not None and model is None:
        raise InputError("torch.compile needs the module", where=f"--compare {compare}", fix="give --model as well")
    if against is not None and batch:
        raise InputError("an older report has one size", where="--against --batch", fix="give one of them")
    with output.working(talk) as progress:
        before = None if against is None else pipeline.report_of(against)
        measured = {
            size: pipeline.bench(
                artefact, model, input, seconds=seconds, threads=threads, processes=processes, batch=size,
                compiled=compare is not None, placement=where.placement(), progress=progress, **eager.source(),
            )
            for size in sizes
        }  # fmt: skip
    output.latencies(measured, talk)
    if before is not None:
        pipeline.require_as_fast(before, next(iter(measured.values())), limit)
    return 0


def _bench_servers(
    urls: Sequence[str], bundle: Path | None, model: str | None, clients: str, seconds: float, talk: Talk
) -> int:
    from normdeploy.serving.measure import measure

    counts = listed(clients)
    if bundle is None or not counts or not all(count.isdecimal() and int(count) for count in counts):
        what = "servers are measured with the bundle that they serve, and numbers of clients"
        raise InputError(what, where=" ".join(urls), fix="normdeploy bench URL --bundle BUNDLE --clients 1,8")
    with output.working(talk):
        loads = measure(urls, bundle, model=model, clients=[int(count) for count in counts], seconds=seconds)
    output.loads(loads, talk)
    return 0


@app.command
def build(
    model: Path,
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
        force: replace an older plan.
    """
    from normdeploy import pipeline

    with output.building(talk) as progress:
        built = pipeline.build(
            model, out, input, precision=precision, backend=backend, sm=listed(sm), workspace_mib=workspace,
            level=level, plugin=plugin, plugin_form=plugin_form, force=force, progress=progress,
        )  # fmt: skip
    output.engine(built.sidecar, talk, out, layers=layers)
    return 0


@app.command
def explain(model: Path, name: str | None = None, /, *, talk: Talk = Talk()) -> int:
    """Tell what became of the norms of a bundle or of a folded ONNX file, or what a code such as NF201 means.

    Args:
        model: a bundle, or a file that normdeploy fold wrote; or a code that a command printed.
        name: a module's name, or a pattern of names; without it, all.
    """
    from normdeploy import codes

    if codes.is_code(str(model)) and not model.exists():
        output.page(codes.page(str(model)), talk)
        return 0
    from normdeploy import pipeline

    with output.working(talk):
        entries = pipeline.ledger_of(model, name)
    output.entries(entries, talk)
    return 0


@app.command
def report(bundle: Path | None = None, /, *, schema: bool = False, talk: Talk = Talk()) -> int:
    """Show the report of a bundle, or the schema of report.json.

    Args:
        bundle: the folder, or its report.json.
        schema: print the JSON schema.
    """
    if schema:
        from normdeploy.report.schema import schema as document

        output.document(document())
        return 0
    if bundle is None:
        raise InputError("no bundle is given", fix="normdeploy report BUNDLE, or normdeploy report --schema")
    from normdeploy import pipeline

    output.report(pipeline.report_of(bundle), talk, bundle)
    return 0


@app.command
def inspect(bundle: Path, /, *, talk: Talk = Talk()) -> int:
    """Tell what a bundle is, takes, gives, weighs and was judged by, and how to run it.

    Args:
        bundle: the folder that normdeploy export wrote.
    """
    from normdeploy.bundle.contents import contents
    from normdeploy.serving.describe import describe

    with output.working(talk):
        found = contents(bundle)
    output.document(found) if talk.json else print(describe(found), end="")
    return 0


@app.command
def package(
    *bundles: Path,
    out: Out,
    name: str | None = None,
    serving: ServingOptions = ServingOptions(),
    kserve: KServeOptions = KServeOptions(),
    talk: Talk = Talk(),
) -> int:
    """Add bundles to a Triton model repository, each as the next version of its model.

    Args:
        bundles: folders that normdeploy export wrote.
        out: the repository; it is made where it is not there.
        name: of the model; by default that of the bundle's folder.
    """
    from normdeploy.serving.repository import package as add

    if not bundles:
        raise InputError("no bundle is given", fix="normdeploy package BUNDLE -o REPOSITORY")
    with output.working(talk):
        made = add(bundles, out, name=name, serving=serving.serving(), kserve=kserve.service())
    output.packaged(made, talk)
    return 0


@app.command
def serve(
    repository: Path,
    /,
    *,
    http_port: int = 0,
    grpc_port: int = 0,
    metrics_port: int = 0,
    log: Path | None = None,
    dry_run: bool = False,
    talk: Talk = Talk(),
) -> int:
    """Serve a Triton model repository on this machine, on loopback, until Ctrl-C.

    Triton is installed into an environment of its own, once.

    Args:
        repository: the folder that normdeploy package wrote.
        http_port: by default a free one, which is printed.
        grpc_port: by default a free one, which is printed.
        metrics_port: by default a free one, which is printed.
        log: the file for what Triton prints; by default it is shown where Triton fails.
        dry_run: print the command, and start nothing.
    """
    from normdeploy.serving import server

    at = server.ports(http_port, grpc_port, metrics_port)
    if dry_run:
        print(server.dry_run(repository, at))
        return 0
    with server.until_signal():
        with output.working(talk):
            server.prepare(repository)
        with server.running(repository, at, log=log) as triton:
            output.serving(triton, talk)
            server.watch(triton)
    return 0


@app.command
def check(*urls: str, bundle: Path, model: str | None = None, model_version: str = "", talk: Talk = Talk()) -> int:
    """Send the golden inputs of a bundle to servers, and judge what they answer by the bound of parity.

    Args:
        urls: http://host:port or grpc://host:port, of servers that speak the v2 protocol, as Triton does.
        bundle: the folder that normdeploy export wrote, or that lies in the repository as a version.
        model: its name on the server; by default as normdeploy package names it.
        model_version: that the server is asked for; by default the one that it serves.
    """
    from normdeploy.serving.check import check as ask
    from normdeploy.serving.check import require_right

    with output.working(talk):
        results = ask(urls, bundle, model=model, version=model_version)
    output.checked(results, talk)
    require_right(results)
    return 0


@app.command
def export_all(
    fleet: Path,
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

    with output.fleet(talk) as told:
        rows = run(fleet, out, at_once=at_once, ray=ray, force=force, trust=trust, told=told)
    output.exports(rows, talk, out)
    require_passed(rows)
    return 0


@app.command
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
        force: replace an older file.
    """
    from normdeploy import pipeline

    with output.working(talk):
        text = pipeline.init(model, out, force=force, **eager.source())
    print(text, end="")
    return 0


@app.command
def completion(shell: Literal["bash", "zsh", "fish"], /) -> int:
    """Print the script that lets a shell complete normdeploy's commands and options.

    Args:
        shell: the shell, which should run the script when it starts.
    """
    print(app.generate_completion(prog_name="normdeploy", shell=shell))
    return 0
