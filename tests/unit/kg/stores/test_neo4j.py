"""What can be told of Neo4j without a server: versions, and errors with a way out. The rest has a real one."""

from __future__ import annotations

import pytest
from neo4j import exceptions

from kg.errors import StoreError
from kg.stores.neo4j import check_version, clear_error

ADDRESS = "neo4j://graph.example:7687"


@pytest.mark.parametrize("agent", ["Neo4j/5.26.30", "Neo4j/5.0.0", "Neo4j/2025.06.0", "Neo4j/5.27-aura"])
def test_neo4j_5_and_newer_will_do(agent: str) -> None:
    check_version(agent, ADDRESS)


@pytest.mark.parametrize("agent", ["Neo4j/4.4.38", "Neo4j/3.5.35", "Memgraph/2.0", "Neo4j", "", "OtherNeo4j/5.1"])
def test_older_and_other_servers_are_refused_by_name(agent: str) -> None:
    with pytest.raises(StoreError, match="needs Neo4j 5 or newer") as caught:
        check_version(agent, ADDRESS)
    assert repr(agent) in str(caught.value)


def server_error(code: str, message: str = "it is said") -> exceptions.Neo4jError:
    return exceptions.Neo4jError._hydrate_neo4j(code=code, message=message)


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (exceptions.ServiceUnavailable("Couldn't connect to graph.example:7687\nmore"), "start it"),
        (exceptions.SessionExpired("gone"), "start it"),
        (ConnectionResetError("reset"), "start it"),
        (server_error("Neo.ClientError.Security.Unauthorized"), "set NEO4J_USERNAME and NEO4J_PASSWORD"),
        (server_error("Neo.ClientError.Security.AuthenticationRateLimit"), "set NEO4J_USERNAME and NEO4J_PASSWORD"),
        (server_error("Neo.ClientError.Security.CredentialsExpired"), "set NEO4J_USERNAME and NEO4J_PASSWORD"),
        (server_error("Neo.ClientError.Database.DatabaseNotFound"), "set NEO4J_DATABASE"),
        (exceptions.UnsupportedServerProduct("Bolt 3 it is"), "upgrade it"),
        (server_error("Neo.ClientError.Statement.SyntaxError", "Invalid input"), "refused a query: Invalid input"),
        (exceptions.TransactionError(None, "broken"), "cannot be used"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_error_of_the_driver_is_one_clear_line(error: Exception, way_out: str) -> None:
    told = clear_error(error, ADDRESS, "shop")
    assert isinstance(told, StoreError)
    assert way_out in str(told)
    assert ADDRESS in str(told)
    assert "\n" not in str(told)
