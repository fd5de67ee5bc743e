"""The process that :class:`normdeploy.runtime.isolated.IsolatedRunner` asks: one session, a request a line."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from normdeploy import limits
from normdeploy.errors import NormdeployError
from normdeploy.runtime.isolated import _load, _save
from normdeploy.runtime.onnxruntime import OnnxRuntimeRunner
from normdeploy.runtime.placement import from_json


def main() -> None:
    """Answer until the input ends; what libraries print goes to stderr."""
    limits.to_what_is_free()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    runner: OnnxRuntimeRunner | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "open" in request:
                runner = _opened(request)
                answer: dict[str, Any] = {"inputs": runner.inputs, "outputs": runner.outputs, "notes": runner.notes}
            elif runner is not None:
                answer = {"dtypes": _run(runner)}
        except NormdeployError as error:
            kind = next(each.__name__ for each in type(error).__mro__ if each.__module__ == "normdeploy.errors")
            answer = {"error": [kind, error.what, error.where, error.fix]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _opened(request: dict[str, Any]) -> OnnxRuntimeRunner:
    from_json(request["placement"]).set_tf32()
    return OnnxRuntimeRunner(
        Path(request["open"]),
        threads=request["threads"],
        placement=from_json(request["placement"]),
        options=request["options"],
        where=request["where"],
    )


def _run(runner: OnnxRuntimeRunner) -> list[str]:
    dtypes = json.loads(Path("in/dtypes.json").read_text())
    outputs = runner(dict(zip(runner.inputs, _load(Path("in"), dtypes), strict=True)))
    return _save(Path("out"), [outputs[name] for name in runner.outputs])


if __name__ == "__main__":
    main()
