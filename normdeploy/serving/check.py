"""``normdeploy check``: the test after a deployment. The golden inputs go to the server, parity's bound judges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from normdeploy.bundle import Bundle, load_bundle
from normdeploy.errors import InputError, VerdictError
from normdeploy.serving.ask import address, ask, golden_feeds

_TIMES = 2
"""The golden feed is sent so often: the first answer may come from another path than the next."""


@dataclass(frozen=True)
class Checked:
    """What one server gave for the golden inputs; ``problem`` is empty where it was right, ``version`` who answered."""

    url: str
    model: str
    version: str
    problem: str


def check(urls: Sequence[str], bundle: Path, *, model: str | None = None, version: str = "") -> list[Checked]:
    """Return what the server at each of ``urls`` gives for the golden inputs of ``bundle``.

    ``model`` is by default that of the bundle's folder, as ``normdeploy package`` names it. Raises InputError for what
    is no address, UnavailableError where there is no client, and what :func:`normdeploy.load_bundle` raises.
    """
    if not urls:
        raise InputError("no address is given", fix="normdeploy check http://127.0.0.1:8000 --bundle BUNDLE")
    addresses = [address(url) for url in urls]
    loaded = load_bundle(bundle)
    feeds, name = golden_feeds(loaded), model or model_name(loaded)
    results = []
    for where in addresses:
        answers = ask(where, name, feeds, requests=_TIMES, version=version)
        problem = "" if len(answers.seconds) == _TIMES else " | ".join(answers.messages)
        results.append(Checked(str(where), name, ", ".join(answers.versions), problem))
    return results


def require_right(results: Sequence[Checked]) -> None:
    """Raise VerdictError where one of ``results`` is not right."""
    failed = [f"{each.url}: {each.problem}" for each in results if each.problem]
    if failed:
        fix = "see that this bundle is what the server serves under that name, and the server's log"
        raise VerdictError(f"{results[0].model} is not served right", where="; ".join(failed), fix=fix)


def model_name(bundle: Bundle) -> str:
    """Return the name that ``normdeploy package`` gives a bundle: of a version in a repository, its model's."""
    folder = bundle.folder.resolve()
    return folder.parent.name if folder.name.isdecimal() else folder.name
