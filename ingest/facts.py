"""What items, events and taxonomies bring to the graph: node and edge tables, a pure function of the canonical data.

Keys
    Category   the whole path, root first, joined by `` > ``; a ``>`` inside a label is written ``\\>``.
               A flat category is a path of length one.
    Brand      the cleaned name, case-folded ("OPI" and "Opi" are one brand); shown as it is written most often.
    Attribute  ``attribute=value``, both case-folded, ``=`` inside the attribute's name escaped. Numbers fall into
               buckets of a fixed 1-2-5 scale ("10 to 20"), so that one new item needs no statistics of the catalogue.
    Product    the shop's ``item_id``; Customer its ``user_id``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from ingest.rows import Item, default_weight
from kg import schema
from kg.schema import PropertyType, Relation

_MAX_KEY: Final = 1_900
"""Bytes. Neo4j's index refuses longer keys than about 8 kB, and no reader wants them."""

ITEM_COLUMNS: Final = pl.Schema(
    {
        "item_id": pl.String(),
        "title": pl.String(),
        "description": pl.String(),
        "category_path": pl.List(pl.String()),
        "categories": pl.List(pl.String()),
        "brand": pl.String(),
        "attributes": pl.List(pl.Struct({"attribute": pl.String(), "value": pl.String(), "number": pl.Float64()})),
        "price": pl.Float64(),
        "available_from": pl.Int64(),
        "image": pl.String(),
        "also_bought": pl.List(pl.String()),
    }
)
"""Canonical items: one row per item, sorted by ``item_id``."""
EVENT_COLUMNS: Final = pl.Schema(
    {
        "user_id": pl.String(),
        "item_id": pl.String(),
        "event": pl.String(),
        "timestamp": pl.Int64(),
        "position": pl.Int64(),
        "weight": pl.Float64(),
    }
)
"""Canonical events: one row per (user_id, item_id, event, timestamp, position), sorted by them."""
EVENT_IDENTITY: Final = ("user_id", "item_id", "event", "timestamp", "position")
TAXONOMY_COLUMNS: Final = pl.Schema(
    {"iri": pl.String(), "name": pl.String(), "labels": pl.List(pl.String()), "broader": pl.List(pl.String())}
)
"""Canonical taxonomy: one row per concept, sorted by ``iri``."""

_DTYPE: Final[dict[PropertyType, pl.DataType]] = {"string": pl.String(), "integer": pl.Int64(), "float": pl.Float64()}


@dataclass(frozen=True, slots=True, eq=False)
class GraphTables:
    """Nodes per label and edges per relation, as ``GraphStore`` takes them, with every column of the schema."""

    nodes: Mapping[str, pl.DataFrame]
    edges: Mapping[Relation, pl.DataFrame]

    def without_known(self, known: Mapping[str, Container[str]]) -> GraphTables:
        """The same without the nodes that a graph already has; how a launch leaves shared nodes as they are."""
        nodes = {
            label: table.filter(pl.Series([key not in known.get(label, ()) for key in table["key"]], dtype=pl.Boolean))
            for label, table in self.nodes.items()
        }
        return GraphTables(nodes, self.edges)


def node_columns(label: str) -> pl.Schema:
    """Columns of a label's node table: ``key`` and the properties of the schema."""
    return pl.Schema({"key": pl.String(), **{n: _DTYPE[t] for n, t in schema.NODE_PROPERTIES[label].items()}})


def edge_columns(relation: Relation) -> pl.Schema:
    """Columns of a relation's edge table: ``head``, ``tail`` and the properties of the schema."""
    properties = {n: _DTYPE[t] for n, t in schema.EDGE_PROPERTIES[relation].items()}
    return pl.Schema({"head": pl.String(), "tail": pl.String(), **properties})


def conform(table: pl.DataFrame, columns: pl.Schema) -> pl.DataFrame:
    """The table with exactly these columns: missing ones null, others dropped, types cast, sorted by its keys."""
    keys = [name for name in ("key", "head", "tail") if name in columns]
    expressions = [
        (pl.col(name) if name in table.columns else pl.lit(None)).cast(dtype).alias(name)
        for name, dtype in columns.items()
    ]
    return table.select(expressions).sort(keys)


def _bounded(key: str) -> str:
    data = key.encode()
    if len(data) <= _MAX_KEY:
        return key
    return f"{data[:_MAX_KEY].decode(errors='ignore')}…{hashlib.sha256(data).hexdigest()[:16]}"


def category_key(path: Iterable[str]) -> str:
    """Key of the category at the end of a path of labels, root first; two paths never share one."""
    return _bounded(" > ".join(label.replace(">", "\\>") for label in path))


