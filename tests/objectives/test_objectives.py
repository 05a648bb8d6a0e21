"""What every row of the table of objectives keeps, alone and with all add-ons; a new row is covered by being there."""

import math
from dataclasses import asdict, fields, replace

import pytest
import torch
from table import CASES, CONFIGS, TERMS, Case, every_case, every_row, score, train
from taught import clips, imagine, part
from torch import nn
from torch.testing import assert_close

from lewm.config import RunConfig, dump, load
from lewm.objectives import OBJECTIVES, PredictionConfig
from lewm.schema import build, field_docs
from lewm.train import TrainConfig, Trainer

AT_COLLAPSE = {"whitening": {"epsilon": 1e-3}}
"""Settings under which a method takes a constant batch; its own refuse one."""
SMALLEST = {"whitening": 5, "simsiam": 1, "reconstruction": 1}
"""Clips of two frames, one token and four dimensions that make a batch, where it is not two. Whitening needs one more
than dimensions. With one clip: SimSiam without heads and reconstruction have no statistic over the batch."""


def grads(module: nn.Module) -> list[torch.Tensor]:
    return [p.grad for p in module.parameters() if p.requires_grad]


# The table and its configurations.


def test_the_table_and_the_configs_name_the_same_objectives():
    assert OBJECTIVES.keys() == CONFIGS.keys()


@every_case
def test_a_config_survives_being_written_and_read(case, tmp_path):
    config = replace(case.config, prediction=PredictionConfig("cosine", True, 0.5))
    assert build(type(config), asdict(config), "here") == config
    run = RunConfig("two_room", objective=config, train=TrainConfig(add_ons=case.add_ons))
    (tmp_path / "run.yaml").write_text(dump(run))
    assert load(tmp_path / "run.yaml") == run


@every_row
def test_a_name_in_the_configuration_chooses_the_method_with_its_defaults(case, tmp_path):
    (tmp_path / "run.yaml").write_text("task: two_room\n")
    assert load(tmp_path / "run.yaml", ["--objective.name", case.config.name]).objective == case.config
    assert field_docs(type(case.config)).keys() == {field.name for field in fields(case.config)}


# One step.


@every_case
def test_terms_are_named_finite_float32_scalars_and_the_total_their_weighted_sum(case):
    losses = score(*case.build(), clips())
    assert "prediction" in losses.terms and losses.weights.keys() == losses.terms.keys()
    assert all(name.isidentifier() for name in (*losses.terms, *losses.metrics))
    for value in (*losses.terms.values(), *losses.metrics.values()):
        assert value.ndim == 0 and value.isfinite()
    assert all(term.dtype == torch.float32 and term.requires_grad for term in losses.terms.values())
    assert all(weight > 0 for weight in losses.weights.values())
    assert not any(metric.requires_grad for metric in losses.metrics.values())
    by_hand = math.fsum(losses.weights[key] * term.item() for key, term in losses.terms.items())
    assert losses.total.item() == pytest.approx(by_hand, rel=1e-5)


@every_row
def test_add_ons_add_and_leave_the_rest_alone(case):
    alone, more = (score(*Case(case.config, extras=extras).build(), clips()) for extras in (False, True))
    assert more.terms.keys() == alone.terms.keys() | set(TERMS)
    for name, term in alone.terms.items():
        assert torch.equal(more.terms[name], term) and more.weights[name] == alone.weights[name]


@every_case
def test_the_generator_decides_everything_random(case):
    model, objective = case.build()
    with torch.no_grad():
        latent, predicted = imagine(model, clips())
    totals = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        totals.append(objective(latent, predicted, clips(), torch.Generator().manual_seed(7)).total)
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*totals)


@every_case
def test_the_order_of_the_batch_does_not_matter(case):
    """Nor where clips are drawn against: slices are shared, and `rdmreg` sorts before it pairs."""
    batch, order = clips(8), torch.randperm(8, generator=torch.Generator().manual_seed(1))
    losses, turned = (score(*case.build(torch.float64), some) for some in (batch, part(batch, order)))
    assert_close(turned.terms, losses.terms, rtol=1e-9, atol=0)
    assert_close(turned.metrics, losses.metrics, rtol=1e-6, atol=1e-9)  # pictures are float32


@every_row
def test_the_smallest_batch_is_finite_and_one_below_is_refused(case):
    least = SMALLEST.get(case.config.name, 2)
    model, objective = case.build()
    losses = score(model, objective, clips(least, T=2))
    losses.total.backward()
    assert all(value.isfinite() for value in (*losses.terms.values(), *losses.metrics.values()))
    assert all(grad.isfinite().all() for grad in (*grads(model), *grads(objective)))
    if least > 1:
        message = rf"needs {least} or more samples per (statistic|time step), not {least - 1}; raise the batch size"
        with pytest.raises(ValueError, match=message):
            score(model, objective, clips(least - 1, T=2))


@every_case
def test_a_constant_batch_is_finite_with_finite_gradients(case):
    case = replace(case, config=replace(case.config, **AT_COLLAPSE.get(case.config.name, {})))
    moving = clips(8)
    grey, rest = torch.full_like(moving.pixels_BTCYX, 128), torch.zeros_like(moving.action_BTA)
    still = replace(moving, pixels_BTCYX=grey, action_BTA=rest)
    model, objective = case.build()
    losses = score(model, objective, still)
    losses.total.backward()
    assert all(term.isfinite() for term in (*losses.terms.values(), *losses.metrics.values()))
    assert all(grad.isfinite().all() for grad in (*grads(model), *grads(objective)))
    for constant in (0.0, 1.0):
        latent, *predicted = leaves = [torch.full_like(x, constant).requires_grad_() for x in flat(model, still)]
        objective(latent, tuple(predicted), still, torch.Generator()).total.backward()
        assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves)


