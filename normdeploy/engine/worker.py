"""The builder's own process: reads a job, builds, leaves a plan and a result in the job's folder.

Apart from the user's process because a plugin can abort it, a crash must become a message, and a kill must leave
nothing behind. It imports the backend and little else. On standard output it writes one JSON object a line, the
progress; what the backend's libraries print there goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from normdeploy.engine.backends import BACKENDS, Backend
from normdeploy.engine.job import LOG, PLAN, RESULT, TF32_OVERRIDE, Job, ParserError, Result
from normdeploy.engine.timings import TimingCache, cache_key, locked
from normdeploy.errors import InputError, NormdeployError, UnavailableError

_SEVERE = ("INTERNAL_ERROR", "ERROR")
_NO_GPU = "cudaError"  # said by RTX now and then on a machine without a GPU, where it is no failure


def main(folder: Path) -> None:
    """Run the job in ``folder``; what fails is in the result."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore", DeprecationWarning)  # the backend's own, about features this asks it for
    os.environ.pop(TF32_OVERRIDE, None)  # it would be stronger than the flag that the build clears
    job = Job.read(folder)
    with (folder / LOG).open("w", buffering=1) as log:
        try:
            result = _Build(job, folder, log, channel).run()
        except NormdeployError as error:
            result = Result(error=(type(error).__name__, error.what, error.where, error.fix))
    (folder / RESULT).write_text(result.to_json())


class _Build:
    def __init__(self, job: Job, folder: Path, log: TextIO, channel: TextIO) -> None:
        self.job, self.folder, self.channel = job, folder, channel
        self.backend = next(each for each in BACKENDS if each.name == job.backend)
        self.trt = _import(self.backend)
        self.logger = _logger(self.trt, log, ignored="" if job.gpu else _NO_GPU)

    def run(self) -> Result:
        trt = self.trt
        if self.job.plugin_sm is not None:
            self.backend.register_plugins(trt, self.job.plugin_sm)
        try:
            builder = trt.Builder(self.logger)
            network = builder.create_network(self.backend.network_flags(trt))
        except Exception as error:
            raise UnavailableError(
                f"{self.backend.title} {trt.__version__} cannot start: {self._last_error() or error}",
                fix="check the GPU and its driver",
            ) from error
        if self.job.sm:  # refused here, before a model is read
            self.backend.set_targets(trt, builder.create_builder_config(), self.job.sm)
        parser = trt.OnnxParser(network, self.logger)
        unknown = self._unknown_operators(parser)
        result = Result(version=trt.__version__, unknown_operators=unknown)
        if unknown or self.job.lint_only:
            return result
        if not parser.parse_from_file(self.job.model):
            errors = [parser.get_error(index) for index in range(parser.num_errors)]
            return result.replace(parser_errors=tuple(_parser_error(error) for error in errors))
        return self._build(builder, network, result)

    def _unknown_operators(self, parser: Any) -> tuple[str, ...]:
        plugins = {creator.name for creator in getattr(self.trt.get_plugin_registry(), "all_creators", ())}
        names = [name for name in self.job.operators if name not in plugins]
        return tuple(name for name in names if not parser.supports_operator(name))

    def _build(self, builder: Any, network: Any, result: Result) -> Result:
        config = builder.create_builder_config()
        targets = self._configure(builder, network, config)
        with self._timings(config) as key:
            plan = builder.build_serialized_network(network, config)
        result = result.replace(
            warnings=tuple(self.logger.said("WARNING")),
            builder_errors=() if plan else tuple(self.logger.said(*_SEVERE)) or ("no reason given",),
            targets=targets,
            timing_cache_key=key,
            layers=self.logger.layers,
        )
        if plan is not None:
            data = bytes(plan)
            (self.folder / PLAN).write_bytes(data)
            result = self._inspect(data, result) if self.job.gpu else result
        return result

    def _configure(self, builder: Any, network: Any, config: Any) -> tuple[str, ...]:
        trt, job = self.trt, self.job
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        config.progress_monitor = _monitor(trt, self.channel)
        config.clear_flag(trt.BuilderFlag.TF32)
        if job.workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace)
        if job.level is not None:
            config.builder_optimization_level = job.level
        for wanted, name in ((job.version_compatible, "VERSION_COMPATIBLE"), (job.refit, "REFIT")):
            if wanted:
                config.set_flag(self._flag(name))
        for ranges in job.profiles:
            profile = builder.create_optimization_profile()
            for index in range(network.num_inputs):
                tensor = network.get_input(index)
                if tensor.is_shape_tensor:
                    raise InputError(
                        "an input's values are used as a shape, and a profile has no range for values",
                        where=tensor.name,
                        fix="make it a constant of the model",
                    )
                profile.set_shape(tensor.name, *ranges[tensor.name])
            config.add_optimization_profile(profile)
        return self.backend.set_targets(trt, config, job.sm)

    def _flag(self, name: str) -> Any:
        if not hasattr(self.trt.BuilderFlag, name):
            raise UnavailableError(f"{self.backend.title} {self.trt.__version__} has no {name}")
        return getattr(self.trt.BuilderFlag, name)

    @contextmanager
    def _timings(self, config: Any) -> Iterator[str | None]:
        """The timing cache of this backend, version and GPU around a build; its key, or None where none is kept."""
        if self.job.timing_cache is None or not self.backend.keeps_timings:
            yield None
            return
        key = cache_key(self.backend.name, self.trt.__version__, self.job.gpu or "no GPU")
        with locked(Path(self.job.timing_cache), key) as kept:
            cache = config.create_timing_cache(kept.load())
            config.set_timing_cache(cache, False)
            yield key
            self._store(kept, config)

    def _store(self, kept: TimingCache, config: Any) -> None:
        cache = config.get_timing_cache()
        kept.store(bytes(cache.serialize()) if cache is not None else b"")

    def _inspect(self, plan: bytes, result: Result) -> Result:
        """The table from the engine inspector, where this GPU can load the plan."""
        runtime = self.trt.Runtime(self.logger)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            return result
        text = engine.create_engine_inspector().get_engine_information(self.trt.LayerInformationFormat.JSON)
        return result.replace(inspector=text)

    def _last_error(self) -> str:
        return next(iter(reversed(list(self.logger.said(*_SEVERE)))), "")


