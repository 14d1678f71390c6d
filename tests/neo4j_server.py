"""A real Neo4j 5 for tests and benchmarks: from the environment, a container, or its published Java packages."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Final

ADDRESS_VARIABLE: Final = "FIRSTSHELF_TEST_NEO4J"
IMAGE: Final = "neo4j:5.26-community"

_SOURCES: Final = Path(__file__).parent / "neo4j"
_CACHE: Final = Path(__file__).parents[1] / ".cache" / "neo4j"
_OPENED_PACKAGES: Final = ("java.nio", "java.io", "sun.nio.ch", "java.util.concurrent")


@dataclass(frozen=True, slots=True)
class Neo4jServer:
    """A running server and its login. Everything in its database may be deleted."""

    address: str
    password: str = field(repr=False)
    username: str = "neo4j"
    database: str = "neo4j"

    @property
    def environment(self) -> dict[str, str]:
        """What ``open_store`` reads: Neo4j's own variables."""
        return {
            "NEO4J_USERNAME": self.username,
            "NEO4J_PASSWORD": self.password,
            "NEO4J_DATABASE": self.database,
        }


class UnavailableError(Exception):
    """This way to a server does not exist here; the message says what it lacks."""


@dataclass(frozen=True, slots=True)
class Jvm:
    """How the server's Java runs. Without the full compiler it starts sooner and leaves the cores to the tests."""

    heap: str = "512m"
    full_compiler: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """Options beside the heap."""
        return () if self.full_compiler else ("-XX:TieredStopAtLevel=1",)


Way = Callable[[Jvm], AbstractContextManager[Neo4jServer]]
"""Starts (or finds) a server; raises ``UnavailableError`` where this way does not exist."""


@contextmanager
def running_neo4j(jvm: Jvm | None = None, *, ways: Sequence[Way] | None = None) -> Iterator[Neo4jServer]:
    """Start a server by the first way that there is, and stop it at the end.

    The order: the server named in ``FIRSTSHELF_TEST_NEO4J``, a container, the Java packages.

    Raises:
        RuntimeError: there is none; the message says what each way lacks.
    """
    with ExitStack() as stack:
        yield _first_that_starts(stack, jvm or Jvm(), WAYS if ways is None else ways)


def _first_that_starts(stack: ExitStack, jvm: Jvm, ways: Sequence[Way]) -> Neo4jServer:
    lacks = []
    for way in ways:
        try:
            return stack.enter_context(way(jvm))
        except UnavailableError as error:
            lacks.append(str(error))
    raise RuntimeError(
        "no Neo4j 5 server can be had, and these tests never skip. Any one of these gives it:\n"
        + "\n".join(f"  {number}. {lack}" for number, lack in enumerate(lacks, start=1))
    )


@contextmanager
def server_from_environment(jvm: Jvm) -> Iterator[Neo4jServer]:
    """The server that the environment names; its Java is its own affair."""
    address = os.environ.get(ADDRESS_VARIABLE)
    if not address:
        raise UnavailableError(
            f"set {ADDRESS_VARIABLE} to the address of a server whose database may be emptied, and NEO4J_USERNAME, "
            "NEO4J_PASSWORD and NEO4J_DATABASE to its login (the variable is not set)"
        )
    if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
        raise RuntimeError(
            f"{ADDRESS_VARIABLE} names one server, and every worker empties it; run the tests without -n"
        )
    yield Neo4jServer(
        address,
        password=os.environ.get("NEO4J_PASSWORD", ""),
        username=os.environ.get("NEO4J_USERNAME", "neo4j"),
        database=os.environ.get("NEO4J_DATABASE", "neo4j"),
    )


