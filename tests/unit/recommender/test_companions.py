from __future__ import annotations

import numpy as np
import pytest
from checkerboard import checkerboard, with_companions

from recommender.companions import Companions


@pytest.fixture
def companions() -> Companions:
    """Companion "x" is no item; "i0003" and "i0007" are items of the shop, the last one new."""
    pairs = [(0, "x"), (1, "x"), (2, "x"), (0, "i0003"), (1, "i0007"), (2, "i0007"), (4, "lonely")]
    return Companions.of(with_companions(checkerboard(n_items=8, n_new=1, n_history=1, n_users=8), pairs))


def lists(companions: Companions, known: list[bool]) -> list[list[int]]:
    baskets = companions.among(np.array(known))
    assert baskets.shape[1] == 8
    assert set(baskets.data) <= {1}
    return [sorted(row.tolist()) for row in np.split(baskets.indices, baskets.indptr[1:-1])]


def test_a_basket_holds_what_is_bought_with_the_companion_and_the_companion_itself(companions: Companions) -> None:
    assert lists(companions, [True] * 8) == [[0, 1, 2], [0, 3], [1, 2, 7]]


def test_of_new_items_nothing_is_heard(companions: Companions) -> None:
    assert lists(companions, [True] * 7 + [False]) == [[0, 1, 2], [0, 3]], "the basket of a new companion goes too"
    assert lists(companions, [True, True, False, False, True, True, True, False]) == [[0, 1]]


def test_what_goes_with_anything_says_nothing(companions: Companions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recommender.companions._LARGEST", 2)
    assert lists(companions, [True] * 7 + [False]) == [[0, 3]]


def test_a_shop_without_lists_has_no_baskets() -> None:
    assert Companions.of(checkerboard()).among(np.ones(80, dtype=bool)).shape == (0, 80)
