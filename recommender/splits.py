"""Splits of a shop into what may be learned from and what is hidden: by random items, or by time.

``split_shop`` writes a shop folder that any recommender can be trained on, and the hidden truth apart from it. What the
raw files would tell about the future is taken out: item ids are renamed at random (their order tells launch dates),
catalogue rows are shuffled (so does theirs), ``position`` is counted anew (gaps show where a hidden item stood).
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import polars as pl
from pydantic_core import PydanticCustomError

from ingest.rows import listed_ids, parse_timestamp
from ingest.together import bought_with
from kg import schema
from kg.errors import SourceError
from kg.snapshot import Facts, KnowledgeGraph

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy import sparse

ProtocolName = Literal["items", "time"]
HIDDEN_SHARE: Final = 0.2
_CARRIED: Final = ("timestamp", "event", "weight")


@dataclass(frozen=True, slots=True)
class Shop:
    """A shop's tables: items as read, one dict an item; events with ``user_id``, ``item_id`` and what else there is.

    ``timestamp`` of the events is in epoch seconds UTC where there is one.
    """

    items: list[dict[str, Any]]
    events: pl.DataFrame


@dataclass(frozen=True, slots=True)
class Truth:
    """What a split hides. All ids are the renamed ones.

    ``hidden`` has ``user_id``, ``item_id`` and ``cold``, one row a pair; every user in it has a training event.
    """

    shop_folder: Path
    hidden: pl.DataFrame
    n_cold_items: int
    n_test_users: int
    data_hash: str


@dataclass(frozen=True, eq=False)
class GraphSplit:
    """A graph to train on, and the hidden pairs as a matrix over the same vocabularies.

    ``hidden`` is 1 where a user with a training event interacted with the item out of sight. Shape (U, I).
    """

    graph: KnowledgeGraph
    hidden: sparse.csr_array

    @property
    def cold(self) -> NDArray[np.bool_]:
        """Items without a training event. Shape (I,)."""
        return np.asarray(self.graph.n_events == 0)


def split_graph(graph: KnowledgeGraph, *, seed: int, warm_share: float = 0.0) -> GraphSplit:
    """Hide a fifth of the sold items, as ``split_shop`` does, and a share of the remaining pairs.

    What would tell of the hidden part is taken out here too: items are put in random order (keys stay, but models see
    row numbers), ``order`` and BOUGHT_WITH are counted anew from what stays, SIMILAR_TO, which an encoder trained on
    everything may have written, goes.

    Raises:
        SourceError: nothing left on one side.
    """
    facts = graph.facts[schema.INTERACTED]
    sold = sorted({graph.items.keys[num] for num in np.unique(facts.tails)})
    random.Random(seed).shuffle(sold)  # noqa: S311  repeatable, no secret
    cold = np.zeros(len(graph.items), dtype=bool)
    cold[graph.items.nums(sold[: int(len(sold) * HIDDEN_SHARE)])] = True
    stays = ~cold[facts.tails]
    rows = np.flatnonzero(stays)
    random.Random(f"{seed} warm pairs").shuffle(order := rows.tolist())  # noqa: S311  repeatable, no secret
    of_user = np.bincount(facts.heads[rows], minlength=len(graph.users))
    of_item = np.bincount(facts.tails[rows], minlength=len(graph.items))
    wanted = int(len(rows) * warm_share)
    for row in order:
        if not wanted:
            break
        user, item = facts.heads[row], facts.tails[row]
        if of_user[user] > 1 and of_item[item] > 1:
            stays[row] = False
            of_user[user] -= 1
            of_item[item] -= 1
            wanted -= 1
    return _graph_split(graph, facts.select(stays), facts.select(~stays), f"items {seed} {warm_share}")


def cut_graph(graph: KnowledgeGraph, known: KnowledgeGraph, cut: int) -> GraphSplit:
    """Hide everything from a time on.

    Args:
        graph: the whole graph, ``snapshot(store, until=None)``.
        known: the same as it was known just before the cut, ``snapshot(store, until=cut - 1)``.
        cut: epoch seconds UTC. An ``available_from`` at or after it is taken out, as ``split_shop`` does.

    Raises:
        SourceError: the events have no clock, or nothing is left on one side.
    """
    events, before = graph.facts[schema.INTERACTED], known.facts[schema.INTERACTED]
    if not (events.at >= 0).any():
        raise SourceError("a time split needs a 'timestamp' in the events; use protocol 'items' without")
    late = pl.col("available_from") >= cut
    products = graph.products.with_columns(pl.when(~late).then(pl.col("available_from")))
    train = Facts(
        graph.users.nums([known.users.keys[num] for num in before.heads]),
        graph.items.nums([known.items.keys[num] for num in before.tails]),
        before.weights,
        before.at,
        before.last_at,
        before.order,
    )
    rest = events.select(events.at >= cut)
    if len(train) and train.at.max() >= cut:
        raise AssertionError(f"the split leaks: {int((train.at >= cut).sum())} training events at or after the cut")
    return _graph_split(replace(graph, products=products), train, rest, f"time {cut}")


def default_cut(graph: KnowledgeGraph) -> int:
    """The time from which on a fifth of the sold items was first sold; epoch seconds UTC.

    Raises:
        SourceError: the events have no clock.
    """
    facts = graph.facts[schema.INTERACTED]
    first = np.full(len(graph.items), np.iinfo(np.int64).max)
    np.minimum.at(first, facts.tails[facts.at >= 0], facts.at[facts.at >= 0])
    first = first[first < np.iinfo(np.int64).max]
    if not len(first):
        raise SourceError("a time split needs a 'timestamp' in the events; use protocol 'items' without")
    return int(np.quantile(first, 1 - HIDDEN_SHARE, method="higher"))


def _graph_split(graph: KnowledgeGraph, train: Facts, rest: Facts, name: str) -> GraphSplit:
    from scipy import sparse

    shape = (len(graph.users), len(graph.items))
    in_training = np.zeros(shape[0], dtype=bool)
    in_training[train.heads] = True
    taken = np.sort(train.heads * shape[1] + train.tails)
    rest = rest.select(in_training[rest.heads])
    rest = rest.select(~np.isin(rest.heads * shape[1] + rest.tails, taken))
    if not len(train) or not len(rest):
        raise SourceError(
            f"the split leaves {len(train)} training events and {len(rest)} hidden pairs; both need at least one: "
            "ingest more events, or take a cut that does not lie at their edge"
        )
    keys = list(graph.items.keys)
    random.Random(f"{name} rows").shuffle(keys)  # noqa: S311  repeatable, no secret
    nothing = np.empty(0, dtype=np.int64)
    empty = Facts(nothing, nothing, nothing.astype(np.float32), nothing, nothing, nothing)
    train = replace(train, order=_ranks(train))
    facts = {**graph.facts, schema.INTERACTED: train, schema.SIMILAR_TO: empty}
    facts[schema.BOUGHT_WITH] = _bought_with(graph, train)
    facts[schema.ALSO_BOUGHT] = facts[schema.ALSO_BOUGHT].select(_told(graph, train))
    digest = hashlib.sha256(f"{graph.content_hash} {name}".encode()).hexdigest()[:16]
    trained_on = replace(graph, facts=facts, content_hash=digest).aligned(keys)
    tails = trained_on.items.nums([graph.items.keys[num] for num in rest.tails])
    hidden = sparse.csr_array((np.ones(len(rest), dtype=np.float32), (rest.heads, tails)), shape=shape)
    split = GraphSplit(trained_on, hidden)
    touched = np.unique(hidden.indices[split.cold[hidden.indices]])
    together = trained_on.facts[schema.BOUGHT_WITH]
    if trained_on.interactions.multiply(hidden).nnz or np.isin(touched, [*together.heads, *together.tails]).any():
        raise AssertionError("the split leaks: a hidden pair is in training, or a cold item has a behavioural edge")
    return split


def _ranks(facts: Facts) -> NDArray[np.int64]:
    """Rank of each fact in its head's history, 0 = oldest, without gaps."""
    by_head = np.lexsort((facts.order, facts.heads))
    heads = facts.heads[by_head]
    starts = np.searchsorted(heads, heads)
    ranks = np.empty(len(facts), dtype=np.int64)
    ranks[by_head] = np.arange(len(facts)) - starts
    return ranks


