import polars as pl
import pytest

from ingest.canonical import (
    CanonicalData,
    launches_file,
    merge_events,
    merge_items,
    merge_taxonomy,
    read_canonical,
    read_folder,
    taxonomy_file,
    write_canonical,
)
from ingest.facts import EVENT_COLUMNS, ITEM_COLUMNS, TAXONOMY_COLUMNS, items_frame
from ingest.files import Rejects, find_files
from ingest.rows import Item
from kg.errors import SourceError, WorkspaceError

NOTHING = CanonicalData(*(pl.DataFrame(schema=columns) for columns in (ITEM_COLUMNS, EVENT_COLUMNS, TAXONOMY_COLUMNS)))
LATEST = 2_000_000_000


def read(shop, old=NOTHING, also_known=()):
    rejects = Rejects(lambda: shop.path.parent / "rejects.jsonl")
    data = read_folder(
        find_files(shop.path),
        old,
        also_known=frozenset(also_known),
        latest=LATEST,
        rejects=rejects,
        start_file=lambda name: lambda rows: None,
    )
    rejects.close()
    for count in rejects.files.values():
        assert count.read == count.accepted + count.rejected
    return data, rejects


def items(*rows):
    return items_frame(Item.model_validate(row) for row in rows)


def test_good_data(good_shop):
    data, rejects = read(good_shop)
    assert data.items["item_id"].to_list() == ["i1", "i2", "i3"]
    assert data.items.schema == ITEM_COLUMNS
    assert data.events.schema == EVENT_COLUMNS
    assert data.events.rows()[0] == ("u1", "i1", "buy", 1_704_103_200, None, 1.0)
    assert rejects.files["events.csv"].accepted == 4
    assert rejects.path is None


def test_the_last_row_of_an_item_wins(shop):
    shop.write("items.csv", "item_id,title\n1,first\n2,x\n1,second\n")
    shop.write("items.jsonl", [{"item_id": 1, "title": "third"}])
    data, rejects = read(shop)
    assert data.items.select("item_id", "title").rows() == [("1", "third"), ("2", "x")]
    assert rejects.reasons == {"duplicate_item_id": 2}
    assert (rejects.files["items.csv"].accepted, rejects.files["items.jsonl"].accepted) == (1, 1)


def test_events_of_unknown_items_are_refused_and_taken_later(shop):
    shop.write("items.jsonl", [{"item_id": "1"}]).write("events.csv", "user_id,item_id\nu,1\nu,2\n")
    data, rejects = read(shop)
    assert data.events["item_id"].to_list() == ["1"]
    assert rejects.reasons == {"unknown_item": 1}
    shop.write("items.jsonl", [{"item_id": "1"}, {"item_id": "2"}])
    later, rejects = read(shop, data)
    assert later.events.select("item_id", "position").rows() == [("1", 0), ("2", 1)]
    assert rejects.path is None


def test_events_may_name_items_of_earlier_loads_and_of_the_store(shop):
    shop.write("events.csv", "user_id,item_id\nu,old\nu,stored\nu,nowhere\n")
    old = CanonicalData(items({"item_id": "old"}), NOTHING.events, NOTHING.taxonomy)
    data, rejects = read(shop, old, also_known=["stored"])
    assert data.events["item_id"].to_list() == ["old", "stored"]
    assert rejects.reasons == {"unknown_item": 1}


def test_identical_rows_of_one_load_are_one_event_whose_weights_add_up(shop):
    shop.write("items.jsonl", [{"item_id": "1"}])
    shop.write("events.csv", "user_id,item_id,timestamp,weight\n" + "u,1,5,0.1\n" * 3 + "u,1,6,0.1\n")
    data, rejects = read(shop)
    assert data.events.select("timestamp", "weight").rows() == [(5, 0.3), (6, 0.1)]
    assert rejects.files["events.csv"].accepted == 4
    again, _ = read(shop, data)
    assert again.events.equals(data.events)


def test_file_order_is_the_position_where_there_is_no_clock(shop):
    shop.write("items.jsonl", [{"item_id": "1"}, {"item_id": "2"}])
    rows = ["u,1,,", "v,1,,", "u,2,,bad", "u,gone,,", "u,2,,", "u,1,9,", ",1,,"]
    shop.write("events.csv", "user_id,item_id,timestamp,weight\n" + "\n".join(rows))
    data, rejects = read(shop)
    found = data.events.select("user_id", "item_id", "timestamp", "position").rows()
    assert sorted(found, key=str) == [
        ("u", "1", 9, None),
        ("u", "1", None, 0),
        ("u", "2", None, 3),
        ("v", "1", None, 0),
    ]
    assert rejects.reasons == {"wrong_type": 1, "unknown_item": 1, "empty_id": 1}


def test_items_made_from_events(shop):
    mapping = (
        '{"items": {"from_events": true, "columns": {"title": "name", "price": "price"}},'
        ' "events": {"file": "sales.csv", "columns": {"item_id": "name", "user_id": "who", "timestamp": "at"},'
        ' "constants": {"event": "sale"}}}'
    )
    shop.write("mapping.json", mapping)
    shop.write("sales.csv", "who,name,at,price\nu,Tent,200,9\nv,Tent,100,8\nv,Kettle,300,-1\n")
    data, rejects = read(shop)
    assert data.items.select("item_id", "title", "price", "available_from").rows() == [("Tent", "Tent", 9.0, 100)]
    assert data.events.select("user_id", "event").rows() == [("u", "buy"), ("v", "buy")]
    assert rejects.reasons == {"negative_price": 1}
    # A later folder does not make an item younger than it is.
    shop.write("sales.csv", "who,name,at,price\nu,Tent,900,9\n")
    assert read(shop, data)[0].items["available_from"].to_list() == [100]


