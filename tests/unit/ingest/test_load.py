import gzip
import io
import sys
from datetime import datetime, timedelta

import polars as pl
import pytest

from ingest import load
from ingest.facts import category_key, conform, edge_columns
from ingest.load import wanted_tables
from kg import Workspace, open_store, schema
from kg.errors import SourceError, StoreError

NAMED = ["rows_read", "rows_accepted", "rows_rejected", "rejects_file", "reasons", "nodes_added", "nodes_updated"]
NAMED += ["edges_added", "edges_updated", "content_hash", "seconds"]


def changes(report):
    """Nodes added, updated, deleted; edges added, updated, deleted."""
    return tuple(
        getattr(report, f"{part}_{what}") for part in ("nodes", "edges") for what in ("added", "updated", "deleted")
    )


def keys(store, label):
    return store.nodes(label)["key"].to_list()


def pairs(store, relation):
    return store.edges(relation).select("head", "tail").rows()


def test_a_good_shop(good_shop, memory, workspace, helpers):
    report = good_shop.load(memory, workspace=workspace)
    helpers.check(report)
    assert (report.rows_read, report.rows_rejected, report.rejects_file) == (7, 0, None)
    assert keys(memory, schema.PRODUCT) == ["i1", "i2", "i3"]
    assert keys(memory, schema.BRAND) == ["alder", "berg"]
    assert keys(memory, schema.CATEGORY) == ["Kitchen", "Kitchen > Coffee", "Outdoor"]
    assert keys(memory, schema.CUSTOMER) == ["u1", "u2"]
    assert pairs(memory, schema.BOUGHT_WITH) == [("i1", "i2"), ("i2", "i1")]
    assert memory.edges(schema.INTERACTED)["kind"].to_list() == ["buy", "view", "buy", "buy"]
    n_edges = sum(memory.edges(relation).height for relation in schema.RELATIONS)
    assert (report.nodes_added, report.edges_added) == (3 + 2 + 3 + 1 + 2, n_edges)
    assert memory.get_mark() == report.content_hash == workspace.get("content_hash")


def test_the_report_as_json(good_shop):
    found = good_shop.load().to_json()
    assert set(NAMED) <= set(found)
    assert found["files"]["events.csv"] == {"read": 4, "accepted": 4, "rejected": 0}


def test_what_nothing_reads_is_in_the_report_by_name(shop, memory, helpers):
    shop.write("items.jsonl", [{"item_id": "1", "categroy_path": ["A"]}, {"item_id": "2", "categroy_path": ["B"]}])
    shop.write("events.csv", "user_id,item_id,timestmp\nu,1,2024-01-01\n").write("products.xlsx", b"")
    report = shop.load(memory)
    helpers.check(report)
    assert report.ignored_columns == {
        "items.jsonl": {"categroy_path": "category_path"},
        "events.csv": {"timestmp": "timestamp"},
    }
    assert [note.count("did you mean") for note in report.notes] == [1, 1, 0]
    assert "products.xlsx" in report.notes[2]
    assert report.to_json()["notes"] == report.notes


def test_a_shop_that_is_read_whole_has_no_notes(good_shop):
    assert good_shop.load().notes == []


def test_twice_is_once(good_shop, memory, workspace, helpers):
    first = good_shop.load(memory, workspace=workspace)
    before = helpers.graph(memory)
    second = good_shop.load(memory, workspace=workspace)
    assert changes(second) == (0, 0, 0, 0, 0, 0)
    assert second.content_hash == first.content_hash
    assert helpers.graph(memory) == before


def test_twice_is_once_without_a_workspace(good_shop, memory, helpers):
    first = good_shop.load(memory)
    before = helpers.graph(memory)
    second = good_shop.load(memory)
    assert changes(second) == (0, 0, 0, 0, 0, 0)
    assert (second.content_hash, helpers.graph(memory)) == (first.content_hash, before)


