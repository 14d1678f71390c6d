"""What only a real Neo4j can show: plans, constraints, logins, batches, and what it does with hostile text."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import neo4j
import polars as pl
import pytest

from kg import METAPATHS, GraphStore, cypher, open_store, schema
from kg.errors import StoreError
from kg.schema import quote_identifier

AWKWARD = ["it's", 'say "hi"', "\\", "\\u0027", "`tick`", "新品 😀", "line\nbreak\ttab", "$start", "\x01\x7f\u2028"]


@pytest.fixture
def store(neo4j_address: str) -> Iterator[GraphStore]:
    with closing(open_store(neo4j_address)) as store:
        store.clear()
        yield store


@pytest.fixture
def driver(neo4j_address: str) -> Iterator[neo4j.Driver]:
    """The bare driver, to look past the store."""
    login = (os.environ["NEO4J_USERNAME"], os.environ["NEO4J_PASSWORD"])
    with closing(neo4j.GraphDatabase.driver(neo4j_address, auth=login)) as driver:
        yield driver


def ask(driver: neo4j.Driver, text: str, **parameters: Any) -> list[dict[str, Any]]:
    return [record.data() for record in driver.execute_query(text, parameters, database_="neo4j").records]


def products(n: int) -> pl.DataFrame:
    return pl.DataFrame({"key": [f"p{num}" for num in range(n)]})


def similar(pairs: list[tuple[str, str]]) -> pl.DataFrame:
    frame = pl.DataFrame(pairs, schema=["head", "tail"], orient="row")
    return frame.with_columns(source=pl.lit("text"), score=pl.lit(0.5))


def test_every_label_has_a_unique_key_after_the_first_write(store: GraphStore, driver: neo4j.Driver) -> None:
    store.write_nodes(schema.BRAND, pl.DataFrame({"key": ["acme"]}))
    rows = ask(driver, "SHOW CONSTRAINTS YIELD type, labelsOrTypes, properties RETURN type, labelsOrTypes, properties")
    unique = {row["labelsOrTypes"][0] for row in rows if (row["type"], row["properties"]) == ("UNIQUENESS", ["key"])}
    assert unique >= set(schema.LABELS)
    states = ask(driver, "SHOW INDEXES YIELD state RETURN DISTINCT state")
    assert states == [{"state": "ONLINE"}]


def operators(plan: dict[str, Any]) -> Iterator[str]:
    yield plan["operatorType"].partition("@")[0]
    for child in plan.get("children", []):
        yield from operators(child)


@pytest.mark.parametrize("relation", schema.RELATIONS, ids=lambda relation: relation.type)
def test_writes_of_edges_are_planned_with_indexes_and_without_eager(
    store: GraphStore, driver: neo4j.Driver, relation: schema.Relation
) -> None:
    """An Eager operator holds all rows of a batch in memory; a scan reads a whole label for each row."""
    store.write_nodes(schema.PRODUCT, products(3))
    properties = list(schema.EDGE_PROPERTIES[relation])
    for text in (
        cypher.create_edges(relation, properties),
        cypher.merge_edges(relation, properties),
        cypher.edge_sources(relation),
    ):
        summary = driver.execute_query(f"EXPLAIN {text}", rows=[], database_="neo4j").summary
        assert summary.plan is not None
        found = set(operators(summary.plan))
        assert "Eager" not in found
        assert not {name for name in found if "Scan" in name}, found
        assert any(name.startswith("NodeUniqueIndexSeek") for name in found), found


@pytest.mark.parametrize("label", schema.LABELS)
def test_writes_of_nodes_are_planned_with_the_index(store: GraphStore, driver: neo4j.Driver, label: str) -> None:
    store.write_nodes(schema.PRODUCT, products(1))
    text = cypher.merge_nodes(label, list(schema.NODE_PROPERTIES[label]))
    summary = driver.execute_query(f"EXPLAIN {text}", rows=[], database_="neo4j").summary
    assert summary.plan is not None
    found = set(operators(summary.plan))
    assert "Eager" not in found
    assert any(name.startswith("NodeUniqueIndexSeek") for name in found), found


def test_a_large_load_is_the_same_load_as_many_small_ones(store: GraphStore, driver: neo4j.Driver) -> None:
    """More rows than a batch: created where the label was empty, merged where it was not."""
    assert store.write_nodes(schema.PRODUCT, products(12_000)).added == 12_000
    pairs = [(f"p{num}", f"p{(num * 7 + 1) % 12_000}") for num in range(12_000)]
    assert store.write_edges(schema.SIMILAR_TO, similar(pairs)).added == 12_000
    again = store.write_edges(schema.SIMILAR_TO, similar([*pairs, ("p0", "p5")]))
    assert (again.added, again.updated) == (1, 12_000)
    more = store.write_nodes(schema.PRODUCT, products(12_001))
    assert (more.added, more.updated) == (1, 12_000)
    counts = ask(driver, "MATCH (n:Product) WITH count(n) AS n MATCH ()-[e:SIMILAR_TO]->() RETURN n, count(e) AS e")
    assert counts == [{"n": 12_001, "e": 12_001}]


def test_a_missing_end_in_a_later_batch_leaves_no_edge_behind(store: GraphStore) -> None:
    store.write_nodes(schema.PRODUCT, products(12_000))
    pairs = [(f"p{num}", f"p{num + 1}") for num in range(11_999)]
    with pytest.raises(StoreError, match=r"tail Product 'gone' does not exist \(1 of 12000 rows"):
        store.write_edges(schema.SIMILAR_TO, similar([*pairs, ("p0", "gone")]))
    assert len(store.edges(schema.SIMILAR_TO)) == 0


def test_two_writers_on_one_hub_both_come_through(neo4j_address: str, store: GraphStore) -> None:
    """They lock the same node; the driver's retries settle it."""
    store.write_nodes(schema.PRODUCT, products(2_000))
    store.write_nodes(schema.BRAND, pl.DataFrame({"key": ["hub"]}))
    errors: list[BaseException] = []

    def load(first: int) -> None:
        edges = pl.DataFrame({"head": [f"p{num}" for num in range(first, 2_000, 2)]})
        try:
            with closing(open_store(neo4j_address)) as own:
                for part in edges.iter_slices(250):
                    own.write_edges(schema.MADE_BY, part.with_columns(tail=pl.lit("hub"), source=pl.lit("catalogue")))
        except BaseException as error:  # noqa: BLE001  a thread cannot raise: asserted below to be none
            errors.append(error)

    threads = [threading.Thread(target=load, args=(first,)) for first in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(store.edges(schema.MADE_BY)) == 2_000


def test_long_descriptions_travel_in_smaller_batches(store: GraphStore) -> None:
    rows = pl.DataFrame({"key": [f"p{num}" for num in range(300)], "description": ["電" * 100_000] * 300})
    seen: list[int] = []
    assert store.write_nodes(schema.PRODUCT, rows, progress=seen.append).added == 300
    assert len(seen) > 5
    assert store.run("MATCH (n:Product) RETURN min(size(n.description)) AS shortest", {}) == [{"shortest": 100_000}]


def test_clear_leaves_what_is_not_ours(store: GraphStore, driver: neo4j.Driver) -> None:
    ask(driver, "CREATE (:Invoice {key: 'i1'}), (:Workspace {key: 'theirs'})")
    store.write_nodes(schema.PRODUCT, products(1))
    store.set_mark("cafe")
    store.clear()
    left = ask(driver, "MATCH (n) RETURN labels(n)[0] AS label ORDER BY label")
    ask(driver, "MATCH (n:Invoice|Workspace) DETACH DELETE n")
    assert left == [{"label": "Invoice"}, {"label": "Workspace"}]


@pytest.mark.parametrize("text", AWKWARD)
def test_parameters_for_the_browser_mean_what_they_say(driver: neo4j.Driver, text: str) -> None:
    command = cypher.browser_parameters({"start": text, "ends": [text, ""], "limit": 3})
    literal = command.removeprefix(":params ")
    assert ask(driver, f"RETURN {literal} AS given") == [{"given": {"start": text, "ends": [text, ""], "limit": 3}}]


def test_quoted_identifiers_are_only_names(driver: neo4j.Driver) -> None:
    for name in ("two words", "tick`tick", "`) DETACH DELETE n //", "品牌", "back\\slash", "quote'\""):
        rows = ask(driver, f"CREATE (n:{quote_identifier(name)}) WITH n, labels(n) AS l DELETE n RETURN l[0] AS label")
        assert rows == [{"label": name}]


def test_the_explanation_is_quick_to_plan_and_pastes_into_the_browser(store: GraphStore, driver: neo4j.Driver) -> None:
    """Browser sends the text as it is, with parameters of its own: so does the bare driver."""
    store.write_nodes(schema.PRODUCT, products(2))
    store.write_edges(schema.SIMILAR_TO, similar([("p1", "p0")]))
    metapath = METAPATHS[0].from_history()
    rows = ask(driver, cypher.explain_query(metapath), start="p0", end="p1")
    assert [row["step_1_source"] for row in rows] == ["text"]
    assert ask(driver, cypher.match_query(metapath), starts=["p0"], ends=["p1"]) == [
        {"product_key": "p0", "recommended_key": "p1"}
    ]


def test_both_kinds_of_address_work(neo4j_address: str) -> None:
    host = neo4j_address.partition("://")[2]
    for kind in ("bolt", "neo4j"):
        with closing(open_store(f"{kind}://{host}")) as store:
            assert store.run("RETURN 1 AS one", {}) == [{"one": 1}]


def refusal(address: str) -> str:
    """The message with which a store cannot be opened, within ten seconds and without the driver's own errors."""
    started = time.monotonic()
    with pytest.raises(StoreError) as caught:
        open_store(address)
    assert time.monotonic() - started < 10
    return str(caught.value)


def test_a_wrong_password_is_one_clear_error(neo4j_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEO4J_PASSWORD", "not-the-password")
    message = refusal(neo4j_address)
    assert "NEO4J_PASSWORD" in message
    assert "not-the-password" not in message


def test_a_missing_password_is_one_clear_error(neo4j_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NEO4J_PASSWORD")
    assert "set NEO4J_USERNAME and NEO4J_PASSWORD" in refusal(neo4j_address)


def test_a_missing_database_is_one_clear_error(neo4j_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEO4J_DATABASE", "nosuchdatabase")
    assert "has no database 'nosuchdatabase'; set NEO4J_DATABASE" in refusal(neo4j_address)


@pytest.mark.parametrize("kind", ["bolt", "neo4j", "bolt+s"])
def test_a_server_that_is_down_is_one_clear_error(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEO4J_PASSWORD", "hunter2")
    message = refusal(f"{kind}://127.0.0.1:1")
    assert "no Neo4j answers" in message
    assert "hunter2" not in message


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert "no Neo4j answers" in refusal(f"bolt://127.0.0.1:{silent.getsockname()[1]}")


@pytest.mark.parametrize("address", ["bolt://localhost:port", "neo4j://localhost:99999999"])
def test_a_malformed_address_is_one_clear_error(address: str) -> None:
    assert address in refusal(address)


def test_the_driver_says_nothing_of_its_own(neo4j_address: str) -> None:
    """Empty relations make the server warn; where a program sets up no logging, nothing of that reaches the user."""
    code = (
        "import sys; from kg import open_store, schema\n"
        "store = open_store(sys.argv[1]); store.clear(); store.edges(schema.MADE_BY); store.close()\n"
        "try: open_store('neo4j://127.0.0.1:1')\n"
        "except Exception as error: print(type(error).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, neo4j_address], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("StoreError\n", "")
    assert not logging.getLogger("neo4j.notifications").isEnabledFor(logging.WARNING)
