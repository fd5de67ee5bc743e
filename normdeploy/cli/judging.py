"""What judges and tells: verify, bisect, judge, bench, explain, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from normdeploy.cli import output, streams
from normdeploy.cli.options import (
    EagerOptions,
    ParityOptions,
    Talk,
    Where,
    byte_count,
    counts,
    listed,
    share,
)
from normdeploy.cli.paths import BundleOrUrl, Given
from normdeploy.errors import InputError
from normdeploy.specs import parse


def verify(
    artefact: Given,
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
    inputs, criteria, source, placement = parity.inputs(), parity.criteria(), eager.source(), where.placement()
    from normdeploy import pipeline

    with streams.working(talk) as progress:
        verdict = pipeline.verify(
            artefact, model, inputs, output_names=listed(parity.output_names), data=parity.data, seed=parity.seed,
            criteria=criteria, placement=placement, progress=progress, **source,
        )  # fmt: skip
    return output.verdict(verdict, talk)


def bisect(
    artefact: Given,
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
    inputs, criteria, source, placement = parity.inputs(), parity.criteria(), eager.source(), where.placement()
    from normdeploy import pipeline

    limit = byte_count(max_memory)
    with streams.working(talk) as progress:
        verdict = pipeline.bisect(
            artefact, model, inputs, output_names=listed(parity.output_names), data=parity.data, seed=parity.seed,
            criteria=criteria, max_memory=limit, placement=placement, progress=progress, **source,
        )  # fmt: skip
    return output.verdict(verdict, talk)


def judge(report: Path, /, *, k: float | None = None, floor_eps: float | None = None, talk: Talk = Talk()) -> int:
    """Judge the measurements of a saved report again, by other criteria; nothing is run.

    Args:
        report: report.json, or the folder it lies in.
        k: an error of k times eager's own passes.
        floor_eps: and that many ε of the output's dtype on top.
    """
    from normdeploy import pipeline
    from normdeploy.cli.options import criteria

    with streams.working(talk):
        verdict = pipeline.judge_again(pipeline.report_of(report), criteria(k, floor_eps))
    return output.verdict(verdict, talk)


def bench(
    artefact: BundleOrUrl | None = None,
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
        with streams.working(talk) as progress:
            file, times = pipeline.bench_layernorm(progress)
        output.layernorms(file, times, talk)
        return 0
    limit, source, placement = share(fail_above), eager.source(), where.placement()
    parse(input)
    sizes: list[int | None] = [*counts(batch, "--batch")] or [None]
    if compare is not None and model is None:
        raise InputError("torch.compile needs the module", where=f"--compare {compare}", fix="give --model as well")
    if against is not None and batch:
        raise InputError("an older report has one size", where="--against --batch", fix="give one of them")
    with streams.working(talk) as progress:
        before = None if against is None else pipeline.report_of(against)
        measured = {
            size: pipeline.bench(
                artefact, model, input, seconds=seconds, threads=threads, processes=processes, batch=size,
                compiled=compare is not None, placement=placement, progress=progress, **source,
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

    at_once = counts(clients, "--clients")
    if bundle is None or not at_once:
        what = "servers are measured with the bundle that they serve, and numbers of clients"
        raise InputError(what, where=" ".join(urls), fix="normdeploy bench URL --bundle BUNDLE --clients 1,8")
    with streams.working(talk):
        loads = measure(urls, bundle, model=model, clients=at_once, seconds=seconds)
    output.loads(loads, talk)
    return 0


def explain(model: Path, name: str | None = None, /, *, talk: Talk = Talk()) -> int:
    """Tell what became of the norms of a bundle or of a folded ONNX file, or what a code such as NF201 means.

    Args:
        model: a bundle, or a file that normdeploy fold wrote; or a code that a command printed.
        name: a module's name, or a pattern of names; without it, all.
    """
    from normdeploy import codes

    if not model.exists() and name is None:
        output.page(codes.page(str(model)), talk)
        return 0
    from normdeploy import pipeline

    with streams.working(talk):
        entries = pipeline.ledger_of(model, name)
    output.entries(entries, talk)
    return 0


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
