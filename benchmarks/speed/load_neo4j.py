"""How fast a shop is written into Neo4j: ``load_neo4j.py [FOLDER] [--rounds 2] [--json] [--output FILE]``.

In one run, on one freshly started server (or the one that ``FIRSTSHELF_TEST_NEO4J`` names; its database is emptied):

- *bare*: UNWIND CREATE of the same rows in batches of 10,000, labelled, matched by unique key, and nothing else;
- *ours*: ``GraphStore.write_nodes`` and ``write_edges`` into the empty database, and again into the full one;
- *row by row*: one statement and transaction a row, for a random sample of the rows (``--sample``, the kinds of rows in
  their true shares); its rate is that of the sample;
- *load*: ``ingest.load`` of the folder, reading, validating and comparing included.

Bare and ours take turns, after a round of each that is not counted: a Java server is twice as fast when it is warm.
Without FOLDER the small generated shop is loaded, which is too small for rates that mean anything.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import neo4j
import polars as pl

from ingest import generate_shop, load
from kg import GraphStore, Relation, open_store, schema

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from neo4j_server import Jvm, running_neo4j

BATCH_ROWS = 10_000
Tables = dict[str | Relation, pl.DataFrame]


def tables_of(folder: Path) -> Tables:
    """What ``ingest.load`` makes of a shop folder: columns without a value left out."""
    with closing(open_store("memory:")) as store:
        load(folder, store)
        frames: dict[str | Relation, pl.DataFrame] = {label: store.nodes(label) for label in schema.LABELS}
        frames |= {relation: store.edges(relation) for relation in schema.RELATIONS}
    return {
        kind: frame.select(name for name in frame.columns if frame[name].null_count() < len(frame))
        for kind, frame in frames.items()
        if len(frame)
    }


def create_text(kind: str | Relation, frame: pl.DataFrame, row: str) -> str:
    """The least Cypher that creates a row, a map called ``row`` in the text."""
    values = ", ".join(f"{name}: {row}.{name}" for name in frame.columns if name not in ("head", "tail"))
    if isinstance(kind, str):
        return f"CREATE (n:{kind} {{{values}}})"
    return (
        f"MATCH (head:{kind.head_label} {{key: {row}.head}}) MATCH (tail:{kind.tail_label} {{key: {row}.tail}}) "
        f"CREATE (head)-[:{kind.type} {{{values}}}]->(tail)"
    )


def write_bare(session: neo4j.Session, tables: Tables) -> None:
    for kind, frame in tables.items():
        text = "UNWIND $rows AS row " + create_text(kind, frame, "row")
        for part in frame.iter_slices(BATCH_ROWS):
            session.run(text, rows=part.to_dicts()).consume()


def write_ours(store: GraphStore, tables: Tables) -> None:
    for kind, frame in tables.items():
        if isinstance(kind, str):
            store.write_nodes(kind, frame)
        else:
            store.write_edges(kind, frame)


def write_row_by_row(session: neo4j.Session, tables: Tables, n_sample: int, seed: int) -> int:
    """Write a sample of every kind, nodes first; edges only between nodes that are there. Returns the rows written."""
    rng = random.Random(seed)
    n_rows = sum(len(frame) for frame in tables.values())
    written = 0
    for kind, frame in tables.items():
        share = max(1, round(n_sample * len(frame) / n_rows))
        text = create_text(kind, frame, "$row")
        for at in sorted(rng.sample(range(len(frame)), min(share, len(frame)))):
            session.run(text, row=frame.row(at, named=True)).consume()
            written += 1
    return written


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(folder: Path, rounds: int, n_sample: int, say: Callable[[str], None]) -> dict[str, Any]:
    """All measurements, as the result file holds them."""
    tables = tables_of(folder)
    n_nodes = sum(len(frame) for kind, frame in tables.items() if isinstance(kind, str))
    n_edges = sum(len(frame) for kind, frame in tables.items() if not isinstance(kind, str))
    n_rows = n_nodes + n_edges
    say(f"{n_nodes:,} nodes, {n_edges:,} edges")
    taken: dict[str, list[float]] = {"bare": [], "ours": [], "ours_again": []}
    with running_neo4j(Jvm(heap="1g", full_compiler=True)) as server:
        os.environ.update(server.environment)
        login = (server.username, server.password)
        with (
            closing(open_store(server.address)) as store,
            closing(neo4j.GraphDatabase.driver(server.address, auth=login)) as driver,
            driver.session(database=server.database) as session,
        ):
            agent = driver.get_server_info().agent
            # The first write makes the constraints, without which bare CREATE of edges would not end.
            store.write_nodes(schema.CUSTOMER, pl.DataFrame({"key": []}, schema={"key": pl.String}))
            for number in range(rounds + 1):
                which = f"round {number}" if number else "warm-up"
                for name in ("bare", "ours") if number % 2 else ("ours", "bare"):
                    store.clear()
                    if name == "bare":
                        taken["bare"].append(seconds(lambda: write_bare(session, tables)))
                    else:
                        taken["ours"].append(seconds(lambda: write_ours(store, tables)))
                        taken["ours_again"].append(seconds(lambda: write_ours(store, tables)))
                    say(f"{which} {name}: {n_rows / taken[name][-1]:,.0f} rows/s")
            store.clear()
            write_ours(store, {kind: frame for kind, frame in tables.items() if isinstance(kind, str)})
            edges = {kind: frame for kind, frame in tables.items() if not isinstance(kind, str)}
            started = time.perf_counter()
            n_written = write_row_by_row(session, edges, n_sample, seed=0)
            row_by_row = n_written / (time.perf_counter() - started)
            say(f"row by row, {n_written} edges sampled: {row_by_row:,.0f} rows/s")
            store.clear()
            report = load(folder, store)
            say(f"ingest.load: {n_rows / report.seconds:,.0f} rows/s")
    warm = {name: n_rows / statistics.median(times[1:]) for name, times in taken.items()}
    return {
        "server": agent,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "folder": folder.name,
        "n_nodes": n_nodes,
        "n_edges": n_edges,
        "rounds": rounds,
        "bare_rows_per_s": round(warm["bare"]),
        "ours_rows_per_s": round(warm["ours"]),
        "ours_again_rows_per_s": round(warm["ours_again"]),
        "row_by_row_edges_per_s": round(row_by_row, 1),
        "row_by_row_sample": n_written,
        "ingest_load_rows_per_s": round(n_rows / report.seconds),
        "cold_rows_per_s": {name: round(n_rows / times[0]) for name, times in taken.items()},
        "ours_to_bare": round(warm["ours"] / warm["bare"], 2),
        "ours_to_row_by_row": round(warm["ours"] / row_by_row, 1),
        "ingest_load_to_bare": round(n_rows / report.seconds / warm["bare"], 2),
        "seconds": {name: [round(value, 2) for value in times] for name, times in taken.items()},
    }


def shop_folder(given: Path | None) -> Iterator[Path]:
    """The folder given, or a generated shop that is gone afterwards."""
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        generate_shop(folder)
        yield Path(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="a shop folder; the generated shop without it")
    parser.add_argument("--rounds", type=int, default=2, help="counted rounds of bare and ours")
    parser.add_argument("--sample", type=int, default=1000, help="rows written one by one")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object alone")
    parser.add_argument("--output", type=Path, help="write the result into this file")
    arguments = parser.parse_args()
    for folder in shop_folder(arguments.folder):
        result = measure(
            folder, arguments.rounds, arguments.sample, lambda text: print(text, file=sys.stderr, flush=True)
        )
    text = json.dumps(result, indent=2)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")
    if arguments.json:
        print(text)
    else:
        print(
            f"ours {result['ours_rows_per_s']:,} rows/s: {result['ours_to_bare']} x bare UNWIND CREATE, "
            f"{result['ours_to_row_by_row']} x row by row (a sample of {result['row_by_row_sample']} edges)"
        )


if __name__ == "__main__":
    main()
