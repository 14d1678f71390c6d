"""The tiny shop in a store, as arrays, and behind an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from checkerboard import lists_of
from tiny_shop import write_shop

from kg import KnowledgeGraph, Workspace, open_store, schema, snapshot
from kg.store import GraphStore
from recommender import Engine
from recommender.changed import save_digests

if TYPE_CHECKING:
    from scipy import sparse


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
    """Scores items by their order: the first cold item is the best. ``encoded`` counts the items that it read."""

    fingerprint = "alphabet"

    def __init__(self, graph: KnowledgeGraph) -> None:
        self.item_ids = graph.items.keys
        self.text_vectors = np.eye(len(self.item_ids), 32, dtype=np.float32)
        self.is_cold = graph.n_events == 0
        self.encoded = 0
        self._added: set[int] = set()

    def add(self, graph: KnowledgeGraph, item_nums: np.ndarray, *, progress: object = None) -> None:
        self.encoded += len(item_nums)
        vectors = np.zeros((len(item_nums), 32), dtype=np.float32)
        vectors[:, 0] = 1
        self.put_added(graph.items.keys, item_nums, {"vectors": vectors})

    def added(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        nums = np.array(sorted(self._added), dtype=np.int64)
        return nums, {"vectors": self.text_vectors[nums]}

    def put_added(self, item_ids: Sequence[str], item_nums: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        self._added.update(item_nums.tolist())
        n_new = int((item_nums >= len(self.item_ids)).sum())
        self.item_ids = (*self.item_ids, *item_ids[len(self.item_ids) : len(self.item_ids) + n_new])
        self.text_vectors = np.concatenate([self.text_vectors, np.zeros((n_new, 32), dtype=np.float32)])
        self.text_vectors[item_nums] = arrays["vectors"]
        self.is_cold = np.concatenate([self.is_cold, np.ones(n_new, dtype=bool)])

    def rank(
        self,
        histories: sparse.csr_array,
        *,
        k: int,
        pool: str,
        exclude: Sequence[np.ndarray] | None = None,
        boost: np.ndarray | None = None,
    ) -> Ranking:
        nums, values = np.full((histories.shape[0], k), -1), np.full((histories.shape[0], k), -np.inf)
        for row, history in enumerate(lists_of(histories)):
            scores = 1.0 / (1 + np.arange(len(self.item_ids)))
            scores += 0 if boost is None else boost
            scores[history if exclude is None else np.concatenate([history, exclude[row]])] = -np.inf
            if pool == "new":
                scores[~self.is_cold] = -np.inf
            best = [n for n in np.argsort(-scores, kind="stable")[:k] if np.isfinite(scores[n])]
            nums[row, : len(best)], values[row, : len(best)] = best, scores[best]
        return Ranking(nums, values)

    def highest(self, histories: sparse.csr_array, *, k: int, of: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [self.rank(histories, k=k, pool="all", boost=np.where(shown, 0, -np.inf)).scores for shown in of]

    def read(self, histories: sparse.csr_array) -> sparse.csr_array:
        return histories

    def score(self, histories: sparse.csr_array, item_nums: np.ndarray) -> np.ndarray:
        """Log odds: minus the item's number, and the length of the history."""
        return (np.diff(histories.indptr)[:, None] - item_nums[None, :]).astype(np.float32)

    def audience(self, item_num: int, histories: sparse.csr_array) -> np.ndarray:
        return np.diff(histories.indptr).astype(float)

    def similar(self, item_num: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        nums = np.array([n for n in range(len(self.item_ids)) if n != item_num][:k])
        return nums, np.ones(len(nums))


@pytest.fixture
def engine(tmp_path: Path, store: GraphStore, graph: KnowledgeGraph) -> Engine:
    workspace = Workspace.create(tmp_path / "w", store="memory:")
    return Engine(workspace, store, graph, AlphabeticalRanker(graph))


@pytest.fixture
def open_engine(
    tmp_path: Path, store: GraphStore, graph: KnowledgeGraph, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Engine]:
    """``Engine.open`` as a new process does it, on a workspace that was trained on the tiny shop."""
    workspace = Workspace.create(tmp_path / "trained", store="memory:")
    workspace.model_folder.mkdir()
    save_digests(graph, workspace.model_folder)
    monkeypatch.setattr(store, "close", lambda: None)
    monkeypatch.setattr(Workspace, "open_store", lambda self: store)
    monkeypatch.setattr("recommender.engine.load_ranker", lambda workspace: AlphabeticalRanker(graph))
    return lambda: Engine.open(workspace.path)


@pytest.fixture
def bought_since(tmp_path: Path, store: GraphStore, graph: KnowledgeGraph) -> Engine:
    """Trained on the tiny shop; then u2 bought the epoxy, and u4, who is new, the saw and nothing else."""
    ranker = AlphabeticalRanker(graph)
    store.write_nodes(schema.CUSTOMER, pl.DataFrame({"key": ["u4"]}))
    since = pl.DataFrame({"head": ["u2", "u4"], "tail": ["epoxy", "saw"], "position": [2, 0], "weight": [1.0, 1.0]})
    store.write_edges(schema.INTERACTED, since.with_columns(source=pl.lit("behaviour")))
    workspace = Workspace.create(tmp_path / "w", store="memory:")
    return Engine(workspace, store, snapshot(store, until=None), ranker)


@pytest.fixture
def numbered(tmp_path: Path) -> Engine:
    """Customers 1 and 2, items 10, 20 and 30, which is new: ids as numbers, as many shops have them."""
    store = open_store("memory:")
    store.write_nodes(schema.PRODUCT, pl.DataFrame({"key": ["10", "20", "30"]}))
    store.write_nodes(schema.CUSTOMER, pl.DataFrame({"key": ["1", "2"]}))
    facts = pl.DataFrame({"head": ["1", "2"], "tail": ["10", "20"], "position": [0, 0], "weight": [1.0, 1.0]})
    store.write_edges(schema.INTERACTED, facts.with_columns(source=pl.lit("behaviour")))
    store.set_mark("numbers")
    graph = snapshot(store, until=None)
    workspace = Workspace.create(tmp_path / "numbers", store="memory:")
    return Engine(workspace, store, graph, AlphabeticalRanker(graph))
