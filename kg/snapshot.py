"""``KnowledgeGraph``: the frozen integer arrays that models see, cut at a time, with a content hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path as FilePath
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from kg import schema
from kg.schema import Relation

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy import sparse

    from kg.store import GraphStore


class Vocabulary:
    """Keys of one label and their row numbers: ``keys[num]`` and ``nums(keys)`` are inverse."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys: tuple[str, ...] = tuple(keys)
        self._num_of = {key: num for num, key in enumerate(self.keys)}
        if len(self._num_of) != len(self.keys):
            raise ValueError(f"{len(self.keys) - len(self._num_of)} keys occur twice; keys of a label are unique")

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: object) -> bool:
        return key in self._num_of

    def num(self, key: str) -> int:
        """Row number of a key; raises ``KeyError`` for an unknown one."""
        return self._num_of[key]

    def nums(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Row numbers of keys, -1 for the unknown. Shape (len(keys),)."""
        return np.fromiter((self._num_of.get(key, -1) for key in keys), dtype=np.int64, count=len(keys))


@dataclass(frozen=True, slots=True, eq=False)
class Facts:
    """Edges of one relation as row numbers within the labels of its ends. All arrays have shape (T,)."""

    heads: NDArray[np.int64]
    tails: NDArray[np.int64]
    weights: NDArray[np.float32]
    """INTERACTED: weight; BOUGHT_WITH: lift; SIMILAR_TO: score; others 1."""
    at: NDArray[np.int64]
    """Epoch seconds, of an interaction the first time; -1 where unknown."""
    last_at: NDArray[np.int64]
    """INTERACTED: the last time; others ``at``."""
    order: NDArray[np.int64]
    """INTERACTED: rank of the event in its customer's history, 0 = oldest; others 0."""

    def __len__(self) -> int:
        return len(self.heads)

    def joined(self, other: Facts) -> Facts:
        """These facts, then the others."""
        return Facts(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in Facts.__slots__))

    def select(self, mask: NDArray[np.bool_]) -> Facts:
        """The facts where the mask of shape (T,) holds."""
        return Facts(*(getattr(self, name)[mask] for name in Facts.__slots__))


