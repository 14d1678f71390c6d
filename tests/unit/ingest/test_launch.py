import polars as pl
import pytest

from ingest import launch_item, launched_item
from ingest.canonical import launches_file
from kg import schema
from kg.errors import SourceError

NEW = {
    "item_id": "x",
    "title": "Grinder",
    "brand": "alder",
    "category_path": ["Kitchen", "Coffee", "Grinders"],
    "attributes": {"persons": 3, "colour": "red"},
    "available_from": 1000,
}


def keys(store, label):
    return store.nodes(label)["key"].to_list()


def test_a_launch_brings_what_a_catalogue_row_brings(good_shop, memory, workspace, helpers):
    good_shop.load(memory, workspace=workspace)
    nodes, edges = launch_item(NEW, workspace, memory)
    assert {label: table["key"].to_list() for label, table in nodes.items() if table.height} == {
        schema.PRODUCT: ["x"],
        schema.CATEGORY: ["Kitchen > Coffee > Grinders"],
        schema.ATTRIBUTE: ["colour=red"],
    }
    assert {relation.type: table["tail"].to_list() for relation, table in edges.items()} == {
        "IN_CATEGORY": ["Kitchen > Coffee > Grinders"],
        "SUBCATEGORY_OF": ["Kitchen > Coffee"],
        "MADE_BY": ["alder"],
        "HAS_ATTRIBUTE": ["colour=red", "persons=2 to 5"],
    }
    # The brand keeps the name that the catalogue writes most often.
    assert dict(memory.nodes(schema.BRAND).rows())["alder"] == "ALDER"
    launched = helpers.graph(memory)
    report = good_shop.load(memory, workspace=workspace)
    assert (report.nodes_added, report.edges_added, report.nodes_deleted, report.edges_deleted) == (0, 0, 0, 0)
    assert "x" in keys(memory, schema.PRODUCT)
    assert set(launched["Product"]) == set(helpers.graph(memory)["Product"])


def test_known_keys_may_be_given(good_shop, memory, workspace):
    good_shop.load(memory, workspace=workspace)
    known = {label: keys(memory, label) for label in schema.LABELS}
    nodes, _ = launch_item(NEW, workspace, memory, known=known)
    assert nodes[schema.BRAND].height == 0
    assert keys(memory, schema.BRAND) == ["alder", "berg"]


def test_launching_again_updates(good_shop, memory, workspace):
    good_shop.load(memory, workspace=workspace)
    launch_item(NEW, workspace, memory)
    launch_item({"item_id": "x", "title": "Mill", "brand": "Berg"}, workspace, memory)
    assert memory.nodes(schema.PRODUCT).filter(key="x")["name"].to_list() == ["Mill"]
    assert memory.edges(schema.MADE_BY).filter(head="x")["tail"].to_list() == ["berg"]
    for relation in (schema.IN_CATEGORY, schema.HAS_ATTRIBUTE):
        assert memory.edges(relation).filter(head="x").height == 0


def test_an_old_product_launched_again_keeps_its_interactions(good_shop, memory, workspace):
    good_shop.load(memory, workspace=workspace)
    before = memory.edges(schema.INTERACTED)
    launch_item({"item_id": "i1", "title": "Moka pot 2"}, workspace, memory)
    assert memory.edges(schema.INTERACTED).equals(before)
    assert memory.edges(schema.MADE_BY).filter(head="i1").height == 0


def test_a_launch_after_one_that_was_cut_off_is_kept(good_shop, memory, workspace):
    good_shop.load(memory, workspace=workspace)
    launch_item(NEW, workspace, memory)
    with launches_file(workspace).open("a", encoding="utf-8") as stream:
        stream.write('{"item_id":"cut","titl')
    launch_item({**NEW, "item_id": "y"}, workspace, memory)
    assert good_shop.load(memory, workspace=workspace).nodes_deleted == 0
    assert {"x", "y"} <= set(keys(memory, schema.PRODUCT))
    assert "cut" not in keys(memory, schema.PRODUCT)


def test_what_a_person_said_of_a_product_stays(good_shop, memory, workspace):
    good_shop.load(memory, workspace=workspace)
    said = pl.DataFrame({"head": ["i1"], "tail": ["Outdoor"], "source": ["person"]})
    memory.write_edges(schema.IN_CATEGORY, said)
    launch_item({"item_id": "i1", "title": "Moka pot 2"}, workspace, memory)
    assert memory.edges(schema.IN_CATEGORY).filter(head="i1")["tail"].to_list() == ["Outdoor"]


def test_the_folder_has_the_last_word_on_its_items(good_shop, memory, workspace):
    good_shop.load(memory, workspace=workspace)
    launch_item({"item_id": "i1", "title": "other"}, workspace, memory)
    good_shop.load(memory, workspace=workspace)
    assert memory.nodes(schema.PRODUCT).filter(key="i1")["name"].to_list() == ["Moka pot"]
    assert not launches_file(workspace).exists()


def test_what_was_launched_last_can_be_launched_again(good_shop, memory, workspace, helpers):
    good_shop.load(memory, workspace=workspace)
    assert launched_item(workspace, "x") is None
    for item in (NEW, {**NEW, "title": "Mill"}, {"item_id": "y"}):
        launch_item(item, workspace, memory)
    launched = helpers.graph(memory)
    with launches_file(workspace).open("a", encoding="utf-8") as stream:
        stream.write('{"item_id":"x","title":"cut o')
    again = launched_item(workspace, "x")
    assert again["title"] == "Mill"
    launch_item(again, workspace, memory)
    assert helpers.graph(memory) == launched
    assert launched_item(workspace, "z") is None


def test_a_launch_into_an_empty_graph(memory, workspace):
    launch_item({"item_id": "only"}, workspace, memory)
    assert keys(memory, schema.PRODUCT) == ["only"]


@pytest.mark.parametrize("item", [{"title": "no id"}, {"item_id": "x", "price": -1}, {"item_id": " "}, "text"])
def test_a_wrong_item_changes_nothing(memory, workspace, item):
    with pytest.raises(SourceError):
        launch_item(item, workspace, memory)
    assert keys(memory, schema.PRODUCT) == []
    assert not launches_file(workspace).exists()
