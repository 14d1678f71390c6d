"""The README is run: its shell and Python blocks in a temporary folder, its links, its tables against the code."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
SHELL = [text for language, text in BLOCKS if language == "sh" and "make" not in text]
PYTHON = [text for language, text in BLOCKS if language == "python"]
JSON = [json.loads(text) for language, text in BLOCKS if language == "json"]
TWINS = dict(re.findall(r"^\| `firstshelf (\w+)[^`]*` \|.*\| `([^`]+)` \|$", README, flags=re.MULTILINE))


def run(*command, cwd):
    """Run a command as a reader would who has activated the environment: its programs come first on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def place(demo):
    """A folder as a reader has it: the demo has run there, and a shop and a new item of one's own lie in it.

    The shop has every third product of a generated one: nothing here is about how good its lists are.
    """
    from ingest import generate_shop

    folder = demo.parent
    generate_shop(folder / "shop", seed=1)
    items = (folder / "shop" / "items.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "shop" / "items.jsonl").write_text("".join(items[::3]), encoding="utf-8")
    (folder / "item.json").write_text(json.dumps(JSON[0]), encoding="utf-8")
    return folder


def test_the_first_command_is_the_demo_that_these_tests_run():
    assert BLOCKS[0] == ("sh", "make demo\n")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^demo: .*\n\t\$\(BIN\)/firstshelf demo$", makefile, flags=re.MULTILINE)
    folder = re.search(r"^BIN +:= (.+)$", makefile, flags=re.MULTILINE)
    assert folder is not None
    told = README.index(f"`. {folder[1]}/activate`")
    assert README.index(BLOCKS[0][1]) < told < README.index(BLOCKS[1][1]), (
        "the programs are on the path before they are used"
    )


@pytest.mark.parametrize("block", PYTHON)
def test_python_blocks_run_and_print_a_path(block, place):
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    printed = run("python", "-c", block, cwd=place).splitlines()
    assert printed[0].startswith("1 ")
    assert any(line.count(" - ") >= 2 for line in printed), "no path was printed"


@pytest.mark.parametrize("block", SHELL)
def test_shell_blocks_run(block, place):
    printed = run("bash", "-euo", "pipefail", "-c", block, cwd=place)
    assert "(verified)" in printed


def test_the_batch_file_is_as_the_readme_says(place):
    if not (place / "recs.jsonl").exists():
        run("bash", "-euo", "pipefail", "-c", next(block for block in SHELL if "recs.jsonl" in block), cwd=place)
    rows = [json.loads(line) for line in (place / "recs.jsonl").read_text(encoding="utf-8").splitlines()]
    explanation = JSON[-1]
    assert all(set(row) == {"user_id", "item_id", "title", "rank", "score", "source", "explanation"} for row in rows)
    explained = [row["explanation"] for row in rows if row["explanation"] is not None]
    assert explained
    assert all(list(found) == list(explanation) for found in explained)
    assert set(explained[0]["paths"][0]) == set(explanation["paths"][0])
    assert set(explained[0]["paths"][0]["nodes"][0]) == set(explanation["paths"][0]["nodes"][0])
    assert set(explained[0]["paths"][0]["edges"][0]) == set(explanation["paths"][0]["edges"][0])


def test_every_command_has_its_python_twin():
    from recommender.cli import app

    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert set(TWINS) == commands


@pytest.mark.parametrize("twin", TWINS.values())
def test_the_twins_exist(twin):
    from recommender import Engine

    *home, name = ast.unparse(ast.parse(twin.replace("…", ""), mode="eval").body.func).split(".")
    owner = Engine if home == ["engine"] else importlib.import_module(".".join(home))
    assert callable(getattr(owner, name))


def test_every_command_is_shown_with_options_that_it_has():
    from typer.main import get_command

    from recommender.cli import app

    commands = get_command(app).commands
    for line in re.findall(r"firstshelf (\w+ .*?)(?:`|$)", README, flags=re.MULTILINE):
        name, *words = line.split()
        if name not in commands:  # prose such as "firstshelf finds the customers"
            continue
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word.strip("[](),") for word in words if word.startswith(("-", "[-"))} <= known, line


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^(?:\$ )?make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda page: page.name
)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (page.parent / target).exists(), target


def test_every_folder_has_its_line():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = {line.split("/")[0] for line in tracked.splitlines() if "/" in line and not line.startswith(".")}
    assert folders <= set(re.findall(r"^\| \[`(\w+)[/`]", README, flags=re.MULTILINE))


def test_figures_stand_only_in_the_generated_table():
    assert README.count("<!-- results:begin -->") == README.count("<!-- results:end -->") == 1
    written_by_hand = re.sub(r"<!-- results:begin -->.*<!-- results:end -->", "", README, flags=re.DOTALL)
    assert not re.search(r"NDCG@\d+ (of )?[01]?\.\d+|Recall@\d+ (of )?[01]?\.\d+", written_by_hand)
