"""The InferenceService that ``package --kserve`` writes, held to the schema that KServe's own SDK has."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from normdeploy.cli import main
from normdeploy.errors import InputError
from normdeploy.serving.kserve import KServe, check_kserve, inference_service
from normdeploy.serving.repository import package

SCHEMA = json.loads((files("normdeploy.serving") / "data" / "kserve_inference_service.json").read_text())
OPTIONS = ["--max-replicas", "4", "--scale-metric", "concurrency", "--scale-target", "8", "--canary", "10"]
KINDS = {"object": dict, "string": str, "integer": int, "boolean": bool, "array": list}


def problems(value: Any, schema: dict[str, Any], at: str = "") -> list[str]:
    """What ``value`` has that the schema does not allow, of the words that the schema is written in."""
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    kind = KINDS.get(schema.get("type", ""), object)
    if not isinstance(value, kind):
        return [f"{at} is no {schema['type']}"]
    if not isinstance(value, dict):
        return []
    known, other = schema.get("properties", {}), schema.get("additionalProperties", {})
    found = [f"{at}.{name} is missing" for name in schema.get("required", ()) if name not in value]
    for name, each in value.items():
        if name not in known and other is False:
            found.append(f"{at}.{name} is not known")
        else:
            found += problems(each, known.get(name, other), f"{at}.{name}")
    return found


def read_yaml(text: str) -> dict[str, Any]:
    """The mapping of mappings in ``text``, two spaces a level, whose scalars are JSON."""
    root: dict[str, Any] = {}
    stack = [root]
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        match = re.fullmatch(r'((?:  )*)("[^"]+"|[A-Za-z]\w*):(?: (.+))?', line)
        assert match, line
        del stack[len(match[1]) // 2 + 1 :]
        key = json.loads(match[2]) if match[2].startswith('"') else match[2]
        if match[3] is None:
            stack[-1][key] = {}
            stack.append(stack[-1][key])
        else:
            stack[-1][key] = json.loads(match[3])
    return root


def test_the_schema_knows_what_is_wrong() -> None:
    good = inference_service("repo", {"net": 1}, 1, KServe(storage="pvc://m/r"))
    assert problems(good, SCHEMA) == []
    assert problems({**good, "kinds": 1}, SCHEMA) == [".kinds is not known"]
    assert problems({**good, "spec": {}}, SCHEMA) == [".spec.predictor is missing"]
    good["spec"]["predictor"]["minReplicas"] = "1"
    del good["spec"]["predictor"]["model"]["modelFormat"]
    found = problems(good, SCHEMA)
    assert found == [".spec.predictor.minReplicas is no integer", ".spec.predictor.model.modelFormat is missing"]


def test_a_repository_gets_its_service(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = tmp_path / "My models"
    command = ["package", str(small), "-o", str(repository), "--kserve", "pvc://claim/models", *OPTIONS]
    assert main(command) == 0, capsys.readouterr().err
    assert main(command) == 0
    document = read_yaml((repository / "inferenceservice.yaml").read_text())
    assert problems(document, SCHEMA) == []
    assert document["metadata"] == {"name": "my-models"}
    predictor = document["spec"]["predictor"]
    assert predictor["annotations"] == {"normdeploy/versions": "small=2"}
    assert (predictor["minReplicas"], predictor["maxReplicas"], predictor["canaryTrafficPercent"]) == (1, 4, 10)
    assert (predictor["scaleMetric"], predictor["scaleTarget"]) == ("concurrency", 8)
    assert predictor["model"]["storageUri"] == "pvc://claim/models"
    assert "nvidia.com/gpu" not in predictor["model"]["resources"]["limits"]


def test_gpus_and_memory_are_asked_for() -> None:
    found = inference_service("9", {"net": 1}, 1 << 30, KServe(storage="s3://b/r"), gpus=2)
    resources = found["spec"]["predictor"]["model"]["resources"]
    assert resources["limits"] == {"memory": "3584Mi", "nvidia.com/gpu": "2"}
    assert found["metadata"]["name"] == "models-9"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"storage": "models"}, "no place"),
        ({"min_replicas": 3, "max_replicas": 2}, "no range"),
        ({"min_replicas": -1}, "no range"),
        ({"min_replicas": 0, "max_replicas": 0}, "no range"),
        ({"scale_metric": "rps"}, "go together"),
        ({"scale_target": 8}, "go together"),
        ({"scale_metric": "rps", "scale_target": 0}, "go together"),
        ({"canary": 101}, "no share"),
    ],
)
def test_what_no_cluster_can_be_asked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_kserve(KServe(**{"storage": "pvc://m/r", **options}))


def test_a_file_of_somebody_else_stays(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "inferenceservice.yaml").write_text("mine")
    with pytest.raises(InputError, match="not one that normdeploy wrote"):
        package([small], tmp_path, kserve=KServe(storage="pvc://m/r"))
    assert (tmp_path / "inferenceservice.yaml").read_text() == "mine"
    assert main(["package", str(small), "-o", str(tmp_path / "r"), "--canary", "10"]) == 2
    assert "give --kserve URI too" in capsys.readouterr().err
