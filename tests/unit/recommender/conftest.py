"""The tiny shop in a store, as arrays, and behind an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tiny_shop import write_shop

from kg import KnowledgeGraph, Workspace, open_store, schema, snapshot
from kg.store import GraphStore
from recommender import Engine


@pytest.fixture
def store() -> GraphStore:
    store = open_store("memory:")
    write_shop(store)
    return store


@pytest.fixture
def graph(store: GraphStore) -> KnowledgeGraph:
    return snapshot(store, until=None)


@dataclass
class Ranking:
    item_nums: np.ndarray
    scores: np.ndarray


class AlphabeticalRanker:
    """Scores items by their order: the first cold item is the best."""

    fingerprint = "alphabet"

    def __init__(self, graph: KnowledgeGraph) -> None:
        self.item_ids = graph.items.keys
        self.text_vectors = np.eye(len(self.item_ids), 32, dtype=np.float32)
        self.is_cold = graph.n_events == 0

    def add(self, graph: KnowledgeGraph, item_nums: np.ndarray) -> None:
        new = [graph.items.keys[num] for num in item_nums if num >= len(self.item_ids)]
        self.item_ids = (*self.item_ids, *new)
        vectors = np.zeros((len(new), 32), dtype=np.float32)
        vectors[:, 0] = 1
        self.text_vectors = np.concatenate([self.text_vectors, vectors])
        self.is_cold = np.concatenate([self.is_cold, np.ones(len(new), dtype=bool)])

    def rank(
        self,
        histories: Sequence[np.ndarray],
        *,
        k: int,
        pool: str,
        exclude: Sequence[np.ndarray] | None = None,
    ) -> Ranking:
        nums = np.full((len(histories), k), -1)
        for row, history in enumerate(histories):
            hidden = history if exclude is None else np.concatenate([history, exclude[row]])
            allowed = [n for n in range(len(self.item_ids)) if n not in hidden and (pool == "all" or self.is_cold[n])]
            nums[row, : len(allowed[:k])] = allowed[:k]
        return Ranking(nums, np.tile(1.0 / (1 + np.arange(k)), (len(histories), 1)))

    def score(self, histories: Sequence[np.ndarray], item_nums: np.ndarray) -> np.ndarray:
        """Log odds: minus the item's number, and the length of the history."""
        return np.array([[len(history) - float(num) for num in item_nums] for history in histories], dtype=np.float32)

    def audience(self, item_num: int, histories: Sequence[np.ndarray]) -> np.ndarray:
        return np.array([float(len(history)) for history in histories])

    def similar(self, item_num: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        nums = np.array([n for n in range(len(self.item_ids)) if n != item_num][:k])
        return nums, np.ones(len(nums))


@pytest.fixture
def engine(tmp_path: Path, store: GraphStore, graph: KnowledgeGraph) -> Engine:
    workspace = Workspace.create(tmp_path / "w", store="memory:")
    return Engine(workspace, store, graph, AlphabeticalRanker(graph))  # type: ignore[arg-type]


@pytest.fixture
def bought_since(tmp_path: Path, store: GraphStore, graph: KnowledgeGraph) -> Engine:
    """Trained on the tiny shop; then u2 bought the epoxy, and u4, who is new, the saw and nothing else."""
    ranker = AlphabeticalRanker(graph)
    store.write_nodes(schema.CUSTOMER, pl.DataFrame({"key": ["u4"]}))
    since = pl.DataFrame({"head": ["u2", "u4"], "tail": ["epoxy", "saw"], "position": [2, 0], "weight": [1.0, 1.0]})
    store.write_edges(schema.INTERACTED, since.with_columns(source=pl.lit("behaviour")))
    workspace = Workspace.create(tmp_path / "w", store="memory:")
    return Engine(workspace, store, snapshot(store, until=None), ranker)  # type: ignore[arg-type]
