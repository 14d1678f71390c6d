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


def test_another_request_starts_anew(engine: Engine, tmp_path: Path) -> None:
    output = tmp_path / "recs.jsonl"

    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(engine, output, progress=interrupt)
    report = recommend_to_file(engine, USERS, output, k=1, pool="all", explain=False)
    assert (report.resumed_users, report.rows, report.share_with_path) == (0, 3, None)
