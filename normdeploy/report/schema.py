"""The report of one export: what the console and the page render, and what ``report.json`` holds.

The rooms' own frozen dataclasses are embedded as they are, so nothing is said twice. JSON knows no NaN and no infinity:
they are written as the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, and the published schema says so.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from normdeploy.bench.choice import Tuning
from normdeploy.bench.stats import Comparison
from normdeploy.doctor.findings import Finding
from normdeploy.engine.sidecar import Sidecar
from normdeploy.errors import InputError, listed
from normdeploy.fold.ledger import Ledger
from normdeploy.parity.verdict import Verdict

_SHOWN_PROBLEMS = 5


class Document(BaseModel):
    """A file of ours in JSON: no unknown key passes, and every float survives the way out and back."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    schema_version: Literal[1] = 1

    def to_json(self) -> str:
        """Return strict JSON, indented, with a last newline."""
        return self.model_dump_json(indent=2) + "\n"


class Report(Document):
    """Everything that one export found out.

    Version 2: parity has a part for the graph and one for the runtime, and latency a row for the unfolded graph.
    Version 3: in 16 bits the graph is the float32 one, and parity has a part for the rounding; entries and notes of the
    ledger have codes.

    Attributes:
        created: when, with its time zone.
        packages: package name → version, of those that took part.
        factory: ``module:factory`` the module came from.
        weights: the checkpoint's file name; None where the factory brought its own weights.
        weights_sha256: of that file; of several, of the lines that ``sha256sum`` prints for them, by name.
        trusted: file name → sha256 of each file that was allowed to run code when it was loaded.
        inputs: canonical input specs.
        outputs: flattened output names.
        opset: of the ONNX model's default domain.
        precision: dtype the weights are deployed in.
        norms_before: ONNX operator type → number of norms, before the fold.
        norms_after: the same, after it.
        ledger: what became of each norm.
        findings: what the doctor found, see normdeploy doctor.
        parity: the verdict; None where it was not asked for.
        plugin_parity: the verdict on the graph of plugins, which is judged in float64 alone; None where there is none.
        latency: eager against deployed at the usual sizes; None where it was not measured.
        latency_by_batch: the same by the size of the inputs' first dimension, for the sizes that were asked for.
        engine: the TensorRT engine in the bundle, with the table of its layers; None where none was built.
        tuning: the forms that were measured, and which one is deployed; None where the form was given.
        seconds: stage → seconds it took.
        model_args: arguments of the factory, as they were given.
        machine: processor, cores and system.
        command: what makes the bundle again; empty where it was not made from a command line.
        bytes_before: of the weights, before the fold and the choice of a precision.
        bytes_after: of the weights, as deployed.
    """

    schema_version: Literal[3] = 3  # type: ignore[assignment]  # its own, beside that of other documents

    created: datetime
    normdeploy_version: str
    packages: dict[str, str]
    factory: str
    weights: str | None
    weights_sha256: str | None
    inputs: list[str]
    outputs: list[str]
    opset: int
    precision: str
    norms_before: dict[str, int]
    norms_after: dict[str, int]
    ledger: Ledger
    parity: Verdict | None
    plugin_parity: Verdict | None = None
    latency: Comparison | None
    latency_by_batch: dict[Annotated[int, Field(ge=1, lt=1 << 31)], Comparison] = {}
    notes: list[str]
    seconds: dict[str, float]
    engine: Sidecar | None = None
    tuning: Tuning | None = None
    trusted: dict[str, str] = Field(default_factory=dict)
    model_args: dict[str, str] = {}
    machine: str = ""
    command: str = ""
    bytes_before: int = 0
    bytes_after: int = 0
    findings: list[Finding] = []


class _StrictJson(GenerateJsonSchema):
    """A float is a number or one of the three strings that stand for what JSON has no number for."""

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return {"anyOf": [super().float_schema(schema), {"enum": ["NaN", "Infinity", "-Infinity"]}]}


def schema() -> dict[str, Any]:
    """Return the JSON schema of ``report.json``."""
    return Report.model_json_schema(mode="serialization", schema_generator=_StrictJson)


D = TypeVar("D", bound=Document)


def read(kind: type[D], text: str | bytes, *, where: str) -> D:
    """Return the ``kind`` of document that ``text`` holds; InputError at ``where`` for any other text."""
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise InputError(
            f"not a {kind.__name__.lower()} that this normdeploy reads: {_problems(error)}",
            where=where,
            fix="export again, or read it with the normdeploy that wrote it",
        ) from None


def _problems(error: ValidationError) -> str:
    """The first few, the schema version before all others: where that differs, the rest follows from it."""
    found = sorted(
        error.errors(include_url=False, include_input=False), key=lambda problem: problem["loc"] != ("schema_version",)
    )
    texts = [f"{'.'.join(map(str, problem['loc']))} {problem['msg']}".strip() for problem in found]
    return listed((ascii(text)[1:-1] for text in texts), _SHOWN_PROBLEMS, by="; ")