def test_an_items_file_without_rows(shop):
    shop.write("events.csv", "user_id,item_id\n")
    for name, text in (("items.jsonl", ""), ("items.csv", "item_id\n")):
        shop.write(name, text)
        with pytest.raises(SourceError, match="no rows"):
            read(shop)
        (shop.path / name).unlink()


def test_rdf_files(shop):
    shop.write("items.jsonl", [{"item_id": "1", "category_path": ["Pens"]}])
    shop.write(
        "tree.ttl",
        """@prefix skos: <http://www.w3.org/2004/02/skos/core#> . @prefix t: <t:> . @prefix s: <https://schema.org/> .
        t:desk a skos:Concept ; skos:prefLabel "Desk" ; skos:broader t:home .
        t:home skos:prefLabel "Home" ; skos:broader t:desk .
        t:ink a s:Product ; s:sku "2" ; s:name "Ink" ; s:offers [ s:price 5 ] .
        t:bad a s:Product ; s:sku "3" ; s:offers [ s:price -5 ] .""",
    )
    data, rejects = read(shop)
    assert data.taxonomy["iri"].to_list() == ["t:desk", "t:home"]
    assert data.items.select("item_id", "title", "price").rows() == [("1", None, None), ("2", "Ink", 5.0)]
    assert rejects.reasons == {"category_cycle": 1, "negative_price": 1}
    count = rejects.files["tree.ttl"]
    assert (count.read, count.accepted, count.rejected) == (6, 4, 2)  # two concepts, two links, two products


def test_merging_taxonomies():
    def table(*rows):
        return pl.DataFrame(rows, schema=TAXONOMY_COLUMNS, orient="row")

    old = table(("t:a", "A", ["A"], ["t:z"]), ("t:b", "B", ["B"], []))
    new = table(("t:a", "a", [], []), ("t:b", "B2", ["B2"], ["t:a"]))
    assert merge_taxonomy(old, new).rows() == [("t:a", "A", ["A"], ["t:z"]), ("t:b", "B2", ["B2"], ["t:a"])]
    assert merge_taxonomy(table(), new).rows() == new.rows()


def test_merging_items_and_events():
    merged = merge_items(
        items({"item_id": "b", "title": "old"}, {"item_id": "c"}), items({"item_id": "b"}, {"item_id": "a"})
    )
    assert merged.select("item_id", "title").rows() == [("a", None), ("b", None), ("c", None)]

    def events(*rows):
        return pl.DataFrame(rows, schema=EVENT_COLUMNS, orient="row")

    old = events(("u", "a", None, None, 0, 1.0), ("u", "a", "buy", 5, None, 1.0))
    new = events(("u", "a", "buy", 5, None, 2.0), ("u", "a", "buy", 6, None, 1.0))
    assert merge_events(old, new).height == 3
    assert merge_events(old, new)["weight"].sum() == 4.0


def test_kept_and_read_again(good_shop, workspace):
    data, _ = read(good_shop)
    write_canonical(workspace, data)
    again = read_canonical(workspace)
    assert again.items.equals(data.items)
    assert again.events.equals(data.events)
    assert again.content_hash() == data.content_hash()
    assert not list(workspace.path.rglob("*.next"))


def test_items_that_were_kept_before_there_were_companions_are_read(good_shop, workspace):
    data, _ = read(good_shop)
    write_canonical(workspace, data)
    data.items.drop("also_bought").write_parquet(workspace.items_file)
    assert read_canonical(workspace).items.equals(data.items)


def test_an_empty_workspace_holds_nothing(workspace):
    assert read_canonical(workspace).content_hash() == NOTHING.content_hash()


def test_launches_are_part_of_the_data_until_a_load_takes_them_up(workspace):
    write_canonical(workspace, CanonicalData(items({"item_id": "1"}), NOTHING.events, NOTHING.taxonomy))
    lines = [Item(item_id="2", title="a").model_dump_json(), Item(item_id="2", title="b", attributes={"n": [3, True]})]
    text = f"{lines[0]}\n{lines[1].model_dump_json()}\n" + '{"item_id": "3", "ti'  # cut off by a kill
    launches_file(workspace).write_text(text, encoding="utf-8")
    data = read_canonical(workspace)
    assert data.items.select("item_id", "title").rows() == [("1", None), ("2", "b")]
    assert data.items["attributes"][1].to_list() == [
        {"attribute": "n", "value": "2 to 5", "number": 3.0},
        {"attribute": "n", "value": "yes", "number": None},
    ]
    write_canonical(workspace, data)
    assert not launches_file(workspace).exists()
    assert read_canonical(workspace).items.equals(data.items)


def test_a_damaged_workspace(workspace):
    taxonomy_file(workspace).parent.mkdir()
    taxonomy_file(workspace).write_bytes(b"no parquet")
    with pytest.raises(WorkspaceError, match="damaged"):
        read_canonical(workspace)


def test_the_hash_sees_every_table():
    changed = {
        "items": items({"item_id": "1"}),
        "events": pl.DataFrame([("u", "1", None, 1, None, 1.0)], schema=EVENT_COLUMNS, orient="row"),
        "taxonomy": pl.DataFrame([("t:a", "A", [], [])], schema=TAXONOMY_COLUMNS, orient="row"),
    }
    tables = {"items": NOTHING.items, "events": NOTHING.events, "taxonomy": NOTHING.taxonomy}
    hashes = {CanonicalData(**{**tables, name: table}).content_hash() for name, table in changed.items()}
    hashes.add(NOTHING.content_hash())
    assert len(hashes) == 4
    assert {len(content_hash) for content_hash in hashes} == {16}
