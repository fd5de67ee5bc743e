"""The README.md of a repository: the exact lines that serve it, from the laptop to Kubernetes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from normdeploy.serving.schema import parse_config

README = "README.md"
IMAGE = "nvcr.io/nvidia/tritonserver:24.10-py3"
"""Of the Triton that normdeploy serve runs, 2.51.0."""
_MARK = "<!-- normdeploy package writes this file -->"


def is_ours(path: Path) -> bool:
    """Return True if ``path`` may be written: nothing is there, or what normdeploy wrote there before."""
    try:
        return path.read_text(encoding="utf-8").startswith(_MARK)
    except FileNotFoundError:
        return True
    except (OSError, UnicodeError):
        return False


def readme(repository: Path, models: Sequence[str]) -> str:
    """Return the README of ``repository``, which holds ``models``."""
    configs = {name: parse_config((repository / name / "config.pbtxt").read_text(encoding="utf-8")) for name in models}
    gpus = any(group.kind == group.KIND_GPU for config in configs.values() for group in config.instance_group)
    environment = Environment(
        loader=PackageLoader("normdeploy.serving", "data"), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template("README.md.j2").render(
        mark=_MARK, configs=configs, image=IMAGE, gpus=gpus, folder=shlex.quote(repository.name)
    )
