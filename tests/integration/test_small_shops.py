"""The smallest and oddest shops, from their files to recommendations, through the command line as a user calls it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from recommender import Engine
from recommender.cli import main

CHAIRS = [{"item_id": f"i{n}", "title": f"Red chair {n}", "brand": "B", "category_path": ["Chairs"]} for n in range(5)]


@dataclass(frozen=True)
class Told:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Told]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process: what it printed, and never a traceback."""

    def command(*arguments: object) -> Told:
        monkeypatch.setattr(sys, "argv", ["firstshelf", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        told = Told(int(ended.value.code or 0), *capsys.readouterr())
        assert "Traceback" not in told.err
        return told

    return command


def write_shop(folder: Path, items: Sequence[dict], events: Sequence[tuple[str, str]]) -> Path:
    folder.mkdir()
    lines = (json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    (folder / "items.jsonl").write_text("".join(lines), encoding="utf-8")
    rows = ({"user_id": user, "item_id": item, "position": n} for n, (user, item) in enumerate(events))
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "events.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("items", "events", "counted"),
    [
        (CHAIRS, [], "0 interactions of 0 customers with 0 items"),
        (CHAIRS, [("u", "i0"), ("u", "i1")], "2 interactions of 1 customers with 2 items"),
        (CHAIRS[:1], [("u", "i0"), ("v", "i0")], "2 interactions of 2 customers with 1 items"),
        (CHAIRS, [("u", "i0"), ("v", "i0")], "2 interactions of 2 customers with 1 items"),
    ],
    ids=["every item is new", "one customer", "one item", "one item is known, the others new"],
)
def test_too_little_to_learn_from_is_one_clear_error(
    run: Run, tmp_path: Path, items: list[dict], events: list[tuple[str, str]], counted: str
) -> None:
    shop, workspace = write_shop(tmp_path / "shop", items, events), tmp_path / "w"
    assert run("ingest", shop, "-w", workspace).code == 0
    told = run("train", "-w", workspace)
    assert (told.code, told.err.count("\n")) == (1, 1)
    assert told.err.startswith(f"TrainingError: {counted} cannot train a recommender; ingest events of at least 2")
    assert "holds no trained model; run: firstshelf train" in run("recommend", "-w", workspace, "--user", "u").err
    assert "ingest more events" in run("evaluate", "-w", workspace).err


@pytest.mark.parametrize(
    ("items", "events"),
    [
        (CHAIRS[:2], [("u0", "i0"), ("u1", "i1")]),
        (CHAIRS, [(f"u{n}", f"i{n % 3}") for n in range(9)]),
        ([{"item_id": f"i{n}"} for n in range(6)], [(f"u{n // 2}", f"i{n * n % 5}") for n in range(16)]),
    ],
    ids=["two customers, two items", "one event each", "no word about any item"],
)
def test_the_smallest_shops_that_train_answer_everything(
    run: Run, tmp_path: Path, items: list[dict], events: list[tuple[str, str]]
) -> None:
    shop, workspace, output = write_shop(tmp_path / "shop", items, events), tmp_path / "w", tmp_path / "new/recs.jsonl"
    assert run("ingest", shop, "-w", workspace).code == 0
    assert run("train", "-w", workspace).code == 0
    told = run("recommend", "-w", workspace, "--all-users", "--k", 10**9, "--output", output, "--json").json
    owned = {user: {item for who, item in events if who == user} for user, _ in events}
    lists: dict[str, list[str]] = {}
    for line in output.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        lists.setdefault(row["user_id"], []).append(row["item_id"])
        assert row["rank"] == len(lists[row["user_id"]])
    assert told["users"] == len(lists) == len(owned)
    assert all(sorted([*shown, *owned[user]]) == [item["item_id"] for item in items] for user, shown in lists.items())
    stranger = run("recommend", "-w", workspace, "--user", "nobody", "--explain", "--json").json
    assert {row["source"] for row in stranger["recommendations"]} == {"popularity"}
    assert len(stranger["recommendations"]) == len(items)
    assert "1 without a known history" in stranger["notes"][0]
    (tmp_path / "item.json").write_text('{"item_id": "x", "title": "Red chair"}', encoding="utf-8")
    launched = run("launch", tmp_path / "item.json", "-w", workspace, "--json").json
    assert {member["user_id"] for member in launched["audience"]} <= set(owned)
    newest = run("recommend", "-w", workspace, "--user", "u0", "--pool", "new", "--json").json["recommendations"]
    assert "x" in {row["item_id"] for row in newest}
    for command in (("audience", "x"), ("similar", "x"), ("explain", "u0", "x")):
        assert run(*command, "-w", workspace, "--json").code == 0


AWKWARD = ["a'b", 'c"d', "e/f\\g", "🛒", "'}) DETACH DELETE n //", "`x`", "a b > c", "商品", "$start"]


def test_ids_of_any_kind_from_the_files_to_the_explanation(run: Run, tmp_path: Path) -> None:
    """Every explanation's Cypher, run as it is printed, returns its path; nothing of an id is ever Cypher."""
    items = [
        {"item_id": item_id, "title": f"thing {item_id}", "brand": item_id[0], "category_path": ["A", "B"]}
        for item_id in AWKWARD
    ]
    users = ["u'1", 'u"2', "😀", "// MATCH (n)"]
    events = [(user, AWKWARD[(2 * n + step) % 6]) for n, user in enumerate(users) for step in range(3)]
    workspace = tmp_path / "w"
    assert run("ingest", write_shop(tmp_path / "shop", items, events), "-w", workspace).code == 0
    assert run("train", "-w", workspace).code == 0
    rows = run("recommend", "-w", workspace, "--all-users", "--pool", "new", "--explain", "--json").json
    assert len(rows["recommendations"]) == len(users) * 3
    assert {row["item_id"] for row in rows["recommendations"]} == set(AWKWARD[6:])
    with Engine.open(workspace) as engine:
        for row in rows["recommendations"]:
            explanation = row["explanation"]
            found = engine.store.run(explanation["cypher"], explanation["parameters"])
            keys = [[value for name, value in hit.items() if name.endswith("_key")] for hit in found]
            assert [node["key"] for node in explanation["paths"][0]["nodes"]] in keys
        assert sorted(engine.item_ids) == sorted(AWKWARD)


def test_a_chinese_catalogue_is_read_by_its_characters_and_says_so(run: Run, tmp_path: Path) -> None:
    """Coffee and drills share no word. An English text model takes the first of each for the same: both are by hand."""
    titles = {
        "c": "手冲咖啡壶 摩卡咖啡壶 咖啡磨豆机 咖啡滤杯 意式咖啡机 咖啡电子秤 冷萃咖啡壶 咖啡礼盒",
        "d": "手动螺丝刀 电动螺丝刀 螺丝刀套装 充电螺丝刀 棘轮螺丝刀 精密螺丝刀 迷你螺丝刀 螺丝刀手柄",
    }
    items = [{"item_id": f"{kind}{n}", "title": title} for kind in "cd" for n, title in enumerate(titles[kind].split())]
    events = [(f"{kind}-{user}", f"{kind}{(user + n) % 6}") for kind in "cd" for user in range(12) for n in range(3)]
    workspace = tmp_path / "w"
    assert run("ingest", write_shop(tmp_path / "shop", items, events), "-w", workspace).code == 0
    told = run("train", "-w", workspace)
    assert "the text model cannot read 16 of 16 item texts" in told.err
    assert "--text-model" in told.err
    rows = run("recommend", "-w", workspace, "--all-users", "--pool", "new", "--k", 2, "--json").json
    assert all(row["item_id"][0] == row["user_id"][0] for row in rows["recommendations"])
    near = run("similar", "c0", "-w", workspace, "--k", 3, "--json").json["neighbours"]
    assert [row["item_id"][0] for row in near] == ["c"] * 3
