from __future__ import annotations

import json
from pathlib import Path

import pytest

from recommender import Engine
from recommender.batch import recommend_to_file

USERS = ["u1", "u2", "u3"]


def write(engine: Engine, output: Path, **options) -> tuple[object, list[dict]]:
    report = recommend_to_file(engine, USERS, output, k=2, pool="new", explain=True, users_at_once=1, **options)
    return report, [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def test_lines_are_the_answers_of_the_engine(engine: Engine, tmp_path: Path) -> None:
    report, lines = write(engine, tmp_path / "new" / "recs.jsonl")
    expected = [row for user in USERS for row in engine.recommend(user, k=2, pool="new", explain=True).to_json()]
    for line in (*lines, *expected):
        if line["explanation"]:
            line["explanation"].pop("checked_at")
    assert lines == expected
    assert (report.users, report.rows) == (3, 6)
    assert report.share_with_path == sum(line["explanation"] is not None for line in lines) / 6
    assert not list((tmp_path / "new").glob("*.part*"))


def test_an_interrupted_batch_goes_on_where_it_stopped(engine: Engine, tmp_path: Path) -> None:
    output = tmp_path / "recs.jsonl"
    seen: list[int] = []

    def interrupt(stage: str, done: int, total: int) -> None:
        seen.append(done)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(engine, output, progress=interrupt)
    assert not output.exists()
    with (tmp_path / "recs.jsonl.part").open("a") as part:
        part.write('{"half a li')
    report, lines = write(engine, output)
    assert report.resumed_users == 2
    assert [line["user_id"] for line in lines] == ["u1", "u1", "u2", "u2", "u3", "u3"]


def test_lines_that_a_power_cut_lost_are_made_again(engine: Engine, tmp_path: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(engine, tmp_path / "recs.jsonl", progress=interrupt)
    part = tmp_path / "recs.jsonl.part"
    part.write_bytes(part.read_bytes()[:10])
    report, lines = write(engine, tmp_path / "recs.jsonl")
    assert report.resumed_users == 0
    assert [line["user_id"] for line in lines] == ["u1", "u1", "u2", "u2", "u3", "u3"]


def test_what_is_degraded_is_told_once_for_all_groups(engine: Engine, tmp_path: Path) -> None:
    users = ["u1", "x", "y", "u2", "z"]
    report = recommend_to_file(engine, users, tmp_path / "r", k=1, pool="new", explain=False, users_at_once=2)
    assert report.notes == ("3 without a known history: answered with what sells to anyone (popularity)",)


def test_ids_may_be_numbers_and_a_share_is_kept_in_every_group(numbered: Engine, tmp_path: Path) -> None:
    """Item 30 is the new one: with no share for it, it is last."""
    output = tmp_path / "recs.jsonl"
    for new_share, shown in ((0.0, ["20", "10"]), (1.0, ["30", "30"])):
        recommend_to_file(
            numbered, [1, 2], output, k=1, pool="all", explain=False, new_share=new_share, users_at_once=1
        )
        lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
        assert [(line["user_id"], line["item_id"]) for line in lines] == list(zip("12", shown, strict=True))


def test_a_note_that_was_cut_off_starts_the_batch_anew(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "recs.jsonl.part").write_text("half", encoding="utf-8")
    (tmp_path / "recs.jsonl.part.json").write_text('{"request": "ab', encoding="utf-8")
    report, lines = write(engine, tmp_path / "recs.jsonl")
    assert (report.resumed_users, len(lines)) == (0, 6)


def test_a_folder_is_no_output(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        write(engine, tmp_path)
    with pytest.raises(ValueError, match="from 0 to 1"):
        write(engine, tmp_path / "recs.jsonl", new_share=2)
    assert not list(tmp_path.glob("*.part*"))


def test_another_request_starts_anew(engine: Engine, tmp_path: Path) -> None:
    output = tmp_path / "recs.jsonl"

    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(engine, output, progress=interrupt)
    report = recommend_to_file(engine, USERS, output, k=1, pool="all", explain=False)
    assert (report.resumed_users, report.rows, report.share_with_path) == (0, 3, None)