def test_a_changed_row_updates_and_its_old_edges_go(good_shop, memory, workspace):
    good_shop.load(memory, workspace=workspace)
    changed = {"item_id": "i3", "title": "Tent", "brand": "Cloud", "category_path": ["Travel", "Camping"]}
    good_shop.write("items.jsonl", [changed])
    report = good_shop.load(memory, workspace=workspace)
    assert pairs(memory, schema.MADE_BY) == [("i1", "alder"), ("i2", "alder"), ("i3", "cloud")]
    # What nothing points at any more is gone, and only that.
    assert keys(memory, schema.BRAND) == ["alder", "cloud"]
    assert keys(memory, schema.CATEGORY) == ["Kitchen", "Kitchen > Coffee", "Travel", "Travel > Camping"]
    assert keys(memory, schema.ATTRIBUTE) == []
    assert keys(memory, schema.PRODUCT) == ["i1", "i2", "i3"]
    assert (report.nodes_added, report.nodes_updated, report.nodes_deleted) == (3, 0, 3)
    assert (report.edges_added, report.edges_deleted) == (3, 3)


def test_a_changed_title_is_one_update(good_shop, memory, workspace):
    good_shop.load(memory, workspace=workspace)
    changed = {"item_id": "i3", "title": "Big tent", "brand": "Berg", "category_path": ["Outdoor"]}
    good_shop.write("items.jsonl", [changed | {"attributes": {"persons": 2}}])
    report = good_shop.load(memory, workspace=workspace)
    assert changes(report) == (0, 1, 0, 0, 0, 0)
    assert memory.nodes(schema.PRODUCT).filter(key="i3")["name"].to_list() == ["Big tent"]


def test_a_later_folder_adds_its_events(good_shop, memory, workspace):
    good_shop.load(memory, workspace=workspace)
    (good_shop.path / "items.jsonl").unlink()
    good_shop.write("events.csv", "user_id,item_id,timestamp,event\nu3,i3,2024-03-01,buy\nu1,i1,2024-04-01,view\n")
    good_shop.load(memory, workspace=workspace)
    weights = {
        (head, tail): weight
        for head, tail, weight in memory.edges(schema.INTERACTED).select("head", "tail", "weight").rows()
    }
    assert weights[("u1", "i1")] == 1.2
    assert weights[("u3", "i3")] == 1.0
    assert len(weights) == 5


def test_a_later_folder_without_a_workspace_deletes_nothing_of_others(good_shop, memory):
    good_shop.load(memory)
    (good_shop.path / "events.csv").unlink()
    good_shop.write("items.jsonl", [{"item_id": "i9", "brand": "Berg"}])
    report = good_shop.load(memory)
    assert report.nodes_deleted == report.edges_deleted == 0
    assert keys(memory, schema.PRODUCT) == ["i1", "i2", "i3", "i9"]
    good_shop.write("items.jsonl", [{"item_id": "i9", "brand": "Other"}])
    assert good_shop.load(memory).edges_deleted == 1
    assert ("i3", "berg") in pairs(memory, schema.MADE_BY)


def test_a_customer_named_like_a_product_keeps_its_interactions(shop, memory):
    shop.write("items.jsonl", [{"item_id": "1"}, {"item_id": "2"}]).write("events.csv", "user_id,item_id\n1,2\n")
    shop.load(memory)
    shop.write("events.csv", "user_id,item_id\n1,1\n")
    shop.load(memory)
    assert pairs(memory, schema.INTERACTED) == [("1", "1"), ("1", "2")]


def test_events_alone_need_items_that_are_there(shop, memory, workspace, helpers):
    shop.write("events.csv", "user_id,item_id\nu,i\n")
    report = shop.load(memory, workspace=workspace)
    helpers.check(report)
    assert report.reasons == {"unknown_item": 1}
    shop.write("items.jsonl", [{"item_id": "i"}])
    assert shop.load(memory, workspace=workspace).reasons == {}
    assert pairs(memory, schema.INTERACTED) == [("u", "i")]


def test_what_people_and_training_wrote_stays(good_shop, memory, workspace):
    good_shop.load(memory, workspace=workspace)

    def edges(relation, head, tail, source):
        return conform(pl.DataFrame({"head": [head], "tail": [tail], "source": [source]}), edge_columns(relation))

    memory.write_edges(schema.SIMILAR_TO, edges(schema.SIMILAR_TO, "i3", "i1", "text"))
    memory.write_edges(schema.BOUGHT_WITH, edges(schema.BOUGHT_WITH, "i3", "i2", "person"))
    memory.write_edges(schema.IN_CATEGORY, edges(schema.IN_CATEGORY, "i1", "Kitchen > Coffee", "person"))
    report = good_shop.load(memory, workspace=workspace)
    assert changes(report) == (0, 0, 0, 0, 0, 0)
    assert pairs(memory, schema.SIMILAR_TO) == [("i3", "i1")]
    assert ("i3", "i2") in pairs(memory, schema.BOUGHT_WITH)
    assert memory.edges(schema.IN_CATEGORY).filter(head="i1")["source"].to_list() == ["person"]


