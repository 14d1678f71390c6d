"""The boost of new items on a table of scores, against lists that are made with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from recommender.new_share import boost_for

N_USERS, N_ITEMS, N_NEW = 300, 60, 20
IS_NEW = np.arange(N_ITEMS) >= N_ITEMS - N_NEW


@dataclass
class Ranked:
    item_nums: np.ndarray
    scores: np.ndarray


def rows_of(histories: sparse.csr_array) -> np.ndarray:
    """The customers' numbers: by them the histories of a table are told apart."""
    return histories.data.astype(np.int64) - 1


class Table:
    """Customer ``n`` has the one item ``n % I``; the scores of new items lie ``shift`` above those of the others."""

    def __init__(self, *, shift: float = 0.0, n_items: int = N_ITEMS) -> None:
        scores = np.random.default_rng(0).normal(size=(N_USERS, n_items))
        self._scores = (scores + shift * IS_NEW[:n_items]).astype(np.float32)
        own = (1.0 + np.arange(N_USERS), (np.arange(N_USERS), np.arange(N_USERS) % n_items))
        self.histories = sparse.csr_array(own)
        self.ranked: list[list[int]] = []

    def highest(self, histories: Any, *, k: int, of: Any) -> list[np.ndarray]:
        self.ranked.append(rows_of(histories).tolist())
        return [self.rank(histories, k=k, boost=np.where(shown, 0, -np.inf)).scores for shown in of]

    def rank(self, histories: Any, *, k: int, boost: np.ndarray) -> Ranked:
        scores = self._scores[rows_of(histories)] + boost
        scores[np.arange(len(scores)), histories.indices] = -np.inf
        nums = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        values = np.take_along_axis(scores, nums, axis=1)
        return Ranked(np.where(np.isfinite(values), nums, -1), values)

    def share(self, boost: float, k: int) -> float:
        nums = self.rank(self.histories, k=k, boost=np.float32(boost) * IS_NEW).item_nums
        assert (nums >= 0).all()
        return float(IS_NEW[nums].mean())


def boost(table: Table, new_share: float, k: int = 10, **options: Any) -> float:
    return boost_for(table, table.histories, k=k, new_share=new_share, **{"is_new": IS_NEW, **options})


@pytest.mark.parametrize(
    "shift", [-300.0, -8.0, 0.0, 8.0, 300.0], ids=["far below", "below", "among", "above", "far above"]
)
@pytest.mark.parametrize("new_share", [0.0, 0.05, 0.2, 0.5, 0.9, 1.0])
def test_new_items_get_their_share_wherever_their_scores_lie(shift: float, new_share: float) -> None:
    table = Table(shift=shift)
    assert table.share(boost(table, new_share), 10) == pytest.approx(new_share, abs=0.015)


def test_the_share_of_the_sample_is_exact() -> None:
    table = Table()
    table.histories = table.histories[:256]
    assert table.share(boost(table, 0.3, k=7), 7) == round(0.3 * 256 * 7) / (256 * 7)


def test_of_many_customers_a_fixed_even_sample_is_ranked() -> None:
    table = Table()
    assert boost(table, 0.2) == boost(table, 0.2)
    assert table.ranked[0] == table.ranked[-1]
    assert len(set(table.ranked[0])) == 256
    assert (table.ranked[0][0], table.ranked[0][-1]) == (0, N_USERS - 1)


@pytest.mark.parametrize("k", [25, 59])
def test_a_share_that_cannot_be_had_is_come_close_to(k: int) -> None:
    """20 new and 40 other items: a list of 25 holds at most 20 new ones, one of 59 at least 19."""
    table = Table()
    assert table.share(boost(table, 0.95, k=k), k) == pytest.approx(min(20, k) / k, abs=0.02)
    assert table.share(boost(table, 0.0, k=k), k) == pytest.approx(max(0, k - 40) / k, abs=0.02)


def test_scores_move_no_farther_than_the_share_asks() -> None:
    table = Table()
    as_it_is = table.share(0.0, 10)
    assert abs(boost(table, as_it_is)) < 0.02
    assert -8 < boost(table, 0.02) < 0 < boost(table, 0.9) < 8
    # A list of 59 holds 19 new items whatever their scores: nothing has to be moved for 30 %.
    assert abs(boost(table, 0.3, k=59)) < 4


@pytest.mark.parametrize("n_new", [0, N_ITEMS], ids=["nothing new", "all new"])
def test_a_shop_of_one_kind_gets_a_number_too(n_new: int) -> None:
    found = boost(Table(), 0.2, is_new=np.arange(N_ITEMS) >= N_ITEMS - n_new)
    assert np.isfinite(found)
