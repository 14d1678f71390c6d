from __future__ import annotations

from pathlib import Path

import polars as pl

from kg import KnowledgeGraph, schema
from recommender.changed import changed_items, save_digests


def test_only_what_says_something_else_has_changed(graph: KnowledgeGraph, tmp_path: Path) -> None:
    save_digests(graph, tmp_path)
    assert changed_items(graph, tmp_path).tolist() == []
    product = pl.DataFrame({"key": ["epoxy", "brand new"], "name": ["Epoxy resin", "New"]})
    maker = pl.DataFrame({"head": ["cable"], "tail": ["bosch"], "source": ["catalogue"]})
    later = graph.extended({schema.PRODUCT: product}, {schema.MADE_BY: maker})
    assert changed_items(later, tmp_path).tolist() == sorted(graph.items.nums(["epoxy", "cable"]).tolist())


def test_events_are_no_change(graph: KnowledgeGraph, tmp_path: Path) -> None:
    save_digests(graph, tmp_path)
    assert changed_items(graph.without_behaviour(graph.items.nums(["glue"])), tmp_path).tolist() == []
