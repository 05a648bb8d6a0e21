"""Training a model with a latent variable: same seed same weights, resumed runs, processes, and what is logged."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lewm import distributed
from lewm.config import RunConfig, load
from lewm.data.store import Store
from lewm.nets.variable import DiscreteConfig, GaussianConfig, VariableConfig
from lewm.schema import SchemaError
from lewm.train import Trainer, explained, step_losses, train

CPU = torch.device("cpu")
VARIABLES: dict[str, VariableConfig] = {"discrete": DiscreteConfig(codes=3), "gaussian": GaussianConfig()}


def chancy(run: RunConfig, kind: str, **changes: object) -> RunConfig:
    model = replace(run.model, variable=VARIABLES[kind])
    return replace(run, model=model, train=replace(run.train, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", VARIABLES)
@pytest.mark.parametrize("prediction", ["rollout", "teacher_forcing", "both"])
def test_every_part_is_trained(
    tiny_run: RunConfig, tiny_store: Store, tmp_path: Path, kind: str, prediction: str
) -> None:
    """Every weight of encoder, predictor and variable gets a gradient; the losses say what chance took."""
    run = chancy(tiny_run, kind, prediction=prediction)
    trainer = Trainer(run.model, run.objective, run.train, tiny_store, tmp_path, CPU)
    batch, generator = trainer.read_batch(), torch.Generator().manual_seed(0)
    losses = step_losses(trainer.model, batch, run.train, trainer.objective, generator)
    assert losses.weights["variable"] == 1.0 and losses.metrics["information_in_z"].isfinite()
    losses.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trainer.model.parameters())
    assert all(p.grad.abs().sum() > 0 for p in trainer.model.variable.parameters())  # type: ignore[union-attr]
    ways = explained(trainer.model, trainer.model.encode(batch.pixels_BTCYX), batch.action_BTA, run.train, generator)
    assert len(ways) == (2 if prediction == "both" else 1)


@pytest.mark.parametrize("kind", VARIABLES)
def test_a_resumed_run_ends_with_the_same_weights(
    tiny_run: RunConfig, tiny_store: Store, tmp_path: Path, kind: str
) -> None:
    def weights(out: Path, run: RunConfig) -> dict[str, Tensor]:
        return train(run.model, run.objective, run.train, tiny_store, out, CPU, quiet=True).state_dict()

    run = chancy(tiny_run, kind)
    whole = weights(tmp_path / "whole", run)
    trainer = Trainer(run.model, run.objective, run.train, tiny_store, tmp_path / "cut", CPU)
    (tmp_path / "cut").mkdir()
    for _ in range(3):
        trainer.update(trainer.read_batch())
    trainer.save()
    resumed = weights(tmp_path / "cut", run)
    assert any("variable" in key for key in whole)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_processes_share_the_noise_of_one(
    tiny_run: RunConfig, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, each with every second clip, infer what one process infers from all clips."""
    run = chancy(tiny_run, "gaussian")
    trainer = Trainer(run.model, run.objective, run.train, tiny_store, tmp_path, CPU)
    batch, model = trainer.read_batch(), trainer.model.eval()
    latent = model.encode(batch.pixels_BTCYX).detach()

    def values(rows: slice) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        return explained(model, latent[rows], batch.action_BTA[rows], run.train, generator)[0].value_BTV

    whole = values(slice(None))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        torch.testing.assert_close(values(slice(rank, None, 2)), whole[rank::2])


@pytest.mark.parametrize("kind", VARIABLES)
def test_the_fourth_criterion_is_measured(tiny_run: RunConfig, tiny_store: Store, tmp_path: Path, kind: str) -> None:
    """Little information in z: the mean surprise or divergence on held-out clips, against an ideal of 0."""
    run = chancy(tiny_run, kind)
    trainer = Trainer(run.model, run.objective, run.train, tiny_store, tmp_path, CPU)
    criteria = trainer.health().criteria
    assert criteria["little information in z"] > 1e-3 and criteria["little information in z/ideal"] == 0.0
    plain = Trainer(tiny_run.model, tiny_run.objective, tiny_run.train, tiny_store, tmp_path, CPU)
    assert plain.health().criteria["little information in z"] == 0.0


def test_configurations_name_the_variable() -> None:
    assert load("door").model.variable == DiscreteConfig(information=0.05)
    assert load("door", ["--model.variable", "null"]).model.variable is None
    gaussian = load("door", ["--model.variable", "{kind: gaussian, dims: 3}"]).model.variable
    assert gaussian == GaussianConfig(dims=3)
    with pytest.raises(SchemaError, match=r"model.variable.kind is 'gausian'; did you mean gaussian\?"):
        load("door", ["--model.variable", "{kind: gausian}"])
