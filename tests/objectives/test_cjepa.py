"""C-JEPA: `ema` plus VICReg's terms, with the paper's coefficients."""

import pytest
import torch
from taught import clips, effective_rank, imagine, learner, score
from torch.testing import assert_close

from lewm.objectives.cjepa import CJepa, CJepaConfig, view_similarity
from lewm.objectives.ema import Ema, EmaConfig
from lewm.objectives.prediction import PredictionConfig
from lewm.objectives.teacher import TeacherConfig


@pytest.mark.parametrize("normalise", [False, True])
def test_weight_0_is_ema_bit_for_bit(normalise):
    shared = {"normalise_target": normalise, "beta": 0.5, "teacher": TeacherConfig("constant", 0.5)}
    both = []
    for build in (lambda m: Ema(EmaConfig(**shared), m), lambda m: CJepa(CJepaConfig(weight=0.0, **shared), m)):
        model, batch = learner(), clips()
        objective, losses = build(model), []
        for step in range(2):
            model.zero_grad()
            losses.append(score(objective, *imagine(model, batch), batch).total)
            losses[-1].backward()
            torch.optim.SGD(model.parameters(), 0.05).step()
            objective.after_step(model, (step + 1) / 2)
        both.append((torch.stack(losses), [p.grad for p in model.parameters()], list(objective.parameters())))
    (loss, grads, teacher), (other_loss, other_grads, other_teacher) = both
    assert torch.equal(loss, other_loss)
    assert all(torch.equal(a, b) for a, b in zip(grads, other_grads, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(teacher, other_teacher, strict=True))


def test_coefficients_of_the_paper():
    model, batch = learner(), clips()
    losses = score(CJepa(CJepaConfig(), model), *imagine(model, batch), batch)
    assert losses.weights == pytest.approx(
        {"prediction": 1.0, "similarity": 0.025, "variance": 0.025, "covariance": 0.001}
    )
    assert losses.terms.keys() == losses.weights.keys()
    assert set(losses.metrics) == {"target_std", "prediction_std"}


def test_terms_by_hand():
    model, batch = learner(), clips(8)
    latent = torch.randn(8, 3, 2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    guess = latent[:, 1:] + 0.1
    objective = CJepa(CJepaConfig(), model)
    objective.ema.targets = lambda batch: torch.zeros(8, 3, 2, 4)  # two tokens, which the toy encoder has not
    terms = score(objective, latent, (guess,), batch).terms
    pooled = latent.mean(2)
    hinge, energy = [], []
    for t in range(3):
        cov = torch.cov(pooled[:, t].T)
        hinge.append(torch.relu(1 - (cov.diagonal() + 1e-4).sqrt()).mean())
        energy.append((cov.square().sum() - cov.diagonal().square().sum()) / 4)
    assert_close(terms["variance"], torch.stack(hinge).mean())
    assert_close(terms["covariance"], torch.stack(energy).mean())
    assert terms["similarity"].item() == pytest.approx(0.01)


def test_similarity_is_the_mean_over_ordered_pairs():
    views = tuple(torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(s)) for s in range(3))
    pairs = [(a - b).square().mean() for i, a in enumerate(views) for j, b in enumerate(views) if i != j]
    assert_close(view_similarity(views), torch.stack(pairs).mean())
    assert view_similarity((views[0], views[0])).item() == 0


def constant(value=0.0, B=8):
    latent = torch.full((B, 3, 1, 4), value).requires_grad_()
    return latent, torch.full((B, 2, 1, 4), value).requires_grad_()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_collapse_costs_the_hinge_alone(value):
    """0.001 x 25 x 0.99, and the gradients are finite."""
    latent, predicted = constant(value)
    losses = score(
        CJepa(CJepaConfig(prediction=PredictionConfig(weight=0.0)), learner()), latent, (predicted,), clips(8)
    )
    assert losses.total.item() == pytest.approx(0.001 * 25 * 0.99)
    losses.total.backward()
    assert latent.grad.isfinite().all() and predicted.grad.isfinite().all()


def test_a_jittered_collapse_escapes_to_full_rank():
    """The variance and covariance terms alone, the identity predicting: what `ema` is not expected to do."""
    z = (1e-3 * torch.randn(32, 2, 1, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    config = CJepaConfig(prediction=PredictionConfig(weight=0.0), weight=1.0)
    objective, batch = CJepa(config, learner()), clips(32, 2)
    optimizer = torch.optim.Adam([z], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        score(objective, z, (z[:, :-1],), batch).total.backward()
        optimizer.step()
    for t in range(2):
        frame = z.detach()[:, t, 0]
        assert effective_rank(frame) >= 0.8 * 4
        assert frame.std(0).min() > 0.8


def test_the_smallest_batch():
    model, batch = learner(), clips(2, 2)
    losses = score(CJepa(CJepaConfig(), model), *imagine(model, batch), batch)
    losses.total.backward()
    assert losses.total.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())
    with pytest.raises(ValueError, match="needs 2 or more samples per statistic, not 1"):
        score(CJepa(CJepaConfig(), model), *imagine(model, clips(1, 2)), clips(1, 2))


def test_bfloat16_is_within_two_percent():
    model, batch = learner(), clips(16)
    objective = CJepa(CJepaConfig(), model)
    latent, predicted = imagine(model, batch)
    exact = score(objective, latent, predicted, batch).terms
    rounded = score(objective, latent.bfloat16(), tuple(p.bfloat16() for p in predicted), batch).terms
    for key, term in exact.items():
        assert rounded[key].dtype == torch.float32 and rounded[key].item() == pytest.approx(term.item(), rel=0.02)


def test_the_teacher_is_frozen_and_moves():
    model = learner()
    objective = CJepa(CJepaConfig(teacher=TeacherConfig("constant", 0.0)), model)
    assert not any(p.requires_grad for p in objective.parameters())
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5)
    objective.after_step(model, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(objective.parameters(), model.encoder.parameters(), strict=True))


def test_bad_settings_are_refused():
    for name in ("weight", "similarity", "variance", "covariance", "beta"):
        with pytest.raises(ValueError, match=f"{name} is -1; it must be 0 or more"):
            CJepaConfig(**{name: -1})