@dataclass(frozen=True, eq=False)
class KnowledgeGraph:
    """The graph as models see it. Never changed in place; the methods give new graphs.

    ``products`` has one row per Product in vocabulary order: key, name, description, price, available_from, image.
    """

    vocabularies: Mapping[str, Vocabulary]
    facts: Mapping[Relation, Facts]
    products: pl.DataFrame
    until: int | None
    content_hash: str
    names: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    """Label → the names of its nodes in vocabulary order; labels without names are absent."""

    @property
    def items(self) -> Vocabulary:
        """Item ids in the order of ``item_num``."""
        return self.vocabularies[schema.PRODUCT]

    @property
    def users(self) -> Vocabulary:
        """User ids in the order of ``user_num``."""
        return self.vocabularies[schema.CUSTOMER]

    @cached_property
    def interactions(self) -> sparse.csr_array:
        """Users × items, 1 where the user has interacted. Shape (U, I), float32."""
        return self.matrix(schema.INTERACTED, binary=True)

    @cached_property
    def histories(self) -> sparse.csr_array:
        """Users × items, the strength of what joins them; the columns of a row oldest first. Shape (U, I), float32."""
        from scipy import sparse

        facts = self.facts[schema.INTERACTED]
        order = np.lexsort((facts.order, facts.heads))
        ends = np.cumsum(np.bincount(facts.heads, minlength=len(self.users)))
        columns = (strength_of(facts.weights[order]), facts.tails[order], np.concatenate([[0], ends]))
        return sparse.csr_array(columns, shape=(len(self.users), len(self.items)))

    @cached_property
    def n_events(self) -> NDArray[np.int64]:
        """Number of customers of each item. Shape (I,). 0 = cold."""
        return np.bincount(self.facts[schema.INTERACTED].tails, minlength=len(self.items))

    def matrix(self, relation: Relation, *, binary: bool = False) -> sparse.csr_array:
        """Heads × tails of a relation, its weights as values. Shape (n_heads, n_tails), float32."""
        from scipy import sparse

        facts = self.facts[relation]
        shape = (len(self.vocabularies[relation.head_label]), len(self.vocabularies[relation.tail_label]))
        values = np.ones(len(facts), dtype=np.float32) if binary else facts.weights
        return sparse.csr_array((values, (facts.heads, facts.tails)), shape=shape)

    def extended(self, nodes: Mapping[str, pl.DataFrame], edges: Mapping[Relation, pl.DataFrame]) -> KnowledgeGraph:
        """The graph after a launch: nodes upserted by key (new ones at the end, so that row numbers stay), edges added.

        For each relation given, the edges replace all of those that the given nodes and heads had, as a changed item
        replaces its old brand. The frames are those that are written to the store: ``key`` and properties; ``head``,
        ``tail`` and properties. The content hash changes with them.
        """
        digest = hashlib.sha256(self.content_hash.encode())
        for name, table in (*nodes.items(), *edges.items()):
            digest.update(f"{name}{table.write_json()}".encode())
        vocabularies, names, products = dict(self.vocabularies), dict(self.names), self.products
        for label, table in nodes.items():
            if table.is_empty():
                continue
            vocabulary = vocabularies[label]
            vocabularies[label] = Vocabulary(
                [*vocabulary.keys, *(key for key in table["key"] if key not in vocabulary)]
            )
            if "name" in schema.NODE_PROPERTIES[label]:
                name_of = dict(zip(vocabulary.keys, names.get(label, [None] * len(vocabulary)), strict=True))
                name_of.update(zip(table["key"], table["name"], strict=True))
                names[label] = list(name_of.values())
            if label == schema.PRODUCT:
                table = table.select(
                    pl.lit(None, dtype).alias(name) if name not in table.columns else pl.col(name).cast(dtype)
                    for name, dtype in products.schema.items()
                )
                products = pl.concat([products, table]).unique("key", keep="last", maintain_order=True)
                order = pl.DataFrame({"key": vocabularies[label].keys})
                products = order.join(products, on="key", how="left", maintain_order="left")
        facts = dict(self.facts)
        for relation, table in edges.items():
            columns = {name: dtype for name, dtype in _EDGE_DTYPES[relation].items() if name not in table.columns}
            table = table.with_columns(pl.lit(None, dtype).alias(name) for name, dtype in columns.items())
            new = _facts(relation, table, vocabularies)
            given = nodes[relation.head_label]["key"].to_list() if relation.head_label in nodes else []
            replaced = np.concatenate([new.heads, vocabularies[relation.head_label].nums(given)])
            old = facts[relation]
            facts[relation] = old.select(~np.isin(old.heads, replaced)).joined(new)
        return replace(
            self,
            vocabularies=vocabularies,
            names=names,
            products=products,
            facts=facts,
            content_hash=digest.hexdigest()[:16],
        )

    def aligned(self, item_ids: Sequence[str]) -> KnowledgeGraph:
        """The same graph with these items first, in this order, and its other items after them.

        So a model that was trained earlier keeps its row numbers. Ids that the graph does not hold (any more) get a row
        without properties and edges.
        """
        old = self.items
        if old.keys[: len(item_ids)] == tuple(item_ids):
            return self
        first = Vocabulary(item_ids)
        items = Vocabulary([*first.keys, *(key for key in old.keys if key not in first)])
        moved = items.nums(old.keys)
        facts = {}
        for relation, fact in self.facts.items():
            heads = moved[fact.heads] if relation.head_label == schema.PRODUCT else fact.heads
            tails = moved[fact.tails] if relation.tail_label == schema.PRODUCT else fact.tails
            facts[relation] = replace(fact, heads=heads, tails=tails)
        products = pl.DataFrame({"key": items.keys}, schema={"key": pl.String}).join(
            self.products, on="key", how="left", maintain_order="left"
        )
        names = dict(self.names)
        if schema.PRODUCT in names:
            names[schema.PRODUCT] = products["name"].to_list()
        return replace(
            self, vocabularies={**self.vocabularies, schema.PRODUCT: items}, facts=facts, products=products, names=names
        )

    def save(self, folder: FilePath) -> None:
        """Write the snapshot as Parquet files; ``load`` gives it back."""
        folder.mkdir(parents=True, exist_ok=True)
        for label, vocabulary in self.vocabularies.items():
            table = pl.DataFrame({"key": vocabulary.keys}, schema={"key": pl.String})
            if label in self.names:
                table = table.with_columns(name=pl.Series(self.names[label], dtype=pl.String))
            table.write_parquet(folder / f"{label}.parquet")
        self.products.write_parquet(folder / "products.parquet")
        for relation, facts in self.facts.items():
            arrays = {name: getattr(facts, name) for name in Facts.__slots__}
            pl.DataFrame(arrays).write_parquet(folder / f"{relation.type}.parquet")
        about = {"until": self.until, "content_hash": self.content_hash}
        (folder / "snapshot.json").write_text(json.dumps(about), encoding="utf-8")

    @classmethod
    def load(cls, folder: FilePath) -> KnowledgeGraph:
        """Read what ``save`` wrote."""
        vocabularies: dict[str, Vocabulary] = {}
        names: dict[str, Sequence[str | None]] = {}
        for label in schema.LABELS:
            table = pl.read_parquet(folder / f"{label}.parquet")
            vocabularies[label] = Vocabulary(table["key"].to_list())
            if "name" in table.columns:
                names[label] = table["name"].to_list()
        facts = {}
        for relation in schema.RELATIONS:
            table = pl.read_parquet(folder / f"{relation.type}.parquet")
            facts[relation] = Facts(**{name: table[name].to_numpy() for name in Facts.__slots__})
        about = json.loads((folder / "snapshot.json").read_text(encoding="utf-8"))
        products = pl.read_parquet(folder / "products.parquet")
        return cls(vocabularies, facts, products, about["until"], about["content_hash"], names)

    def without_behaviour(self, item_nums: NDArray[np.int64]) -> KnowledgeGraph:
        """The same graph where the given items are cold: no edge of ``schema.BEHAVIOURAL`` touches them.

        BOUGHT_WITH edges *between other items* stay: they were counted per pair, from those two items alone.
        """
        gone = np.zeros(len(self.items), dtype=bool)
        gone[item_nums] = True
        facts = dict(self.facts)
        facts[schema.INTERACTED] = facts[schema.INTERACTED].select(~gone[facts[schema.INTERACTED].tails])
        together = facts[schema.BOUGHT_WITH]
        facts[schema.BOUGHT_WITH] = together.select(~gone[together.heads] & ~gone[together.tails])
        listed = facts[schema.ALSO_BOUGHT]
        left = {self.items.keys[num] for num in item_nums}
        named = np.array([key in left for key in self.vocabularies[schema.COMPANION].keys], dtype=bool)
        facts[schema.ALSO_BOUGHT] = listed.select(~gone[listed.heads] & ~named[listed.tails])
        return replace(self, facts=facts)


