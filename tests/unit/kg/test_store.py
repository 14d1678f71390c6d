"""The address picks the store, and holds no login."""

import sys
from pathlib import Path

import pytest

from kg import WriteCount, open_store
from kg.errors import StoreError
from kg.store import check_address


def test_write_counts_add_up() -> None:
    assert WriteCount(1, 2) + WriteCount(3, 4) == WriteCount(added=4, updated=6)


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("memory:", "memory"),
        ("file:shop.graph", "file"),
        ("file:/data/a@b/graph", "file"),
        ("file:///data/a@b/graph", "file"),
        ("neo4j://localhost:7687", "neo4j"),
        ("bolt+s://graph.example:7687", "bolt+s"),
    ],
)
def test_the_kind_of_an_address(address: str, kind: str) -> None:
    assert check_address(address) == kind


@pytest.mark.parametrize("address", ["", "shop.graph", "redis://localhost", "http://localhost:7474", "NEO4J"])
def test_unknown_addresses_are_told_what_is_expected(address: str) -> None:
    with pytest.raises(StoreError, match="'file:PATH'"):
        open_store(address)


@pytest.mark.parametrize("address", ["neo4j://ann:hunter2@graph.example:7687", "redis://ann:hunter2@graph.example/0"])
def test_a_login_in_an_address_is_refused_and_not_repeated(address: str) -> None:
    with pytest.raises(StoreError, match="NEO4J_PASSWORD") as caught:
        open_store(address)
    assert "hunter2" not in str(caught.value)
    assert "graph.example" in str(caught.value)


def test_stores_of_each_kind_know_their_address(tmp_path: Path) -> None:
    for address in ("memory:", f"file:{tmp_path / 'graph'}"):
        store = open_store(address)
        assert store.address == address
        store.close()


def test_a_missing_extra_fails_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kg.stores.neo4j", None)
    with pytest.raises(StoreError, match=r"pip install 'firstshelf\[neo4j\]'"):
        open_store("neo4j://localhost:7687")