def test_a_damaged_graph_is_mended(good_shop, memory, workspace, helpers):
    good_shop.load(memory, workspace=workspace)
    before = helpers.graph(memory)
    memory.delete_nodes(schema.PRODUCT, ["i1"])
    memory.write_nodes(schema.BRAND, pl.DataFrame({"key": ["berg", "stray"], "name": ["wrong", "x"]}))
    report = good_shop.load(memory, workspace=workspace)
    assert helpers.graph(memory) == before
    assert (report.nodes_added, report.nodes_updated, report.nodes_deleted) == (1, 1, 1)


def test_the_graph_of_another_workspace_is_not_replaced(good_shop, memory, workspace, tmp_path, helpers):
    good_shop.load(memory, workspace=workspace)
    before = helpers.graph(memory)
    other = Workspace.create(tmp_path / "other")
    # The same shop in a new workspace is no other shop.
    assert changes(good_shop.load(memory, workspace=other)) == (0, 0, 0, 0, 0, 0)
    good_shop.write("items.jsonl", [{"item_id": "else"}]).write("events.csv", "user_id,item_id\n")
    third = Workspace.create(tmp_path / "third")
    with pytest.raises(StoreError, match="another workspace"):
        good_shop.load(memory, workspace=third)
    assert helpers.graph(memory) == before
    assert not third.items_file.exists()


class DyingStore:
    """A store whose process is cut off before its n-th writing call."""

    def __init__(self, store, calls_left):
        self._store, self._calls_left = store, calls_left

    def __getattr__(self, name):
        if name.startswith(("write_", "delete_", "set_")):
            self._calls_left -= 1
            if self._calls_left < 0:
                raise KeyboardInterrupt
        return getattr(self._store, name)


@pytest.mark.parametrize("calls", range(14))
def test_a_load_that_was_cut_off_is_continued(good_shop, tmp_path, helpers, calls):
    whole = open_store("memory:")
    good_shop.load(whole, workspace=Workspace.create(tmp_path / "whole"))
    store, workspace = open_store("memory:"), Workspace.create(tmp_path / "cut")
    try:
        good_shop.load(DyingStore(store, calls), workspace=workspace)
        assert calls >= 12, "so many writing calls were made; raise the range"
    except KeyboardInterrupt:
        assert store.get_mark() is None
    good_shop.load(store, workspace=workspace)
    assert helpers.graph(store) == helpers.graph(whole)
    assert store.get_mark() == whole.get_mark()


@pytest.mark.parametrize("calls", range(1, 8))
def test_a_changing_load_that_was_cut_off_is_continued(good_shop, tmp_path, helpers, calls):
    stores = [open_store("memory:"), open_store("memory:")]
    workspaces = [Workspace.create(tmp_path / name) for name in ("whole", "cut")]
    for store, workspace in zip(stores, workspaces, strict=True):
        good_shop.load(store, workspace=workspace)
    good_shop.write("items.jsonl", [{"item_id": "i1", "brand": "New", "category_path": ["X", "Y"]}, {"item_id": "i4"}])
    good_shop.write("events.csv", "user_id,item_id,timestamp\nu9,i4,2024-05-01\n")
    good_shop.load(stores[0], workspace=workspaces[0])
    with pytest.raises(KeyboardInterrupt):
        good_shop.load(DyingStore(stores[1], calls), workspace=workspaces[1])
    assert stores[1].get_mark() is None
    good_shop.load(stores[1], workspace=workspaces[1])
    assert helpers.graph(stores[0]) == helpers.graph(stores[1])


