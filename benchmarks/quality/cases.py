"""The data sets of the leaderboard, split, as arrays that the baselines see."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
from scipy import sparse

from recommender import splits
from recommender.companions import Companions
from recommender.splits import Shop, read_shop, read_truth, split_shop

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class DataSet:
    """How a set is read and split; ``options`` go to ``split_shop``."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def read(self, data_folder: Path) -> Shop:
        if self.name == "online_retail":
            return _online_retail(data_folder / self.name)
        if self.name == LISTED:
            return _with_companions(data_folder / "beauty")
        return read_shop(data_folder / self.name)


LISTED: Final = "beauty_also_bought"
"""``beauty``, where items sold before also have what else is bought with them, by lists that the events do not hold."""
SETS: Final = {
    "generated": DataSet("generated"),
    "scientific": DataSet("scientific"),
    "beauty": DataSet("beauty"),
    LISTED: DataSet(LISTED),
    "online_retail": DataSet("online_retail", {"protocol": "time", "cut": "2011-06-01"}),
}
WARM_SHARE: Final = 0.1
"""Share of the remaining pairs hidden in the cells that measure warm items and all items."""


def make_split(work: Path, data_folder: Path, name: str, protocol: str, seed: int) -> Path:
    """Split a set into a folder under ``work``, once: a finished split of the same files by the same code stays.

    A set that is split by time has one split for both protocols.
    """
    data_set = SETS[name]
    options = dict(data_set.options)
    folder = work / "splits" / f"{name}-{protocol}-{seed}"
    if options.get("protocol") == "time":
        folder = folder.with_name(f"{name}-{seed}")
    elif protocol == "warm":
        options["warm_share"] = WARM_SHARE
    made_of, stamp = _made_of(data_folder, name), folder / "made-of.txt"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != made_of:
        shutil.rmtree(folder, ignore_errors=True)
        split_shop(data_set.read(data_folder), folder, seed=seed, **options)
        stamp.write_text(made_of, encoding="utf-8")
    return folder


