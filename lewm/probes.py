"""What a latent holds: linear probes of the state, effective rank, spread, and rollout error by horizon.

The prediction loss alone never shows collapse, and rank alone never shows a missing factor: watch all of them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lewm.data.windows import Batch
from lewm.objectives.health import effective_rank, jepa_health
from lewm.world_model import WorldModel


@dataclass(frozen=True)
class Health:
    """State of a latent space on one batch of clips."""

    std_D: Tensor
    """Standard deviation of every latent dimension; a healthy SIGReg latent has about 1 everywhere."""
    effective_rank: float
    """exp(entropy) of the normalised singular values over all frames, in [1, D]; D for an isotropic latent."""
    criteria: dict[str, float]
    """The four criteria for a healthy JEPA and, beside each statistic, its value on ideal data."""
    probe_r2: dict[str, float]
    """Held-out R2 of a linear probe for every state factor (angles as cos and sin)."""
    rollout_error_T: Tensor
    """Mean squared rollout error after 1, 2, ... blocks, divided by the variance of the latents."""


def state_targets(state_NS: Tensor, names: tuple[str, ...], angles: tuple[str, ...]) -> tuple[Tensor, list[str]]:
    """What a probe can read linearly: every state entry, angles replaced by their cosine and sine."""
    columns, labels = [], []
    for i, name in enumerate(names):
        if name in angles:
            columns += [state_NS[:, i].cos(), state_NS[:, i].sin()]
            labels += [f"cos {name}", f"sin {name}"]
        else:
            columns.append(state_NS[:, i])
            labels.append(name)
    return torch.stack(columns, 1), labels


def linear_probe_r2(fit_ND: Tensor, fit_NS: Tensor, test_ND: Tensor, test_NS: Tensor, ridge: float = 1e-3) -> Tensor:
    """R2 per target of a ridge regression fitted on one set and scored on another; constant targets give NaN."""
    mean, std = fit_ND.mean(0), fit_ND.std(0).clamp(min=1e-6)

    def features(sample: Tensor) -> Tensor:
        return torch.cat([(sample - mean) / std, torch.ones(len(sample), 1)], 1).double()

    a, target = features(fit_ND), fit_NS.double()
    gram = a.T @ a / len(a) + ridge * torch.eye(a.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, a.T @ target / len(a))
    test = test_NS.double()
    residual = (features(test_ND) @ weight - test).square().sum(0)
    total = (test - test.mean(0)).square().sum(0)
    return torch.where(total > 1e-9, 1 - residual / total, torch.nan).float()


def mlp_probe_r2(
    fit_ND: Tensor, fit_NS: Tensor, test_ND: Tensor, test_NS: Tensor, steps: int = 300, width: int = 128, seed: int = 0
) -> Tensor:
    """R2 per target of a small MLP fitted on one set and scored on another: what a latent holds in a curved way.

    Inputs and targets are standardised by the fit set; constant targets give NaN.
    """
    generator = torch.Generator().manual_seed(seed)
    mean, std = fit_ND.mean(0), fit_ND.std(0).clamp(min=1e-6)
    centre, scale = fit_NS.mean(0), fit_NS.std(0).clamp(min=1e-6)
    net = nn.Sequential(nn.Linear(fit_ND.shape[1], width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
    net.append(nn.Linear(width, fit_NS.shape[1]))
    for layer in net:
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.zeros_(layer.bias)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-3)
    features, target = (fit_ND - mean) / std, (fit_NS - centre) / scale
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        loss = (net(features) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        residual = (net((test_ND - mean) / std) * scale + centre - test_NS).square().sum(0)
    total = (test_NS - test_NS.mean(0)).square().sum(0)
    return torch.where(total > 1e-9, 1 - residual / total, torch.nan)


@torch.no_grad()
def probe_model(
    model: WorldModel, fit: Batch, test: Batch, names: tuple[str, ...], angles: tuple[str, ...], history: int = 1
) -> Health:
    """Measure a model on clips it was not trained on (`test`); the probe is fitted on `fit`. Both in eval mode."""
    was_training = model.training
    model.eval()
    fit_latent, test_latent = model.encode(fit.pixels_BTCYX), model.encode(test.pixels_BTCYX)
    rolled = model.rollout(
        test_latent[:, :history], test.action_BTA[:, : history - 1], test.action_BTA[:, None, history - 1 :]
    )[:, 0]
    target = test_latent[:, history:]
    criteria = jepa_health(test_latent[:, history - 1 :], (rolled,)).scalars()
    variance = test_latent.flatten(0, 1).var(0).mean().clamp(min=1e-12)
    error_T = (rolled - target).square().mean((0, 2, 3)) / variance
    flat = test_latent.flatten(0, 1).flatten(1).cpu().float()
    if not names:  # recordings without states: nothing to probe for
        model.train(was_training)
        return Health(flat.std(0), effective_rank(flat).item(), criteria, {}, error_T.cpu())
    fit_targets, labels = state_targets(fit.state_BTS.flatten(0, 1).cpu(), names, angles)
    test_targets, _ = state_targets(test.state_BTS.flatten(0, 1).cpu(), names, angles)
    r2 = linear_probe_r2(fit_latent.flatten(0, 1).flatten(1).cpu().float(), fit_targets, flat, test_targets)
    model.train(was_training)
    return Health(
        flat.std(0), effective_rank(flat).item(), criteria, dict(zip(labels, r2.tolist(), strict=True)), error_T.cpu()
    )
