"""Weights that are lent to a model instead of being copied into it."""

import pytest
import torch

from effopd.common.errors import ArtifactError
from effopd.models.models import lend_weights, release_weights, weights_in, weights_of
from tiny_models import make_model

TOKENS = torch.tensor([[3, 5, 9, 4]])


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_computes_with_what_it_is_lent_and_holds_nothing_in_between(tied):
    model, other = make_model(0, tied=tied), make_model(1, tied=tied)
    release_weights(model)
    assert all(parameter.untyped_storage().nbytes() <= 4 for parameter in model.parameters())
    lend_weights(model, weights_in(other))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert all(one.data_ptr() == two.data_ptr() for one, two in pairs)
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, other(TOKENS).logits)


def test_weights_of_another_model_are_refused_by_name():
    model, weights = make_model(0), weights_of(make_model(1))
    release_weights(model)
    name = next(iter(weights))
    with pytest.raises(ArtifactError, match=f"{name} is"):
        lend_weights(model, weights | {name: torch.zeros(3)})
    del weights[name]
    with pytest.raises(ArtifactError, match=f"{name} on one side only"):
        lend_weights(model, weights)
