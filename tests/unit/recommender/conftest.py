"""A shop small enough to know every path by hand.

u1 ─▶ glue, drill          u2 ─▶ glue, tape

glue   Gorilla   Tools > Adhesives
drill  Bosch     Tools > Drills
tape             Tools > Tapes       colour=black     glue ─BOUGHT_WITH▶ tape (lift 4)
saw    Bosch     Tools > Saws                         (new)
epoxy  Gorilla   Tools > Adhesives                    (new) epoxy ─SIMILAR_TO▶ tape (.8)
cable                                colour=black     (new)
stone                                                 (new, nothing known)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from kg import KnowledgeGraph, Workspace, open_store, schema, snapshot
from kg.store import GraphStore
from recommender import Engine


def write_shop(store: GraphStore) -> None:
    def nodes(label: str, names: dict[str, str]) -> None:
        store.write_nodes(label, pl.DataFrame({"key": list(names), "name": list(names.values())}))

    def edges(relation: schema.Relation, source: str, pairs: list[tuple[str, str]], **columns: pl.Expr) -> None:
        frame = pl.DataFrame(pairs, schema=["head", "tail"], orient="row")
        store.write_edges(relation, frame.with_columns(pl.lit(source).alias("source"), **columns))

    nodes(schema.CATEGORY, {"Tools": "Tools", **{f"Tools > {x}": x for x in ("Adhesives", "Drills", "Tapes", "Saws")}})
    nodes(schema.BRAND, {"gorilla": "Gorilla", "bosch": "Bosch"})
    nodes(schema.ATTRIBUTE, {"colour=black": "colour black"})
    titles = {"glue": "Super Glue", "drill": "Power Drill", "tape": "Black Tape", "saw": "Hand Saw"}
    nodes(schema.PRODUCT, {**titles, "epoxy": "Epoxy", "cable": "Cable", "stone": "Stone"})
    store.write_nodes(schema.CUSTOMER, pl.DataFrame({"key": ["u1", "u2", "u3"]}))
    children = [(f"Tools > {name}", "Tools") for name in ("Adhesives", "Drills", "Tapes", "Saws")]
    edges(schema.SUBCATEGORY_OF, "catalogue", children)
    places = {"glue": "Adhesives", "drill": "Drills", "tape": "Tapes", "saw": "Saws", "epoxy": "Adhesives"}
    edges(schema.IN_CATEGORY, "catalogue", [(item, f"Tools > {name}") for item, name in places.items()])
    makers = [("glue", "gorilla"), ("epoxy", "gorilla"), ("drill", "bosch"), ("saw", "bosch")]
    edges(schema.MADE_BY, "catalogue", makers)
    edges(schema.HAS_ATTRIBUTE, "catalogue", [("tape", "colour=black"), ("cable", "colour=black")])
    bought = [("u1", "glue", 0), ("u1", "drill", 1), ("u2", "glue", 0), ("u2", "tape", 1)]
    frame = pl.DataFrame(bought, schema=["head", "tail", "position"], orient="row")
    store.write_edges(schema.INTERACTED, frame.with_columns(source=pl.lit("behaviour"), weight=pl.lit(1.0)))
    edges(schema.BOUGHT_WITH, "behaviour", [("glue", "tape")], lift=pl.lit(4.0), support=pl.lit(2))
    edges(schema.SIMILAR_TO, "text", [("epoxy", "tape")], score=pl.lit(0.8))
    store.set_mark("tiny")


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
        self._cold = graph.n_events == 0

    def add(self, graph: KnowledgeGraph, item_nums: np.ndarray) -> None:
        new = [graph.items.keys[num] for num in item_nums if num >= len(self.item_ids)]
        self.item_ids = (*self.item_ids, *new)
        vectors = np.zeros((len(new), 32), dtype=np.float32)
        vectors[:, 0] = 1
        self.text_vectors = np.concatenate([self.text_vectors, vectors])
        self._cold = np.concatenate([self._cold, np.ones(len(new), dtype=bool)])

    def rank(self, histories: Sequence[np.ndarray], *, k: int, pool: str) -> Ranking:
        nums = np.full((len(histories), k), -1)
        for row, history in enumerate(histories):
            allowed = [n for n in range(len(self.item_ids)) if n not in history and (pool == "all" or self._cold[n])]
            nums[row, : len(allowed[:k])] = allowed[:k]
        return Ranking(nums, np.tile(1.0 / (1 + np.arange(k)), (len(histories), 1)))

    def audience(self, item_num: int, histories: Sequence[np.ndarray]) -> np.ndarray:
        return np.array([float(len(history)) for history in histories])

    def similar(self, item_num: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        nums = np.array([n for n in range(len(self.item_ids)) if n != item_num][:k])
        return nums, np.ones(len(nums))


@pytest.fixture
def engine(tmp_path: Path, store: GraphStore, graph: KnowledgeGraph) -> Engine:
    workspace = Workspace.create(tmp_path / "w", store="memory:")
    return Engine(workspace, store, graph, AlphabeticalRanker(graph))  # type: ignore[arg-type]
