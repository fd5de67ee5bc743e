"""Make the JSON schema of KServe's InferenceService that this package ships, from the models of KServe's Python SDK.

::

    pip download --no-deps kserve==0.21.0 && unzip -q kserve-0.21.0-py3-none-any.whl -d kserve-sdk
    python scripts/kserve_schema.py kserve-sdk/kserve/models > normdeploy/serving/data/kserve_inference_service.json

The SDK's models are generated from the Go types that the CRD is generated from; the CRD itself is in no package. What
is Kubernetes' own is any object here. The models are read, not run.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

KINDS = {
    "V1beta1InferenceService": "v1beta1_inference_service.py",
    "V1beta1InferenceServiceSpec": "v1beta1_inference_service_spec.py",
    "V1beta1PredictorSpec": "v1beta1_predictor_spec.py",
    "V1beta1ModelSpec": "v1beta1_model_spec.py",
    "V1beta1ModelFormat": "v1beta1_model_format.py",
}
PLAIN = {"str": "string", "int": "integer", "bool": "boolean", "float": "number"}
COMMENT = "of the models of kserve 0.21.0 (Apache-2.0), by scripts/kserve_schema.py"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    folder = parser.parse_args().models
    definitions = {kind: schema((folder / file).read_text()) for kind, file in KINDS.items()}
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": COMMENT,
        "$ref": "#/$defs/V1beta1InferenceService",
        "$defs": definitions,
    }
    print(json.dumps(document, indent=1, sort_keys=True))
    return 0


def schema(source: str) -> dict[str, Any]:
    """Return the schema of the one model in ``source``."""
    found = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and node.targets[0].id in ("openapi_types", "attribute_map")
    }
    names = found["attribute_map"]
    required = [names[name] for name in re.findall(r"Invalid value for `(\w+)`, must not be `None`", source)]
    properties = {names[name]: kind_of(kind) for name, kind in found["openapi_types"].items()}
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "required": sorted({*required}),
    }


def kind_of(kind: str) -> dict[str, Any]:
    """Return the schema of a type as the SDK spells it: ``list[V1Container]``, ``dict(str, str)``."""
    if kind in PLAIN:
        return {"type": PLAIN[kind]}
    if kind in KINDS:
        return {"$ref": f"#/$defs/{kind}"}
    if kind.startswith("list["):
        return {"type": "array", "items": kind_of(kind[5:-1])}
    if kind.startswith("dict("):
        return {"type": "object", "additionalProperties": kind_of(kind[5:-1].partition(", ")[2])}
    return {} if kind in ("object", "ResourceQuantity") else {"type": "object"}


if __name__ == "__main__":
    sys.exit(main())
