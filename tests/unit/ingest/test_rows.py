import math
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from ingest.rows import (
    MAX_DESCRIPTION,
    MAX_ID,
    REASONS,
    Event,
    Item,
    clean_id,
    clean_text,
    clip,
    default_weight,
    listed_ids,
    meant_fields,
    parse_timestamp,
    reason_of,
    say_ignored,
    validate_item,
)
from kg.errors import SourceError

DAY = 86_400


def reason(model, row, **context):
    with pytest.raises(ValidationError) as caught:
        model.model_validate(row, context=context or None)
    return reason_of(caught.value.errors()[0])


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("  a \t\n b ", "a b"),
        ("Salt &amp; Pepper", "Salt & Pepper"),
        ("&lt;b&gt;bold&lt;/b&gt; twice &amp;amp; escaped", "bold twice & escaped"),
        ("<p>one</p><p>two<br/>three</p>", "one two three"),
        ("<script>alert(1)</script>safe<style>p{}</style>", "safe"),
        ("a<!-- no --> b", "a b"),
        ("5 < 6 and 7 > 3, a<3", "5 < 6 and 7 > 3, a<3"),
        ("e\u0301", "é"),
        ("nul\0 bell\7 half\ud83d", "nul bell half"),
        ("手冲咖啡壶　细口", "手冲咖啡壶 细口"),
        ("MATCH (n) DETACH DELETE n //", "MATCH (n) DETACH DELETE n //"),
        ("   ", ""),
    ],
)
def test_clean_text(dirty, clean):
    assert clean_text(dirty) == clean


def test_clean_text_does_not_choke_on_a_page_of_broken_tags():
    assert clean_text("<script>" * 6_000 + "</") == "</"
    assert clean_text("<a " * 15_000).count("<a") == 15_000


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (0, 0),
        (1_700_000_000, 1_700_000_000),
        (1_700_000_000.9, 1_700_000_000),
        (1_700_000_000_123, 1_700_000_000),
        (1_700_000_000_123_456, 1_700_000_000),
        (1_700_000_000_123_456_789, 1_700_000_000),
        ("1700000000", 1_700_000_000),
        ("1700000000000", 1_700_000_000),
        ("1.7e9", 1_700_000_000),
        ("1970-01-02", DAY),
        ("19700102", DAY),
        ("1970-01-02T00:00:00Z", DAY),
        ("1970-01-02T02:00:00+02:00", DAY),
        ("1970-01-02 00:00:00", DAY),
        ("1970-01-02 00:00:00.123456789", DAY),
        ("1970-01-02 00:00:00+00:00", DAY),
        ("1970-01-02 00:00:00 UTC", DAY),
        (date(1970, 1, 2), DAY),
        (datetime(1970, 1, 2), DAY),
        (datetime(1970, 1, 2, 2, tzinfo=timezone(timedelta(hours=2))), DAY),
        (Decimal("86400"), DAY),
        (None, None),
        ("", None),
        ("  ", None),
    ],
)
def test_timestamps_of_every_usual_form(given, seconds):
    assert parse_timestamp(given) == seconds


@pytest.mark.parametrize(
    "given",
    ["yesterday", "12/1/2010 8:26", -1, "-5", math.nan, math.inf, True, [1], "2024-13-01", 10**400, {}, "1e999"],
)
def test_refused_timestamps(given):
    with pytest.raises(PydanticCustomError) as caught:
        parse_timestamp(given)
    assert caught.value.type == "invalid_timestamp"


def test_timestamps_of_numpy_and_pandas():
    assert parse_timestamp(np.int64(DAY)) == DAY
    assert parse_timestamp(pd.Timestamp("1970-01-02")) == DAY
    assert parse_timestamp(pd.NaT) is None


@pytest.mark.parametrize(
    ("given", "item_id"),
    [
        ("B00X", "B00X"),
        (1001, "1001"),
        (1001.0, "1001"),
        (Decimal("1001"), "1001"),
        ("1001.0", "1001.0"),
        ("  x  ", "x"),
        ("a/b\\c'd\"e`f", "a/b\\c'd\"e`f"),
        ("🛒", "🛒"),
        ("'}) DETACH DELETE n //", "'}) DETACH DELETE n //"),
        ("商品一", "商品一"),
    ],
)
def test_ids_of_any_kind(given, item_id):
    assert clean_id(given) == item_id


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ("", "empty_id"),
        ("  ", "empty_id"),
        (None, "empty_id"),
        (math.nan, "empty_id"),
        (1.5, "invalid_id"),
        (True, "invalid_id"),
        (["a"], "invalid_id"),
        (math.inf, "invalid_id"),
        ("a\nb", "invalid_id"),
        ("a\0b", "invalid_id"),
        ("half \ud83d", "invalid_id"),
        ("x" * (MAX_ID + 1), "invalid_id"),
    ],
)
def test_refused_ids(given, code):
    with pytest.raises(PydanticCustomError) as caught:
        clean_id(given)
    assert caught.value.type == code


