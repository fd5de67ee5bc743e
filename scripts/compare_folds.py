"""Folds the same graphs with two checkouts and compares models and ledgers byte for byte: what a move may not change.

    .venv/bin/python scripts/compare_folds.py ../before --graphs 20000 --table

draws random graphs as scripts/fuzz_fold.py does, adds the table of scripts/compare_peers.py, and lets each checkout
fold all of them in a process of its own, at the levels off and centre. Prints how many differ, and some of them as ONNX
text with what the ledgers say; exit code 1 where any does. Models are compared byte for byte, but for their ledgers.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx

HERE = Path(__file__).parent.parent
LEVELS = ("off", "centre")
FOLDING = """
import hashlib, json, pathlib, sys
import onnx, onnx_ir as ir
import normdeploy
assert pathlib.Path(normdeploy.__file__).is_relative_to(sys.argv[1]), normdeploy.__file__
for path in sorted(pathlib.Path(sys.argv[2]).glob("*.onnx")):
    model, told = onnx.load(path), []
    for level in sys.argv[3].split():
        try:
            result = normdeploy.fold(model, layernorm=level)
            ledger = [*result.ledger, *result.ledger.notes, *result.ledger.dropped]
            del result.model.metadata_props["normdeploy.ledger"]
            digest = hashlib.sha256(ir.to_proto(result.model).SerializeToString(deterministic=True)).hexdigest()
            told.append((digest, [*map(str, ledger)]))
        except Exception as error:
            told.append(("", [f"{type(error).__name__}: {error}"]))
    print(json.dumps(told))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--graphs", type=int, default=2000, help="how many random graphs (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first block (default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="also the graphs of scripts/compare_peers.py")
    parser.add_argument("--show", type=int, default=2, help="how many that differ to show (default: %(default)s)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="normdeploy-folds-") as folder:
        paths = []
        for index, model in enumerate(_models(asked)):
            paths.append(Path(folder) / f"{index:06d}.onnx")
            onnx.save(model, paths[-1])
        sides = [_folded(checkout.resolve(), folder) for checkout in (asked.before, HERE)]
        pairs = [(json.loads(before), json.loads(after)) for before, after in zip(*sides, strict=True)]
        models = [i for i, (old, new) in enumerate(pairs) if [m for m, _ in old] != [m for m, _ in new]]
        ledgers = [i for i, (old, new) in enumerate(pairs) if old != new and i not in models]
        levels = " and ".join(LEVELS)
        print(f"{len(paths)} graphs at the levels {levels}: {len(models)} models differ, {len(ledgers)} ledgers alone")
        for index in [*models, *ledgers][: asked.show]:
            print(onnx.printer.to_text(onnx.load(paths[index])))
            old, new = ([line for told in side for line in told[1]] for side in pairs[index])
            print(*difflib.unified_diff(old, new), sep="\n")
    return int(bool(models or ledgers))


def _models(asked: argparse.Namespace) -> Iterator[onnx.ModelProto]:
    sys.path[:0] = [str(HERE / place) for place in ("tests/fold/fuzz", "tests/fold", "tests", "scripts")]
    from runs import each_case  # type: ignore[import-not-found]  # mypy does not look into the tests

    drawn: list[onnx.ModelProto] = []
    for block, first in enumerate(range(0, asked.graphs, 500)):
        each_case(asked.seed + block, min(500, asked.graphs - first), lambda case: drawn.append(case.given))
    yield from drawn
    if asked.table:
        from peers.table import graphs

        yield from (graph.model for graph in graphs())


def _folded(checkout: Path, folder: str) -> list[str]:
    """Return a line of JSON a graph: the model's digest and what the ledger says, at each level."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", FOLDING, str(checkout), folder, " ".join(LEVELS)]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.splitlines()


if __name__ == "__main__":
    sys.exit(main())