def test_a_source_that_cannot_be_read_changes_nothing(good_shop, memory, workspace, helpers):
    first = good_shop.load(memory, workspace=workspace)
    before = helpers.graph(memory)
    good_shop.write("items.jsonl", [{"item_id": "i9"}]).write("events.csv.gz", b"broken")
    with pytest.raises(SourceError):
        good_shop.load(memory, workspace=workspace)
    assert helpers.graph(memory) == before
    assert memory.get_mark() == first.content_hash


def test_a_closed_store_is_the_stores_error(good_shop, memory):
    memory.close()
    with pytest.raises(StoreError):
        good_shop.load(memory)


def test_bad_rows_are_counted_and_kept(shop, memory, workspace, helpers):
    good = [{"item_id": "ok", "price": 1}, {"item_id": "ok2"}]
    bad = [
        {"item_id": "", "title": "no id"},
        {"title": "no id at all"},
        {"item_id": "neg", "price": -1},
        {"item_id": "nan", "price": "nan"},
        {"item_id": "long", "description": "x" * 100_000},
        {"item_id": "cycle", "category_path": ["A", "B", "A"]},
        {"item_id": "ok"},
    ]
    shop.write("items.jsonl", [*bad, *good]).write(
        "events.csv",
        "user_id,item_id,timestamp\nu,ok,2025-06-01T23:00:00Z\nu,ok,2025-06-03\nu,gone,2024-01-01\n,ok,1\nu,ok,soon\n"
        'u,"ok,1\nu,ok2,2024-01-01\n',
    )
    report = shop.load(memory, workspace=workspace)
    helpers.check(report)
    assert report.reasons == {
        "broken_quotes": 1,
        "category_cycle": 1,
        "description_too_long": 1,
        "duplicate_item_id": 1,
        "empty_id": 2,
        "invalid_timestamp": 1,
        "missing_field": 1,
        "negative_price": 1,
        "not_finite": 1,
        "timestamp_in_future": 1,
        "unknown_item": 1,
    }
    rejects = helpers.rejects(report)
    assert all(set(reject) == {"file", "row", "line", "field", "value", "reason", "message"} for reject in rejects)
    assert {
        "file": "items.jsonl",
        "row": 3,
        "line": 3,
        "field": "price",
        "value": "-1",
        "reason": "negative_price",
        "message": "price is negative; expected 0 or more",
    } in rejects
    assert max(len(reject["value"] or "") for reject in rejects) <= 200
    assert keys(memory, schema.PRODUCT) == ["ok", "ok2"]
    assert pairs(memory, schema.INTERACTED) == [("u", "ok"), ("u", "ok2")]


def test_the_rejects_file_speaks_of_the_last_load_of_its_folder(shop, memory, workspace, helpers, tmp_path):
    shop.write("items.jsonl", [{"item_id": "1"}, {"item_id": ""}])
    first, second = shop.load(memory, workspace=workspace), shop.load(memory, workspace=workspace)
    assert first.rejects_file == second.rejects_file
    assert len(helpers.rejects(second)) == 1
    assert [str(path) for path in workspace.rejects_folder.iterdir()] == [first.rejects_file]
    without = shop.load(memory)
    helpers.check(without)


def test_ids_of_any_kind_come_through(shop, memory, workspace):
    ids = ["a/b", "c\\d", "e'f", 'g"h', "`i`", "🛒", "'}) DETACH DELETE n //", "$key", "商品", "x y", "a > b", "null"]
    shop.write("items.jsonl", [{"item_id": item_id, "brand": item_id} for item_id in ids])
    shop.write("events.jsonl", [{"user_id": item_id, "item_id": item_id} for item_id in ids])
    report = shop.load(memory, workspace=workspace)
    assert report.rows_rejected == 0
    assert keys(memory, schema.PRODUCT) == sorted(ids)
    assert pairs(memory, schema.INTERACTED) == sorted(zip(ids, ids, strict=True))


def test_numbers_as_ids_meet_across_formats(shop, memory, workspace):
    stream = io.BytesIO()
    pl.DataFrame({"user_id": [1.0, 2.0], "item_id": [1001, 1002]}).write_parquet(stream)
    shop.write("items.jsonl", [{"item_id": 1001}, {"item_id": "1002"}]).write("events.parquet", stream.getvalue())
    assert shop.load(memory, workspace=workspace).rows_rejected == 0
    assert pairs(memory, schema.INTERACTED) == [("1", "1001"), ("2", "1002")]


