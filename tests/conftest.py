"""Fixtures that several rooms' tests share: a store of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kg import GraphStore, open_store

CYPHER_STORES = ("embedded",)


def empty_store(kind: str, request: pytest.FixtureRequest) -> GraphStore:
    """An open, empty store of a kind: memory, embedded."""
    if kind == "memory":
        return open_store("memory:")
    folder: Path = request.getfixturevalue("tmp_path")
    return open_store(f"file:{folder / 'graph'}")


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
