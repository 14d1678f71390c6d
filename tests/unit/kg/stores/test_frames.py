"""The door of the stores: what comes in is checked, what goes out is typed."""

from datetime import UTC, datetime

import polars as pl
import pytest

from kg import Relation, schema
from kg.errors import StoreError
from kg.stores import frames


def edges(**columns: list[object]) -> pl.DataFrame:
    return pl.DataFrame({"head": ["p1", "p2"], "tail": ["acme", "acme"], "source": ["catalogue", "person"], **columns})


def test_numbers_get_the_width_of_the_schema_and_null_columns_a_type() -> None:
    raw = pl.DataFrame(
        {"key": ["a"], "name": [None], "price": [3], "available_from": pl.Series([5], dtype=pl.Int16)},
    )
    checked = frames.checked_nodes(schema.PRODUCT, raw)
    assert dict(checked.schema) == {
        "key": pl.String,
        "name": pl.String,
        "price": pl.Float64,
        "available_from": pl.Int64,
    }
    assert checked.row(0) == ("a", None, 3.0, 5)


def test_categories_are_strings() -> None:
    raw = pl.DataFrame({"key": pl.Series(["a", "b"], dtype=pl.Categorical)})
    assert frames.checked_nodes(schema.CUSTOMER, raw)["key"].to_list() == ["a", "b"]


@pytest.mark.parametrize(
    "column",
    [
        {"available_from": [datetime(2020, 1, 1, tzinfo=UTC)]},  # would turn into microseconds
        {"available_from": [1.5]},
        {"price": ["12.50"]},
        {"price": [True]},
        {"name": [7]},
    ],
)
def test_a_column_of_another_type_is_refused_not_cast(column: dict[str, list[object]]) -> None:
    with pytest.raises(ValueError, match=f"column '{next(iter(column))}' has type"):
        frames.checked_nodes(schema.PRODUCT, pl.DataFrame({"key": ["a"], **column}))


def test_missing_and_unknown_columns_are_named() -> None:
    with pytest.raises(ValueError, match=r"\['key'\] are missing, columns \['id'\] are unknown"):
        frames.checked_nodes(schema.BRAND, pl.DataFrame({"id": ["a"]}))
    with pytest.raises(ValueError, match="'lift'"):
        frames.checked_edges(schema.MADE_BY, edges(lift=[1.0, 2.0]))


def test_of_rows_with_one_key_the_last_stays_at_its_place() -> None:
    raw = pl.DataFrame({"key": ["a", "b", "a", "c"], "name": ["1", "2", "3", "4"]})
    assert frames.checked_nodes(schema.BRAND, raw).rows() == [("b", "2"), ("a", "3"), ("c", "4")]


def test_numbers_that_are_not_finite_are_refused() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(StoreError, match="'number'"):
            frames.checked_edges(schema.HAS_ATTRIBUTE, edges(number=[1.0, value]))


def test_every_edge_says_where_it_comes_from() -> None:
    raw = pl.DataFrame({"head": ["p1", "p2"], "tail": ["a", "a"], "source": ["catalogue", None]})
    with pytest.raises(StoreError, match="1 of 2 rows have a wrong source, the first None"):
        frames.checked_edges(schema.MADE_BY, raw)


def test_pairs_leave_properties_out() -> None:
    assert frames.checked_pairs(schema.MADE_BY, edges(whatever=[1, 2])).columns == ["head", "tail"]


def test_reads_are_typed_and_sorted_by_code_point() -> None:
    columns = frames.node_columns(schema.BRAND)
    frame = frames.read_frame({"key": ["b", "é", "B", "\U0001f600", "\uff5e"], "name": [None] * 5}, columns)
    assert frame["key"].to_list() == ["B", "b", "é", "\uff5e", "\U0001f600"]
    assert frame.schema["name"] == pl.String
    assert frames.read_frame({"key": [], "name": []}, columns).schema == {"key": pl.String, "name": pl.String}


def test_batches_are_bounded_in_rows_and_bytes() -> None:
    frame = pl.DataFrame({"key": [str(num) for num in range(10)]})
    assert [len(rows) for rows in frames.batches(frame, 4)] == [4, 4, 2]
    long = pl.DataFrame({"key": ["x" * 1_000_000] * 5})
    assert [len(rows) for rows in frames.batches(long, 10_000, n_bytes=2_500_000)] == [2, 2, 1]
    assert [len(rows) for rows in frames.batches(long, 10_000, n_bytes=10)] == [1] * 5
    assert list(frames.batches(frame.clear(), 4)) == []


def test_a_missing_end_is_named_with_a_count() -> None:
    with pytest.raises(StoreError, match=r"the head Product 'p2' does not exist \(1 of 2 rows"):
        frames.refuse_missing_ends(schema.MADE_BY, edges(), {"p1"}, {"acme"})
    with pytest.raises(StoreError, match=r"the tail Brand 'acme' does not exist \(2 of 2 rows"):
        frames.refuse_missing_ends(schema.MADE_BY, edges(), {"p1", "p2"}, set())
    frames.refuse_missing_ends(schema.MADE_BY, edges(), {"p1", "p2"}, {"acme"})


def test_outside_the_schema_there_is_nothing() -> None:
    with pytest.raises(ValueError, match="'Shop' is not in the schema"):
        frames.node_columns("Shop")
    with pytest.raises(ValueError, match="is not in the schema"):
        frames.edge_columns(Relation("Brand", "MADE_BY", "Product"))