def test_formats_agree(good_shop, tmp_path, memory):
    expected = good_shop.load(memory).content_hash
    lines = [line.split(",") for line in (good_shop.path / "events.csv").read_text().splitlines()]
    rows = [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]
    (good_shop.path / "events.csv").unlink()
    times = pl.DataFrame(rows).with_columns(pl.col("timestamp").str.to_datetime("%Y-%m-%dT%H:%M:%SZ"))
    stream = io.BytesIO()
    times.write_parquet(stream)
    for name, content in (
        ("events.jsonl", "\n".join(pl.DataFrame(rows).write_ndjson().splitlines())),
        ("events.jsonl.gz", gzip.compress(pl.DataFrame(rows).write_ndjson().encode())),
        ("events.parquet", stream.getvalue()),
    ):
        good_shop.write(name, content)
        assert good_shop.load().content_hash == expected, name
        (good_shop.path / name).unlink()


def test_a_taxonomy_joins_the_catalogue(shop, memory, workspace, helpers):
    shop.write("items.jsonl", [{"item_id": "1", "category_path": ["Desk", "Pens"]}]).write(
        "tree.ttl",
        """@prefix skos: <http://www.w3.org/2004/02/skos/core#> . @prefix t: <t:> .
        t:pens a skos:Concept ; skos:prefLabel "Stifte"@de , "Pens"@en ; skos:broader t:write .
        t:write a skos:Concept ; skos:prefLabel "Writing" ; skos:broader t:loop .
        t:loop a skos:Concept ; skos:prefLabel "Loop" ; skos:broader t:write .""",
    )
    report = shop.load(memory, workspace=workspace)
    helpers.check(report)
    assert report.reasons == {"category_cycle": 1}
    assert memory.edges(schema.SUBCATEGORY_OF).select("head", "tail", "source").rows() == [
        ("Desk > Pens", "Desk", "catalogue"),
        ("Desk > Pens", "t:write", "taxonomy"),
        ("t:loop", "t:write", "taxonomy"),
    ]
    names = dict(memory.nodes(schema.CATEGORY).select("key", "name").rows())
    assert names == {"Desk": "Desk", "Desk > Pens": "Pens", "t:write": "Writing", "t:loop": "Loop"}
    (shop.path / "tree.ttl").unlink()
    assert shop.load(memory, workspace=workspace).nodes_deleted == 0  # the taxonomy stays in the workspace


def test_icecats_layout(shop, memory, workspace):
    mapping = {
        "file": "products.jsonl",
        "columns": {"item_id": "id", "brand": "supplier", "available_from": "date_released"},
        "attributes": [{"prefix": "attr_t_", "type": "text"}, {"prefix": "attr_n_"}, {"prefix": "attr_b_"}],
    }
    shop.write("mapping.json", [{"items": mapping}])
    shop.write(
        "products.jsonl",
        [
            {
                "id": "7",
                "title": "Toner",
                "supplier": "Xerox",
                "date_released": "2009-12-10T00:00:00Z",
                "ean": ["1"],
                "attr_t_cores": "2",
                "attr_n_pages": 23000.0,
                "attr_b_touch": False,
            }
        ],
    )
    report = shop.load(memory, workspace=workspace)
    assert report.rows_accepted == 1
    assert keys(memory, schema.ATTRIBUTE) == ["cores=2", "pages=20000 to 50000", "touch=no"]
    assert memory.edges(schema.HAS_ATTRIBUTE)["number"].to_list() == [None, 23000.0, None]
    assert memory.nodes(schema.PRODUCT)["available_from"].to_list() == [1_260_403_200]


