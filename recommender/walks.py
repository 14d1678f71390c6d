"""Finds the best walk of each metapath between a history and an item, in arrays.

Finding is fast and happens in the snapshot; whether a walk is *true* is asked of the graph store afterwards
(``recommender.explain``). Every metapath leaves the history item forward along its relations and reaches the
recommended item backward, so both sides expand over head-to-tail adjacency, which is short for products, and meet
in the middle: no hub is ever enumerated.

Score of a walk, in (0, 1]: the product of

- recency: ``0.97 ** (number of younger items in the history)``;
- for BOUGHT_WITH ``lift / (lift + median lift)``, for SIMILAR_TO its score;
- for the brand, category or attribute where both sides meet, its specificity ``1 - log(degree) / log(n_items)``, so
  that what half the shop shares is hardly a reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numba import njit

from kg import schema
from kg.paths import METAPATHS, Metapath

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy import sparse

    from kg.snapshot import KnowledgeGraph

RECENCY: Final = 0.97
_LOWEST: Final = 1e-3
_DEEPEST: Final = 20


class _Adjacency(NamedTuple):
    starts: NDArray[np.int64]
    targets: NDArray[np.int64]
    weights: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Walk:
    """Row numbers along a metapath *from the history item* to the recommended item, and the score."""

    metapath: Metapath
    nums: tuple[int, ...]
    score: float


class WalkFinder:
    """The adjacency of a snapshot, ready for walks. Immutable."""

    def __init__(self, graph: KnowledgeGraph) -> None:
        n_items = len(graph.items)
        self._adjacency: dict[schema.Relation, _Adjacency] = {}
        self._meeting: dict[str, NDArray[np.float64]] = {schema.PRODUCT: np.ones(n_items)}
        for relation in schema.RELATIONS:
            if relation in (schema.INTERACTED, schema.ALSO_BOUGHT):  # no reason leads along them
                continue
            facts = graph.facts[relation]
            weights = np.ones(len(facts))
            if relation == schema.BOUGHT_WITH and len(facts):
                weights = facts.weights / (facts.weights + np.median(facts.weights))
            if relation == schema.SIMILAR_TO:
                weights = np.clip(facts.weights.astype(np.float64), _LOWEST, 1.0)
            n_heads = len(graph.vocabularies[relation.head_label])
            by_head = np.argsort(facts.heads, kind="stable")
            starts = np.zeros(n_heads + 1, dtype=np.int64)
            np.cumsum(np.bincount(facts.heads, minlength=n_heads), out=starts[1:])
            self._adjacency[relation] = _Adjacency(starts, facts.tails[by_head], weights[by_head].astype(np.float64))
            if relation.head_label == schema.PRODUCT and relation.tail_label != schema.PRODUCT:
                self._meeting[relation.tail_label] = _specificity(_n_products(graph, relation), n_items)
        self._plans = [_Plan.of(metapath.from_history()) for metapath in METAPATHS]

    def find(self, histories: sparse.csr_array, item_nums: NDArray[np.int64], *, n_paths: int) -> list[list[Walk]]:
        """The best walks for each pair of a history and an item.

        Args:
            histories: as ``KnowledgeGraph.histories`` has them, one row a pair, shape (P, I).
            item_nums: shape (P,).
            n_paths: at most so many walks per pair, of different metapaths, best first; ties by metapath order.
        """
        n_pairs = len(item_nums)
        starts, flat = histories.indptr.astype(np.int64), histories.indices.astype(np.int64)
        age = np.repeat(starts[1:], np.diff(starts)) - np.arange(len(flat)) - 1
        recency = np.maximum(RECENCY**age, _LOWEST)
        scores = np.zeros((len(self._plans), n_pairs))
        nums = [np.zeros((n_pairs, len(plan.metapath.labels)), dtype=np.int64) for plan in self._plans]
        items = np.ascontiguousarray(item_nums, dtype=np.int64)
        for row, plan in enumerate(self._plans):
            forward = [self._adjacency[relation] for relation in plan.forward]
            backward = [self._adjacency[relation] for relation in plan.backward]
            _best_walks(
                starts, flat, recency, items,
                len(forward), *_hop(forward, 0), *_hop(forward, 1),
                len(backward), *_hop(backward, 0), *_hop(backward, 1),
                self._meeting[plan.meeting], plan.alike, scores[row], nums[row],
            )  # a line a side of the walk  # fmt: skip
        best_first = np.argsort(-scores, axis=0, kind="stable")[:n_paths]
        found: list[list[Walk]] = [[] for _ in range(n_pairs)]
        for order in best_first:
            for pair in np.flatnonzero(scores[order, np.arange(n_pairs)] > 0):
                row = order[pair]
                walk = tuple(nums[row][pair].tolist())
                found[pair].append(Walk(METAPATHS[row], walk, float(scores[row, pair])))
        return found


@dataclass(frozen=True, slots=True)
class _Plan:
    """A metapath cut where its two sides meet."""

    metapath: Metapath
    forward: tuple[schema.Relation, ...]
    backward: tuple[schema.Relation, ...]
    meeting: str
    alike: NDArray[np.bool_]

    @classmethod
    def of(cls, metapath: Metapath) -> _Plan:
        n_forward = sum(step.forward for step in metapath.steps)
        if any(step.forward for step in metapath.steps[n_forward:]):
            raise ValueError(f"metapath {metapath.name!r} goes forward after it went backward; walks cannot meet")
        labels = metapath.labels
        alike = np.array([[a == b for b in labels] for a in labels]) & ~np.eye(len(labels), dtype=bool)
        forward = tuple(step.relation for step in metapath.steps[:n_forward])
        backward = tuple(step.relation for step in reversed(metapath.steps[n_forward:]))
        return cls(metapath, forward, backward, labels[n_forward], alike)


def _n_products(graph: KnowledgeGraph, relation: schema.Relation) -> NDArray[np.int64]:
    """Products of each brand, attribute or category; a category counts those of its subcategories too."""
    below = graph.matrix(relation, binary=True)
    if relation == schema.IN_CATEGORY:
        upward = graph.matrix(schema.SUBCATEGORY_OF, binary=True)
        level = below
        for _ in range(_DEEPEST):
            level = level @ upward
            if level.nnz == 0:
                break
            below = below + level
    return np.bincount(below.indices, minlength=below.shape[1])


def _specificity(degree: NDArray[np.int64], n_items: int) -> NDArray[np.float64]:
    if n_items < 2:
        return np.ones(len(degree))
    specificity: NDArray[np.float64] = np.clip(1 - np.log(np.maximum(degree, 1)) / np.log(n_items), _LOWEST, 1.0)
    return specificity


_NO_HOP: Final = _Adjacency(np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))


def _hop(hops: list[_Adjacency], number: int) -> _Adjacency:
    return hops[number] if number < len(hops) else _NO_HOP


@njit(cache=True)
def _best_walks(  # type: ignore[no-untyped-def]  # compiled: numba infers the types
    history_starts, history_nums, recency, items,
    n_forward, f0_starts, f0_targets, f0_weights, f1_starts, f1_targets, f1_weights,
    n_backward, b0_starts, b0_targets, b0_weights, b1_starts, b1_targets, b1_weights,
    meeting, alike, scores, walks,
):  # a line a side of the walk  # fmt: skip
    """For each pair the best walk: ``scores[p]`` (0 where none) and ``walks[p]`` of shape (n_steps + 1,)."""
    n_nodes = n_forward + n_backward + 1
    stamp = np.full(len(meeting), -1, dtype=np.int64)
    item_side = np.zeros(len(meeting))
    item_step = np.zeros(len(meeting), dtype=np.int64)
    walk = np.zeros(n_nodes, dtype=np.int64)
    for pair in range(len(items)):
        item = items[pair]
        # The item's side: the best way from the item to each place where the sides can meet.
        if n_backward == 0:
            stamp[item] = pair
            item_side[item] = 1.0
        elif n_backward == 1:
            for e in range(b0_starts[item], b0_starts[item + 1]):
                node = b0_targets[e]
                if stamp[node] != pair or b0_weights[e] > item_side[node]:
                    stamp[node] = pair
                    item_side[node] = b0_weights[e]
        else:
            for e in range(b0_starts[item], b0_starts[item + 1]):
                step = b0_targets[e]
                for f in range(b1_starts[step], b1_starts[step + 1]):
                    node = b1_targets[f]
                    weight = b0_weights[e] * b1_weights[f]
                    if stamp[node] != pair or weight > item_side[node]:
                        stamp[node] = pair
                        item_side[node] = weight
                        item_step[node] = step
        # The history's side, joined where it meets the item's.
        walk[n_nodes - 1] = item
        for h in range(history_starts[pair], history_starts[pair + 1]):
            history_item = history_nums[h]
            walk[0] = history_item
            first_start, first_end = 0, 1
            if n_forward > 0:
                first_start, first_end = f0_starts[history_item], f0_starts[history_item + 1]
            for e in range(first_start, first_end):
                first = history_item
                first_weight = recency[h]
                if n_forward > 0:
                    first = f0_targets[e]
                    first_weight *= f0_weights[e]
                    walk[1] = first
                second_start, second_end = 0, 1
                if n_forward > 1:
                    second_start, second_end = f1_starts[first], f1_starts[first + 1]
                for f in range(second_start, second_end):
                    node = first
                    weight = first_weight
                    if n_forward > 1:
                        node = f1_targets[f]
                        weight *= f1_weights[f]
                        walk[2] = node
                    if stamp[node] != pair:
                        continue
                    weight *= item_side[node] * meeting[node]
                    if weight <= scores[pair]:
                        continue
                    if n_backward == 2:
                        walk[n_nodes - 2] = item_step[node]
                    distinct = True
                    for a in range(n_nodes):
                        for b in range(a):
                            if alike[a, b] and walk[a] == walk[b]:
                                distinct = False
                    if distinct:
                        scores[pair] = weight
                        for a in range(n_nodes):
                            walks[pair, a] = walk[a]