def _made_of(data_folder: Path, name: str) -> str:
    """Digest of a set's files, and of the code that reads and splits them."""
    files = (data_folder / ("beauty" if name == LISTED else name)).rglob("*")
    digest = hashlib.blake2b(digest_size=8)
    for file in (Path(__file__), Path(splits.__file__), *sorted(file for file in files if file.is_file())):
        digest.update(file.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Case:
    """One split as arrays. Items are in the order of the split's items file, users sorted.

    ``train`` and ``truth`` are binary, shape (U, I). ``new`` marks the items of the pool "new", shape (I,).
    """

    items: list[dict[str, Any]]
    users: list[str]
    train: sparse.csr_array
    truth: sparse.csr_array
    new: NDArray[np.bool_]
    seed: int
    shared: dict[str, Any] = field(default_factory=dict)
    """What depends on the items alone (text vectors), kept for the case's inner cases too."""

    @cached_property
    def item_nums(self) -> dict[str, int]:
        return {item["item_id"]: num for num, item in enumerate(self.items)}

    @cached_property
    def n_events(self) -> NDArray[np.int64]:
        return np.bincount(self.train.indices, minlength=len(self.items))

    @cached_property
    def warm_nums(self) -> NDArray[np.int64]:
        return np.flatnonzero(self.n_events > 0)

    @cached_property
    def taken(self) -> sparse.csr_array:
        """``train``, below it what the items' lists say is bought together, as if by more users. Shape (U + B, I)."""
        listed = [(num, one) for num, item in enumerate(self.items) for one in item.get("also_bought") or []]
        rows = {name: row for row, name in enumerate(dict.fromkeys(name for _, name in listed))}
        own = np.array([self.item_nums.get(name, -1) for name in rows], dtype=np.int64)
        pairs = [(rows[name], num) for num, name in listed] + [(row, num) for row, num in enumerate(own) if num >= 0]
        at = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        baskets = sparse.csr_array(
            (np.ones(len(pairs), dtype=np.float32), (at[0], at[1])), (len(rows), len(self.items))
        )
        return sparse.csr_array(sparse.vstack([self.train, Companions(baskets, own).among(self.n_events > 0)]))

    def test_users(self, pool: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Rows of users with a hidden positive in the pool."""
        return np.flatnonzero(np.asarray(self.truth[:, np.flatnonzero(pool)].sum(axis=1)).ravel() > 0)

    @cached_property
    def texts(self) -> list[list[str]]:
        """Parts of each item's text: title twice, categories, brand, attributes, description."""
        return [
            [*[item.get("title") or ""] * 2, *categories(item), *attributes(item), item.get("description") or ""]
            for item in self.items
        ]

    @cached_property
    def short_texts(self) -> list[str]:
        """Title. Categories. Brand."""
        return [
            ". ".join(filter(None, [item.get("title"), " ".join(categories(item)), item.get("brand")]))
            for item in self.items
        ]

    @cached_property
    def groups(self) -> sparse.csr_array:
        """Items × (categories, brands, attributes), binary: the facts of the catalogue. Shape (I, G)."""
        names: dict[str, int] = {}
        pairs = [
            (num, names.setdefault(fact, len(names))) for num, item in enumerate(self.items) for fact in facts(item)
        ]
        rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        return sparse.csr_array(
            (np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=(len(self.items), max(1, len(names)))
        )

    def inner(self) -> Case:
        """Pseudo-cold items for tuning: a fifth of the warm items hidden. Nothing of the outer truth is in it."""
        rng = np.random.default_rng(10_000 + self.seed)
        hidden = np.zeros(len(self.items), dtype=np.float32)
        hidden[rng.choice(self.warm_nums, size=max(1, len(self.warm_nums) // 5), replace=False)] = 1
        truth = _binary(self.train @ sparse.diags_array(hidden))
        train = _binary(self.train @ sparse.diags_array(1 - hidden))
        known = (np.asarray(train.sum(axis=1)).ravel() > 0).astype(np.float32)
        truth = _binary(sparse.diags_array(known) @ truth)
        return Case(self.items, self.users, train, truth, hidden > 0, self.seed, self.shared)


def load_case(folder: Path, seed: int) -> Case:
    """Read what ``split_shop`` wrote."""
    truth = read_truth(folder)
    lines = (truth.shop_folder / "items.jsonl").read_text(encoding="utf-8").split("\n")
    items = [json.loads(line) for line in lines if line]
    events = pl.read_csv(truth.shop_folder / "events.csv", schema_overrides={"user_id": pl.String})
    users = sorted(set(events["user_id"].to_list()))
    item_nums = {item["item_id"]: num for num, item in enumerate(items)}
    user_nums = {user_id: num for num, user_id in enumerate(users)}

    def matrix(pairs: pl.DataFrame) -> sparse.csr_array:
        rows = [user_nums[user_id] for user_id in pairs["user_id"]]
        columns = [item_nums[item_id] for item_id in pairs["item_id"]]
        values = np.ones(len(rows), dtype=np.float32)
        return _binary(sparse.csr_array((values, (rows, columns)), shape=(len(users), len(items))))

    train = matrix(events)
    new = np.bincount(train.indices, minlength=len(items)) == 0
    return Case(items, users, train, matrix(truth.hidden), new, seed)


def categories(item: dict[str, Any]) -> list[str]:
    return [str(name) for name in (item.get("category_path") or item.get("categories") or [])]


def attributes(item: dict[str, Any]) -> list[str]:
    """Brand and attribute values, as words."""
    return [item.get("brand") or "", *(str(value) for value in (item.get("attributes") or {}).values())]


def facts(item: dict[str, Any]) -> list[str]:
    """Names of the catalogue facts of an item; a category path counts at each of its levels."""
    path = categories(item)
    levels = [" > ".join(path[: n + 1]) for n in range(len(path))] if item.get("category_path") else path
    named = [f"category {level}" for level in levels]
    if item.get("brand"):
        named.append(f"brand {str(item['brand']).casefold()}")
    return list(dict.fromkeys(named + [f"{key} {value}" for key, value in (item.get("attributes") or {}).items()]))


def _binary(matrix: sparse.csr_array) -> sparse.csr_array:
    matrix = sparse.csr_array(matrix, dtype=np.float32)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    matrix.data[:] = 1
    return matrix


def _with_companions(folder: Path) -> Shop:
    shop = read_shop(folder)
    edges = pl.read_csv(folder / "behavioural_edges.tsv.gz", separator="\t", infer_schema=False)
    bought = edges.filter(pl.col("relation").is_in(["also_bought", "bought_together"]))
    of_item = bought.group_by(pl.col("head_item_id"), maintain_order=True).agg(
        pl.col("tail").unique(maintain_order=True)
    )
    listed = dict(of_item.iter_rows())
    return Shop([{**item, "also_bought": listed.get(item["item_id"], [])} for item in shop.items], shop.events)


def _online_retail(folder: Path) -> Shop:
    sales = pl.read_parquet(folder / "sales.parquet")
    events = sales.select(
        user_id=pl.col("customer_id").cast(pl.String),
        item_id=pl.col("product_name"),
        timestamp=pl.col("invoice_time").dt.epoch("s"),
    )
    names = sorted(set(events["item_id"].to_list()))
    return Shop([{"item_id": name, "title": name} for name in names], events)
