"""The recommender: user vectors, scorers, fusion, explanation, evaluation, and the ``Engine`` that wires them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recommender.engine import Engine

__all__ = ["Engine"]


def __getattr__(name: str) -> Any:
    if name == "Engine":
        from recommender.engine import Engine

        return Engine
    raise AttributeError(f"module 'recommender' has no attribute {name!r}; it offers {__all__}")
