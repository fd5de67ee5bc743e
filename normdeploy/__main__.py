"""The process of the command line: ``normdeploy``, or ``python -m normdeploy``."""

import sys  # and nothing that Python has not loaded by itself: the current folder may still be on the path


def main() -> int:
    """Run the command line on the process's own arguments, and return its exit code.

    A Ctrl-C while it is still being imported, or just ends, is no traceback, and one after it has ended comes too late.
    """
    try:
        from normdeploy.cli import main as command

        return command(ends=True)
    except KeyboardInterrupt:
        disk = sys.modules.get("normdeploy.disk")
        names = ", ".join(map(str, disk.WRITTEN)) if disk else ""
        told = f"before that {names} was written, whole" if names else "nothing was written"
        print(f"interrupted; {told}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the current folder, which can be someone else's: only --app-dir puts a folder there
    sys.exit(main())