def test_online_retails_layout(shop, memory, workspace, helpers):
    stream = io.BytesIO()
    when = datetime(2009, 12, 1, 7, 45)
    pl.DataFrame(
        {
            "customer_id": [13085, 13085, 13086, None],
            "product_name": ["CHERRY LIGHTS", 'FRAME 7" SINGLE', "CHERRY LIGHTS", "LOST"],
            "invoice_time": [when, when, when + timedelta(days=1), when],
        },
        schema_overrides={"invoice_time": pl.Datetime("ns")},
    ).write_parquet(stream)
    shop.write("sales.parquet", stream.getvalue())
    mapping = {
        "items": {"from_events": True, "columns": {"title": "product_name"}},
        "events": {
            "file": "sales.parquet",
            "columns": {"user_id": "customer_id", "item_id": "product_name", "timestamp": "invoice_time"},
            "constants": {"event": "buy"},
        },
    }
    report = shop.load(memory, workspace=workspace, mapping=mapping)
    helpers.check(report)
    assert report.reasons == {"empty_id": 1}
    assert memory.nodes(schema.PRODUCT).select("key", "name", "available_from").rows() == [
        ("CHERRY LIGHTS", "CHERRY LIGHTS", 1_259_653_500),
        ('FRAME 7" SINGLE', 'FRAME 7" SINGLE', 1_259_653_500),
    ]
    assert pairs(memory, schema.INTERACTED) == [
        ("13085", "CHERRY LIGHTS"),
        ("13085", 'FRAME 7" SINGLE'),
        ("13086", "CHERRY LIGHTS"),
    ]


def test_a_list_of_companions_is_taken_once_the_product_sells(shop, memory, workspace):
    rows = [{"item_id": "old", "also_bought": ["x", "fresh"]}, {"item_id": "fresh", "also_bought": "x | old"}]
    shop.write("items.jsonl", rows)
    shop.write("events.jsonl", [{"user_id": "u", "item_id": "old"}])
    shop.load(memory, workspace=workspace)
    assert pairs(memory, schema.ALSO_BOUGHT) == []
    shop.write("events.jsonl", [{"user_id": "u", "item_id": "old"}, {"user_id": "u", "item_id": "fresh"}])
    shop.load(memory, workspace=workspace)
    assert pairs(memory, schema.ALSO_BOUGHT) == [("fresh", "old"), ("fresh", "x"), ("old", "fresh"), ("old", "x")]
    shop.write("items.jsonl", [{"item_id": "old"}, {"item_id": "fresh"}])
    shop.load(memory, workspace=workspace)
    assert pairs(memory, schema.ALSO_BOUGHT) == []
    assert memory.nodes(schema.COMPANION).is_empty()


def test_a_cold_product_has_no_behavioural_edge(good_shop, memory):
    good_shop.load(memory)
    for relation in schema.BEHAVIOURAL:
        assert "i3" not in {end for pair in pairs(memory, relation) for end in pair}


def test_only_the_user_id_of_a_customer_is_kept(shop, memory, workspace):
    shop.write("items.jsonl", [{"item_id": "1"}])
    shop.write("events.jsonl", [{"user_id": "u", "item_id": "1", "email": "who@example.org", "name": "Secret"}])
    shop.load(memory, workspace=workspace)
    kept = b"".join(path.read_bytes() for path in workspace.path.rglob("*") if path.is_file())
    assert b"example.org" not in kept
    assert b"Secret" not in kept
    assert pl.read_parquet(workspace.events_file).columns == [
        "user_id",
        "item_id",
        "event",
        "timestamp",
        "position",
        "weight",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_goes_to_stderr_alone_and_only_to_a_terminal(good_shop, capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    good_shop.load(progress=True)
    told = capsys.readouterr()
    assert told.out == ""
    assert ("reading events.csv" in told.err) == terminal


def test_the_wanted_graph_is_a_function_of_the_data(good_shop, workspace, memory):
    from ingest.canonical import read_canonical

    good_shop.load(memory, workspace=workspace)
    tables = wanted_tables(read_canonical(workspace))
    for label, table in tables.nodes.items():
        assert table.equals(memory.nodes(label)), label
    for relation, table in tables.edges.items():
        assert table.equals(memory.edges(relation)), relation
    assert category_key(["Kitchen", "Coffee"]) in tables.nodes[schema.CATEGORY]["key"]


def test_now_may_be_naive_and_is_the_clock_by_default(shop):
    shop.write("items.jsonl", [{"item_id": "1"}])
    shop.write("events.csv", "user_id,item_id,timestamp\nu,1,2020-01-05\n")
    assert load(shop.path, open_store("memory:")).rows_rejected == 0
    for now, rejected in ((datetime(2020, 1, 3, 23), 1), (datetime(2020, 1, 4), 0)):
        assert load(shop.path, open_store("memory:"), now=now).rows_rejected == rejected
