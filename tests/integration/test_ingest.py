"""Loading into every kind of store, killing a load and running it again, launching: against real stores."""

import signal
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from ingest import generate_shop, launch_item, load
from kg import Workspace, open_store, schema
from kg.schema import LABELS, RELATIONS

NOW = datetime(2025, 7, 1, tzinfo=UTC)
ROOT = Path(__file__).parents[2]


def graph(store):
    nodes = {label: store.nodes(label) for label in LABELS}
    return nodes | {relation: store.edges(relation) for relation in RELATIONS}


def differences(one, other):
    return [name for name, table in one.items() if not table.equals(other[name])]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated") / "shop"
    generate_shop(folder)
    with (folder / "items.jsonl").open("a", encoding="utf-8") as lines:
        lines.write('{"item_id": "\'}) DETACH DELETE n //", "brand": "`quoted` \\"brand\\"", "price": 0.1}\n')
        lines.write('{"item_id": "商品/🛒", "title": "茶壶", "attributes": {"a=b": [1e-7, true, "x=y"]}}\n')
        lines.write('{"item_id": "bad", "price": -1}\n')
    return folder


@pytest.fixture(scope="module")
def meaning(shop, tmp_path_factory):
    """The graph in the memory store, and its load's report."""
    store = open_store("memory:")
    report = load(shop, store, workspace=Workspace.create(tmp_path_factory.mktemp("meaning") / "workspace"), now=NOW)
    return graph(store), report


def test_every_store_holds_the_same_graph_and_the_second_load_adds_nothing(store, shop, meaning, tmp_path):
    tables, expected = meaning
    workspace = Workspace.create(tmp_path / "workspace")
    first = load(shop, store, workspace=workspace, now=NOW)
    assert differences(tables, graph(store)) == []
    assert first.reasons == {"negative_price": 1}
    for name in ("nodes_added", "edges_added", "content_hash"):
        assert getattr(first, name) == getattr(expected, name)
    second = load(shop, store, workspace=workspace, now=NOW)
    assert (second.nodes_added, second.nodes_updated, second.nodes_deleted) == (0, 0, 0)
    assert (second.edges_added, second.edges_updated, second.edges_deleted) == (0, 0, 0)
    assert second.content_hash == first.content_hash == store.get_mark()


def test_a_changed_row_and_a_launch_in_every_store(store, tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    workspace = Workspace.create(tmp_path / "workspace")
    (folder / "items.csv").write_text("item_id,title,brand\n1,Pen,Eikon\n2,Ink,Eikon\n", encoding="utf-8")
    (folder / "events.csv").write_text("user_id,item_id\nu,1\nu,2\nv,1\nv,2\n", encoding="utf-8")
    load(folder, store, workspace=workspace, now=NOW)
    launch_item({"item_id": "3", "title": "Nib", "brand": "EIKON", "price": 4}, workspace, store)
    assert store.edges(schema.MADE_BY)["head"].to_list() == ["1", "2", "3"]
    assert store.nodes(schema.BRAND)["name"].to_list() == ["Eikon"]
    (folder / "items.csv").write_text("item_id,title,brand\n1,Pen,Haru\n2,,Haru\n", encoding="utf-8")
    report = load(folder, store, workspace=workspace, now=NOW)
    assert store.edges(schema.MADE_BY).select("head", "tail").rows() == [("1", "haru"), ("2", "haru"), ("3", "eikon")]
    assert store.nodes(schema.PRODUCT).select("key", "name", "price").rows() == [
        ("1", "Pen", None),
        ("2", None, None),
        ("3", "Nib", 4.0),
    ]
    assert (report.nodes_added, report.nodes_updated, report.edges_added, report.edges_deleted) == (1, 2, 2, 2)
    together = store.edges(schema.BOUGHT_WITH).select("head", "tail", "support").rows()
    assert together == [("1", "2", 2), ("2", "1", 2)]


KILLED = """
import os, signal, sys
from datetime import UTC, datetime
from ingest import load
from kg import Workspace

shop, folder, calls = sys.argv[1:]

class Killed:
    def __init__(self, store, calls_left):
        self.store, self.calls_left = store, calls_left
    def __getattr__(self, name):
        if name.startswith(("write_", "delete_", "set_")):
            self.calls_left -= 1
            if self.calls_left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return getattr(self.store, name)

workspace = Workspace.open(folder)
load(shop, Killed(workspace.open_store(), int(calls)), workspace=workspace, now=datetime(2025, 7, 1, tzinfo=UTC))
"""


@pytest.mark.parametrize("kind", ["embedded", "neo4j"])
@pytest.mark.parametrize("calls", [4, 11])
def test_a_killed_load_is_continued(request, kind, calls, shop, meaning, tmp_path):
    """kill -9 before the n-th write, among the nodes or the edges: the next load ends in the same graph."""
    address = request.getfixturevalue("neo4j_address") if kind == "neo4j" else None
    workspace = Workspace.create(tmp_path / "workspace", store=address)
    with closing(workspace.open_store()) as store:
        store.clear()
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(shop), str(workspace.path), str(calls)], cwd=ROOT, timeout=120, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    with closing(workspace.open_store()) as store:
        assert store.get_mark() is None
        before = graph(store)
        assert before[schema.PRODUCT].height == (0 if calls == 4 else meaning[0][schema.PRODUCT].height)
        assert differences(meaning[0], before) != []
        report = load(shop, store, workspace=workspace, now=NOW)
        assert differences(meaning[0], graph(store)) == []
        assert store.get_mark() == report.content_hash == meaning[1].content_hash


def test_the_graph_can_be_rebuilt_from_the_canonical_files(store, shop, meaning, tmp_path):
    """Parquet is the truth: a workspace whose graph is lost gives it back without the shop's items."""
    workspace = Workspace.create(tmp_path / "workspace")
    load(shop, open_store("memory:"), workspace=workspace, now=NOW)
    rest = tmp_path / "rest"
    rest.mkdir()
    (rest / "events.csv").write_text("user_id,item_id\n", encoding="utf-8")
    report = load(rest, store, workspace=workspace, now=NOW)
    assert differences(meaning[0], graph(store)) == []
    assert report.rows_read == 0
    assert pl.read_parquet(workspace.items_file).height == meaning[0][schema.PRODUCT].height