def brand_key(brand: str) -> str:
    """Key of a brand from its cleaned name."""
    return _bounded(brand.casefold())


def attribute_key(attribute: str, value: str) -> str:
    """Key of an attribute node; ``value`` is a text, "yes" or "no", or a bucket of numbers."""
    name = attribute.casefold().replace("\\", "\\\\").replace("=", "\\=")
    return _bounded(f"{name}={value.casefold()}")


def number_bucket(number: float) -> str:
    """Bucket of a finite number on the scale …, .1, .2, .5, 1, 2, 5, 10, …: from the bound up to, without, the next.

    0 is a bucket of its own; a negative number's is its positive twin's, mirrored.
    """
    if number == 0:
        return "0"
    size = abs(number)
    exponent = math.floor(math.log10(size))
    # One step more on both sides, since log10 of a power of ten may fall on either.
    bounds = [
        (float(f"{m}e{e}"), m, e) for e in (exponent - 1, exponent, exponent + 1, exponent + 2) for m in (1, 2, 5)
    ]
    place = max(at for at, (bound, _, _) in enumerate(bounds) if bound <= size)
    lower, upper = (_plain_number(m, e) for _, m, e in bounds[place : place + 2])
    return f"{lower} to {upper}" if number > 0 else f"-{upper} to -{lower}"


def _plain_number(mantissa: int, exponent: int) -> str:
    if 0 <= exponent <= 9:
        return f"{mantissa}{'0' * exponent}"
    if -6 <= exponent < 0:
        return f"0.{'0' * (-exponent - 1)}{mantissa}"
    return f"{mantissa}e{exponent}"


def items_frame(items: Iterable[Item]) -> pl.DataFrame:
    """Items as the canonical table, in the order given."""
    rows = [
        (
            item.item_id,
            item.title,
            item.description,
            item.category_path,
            item.categories,
            item.brand,
            [_attribute_row(name, value) for name, values in item.attributes.items() for value in values],
            item.price,
            item.available_from,
            item.image,
            item.also_bought,
        )
        for item in items
    ]
    return pl.DataFrame(rows, schema=ITEM_COLUMNS, orient="row")


def _attribute_row(name: str, value: str | float | bool) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"attribute": name, "value": "yes" if value else "no", "number": None}
    if isinstance(value, str):
        return {"attribute": name, "value": value, "number": None}
    return {"attribute": name, "value": number_bucket(value), "number": float(value)}


def item_facts(items: pl.DataFrame | Iterable[Item]) -> GraphTables:
    """The nodes and edges that items bring: the one way into the graph for a whole catalogue and for one launch.

    Args:
        items: canonical items (``ITEM_COLUMNS``), or ``Item`` objects.

    Returns:
        Tables for Product, Category, Brand, Attribute and their relations, ``source`` "catalogue". ``at`` is the
        item's ``available_from``, null where the shop gave none.
    """
    frame = items if isinstance(items, pl.DataFrame) else items_frame(items)
    products = frame.rename({"item_id": "key", "title": "name"})
    categories, in_category, subcategory_of = _category_facts(frame)
    brands, made_by = _brand_facts(frame)
    attributes, has_attribute = _attribute_facts(frame)
    return GraphTables(
        {
            schema.CATEGORY: conform(categories, node_columns(schema.CATEGORY)),
            schema.BRAND: conform(brands, node_columns(schema.BRAND)),
            schema.ATTRIBUTE: conform(attributes, node_columns(schema.ATTRIBUTE)),
            schema.PRODUCT: conform(products, node_columns(schema.PRODUCT)),
        },
        {
            schema.IN_CATEGORY: conform(in_category, edge_columns(schema.IN_CATEGORY)),
            schema.SUBCATEGORY_OF: conform(subcategory_of, edge_columns(schema.SUBCATEGORY_OF)),
            schema.MADE_BY: conform(made_by, edge_columns(schema.MADE_BY)),
            schema.HAS_ATTRIBUTE: conform(has_attribute, edge_columns(schema.HAS_ATTRIBUTE)),
        },
    )


