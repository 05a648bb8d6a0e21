"""`lewm bench train`: two steps that are one step, the clips both read, the memory they hold; no time is asserted."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from lewm.bench import train as module
from lewm.bench.plain_training import WAYS, Clip, PlainTraining, Way, check_run
from lewm.bench.train import Case, Times, bench_train, gradient_error, medians, table, time_plain, time_steps
from lewm.cli import main
from lewm.config import RunConfig, dump
from lewm.data.store import Store
from lewm.data.windows import Windows, WindowSpec, batch_indices
from lewm.objectives import AddOnsConfig, SigRegConfig
from lewm.objectives.sigreg import sigreg
from lewm.objectives.vicreg import VicRegConfig
from lewm.train import Trainer, model_facts
from lewm.world_model import ModelConfig

CPU = torch.device("cpu")
OURS = Way(sigreg, loader=False)


@pytest.fixture
def ours(tiny_run: RunConfig, tiny_store: Store, tmp_path: Path) -> Trainer:
    objective = SigRegConfig(slices=32)
    return Trainer(tiny_run.model, objective, tiny_run.train, tiny_store, tmp_path / "run", CPU)


@pytest.fixture
def config(tiny_run: RunConfig, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(dump(tiny_run))
    return path


@pytest.mark.parametrize("stack, stride", [(1, 1), (2, 3)])
def test_a_clip_of_the_plain_loader_is_ours_normalised(tiny_store: Store, stack: int, stride: int) -> None:
    """Every window, so those that reach back before an episode's first frame too."""
    windows = Windows(tiny_store, WindowSpec(3, 5, stack, stride))
    facts = model_facts(tiny_store, ModelConfig())
    facts = replace(facts, pixel_mean=(0.1, 0.4, 0.7), pixel_std=(0.2, 0.5, 0.3))
    clips = Clip(windows, facts)
    assert len(clips) == len(windows)
    for index in range(0, len(windows), 7):
        pixels, action = clips[index]
        batch = windows.batch(torch.tensor([index]).numpy())
        mean, std = (torch.tensor(x).repeat(stack)[:, None, None] for x in (facts.pixel_mean, facts.pixel_std))
        assert_close(pixels, (batch.pixels_BTCYX[0].float() / 255 - mean) / std)
        assert torch.equal(action, batch.action_BTA[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_the_loader_gives_the_clips_of_the_run_in_order(ours: Trainer, workers: int) -> None:
    plain = PlainTraining(ours, SigRegConfig(slices=32), WAYS["loader"], workers)
    plain.step = 2
    for step, (pixels, action) in zip((2, 3), plain.batches(2), strict=True):
        batch = ours.windows.batch(batch_indices(ours.config.seed, step, len(ours.windows), ours.config.batch))
        scaled = torch.addcmul(ours.model.pixel_shift, batch.pixels_BTCYX.float(), ours.model.pixel_scale)
        assert_close(pixels, scaled, rtol=1e-5, atol=1e-5)
        assert torch.equal(action, batch.action_BTA)


@pytest.mark.parametrize("name", WAYS)
def test_a_plain_step_is_the_same_step(ours: Trainer, name: str) -> None:
    """The first gradients agree, and a step with another weight of SIGReg does not pass for the same."""
    plain = PlainTraining(ours, SigRegConfig(slices=32), WAYS[name], 0)
    assert gradient_error(ours, plain) < 1e-4
    plain.objective = SigRegConfig(slices=32, weight=0.2)
    assert gradient_error(ours, plain) > 0.01  # another step is seen


def test_steps_of_our_parts_leave_our_weights(ours: Trainer) -> None:
    plain = PlainTraining(ours, SigRegConfig(slices=32), OURS, 0)
    before = [p.clone() for p in ours.model.parameters()]
    for clips in plain.batches(3):
        ours.update(ours.read_batch())
        plain.update(clips)
    assert (ours.step, plain.step) == (3, 3)
    for ours_now, plain_now, then in zip(ours.model.parameters(), plain.model.parameters(), before, strict=True):
        assert_close(plain_now, ours_now, rtol=1e-6, atol=1e-7)
        assert not torch.equal(ours_now, then)


@pytest.mark.parametrize(
    "objective, add_ons",
    [
        (VicRegConfig(), AddOnsConfig()),
        (SigRegConfig(preset="bcs"), AddOnsConfig()),
        (SigRegConfig(pool_time=True), AddOnsConfig()),
        (SigRegConfig(unbiased=True), AddOnsConfig()),
    ],
)
def test_other_objectives_are_refused(objective: object, add_ons: AddOnsConfig) -> None:
    with pytest.raises(ValueError, match="the plain step knows objective sigreg with preset lejepa"):
        check_run(objective, add_ons)
    assert check_run(SigRegConfig(weight=0.09, slices=7), add_ons).slices == 7


def test_time_is_a_mean_over_the_timed_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves 2 s in a read and 5 s in an update: 2 steps of warm-up, 3 timed."""
    now, done = [0.0], []
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def read() -> int:
        now[0] += 2
        return len(done)

    def update(batch: int) -> None:
        now[0] += 5
        done.append(batch)

    assert time_steps(read, update, 2, 3, CPU) == Times(2000.0, 5000.0)
    assert done == [0, 1, 2, 3, 4]
    assert medians([Times(1, 9), Times(4, 2), Times(3, 4)]) == (7, 3, 4)


@pytest.mark.parametrize("floats", [125_000, 375_000])
def test_memory_of_a_step_is_its_batch_and_what_it_computes(floats: int) -> None:
    """A batch of 0.5 or 1.5 MB and 1 MB inside; the optimiser's state and old gradients are not of this step."""
    weight = torch.nn.Parameter(torch.zeros(1000))
    optimizer, gradients = torch.optim.SGD([weight]), []

    def update(batch: tuple[torch.Tensor, ...]) -> None:
        gradients.append(weight.grad)
        torch.empty(250_000)
        weight.grad = torch.ones(1000)

    held = module.step_peak_mb(lambda: (torch.zeros(floats),), update, optimizer, CPU)
    assert held == pytest.approx(1 + 4 * floats / 1e6, abs=1e-4)
    assert gradients == [None, None]


def test_a_plain_round_drains_what_was_read_ahead(ours: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = PlainTraining(ours, SigRegConfig(slices=32), WAYS["loader"], 1)
    seen = {}
    monkeypatch.setattr(module, "time_steps", lambda read, update, warmup, steps, device: seen.update(warmup=warmup))
    asked: list[int] = []
    monkeypatch.setattr(plain, "batches", lambda count: iter([asked.append(count)]))
    time_plain(plain, 4)
    assert seen == {"warmup": 3} and asked == [2 + 1 + 4 + 2]


def test_rows_of_a_run(config: Path, tiny_store: Store) -> None:
    threads = torch.get_num_threads()
    rows = bench_train([Case(str(config), batch=16, steps=1)], tiny_store.path, 1, 0, 2, CPU)
    assert torch.get_num_threads() == threads
    assert [r.case for r in rows] == list(WAYS)
    for r in rows:
        assert (r.batch, r.frames, r.size, r.rounds, r.steps, r.threads) == (16, 3, 32, 2, 1, 1)
        assert r.ratio == r.peer_ms_p50 / r.ours_ms_p50 and r.steps_per_s == 1000 / r.ours_ms_p50
        assert min(r.data_ms, r.step_ms, r.peer_data_ms, r.peer_step_ms) > 0 and 0 < r.gradient_error < 1e-3
        assert r.resident == "ram" and r.load is not None and r.torch == torch.__version__
    by = {r.case: r for r in rows}
    # The batch alone: 16 x 3 pictures of 3 x 32 x 32, one byte each or four.
    assert rows[0].peak_mb > 16 * 3 * 3 * 32 * 32 / 1e6
    # (T, N, slices, knots) is 3 x 16 x 256 x 17 floats, and the plain formula holds it more than once.
    assert by["SIGReg"].peer_peak_mb > rows[0].peak_mb + 3 * 16 * 256 * 17 * 4 / 1e6
    assert by["both"].memory_ratio == by["both"].peer_peak_mb / rows[0].peak_mb > 1
    assert [r.workers for r in rows] == [0, 0, 0]
    text = table(rows).splitlines()
    assert len(text) == len(rows) + 5 and "gradients differ" in text[0] and "1 thread(s), cpu" in text[-1]


def test_steps_that_differ_are_not_compared(config: Path, tiny_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Way(lambda latent, generator, objective: 2 * sigreg(latent, generator, objective), loader=False)
    monkeypatch.setitem(module.WAYS, "wrong", wrong)
    with pytest.raises(ValueError, match=r"plain one \(wrong\) differ by .* their times do not compare"):
        bench_train([Case(str(config), steps=1, ways=("wrong",))], tiny_store.path, 1, 0, 1, CPU)


def test_the_compared_sizes() -> None:
    small, paper = module.CASES
    assert (small.config, small.batch, small.ways) == ("two_room", None, tuple(WAYS))
    assert (paper.config, paper.ways) == ("two_room_gpu", ("both",))


def test_from_the_command_line(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --data it records a few episodes for itself."""
    monkeypatch.setattr(module, "EPISODES", 3)
    file = tmp_path / "deep" / "train.json"
    words = ["--config", str(config), "--steps", "1", "--rounds", "1", "--workers", "0", "--threads", "1"]
    main(["bench", "train", *words, "--device", "cpu", "--json", str(file)])
    assert "steps/s" in capsys.readouterr().out
    rows = json.loads(file.read_text())
    assert [row["case"] for row in rows] == list(WAYS)
    fields = {"case", "device", "threads", "model", "batch", "ours_ms_p50", "data_ms", "step_ms", "peak_mb"}
    assert fields | {"peer_ms_p50", "ratio", "hardware", "torch", "load"} <= rows[0].keys()


@pytest.mark.parametrize(
    "words, said",
    [
        (["--rounds", "0"], "--rounds is 0; time at least one round"),
        (["--workers", "-1"], "--workers is -1; it must be 0 or more"),
        (["--batch", "8"], "--batch 8 belongs to one run; name it with --config"),
        (["--config", "two_room", "--batch", "1"], "SIGReg needs at least 2 clips"),
        (["--config", "two_room", "--steps", "0"], "--steps is 0; time at least one step"),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "train", "--device", "cpu", *words])
    error = capsys.readouterr().err
    assert said in error.splitlines()[-1] and "Traceback" not in error
