"""Fixtures that several rooms' tests share: a store of every kind, the Neo4j server, the demo's workspace."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from neo4j_server import running_neo4j

from kg import GraphStore, open_store

CYPHER_STORES = ("embedded", "neo4j")


@pytest.fixture(scope="session")
def neo4j_address() -> Iterator[str]:
    """Address of a real Neo4j 5, one per test process; its login is in the environment while tests run.

    Tests that use it may empty its database. A server that cannot be had is an error, never a skip.
    """
    with running_neo4j() as server, pytest.MonkeyPatch.context() as environment:
        for name, value in server.environment.items():
            environment.setenv(name, value)
        yield server.address


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workspace that ``firstshelf demo`` leaves, trained once for all tests: change a copy, never this one."""
    folder = tmp_path_factory.mktemp("demo")
    command = [str(Path(sys.executable).with_name("firstshelf")), "demo"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "demo.workspace"


def empty_store(kind: str, request: pytest.FixtureRequest) -> GraphStore:
    """An open, empty store of a kind: memory, embedded or neo4j."""
    if kind == "memory":
        return open_store("memory:")
    if kind == "embedded":
        folder: Path = request.getfixturevalue("tmp_path")
        return open_store(f"file:{folder / 'graph'}")
    store = open_store(request.getfixturevalue("neo4j_address"))
    store.clear()
    return store


@pytest.fixture(params=("memory", *CYPHER_STORES))
def store(request: pytest.FixtureRequest) -> Iterator[GraphStore]:
    """An empty store of every kind."""
    with closing(empty_store(request.param, request)) as store:
        yield store


@pytest.fixture(params=CYPHER_STORES)
def cypher_store(request: pytest.FixtureRequest) -> Iterator[GraphStore]:
    """An empty store of every kind that takes Cypher text."""
    with closing(empty_store(request.param, request)) as store:
        yield store
