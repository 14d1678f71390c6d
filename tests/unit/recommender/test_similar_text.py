from __future__ import annotations

import numpy as np
import polars as pl

from kg import KnowledgeGraph, schema
from kg.store import GraphStore
from recommender.similar_text import replace_similar_text, similar_text_edges


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def test_only_the_closest_percent_is_similar_and_best_comes_first() -> None:
    random = np.random.default_rng(0)
    vectors = unit(random.normal(size=(400, 32)))
    vectors[1] = unit((vectors[0] + 0.2 * vectors[1])[None])[0]
    vectors[2] = unit((vectors[0] + 0.5 * vectors[2])[None])[0]
    ids = [f"p{n}" for n in range(400)]
    edges = similar_text_edges(vectors, ids, heads=np.array([0]), tails=np.arange(400))
    assert edges["tail"].to_list()[:2] == ["p1", "p2"]
    assert "p0" not in edges["tail"]
    assert edges["score"].is_sorted(descending=True)
    assert len(edges) <= 10
    assert edges["source"].unique().to_list() == ["text"]


def test_items_without_text_have_no_edges() -> None:
    vectors = np.zeros((5, 8), dtype=np.float32)
    edges = similar_text_edges(vectors, list("abcde"), heads=np.arange(5), tails=np.arange(5))
    assert edges.is_empty()
    assert similar_text_edges(vectors, list("abcde"), heads=np.arange(5), tails=np.arange(0)).is_empty()


def test_edges_that_no_longer_hold_are_taken_away(store: GraphStore, graph: KnowledgeGraph) -> None:
    vectors = unit(np.eye(len(graph.items), 16))
    glue, epoxy = graph.items.nums(["glue", "epoxy"])
    vectors[epoxy] = vectors[glue]
    written = replace_similar_text(store, graph, vectors, np.array([epoxy]))
    assert written.select("head", "tail").rows() == [("epoxy", "glue")]
    held = store.edges(schema.SIMILAR_TO)
    assert held.select("head", "tail").rows() == [("epoxy", "glue")]
    assert held["score"].to_list() == [1.0]
    assert held.filter(pl.col("source") != "text").is_empty()


def test_equal_descriptions_are_similar_where_a_shop_has_many_of_them() -> None:
    kinds = np.random.default_rng(0).normal(size=(7, 96)).astype(np.float32)
    kinds /= np.linalg.norm(kinds, axis=1, keepdims=True)
    vectors = np.tile(kinds, (9, 1))
    item_ids = [f"i{num}" for num in range(len(vectors))]
    heads = np.arange(len(vectors) - 7, len(vectors))
    edges = similar_text_edges(vectors, item_ids, heads=heads, tails=np.arange(len(vectors) - 7))
    assert edges.height == 7 * 8
    assert all(int(head[1:]) % 7 == int(tail[1:]) % 7 for head, tail in edges.select("head", "tail").iter_rows())
