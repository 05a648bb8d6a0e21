"""What a latent holds: linear probes of the state, effective rank, spread, and rollout error by horizon.

The prediction loss alone never shows collapse, and rank alone never shows a missing factor: watch all of them.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from lewm.data.windows import Batch
from lewm.objectives.health import effective_rank, jepa_health
from lewm.world_model import WorldModel

MLP_BATCH = 2048
"""Most samples that an MLP probe takes a step on."""


@dataclass(frozen=True)
class ProbeSample:
    """Latents and the state factors a probe may look for in them, on the CPU: one set to fit on, one to score on."""

    fit_latent_ND: Tensor
    """Latents of frames of training episodes."""
    fit_target_NS: Tensor
    """State factors of the same frames."""
    test_latent_ND: Tensor
    """Latents of frames of held-out episodes."""
    test_target_NS: Tensor
    """State factors of the same frames."""
    labels: tuple[str, ...]
    """Names of the S factors, angles as cos and sin; none for recordings without states."""

    def linear_r2(self) -> dict[str, float]:
        """Held-out R2 of a linear probe by factor; NaN for a factor that does not vary."""
        return self._score(linear_probe_r2)

    def mlp_r2(self) -> dict[str, float]:
        """Held-out R2 of a small MLP by factor; NaN for a factor that does not vary. Takes seconds."""
        return self._score(mlp_probe_r2)

    def _score(self, probe: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]) -> dict[str, float]:
        if not self.labels:
            return {}
        r2 = probe(self.fit_latent_ND, self.fit_target_NS, self.test_latent_ND, self.test_target_NS)
        return dict(zip(self.labels, r2.tolist(), strict=True))


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
    """Mean squared rollout error after 1, 2, ... blocks, divided by the variance of the latents; with a latent variable
    that of its best guesses, which have seen what came."""
    sample: ProbeSample
    """What the linear probe saw, for further probes."""
    seconds: float
    """Wall time of this measurement."""


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
    return torch.stack(columns, 1) if columns else state_NS[:, :0], labels


def fit_linear(fit_ND: Tensor, fit_NS: Tensor, ridge: float = 1e-3, floor: float = 1e-6) -> tuple[Tensor, Tensor]:
    """weight_DS and bias_S of a ridge regression, whose penalty counts for standardised features.

    floor: smallest spread a feature is scaled up from; one that hardly ever changes would become very large elsewhere.
    """
    mean_D, std_D = fit_ND.double().mean(0), fit_ND.double().std(0).clamp(min=floor)
    feature_ND = torch.cat([(fit_ND - mean_D) / std_D, torch.ones(len(fit_ND), 1, dtype=torch.float64)], 1)
    samples, width = feature_ND.shape
    if width <= samples:
        gram_DD = feature_ND.T @ feature_ND / samples
        gram_DD.diagonal().add_(ridge)
        weight_DS = torch.linalg.solve(gram_DD, feature_ND.T @ fit_NS.double() / samples)
    else:  # the same regression, by a system as large as the samples: the tokens of a frozen encoder are wide
        gram_NN = feature_ND @ feature_ND.T / samples
        gram_NN.diagonal().add_(ridge)
        weight_DS = feature_ND.T @ torch.linalg.solve(gram_NN, fit_NS.double() / samples)
    slope_DS = weight_DS[:-1] / std_D[:, None]
    return slope_DS.float(), (weight_DS[-1] - mean_D @ slope_DS).float()


def r2_score(found_NS: Tensor, test_NS: Tensor) -> Tensor:
    """R2 of each column; NaN where the truth never changes."""
    residual_S = (found_NS - test_NS).double().square().sum(0)
    total_S = (test_NS - test_NS.mean(0)).double().square().sum(0)
    return torch.where(total_S > 1e-9, 1 - residual_S / total_S, torch.nan).float()


def linear_probe_r2(fit_ND: Tensor, fit_NS: Tensor, test_ND: Tensor, test_NS: Tensor, ridge: float = 1e-3) -> Tensor:
    """R2 per target of a ridge regression fitted on one set and scored on another; constant targets give NaN."""
    weight_DS, bias_S = fit_linear(fit_ND, fit_NS, ridge)
    return r2_score(test_ND.double() @ weight_DS.double() + bias_S.double(), test_NS.double())


def mlp_probe_r2(
    fit_ND: Tensor, fit_NS: Tensor, test_ND: Tensor, test_NS: Tensor, steps: int = 300, width: int = 128, seed: int = 0
) -> Tensor:
    """R2 per target of a small MLP fitted on one set and scored on another: what a latent holds in a curved way.

    Constant targets give NaN. See `fit_mlp`.
    """
    batch = MLP_BATCH if len(fit_ND) > MLP_BATCH else None
    return r2_score(fit_mlp(fit_ND, fit_NS, steps, width, seed, batch)(test_ND), test_NS)


def fit_mlp(
    fit_ND: Tensor,
    fit_NS: Tensor,
    steps: int = 300,
    width: int = 128,
    seed: int = 0,
    batch: int | None = None,
    floor: float = 1e-6,
) -> Callable[[Tensor], Tensor]:
    """Fit a small MLP and return it as a function features_MD -> found_MS.

    Inputs and targets are standardised by the fit set. batch: samples of a step; None takes all in every step. floor:
    as in `fit_linear`.
    """
    generator = torch.Generator().manual_seed(seed)
    mean, std = fit_ND.mean(0), fit_ND.std(0).clamp(min=floor)
    centre, scale = fit_NS.mean(0), fit_NS.std(0).clamp(min=1e-6)
    sizes = (fit_ND.shape[1], width, width, fit_NS.shape[1])
    first, second, last = (skip_init(nn.Linear, a, b) for a, b in pairwise(sizes))
    net = nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), last)
    for layer in net:
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.zeros_(layer.bias)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-3)
    features, target = (fit_ND - mean) / std, (fit_NS - centre) / scale
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / steps)
        rows = slice(None) if batch is None else torch.randint(len(fit_ND), (batch,), generator=generator)
        loss = (net(features[rows]) - target[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def found(features_MD: Tensor) -> Tensor:
        read_MS: Tensor = net((features_MD - mean) / std) * scale + centre
        return read_MS

    return found


@torch.no_grad()
def probe_model(
    model: WorldModel, fit: Batch, test: Batch, names: tuple[str, ...], angles: tuple[str, ...], history: int = 1
) -> Health:
    """Measure a model on clips it was not trained on (`test`); the probe is fitted on `fit`. Both in eval mode."""
    started = time.perf_counter()
    was_training = model.training
    model.eval()
    fit_latent, test_latent = (model.encode_batch(part) for part in (fit, test))
    rolled, nats = _imagined(model, test_latent, test.action_BTA, history)
    model.train(was_training)
    target = test_latent[:, history:]
    criteria = jepa_health(test_latent[:, history - 1 :], (rolled,), nats).scalars()
    variance = test_latent.flatten(0, 1).var(0).mean().clamp(min=1e-12)
    error_T = (rolled - target).square().mean((0, 2, 3)) / variance
    flat = test_latent.flatten(0, 1).flatten(1).cpu().float()
    fit_targets, labels = state_targets(fit.state_BTS.flatten(0, 1).cpu(), names, angles)
    test_targets, _ = state_targets(test.state_BTS.flatten(0, 1).cpu(), names, angles)
    sample = ProbeSample(
        fit_latent.flatten(0, 1).flatten(1).cpu().float(), fit_targets, flat, test_targets, tuple(labels)
    )
    return Health(
        std_D=flat.std(0),
        effective_rank=effective_rank(flat).item(),
        criteria=criteria,
        probe_r2=sample.linear_r2(),
        rollout_error_T=error_T.cpu(),
        sample=sample,
        seconds=time.perf_counter() - started,
    )


def _imagined(model: WorldModel, latent_BTKD: Tensor, action_BTA: Tensor, history: int) -> tuple[Tensor, float]:
    """The frames from `history` on as the model imagines them, and the nats per block its latent variable took."""
    if model.variable is not None:
        followed = model.follow(latent_BTKD, action_BTA, history)
        imagined = slice(history - 1, None)
        return followed.predicted_BTKD[:, imagined], followed.nats_BT[:, imagined].mean().item()
    seen, past = latent_BTKD[:, :history], action_BTA[:, : history - 1]
    return model.rollout(seen, past, action_BTA[:, None, history - 1 :])[:, 0], 0.0
