from __future__ import annotations

import pytest

from normdeploy.engine.profiles import covering, profile
from normdeploy.errors import InputError
from normdeploy.specs import parse

SMALL = profile(parse(["ids:B=1..2..4xT=8..16..32@i64[0..9]", "mask:BxT@i64[0..1]"]))
LARGE = profile(parse(["ids:B=1..32..64xT=8..32..32@i64[0..9]", "mask:BxT@i64[0..1]"]))

FIXED = profile(parse(["ids:8x64@i64[0..9]", "mask:8x64@i64[0..1]"]))


def test_shared_dimensions_move_together() -> None:
    assert SMALL["ids"] == SMALL["mask"]
    assert (SMALL["ids"].min, SMALL["ids"].opt, SMALL["ids"].max) == ((1, 8), (2, 16), (4, 32))
    assert str(SMALL["ids"]) == "1..2..4x8..16..32"
    assert str(profile(parse(["x:3x1..2x5", "s:[]"]))["x"]) == "3x1..1..2x5"
    assert profile(parse(["s:[]"]))["s"].covers(())


@pytest.mark.parametrize(("shape", "index"), [((1, 8), 0), ((4, 32), 0), ((5, 8), 1), ((64, 32), 1)])
def test_the_profile_that_covers_and_is_closest_is_taken(shape: tuple[int, int], index: int) -> None:
    assert covering([SMALL, LARGE], {"ids": shape, "mask": shape}) == index
    assert covering([LARGE, SMALL], {"ids": shape, "mask": shape}) == 1 - index


@pytest.mark.parametrize("shape", [(65, 8), (1, 7), (0, 8), (1, 8, 1), (33, 33)])
def test_a_shape_that_no_profile_covers_is_refused_with_the_ranges(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as caught:
        covering([SMALL, LARGE], {"ids": shape, "mask": (1, 8)})
    for part in (f"ids {list(shape)}", "ids 1..2..4x8..16..32", "1..32..64x8..32..32", "build again with wider"):
        assert part in str(caught.value)


def test_every_input_must_fit_the_same_profile() -> None:
    with pytest.raises(InputError, match="no profile"):
        covering(
            [SMALL, profile(parse(["ids:8x64@i64[0..9]", "mask:8x64@i64[0..1]"]))], {"ids": (8, 64), "mask": (1, 8)}
        )
