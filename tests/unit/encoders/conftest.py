from __future__ import annotations

from pathlib import Path

import pytest
from checkerboard import tiny_text_model

from encoders.text import TextEncoder


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random text model."""
    return tiny_text_model(tmp_path_factory.mktemp("text"))


@pytest.fixture
def text_encoder(text_model: Path) -> TextEncoder:
    return TextEncoder.pretrained(str(text_model))