def _told(graph: KnowledgeGraph, train: Facts) -> NDArray[np.bool_]:
    """Which ALSO_BOUGHT edges neither leave nor reach an item that is new in training. Shape (T,)."""
    listed = graph.facts[schema.ALSO_BOUGHT]
    sold = np.append(np.bincount(train.tails, minlength=len(graph.items)) > 0, True)
    reached = graph.items.nums(graph.vocabularies[schema.COMPANION].keys)  # -1 is no item of the shop: stays
    return np.asarray(sold[listed.heads] & sold[reached][listed.tails])


def _bought_with(graph: KnowledgeGraph, train: Facts) -> Facts:
    at, last_at = (pl.Series(times).set(pl.Series(times < 0), None) for times in (train.at, train.last_at))
    interactions = pl.DataFrame(
        {
            "head": [graph.users.keys[num] for num in train.heads],
            "tail": [graph.items.keys[num] for num in train.tails],
            "at": at,
            "last_at": last_at,
            "position": train.order,
        }
    )
    edges = bought_with(interactions).edges[schema.BOUGHT_WITH]
    return Facts(
        graph.items.nums(edges["head"].to_list()),
        graph.items.nums(edges["tail"].to_list()),
        edges["lift"].cast(pl.Float32).to_numpy(),
        edges["at"].fill_null(-1).to_numpy(),
        edges["at"].fill_null(-1).to_numpy(),
        np.zeros(len(edges), dtype=np.int64),
    )