def _category_facts(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    keys_of: dict[tuple[str, ...], str] = {}
    parents: dict[str, str] = {}
    names: dict[str, str] = {}

    def register(path: tuple[str, ...]) -> str:
        if path not in keys_of:
            key = keys_of[path] = category_key(path)
            names[key] = path[-1]
            if len(path) > 1:
                parents[key] = register(path[:-1])
        return keys_of[path]

    edges = []
    columns = frame.select("item_id", "category_path", "categories", "available_from")
    for item_id, path, flat, at in columns.iter_rows():
        paths = [tuple(path)] if path else []
        # A flat category that the path names already would stand beside itself as a second node.
        paths += [(label,) for label in flat or () if label not in (path or ())]
        edges += [(item_id, register(one), at) for one in paths]
    text = pl.String()
    in_category = pl.DataFrame(edges, schema={"head": text, "tail": text, "at": pl.Int64()}, orient="row")
    categories = pl.DataFrame({"key": list(names), "name": list(names.values())}, schema={"key": text, "name": text})
    upward = pl.DataFrame({"head": list(parents), "tail": list(parents.values())}, schema={"head": text, "tail": text})
    catalogue = pl.lit("catalogue").alias("source")
    return (
        categories.with_columns(catalogue),
        in_category.with_columns(catalogue).unique(["head", "tail"], keep="first", maintain_order=True),
        upward.with_columns(catalogue),
    )


def _most_frequent(forms: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    """For each ``key`` the written form (the given columns) that occurs most often; ties go to the first in order."""
    counted = (
        forms.group_by("key", *columns)
        .len()
        .sort("key", "len", *columns, descending=[False, True] + [False] * len(columns))
    )
    return counted.unique("key", keep="first", maintain_order=True).select("key", *columns)


def _keyed(distinct: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    return distinct.with_columns(pl.Series("key", keys, dtype=pl.String()))


def _brand_facts(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    made = frame.select("item_id", "available_from", name="brand").drop_nulls("name")
    distinct = made.select("name").unique()
    distinct = _keyed(distinct, [brand_key(name) for name in distinct["name"]])
    made = made.join(distinct, on="name")
    edges = made.select(head="item_id", tail="key", at="available_from", source=pl.lit("catalogue"))
    return _most_frequent(made.select("key", "name"), ["name"]), edges


def _attribute_facts(frame: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    has = (
        frame.select("item_id", "available_from", "attributes")
        .explode("attributes")
        .drop_nulls("attributes")
        .unnest("attributes")
    )
    distinct = has.select("attribute", "value").unique()
    distinct = _keyed(distinct, [attribute_key(name, value) for name, value in distinct.iter_rows()])
    has = has.join(distinct, on=["attribute", "value"])
    nodes = _most_frequent(has.select("key", "attribute", "value"), ["attribute", "value"])
    nodes = nodes.with_columns(name=pl.format("{}: {}", "attribute", "value"))
    # Two numbers of one item in one bucket share an edge; the smaller one stands on it.
    edges = has.group_by(head="item_id", tail="key").agg(
        at=pl.col("available_from").first(), number=pl.col("number").min(), source=pl.lit("catalogue").first()
    )
    return nodes, edges


def interactions(events: pl.DataFrame) -> GraphTables:
    """Customers and one INTERACTED edge per (customer, product) from canonical events.

    ``at`` is the first time, ``last_at`` the last, ``position`` the last, ``weight`` the sum, and ``kind`` the one
    that weighs most by itself (the first in order among equals).
    """
    kinds = events["event"].unique().to_list()
    strength = pl.DataFrame(
        {"event": kinds, "strength": [default_weight(kind) for kind in kinds]},
        schema={"event": pl.String(), "strength": pl.Float64()},
    )
    strongest = pl.col("event").sort_by(["strength", "event"], descending=[True, False], nulls_last=True).first()
    edges = (
        events.join(strength, on="event", nulls_equal=True, how="left")
        .group_by(head="user_id", tail="item_id")
        .agg(
            at=pl.col("timestamp").min(),
            last_at=pl.col("timestamp").max(),
            position=pl.col("position").max(),
            kind=strongest,
            weight=pl.col("weight").sort().sum().round(6),
            source=pl.lit("behaviour").first(),
        )
    )
    customers = events.select(key="user_id").unique()
    return GraphTables(
        {schema.CUSTOMER: conform(customers, node_columns(schema.CUSTOMER))},
        {schema.INTERACTED: conform(edges, edge_columns(schema.INTERACTED))},
    )


def also_bought(items: pl.DataFrame, sold: pl.Series) -> GraphTables:
    """Companions and the ALSO_BOUGHT edges of canonical items that have been sold.

    A companion joins something: it is a sold item itself, or several list it. A list is behaviour, so that an item
    without a sale has none, and is in none.

    Args:
        items: canonical items.
        sold: ids of items with events.
    """
    is_sold = pl.col("item_id").is_in(sold.implode())
    listed = items.filter(is_sold).select(head="item_id", tail="also_bought").explode("tail").drop_nulls()
    listed = listed.filter(pl.col("head") != pl.col("tail")).unique()
    ours = pl.col("tail").is_in(items["item_id"].implode())
    joins = pl.when(ours).then(pl.col("tail").is_in(sold.implode())).otherwise(pl.len().over("tail") > 1)
    edges = listed.filter(joins).with_columns(source=pl.lit("behaviour"))
    companions = edges.select(key="tail").unique()
    return GraphTables(
        {schema.COMPANION: conform(companions, node_columns(schema.COMPANION))},
        {schema.ALSO_BOUGHT: conform(edges, edge_columns(schema.ALSO_BOUGHT))},
    )


def taxonomy_facts(taxonomy: pl.DataFrame, catalogue: GraphTables) -> tuple[GraphTables, list[tuple[str, str]]]:
    """Categories and SUBCATEGORY_OF edges of a taxonomy, joined with those of the catalogue.

    A concept *is* a catalogue category, and takes its key, where the concept's whole label path (one parent a step)
    is the category's path; else where exactly one catalogue category bears one of its labels and it is the only
    concept that bears it. Any other concept is a category of its own under its IRI.

    Returns:
        The tables (``source`` "taxonomy"; the catalogue's nodes and edges are not repeated), and the ``(iri, broader
        iri)`` links that were left out because they close a cycle.
    """
    concepts = {row["iri"]: row for row in taxonomy.sort("iri").iter_rows(named=True)}
    categories = catalogue.nodes[schema.CATEGORY]
    key_of = _joined(concepts, dict(zip(categories["key"], categories["name"], strict=True)))
    upward: dict[str, set[str]] = {}
    for head, tail in catalogue.edges[schema.SUBCATEGORY_OF].select("head", "tail").iter_rows():
        upward.setdefault(head, set()).add(tail)
    nodes = [(key, concepts[iri]["name"], "taxonomy") for iri, key in key_of.items() if key == iri]
    edges, cycles = [], []
    for iri, concept in concepts.items():
        for broader in sorted(set(concept["broader"])):
            if broader not in concepts:
                continue
            head, tail = key_of[iri], key_of[broader]
            if _reaches(upward, tail, head):
                cycles.append((iri, broader))
            elif tail not in upward.setdefault(head, set()):
                upward[head].add(tail)
                edges.append((head, tail, "taxonomy"))
    text = pl.String()
    tables = GraphTables(
        {
            schema.CATEGORY: conform(
                pl.DataFrame(nodes, schema={"key": text, "name": text, "source": text}, orient="row"),
                node_columns(schema.CATEGORY),
            )
        },
        {
            schema.SUBCATEGORY_OF: conform(
                pl.DataFrame(edges, schema={"head": text, "tail": text, "source": text}, orient="row"),
                edge_columns(schema.SUBCATEGORY_OF),
            )
        },
    )
    return tables, cycles


def _joined(concepts: Mapping[str, Mapping[str, Any]], name_of: Mapping[str, str]) -> dict[str, str]:
    """Key of each concept: the catalogue category that it is, or its own IRI."""
    by_name: dict[str, list[str]] = {}
    for key, name in name_of.items():
        by_name.setdefault(name.casefold(), []).append(key)
    bearers: dict[str, list[str]] = {}
    for iri, concept in concepts.items():
        for label in {label.casefold() for label in concept["labels"]}:
            bearers.setdefault(label, []).append(iri)
    joined: dict[str, str] = {}
    taken: set[str] = set()
    for iri in concepts:
        path = _label_path(concepts, iri)
        key = "" if path is None else category_key(path)
        if key in name_of and key not in taken:
            joined[iri] = key
            taken.add(key)
    for iri, concept in concepts.items():
        if iri in joined:
            continue
        for label in sorted({label.casefold() for label in concept["labels"]}):
            keys = by_name.get(label, [])
            if len(keys) == 1 and bearers[label] == [iri] and keys[0] not in taken:
                joined[iri] = keys[0]
                taken.add(keys[0])
                break
    return {iri: joined.get(iri, iri) for iri in concepts}


def _label_path(concepts: Mapping[str, Mapping[str, Any]], iri: str) -> list[str] | None:
    """Labels from the root down to a concept; ``None`` where it has several parents on the way, or a cycle."""
    path: list[str] = []
    seen: set[str] = set()
    while True:
        if iri in seen:
            return None
        seen.add(iri)
        path.append(concepts[iri]["name"])
        parents = [parent for parent in set(concepts[iri]["broader"]) if parent in concepts]
        if not parents:
            return path[::-1]
        if len(parents) > 1:
            return None
        iri = parents[0]


def _reaches(upward: Mapping[str, set[str]], start: str, goal: str) -> bool:
    stack, seen = [start], {start}
    while stack:
        node = stack.pop()
        if node == goal:
            return True
        new = upward.get(node, set()) - seen
        seen |= new
        stack.extend(new)
    return False