def test_ids_of_numpy_and_pandas():
    assert [clean_id(value) for value in (np.int32(7), np.float64(7), np.str_("x"))] == ["7", "7", "x"]
    for value in (pd.NA, pd.NaT, np.array([1, 2]), b"x"):
        with pytest.raises(PydanticCustomError, match="is no id"):
            clean_id(value)


def test_whole_numbers_with_too_many_digits_for_an_id():
    assert clean_id(10**400) == "1" + "0" * 400
    with pytest.raises(PydanticCustomError):  # Python itself refuses to print this one
        clean_id(10**5_000)


def test_an_item_with_everything():
    item = Item.model_validate(
        {
            "item_id": 7,
            "title": " Moka <b>pot</b> ",
            "description": ["one", "two"],
            "category_path": ["Kitchen", "Kitchen", "Coffee &amp; Tea"],
            "categories": ["Gifts", "Gifts", ""],
            "brand": "Alder",
            "attributes": {
                "cups": 3,
                "colour": ["red", "blue"],
                "induction": True,
                "none": None,
                "day": date(2024, 1, 2),
            },
            "price": "12.50",
            "available_from": "1970-01-02",
            "image": "https://shop.example/7.jpg",
            "also_bought": [8, "x-1", 8, None],
            "internal_note": "not kept",
        }
    )
    assert item.model_dump() == {
        "item_id": "7",
        "title": "Moka pot",
        "description": "one two",
        "category_path": ["Kitchen", "Coffee & Tea"],
        "categories": ["Gifts"],
        "brand": "Alder",
        "attributes": {"cups": [3.0], "colour": ["red", "blue"], "induction": [True], "day": ["2024-01-02"]},
        "price": 12.5,
        "available_from": DAY,
        "image": "https://shop.example/7.jpg",
        "also_bought": ["8", "x-1"],
    }
    assert Item.model_validate_json(item.model_dump_json()) == item


@pytest.mark.parametrize("given", ["a | b", '["a", "b", "a"]', ("a", "b"), ["a", "", "b"]])
def test_ids_are_listed_in_the_ways_that_files_have(given):
    assert listed_ids(given) == ["a", "b"]


@pytest.mark.parametrize("given", [None, "", [], "[]", " "])
def test_no_ids_are_an_empty_list(given):
    assert listed_ids(given) == []


@pytest.mark.parametrize("given", [7, {"a": 1}, [{"a": 1}], [1.5], "[1.5]"])
def test_what_lists_no_ids_is_refused(given):
    with pytest.raises(ValidationError, match="also_bought"):
        Item.model_validate({"item_id": "a", "also_bought": given})


def test_lists_and_maps_in_one_csv_cell():
    item = Item.model_validate(
        {
            "item_id": "1",
            "category_path": "Kitchen > Coffee",
            "categories": "Gifts | Sale",
            "attributes": '{"cups": 3, "cable": false}',
            "price": "",
            "available_from": "",
        }
    )
    assert (item.category_path, item.categories) == (["Kitchen", "Coffee"], ["Gifts", "Sale"])
    assert (item.attributes, item.price, item.available_from) == ({"cups": [3.0], "cable": [False]}, None, None)
    assert Item.model_validate({"item_id": "1", "categories": '["a|b", "c"]'}).categories == ["a|b", "c"]


