"""What GCIVL, GCIQL and HILP minimise, whole: against the papers' formulas in NumPy, in value and in gradient.

A formula is given the networks twice: `moving` is what the optimiser moves, `still` the same numbers where the papers
stop the gradient. Its slope in `moving` alone is the gradient that training must have.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_models import FACTS, toy_model

from lewm.baselines.gciql import GCIQLConfig
from lewm.baselines.gcivl import GCIVLConfig
from lewm.baselines.goal_data import GoalBatch, GoalTransitions
from lewm.baselines.hilp import HILPConfig
from lewm.baselines.offline import OFFLINE
from lewm.data.store import Store
from lewm.heads_training import Fit, HeadGroup

Array = np.ndarray
Nets = dict[str, list[Array]]
"""Name to weights and biases, layer by layer."""
DISCOUNT, B, D, A = 0.81, 32, 4, 4
"""Per block; blocks, latent entries, action entries."""


class Given:
    """Stands for the data: hands out batches, and keeps what it was asked for."""

    discount = DISCOUNT

    def __init__(self, *batches: GoalBatch) -> None:
        self.left = list(batches)
        self.asked: list[tuple[float, ...]] = []

    def draw(
        self, count: int, generator: torch.Generator, nearness: float, current: float = 0.0, elsewhere: float = 0.0
    ) -> GoalBatch:
        self.asked.append((count, nearness, current, elsewhere))
        return self.left.pop(0)


def some_blocks(seed: int) -> GoalBatch:
    """In turns, goals still to come, seen in mid-block, and met from the start."""
    rng, way = np.random.default_rng(seed), np.arange(B) % 3
    now, following, goal = rng.normal(size=(3, B, 1, D))
    goal[way == 2] = now[way == 2]
    known = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])[way]
    reward, discount = np.array([-1.0, -0.5, 0.0])[way], np.array([DISCOUNT, 0.0, 0.0])[way]
    given = (now, following, goal, rng.normal(size=(B, A)), known, reward, discount)
    return GoalBatch(*(torch.tensor(x, dtype=torch.float32) for x in given))


def arrays(batch: GoalBatch) -> list[Array]:
    """Now, next, goal, action, known, reward, discount."""
    return [x.double().flatten(1).numpy() if x.dim() == 3 else x.double().numpy() for x in vars(batch).values()]


def nets(group: HeadGroup) -> Nets:
    return {name: [p.detach().double().numpy() for p in head.parameters()] for name, head in group.items()}


def mlp(layers: list[Array], *inputs: Array) -> Array:
    """SiLU between linear layers; a single output loses its axis."""
    x = np.concatenate(inputs, -1)
    for weight, bias in zip(layers[:-2:2], layers[1:-2:2], strict=True):
        x = x @ weight.T + bias
        x = x / (1 + np.exp(-x))
    x = x @ layers[-2].T + layers[-1]
    return x[:, 0] if x.shape[1] == 1 else x


def pair(now: Array, goal: Array) -> Array:
    return np.concatenate([now, goal, now - goal], 1)


def mixed(*cases: Array) -> None:
    """Each holds for some and not for others, or a branch would go untested."""
    assert all(0 < case.sum() < case.size for case in cases)


def expectile(tau: float, better: Array, error: Array) -> float:
    """IQL, eq. 5: |tau - 1(worse)| error^2."""
    mixed(better)
    return float(np.mean(np.where(better, tau, 1 - tau) * error**2))


def two_values(value: list[Array], now: list[Array], after: list[Array], batch: GoalBatch, tau: float) -> float:
    """HIQL's action-free expectile loss of two values; now, after: the target networks'."""
    *_, reward, discount = arrays(batch)
    better = reward + discount * np.minimum(*after) - (now[0] + now[1]) / 2 >= 0
    return sum(expectile(tau, better, reward + discount * after[i] - value[i]) for i in range(2))


def cloning(mean: Array, action: Array, known: Array) -> Array:
    """(B,) half the squared error, a mean over the entries that say something."""
    return 0.5 * ((mean - action) ** 2 * known).sum(1) / np.maximum(known.sum(1), 1)


def awr(advantage: Array, temperature: float, error: Array) -> float:
    """IQL, eq. 7, its weight cut off at 100."""
    weight = np.exp(temperature * advantage)
    mixed(weight > 100)
    return float(np.mean(np.minimum(weight, 100) * error))


def gcivl(moving: Nets, still: Nets, target: Nets, config: GCIVLConfig, batches: list[GoalBatch]) -> float:
    def values(group: Nets, where: Array, goal: Array) -> list[Array]:
        return [mlp(group[name], pair(where, goal)) for name in ("value_1", "value_2")]

    now, following, goal, *_ = arrays(batches[0])
    told = values(target, now, goal), values(target, following, goal)
    learned = two_values(values(moving, now, goal), *told, batches[0], config.expectile)
    now, following, goal, action, known, reward, discount = arrays(batches[1])
    advantage = reward + discount * np.mean(values(still, following, goal), 0) - np.mean(values(still, now, goal), 0)
    error = cloning(mlp(moving["actor"], pair(now, goal)), action, known)
    return learned + awr(advantage, config.temperature, error)


def gciql(moving: Nets, still: Nets, target: Nets, config: GCIQLConfig, batches: list[GoalBatch]) -> float:
    def qualities(group: Nets, where: Array, goal: Array, action: Array) -> list[Array]:
        return [mlp(group[name], pair(where, goal), action) for name in ("critic_1", "critic_2")]

    now, following, goal, action, _, reward, discount = arrays(batches[0])
    error = np.minimum(*qualities(target, now, goal, action)) - mlp(moving["value"], pair(now, goal))
    aim = reward + discount * mlp(still["value"], pair(following, goal))
    learned = expectile(config.expectile, error > 0, error)
    learned += sum(float(np.mean((aim - quality) ** 2)) for quality in qualities(moving, now, goal, action))
    now, _, goal, action, known, *_ = arrays(batches[1])
    mean, std = np.tile(FACTS.action_mean, 2), np.tile(FACTS.action_std, 2)
    low, high = ((np.tile(bound, 2) - mean) / std for bound in (FACTS.action_low, FACTS.action_high))
    chosen = mlp(moving["actor"], pair(now, goal))
    mixed(chosen < low, chosen > high)
    climbed = np.minimum(*qualities(still, now, goal, np.clip(chosen, low, high)))
    unmoved = np.clip(mlp(still["actor"], pair(now, goal)), low, high)
    size = np.mean(np.abs(np.minimum(*qualities(still, now, goal, unmoved)))) + 1e-6
    return learned - climbed.mean() / size + config.cloning * float(cloning(chosen, action, known).mean())


def hilp(moving: Nets, still: Nets, target: Nets, config: HILPConfig, batches: list[GoalBatch]) -> float:
    def values(group: Nets, where: Array, goal: Array) -> list[Array]:
        """Minus the distances in the space, at least 0.001."""
        ways = (mlp(group[name], where) - mlp(group[name], goal) for name in ("phi_1", "phi_2"))
        return [-np.maximum(np.linalg.norm(way, axis=1), 1e-3) for way in ways]

    now, following, goal, action, _, *_ = arrays(batches[0])
    told = values(target, now, goal), values(target, following, goal)
    learned = two_values(values(moving, now, goal), *told, batches[0], config.expectile)
    generator = seeded()
    direction = torch.randn(B, config.space, generator=generator).double().numpy()
    led = torch.rand(B, generator=generator).numpy() < config.to_goals
    mixed(led)
    here, there, end = (mlp(still["phi_1"], x) for x in (now, following, goal))
    direction[led] = (end - here)[led]
    direction /= np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-6)
    aim = np.sum((there - here) * direction, 1) + DISCOUNT * mlp(still["value"], following, direction)
    best = np.minimum(*(mlp(target[name], now, direction, action) for name in ("critic_1", "critic_2")))
    error = best - mlp(moving["value"], now, direction)
    learned += expectile(config.policy_expectile, error > 0, error)
    for name in ("critic_1", "critic_2"):
        learned += float(np.mean((aim - mlp(moving[name], now, direction, action)) ** 2))
    cloned = cloning(mlp(moving["actor"], now, direction), action, np.ones((B, A)))
    return learned + awr(best - mlp(still["value"], now, direction), config.temperature, cloned)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


Formula = Callable[[Nets, Nets, Nets, Any, list[GoalBatch]], float]
SIZE: dict[str, Any] = {"width": 6, "layers": 1, "batch": B}
WHOLE: dict[str, tuple[Any, Formula, list[tuple[float, ...]]]] = {
    "gcivl": (GCIVLConfig(**SIZE, temperature=2.0), gcivl, [(B, 2.0, 0.2, 0.3), (B, 1.0, 0.0, 0.0)]),
    "gciql": (GCIQLConfig(**SIZE), gciql, [(B, 2.0, 0.2, 0.3), (B, 1.0, 0.0, 0.0)]),
    "hilp": (HILPConfig(**SIZE, space=3, temperature=2.0), hilp, [(B, 2.0, 0.0, 0.375)]),
}
"""Settings, formula, and the batches that are drawn: blocks, nearness, shares of present frames and of any."""


@pytest.mark.parametrize("kind", WHOLE)
def test_the_whole_loss_its_gradient_and_its_targets_are_the_papers(
    kind: str, tiny_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every network's gradient along one random direction; none goes into a target, which follows by its rate."""
    config, formula, draws = WHOLE[kind]
    batches = [some_blocks(seed) for seed in range(len(draws))]
    given, caught = Given(*batches), list[Any]()
    monkeypatch.setattr(GoalTransitions, "of", lambda *_: given)
    monkeypatch.setattr(f"lewm.baselines.{kind}.fit_head", lambda *arguments: caught.extend(arguments))
    OFFLINE[kind].fit(config, Fit(toy_model(), tiny_store, tmp_path, 0.25, 0, True))
    *_, parts, begin, after_step = caught
    head, target, rng = parts["head"], parts["target"], torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (*head.parameters(), *target.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=rng))
    still, slow = nets(head), nets(target)

    loss = begin(None)(seeded())
    assert loss.item() == pytest.approx(formula(still, still, slow, config, batches), rel=1e-5)
    assert given.asked == draws

    loss.backward()
    assert all(parameter.grad is None for parameter in target.parameters())
    ways, step = np.random.default_rng(0), 1e-6
    for name, part in head.items():
        way = [ways.normal(size=layer.shape) for layer in still[name]]
        ends = (still | {name: [x + s * w for x, w in zip(still[name], way, strict=True)]} for s in (step, -step))
        up, down = (formula(end, still, slow, config, batches) for end in ends)
        slope = sum((p.grad.numpy() * w).sum() for p, w in zip(part.parameters(), way, strict=True))
        assert slope == pytest.approx((up - down) / (2 * step), rel=1e-4) and abs(slope) > 1e-2, name

    after_step()
    for name, layers in nets(target).items():
        for moved, before, ahead in zip(layers, slow[name], still[name], strict=True):
            np.testing.assert_allclose(moved, before + config.target_rate * (ahead - before), atol=1e-6)
