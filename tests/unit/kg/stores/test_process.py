from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from kg import open_store, schema
from kg.errors import StoreError
from kg.stores.process import ProcessStore


def brands(*keys: str) -> pl.DataFrame:
    return pl.DataFrame({"key": keys, "name": keys})


@pytest.mark.parametrize("first", ["torch", "sklearn"])
def test_the_store_opens_beside_every_library_that_carries_its_own_openmp(first: str, tmp_path: Path) -> None:
    program = (
        f"import {first}, torch, sklearn.utils; from kg import open_store; "
        f"store = open_store('file:{tmp_path}/graph'); print(store.get_mark()); store.close()"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert (result.returncode, result.stdout) == (0, "None\n"), result.stderr


def test_a_killed_child_is_a_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    address = f"file:{tmp_path}/graph"
    store = ProcessStore(address)
    store.write_nodes(schema.BRAND, brands("a", "b"))
    assert store._child is not None
    os.kill(store._child.pid, signal.SIGKILL)
    with pytest.raises(StoreError, match="open the store again"):
        store.nodes(schema.BRAND)
    again = open_store(address)
    assert again.nodes(schema.BRAND)["key"].to_list() == ["a", "b"]
    again.close()


def test_progress_and_errors_come_through(tmp_path: Path) -> None:
    store = ProcessStore(f"file:{tmp_path}/graph")
    seen: list[int] = []
    store.write_nodes(schema.BRAND, brands(*(f"b{n}" for n in range(25_000))), progress=seen.append)
    assert sum(seen) == 25_000
    missing = pl.DataFrame({"head": ["ghost"], "tail": ["b1"], "source": ["catalogue"]})
    with pytest.raises(StoreError, match="ghost"):
        store.write_edges(schema.MADE_BY, missing)
    assert store.nodes(schema.BRAND).height == 25_000
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.get_mark()


def test_the_child_ends_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import os; from kg.stores.process import ProcessStore; "
        f"store = ProcessStore('file:{tmp_path}/graph'); print(store._child.pid, flush=True); os._exit(1)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    # The pipe of stdout closes when the child has ended too, so here it is gone or a zombie of nobody.
    pid = int(result.stdout)
    for _ in range(200):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            break
        if Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").split(") ")[1].startswith("Z"):
            break
        signal.sigtimedwait([], 0.05)
    else:
        pytest.fail(f"the store's process {pid} outlives its parent")
    reopened = ProcessStore(f"file:{tmp_path}/graph")
    reopened.close()


def test_an_interrupt_from_the_keyboard_does_not_reach_the_child(tmp_path: Path) -> None:
    """Ctrl-C goes to the group of the terminal: sent to the parent's, it leaves the child answering."""
    program = (
        "import os, signal; from kg.stores.process import ProcessStore; os.setsid()\n"
        f"store = ProcessStore('file:{tmp_path}/graph')\n"
        "try:\n    os.killpg(0, signal.SIGINT); signal.pause()\n"
        "except KeyboardInterrupt: print(store.get_mark())\n"
        "store.close()"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "None\n", "")


def test_a_path_that_cannot_hold_a_graph_is_an_error_at_opening(tmp_path: Path) -> None:
    (tmp_path / "graph.kgl").write_text("not a graph")
    with pytest.raises(StoreError):
        ProcessStore(f"file:{tmp_path}/graph.kgl")


def test_an_answer_that_json_cannot_carry_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    store = ProcessStore(f"file:{tmp_path}/graph")
    with pytest.raises(StoreError, match="date"):
        store.run("RETURN date('2024-05-01') AS day", {})
    assert store.run("RETURN 1 AS one", {}) == [{"one": 1}]
    store.close()
