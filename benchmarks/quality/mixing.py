"""New and known items in one list: the product's one scale of scores beside ways of merging that need no scale.

All merge the same two rankings at the same share of new items, that of the catalogue, and so each has one number
to be chosen: an offset on the merits of new items, the same for all users. They differ in the merits:

- calibrated: the product's log odds. The offset chooses who is in the list, the log odds alone order it; this is what
  ``recommend --new-share`` does.
- z-norm switching: each user's scores less their mean, over their deviation, among new and among known items by itself.
  Also with the offset choosing alone, as in ours.
- reciprocal-rank fusion: 1 / (60 + rank) among new and among known items (Cormack et al. 2009), with a factor on new
  items. As logarithms here, so that the factor is an offset too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from scipy import sparse

from kg import Workspace
from recommender.engine import current_graph, load_ranker
from recommender.metrics import cold_share, paired_bootstrap, ranking_metrics

if TYPE_CHECKING:
    from cases import Case
    from numpy.typing import NDArray

OURS: Final = "calibrated"
WAYS: Final = {
    OURS: (0, False),
    "z-norm switching": (1, True),
    "z-norm, the offset chooses alone": (1, False),
    "reciprocal-rank fusion": (2, True),
}
"""Way → place of its merits, and whether the offset also orders the lists that it chose."""
_RANK_OFFSET: Final = 60
_USERS_AT_ONCE: Final = 512


def product_scores(case: Case, workspace: Path, users: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    """The trained product's log odds, as rehearsed, of all items for users of the case, -inf for their own; (B, I)."""
    place = Workspace.open(workspace)
    ranker = load_ranker(place)
    with closing(place.open_store()) as store:
        graph = current_graph(place, store).aligned(ranker.item_ids)
    asked = graph.histories[graph.users.nums([case.users[user] for user in users])]
    columns = np.array([case.item_nums[item_id] for item_id in ranker.item_ids])
    as_rehearsed = np.zeros(len(columns), dtype=np.float32)
    for start in range(0, len(users), _USERS_AT_ONCE):
        ranking = ranker.rank(asked[start : start + _USERS_AT_ONCE], k=len(columns), pool="all", boost=as_rehearsed)
        shown = ranking.item_nums >= 0
        scores = np.full((len(shown), len(case.items)), -np.inf, dtype=np.float32)
        scores[np.nonzero(shown)[0], columns[ranking.item_nums[shown]]] = ranking.scores[shown]
        yield scores


def compare_ways(
    scores: Iterable[NDArray[np.float32]], relevant: sparse.csr_array, is_new: NDArray[np.bool_], *, k: int = 20
) -> dict[str, Any]:
    """NDCG@k of the new and of all positives by each way, and how much better the calibrated one is for the new.

    Args:
        scores: calibrated log odds, -inf where an item must not be shown; all users, in parts of shape (B, I).
        relevant: non-zero where the item is a positive of the user; at least one a row, and a new one in some rows.
            Shape (U, I).
        is_new: shape (I,).
    """
    found = [(best_of(part, is_new, k), best_of(part, ~is_new, k)) for part in scores]
    (new_nums, new_merits), (known_nums, known_merits) = (
        (np.concatenate([nums for nums, _ in side]), np.concatenate([merits for _, merits in side], axis=1))
        for side in zip(*found, strict=True)
    )
    relevant_new = sparse.csr_array(relevant @ sparse.diags_array(is_new.astype(np.float32)))
    tested = np.flatnonzero(relevant_new.sum(axis=1))
    new_share = float(is_new.mean())
    ways, values = {}, {}
    for way, (place, orders) in WAYS.items():
        new, known = new_merits[place], known_merits[place]
        lists, offset = merge(new_nums, new, known_nums, known, new_share, orders=orders)
        values[way] = ranking_metrics(lists[tested], sparse.csr_array(relevant_new[tested]), [k])[f"ndcg@{k}"]
        of_all = ranking_metrics(lists, relevant, [k])[f"ndcg@{k}"]
        ways[way] = {
            "offset": round(offset, 5),
            "cold_share": round(cold_share(lists, is_new), 5),
            f"ndcg@{k} new": round(float(values[way].mean()), 5),
            f"ndcg@{k} all": round(float(of_all.mean()), 5),
        }
    for way in WAYS:
        if way == OURS:
            continue
        interval = paired_bootstrap(values[OURS], values[way])
        bounds = (interval.difference, interval.difference_low, interval.difference_high)
        ways[way]["ours minus it"] = [round(bound, 5) for bound in bounds]
    return {"new_share": round(new_share, 5), "n_users": {"new": len(tested), "all": len(lists)}, "ways": ways}


