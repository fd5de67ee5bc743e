"""The schema of Triton's config that is shipped is the one that tritonclient has."""

from __future__ import annotations

import subprocess
from importlib.resources import files
from pathlib import Path

import pytest

from normdeploy.serving.schema import SCHEMA, new_config, number_of


@pytest.mark.xdist_group("triton")
def test_it_is_that_of_tritonclient(triton: Path) -> None:
    module = "tritonclient.grpc.model_config_pb2"
    code = f"import sys, {module} as found; sys.stdout.buffer.write(found.DESCRIPTOR.serialized_pb)"
    done = subprocess.run([triton / "bin" / "python", "-I", "-c", code], capture_output=True, check=True)
    assert done.stdout == (files("normdeploy.serving") / "data" / SCHEMA).read_bytes()


def test_it_knows_its_enums_and_no_others() -> None:
    config = new_config()
    assert number_of(config, "DataType", "TYPE_FP32") == 11
    with pytest.raises(KeyError):
        number_of(config, "DataType", "TYPE_FP128")
