"""The options that several commands share: the same words mean the same everywhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from normdeploy.cli.paths import Data, Given
from normdeploy.errors import InputError
from normdeploy.specs import parse, whole_number

if TYPE_CHECKING:
    from normdeploy.parity.verdict import Criteria
    from normdeploy.pipeline import Source
    from normdeploy.runtime.placement import Placement
    from normdeploy.serving.kserve import KServe
    from normdeploy.serving.options import Serving

Names = Annotated[tuple[str, ...], Parameter(consume_multiple=True)]
"""Several words behind one option."""
Precision = Literal["fp32", "fp16", "bf16"]
"""The names of normdeploy.precision, which is too heavy to import for a help text."""
Level = Literal["off", "recognise", "affine", "centre"]
Target = Literal["onnx", "onnxruntime", "tensorrt"]
"""Those of normdeploy.fold, which is no lighter."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EagerOptions:
    """Where the eager module comes from.

    Attributes:
        app_dir: the only folder added to the import path.
        model_arg: NAME=VALUE, an argument of the factory; a Python literal or a string.
        weights: a safetensors file, what torch.save wrote, an index of shards, or the folder that holds one of these.
        weights_key: the entry of that file which holds the state dict, e.g. ema.module.
        strip_prefix: taken off the start of the names in that file.
        add_prefix: put before the names in that file.
        rename: OLD=NEW, names in that file and in the module; one star in each stands for the same.
        ignore_unexpected: pattern of names in that file that the module need not have.
        allow_missing: pattern of names in the module that the file need not have.
        force_eval: go on where a norm was left in training mode.
        trust: a file, by its own path, that may run code when it is opened.
    """

    app_dir: Given | None = None
    model_arg: tuple[str, ...] = ()
    weights: Given | None = None
    weights_key: str | None = None
    strip_prefix: str | None = None
    add_prefix: str | None = None
    rename: tuple[str, ...] = ()
    ignore_unexpected: tuple[str, ...] = ()
    allow_missing: tuple[str, ...] = ()
    force_eval: bool = False
    trust: tuple[Path, ...] = ()

    def source(self) -> Source:
        """Return what the pipeline's verbs take."""
        return {
            "app_dir": self.app_dir,
            "model_args": named(self.model_arg, "--model-arg"),
            "weights": self.weights,
            "weights_key": self.weights_key,
            "strip_prefix": self.strip_prefix,
            "add_prefix": self.add_prefix,
            "rename": self.rename,
            "ignore_unexpected": self.ignore_unexpected,
            "allow_missing": self.allow_missing,
            "force_eval": self.force_eval,
            "trust": self.trust,
        }


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ParityOptions:
    """What parity is judged on and by.

    Attributes:
        input: name:dims@dtype[low..high], once for each input, e.g. "x:N=1..1..64x3x224x224@f32"; x.key:… in a
            dictionary, x.0:… in a list. Without a dtype it is f32; floats without a range are standard normal.
        input_value: NAME=VALUE, an argument of forward that is no tensor; a Python literal or a string.
        output_names: of what forward returns, in order, with commas between; by default its keys, fields, indices.
        data: real inputs, judged beside the random ones: .npz, safetensors, or module:function; several times.
        seed: of the random inputs.
        k: an error of k times eager's own passes (4); of no effect where the floor alone lets all pass, which is said.
        floor_eps: and that many ε of the output's dtype on top (8).
    """

    input: tuple[str, ...] = ()
    input_value: tuple[str, ...] = ()
    output_names: str = ""
    data: Data = ()
    seed: int = 0
    k: float | None = None
    floor_eps: float | None = None

    def inputs(self) -> tuple[str, ...]:
        """Return the specs and the values, as the pipeline's verbs take them; InputError for what is no spec."""
        values = (f"{name}={value}" for name, value in named(self.input_value, "--input-value").items())
        parse(self.input)
        return (*self.input, *values)

    def criteria(self) -> Criteria:
        """Return the criteria, their own defaults where nothing is given."""
        return criteria(self.k, self.floor_eps)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Where:
    """Where a model runs.

    Attributes:
        device: cpu or cuda.
        provider: of ONNX Runtime: cpu, cuda, tensorrt, nv-tensorrt-rtx, … or its own name; it must run the model, or
            this is an error.
        tf32: let float32 products be rounded to TF32 on a GPU, in eager PyTorch as well.
        cuda_graph: capture the launches of a run once and replay them.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    provider: str | None = None
    tf32: bool = False
    cuda_graph: bool = False

    def placement(self) -> Placement:
        """Return where to run; UnavailableError where this machine cannot."""
        from normdeploy.runtime.placement import placed

        found = placed(self.device, self.provider, tf32=self.tf32, cuda_graph=self.cuda_graph)
        found.set_tf32()  # of the command's own process, before CUDA's libraries are loaded
        return found


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """How Triton is to serve a model.

    Attributes:
        platform: onnxruntime runs the model, tensorrt the bundle's engine.
        instances: copies that run at once, on each GPU or on the CPU.
        gpus: ids of the GPUs, e.g. 0,1; without it, the CPU.
        queue_delay: microseconds that a request may wait for others to make a batch with.
        accelerate: on GPUs, let ONNX Runtime run what it can in TensorRT.
        cuda_graphs: replay CUDA graphs; with --platform tensorrt.
    """

    platform: Literal["onnxruntime", "tensorrt"] = "onnxruntime"
    instances: int = 1
    gpus: str = ""
    queue_delay: int = 0
    accelerate: bool = False
    cuda_graphs: bool = False

    def serving(self) -> Serving:
        """Return the same as :mod:`normdeploy.serving` takes it."""
        from normdeploy.serving.options import Serving

        return Serving(**vars(self))


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class KServeOptions:
    """How KServe is to serve a repository.

    Attributes:
        kserve: write an InferenceService too, for a repository that will lie there, e.g. pvc://models/repository.
        min_replicas: pods at least; with 0 the last one ends where nobody asks.
        max_replicas: pods at most.
        scale_metric: what more pods are started by.
        scale_target: how much of it a pod is to have: requests at once, or a second; per cent of CPU or memory.
        canary: per cent of the requests that new versions get, until it is applied without.
    """

    kserve: str | None = None
    min_replicas: int = 1
    max_replicas: int = 1
    scale_metric: Literal["concurrency", "rps", "cpu", "memory"] | None = None
    scale_target: int | None = None
    canary: int | None = None

    def service(self) -> KServe | None:
        """Return the same as :mod:`normdeploy.serving` takes it; None where it was not asked for."""
        from normdeploy.serving.kserve import KServe

        options = {name: value for name, value in vars(self).items() if name != "kserve"}
        if self.kserve is not None:
            return KServe(storage=self.kserve, **options)
        if given := [name for name, value in options.items() if value != getattr(KServeOptions, name)]:
            option = f"--{given[0].replace('_', '-')}"
            raise InputError("only KServe is told that", where=option, fix="give --kserve URI too, or leave it out")
        return None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Talk:
    """How the command talks.

    Attributes:
        json: print one JSON document.
        verbose: show warnings of torch and other libraries.
        debug: show the traceback of an error.
    """

    json: bool = False
    verbose: bool = False
    debug: bool = False


def criteria(k: float | None, floor_eps: float | None) -> Criteria:
    """Return parity's criteria, their own defaults where nothing is given."""
    from normdeploy.parity.verdict import Criteria

    given = {"k": k, "floor_eps": floor_eps}
    return Criteria(**{name: value for name, value in given.items() if value is not None})


