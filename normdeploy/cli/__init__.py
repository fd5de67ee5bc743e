"""The command line: one function a command, which parses, calls and prints; they stand in the rooms beside.

Results go to stdout, progress and messages to stderr. Exit codes: 0 done and the verdict passed, 1 the verdict failed,
2 usage or unreadable input, 3 this machine cannot, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter

from normdeploy.cli import judging, making, serving
from normdeploy.cli.config import ExportConfig
from normdeploy.cli.guard import Guard, require_folder
from normdeploy.errors import InputError


def _version() -> str:
    from importlib.metadata import version

    return version("normdeploy")


def _shown(default: object) -> str | None:
    """Return a default as the help shows it; nothing for an option that is off."""
    return None if default is None or default is False or default in ((), "") else str(default)


app = App(
    name="normdeploy",
    help="Makes trained PyTorch networks deployable: norms folded away, parity proven, bundle delivered.",
    help_format="plaintext",
    version=_version,
    default_parameter=Parameter(negative=(), show_default=_shown),
    config=ExportConfig(),
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
)


for _command in (
    making.export,
    making.export_all,
    making.fold,
    making.build,
    making.calibrate,
    making.doctor,
    making.init,
    judging.verify,
    judging.bisect,
    judging.judge,
    judging.bench,
    judging.explain,
    judging.report,
    serving.inspect,
    serving.package,
    serving.serve,
    serving.check,
):
    app.command(_command)


def main(arguments: Sequence[str] | None = None, *, ends: bool = False) -> int:
    """Run the command that ``arguments`` (the process's own by default) spell, and return its exit code.

    Where the process ``ends`` with it, a Ctrl-C after the command is ignored.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    with Guard(debug="--debug" in given, ends=ends) as guard:
        require_folder()
        try:
            guard.code = app(given) or 0
        except CycloptsError as error:  # in words of its own, and with names of anyone's in it
            raise _in_our_words(error) from error
    return guard.code


def _in_our_words(error: CycloptsError) -> InputError:
    command = " ".join(("normdeploy", *(error.command_chain or ())))
    argument = error.argument
    if isinstance(error, MissingArgumentError) and argument is not None and not (error.keyword or argument.tokens):
        name = argument.name
        return InputError(f"{name} is missing", where=command, fix=f"see {command} --help, and give {name}")
    return InputError(" ".join(str(error).split()), fix=f"see {command} --help")


@app.command
def completion(shell: Literal["bash", "zsh", "fish"], /) -> int:
    """Print the script that lets a shell complete normdeploy's commands and options.

    Args:
        shell: the shell, which should run the script when it starts.
    """
    print(app.generate_completion(prog_name="normdeploy", shell=shell))
    return 0
