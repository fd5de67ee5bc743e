from __future__ import annotations

import subprocess
import sys

import pytest

from normdeploy.errors import InputError, NormdeployError, UnavailableError, VerdictError, listed


@pytest.mark.parametrize(("error", "code"), [(VerdictError, 1), (InputError, 2), (UnavailableError, 3)])
def test_each_error_has_its_exit_code(error: type[NormdeployError], code: int) -> None:
    assert error("no").exit_code == code
    assert issubclass(error, NormdeployError)


def test_an_error_says_what_where_and_how_to_fix_it() -> None:
    error = InputError("it is bad", where="there", fix="make it good")
    assert str(error) == "it is bad\n  where: there\n  fix: make it good"
    assert (error.what, error.where, error.fix) == ("it is bad", "there", "make it good")
    assert error.args == (str(error),), "a traceback shows the same text"


def test_what_is_not_known_is_left_out() -> None:
    assert str(InputError("it is bad")) == "it is bad"
    assert str(InputError("it is bad", fix="make it good")) == "it is bad\n  fix: make it good"


@pytest.mark.parametrize("foreign", ["x" * 1_000_000, "\x1b" * 1_000_000, "one line\n" * 100_000])
def test_of_words_that_have_no_end_a_page_is_shown(foreign: str) -> None:
    error = InputError(f"it says {foreign}", where=foreign, fix=f"correct {foreign}")
    for part, start in ((error.what, "it says "), (error.where, ""), (error.fix, "correct ")):
        assert part.startswith(start)
        assert "characters in all)" in part
        assert len(part) < 5000
    assert len(str(InputError("no", where="y" * 3000))) < 1100


def test_a_page_of_short_lines_is_shown_whole() -> None:
    told = "\n".join(f"{number}: a norm" for number in range(200))
    assert InputError(told).what == told


@pytest.mark.parametrize(
    ("most", "by", "told"),
    [
        (3, ", ", "1, 2, 3"),
        (2, ", ", "1, 2 and 1 more"),
        (1, "; ", "1 and 2 more"),
        (2, "\n  ", "1\n  2\n  and 1 more"),
    ],
)
def test_a_list_tells_how_many_more_there_are(most: int, by: str, told: str) -> None:
    assert listed(iter([1, 2, 3]), most, by=by) == told


def test_errors_import_nothing_that_must_be_installed() -> None:
    code = "import sys; before = set(sys.modules); import normdeploy.errors; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    packages = {name.partition(".")[0] for name in done.stdout.split()}
    assert packages - sys.stdlib_module_names == {"normdeploy"}
