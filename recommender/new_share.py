"""``boost_for``: how far new items are preferred when lists are chosen, for the share of slots that a shop sets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy import sparse

    from recommender.ranker import Ranker

_N_SAMPLE: Final = 256
_MOST: Final = 1000.0
"""Log odds: more than lies between two items, and so little that float32 still tells scores apart beside it."""


def boost_for(
    ranker: Ranker,
    histories: sparse.csr_array,
    *,
    k: int,
    new_share: float,
    is_new: NDArray[np.bool_],
) -> float:
    """The log odds to be added to new items when lists are chosen, for ``new_share`` of the slots of these histories.

    A list's j-th new item is in it where its score and the boost beat the known item that it would push out, the
    (k + 1 - j)-th: so every new slot has its own least boost, and the one that gives the share is a quantile of those.
    Of several that give it, the one nearest 0 is taken: choices move no farther than the share asks.

    Args:
        ranker: ranks all items.
        histories: of the shop's customers, shape (B, I), always the same ones; 256 of them, evenly spaced, are ranked.
        k: list length.
        new_share: from 0 (new items only fill what known ones leave empty) to 1 (the other way round).
        is_new: the items that count as new, shape (I,).
    """
    if not 0 < new_share < 1:
        return _MOST if new_share else -_MOST
    n = histories.shape[0]
    picked = np.linspace(0, n - 1, min(n, _N_SAMPLE)).astype(np.int64)
    new, known = ranker.highest(histories[picked], k=k, of=(is_new, ~is_new))
    there = np.isfinite(new)
    n_slots = np.minimum(there.sum(axis=1) + np.isfinite(known).sum(axis=1), k).sum()
    least = (known[:, ::-1][there] - new[there]).astype(np.float64)
    # -inf: the list is not full without this new item, so that it is in it whatever the boost.
    wanted = max(0, round(new_share * n_slots) - int(np.isneginf(least).sum()))
    ascending = np.concatenate([[-np.inf], np.sort(least[np.isfinite(least)]), [np.inf]])
    above, below = ascending[min(wanted, len(ascending) - 2) :][:2]
    if above < 0 < below:
        return 0.0
    if np.isfinite(above) and np.isfinite(below):
        return float((above + below) / 2)
    return float(above + 1 if np.isfinite(above) else below - 1)
