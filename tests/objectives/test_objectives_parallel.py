"""Every objective over processes: two with half of the clips each take the steps of one with all of them."""

from dataclasses import replace

import pytest
import torch
from table import CASES, VARIANTS, Case, train
from taught import clips, part
from torch.testing import assert_close

from lewm.data.windows import Batch
from lewm.distributed import average_gradients

EVERY = {str(case): case for case in CASES if case.extras or case.tokens > 1}
EVERY |= {f"variant-{i}-{case}": case for i, case in enumerate(VARIANTS)}
"""Every row twice: with one token per frame and all add-ons, which leave its own terms alone, and with four tokens."""
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def eight_clips() -> Batch:
    """The last of them stands still from the second frame on, so that what is counted differs between the halves."""
    batch = clips(8)
    pixels = batch.pixels_BTCYX.clone()
    pixels[7, 1:] = pixels[7, 1]
    return replace(batch, pixels_BTCYX=pixels)


def two_steps(case: Case, batch):
    """Terms and averaged gradients of both steps; the states of model and objective after them."""
    gradients = []

    def average(both):
        average_gradients(both)
        gradients.append({name: p.grad.clone() for name, p in both.named_parameters() if p.grad is not None})

    model, objective = case.build(torch.float64)
    terms = [losses.detach().terms for losses in train(model, objective, batch, average=average)]
    return terms, gradients, {"model": model.state_dict(), "objective": objective.state_dict()}


def half_of_two_steps(rank):
    half = part(eight_clips(), slice(4 * rank, 4 * rank + 4))
    return {name: two_steps(case, half) for name, case in EVERY.items()}


@pytest.fixture(scope="module")
def halves(on_two_ranks):
    return on_two_ranks(half_of_two_steps)


@pytest.mark.parametrize("name", EVERY)
def test_two_processes_with_half_the_batch_each_equal_one_with_all_of_it(name, halves):
    """Terms, gradients of model and objective, weights after two steps, teacher, BatchNorm and running statistics."""
    whole_terms, whole_gradients, whole_states = two_steps(EVERY[name], eight_clips())
    (first_terms, *first), (second_terms, *second) = (half[name] for half in halves)
    for one, other, whole in zip(first_terms, second_terms, whole_terms, strict=True):  # training's loss is their mean
        assert_close({key: (one[key] + other[key]) / 2 for key in whole}, whole, **EXACT)
    assert_close(first, second, rtol=0, atol=0)
    assert_close(first, [whole_gradients, whole_states], **EXACT)
    alone, _, _ = two_steps(EVERY[name], part(eight_clips(), slice(4)))
    assert any((alone[0][key] - term).abs() > 1e-4 for key, term in whole_terms[0].items())  # half is another batch
