"""Many customers' lists into a JSON-lines file: with progress, interruptible, resumed where it stopped."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recommender.engine import check_request, ids_of

if TYPE_CHECKING:
    from recommender.engine import Engine, Id, Pool


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What a batch wrote. ``share_with_path`` is the share of rows with a verified path, ``None`` if not explained."""

    output: str
    users: int
    rows: int
    share_with_path: float | None
    resumed_users: int
    seconds: float
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as one JSON object."""
        return asdict(self)


def recommend_to_file(
    engine: Engine,
    users: Iterable[Id],
    output: Path,
    *,
    k: int,
    pool: Pool,
    explain: bool,
    new_share: float | None = None,
    users_at_once: int = 512,
    progress: Callable[[str, int, int], None] | None = None,
) -> BatchReport:
    """Write one JSON object a line, users in the order given, best first.

    Lines go to ``OUTPUT.part`` and become ``OUTPUT`` when all are there. Called again after an interruption with the
    same request against the same graph and model, it goes on after the last finished group of users.

    Raises:
        OSError: the output cannot be written.
    """
    started = time.perf_counter()
    user_ids = ids_of(users, "user id")
    check_request(k, pool, new_share)
    notes = engine.notes(user_ids, k=k, pool=pool, new_share=new_share)
    if output.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(output))
    part, note_file = output.with_name(output.name + ".part"), output.with_name(output.name + ".part.json")
    asked = json.dumps([engine.fingerprint, user_ids, k, pool, explain, new_share, users_at_once])
    request = hashlib.sha256(asked.encode()).hexdigest()
    done: dict[str, Any] = {"request": request, "users": 0, "bytes": 0, "rows": 0, "with_path": 0}
    if part.exists() and note_file.exists():
        try:
            kept = json.loads(note_file.read_text(encoding="utf-8"))
        except ValueError:  # cut off while it was written
            kept = {}
        # After a power cut the note may be on the disk and the lines not.
        if kept.get("request") == request and kept["bytes"] <= part.stat().st_size:
            done = kept
    resumed: int = done["users"]
    output.parent.mkdir(parents=True, exist_ok=True)
    encode = json.JSONEncoder(ensure_ascii=False).encode
    with part.open("ab") as file:
        file.truncate(done["bytes"])
        for start in range(resumed, len(user_ids), users_at_once):
            group = user_ids[start : start + users_at_once]
            answer = engine.recommend(group, k=k, pool=pool, explain=explain, new_share=new_share)
            lines = "".join(encode(row) + "\n" for row in answer.to_json())
            file.write(lines.encode())
            file.flush()
            done["users"] = start + len(group)
            done["bytes"] = file.tell()
            done["rows"] += len(answer)
            done["with_path"] += sum(row.explanation is not None for row in answer)
            note_file.write_text(json.dumps(done), encoding="utf-8")
            if progress is not None:
                progress("recommend", done["users"], len(user_ids))
    part.replace(output)
    note_file.unlink(missing_ok=True)
    return BatchReport(
        output=str(output),
        users=len(user_ids),
        rows=done["rows"],
        share_with_path=done["with_path"] / done["rows"] if explain and done["rows"] else None,
        resumed_users=resumed,
        seconds=round(time.perf_counter() - started, 2),
        notes=notes,
    )
