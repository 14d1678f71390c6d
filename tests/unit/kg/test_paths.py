"""Metapaths fit together and lead from a customer to a product."""

import pytest

from kg import METAPATHS, Metapath, Step, schema


def test_every_metapath_leads_from_a_customer_over_a_bought_product_to_a_product() -> None:
    for metapath in METAPATHS:
        assert metapath.labels[:2] == (schema.CUSTOMER, schema.PRODUCT)
        assert metapath.labels[-1] == schema.PRODUCT
        assert metapath.steps[0] == Step(schema.INTERACTED, forward=True)
    assert len({metapath.name for metapath in METAPATHS}) == len(METAPATHS)


def test_the_last_step_into_a_new_product_is_not_behaviour() -> None:
    """A product that nobody has bought can only be reached over catalogue or text; one metapath is for warm items."""
    behavioural = [metapath.name for metapath in METAPATHS if metapath.steps[-1].relation in schema.BEHAVIOURAL]
    assert behavioural == ["bought_with"]


def test_labels_follow_the_steps() -> None:
    metapath = Metapath("m", (Step(schema.INTERACTED, True), Step(schema.MADE_BY, True), Step(schema.MADE_BY, False)))
    assert metapath.labels == ("Customer", "Product", "Brand", "Product")
    assert metapath.from_history().labels == ("Product", "Brand", "Product")
    assert metapath.from_history().name == "m"


def test_steps_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="to Product is followed by a step from Brand"):
        Metapath("broken", (Step(schema.INTERACTED, True), Step(schema.MADE_BY, False)))