def share(text: str) -> float:
    """Return ``5%`` as 0.05; InputError for what is no share."""
    number = _amount(text.strip().removesuffix("%"))
    if text.strip().endswith("%") and number is not None:
        return number / 100
    raise InputError("no share that a latency may grow by", where=f"--fail-above {text}", fix="write e.g. 5%")


_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def byte_count(text: str) -> int:
    """Return how many bytes ``500MB`` are; InputError for what is no amount of memory."""
    number = text.strip().upper().rstrip("BKMGT")
    unit, amount = text.strip().upper()[len(number) :], _amount(number.strip())
    if unit in _UNITS and amount:
        return int(amount * _UNITS[unit])
    raise InputError("no such amount of memory", where=f"--max-memory {text}", fix="write e.g. 500MB or 2GB")


def _amount(text: str) -> float | None:
    """Return the number that digits, one point among them, spell; None for others, and for one beyond 64 bits."""
    number = float(text) if text.replace(".", "", 1).isdecimal() else math.inf
    return number if number < 1 << 63 else None


def counts(text: str, option: str) -> list[int]:
    """Return the whole numbers of ``1,8,64``; InputError for others."""
    numbers = [whole_number(part) for part in listed(text)]
    if not all(numbers):
        raise InputError("no whole numbers of 1 or more", where=f"{option} {text}", fix=f"write e.g. {option} 1,8,64")
    return [number for number in numbers if number]


def listed(text: str) -> tuple[str, ...]:
    """Return the parts of ``86,89,120``."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def named(arguments: Sequence[str], option: str) -> dict[str, str]:
    """Return the NAME=VALUE texts of ``option`` as a mapping; InputError for other texts and for a name given twice."""
    found: dict[str, str] = {}
    for text in arguments:
        name, equals, value = text.partition("=")
        if not (equals and name.replace(".", "_").isidentifier()) or name in found:
            what = f"{name!r} is given twice" if name in found else "an argument that has no name"
            raise InputError(what, where=f"{option} {text}", fix=f"write {option} NAME=VALUE, each name once")
        found[name] = value
    return found
