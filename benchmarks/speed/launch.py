"""How long a launch takes: ``launch.py WORKSPACE [--n 50] [--n-items 10000] [--neo4j] [--output FILE]``.

WORKSPACE is a trained one with the embedded store; the benchmark works on a copy. A copy with fewer than ``--n-items``
products is filled up first, by one ``ingest`` of products without events, and with ``--neo4j`` its graph is copied into
a freshly started Neo4j. Then, in this order:

- *first opening*: takes up what was ingested after training; *opening*: the next one, which has nothing to do;
- *launches*: n products, one ``Engine.launch`` each, with audience, neighbours and verified paths; the very first is
  reported alone, since it compiles and warms up. After each call comes the first ``recommend`` (k = 20, new items, the
  customer that the launch named first), and then a whole list, which must hold the product: *recommendable* counts;
- *closing*, and the *opening after the launches*.

The products are recombined from the workspace's own: title, description and brand of products of one category.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ingest import load
from kg import Workspace, open_store, schema
from recommender import Engine

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from neo4j_server import Jvm, running_neo4j


def recombined(items: pl.DataFrame, n_items: int, seed: int) -> Iterator[dict[str, Any]]:
    """New items rows; ``items`` are canonical ones."""
    rng = np.random.default_rng(seed)
    rows = items.to_dicts()
    mates = defaultdict(list)
    for row in rows:
        mates[str(row["category_path"])].append(row)
    for number in range(n_items):
        first = rows[rng.integers(len(rows))]
        beside = mates[str(first["category_path"])]
        second, third = (beside[place] for place in rng.integers(len(beside), size=2))
        words, more = ((row["title"] or "").split() for row in (first, second))
        fields = {
            "item_id": f"launch-{seed}-{number}",
            "title": " ".join((*words[: (len(words) + 1) // 2], *more[len(more) // 2 :])),
            "description": second["description"],
            "brand": third["brand"],
            "category_path": first["category_path"],
            "categories": first["categories"],
            "attributes": {one["attribute"]: one["value"] for one in third["attributes"] or ()},
            "price": first["price"],
        }
        yield {name: value for name, value in fields.items() if value}


def fill_up(workspace: Workspace, n_items: int) -> None:
    """Ingest products without events until there are so many."""
    items = pl.read_parquet(workspace.items_file)
    if items.height >= n_items:
        return
    with tempfile.TemporaryDirectory() as folder, closing(workspace.open_store()) as store:
        lines = (json.dumps(item) + "\n" for item in recombined(items, n_items - items.height, seed=1))
        (Path(folder) / "items.jsonl").write_text("".join(lines), encoding="utf-8")
        load(folder, store, workspace=workspace)


def move_to(workspace: Workspace, address: str) -> None:
    """Copy the graph into another store, which becomes the workspace's."""
    with closing(workspace.open_store()) as old, closing(open_store(address)) as new:
        new.clear()
        for label in schema.LABELS:
            new.write_nodes(label, old.nodes(label))
        for relation in schema.RELATIONS:
            new.write_edges(relation, old.edges(relation))
        new.set_mark(old.get_mark())
    workspace.remember(store=address)


@contextmanager
def copied(workspace: Path, n_items: int, *, in_neo4j: bool) -> Iterator[Path]:
    """A copy of a workspace with at least so many items, in a folder of its own or in a server of its own."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "workspace"
        shutil.copytree(workspace, copy)
        opened = Workspace.open(copy)
        if opened.store_address != f"file:{copy / 'graph'}":
            raise SystemExit(f"{workspace} keeps its graph elsewhere; give a workspace with the embedded store")
        fill_up(opened, n_items)
        if not in_neo4j:
            yield copy
            return
        with running_neo4j(Jvm(heap="1g", full_compiler=True)) as server:
            os.environ.update(server.environment)
            move_to(opened, server.address)
            yield copy


def timed(seconds: list[float], call: Callable[[], Any]) -> Any:
    """What the call returns; how long it took is added to the list."""
    started = time.perf_counter()
    result = call()
    seconds.append(time.perf_counter() - started)
    return result


def measure(workspace: Path, n_launches: int) -> dict[str, Any]:
    """Everything that the module's docstring names."""
    first_opening, opening, reopening, closing_seconds = [], [], [], []
    timed(first_opening, lambda: Engine.open(workspace)).close()
    opened = Workspace.open(workspace)
    items = pl.read_parquet(opened.items_file)
    n_sold = pl.read_parquet(opened.events_file)["item_id"].n_unique()
    engine = timed(opening, lambda: Engine.open(workspace))
    n_before = len(engine.item_ids)
    launching, live, recommending, recommendable = [], [], [], 0
    for item in recombined(items, n_launches + 1, seed=2):
        launch = timed(launching, lambda item=item: engine.launch(item))
        live.append(launch.seconds)
        nearest = launch.audience[0].user_id
        timed(recommending, lambda nearest=nearest: engine.recommend(nearest, k=20, pool="new"))
        whole = engine.recommend(nearest, k=len(engine.item_ids), pool="new")
        recommendable += item["item_id"] in {row.item_id for row in whole}
    report = {
        "store": engine.store.address.partition(":")[0],
        "n_items": n_before,
        "n_new_items": n_before - n_sold,
        "n_customers": len(engine.user_ids),
        "launches": n_launches,
        "recommendable": recommendable - 1,
    }
    timed(closing_seconds, engine.close)
    timed(reopening, lambda: Engine.open(workspace)).close()
    return report | {
        "launch_seconds": spread(launching[1:]),
        "until_live_seconds": spread(live[1:]),
        "first_recommend_after_a_launch_seconds": spread(recommending[1:]),
        "very_first_launch_seconds": round(launching[0], 3),
        "very_first_recommend_seconds": round(recommending[0], 3),
        "first_opening_seconds": round(first_opening[0], 2),
        "opening_seconds": round(opening[0], 2),
        "closing_seconds": round(closing_seconds[0], 2),
        "opening_after_the_launches_seconds": round(reopening[0], 2),
    }


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, 95 % and slowest."""
    values = np.quantile(seconds, (0.5, 0.95, 1)).round(4).tolist()
    return dict(zip(("p50", "p95", "max"), values, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--n", type=int, default=50, help="launches")
    parser.add_argument("--n-items", type=int, default=10_000, help="fill up to so many products first")
    parser.add_argument("--neo4j", action="store_true", help="on a freshly started Neo4j, not on the embedded store")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with copied(arguments.workspace, arguments.n_items, in_neo4j=arguments.neo4j) as workspace:
        report = measure(workspace, arguments.n)
    report["machine"] = f"{os.cpu_count()} cores, {platform.machine()}"
    report["threads"] = os.environ.get("OMP_NUM_THREADS", "all")
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