@contextmanager
def server_in_container(jvm: Jvm) -> Iterator[Neo4jServer]:
    """A container of the Community image."""
    wanted = f"start a Docker engine that this user may use, for the image {IMAGE}"
    try:
        from testcontainers.community.neo4j import Neo4jContainer

        # By its name: type checkers would take the repository's own folder "docker" for it.
        docker = import_module("docker")
    except ImportError as error:
        raise UnavailableError(f"{wanted} (the package {error.name!r} is missing)") from error
    try:
        docker.from_env().ping()
    except docker.errors.DockerException as error:
        raise UnavailableError(f"{wanted} (none answers)") from error
    password = secrets.token_hex(16)
    container = Neo4jContainer(IMAGE, username="neo4j", password=password)
    container.with_env("NEO4J_server_memory_heap_max__size", jvm.heap)
    container.with_env("NEO4J_server_jvm_additional", " ".join(jvm.options))
    with container as started:
        yield Neo4jServer(started.get_connection_url(), password=password)


@contextmanager
def server_from_packages(jvm: Jvm) -> Iterator[Neo4jServer]:
    """The same server from its packages on Maven Central, as a child process of this one."""
    for program in ("java", "javac", "mvn"):
        if shutil.which(program) is None:
            raise UnavailableError(f"install a JDK 17 and Maven ({program!r} is not on the PATH)")
    class_path = _built()
    with tempfile.TemporaryDirectory(prefix="firstshelf-neo4j-") as folder:
        port = _free_port()
        with _process(class_path, Path(folder), port, jvm) as server:
            yield server


WAYS: Final[tuple[Way, ...]] = (server_from_environment, server_in_container, server_from_packages)


def _built() -> str:
    """Fetch the packages and compile the launcher, once for all test processes; returns the class path."""
    _CACHE.mkdir(parents=True, exist_ok=True)
    sources = b"".join((_SOURCES / name).read_bytes() for name in ("pom.xml", "Launcher.java"))
    stamp, jars, classes = _CACHE / "built-from", _CACHE / "jars", _CACHE / "classes"
    with (_CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not stamp.exists() or stamp.read_bytes() != sources:
            for folder in (jars, classes):
                shutil.rmtree(folder, ignore_errors=True)
            _call(
                *("mvn", "--batch-mode", "--quiet", "--file", str(_SOURCES / "pom.xml")),
                *("dependency:copy-dependencies", f"-DoutputDirectory={jars}"),
            )
            _call("javac", "-cp", f"{jars}/*", "-d", str(classes), str(_SOURCES / "Launcher.java"))
            stamp.write_bytes(sources)
    return f"{classes}{os.pathsep}{jars}/*"


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=540)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed ({done.returncode}):\n{(done.stdout + done.stderr)[-3000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _process(class_path: str, folder: Path, port: int, jvm: Jvm) -> Iterator[Neo4jServer]:
    log = folder / "output.log"
    opened = [f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in _OPENED_PACKAGES]
    options = [f"-Xmx{jvm.heap}", *jvm.options, *opened, "-cp", class_path]
    command = ["java", *options, "Launcher", str(folder / "home"), str(port)]
    with log.open("wb") as errors:
        # The launcher ends when its standard input does: also when this process is killed without a farewell.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
    try:
        _wait_until_ready(process, log)
        server = Neo4jServer(f"bolt://127.0.0.1:{port}", password=secrets.token_hex(16))
        _set_first_password(server)
        yield server
    finally:
        _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path, timeout_s: float = 120) -> None:
    ready = threading.Event()

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == b"ready":
                ready.set()

    threading.Thread(target=read, daemon=True).start()
    deadline = time.monotonic() + timeout_s
    while not ready.wait(0.1):
        if process.poll() is not None or time.monotonic() > deadline:
            output = log.read_text(encoding="utf-8", errors="replace")[-3000:]
            raise RuntimeError(f"Neo4j was not ready after {timeout_s} s, exit status {process.poll()}:\n{output}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    for end in (process.stdin.close, process.terminate, process.kill):
        end()
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
            return


def _set_first_password(server: Neo4jServer) -> None:
    import neo4j

    with closing(neo4j.GraphDatabase.driver(server.address, auth=("neo4j", "neo4j"))) as driver:
        driver.execute_query(
            "ALTER CURRENT USER SET PASSWORD FROM $old TO $new",
            {"old": "neo4j", "new": server.password},
            database_="system",
        )
