"""What the tests of the whole length share: the digits networks on the command line, and a folder's content."""

from __future__ import annotations

from pathlib import Path

from normdeploy.fold import Entry

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "models" / "digits_resnet.safetensors"
SPEC = "x:N=1..1..64x1x8x8@f32"
RESNET = "models.digits:resnet"
VIT = "models.digits:vit"
VIT_WEIGHTS = ROOT / "models" / "digits_vit.safetensors"
EAGER = ["--app-dir", str(ROOT), "--model", RESNET, "--weights", str(WEIGHTS)]
VIT_EAGER = ["--app-dir", str(ROOT), "--model", VIT, "--weights", str(VIT_WEIGHTS)]


def tree(folder: Path) -> dict[str, bytes]:
    """Relative name → content of every file below ``folder``."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def says(entry: Entry, expected: str) -> bool:
    """Return True if ``entry`` has the code that ``expected`` begins with, and names the node that may follow it."""
    code, _, node = expected.partition(" ")
    return code in entry.codes and node in entry.reason