def read_shop(folder: str | Path) -> Shop:
    """Read the items and events files of a shop folder as they are, without the cleaning that ``ingest`` does.

    Raises:
        SourceError: no such folder or file, a column is missing, or RDF files lie beside (their ids would not be
            renamed with the items').
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise SourceError(f"no shop folder at {str(folder)!r}; give a folder with an items and an events file")
    rdf = [file.name for file in folder.iterdir() if file.name.endswith((".ttl", ".jsonld", ".nt"))]
    if rdf:
        raise SourceError(
            f"{str(folder)!r} holds RDF ({', '.join(sorted(rdf))}), whose ids a split does not rename; take it out"
        )
    items = _read_rows(_find(folder, "items"))
    events = pl.DataFrame(_read_rows(_find(folder, "events")), infer_schema_length=None)
    for name, columns in (("items", set(items[0]) if items else set()), ("events", set(events.columns))):
        missing = ({"item_id"} if name == "items" else {"user_id", "item_id"}) - columns
        if missing:
            raise SourceError(f"{name} of {str(folder)!r} lack {sorted(missing)}; found columns {sorted(columns)}")
    events = events.with_columns(pl.col("user_id", "item_id").cast(pl.String))
    if "position" in events.columns:
        events = events.with_columns(pl.col("position").cast(pl.Float64).cast(pl.Int64))
    if "timestamp" in events.columns:
        events = events.with_columns(timestamp=_epoch_seconds(events["timestamp"]))
    return Shop([{**item, "item_id": str(item["item_id"])} for item in items], events)


def split_shop(
    source: str | Path | Shop,
    out_folder: str | Path,
    *,
    seed: int,
    protocol: ProtocolName = "items",
    cut: str | int | None = None,
    warm_share: float = 0.0,
) -> Truth:
    """Write ``out_folder/shop`` to train on and ``out_folder/truth.csv`` with what it hides.

    Protocol ``items``: the item ids that occur in catalogue and events, sorted, ``random.Random(seed).shuffle``, the
    first fifth hidden with all their events. Protocol ``time``: every event at or after ``cut`` is hidden; what was
    never sold before it is new. Events of items outside the catalogue are left out of both sides; an ``available_from``
    at or after the cut is taken out (it tells how long a new item was on sale in the hidden time). ``also_bought``
    stays between known items. It may tell of their hidden pairs: leave it out of the source where these are measured.

    Args:
        source: a shop folder, or its tables.
        out_folder: made where it does not exist; ``ids.csv`` and ``split.json`` are written there too.
        seed: of the hidden items, the new ids and every shuffle.
        protocol: see above.
        cut: for ``time``, an ISO date or epoch seconds UTC.
        warm_share: with ``items``, share of the remaining (user, item) pairs that is hidden too, to measure warm
            items. Pairs that are a user's or an item's last are kept.

    Raises:
        SourceError: what ``read_shop`` raises; a cut without clock; nothing left on one side.
    """
    shop = source if isinstance(source, Shop) else read_shop(source)
    known = {item["item_id"] for item in shop.items}
    events = shop.events.filter(pl.col("item_id").is_in(list(known)))
    at = None
    if protocol == "time":
        if cut is None or "timestamp" not in events.columns:
            raise SourceError("a time split needs a cut and a 'timestamp' in the events; use protocol 'items' without")
        at = parse_time(cut)
        train = events.filter(pl.col("timestamp") < at)
        rest = events.filter(pl.col("timestamp") >= at)
    else:
        item_ids = sorted(set(events["item_id"].to_list()))
        random.Random(seed).shuffle(item_ids)  # noqa: S311  repeatable, no secret
        cold = item_ids[: int(len(item_ids) * HIDDEN_SHARE)]
        touched = pl.col("item_id").is_in(cold)
        train, rest = events.filter(~touched), events.filter(touched)
        train, warm_rest = _hide_pairs(train, warm_share, seed)
        rest = pl.concat([rest, warm_rest])
    hidden = (
        rest.select("user_id", "item_id")
        .unique()
        .join(train.select("user_id").unique(), on="user_id", how="semi")
        .join(train.select("user_id", "item_id").unique(), on=["user_id", "item_id"], how="anti")
        .with_columns(cold=~pl.col("item_id").is_in(train["item_id"].unique().to_list()))
    )
    if train.is_empty() or hidden.is_empty():
        raise SourceError(
            f"the split leaves {len(train)} training events and {len(hidden)} hidden pairs; both need at least one: "
            "ingest more events, or take a cut that does not lie at their edge"
        )
    _check(train, hidden, rest, at)

    rng = random.Random(f"{seed} new ids")  # noqa: S311  repeatable, no secret
    new_names = [f"i{number:07d}" for number in range(len(shop.items))]
    rng.shuffle(new_names)
    renamed = dict(zip(sorted(known), new_names, strict=False))
    sold = set(train["item_id"].to_list())
    unsaid = known - sold
    items = [
        {**_without_companions(item, sold, unsaid, renamed), "item_id": renamed[item["item_id"]]} for item in shop.items
    ]
    if at is not None:
        items = [_without_later_launch(item, at) for item in items]
    rng.shuffle(items)
    train = _count_anew(train).with_columns(pl.col("item_id").replace_strict(renamed))
    hidden = hidden.with_columns(pl.col("item_id").replace_strict(renamed)).sort("user_id", "item_id")

    out_folder = Path(out_folder)
    (out_folder / "shop").mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(item, ensure_ascii=False, default=str) + "\n" for item in items)
    (out_folder / "shop" / "items.jsonl").write_text(lines, encoding="utf-8")
    train.write_csv(out_folder / "shop" / "events.csv")
    hidden.write_csv(out_folder / "truth.csv")
    pl.DataFrame({"item_id": list(renamed.values()), "original": list(renamed)}).write_csv(out_folder / "ids.csv")
    n_cold_items = len(known) - train["item_id"].n_unique()
    digest = hashlib.sha256(lines.encode() + train.write_csv().encode() + hidden.write_csv().encode())
    truth = Truth(out_folder / "shop", hidden, n_cold_items, hidden["user_id"].n_unique(), digest.hexdigest()[:16])
    facts = {
        "protocol": protocol,
        "seed": seed,
        "cut": cut,
        "warm_share": warm_share,
        "n_items": len(known),
        "n_cold_items": n_cold_items,
        "n_training_events": len(train),
        "n_hidden_pairs": len(hidden),
        "n_test_users": truth.n_test_users,
        "data_hash": truth.data_hash,
    }
    (out_folder / "split.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return truth


def read_truth(out_folder: str | Path) -> Truth:
    """Read back what ``split_shop`` wrote."""
    out_folder = Path(out_folder)
    facts = json.loads((out_folder / "split.json").read_text(encoding="utf-8"))
    hidden = pl.read_csv(
        out_folder / "truth.csv", schema={"user_id": pl.String, "item_id": pl.String, "cold": pl.Boolean}
    )
    return Truth(out_folder / "shop", hidden, facts["n_cold_items"], facts["n_test_users"], facts["data_hash"])


def parse_time(value: object) -> int:
    """Epoch seconds UTC of a clock time in any form that ``ingest`` takes.

    Raises:
        SourceError: it is none.
    """
    try:
        at = parse_timestamp(value)
    except PydanticCustomError:
        at = None
    if at is None:
        raise SourceError(f"{value!r} is no time; give an ISO date such as 2011-06-01, or epoch seconds")
    return at


def _check(train: pl.DataFrame, hidden: pl.DataFrame, rest: pl.DataFrame, cut: int | None) -> None:
    """Raise ``AssertionError`` where a split leaks; checked on every split, not only in tests."""
    on = ["user_id", "item_id"]
    leaks = {
        "hidden pairs in training": len(hidden.join(train, on=on, how="semi")),
        "training events of cold items": len(train.join(hidden.filter("cold"), on="item_id", how="semi")),
        "test users without a training event": len(hidden.join(train, on="user_id", how="anti")),
        "hidden pairs that nobody made": len(hidden.join(rest, on=on, how="anti")),
        "training events at or after the cut": 0 if cut is None else len(train.filter(pl.col("timestamp") >= cut)),
    }
    found = {name: count for name, count in leaks.items() if count}
    if found:
        raise AssertionError(f"the split leaks: {found}")


def _hide_pairs(train: pl.DataFrame, share: float, seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    pairs = sorted(train.select("user_id", "item_id").unique().rows())
    random.Random(f"{seed} warm pairs").shuffle(pairs)  # noqa: S311  repeatable, no secret
    of_user: dict[str, int] = {}
    of_item: dict[str, int] = {}
    for user_id, item_id in pairs:
        of_user[user_id] = of_user.get(user_id, 0) + 1
        of_item[item_id] = of_item.get(item_id, 0) + 1
    wanted = int(len(pairs) * share)
    gone: list[tuple[str, str]] = []
    for user_id, item_id in pairs:
        if len(gone) == wanted:
            break
        if of_user[user_id] > 1 and of_item[item_id] > 1:
            gone.append((user_id, item_id))
            of_user[user_id] -= 1
            of_item[item_id] -= 1
    chosen = pl.DataFrame(gone, schema={"user_id": pl.String, "item_id": pl.String}, orient="row")
    on = ["user_id", "item_id"]
    return train.join(chosen, on=on, how="anti"), train.join(chosen, on=on, how="semi")


def _count_anew(train: pl.DataFrame) -> pl.DataFrame:
    """Sort each user's events by time or position (file order breaks ties) and count ``position`` from 0."""
    clock = [column for column in ("timestamp", "position") if column in train.columns]
    carried = [column for column in _CARRIED if column in train.columns]
    return (
        train.with_row_index("row")
        .sort("user_id", *clock, "row")
        .with_columns(position=pl.int_range(pl.len()).over("user_id"))
        .select("user_id", "item_id", "position", *carried)
    )


