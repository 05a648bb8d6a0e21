"""`lewm bench objectives`: a row for every objective and size, a plain formula that agrees; no time is asserted."""

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from lewm.bench import objectives as module
from lewm.bench.measure import Step, measure, peak_mb
from lewm.bench.objectives import Grid, bench_objectives, cells, configured, plain_sigreg, statistic_steps, table
from lewm.cli import main
from lewm.objectives import OBJECTIVES, SigRegConfig
from lewm.objectives.sigreg import sigreg

CPU = torch.device("cpu")
TINY = Grid((8, 6, 16), n=(12,), d=(16,), slices=(24,))
SLICED = {"sigreg", "rdmreg"}


def test_a_row_for_every_objective_and_size() -> None:
    threads = torch.get_num_threads()
    rows = bench_objectives(TINY, threads=1, repeats=2, device=CPU)
    assert torch.get_num_threads() == threads
    wholes, statistics = ([r for r in rows if r.part == part] for part in ("objective", "statistic"))
    assert {r.objective for r in wholes} == OBJECTIVES.keys() and {r.objective for r in statistics} == {"sigreg"}
    assert [(r.n, r.d, r.slices) for r in statistics] == [(8, 6, 16), (12, 6, 16), (8, 16, 16), (8, 6, 24)]
    for name in OBJECTIVES:
        grown = [(8, 6, 16), (12, 6, 16), (8, 16, 16), (8, 6, 24)] if name in SLICED else None
        sizes = [(r.n, r.d, r.slices) for r in wholes if r.objective == name]
        assert sizes == (grown or [(8, 6, None), (12, 6, None), (8, 16, None)])
    for row in rows:
        assert row.forward_backward_ms > 0 and row.peak_mb > 0 and row.includes
        assert row.load is None or row.load >= 0
        assert (row.repeats, row.threads, row.device, row.torch) == (2, 1, "cpu", torch.__version__)
    for row in statistics:
        assert row.plain_ms is not None and row.plain_peak_mb is not None and row.gradient_error is not None
        assert row.ratio == row.plain_ms / row.forward_backward_ms
        assert row.memory_ratio == row.plain_peak_mb / row.peak_mb
        assert 0 < row.gradient_error < 1e-5
    assert all(r.plain_ms is r.plain_peak_mb is r.ratio is r.gradient_error is None for r in wholes)
    text = table(rows)
    assert len(text.splitlines()) == len(rows) + 7
    assert all(name in text for name in OBJECTIVES) and "1 thread(s), cpu" in text and "gradient error" in text


@pytest.mark.parametrize("dtype, precision", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_plain_formula_and_ours_agree(dtype: torch.dtype, precision: float) -> None:
    latent = 1.5 * torch.randn(20, 3, 2, 7, generator=torch.Generator().manual_seed(0), dtype=dtype)
    config = SigRegConfig(slices=33)
    values, grads = [], []
    for statistic in (sigreg, plain_sigreg):
        leaf = latent.clone().requires_grad_()
        value = statistic(leaf, torch.Generator().manual_seed(4), config)
        value.backward()
        values.append(value.detach())
        grads.append(leaf.grad)
    assert_close(values[0], values[1], rtol=precision, atol=0)
    assert (grads[0] - grads[1]).norm() <= precision * grads[1].norm()


def test_the_plain_formula_on_a_collapsed_batch() -> None:
    """0.40205 n (reference values of preset lejepa)."""
    value = plain_sigreg(torch.zeros(10, 2, 1, 4), torch.Generator().manual_seed(0), SigRegConfig(slices=5))
    assert value.item() == pytest.approx(4.0205, abs=5e-4)


def test_memory_of_sigreg_is_a_tenth_of_the_plain_formula() -> None:
    """Bytes, not time: they are the same on every machine. The plain formula holds (T, n, slices, knots) more than once
    and ours never, whatever the slices."""
    ours, plain = (peak_mb(step.run, CPU) for step in statistic_steps(128, 192, 1024, CPU))
    assert plain > 3 * (4 * 128 * 1024 * 17 * 4) / 1e6
    assert ours <= plain / 10


def test_peak_memory_is_exact_and_repeats() -> None:
    def hold(count: int) -> None:
        first = torch.empty(250_000)
        if count == 1:
            del first
        torch.empty(250_000)

    before = torch.ones(10**6)
    assert [peak_mb(lambda c=count: hold(c), CPU) for count in (1, 2, 1)] == [1.0, 2.0, 1.0]
    assert peak_mb(lambda: before.add_(1), CPU) < 1e-4  # in place: nothing but the number that is added


def test_steps_take_turns_from_fresh_gradients() -> None:
    ran: list[str] = []

    def step(name: str) -> Step:
        leaf = torch.ones(3).requires_grad_()

        def loss() -> torch.Tensor:
            assert leaf.grad is None
            ran.append(name)
            return leaf.sum()

        return Step(loss, [leaf])

    steps = [step("a"), step("b")]
    costs = measure(steps, 2, CPU)
    assert ran == ["a", "b"] * 3  # memory, then time twice
    assert all(cost.ms > 0 and cost.peak_mb > 0 for cost in costs)
    assert all(torch.equal(s.leaves[0].grad, torch.ones(3)) for s in steps)


def test_sizes_grow_one_at_a_time() -> None:
    assert cells(TINY) == [(8, 6, 16), (12, 6, 16), (8, 16, 16), (8, 6, 24)]
    assert configured("rdmreg", 24).slices == configured("sigreg", 24).slices == 24
    assert configured("whitening", 24).epsilon > 0  # or a latent wider than the batch would be refused
    assert module.FULL.base == (128, 192, 1024) and module.FRAMES == 4  # the size that is compared


def test_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "QUICK", Grid((4, 3, 5), (), (), ()))
    file = tmp_path / "deep" / "objectives.json"
    words = ["--quick", "--repeats", "1", "--threads", "1", "--device", "cpu", "--json", str(file)]
    main(["bench", "objectives", *words])
    assert "reconstruction" in capsys.readouterr().out
    rows = json.loads(file.read_text())
    assert len(rows) == 1 + len(OBJECTIVES) and {r["n"] for r in rows} == {4}
    assert {"objective", "forward_backward_ms", "peak_mb", "plain_ms", "ratio", "gradient_error"} <= rows[0].keys()


@pytest.mark.parametrize("options", [["--repeats", "0"], ["--threads", "0"], ["--plans", "3"], ["--checkpoint", "x"]])
def test_mistakes_are_one_sentence(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", "objectives", "--quick", "--device", "cpu", *options])
    assert stopped.value.code in (1, 2)
    error = capsys.readouterr().err
    assert options[0].strip("-") in error.splitlines()[-1] and "Traceback" not in error