def _import(backend: Backend) -> Any:
    try:
        return importlib.import_module(backend.name)
    except Exception as error:  # a missing library raises more than ImportError
        raise UnavailableError(
            f"{backend.title} is installed but cannot be imported: {error}", fix=backend.install
        ) from error


def _logger(trt: Any, log: TextIO, *, ignored: str) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]  # the backend has no types
        """Keeps what the result needs; everything is in the log, flushed, for a crash leaves nothing else."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[tuple[str, str]] = []
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            log.write(f"[{severity.name}] {message}\n")
            if message.startswith("Layers:"):
                self.layers = message
            elif severity.name in ("WARNING", *_SEVERE):
                self.messages.append((severity.name, message))

        def said(self, *severities: str) -> Iterator[str]:
            for severity, message in dict.fromkeys(self.messages):
                if severity in severities and not (ignored and ignored in message):
                    yield message

    return Logger()


def _monitor(trt: Any, channel: TextIO) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the backend has no types
        """Writes each step to the user's process, and ends this one when that is gone."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            self._tell(phase, parent or "", 0)

        def step_complete(self, phase: str, step: int) -> bool:
            self._tell(phase, "", step + 1)
            return True

        def phase_finish(self, phase: str) -> None:
            self._tell(phase, "", self.steps.get(phase, 0))

        def _tell(self, phase: str, parent: str, step: int) -> None:
            steps = self.steps.get(phase, 0)
            try:
                channel.write(json.dumps({"phase": phase, "parent": parent, "step": step, "steps": steps}) + "\n")
            except OSError:
                os._exit(1)

    return Monitor()


def _parser_error(error: Any) -> ParserError:
    return ParserError(node=error.node_name(), operator=error.node_operator(), what=error.desc())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
