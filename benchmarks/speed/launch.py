"""How long a launch takes: ``launch.py WORKSPACE [--n 50] [--output FILE]``.

Launches n products into a trained workspace, one call each, and asks after every call whether the product is
recommendable: it must be in the answer to its own audience. Reports p50, p95 and the slowest, of ``Engine.launch``
alone and with its audience, neighbours and verified paths. The products are siblings of products that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

from kg import schema
from recommender import Engine


def siblings(engine: Engine, n_items: int, seed: int) -> list[dict[str, object]]:
    """New products: the fields of a random product's neighbours in the graph, under a new id."""
    store = engine.store
    products = store.nodes(schema.PRODUCT)
    brand = dict(store.edges(schema.MADE_BY).select("head", "tail").iter_rows())
    brand_name = dict(store.nodes(schema.BRAND).select("key", "name").iter_rows())
    category = dict(store.edges(schema.IN_CATEGORY).select("head", "tail").iter_rows())
    rows = np.random.default_rng(seed).choice(len(products), size=n_items, replace=False)
    items = []
    for number, row in enumerate(rows):
        product = products.row(int(row), named=True)
        key = product["key"]
        items.append(
            {
                "item_id": f"benchmark-launch-{seed}-{number}",
                "title": product["name"],
                "description": product["description"],
                "brand": brand_name.get(brand.get(key)),
                "category_path": category[key].split(" > ") if key in category else None,
                "price": product["price"],
            }
        )
    return [{name: value for name, value in item.items() if value is not None} for item in items]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--n", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    with Engine.open(arguments.workspace) as engine:
        items = siblings(engine, arguments.n + 1, arguments.seed)
        engine.launch(items[0])  # the first call compiles and warms up
        live, whole, recommendable = [], [], 0
        for item in items[1:]:
            started = time.perf_counter()
            launch = engine.launch(item)
            whole.append(time.perf_counter() - started)
            live.append(launch.seconds)
            nearest = launch.audience[0].user_id
            shown = engine.recommend(nearest, k=len(engine.item_ids), pool="new")
            recommendable += any(row.item_id == item["item_id"] for row in shown)
        n_items, store = len(engine.item_ids), engine.store.address.partition(":")[0]
    report = {
        "n_items": n_items,
        "store": store,
        "launches": len(live),
        "recommendable": recommendable,
        "live_seconds": dict(zip(("p50", "p95", "max"), np.quantile(live, (0.5, 0.95, 1)).round(4), strict=True)),
        "with_paths_seconds": dict(
            zip(("p50", "p95", "max"), np.quantile(whole, (0.5, 0.95, 1)).round(4), strict=True)
        ),
        "machine": f"{os.cpu_count()} cores",
    }
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
