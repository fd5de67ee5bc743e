"""Install the runtime alone into a fresh environment, and tell its size, and what loading a bundle costs there.

``pip install 'normdeploy[cpu]'`` of this checkout, in a folder that is removed afterwards. The bundle is loaded in five
fresh processes, imports included; the median is told. Nothing of what only export needs may be importable there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
ABSENT = ("torch", "matplotlib", "onnx_ir", "onnxscript", "safetensors", "sympy")
_LOAD = """
import json, resource, sys, time
start = time.perf_counter()
import normdeploy
bundle = normdeploy.load_bundle(sys.argv[1], threads=1)
seconds = time.perf_counter() - start
outputs = bundle(bundle.golden.inputs)
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
cpu = sum(each.ru_utime + each.ru_stime for each in used)
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "cpu": cpu, "mb": int(peak) / 1e3, "outputs": sorted(outputs)}))
"""
_ABSENT = "import importlib.util, sys; sys.exit(any(importlib.util.find_spec(name) for name in sys.argv[1:]))"
RUNS = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        venv = Path(folder) / "venv"
        python = venv / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        pip: list[str] = [
            str(python),
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "-q",
            "-c",
            str(ROOT / "constraints.txt"),
        ]
        subprocess.run([*pip, f"{ROOT}[cpu]"], check=True)
        subprocess.run([python, "-I", "-c", _ABSENT, *ABSENT], check=True)
        sizes = {path.name: size(path) for path in (venv / "lib").glob("python*/site-packages/*")}
        runs = [load(python, given.bundle) for _ in range(RUNS)]
    total = sum(sizes.values())
    largest = sorted(sizes, key=lambda name: -sizes[name])[:6]
    print(f"normdeploy[cpu]: {total / 1e6:.0f} MB, of which " + ", ".join(f"{n} {sizes[n] / 1e6:.0f}" for n in largest))
    seconds, cpu, memory = ([run[key] for run in runs] for key in ("seconds", "cpu", "mb"))
    told = f"{statistics.median(seconds):.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"
    used = f"{statistics.median(cpu):.2f} s of CPU in both processes"
    print(f"loading {given.bundle}: {told}, {used}, {statistics.median(memory):.0f} MB at the peak")
    return 0


def size(path: Path) -> int:
    return sum(each.lstat().st_size for each in (path.rglob("*") if path.is_dir() else [path]) if each.is_file())


def load(python: Path, bundle: Path) -> dict[str, float]:
    done = subprocess.run([python, "-I", "-c", _LOAD, bundle.absolute()], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    sys.exit(main())
