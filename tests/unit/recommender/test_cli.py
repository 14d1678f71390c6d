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
from recommender.results import Audience

runner = CliRunner()


@pytest.fixture
def opened(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(Engine, "open", lambda workspace, *, progress: engine)
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


def test_a_cut_without_the_protocol_that_has_one_is_wrong_usage(tmp_path: Path) -> None:
    result = runner.invoke(app, ["evaluate", "--workspace", str(tmp_path), "--cut", "2024-01-01"])
    assert result.exit_code == 2
    assert "--protocol time" in result.stderr


def test_a_folder_that_cannot_be_read_leaves_no_workspace(tmp_path: Path) -> None:
    result = runner.invoke(app, ["ingest", str(tmp_path / "nowhere"), "--workspace", str(tmp_path / "w")])
    assert result.exit_code == 1
    assert not (tmp_path / "w").exists()


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


def test_each_customer_of_a_file_gets_one_list_and_blank_lines_are_none(opened: Engine, tmp_path: Path) -> None:
    users = tmp_path / "users.txt"
    users.write_text("\ufeffu2 \r\n\r\n  \r\nu1\r\nu2\r\n", encoding="utf-8")
    result = runner.invoke(app, ["recommend", "-w", "w", "--users-file", str(users), "--k", "1", "--json"])
    assert [row["user_id"] for row in json.loads(result.stdout)["recommendations"]] == ["u2", "u1"]
    assert "1 lines" in result.stderr
    twice = runner.invoke(app, ["recommend", "-w", "w", "--user", "u1", "--user", "u1", "--k", "1", "--json"])
    assert len(json.loads(twice.stdout)["recommendations"]) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b"", "holds no id"), (b" \n\n", "holds no id"), (b"gr\xfc\xdfe", "UTF-8 text")],
)
def test_a_users_file_without_ids_is_one_clear_error(tmp_path: Path, content: bytes | None, message: str) -> None:
    users = tmp_path / "users.txt"
    if content is not None:
        users.write_bytes(content)
    result = run("recommend", "--workspace", str(tmp_path / "w"), "--users-file", str(users))
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert result.stderr.startswith("SourceError: users file")
    assert message in result.stderr


def test_a_path_that_cannot_be_written_is_one_clear_error(
    opened: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["recommend", "--workspace", "w", "--user", "u1", "--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["firstshelf", *asked])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    told = capsys.readouterr().err
    assert told.startswith(f"IsADirectoryError: {str(tmp_path)!r} cannot be read or written: Is a directory; check")
    assert len(told.splitlines()) == 1


def test_the_share_of_new_items_is_an_option(opened: Engine, tmp_path: Path) -> None:
    asked = ["recommend", "-w", "w", "--user", "u1", "--k", "1", "--json"]
    shown = [
        json.loads(runner.invoke(app, [*asked, "--new-share", share]).stdout)["recommendations"][0]["item_id"]
        for share in ("0", "1")
    ]
    assert shown == ["tape", "cable"]
    output = tmp_path / "recs.jsonl"
    runner.invoke(app, [*asked, "--new-share", "0", "--output", str(output)])
    assert json.loads(output.read_text(encoding="utf-8"))["item_id"] == "tape"
    for wrong in (["--new-share", "1.2"], ["--new-share", "-1"], ["--new-share", "0.2", "--pool", "new"]):
        assert runner.invoke(app, [*asked, *wrong]).exit_code == 2


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


def test_ingest_and_launch_name_what_nothing_reads(opened: Engine, tmp_path: Path) -> None:
    shop, item = tmp_path / "shop", tmp_path / "item.json"
    shop.mkdir()
    (shop / "items.csv").write_text("item_id,tilte\n1,x\n", encoding="utf-8")
    for as_json in ([], ["--json"]):
        loaded = runner.invoke(app, ["ingest", str(shop), "-w", str(tmp_path / "w"), *as_json])
        assert "note: 'items.csv' has columns that nothing reads: 'tilte' (did you mean 'title'?)\n" in loaded.stderr
    assert json.loads(loaded.stdout)["ignored_columns"] == {"items.csv": {"tilte": "title"}}
    item.write_text('{"item_id": "x", "tilte": "y"}', encoding="utf-8")
    told = runner.invoke(app, ["launch", str(item), "-w", "w", "--json"])
    assert "note: fields that nothing reads: 'tilte' (did you mean 'title'?)\n" in told.stderr
    assert "tilte" in json.loads(told.stdout)["notes"][0]


def test_nobody_left_to_name_is_said(opened: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "audience_for", lambda self, item_id, **options: Audience(item_id, ()))
    assert "nobody is left" in runner.invoke(app, ["audience", "glue", "-w", "w"]).stderr


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


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_bars_on_a_terminal_and_lines_elsewhere(
    opened: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminal: bool,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(
        sys, "argv", ["firstshelf", "recommend", "-w", "w", "--user", "u1", "--output", str(tmp_path / "r")]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    told = capsys.readouterr()
    assert told.out.startswith("5 recommendations for 1 customers")
    assert ("━" in told.err) == terminal
    assert terminal or told.err == "recommend: done\n"


def test_long_names_are_shortened_in_drawings_only() -> None:
    nodes = (PathNode("Product", "a", "A"), PathNode("Product", "b", "B" * 100))
    drawn = draw(WalkPath(nodes, (PathEdge("SIMILAR_TO", False, "text"),), 0.5, "similar_text"))
    assert drawn == f"(A) ←SIMILAR_TO─ ({'B' * 47}…)"