def best_of(
    scores: NDArray[np.floating[Any]], inside: NDArray[np.bool_], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Each user's k best items of one stratum, and their merits by each way; a merit has nothing of the other stratum.

    Args:
        scores: -inf where an item must not be shown, shape (B, I).
        inside: items of the stratum, shape (I,).
        k: list length.

    Returns:
        (item_nums, -1 where there are fewer, shape (B, k); merits, -inf there, shape (3, B, k)).
    """
    columns = np.flatnonzero(inside)
    values = scores[:, columns].astype(np.float64)
    there = np.isfinite(values)
    n_there = np.maximum(there.sum(axis=1, keepdims=True), 1)
    mean = np.where(there, values, 0).sum(axis=1, keepdims=True) / n_there
    deviation = np.sqrt((np.where(there, values - mean, 0) ** 2).sum(axis=1, keepdims=True) / n_there)
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(values, order, axis=1)
    missing = ((0, 0), (0, k - best.shape[1]))
    best = np.pad(best, missing, constant_values=-np.inf)
    item_nums = np.pad(columns[order], missing, constant_values=-1)
    merits = (
        best,
        (best - mean) / np.where(deviation > 0, deviation, 1),
        np.where(np.isfinite(best), -np.log(_RANK_OFFSET + np.arange(1, k + 1)), -np.inf),
    )
    return np.where(np.isfinite(best), item_nums, -1), np.stack(merits)


def merge(
    new_nums: NDArray[np.int64],
    new: NDArray[np.float64],
    known_nums: NDArray[np.int64],
    known: NDArray[np.float64],
    new_share: float,
    *,
    orders: bool,
) -> tuple[NDArray[np.int64], float]:
    """Lists by merit, with the offset on new items that gives them ``new_share`` of the slots of all lists.

    As ``recommender.new_share.boost_for``: a list's j-th new item has a least offset, with which it beats the known
    item that it would push out, and the offset is a quantile of those. Where many are equal, as those of ranks are,
    users drawn at random get the slots that the share leaves over, since one offset alone would miss it.

    Args:
        new_nums, known_nums: each user's best items, -1 padded, shape (U, k).
        new, known: their merits, best first, -inf padded, shape (U, k).
        new_share: from 0 to 1; more new items are taken only where a list would not be full without them.
        orders: whether the offset counts in the order of a list, too.

    Returns:
        (item_nums, -1 where a list ends early, shape (U, k); the offset).
    """
    n_users, k = new.shape
    there = np.isfinite(new)
    users, places = np.nonzero(there)
    least = known[:, ::-1][there] - new[there]
    order = np.lexsort((places, np.random.default_rng(0).random(n_users)[users], least))
    n_slots = int(np.minimum(there.sum(axis=1) + np.isfinite(known).sum(axis=1), k).sum())
    n_taken = min(max(round(new_share * n_slots), int(np.isneginf(least).sum())), len(least))
    ends = np.concatenate([[-np.inf], least[order], [np.inf]])[n_taken : n_taken + 2]
    offset = float(ends[np.isfinite(ends)].mean()) if np.isfinite(ends).any() else 0.0
    n_new = np.bincount(users[order[:n_taken]], minlength=n_users)[:, None]
    slots = np.arange(k)
    merits = np.concatenate(
        [np.where(slots < n_new, new + offset * orders, -np.inf), np.where(slots < k - n_new, known, -np.inf)], axis=1
    )
    best = np.argsort(-merits, axis=1, kind="stable")[:, :k]  # equal merits: the new item first
    item_nums = np.take_along_axis(np.concatenate([new_nums, known_nums], axis=1), best, axis=1)
    return np.where(np.isfinite(np.take_along_axis(merits, best, axis=1)), item_nums, -1), offset