def _without_companions(
    item: dict[str, Any], sold: Collection[str], unsaid: Collection[str], renamed: Mapping[str, str]
) -> dict[str, Any]:
    """An item's ``also_bought`` under new ids, without those of new items; a new item has none."""
    if not item.get("also_bought"):
        return item
    listed = listed_ids(item["also_bought"]) if item["item_id"] in sold else []
    return {**item, "also_bought": [renamed.get(one, one) for one in listed if one not in unsaid]}


def _without_later_launch(item: dict[str, Any], cut: int) -> dict[str, Any]:
    launch = item.get("available_from")
    if launch in (None, "") or parse_time(launch) < cut:
        return item
    return {**item, "available_from": None}


def _find(folder: Path, stem: str) -> Path:
    for ending in (".jsonl", ".jsonl.gz", ".csv", ".csv.gz", ".parquet"):
        if (folder / f"{stem}{ending}").exists():
            return folder / f"{stem}{ending}"
    raise SourceError(f"no {stem}.jsonl, .csv or .parquet (or .gz) in {str(folder)!r}")


def _read_rows(file: Path) -> list[dict[str, Any]]:
    if file.suffix == ".parquet":
        return pl.read_parquet(file).to_dicts()
    packed = file.read_bytes()
    text = (gzip.decompress(packed) if file.suffix == ".gz" else packed).decode("utf-8-sig")
    if ".csv" in file.suffixes:
        return list(csv.DictReader(io.StringIO(text, newline="")))
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _epoch_seconds(column: pl.Series) -> pl.Series:
    if column.dtype.is_temporal():
        return column.cast(pl.Datetime("us")).dt.epoch("s")
    return pl.Series("timestamp", [parse_time(value) for value in column.to_list()], dtype=pl.Int64)
