"""The options that scripts which measure networks by name share."""

from __future__ import annotations

import argparse
from collections.abc import Iterable


def options(description: str | None, networks: Iterable[str]) -> argparse.ArgumentParser:
    """Return a parser with ``--net``, any of ``networks`` and all of them by default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = list(networks)
    parser.add_argument("--net", nargs="+", choices=known, default=known)
    return parser
