"""The whole leaderboard: python benchmarks/quality/everything.py DATA_FOLDER

Runs ``leaderboard.py`` and ``published.py`` for every cell of the README's tables, ``--jobs`` at a time, the longest
first; then the comparisons and the tables. A cell that is there is not measured again, so the command can be stopped
and started. What fails is named at the end, and the rest is done all the same.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from baselines import METHODS, WARM_ONLY
from cases import LISTED, make_split
from cells import say
from product import CONTROLS, NAME

FOLDER: Final = Path(__file__).parent
_FIVE: Final = ("0", "1", "2", "3", "4")
_TRAINED_ON: Final = ("scientific", "online_retail")
"""Sets whose new items are ranked by trained baselines and by peers too; for the sake of time ``beauty`` is not, and
``online_retail``, of half a million events, without ALDI and CLCRec."""
_LEFT_OUT: Final = {"blend_ease_tuned", "itemknn_carried", "cease", "content_to_cf", "ppr", *WARM_ONLY}
"""Baselines that do not rank new items there either: for the same reason, or since they rank items sold before."""
SPLITS: Final = (
    ("beauty", "cold", _FIVE),
    ("beauty", "warm", ("0",)),
    (LISTED, "cold", ("0", "1", "4")),
    ("scientific", "cold", _FIVE),
    ("scientific", "warm", ("0",)),
    ("online_retail", "cold", ("0",)),
    ("online_retail", "warm", ("0",)),
)
"""Set, protocol and seeds: five of the sets with random items; with lists three of the same, for the sake of time."""


def steps() -> list[list[str]]:
    """The arguments of every step, the longest first; a product cell is a step of its own."""
    trainings = [["published.py", "--set", "beauty", "--methods", NAME]]
    baselines = [["published.py", "--set", "beauty", "--methods", "popularity", "itemknn", "ease"]]
    for name, protocol, seeds in SPLITS:
        split = ["leaderboard.py", "--cells-only", "--set", name, "--protocol", protocol]
        for seed in seeds:
            controlled = protocol == "cold" and seed == "0" and name != LISTED
            methods = [NAME, *CONTROLS] if controlled else [NAME]
            trainings += [[*split, "--seeds", seed, "--methods", method] for method in methods]
        baselines += [[*split, "--seeds", *seeds, "--methods", *methods] for methods in _baselines(name, protocol)]
    published = [["published.py", "--set", "lastfm_kg", "--seeds", seed] for seed in _FIVE]
    return [*trainings, *published, *baselines]


def _baselines(name: str, protocol: str) -> list[list[str]]:
    """Methods that are measured on a split, a step each."""
    if protocol == "warm":
        return [
            ["itemknn", "ease", "implicit_als", "implicit_bm25", *(["kgin"] if name == "scientific" else [])],
            ["lightgcn"],
        ]
    if name == LISTED:  # those of EASE read the lists; the others are what they are without
        return [["ease_carried", "blend_ease", "blend_ease_graph"]]
    if name in _TRAINED_ON:
        trained = [["content_head"], ["dropoutnet"], *([["aldi"], ["clcrec"]] if name == "scientific" else [])]
        return [*trained, ["peers"], ["baselines"]]
    return [[method for method in METHODS if method not in _LEFT_OUT]]


def main() -> None:
    options = _options()
    started = time.perf_counter()
    threads = str(max(1, (os.cpu_count() or 1) // options.jobs))
    places = ["--output", str(options.output), "--work", str(options.work)]
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads}
    finished: list[str] = []
    failed: list[str] = []
    todo = steps()
    n_steps = len(todo) + len(SPLITS)

    def run(arguments: list[str]) -> None:
        program, *rest = arguments
        title = " ".join(arguments)
        begun = time.perf_counter()
        command = [sys.executable, str(FOLDER / program), str(options.data), *rest, *places]
        if subprocess.run(command, env=environment, check=False).returncode:
            failed.append(title)
        finished.append(title)
        minutes, elapsed = (round((time.perf_counter() - since) / 60, 1) for since in (begun, started))
        say(f"[{len(finished)} of {n_steps} steps, {elapsed} min] {minutes} min for {title}")

    for name, protocol, seeds in SPLITS:
        for seed in seeds:
            make_split(options.work, options.data, name, protocol, int(seed))
    compare = ["leaderboard.py", "--compare-only", "--set"]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(run, todo))
        list(pool.map(run, [[*compare, name, "--protocol", protocol] for name, protocol, _ in SPLITS]))
    table = [
        sys.executable,
        str(FOLDER / "table.py"),
        "--results",
        str(options.output),
        "--readme",
        str(options.readme),
    ]
    if subprocess.run(table, check=False).returncode:
        failed.append("table.py")
    say(f"{round((time.perf_counter() - started) / 60, 1)} minutes")
    if failed:
        raise SystemExit("failed: " + "; ".join(failed))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with one folder a set")
    parser.add_argument("--jobs", type=int, default=2, help="steps at a time; one on beauty takes up to 9 GB")
    parser.add_argument("--output", type=Path, default=FOLDER / "results")
    parser.add_argument("--work", type=Path, default=Path(".cache/quality"), help="splits, lists, runs; may be deleted")
    parser.add_argument("--readme", type=Path, default=FOLDER.parents[1] / "README.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
