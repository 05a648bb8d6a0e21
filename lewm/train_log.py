"""What a training run writes down: TensorBoard scalars, probes, and the alarm when the loss diverges."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lewm import distributed
from lewm.objectives import Losses
from lewm.probes import Health


class TrainingDiverged(RuntimeError):
    """The loss became NaN, infinite, or a thousand times what it was."""


@dataclass(frozen=True)
class StepRecord:
    """One optimiser step, still on the device."""

    losses: Losses
    gradient_norm: Tensor
    index_B: Tensor
    """Clips of the batch."""
    data_s: float
    """Seconds spent waiting for the batch."""
    step_s: float
    """Seconds spent computing (on CUDA: launching)."""


class TrainLog:
    """Remembers steps without reading the device, and on `flush` checks and writes them."""

    def __init__(self, folder: Path, first_step: int, state_path: Path) -> None:
        self.state_path = state_path
        self.pending: list[StepRecord] = []
        self.typical: float | None = None
        self.writer = None
        if distributed.rank() == 0:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder), purge_step=first_step)

    def add(self, record: StepRecord) -> None:
        """Remember one step."""
        self.pending.append(record)

    def flush(self, step: int, learning_rate: float) -> dict[str, float]:
        """Check every remembered step, write the means at `step`, forget them; returns the mean losses.

        Raises TrainingDiverged naming the step, its clips and the last good state.
        """
        if not self.pending:
            return {}
        records, self.pending = self.pending, []
        totals = torch.stack([r.losses.total for r in records]).float().cpu()
        self._check(totals.tolist(), records, step - len(records))
        self.typical = totals.median().item()
        means = {"loss": totals.mean().item()}
        for name in records[0].losses.terms:
            means[name] = torch.stack([r.losses.terms[name] for r in records]).float().mean().item()
        scalars = {f"loss/{name}": value for name, value in means.items()}
        for name in records[0].losses.metrics:
            scalars[f"metric/{name}"] = torch.stack([r.losses.metrics[name] for r in records]).float().mean().item()
        scalars["optim/gradient_norm"] = torch.stack([r.gradient_norm for r in records]).mean().item()
        scalars["optim/learning_rate"] = learning_rate
        scalars["time/data_ms"] = 1000 * float(np.mean([r.data_s for r in records]))
        scalars["time/step_ms"] = 1000 * float(np.mean([r.step_s for r in records]))
        self._write(scalars, step)
        return means

    def _check(self, totals: list[float], records: list[StepRecord], first: int) -> None:
        """Raise TrainingDiverged at the first step whose loss is not a number or out of all proportion."""
        limit = math.inf if self.typical is None else 1000 * (1 + abs(self.typical))
        for i, total in enumerate(totals):
            if not math.isfinite(total) or total > limit:
                good = self.state_path if self.state_path.exists() else "none yet"
                raise TrainingDiverged(
                    f"the loss is {total:.4g} at step {first + i} (clips {records[i].index_B[:8].tolist()}...); last "
                    f"good state: {good}; lower train.learning_rate or train.clip, or look at those clips"
                )

    def probe(self, step: int, health: Health, clip_TCYX: Tensor) -> None:
        """Write the health of the latent space and a held-out clip."""
        if self.writer is None:
            return
        scalars = {
            "latent/effective_rank": health.effective_rank,
            "latent/std_mean": health.std_D.mean().item(),
            "latent/std_min": health.std_D.min().item(),
        }
        scalars |= {f"health/{name}": value for name, value in health.criteria.items()}
        scalars |= {f"probe_r2/{name}": r2 for name, r2 in health.probe_r2.items()}
        scalars |= {f"rollout_error/block_{t}": e for t, e in enumerate(health.rollout_error_T.tolist(), 1)}
        self._write(scalars, step)
        self.writer.add_histogram("latent/std_per_dimension", health.std_D, step)
        self.writer.add_image("frames/held_out_clip", torch.cat(list(clip_TCYX), 2).cpu(), step)

    def close(self) -> None:
        """Write what is buffered."""
        if self.writer is not None:
            self.writer.close()

    def _write(self, scalars: dict[str, float], step: int) -> None:
        if self.writer is not None:
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, step)