def flat(model, batch):
    """Latents and their predictions as one list of constants."""
    latent, predicted = imagine(model, batch)
    return [x.detach() for x in (latent, *predicted)]


# Precision.


@every_case
def test_bfloat16_latents_are_within_two_percent_and_nothing_else_is_rounded(case):
    model, objective = case.build()
    batch, scored, slopes = clips(16), [], []
    exact = flat(model, batch)
    rounded = [x.bfloat16() for x in exact]
    for latents in (exact, [x.float() for x in rounded], rounded):
        latent, *predicted = leaves = [x.requires_grad_() for x in latents]
        scored.append(objective(latent, tuple(predicted), batch, torch.Generator().manual_seed(0)))
        scored[-1].total.backward()
        slopes.append(torch.cat([leaf.grad.flatten() for leaf in leaves if leaf.grad is not None]))
    for name, term in scored[0].terms.items():
        widened, given = (losses.terms[name] for losses in scored[1:])
        assert given.dtype == torch.float32 and given.item() == pytest.approx(term.item(), rel=0.02)
        assert given.item() == pytest.approx(widened.item(), rel=1e-5)
    assert slopes[2].dtype == torch.bfloat16
    assert (slopes[2] - slopes[1]).norm() < 0.02 * slopes[1].norm()


@every_case
def test_autocast_is_within_two_percent_in_the_objective_and_in_the_whole_step(case):
    model, objective = case.build()
    batch = clips(16)
    latent, *predicted = flat(model, batch)

    def judged():
        return objective(latent, tuple(predicted), batch, torch.Generator().manual_seed(0))

    exact = judged()
    with torch.autocast("cpu", torch.bfloat16):
        cast, whole = judged(), score(model, objective, batch)
    for name, term in exact.terms.items():
        assert cast.terms[name].dtype == whole.terms[name].dtype == torch.float32
        assert cast.terms[name].item() == pytest.approx(term.item(), rel=0.02)
    size = sum(exact.weights[name] * term.abs().item() for name, term in exact.terms.items())  # terms may cancel
    assert whole.total.item() == pytest.approx(exact.total.item(), abs=0.02 * size)
    whole.total.backward()
    assert all(grad.isfinite().all() for grad in (*grads(model), *grads(objective)))


@every_case
def test_float64_stays_float64(case):
    model, objective = case.build(torch.float64)
    losses = score(model, objective, clips())
    assert all(term.dtype == torch.float64 for term in losses.terms.values()) and losses.total.dtype == torch.float64
    exact = score(*case.build(), clips())
    for name, term in losses.terms.items():
        assert exact.terms[name].item() == pytest.approx(term.item(), rel=1e-3)
        assert term == 0 or term.float().double() != term  # computed in it: float32 does not hold its digits


# Several steps.


@every_case
def test_two_steps_move_every_parameter(case):
    """Encoder, predictor, what the objective learns, and its teacher if it has one."""
    model, objective = case.build()
    both = nn.ModuleList([model, objective])
    before = {name: p.detach().clone() for name, p in both.named_parameters()}
    train(model, objective, clips(8))
    assert any("encoder" in name for name in before) and any("predictor" in name for name in before)
    assert not [name for name, p in both.named_parameters() if torch.equal(p, before[name])]


@every_case
def test_a_restored_state_gives_the_same_losses(case, tmp_path):
    """Bit for bit, at once and after a step from there."""
    model, objective = case.build()
    train(model, objective, clips(8))
    torch.save([model.state_dict(), objective.state_dict()], tmp_path / "state.pt")
    other, restored = case.build(seed=1)
    for module, state in zip((other, restored), torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        module.load_state_dict(state)
    for first, second in zip(*(train(*pair, clips(8, seed=1)) for pair in ((model, objective), (other, restored)))):
        assert all(torch.equal(second.terms[name], term) for name, term in first.terms.items())
        assert all(torch.equal(second.metrics[name], metric) for name, metric in first.metrics.items())


@pytest.mark.parametrize("case", [case for case in CASES if case.tokens == 1], ids=str)
def test_a_killed_training_continues_to_the_same_state(case, tiny_run, tiny_store, tmp_path):
    """Three steps of the real trainer, at once and killed in the second: model, objective and optimiser bit for bit."""
    config = replace(tiny_run.train, steps=3, prediction="both", add_ons=case.add_ons)
    ends = []
    for name, stops in (("once", (3,)), ("killed", (1, 3))):
        (tmp_path / name).mkdir()
        for stop in stops:
            out = tmp_path / name
            trainer = Trainer(tiny_run.model, case.config, config, tiny_store, out, torch.device("cpu"))
            losses = [trainer.update(trainer.read_batch())[0] for _ in range(trainer.step, stop)]
            trainer.save()
            if stop < 3:
                trainer.update(trainer.read_batch())  # lost
        assert losses[-1].total.isfinite()
        ends.append((losses[-1].terms, *(part.state_dict() for part in (trainer.model, trainer.objective))))
        ends[-1] += (trainer.optimizer.state_dict()["state"],)
    assert_close(*ends, rtol=0, atol=0)
