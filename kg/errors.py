"""What can go wrong, as types. Every message says what, the value, what was expected and the way out."""

from __future__ import annotations


class FirstshelfError(Exception):
    """Root of every error that firstshelf raises on purpose; the command line prints it and exits with 1."""


class SourceError(FirstshelfError):
    """A source (a shop folder, a file) cannot be read at all; single bad rows are counted rejects instead."""


class StoreError(FirstshelfError):
    """A graph store is down, refuses the login, has the wrong version, or is held by another process."""


class WorkspaceError(FirstshelfError):
    """A workspace is missing, of a newer version, or lacks the part (data, model) that a call needs."""


class TrainingError(FirstshelfError):
    """The data cannot train anything: the message says which part is missing."""


class UnknownItemError(FirstshelfError):
    """An item id that the workspace does not hold. Attributes: ``item_id``."""

    def __init__(self, item_id: str, where: str) -> None:
        super().__init__(
            f"item {item_id!r} is not in {where}. Add it with 'firstshelf launch', or ingest the catalogue that has it."
        )
        self.item_id = item_id


class UnknownUserError(FirstshelfError):
    """A user id that the workspace does not hold, where an answer needs one. Attributes: ``user_id``."""

    def __init__(self, user_id: str, where: str) -> None:
        super().__init__(
            f"user {user_id!r} is not in {where}. Ingest the user's events, or pass a history of item ids instead."
        )
        self.user_id = user_id
