"""``python -m normdeploy``: the command line, without the current folder that Python puts on the import path."""

import sys


def main() -> int:
    """Run the command line on the process's own arguments, and return its exit code."""
    if not sys.flags.safe_path:
        del sys.path[0]  # it can be someone else's: only --app-dir puts a folder there
    from normdeploy.cli import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
