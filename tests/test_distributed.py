"""The functions of data parallelism, in one process and in two that meet in a file."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing import assert_close

from lewm import distributed


def test_one_process_is_rank_zero_of_one_and_nothing_is_copied():
    x = torch.ones(3, requires_grad=True)
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    assert distributed.sum_over_ranks(x) is x
    assert distributed.gather_ranks(x) is x


def test_one_process_keeps_its_gradients():
    module = nn.Linear(2, 1)
    module(torch.ones(1, 2)).sum().backward()
    before = [p.grad.clone() for p in module.parameters()]
    distributed.average_gradients(module)
    assert all(torch.equal(p.grad, b) for p, b in zip(module.parameters(), before, strict=True))


@pytest.mark.parametrize("world", [None, "1"])
def test_no_process_group_outside_torchrun(monkeypatch, world):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world is not None:
        monkeypatch.setenv("WORLD_SIZE", world)
    distributed.init_from_env(torch.device("cpu"))
    assert not dist.is_initialized()


def results_of(rank):
    result = {"who": (distributed.rank(), distributed.world_size())}

    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).mul(rank + 1).t().requires_grad_()  # not contiguous
    total = distributed.sum_over_ranks(x)
    (total.square().sum() * 0.5).backward()
    result |= {"x": x.detach(), "total": total.detach(), "grad": x.grad}

    # What rank r does with the gathered rows: weigh row i by (i + 1) (r + 1).
    rows = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).add(10 * rank).t().requires_grad_()  # not contiguous
    gathered = distributed.gather_ranks(rows)
    weight = torch.arange(1.0, 7.0)[:, None] * (rank + 1)
    (weight * gathered.square()).sum().backward()
    result |= {"rows": rows.detach(), "gathered": gathered.detach(), "rows_grad": rows.grad}
    result["numbers"] = distributed.gather_ranks(torch.tensor([rank, 7]))

    module = nn.ModuleDict({"used": nn.Linear(2, 3, bias=False), "frozen": nn.Linear(2, 2)})
    module["used"].weight.grad = torch.full((3, 2), 2.0 + 4 * rank)
    distributed.average_gradients(module)
    result |= {"mean": module["used"].weight.grad, "frozen": module["frozen"].weight.grad}
    return result


def test_two_processes(on_two_ranks):
    ranks = on_two_ranks(results_of)
    expected = ranks[0]["x"] + ranks[1]["x"]
    for index, result in enumerate(ranks):
        assert result["who"] == (index, 2)
        assert torch.equal(result["total"], expected)
        # Each rank's loss is half the square of the sum: its gradient at x is the sum, once for either rank's loss.
        assert_close(result["grad"], 2 * expected)
        assert torch.equal(result["gathered"], torch.cat([ranks[0]["rows"], ranks[1]["rows"]]))
        # Both ranks' losses weigh this rank's rows: 1 + 2 times the row's number in the whole.
        number = torch.arange(1.0, 4.0)[:, None] + 3 * index
        assert_close(result["rows_grad"], 2 * 3 * number * result["rows"])
        assert result["numbers"].tolist() == [0, 7, 1, 7]
        assert torch.equal(result["mean"], torch.full((3, 2), 4.0))
        assert result["frozen"] is None
