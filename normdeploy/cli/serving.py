"""What brings a bundle to a server: inspect, package, serve, check."""

from __future__ import annotations

from pathlib import Path

from normdeploy.cli import output, streams
from normdeploy.cli.options import (
    KServeOptions,
    ServingOptions,
    Talk,
)
from normdeploy.cli.paths import Out
from normdeploy.errors import InputError


def inspect(bundle: Path, /, *, talk: Talk = Talk()) -> int:
    """Tell what a bundle is, takes, gives, weighs and was judged by, and how to run it.

    Args:
        bundle: the folder that normdeploy export wrote.
    """
    from normdeploy.bundle.contents import contents
    from normdeploy.serving.describe import describe

    with streams.working(talk):
        found = contents(bundle)
    output.document(found) if talk.json else print(describe(found), end="")
    return 0


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
    with streams.working(talk):
        made = add(bundles, out, name=name, serving=serving.serving(), kserve=kserve.service())
    output.packaged(made, talk)
    return 0


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
        log: a file that what Triton prints is added to; by default it is shown where Triton fails.
        dry_run: print the command, and start nothing.
    """
    from normdeploy.serving import server

    at = server.ports(http_port, grpc_port, metrics_port)
    if dry_run:
        print(server.dry_run(repository, at))
        return 0
    with server.until_signal():
        with streams.working(talk):
            server.prepare(repository)
        with server.running(repository, at, log=log) as triton:
            output.serving(triton, talk)
            server.watch(triton)
    return 0


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

    with streams.working(talk):
        results = ask(urls, bundle, model=model, version=model_version)
    output.checked(results, talk)
    require_right(results)
    return 0
