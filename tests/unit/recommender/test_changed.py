from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from kg import KnowledgeGraph, schema
from kg.errors import WorkspaceError
from recommender.changed import changed_items, load_added, save_added, save_digests


class Reader:
    """Keeps what it was given, as a ranker does."""

    def __init__(self, item_ids: tuple[str, ...], fingerprint: str = "model 1") -> None:
        self.item_ids = item_ids
        self.fingerprint = fingerprint
        self.given: tuple[Any, ...] | None = None

    def added(self) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return np.array([1, 7]), {"vectors": np.eye(2, dtype=np.float32)}

    def put_added(self, *given: Any) -> None:
        self.given = given


@pytest.fixture
def later(graph: KnowledgeGraph, tmp_path: Path) -> KnowledgeGraph:
    """The tiny shop, whose digests were saved, after the launch of a product and new words for the second one."""
    save_digests(graph, tmp_path)
    product = pl.DataFrame({"key": [graph.items.keys[1], "brand new"], "name": ["Other words", "New"]})
    return graph.extended({schema.PRODUCT: product}, {})


def test_only_what_says_something_else_has_changed(graph: KnowledgeGraph, tmp_path: Path) -> None:
    save_digests(graph, tmp_path)
    digests = load_added(Reader(graph.items.keys), tmp_path)
    assert changed_items(graph, digests).tolist() == []
    product = pl.DataFrame({"key": ["epoxy", "brand new"], "name": ["Epoxy resin", "New"]})
    maker = pl.DataFrame({"head": ["cable"], "tail": ["bosch"], "source": ["catalogue"]})
    later = graph.extended({schema.PRODUCT: product}, {schema.MADE_BY: maker})
    expected = sorted(later.items.nums(["epoxy", "cable", "brand new"]).tolist())
    assert changed_items(later, digests).tolist() == expected


def test_events_are_no_change(graph: KnowledgeGraph, tmp_path: Path) -> None:
    save_digests(graph, tmp_path)
    digests = load_added(Reader(graph.items.keys), tmp_path)
    assert changed_items(graph.without_behaviour(graph.items.nums(["glue"])), digests).tolist() == []


def test_what_was_added_is_given_back_and_is_no_change(later: KnowledgeGraph, tmp_path: Path) -> None:
    save_added(Reader(later.items.keys), later, tmp_path)
    reader = Reader(later.items.keys[:-1])
    digests = load_added(reader, tmp_path)
    assert reader.given is not None
    item_ids, item_nums, arrays = reader.given
    assert tuple(item_ids) == later.items.keys
    assert item_nums.tolist() == [1, 7]
    np.testing.assert_array_equal(arrays["vectors"], np.eye(2))
    assert changed_items(later, digests).tolist() == []
    again = pl.DataFrame({"key": ["brand new"], "name": ["Newer"]})
    assert changed_items(later.extended({schema.PRODUCT: again}, {}), digests).tolist() == [7]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["added.safetensors", "digests.json"]


def test_what_an_older_model_has_read_is_read_again(later: KnowledgeGraph, tmp_path: Path) -> None:
    save_added(Reader(later.items.keys, "model 0"), later, tmp_path)
    reader = Reader(later.items.keys[:-1])
    digests = load_added(reader, tmp_path)
    assert reader.given is None
    assert changed_items(later, digests).tolist() == [1, 7]


@pytest.mark.parametrize(
    ("file", "way_out"), [("digests.json", "run: firstshelf train"), ("added.safetensors", "delete it")]
)
def test_a_damaged_file_is_a_clear_error(later: KnowledgeGraph, tmp_path: Path, file: str, way_out: str) -> None:
    save_added(Reader(later.items.keys), later, tmp_path)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-5])
    with pytest.raises(WorkspaceError, match=f"damaged.*{way_out}"):
        load_added(Reader(later.items.keys[:-1]), tmp_path)
    save_file({"other": np.zeros(1)}, tmp_path / file)
    with pytest.raises(WorkspaceError, match=f"damaged.*{way_out}"):
        load_added(Reader(later.items.keys[:-1]), tmp_path)
