"""The fixture behind every Neo4j test: the order of its ways, and that no server is ever left running."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import neo4j_server
import psutil
import pytest
from neo4j_server import Jvm, Neo4jServer, UnavailableError, Way, running_neo4j

from kg import open_store

TESTS = Path(neo4j_server.__file__).parent


def way(name: str, seen: list[str], lack: str | None = None) -> Way:
    @contextmanager
    def start(jvm: Jvm) -> Iterator[Neo4jServer]:
        seen.append(f"try {name}")
        if lack is not None:
            raise UnavailableError(lack)
        yield Neo4jServer(f"bolt://{name}:7687", password="x")
        seen.append(f"stop {name}")

    def manager(jvm: Jvm) -> AbstractContextManager[Neo4jServer]:
        return start(jvm)

    return manager


def test_the_order_is_environment_container_packages() -> None:
    assert (
        neo4j_server.server_from_environment,
        neo4j_server.server_in_container,
        neo4j_server.server_from_packages,
    ) == neo4j_server.WAYS


def test_the_first_way_that_there_is_wins_and_is_stopped() -> None:
    seen: list[str] = []
    ways = [way("first", seen, "no address"), way("second", seen), way("third", seen)]
    with running_neo4j(ways=ways) as server:
        assert server.address == "bolt://second:7687"
    assert seen == ["try first", "try second", "stop second"]


def test_a_way_that_fails_is_not_hidden_by_the_next() -> None:
    def broken(jvm: Jvm) -> AbstractContextManager[Neo4jServer]:
        raise RuntimeError("the image could not be pulled")

    seen: list[str] = []
    with pytest.raises(RuntimeError, match="could not be pulled"), running_neo4j(ways=[broken, way("next", seen)]):
        pytest.fail("there is no server")
    assert seen == []


def test_without_any_way_the_error_names_all_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIRSTSHELF_TEST_NEO4J", raising=False)
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RuntimeError) as caught, running_neo4j():
        pytest.fail("there is no server")
    _, first, second, third = str(caught.value).splitlines()
    assert "FIRSTSHELF_TEST_NEO4J" in first
    assert "Docker engine" in second
    assert "JDK 17 and Maven" in third


def test_the_environment_names_a_server_and_its_login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRSTSHELF_TEST_NEO4J", "bolt://graph.example:7687")
    monkeypatch.setenv("NEO4J_USERNAME", "tester")
    monkeypatch.setenv("NEO4J_PASSWORD", "secret")
    monkeypatch.setenv("NEO4J_DATABASE", "scratch")
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    with running_neo4j() as server:
        assert server == Neo4jServer("bolt://graph.example:7687", "secret", "tester", "scratch")
    assert "secret" not in repr(server)
    monkeypatch.setenv("PYTEST_XDIST_WORKER_COUNT", "2")
    with pytest.raises(RuntimeError, match="without -n"), running_neo4j():
        pytest.fail("two workers would empty one database")


def test_the_running_server_is_neo4j_5(neo4j_address: str) -> None:
    store = open_store(neo4j_address)
    rows = store.run("CALL dbms.components() YIELD versions RETURN versions[0] AS version", {})
    assert rows[0]["version"].startswith("5.")
    store.close()


@pytest.mark.skipif(
    "FIRSTSHELF_TEST_NEO4J" in os.environ or shutil.which("mvn") is None,
    reason="the server is a child process only where it is started from its packages",
)
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_the_server_ends_with_the_process_that_started_it(end: signal.Signals) -> None:
    code = (
        f"import sys, time; sys.path.insert(0, {str(TESTS)!r})\n"
        "from neo4j_server import running_neo4j, server_from_packages\n"
        "with running_neo4j(ways=[server_from_packages]):\n"
        "    print('running', flush=True)\n"
        "    time.sleep(300)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as parent:
        try:
            assert parent.stdout is not None
            assert parent.stdout.readline() == b"running\n"
            servers = [child for child in psutil.Process(parent.pid).children() if "Launcher" in child.cmdline()]
            assert len(servers) == 1
        finally:
            parent.send_signal(end)
    gone, _ = psutil.wait_procs(servers, timeout=30)
    assert gone == servers
