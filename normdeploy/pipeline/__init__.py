"""The whole length of the house, one verb a file: each takes files and names, and calls the rooms in turn."""

from normdeploy.pipeline.compare import bench, verify
from normdeploy.pipeline.deploy import export
from normdeploy.pipeline.engines import build
from normdeploy.pipeline.files import fold_file, ledger_of, report_of
from normdeploy.pipeline.init import init
from normdeploy.pipeline.judge import ParityError, judge_again
from normdeploy.pipeline.source import Progress, Source

__all__ = [
    "ParityError",
    "Progress",
    "Source",
    "bench",
    "build",
    "export",
    "fold_file",
    "init",
    "judge_again",
    "ledger_of",
    "report_of",
    "verify",
]
