"""No test reaches a model hub, and no unit test any network. Stands at the root to be read before every library."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest

# Set, not defaulted: a developer's own environment must not open the door. Child processes inherit them.
os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    DO_NOT_TRACK="1",
    TOKENIZERS_PARALLELISM="false",
)

_UNIT_TESTS = Path(__file__).parent / "tests" / "unit"


@pytest.fixture(autouse=True)
def _no_network_in_unit_tests(request: pytest.FixtureRequest) -> Iterator[None]:
    if not request.path.is_relative_to(_UNIT_TESTS):
        yield
        return
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: object) -> None:
        if self.family in {socket.AF_INET, socket.AF_INET6} and not _is_loopback(address):
            raise AssertionError(f"a unit test opened a connection to {address!r}; unit tests use no network")
        connect(self, address)

    with patch.object(socket.socket, "connect", refuse):
        yield


def _is_loopback(address: object) -> bool:
    return isinstance(address, tuple) and address[0] in {"127.0.0.1", "::1", "localhost"}
