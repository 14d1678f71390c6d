"""The product as users run it: ``firstshelf ingest``, ``train`` and ``recommend`` as processes, timed and weighed.

Also its controls: the same commands on a shop folder from which the graph, the text or the truth was taken.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl
from cases import attributes, categories

if TYPE_CHECKING:
    from cases import Case
    from numpy.typing import NDArray

Items = list[dict[str, Any]]


_FACTS: Final = ("category_path", "categories", "brand", "attributes")


def graph_removed(items: Items, events: pl.DataFrame, rng: random.Random) -> tuple[Items, pl.DataFrame]:
    """No category, brand or attribute; their words go into the description, so that the text loses nothing."""
    return [_worded(item) for item in _with_facts(items)], events


def facts_removed(items: Items, events: pl.DataFrame, rng: random.Random) -> tuple[Items, pl.DataFrame]:
    """No category, brand or attribute, and no word of them."""
    kept = [_without_facts(item) for item in _with_facts(items)]
    if not any(len(item) > 1 for item in kept):
        raise ControlNotDefinedError("the items have nothing but facts")
    return kept, events


def graph_shuffled(items: Items, events: pl.DataFrame, rng: random.Random) -> tuple[Items, pl.DataFrame]:
    """Every item has the categories, brand and attributes of a random other; the true words are in the description."""
    others = list(_with_facts(items))
    rng.shuffle(others)
    return [
        {**_worded(item), **{name: other[name] for name in _FACTS if name in other}}
        for item, other in zip(items, others, strict=True)
    ], events


def text_removed(items: Items, events: pl.DataFrame, rng: random.Random) -> tuple[Items, pl.DataFrame]:
    """No title and no description; categories, brand and attributes stay."""
    kept = [{name: value for name, value in item.items() if name not in {"title", "description"}} for item in items]
    if not any(len(item) > 1 for item in kept):
        raise ControlNotDefinedError("the items have nothing but text")
    if kept == items:
        raise ControlNotDefinedError("the items have no title or description")
    return kept, events


def labels_shuffled(items: Items, events: pl.DataFrame, rng: random.Random) -> tuple[Items, pl.DataFrame]:
    """The item of every event is exchanged with that of a random other: counts stay, tastes go."""
    item_ids = events["item_id"].to_list()
    rng.shuffle(item_ids)
    return items, events.with_columns(item_id=pl.Series(item_ids, dtype=pl.String))


class ControlNotDefinedError(Exception):
    """The control would leave nothing to recommend from; the message says why."""


CONTROLS: Final[dict[str, Callable[[Items, pl.DataFrame, random.Random], tuple[Items, pl.DataFrame]]]] = {
    f"firstshelf, {control.__name__.replace('_', ' ')}": control
    for control in (graph_removed, facts_removed, graph_shuffled, text_removed, labels_shuffled)
}
NAME: Final = "firstshelf"


@dataclass(frozen=True)
class Run:
    """Lists per pool, shape (U, k), -1 padded, and what the commands took."""

    lists: dict[str, NDArray[np.int64]]
    steps: dict[str, dict[str, float]]
    """Command → seconds and peak_mb."""
    training: dict[str, Any]
    """What ``train --json`` reported."""


def run_product(
    case: Case,
    shop_folder: Path,
    work: Path,
    *,
    method: str,
    pools: dict[str, NDArray[np.int64]],
    seed: int,
    k: int,
    look: Callable[[Path], None] | None = None,
) -> Run:
    """Ingest, train and recommend in a fresh workspace under ``work``; the logs stay there.

    Args:
        pools: users (rows of the case) to answer, by pool: ``new`` or ``all``.
        look: called with the trained workspace before it is removed.

    Raises:
        RuntimeError: a command failed; the message ends with what it wrote to stderr.
        ControlNotDefinedError: the control makes no sense on this shop.
    """
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    if method in CONTROLS:
        shop_folder = _control(shop_folder, work / "shop", method, seed)
    workspace, steps, trained = train_product(shop_folder, work, seed=seed)
    lists = {}
    for pool, users in pools.items():
        asked, answer = work / f"users-{pool}.txt", work / f"recommendations-{pool}.jsonl"
        asked.write_text("".join(f"{case.users[user]}\n" for user in users), encoding="utf-8")
        options = ["--workspace", str(workspace), "--users-file", str(asked), "--pool", pool, "--k", str(k)]
        steps[f"recommend {pool}"], _ = _command(
            work, f"recommend-{pool}", [*options, "--output", str(answer), "--json"]
        )
        lists[pool] = _read_lists(case, answer, users, k)
    if look is not None:
        look(workspace)
    shutil.rmtree(workspace)
    return Run(lists, steps, trained)


def train_product(
    shop_folder: Path, work: Path, *, seed: int
) -> tuple[Path, dict[str, dict[str, float]], dict[str, Any]]:
    """Ingest and train: the workspace under ``work``, what the commands took, and what ``train --json`` reported.

    Raises:
        RuntimeError: a command failed; the message ends with what it wrote to stderr.
    """
    workspace, steps = work / "shop.workspace", {}
    place = ["--workspace", str(workspace)]
    steps["ingest"], _ = _command(work, "ingest", [str(shop_folder), *place, "--json"])
    steps["train"], trained = _command(work, "train", [*place, "--seed", str(seed), "--json"])
    return workspace, steps, trained


def _command(work: Path, log: str, arguments: Sequence[str]) -> tuple[dict[str, float], dict[str, Any]]:
    command = [str(Path(sys.executable).with_name("firstshelf")), log.partition("-")[0], *arguments]
    started = time.perf_counter()
    with (work / f"{log}.out").open("wb") as out, (work / f"{log}.err").open("wb") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode:
        said = (work / f"{log}.err").read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {said}")
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in kilobytes elsewhere
    spent = {"seconds": round(seconds, 1), "peak_mb": round(usage.ru_maxrss * unit / 2**20)}
    lines = (work / f"{log}.out").read_text(encoding="utf-8").splitlines()
    return spent, json.loads(lines[-1]) if lines else {}


def _read_lists(case: Case, answer: Path, users: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    rows = {case.users[user]: row for row, user in enumerate(users)}
    lists = np.full((len(users), k), -1, dtype=np.int64)
    with answer.open(encoding="utf-8") as lines:
        for line in lines:
            shown = json.loads(line)
            lists[rows[shown["user_id"]], shown["rank"] - 1] = case.item_nums[shown["item_id"]]
    return lists


def _control(shop_folder: Path, folder: Path, method: str, seed: int) -> Path:
    lines = (shop_folder / "items.jsonl").read_text(encoding="utf-8").split("\n")
    items = [json.loads(line) for line in lines if line]
    events = pl.read_csv(shop_folder / "events.csv", infer_schema=False)
    items, events = CONTROLS[method](items, events, random.Random(f"{method} {seed}"))
    folder.mkdir(parents=True)
    text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    (folder / "items.jsonl").write_text(text, encoding="utf-8")
    events.write_csv(folder / "events.csv")
    return folder


def _with_facts(items: Items) -> Items:
    if not any(item.get(name) for item in items for name in _FACTS):
        raise ControlNotDefinedError("the items have no category, brand or attribute")
    return items


def _without_facts(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name not in _FACTS}


def _worded(item: dict[str, Any]) -> dict[str, Any]:
    words = " ".join([*categories(item), *attributes(item), item.get("description") or ""]).strip()
    return {**_without_facts(item), "description": words} if words else _without_facts(item)
