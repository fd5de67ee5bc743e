"""The plugin of pytest: parity as tests of one's own.

``pytest --normdeploy out/digits`` collects one test for each bundle, feed, output and runtime; each fails with the
verdict's sentence and the module to blame. The fixture ``assert_parity(module, specs, artefact)`` is for other suites.

Nothing heavy is imported before the first test needs it: pytest loads this file wherever normdeploy is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

    from normdeploy.parity.feeds import Feed
    from normdeploy.parity.verdict import Criteria, Verdict
    from normdeploy.pipeline.again import Again, Case
    from normdeploy.runtime.placement import Placement
    from normdeploy.runtime.runner import Runner
    from normdeploy.specs import TensorSpec

MANIFEST = "manifest.json"
UNAVAILABLE = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--normdeploy``, ``--device``, ``--provider``, ``--tf32``; an option of another plugin is taken for ours."""
    group = parser.getgroup("normdeploy")
    group.addoption(
        "--normdeploy", action="append", default=[], metavar="BUNDLE", help="a bundle to judge; several times"
    )
    options: dict[str, dict[str, Any]] = {
        "--device": {"help": "where bundles run: cpu or cuda"},
        "--provider": {"help": "where bundles run: ONNX Runtime's cpu, cuda, tensorrt, …"},
        "--tf32": {"help": "let float32 products be rounded to TF32 on a GPU", "action": "store_true"},
    }
    for name, told in options.items():
        with suppress(ValueError):
            group.addoption(name, default=None, **told)


def pytest_configure(config: pytest.Config) -> None:
    """Collect the bundles, in place of the folder that pytest would collect by itself."""
    bundles = [str(Path(name) / MANIFEST) for name in config.getoption("--normdeploy")]
    if bundles:
        asked = config.args_source == pytest.Config.ArgsSource.ARGS
        config.args[:] = [*(config.args if asked else []), *bundles]


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Return the tests of a bundle that was asked for."""
    bundles = [Path(name).resolve() for name in parent.config.getoption("--normdeploy")]
    if file_path.name != MANIFEST or file_path.parent.resolve() not in bundles:
        return None
    return BundleFile.from_parent(parent, path=file_path)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End with the exit code of a machine that cannot, where a bundle could not be run as asked."""
    session.exitstatus = session.config.stash.get(UNAVAILABLE, session.exitstatus)


class BundleFile(pytest.File):
    """The tests of one bundle, which is loaded where it is asked to run."""

    def collect(self) -> Iterator[pytest.Item]:
        """Return one test for each output, feed and runtime."""
        from normdeploy.errors import NormdeployError, UnavailableError
        from normdeploy.pipeline.again import Again, cases

        try:
            placement = _placement(self.config)
            again = Again(self.path.parent, placement)
        except NormdeployError as error:
            if isinstance(error, UnavailableError):
                self.config.stash[UNAVAILABLE] = error.exit_code
            raise self.CollectError(str(error)) from error
        names = [feed.name for feed in again.feeds(again.bundle)]
        for case in cases(again.bundle.report, names):
            runtime = f"onnxruntime {placement.provider}" if case.part == "runtime" else case.part
            name = f"{runtime}: {case.output} on {case.feed}"
            yield ParityItem.from_parent(self, name=name, again=again, case=case)


class ParityItem(pytest.Item):
    """One output on one feed in one runtime."""

    def __init__(self, *, again: Again, case: Case, **named: Any) -> None:
        super().__init__(**named)
        self._again, self._case = again, case

    def runtest(self) -> None:
        """Fail with the verdict's sentence."""
        verdict = self._again.verdict(self._case)
        if not verdict.passed:
            raise ParityFailure(_told(verdict))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], *_: Any) -> str:
        """Return what is shown: the sentence, and no traceback."""
        from normdeploy.errors import NormdeployError

        if isinstance(excinfo.value, ParityFailure | NormdeployError):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, None, str]:
        """Return the bundle and the name."""
        return self.path, None, f"{self.path.parent.name}: {self.name}"


class ParityFailure(AssertionError):  # a failure of a test, as pytest calls it
    """The artefact is not the module."""


AssertParity = Callable[..., "Verdict"]


@pytest.fixture
def assert_parity(request: pytest.FixtureRequest) -> AssertParity:
    """Return ``assert_parity(module, specs, artefact)``, which fails where an artefact is not the module.

    ``specs`` are texts as ``"x:N=1..1..64x1x8x8@f32"``; ``artefact`` is a bundle, an ONNX file, a model of onnx or
    onnx_ir, or a runner: a callable with ``name``, ``inputs`` and ``outputs`` that takes and returns arrays by name.
    ``criteria`` and ``feeds`` may be given. Returns the verdict.
    """
    placement = _placement(request.config)

    def check(
        module: nn.Module,
        specs: Sequence[str] | Sequence[TensorSpec],
        artefact: str | Path | ir.Model | Runner | Any,
        *,
        criteria: Criteria | None = None,
        feeds: Sequence[Feed] | None = None,
    ) -> Verdict:
        from normdeploy.pipeline.compare import verdict_of

        verdict = verdict_of(module, specs, artefact, criteria=criteria, feeds=feeds, placement=placement)
        if not verdict.passed:
            raise ParityFailure(_told(verdict))
        return verdict

    return check


def _told(verdict: Verdict) -> str:
    from normdeploy.pipeline.judge import begins_in
    from normdeploy.report import view

    where = begins_in(verdict)
    return view.sentence(verdict) + (f"\n  where: {where}" if where else "")


def _placement(config: pytest.Config) -> Placement:
    from normdeploy.runtime.placement import placed

    device, provider = config.getoption("--device", None) or "cpu", config.getoption("--provider", None)
    return placed(device, provider, tf32=bool(config.getoption("--tf32", None)))
