"""Result files: one JSON object a cell, with what it takes to measure it again; none is measured twice by accident."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil


def provenance(command: str) -> dict[str, Any]:
    """Commit, whether the code differs from it, the command, the time and the machine."""
    import torch

    machine: dict[str, Any] = {"cpu_count": os.cpu_count(), "memory_gb": round(psutil.virtual_memory().total / 2**30)}
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return {
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "changed": bool(
            _git("status", "--porcelain", "--", "kg", "ingest", "encoders", "recommender", "benchmarks/quality/*.py")
        ),
        "command": command,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine,
    }


def is_done(cell: Path, data_hash: str) -> bool:
    """Whether the cell is there, measured on the same data."""
    return cell.exists() and json.loads(cell.read_text(encoding="utf-8"))["split"]["data_hash"] == data_hash


def write(file: Path, content: dict[str, Any]) -> None:
    """Write a cell whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    written = file.with_name(file.name + ".part")
    written.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    written.replace(file)


def say(line: str) -> None:
    """A line of progress."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _git(*arguments: str) -> str:
    answer = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    return answer.stdout.strip()