def test_attributes_as_a_list_of_pairs():
    pairs = [{"key": "colour", "value": "red"}, {"name": "colour", "value": "blue"}]
    assert Item.model_validate({"item_id": "1", "attributes": pairs}).attributes == {"colour": ["red", "blue"]}


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("price", -0.01, "negative_price"),
        ("price", math.nan, "not_finite"),
        ("price", "inf", "not_finite"),
        ("price", 10**400, "not_finite"),
        ("price", "cheap", "wrong_type"),
        ("price", True, "wrong_type"),
        ("title", ["a"], "wrong_type"),
        ("title", True, "wrong_type"),
        ("title", math.nan, "not_finite"),
        ("title", "x" * 2_001, "text_too_long"),
        ("description", "x" * (MAX_DESCRIPTION + 1), "description_too_long"),
        ("description", "x" * 100_000, "description_too_long"),
        ("description", 5, "wrong_type"),
        ("category_path", ["A", "B", "A"], "category_cycle"),
        ("category_path", 5, "wrong_type"),
        ("category_path", "[broken", "wrong_type"),
        ("category_path", [["A"]], "wrong_type"),
        ("attributes", {"a": math.inf}, "not_finite"),
        ("attributes", {"a": {"b": 1}}, "invalid_attribute"),
        ("attributes", {"": 1}, "invalid_attribute"),
        ("attributes", "{broken", "wrong_type"),
        ("attributes", [1], "wrong_type"),
        ("attributes", 3, "wrong_type"),
        ("available_from", "soon", "invalid_timestamp"),
        ("item_id", "", "empty_id"),
    ],
)
def test_refused_items(field, value, code):
    assert reason(Item, {"item_id": "1", field: value}) == code
    assert code in REASONS


def test_a_description_may_be_long():
    assert (
        len(Item.model_validate({"item_id": "1", "description": "x" * MAX_DESCRIPTION}).description) == MAX_DESCRIPTION
    )


def test_a_launch_may_lie_in_the_future():
    assert Item.model_validate({"item_id": "1", "available_from": "2100-01-01"}).available_from == 4_102_444_800


@pytest.mark.parametrize(
    ("row", "code"),
    [
        ({"user_id": "u"}, "missing_field"),
        ({"user_id": "", "item_id": "i"}, "empty_id"),
        ({"user_id": "u", "item_id": "i", "timestamp": 1001}, "timestamp_in_future"),
        ({"user_id": "u", "item_id": "i", "timestamp": "x"}, "invalid_timestamp"),
        ({"user_id": "u", "item_id": "i", "position": -1}, "invalid_position"),
        ({"user_id": "u", "item_id": "i", "position": "1.5"}, "invalid_position"),
        ({"user_id": "u", "item_id": "i", "weight": 0}, "invalid_weight"),
        ({"user_id": "u", "item_id": "i", "weight": "-1"}, "invalid_weight"),
        ({"user_id": "u", "item_id": "i", "weight": "nan"}, "not_finite"),
    ],
)
def test_refused_events(row, code):
    assert reason(Event, row, latest=1000) == code
    assert code in REASONS


def test_an_event_keeps_nothing_but_its_fields():
    row = {"user_id": 1, "item_id": "i", "timestamp": "1000", "event": " Purchase ", "position": "3", "email": "x@y.z"}
    event = Event.model_validate(row, context={"latest": 1000})
    assert event.model_dump() == {
        "user_id": "1",
        "item_id": "i",
        "timestamp": 1000,
        "position": 3,
        "event": "buy",
        "weight": None,
    }


@pytest.mark.parametrize(("kind", "weight"), [("view", 0.2), ("cart", 0.5), ("buy", 1), (None, 1), ("scroll", 0.5)])
def test_default_weights(kind, weight):
    assert default_weight(kind) == weight


def test_validate_item_says_what_is_wrong():
    with pytest.raises(SourceError, match=r"'price' \(-5\).*negative.*0 or more"):
        validate_item({"item_id": "1", "price": -5})
    with pytest.raises(SourceError, match="item_id"):
        validate_item({"title": "no id"})
    with pytest.raises(SourceError, match="not list"):
        validate_item([1])


def test_a_name_that_nothing_reads_is_shown_with_the_one_that_was_meant():
    known = ("item_id", "title", "category_path", "categories")
    found = meant_fields(["categroy_path", "TITLE", "zzz"], known)
    assert found == {"categroy_path": "category_path", "TITLE": "title", "zzz": None}
    assert (
        say_ignored(found) == "'categroy_path' (did you mean 'category_path'?), 'TITLE' (did you mean 'title'?), 'zzz'"
    )


def test_many_names_that_nothing_reads_are_counted():
    told = say_ignored(meant_fields([f"{num}" for num in range(12)], ["title"]))
    assert told.endswith("'9' and 2 more")
    assert len(say_ignored({"x" * 1_000: None})) < 100


def test_clip():
    assert clip("x" * 300) == "x" * 199 + "…"
    assert clip({"a": 1}) == "{'a': 1}"
    assert clip("half \ud83d").isprintable()
