from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import pytest
from report_samples import error, make, measurement, verdict

from normdeploy.errors import InputError
from normdeploy.report.schema import Report, read, schema


def strict(text: str) -> Any:
    """JSON as the standard has it: NaN and Infinity are no numbers there, though Python reads them."""

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def violations(value: Any, rule: dict[str, Any], root: dict[str, Any], where: str = "$") -> list[str]:
    """Where ``value`` breaks the JSON schema ``rule``; a keyword that this does not know is a violation too."""
    if "type" in rule and not is_type(value, rule["type"]):
        return [f"{where}: {value!r} is no {rule['type']}"]
    found = []
    for keyword, wanted in rule.items():
        match keyword:
            case "$ref":
                found += violations(value, root["$defs"][wanted.removeprefix("#/$defs/")], root, where)
            case "anyOf":
                if all(violations(value, each, root, where) for each in wanted):
                    found.append(f"{where}: none of {wanted}")
            case "enum" | "const":
                if value not in (wanted if keyword == "enum" else [wanted]):
                    found.append(f"{where}: {value!r} is not {wanted}")
            case "required":
                found += [f"{where}: lacks {name}" for name in wanted if name not in value]
            case "properties":
                for name, each in wanted.items():
                    if name in value:
                        found += violations(value[name], each, root, f"{where}.{name}")
            case "additionalProperties":
                for name in value.keys() - rule.get("properties", {}).keys():
                    found += [f"{where}: {name}"] if wanted is False else violations(value[name], wanted, root, where)
            case "items":
                for item in value:
                    found += violations(item, wanted, root, f"{where}[]")
            case "type" | "title" | "description" | "default" | "format" | "$defs":
                pass
            case _:
                found.append(f"{where}: unknown keyword {keyword}")
    return found


def is_type(value: Any, name: str) -> bool:
    types = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int}
    if name == "number":
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, types[name]) and not (name == "integer" and isinstance(value, bool))


def test_a_written_report_reads_back_as_it_was(report: Report) -> None:
    assert read(Report, report.to_json(), where="report.json") == report


def test_what_is_missing_reads_back_as_missing() -> None:
    report = make()
    assert read(Report, report.to_json(), where="report.json") == report
    assert report.parity is None
    assert report.latency is None


def test_floats_that_json_lacks_survive() -> None:
    report = make(parity=verdict(measurement("boxes", error(1e-7, math.nan), error(math.inf, -math.inf))))
    text = report.to_json()
    back = read(Report, json.dumps(strict(text)), where="report.json")
    assert back.parity is not None
    last = back.parity.judgements[-1]
    assert (last.measurement.deployed.rms, last.measurement.deployed.max) == (math.inf, -math.inf)
    assert math.isnan(last.measurement.eager.max)
    assert last.smallest_k == math.inf
    assert back.to_json() == text


def test_a_report_keeps_to_the_published_schema(report: Report) -> None:
    published = schema()
    odd = make(parity=verdict(measurement("boxes", error(1e-7, math.nan), error(math.inf, -math.inf))))
    for each in (report, make(), odd):
        assert violations(strict(each.to_json()), published, published) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["opset"], "20"),
        (["norms_before", "BatchNormalization"], None),
        (["parity", "judgements", 0, "bound_rms"], "nan"),
        (["parity", "judgements", 0, "measurement", "reference"], "float32"),
        (["ledger", "entries", 0, "outcome"], "vanished"),
        (["latency_by_batch", "64", "ratio"], None),
        (["surprise"], 1),
    ],
)
def test_the_published_schema_refuses(report: Report, path: list[Any], value: Any) -> None:
    raw = strict(report.to_json())
    place = raw
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert violations(raw, schema(), schema()) != []


def test_a_newer_report_is_named_as_such(report: Report) -> None:
    raw = strict(report.to_json()) | {"schema_version": 4, **{f"new_{i}": i for i in range(9)}}
    with pytest.raises(InputError, match=r"reads: schema_version .*and 5 more") as caught:
        read(Report, json.dumps(raw), where="out/report.json")
    assert caught.value.where == "out/report.json"


@pytest.mark.parametrize("text", ["", "[]", "null", "{", b"\xff\xfe", "NaN", "[" * 100_000, '{"factory": "\\ud800"}'])
def test_other_text_is_refused(text: str | bytes) -> None:
    with pytest.raises(InputError, match="not a report"):
        read(Report, text, where="report.json")


def test_what_a_message_quotes_cannot_steer_the_terminal(report: Report) -> None:
    raw = strict(report.to_json()) | {"\x1b[2J": 1}
    with pytest.raises(InputError) as caught:
        read(Report, json.dumps(raw), where="report.json")
    assert "\x1b" not in str(caught.value)


def test_the_schema_comes_without_torch() -> None:
    program = "import sys; from normdeploy.report.schema import schema; schema(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
