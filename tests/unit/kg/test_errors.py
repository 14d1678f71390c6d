"""One root for every error that is raised on purpose."""

import inspect

from kg import errors


def test_every_error_has_the_one_root() -> None:
    classes = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    assert len(classes) > 5
    assert all(issubclass(kind, errors.FirstshelfError) for kind in classes)


def test_unknown_ids_carry_the_id_and_a_way_out() -> None:
    item = errors.UnknownItemError("B00X", "workspace 'w'")
    assert item.item_id == "B00X"
    assert "'B00X' is not in workspace 'w'" in str(item)
    assert "firstshelf launch" in str(item)
    user = errors.UnknownUserError("u1", "workspace 'w'")
    assert user.user_id == "u1"
    assert "'u1'" in str(user)
