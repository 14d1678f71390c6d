from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kg import Path as WalkPath
from kg import PathEdge, PathNode
from recommender import Engine
from recommender.cli import app, draw, main

runner = CliRunner()


@pytest.fixture
def opened(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(Engine, "open", lambda workspace: engine)
    monkeypatch.setattr(Engine, "close", lambda self: None)
    return engine


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed command, as a user calls it."""
    command = [sys.executable, "-c", "from recommender.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_an_interrupted_job_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(workspace: Path | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("recommender.doctor.examine", interrupt)
    monkeypatch.setattr("sys.argv", ["firstshelf", "doctor"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted; run the same command again to go on\n"


def test_a_store_that_keeps_nothing_is_wrong_usage(tmp_path: Path) -> None:
    for command in (["ingest", str(tmp_path)], ["demo"]):
        result = runner.invoke(app, [*command, "--workspace", str(tmp_path / "w"), "--store", "memory:"])
        assert result.exit_code == 2
        assert not (tmp_path / "w").exists()


def test_a_job_that_fails_is_one_clear_line_and_exit_code_1(tmp_path: Path) -> None:
    result = run("recommend", "--workspace", str(tmp_path / "none"), "--user", "u1")
    assert result.returncode == 1
    assert result.stderr.startswith("WorkspaceError: no workspace at")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [(), ("--user", "u1", "--all-users"), ("--user", "u1", "--pool", "old")])
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    result = runner.invoke(app, ["recommend", "--workspace", str(tmp_path), *arguments])
    assert result.exit_code == 2


def test_recommend_prints_json(opened: Engine) -> None:
    result = runner.invoke(
        app, ["recommend", "--workspace", "w", "--user", "u1", "--k", "2", "--pool", "new", "--explain", "--json"]
    )
    rows = json.loads(result.stdout)["recommendations"]
    assert [row["item_id"] for row in rows] == ["cable", "epoxy"]
    assert rows[1]["explanation"]["verified"] is True


def test_recommend_prints_sentences_and_paths(opened: Engine) -> None:
    result = runner.invoke(app, ["recommend", "--workspace", "w", "--user", "u1", "--pool", "new", "--explain"])
    assert "“Epoxy” is made by Gorilla, like “Super Glue” in the history.  (verified)" in result.stdout
    assert "(u1) ─INTERACTED→ (Super Glue) ─MADE_BY→ (Gorilla) ←MADE_BY─ (Epoxy)" in result.stdout
    assert "no path" in result.stdout


def test_users_come_from_a_file_and_lists_go_to_one(opened: Engine, tmp_path: Path) -> None:
    users, output = tmp_path / "users.txt", tmp_path / "recs.jsonl"
    users.write_text("u2\nu1\n", encoding="utf-8")
    asked = ["recommend", "--workspace", "w", "--users-file", str(users), "--output", str(output), "--k", "1", "--json"]
    report = json.loads(runner.invoke(app, asked).stdout)
    assert (report["users"], report["rows"]) == (2, 2)
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [line["user_id"] for line in lines] == ["u2", "u1"]
    assert "explanation" not in lines[0]


def test_a_bare_history_is_answered(opened: Engine) -> None:
    asked = ["recommend", "--workspace", "w", "--history", "glue", "--history", "ghost", "--json"]
    answer = json.loads(runner.invoke(app, asked).stdout)
    assert "ghost" in answer["notes"][0]
    assert answer["recommendations"][0]["user_id"] is None


def test_explain_prints_what_pastes_into_the_browser(opened: Engine) -> None:
    told = runner.invoke(app, ["explain", "u1", "epoxy", "--workspace", "w"]).stdout
    assert ':params {start: "u1", end: "epoxy"}' in told
    assert "MATCH" in told
    assert "verified: true" in told
    answer = json.loads(runner.invoke(app, ["explain", "u1", "stone", "--workspace", "w", "--json"]).stdout)
    assert answer == {"user_id": "u1", "item_id": "stone", "explanation": None}


def test_launch_takes_a_file(opened: Engine, tmp_path: Path) -> None:
    item = tmp_path / "item.json"
    item.write_text(json.dumps({"item_id": "胶水", "title": "万能胶水", "brand": "Gorilla"}), encoding="utf-8")
    launch = json.loads(runner.invoke(app, ["launch", str(item), "--workspace", "w", "--json"]).stdout)
    assert (launch["item_id"], launch["created"]) == ("胶水", True)
    assert [member["user_id"] for member in launch["audience"]] == ["u1", "u2", "u3"]
    told = runner.invoke(app, ["launch", str(item), "--workspace", "w"]).stdout
    assert "updated 胶水" in told


def test_audience_and_similar_answer(opened: Engine) -> None:
    audience = json.loads(runner.invoke(app, ["audience", "epoxy", "-w", "w", "--explain", "--json"]).stdout)
    assert audience["audience"][0]["user_id"] == "u1"
    assert "score" in runner.invoke(app, ["audience", "epoxy", "-w", "w"]).stdout
    similar = json.loads(runner.invoke(app, ["similar", "epoxy", "-w", "w", "--k", "2", "--json"]).stdout)
    assert len(similar["neighbours"]) == 2
    assert "[cable]" in runner.invoke(app, ["similar", "epoxy", "-w", "w"]).stdout


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "item.json"
    broken.write_text("{", encoding="utf-8")
    result = run("launch", str(broken), "--workspace", str(tmp_path / "w"))
    assert result.returncode == 1
    assert "item.json" in result.stderr
    assert "Traceback" not in result.stderr


def test_long_names_are_shortened_in_drawings_only() -> None:
    nodes = (PathNode("Product", "a", "A"), PathNode("Product", "b", "B" * 100))
    drawn = draw(WalkPath(nodes, (PathEdge("SIMILAR_TO", False, "text"),), 0.5, "similar_text"))
    assert drawn == f"(A) ←SIMILAR_TO─ ({'B' * 47}…)"
