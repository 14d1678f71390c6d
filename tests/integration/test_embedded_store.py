"""The embedded store between processes: one writer, nothing acknowledged is ever lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import polars as pl
import pytest

from kg import GraphStore, open_store, schema
from kg.errors import StoreError

WRITER = """
import sys
import polars as pl
from kg import open_store, schema
store = open_store(sys.argv[1])
store.set_mark("started")
for batch in range(10_000):
    keys = [f"{batch:05}-{num}" for num in range(50)]
    store.write_nodes(schema.PRODUCT, pl.DataFrame({"key": keys, "name": keys}))
    store.write_edges(
        schema.SIMILAR_TO,
        pl.DataFrame({"head": keys[1:], "tail": keys[:-1], "source": ["text"] * 49, "score": [0.5] * 49}),
    )
    print(batch, flush=True)
"""


def brands(*keys: str) -> pl.DataFrame:
    return pl.DataFrame({"key": keys, "name": keys})


def test_what_was_acknowledged_survives_a_kill_while_writing(tmp_path: Path) -> None:
    address = f"file:{tmp_path / 'graph'}"
    command = [sys.executable, "-c", WRITER, address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) >= 20:
                os.killpg(writer.pid, signal.SIGKILL)  # the engine works in a child of the writer: both, at once
                break
        acknowledged = [int(line), *map(int, writer.stdout.read().split())][-1]
    with closing(_reopened(address)) as store:
        products, similar = store.nodes(schema.PRODUCT)["key"], store.edges(schema.SIMILAR_TO)
        batches = products.str.slice(0, 5).cast(pl.Int64).value_counts().sort("key")
        # Every acknowledged batch is whole; of the one that was being written there is all or nothing of each write.
        assert batches["key"].to_list()[: acknowledged + 1] == list(range(acknowledged + 1))
        assert len(batches) <= acknowledged + 2
        assert set(batches["count"]) == {50}
        assert len(similar) % 49 == 0
        assert len(similar) >= 49 * (acknowledged + 1)
        assert store.get_mark() == "started"


def _reopened(address: str) -> GraphStore:
    for _ in range(200):
        try:
            return open_store(address)
        except StoreError as error:
            if "is open in" not in str(error):
                raise
        time.sleep(0.05)
    raise AssertionError("the file is held by a process that was killed")


def test_a_second_process_is_refused_and_told_who_holds_the_store(tmp_path: Path) -> None:
    address = f"file:{tmp_path / 'graph'}"
    code = "import sys; from kg import open_store; open_store(sys.argv[1])"
    with closing(open_store(address)) as store:
        store.write_nodes(schema.BRAND, brands("a"))
        second = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert "StoreError" in second.stderr.splitlines()[-1]
        assert f"store {address!r} is open in the process" in second.stderr
        with pytest.raises(StoreError, match="one process opens an embedded store at a time"):
            open_store(address)
        store.write_nodes(schema.BRAND, brands("b"))
    with closing(open_store(address)) as store:
        assert store.nodes(schema.BRAND)["key"].to_list() == ["a", "b"]


def test_a_graph_is_found_again_and_reading_it_leaves_the_file_alone(tmp_path: Path) -> None:
    address = f"file:{tmp_path / 'graph'}"
    with closing(open_store(address)) as store:
        store.write_nodes(schema.BRAND, brands("é", "a\\b", "新品"))
        store.set_mark("cafe")
    file = tmp_path / "graph" / "graph.kgl"
    written = file.stat().st_mtime_ns
    with closing(open_store(address)) as store:
        assert store.nodes(schema.BRAND)["key"].to_list() == ["a\\b", "é", "新品"]
        assert store.get_mark() == "cafe"
    assert file.stat().st_mtime_ns == written
    with closing(open_store(address)) as store:
        store.set_mark(None)
    with closing(open_store(address)) as store:
        assert store.get_mark() is None


@pytest.mark.parametrize("path", ["graph", "deep/er/graph", "graph.kgl", "deep/shop.kgl", "with space/商店"])
def test_a_path_is_a_folder_or_a_file_that_is_made(tmp_path: Path, path: str) -> None:
    address = f"file:{tmp_path / path}"
    for expected in ([], ["a"]):
        with closing(open_store(address)) as store:
            assert store.nodes(schema.BRAND)["key"].to_list() == expected
            store.write_nodes(schema.BRAND, brands("a"))
    assert (tmp_path / path).is_file() == path.endswith(".kgl")


def test_paths_that_cannot_hold_a_graph_are_clear_errors(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("not a graph", encoding="utf-8")
    (tmp_path / "broken.kgl").write_text("not a graph", encoding="utf-8")
    for address in ("file:", f"file:{tmp_path / 'note.txt'}", f"file:{tmp_path / 'broken.kgl'}", "file:/proc/graph"):
        with pytest.raises(StoreError) as caught:
            open_store(address)
        assert repr(address) in str(caught.value)
    assert (tmp_path / "broken.kgl").read_text(encoding="utf-8") == "not a graph"


def test_closing_a_large_graph_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    keys = [f"p{num}" for num in range(40_000)]
    said = ["blue " * (num % 60) if num % 3 else None for num in range(len(keys))]
    with closing(open_store(f"file:{tmp_path}/graph")) as store:
        store.write_nodes(schema.PRODUCT, pl.DataFrame({"key": keys, "name": keys, "description": said}))
    assert capfd.readouterr() == ("", "")
    with closing(open_store(f"file:{tmp_path}/graph")) as again:
        assert again.nodes(schema.PRODUCT).height == len(keys)
