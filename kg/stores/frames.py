"""The door of every store: frames are checked and typed before a write, and typed the same way after a read."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final, get_args

import polars as pl

from kg import schema
from kg.errors import StoreError
from kg.schema import Relation

_DTYPES: Final[dict[schema.PropertyType, type[pl.DataType]]] = {
    "string": pl.String,
    "integer": pl.Int64,
    "float": pl.Float64,
}
_SOURCES: Final = get_args(schema.Source)


def node_columns(label: str) -> dict[str, type[pl.DataType]]:
    """``key`` and the properties of a label with their types; ``ValueError`` for a label outside the schema."""
    if label not in schema.NODE_PROPERTIES:
        raise ValueError(f"label {label!r} is not in the schema; expected one of {', '.join(schema.LABELS)}")
    return {"key": pl.String, **_typed(schema.NODE_PROPERTIES[label])}


def edge_columns(relation: Relation) -> dict[str, type[pl.DataType]]:
    """``head``, ``tail`` and the properties of a relation with their types; ``ValueError`` outside the schema."""
    if relation not in schema.EDGE_PROPERTIES:
        known = ", ".join(known.type for known in schema.RELATIONS)
        raise ValueError(f"{relation} is not in the schema; expected one of {known}")
    return {"head": pl.String, "tail": pl.String, **_typed(schema.EDGE_PROPERTIES[relation])}


def checked_nodes(label: str, nodes: pl.DataFrame) -> pl.DataFrame:
    """Nodes with schema types, each key once: of rows with the same key the last wins, as if written in order.

    Raises:
        ValueError: a column that the schema does not know, or of another type; no ``key`` column.
        StoreError: a missing key, or a number that is not finite.
    """
    return _checked(nodes, node_columns(label), ("key",), f"nodes {label}")


def checked_edges(relation: Relation, edges: pl.DataFrame) -> pl.DataFrame:
    """Edges with schema types, each (head, tail) once, the last row winning; every edge says its ``source``.

    Raises:
        ValueError: a column that the schema does not know, or of another type; no ``head``, ``tail`` or ``source``.
        StoreError: a missing end or source, an unknown source, or a number that is not finite.
    """
    where = f"edges {relation.type}"
    if "source" not in edges.columns:
        raise ValueError(f"{where}: column 'source' is missing; every edge says where it comes from")
    edges = _checked(edges, edge_columns(relation), ("head", "tail"), where)
    unknown = edges.filter(~pl.col("source").is_in(_SOURCES).fill_null(False))
    if len(unknown):
        raise StoreError(
            f"{where}: {len(unknown)} of {len(edges)} rows have a wrong source, the first {unknown['source'][0]!r}; "
            f"expected one of {', '.join(_SOURCES)}"
        )
    return edges


def checked_pairs(relation: Relation, edges: pl.DataFrame) -> pl.DataFrame:
    """Only (head, tail) of the edges, each pair once."""
    columns = edge_columns(relation)
    return _checked(edges.select("head", "tail"), columns, ("head", "tail"), f"edges {relation.type}")


def read_frame(rows: Mapping[str, Sequence[Any]], columns: Mapping[str, type[pl.DataType]]) -> pl.DataFrame:
    """Columns as read from a store, typed by the schema (null columns too) and sorted by their key columns."""
    frame = pl.DataFrame(dict(rows), schema=dict(columns))
    return frame.sort([name for name in ("key", "head", "tail") if name in columns])


def batches(frame: pl.DataFrame, n_rows: int, n_bytes: int = 8 << 20) -> Iterator[list[dict[str, Any]]]:
    """The rows of a frame as dictionaries, at most ``n_rows`` and about ``n_bytes`` at a time, at least one row."""
    row_bytes = max(1, int(frame.estimated_size()) // max(1, len(frame)))
    for part in frame.iter_slices(max(1, min(n_rows, n_bytes // row_bytes))):
        yield part.to_dicts()


def refuse_missing_ends(
    relation: Relation, edges: pl.DataFrame, heads: Collection[str], tails: Collection[str]
) -> None:
    """Raise ``StoreError`` with an example where an edge's head or tail is not among the keys that exist."""
    for end, label, existing in (("head", relation.head_label, heads), ("tail", relation.tail_label, tails)):
        lost = edges.filter(~pl.col(end).is_in(pl.Series(list(existing), dtype=pl.String).implode()))
        if len(lost):
            example = lost.row(0, named=True)
            raise StoreError(
                f"edge {relation.type} from {relation.head_label} {example['head']!r} to {relation.tail_label} "
                f"{example['tail']!r}: the {end} {label} {example[end]!r} does not exist "
                f"({len(lost)} of {len(edges)} rows lack theirs); write the {label} nodes first"
            )


def _typed(properties: Mapping[str, schema.PropertyType]) -> dict[str, type[pl.DataType]]:
    return {name: _DTYPES[kind] for name, kind in properties.items()}


def _checked(
    frame: pl.DataFrame, columns: Mapping[str, type[pl.DataType]], keys: tuple[str, ...], where: str
) -> pl.DataFrame:
    missing = [name for name in keys if name not in frame.columns]
    unknown = [name for name in frame.columns if name not in columns]
    if missing or unknown:
        raise ValueError(
            f"{where}: columns {missing} are missing, columns {unknown} are unknown; the schema has {list(columns)}"
        )
    for name, dtype in frame.schema.items():
        if not _fits(dtype, columns[name]):
            raise ValueError(f"{where}: column {name!r} has type {dtype}, the schema says {columns[name].__name__}")
    frame = frame.cast({name: columns[name] for name in frame.columns})
    for name in keys:
        if frame[name].null_count():
            raise StoreError(f"{where}: {frame[name].null_count()} of {len(frame)} rows have no {name}; leave them out")
    for name in frame.columns:
        if columns[name] is pl.Float64 and not frame[name].is_finite().all():
            raise StoreError(f"{where}: column {name!r} holds NaN or an infinite number; give null for 'not known'")
    return frame.unique(keys, keep="last", maintain_order=True)


def _fits(found: pl.DataType, wanted: type[pl.DataType]) -> bool:
    # Casting is for width alone: a Datetime cast to Int64 would silently turn into microseconds.
    if found == pl.Null:
        return True
    if wanted is pl.String:
        return found in (pl.String, pl.Categorical, pl.Enum)
    return found.is_integer() or (wanted is pl.Float64 and found.is_numeric())
