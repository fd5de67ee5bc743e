"""A fleet over a local Ray cluster of two workers: what one process exports, and a task that fails stops no other."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from support import ROOT

from normdeploy.bundle.contents import contents

PYTHON = ROOT / ".venv-ray" / "bin" / "python"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not PYTHON.exists(), reason="Ray lies in .venv-ray, which make test-ray makes"),
]
CODE = """
import json, sys
import ray
from ray.cluster_utils import Cluster
from normdeploy.cli import main
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
for _ in range(2):
    cluster.add_node(num_cpus=1)
code = main([*sys.argv[1:], "--ray", cluster.address])
cluster.shutdown()
sys.exit(code)
"""


def test_two_workers_export_a_fleet(tmp_path: Path) -> None:
    model = '[[model]]\nname = "{0}"\nmodel = "models.digits:{0}"\ninput = ["x:N=1..1..64x1x8x8@f32"]\n'
    text = f'[defaults]\napp-dir = "{ROOT}"\nno-bench = true\n'
    (tmp_path / "fleet.toml").write_text(text + "".join(map(model.format, ("conv1d", "resnet", "nobody"))))
    words = ["export-all", tmp_path / "fleet.toml", "-o", tmp_path / "out", "-j", "2", "--json"]
    command = [str(word) for word in (PYTHON, "-c", CODE, *words)]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}

    def run() -> list[dict[str, object]]:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
        assert done.returncode == 2, done.stderr
        rows: list[dict[str, object]] = json.loads(done.stdout)
        return rows

    assert [(row["name"], row["state"]) for row in run()] == [
        ("conv1d", "passed"),
        ("resnet", "passed"),
        ("nobody", "refused"),
    ]
    assert contents(tmp_path / "out" / "resnet").report.norms_after == {}
    assert [row["again"] for row in run()] == [False, False, True]