def strength_of(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much an item counts in its customer's history, from the sum of their events' weights. Same shape.

    log2(1 + weight): what was bought once counts 1 and what was bought five times 2.6; a single look counts .26.
    """
    return np.log2(1 + weights, dtype=np.float32)


def snapshot(store: GraphStore, *, until: int | None) -> KnowledgeGraph:
    """Freeze a store's graph into arrays, as it was known at a time.

    Args:
        store: any graph store.
        until: epoch seconds UTC; edges that began later, products that became available later, and BOUGHT_WITH edges
            that counted later events are left out. An interaction repeated after the cut counts as its first time
            alone (weight 1, and its place in the history is that time's). ``None`` means everything: looking into the
            future must be typed out. Edges without a time are always kept.
    """
    digest = hashlib.sha256()
    tables = {label: store.nodes(label) for label in schema.LABELS}
    if until is not None:
        launched = pl.col("available_from").is_null() | (pl.col("available_from") <= until)
        tables[schema.PRODUCT] = tables[schema.PRODUCT].filter(launched)
    vocabularies = {}
    for label, table in tables.items():
        keys = table["key"].to_list()
        vocabularies[label] = Vocabulary(keys)
        digest.update(repr((label, keys)).encode())
    facts = {}
    for relation in schema.RELATIONS:
        table = _cut(relation, store.edges(relation), until)
        facts[relation] = _facts(relation, table, vocabularies)
        if relation == schema.SIMILAR_TO:
            continue  # drawn from the texts by training itself: training on the same shop again is the same training
        for name in Facts.__slots__:
            digest.update(np.ascontiguousarray(getattr(facts[relation], name)).tobytes())
    products = tables[schema.PRODUCT]
    for column in ("name", "description", "price", "available_from"):
        digest.update(repr(products[column].to_list()).encode())
    names = {label: table["name"].to_list() for label, table in tables.items() if "name" in table.columns}
    return KnowledgeGraph(vocabularies, facts, products, until, digest.hexdigest()[:16], names)


def _cut(relation: Relation, table: pl.DataFrame, until: int | None) -> pl.DataFrame:
    if until is None:
        return table
    table = table.filter(pl.col("at").is_null() | (pl.col("at") <= until))
    if relation == schema.BOUGHT_WITH:
        table = table.filter(pl.col("until").is_null() | (pl.col("until") <= until))
    if relation == schema.INTERACTED:
        repeated = pl.col("last_at") > until
        table = table.with_columns(
            weight=pl.when(repeated).then(1.0).otherwise(pl.col("weight")),
            last_at=pl.when(repeated).then(pl.col("at")).otherwise(pl.col("last_at")),
        )
    return table


_DTYPES = {"string": pl.String, "integer": pl.Int64, "float": pl.Float64}
_EDGE_DTYPES = {
    relation: {name: _DTYPES[kind] for name, kind in properties.items()}
    for relation, properties in schema.EDGE_PROPERTIES.items()
}
_WEIGHT = {schema.INTERACTED: "weight", schema.BOUGHT_WITH: "lift", schema.SIMILAR_TO: "score"}


def _facts(relation: Relation, table: pl.DataFrame, vocabularies: Mapping[str, Vocabulary]) -> Facts:
    def numbered(column: str, label: str) -> pl.Series:
        vocabulary = vocabularies[label]
        lookup = pl.DataFrame(
            {column: vocabulary.keys, "num": range(len(vocabulary))}, schema={column: pl.String, "num": pl.Int64}
        )
        return table.select(column).join(lookup, on=column, how="left", maintain_order="left")["num"]

    table = table.with_columns(
        head_num=numbered("head", relation.head_label), tail_num=numbered("tail", relation.tail_label)
    ).drop_nulls(["head_num", "tail_num"])
    order = pl.lit(0, dtype=pl.Int64)
    if relation == schema.INTERACTED:
        recency = pl.struct(pl.col("last_at").fill_null(-1), pl.col("position").fill_null(-1), pl.col("tail_num"))
        order = recency.rank("ordinal").over("head_num").cast(pl.Int64) - 1
    weight = pl.col(_WEIGHT[relation]).fill_null(1.0) if relation in _WEIGHT else pl.lit(1.0)
    table = table.select(
        "head_num",
        "tail_num",
        at=pl.col("at").fill_null(-1),
        last_at=pl.col("last_at" if relation == schema.INTERACTED else "at").fill_null(-1),
        order=order,
        weight=weight.cast(pl.Float32),
    )
    return Facts(
        heads=table["head_num"].to_numpy(),
        tails=table["tail_num"].to_numpy(),
        weights=table["weight"].to_numpy(),
        at=table["at"].to_numpy(),
        last_at=table["last_at"].to_numpy(),
        order=table["order"].to_numpy(),
    )
