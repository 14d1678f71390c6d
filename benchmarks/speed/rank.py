"""What a list costs: ``rank.py WORKSPACE [--n 512] [--times 5] [--output FILE]``.

``Ranker.rank`` (k = 20) of n customers together, new items only and all items, and new items for bare histories that no
training saw, a call each; beside a floor in the same run: the product of the customers' dense history rows with an
item × item matrix, which is all that an EASE of the same catalogue does. All in turns, and the least CPU time of each;
pages of candidates are made before the first turn.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from kg import Workspace
from recommender.engine import current_graph, history_of, load_ranker

_N_BARE = 8
_N_TAKEN = 4
"""Items of a bare history."""


def measure(workspace: Path, n: int, times: int) -> dict[str, Any]:
    """CPU milliseconds a customer of each call, and what the lists cost in multiples of the floor.

    Args:
        workspace: a trained one.
        n: customers, the first of the shop.
        times: turns that count; one before them warms up.
    """
    place = Workspace.open(workspace)
    ranker = load_ranker(place)
    with closing(place.open_store()) as store:
        graph = current_graph(place, store).aligned(ranker.item_ids)
    asked = graph.histories[:n]
    n_items = len(ranker.item_ids)
    rows = asked.toarray()
    weights = np.random.default_rng(0).standard_normal((n_items, n_items), dtype=np.float32)
    known = np.flatnonzero(~ranker.is_cold)
    rng = np.random.default_rng(0)
    bare = [history_of(rng.choice(known, _N_TAKEN, replace=False), n_items) for _ in range(_N_BARE)]
    calls: dict[str, Callable[[], Any]] = {
        "new items": lambda: ranker.rank(asked, k=20, pool="new"),
        "all items": lambda: ranker.rank(asked, k=20, pool="all"),
        "new items, a bare history": lambda: [ranker.rank(history, k=20, pool="new") for history in bare],
        "floor": lambda: rows @ weights,
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(times + 1):
        for name, call in calls.items():
            begun = time.process_time()
            call()
            if turn:
                seconds[name].append(time.process_time() - begun)
    n_asked = dict.fromkeys(calls, len(rows)) | {"new items, a bare history": len(bare)}
    least = {name: min(spent) / n_asked[name] for name, spent in seconds.items()}
    return {
        "n_items": n_items,
        "n_new_items": int(ranker.is_cold.sum()),
        "n_customers": len(rows),
        "cpu_ms_a_customer": {name: round(1000 * spent, 3) for name, spent in least.items()},
        "times_the_floor": {name: round(least[name] / least["floor"], 2) for name in calls if name != "floor"},
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "threads": os.environ.get("OMP_NUM_THREADS", "as torch chooses"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    written = json.dumps(measure(options.workspace, options.n, options.times), indent=1) + "\n"
    sys.stdout.write(written)
    if options.output is not None:
        options.output.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
