"""What the ingest tests share: writing a shop folder, and a graph as plain tables."""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ingest import load
from kg import GraphStore, Workspace, open_store
from kg.schema import LABELS, RELATIONS

NOW = datetime(2025, 6, 1, tzinfo=UTC)
ITEMS = [
    {"item_id": "i1", "title": "Moka pot", "brand": "Alder", "category_path": ["Kitchen", "Coffee"], "price": 30},
    {"item_id": "i2", "title": "Kettle", "brand": "ALDER", "category_path": ["Kitchen", "Coffee"]},
    {"item_id": "i3", "title": "Tent", "brand": "Berg", "category_path": ["Outdoor"], "attributes": {"persons": 2}},
]
EVENTS = """user_id,item_id,timestamp,event
u1,i1,2024-01-01T10:00:00Z,buy
u1,i2,2024-01-02T10:00:00Z,view
u2,i1,2024-02-01T10:00:00Z,buy
u2,i2,2024-02-02T10:00:00Z,buy
"""


class Shop:
    """A shop folder in the making."""

    def __init__(self, path):
        self.path = path
        path.mkdir()

    def write(self, name, content):
        """``content``: text, bytes, or a list of rows that become JSON lines."""
        if isinstance(content, list):
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        self.path.joinpath(name).write_bytes(content.encode() if isinstance(content, str) else content)
        return self

    def load(self, store: GraphStore | None = None, **options):
        return load(self.path, store or open_store("memory:"), **{"now": NOW, **options})


def rejects_of(report):
    if report.rejects_file is None:
        return []
    with Path(report.rejects_file).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def graph_of(store: GraphStore):
    """Every node and edge as comparable rows."""
    nodes = {label: store.nodes(label).rows() for label in LABELS}
    return nodes | {relation.type: store.edges(relation).rows() for relation in RELATIONS}


def check_counts(report):
    """The promise that every report keeps."""
    assert report.rows_read == report.rows_accepted + report.rows_rejected
    assert sum(report.reasons.values()) == report.rows_rejected
    for name, count in report.files.items():
        assert count.read == count.accepted + count.rejected, name
    assert len(rejects_of(report)) == report.rows_rejected


@pytest.fixture(autouse=True)
def _rejects_without_a_workspace_go_away(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def shop(tmp_path):
    return Shop(tmp_path / "shop")


@pytest.fixture
def good_shop(shop):
    return shop.write("items.jsonl", ITEMS).write("events.csv", EVENTS)


@pytest.fixture
def workspace(tmp_path):
    return Workspace.create(tmp_path / "workspace")


@pytest.fixture
def memory():
    return open_store("memory:")


@pytest.fixture
def helpers():
    """The functions of this file; test modules are imported without their folder on the path."""

    class Helpers:
        rejects = staticmethod(rejects_of)
        graph = staticmethod(graph_of)
        check = staticmethod(check_counts)

    return Helpers
