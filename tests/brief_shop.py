"""The generated shop for tests that train on it: reading descriptions takes two thirds of a training's time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ingest import generate_shop


def write_brief_shop(folder: Path, *, seed: int = 0) -> list[dict[str, Any]]:
    """``generate_shop`` without descriptions, which say again what titles, categories and attributes say.

    Without its taxonomy too, whose ids a split cannot rename. Returns the items.
    """
    generate_shop(folder, seed=seed)
    (folder / "categories.ttl").unlink()
    file = folder / "items.jsonl"
    items = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    items = [{name: value for name, value in item.items() if name != "description"} for item in items]
    file.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")
    return items
