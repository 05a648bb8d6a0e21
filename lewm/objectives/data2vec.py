"""data2vec: predictions regress the average of an EMA teacher's upper layers, a richer target than the last one alone.

Baevski et al. 2022, in its version for vision. A linear head reads the target off the predicted latent; the prediction
term keeps predicted and encoded latents in one space, which planning needs and the paper, without a planner, does not.
That term rewards small latents: end the encoder in a BatchNorm (`encoder.batch_norm`).
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lewm.objectives.base import ModelView, Objective
from lewm.objectives.losses import Losses
from lewm.objectives.prediction import PredictionConfig, prediction_loss
from lewm.objectives.teacher import Teacher, TeacherConfig, normalised, regression_loss

if TYPE_CHECKING:
    from lewm.data.windows import Batch


@dataclass(frozen=True)
class Data2VecConfig:
    """Regression of the teacher's layers, beside a prediction of the next latent."""

    name: Literal["data2vec"] = "data2vec"
    """Selects this objective."""
    prediction: PredictionConfig = field(default_factory=lambda: PredictionConfig(stop_gradient=True))
    """The prediction of the encoder's own next latent, which ties the two spaces together."""
    weight: float = 1.0
    """Weight of the regression of the teacher's layers."""
    beta: float = 2.0
    """Errors below beta are squared (smooth L1); 0 for plain L1."""
    top: int | None = None
    """Uppermost encoder levels that make the target; the upper half if left out (the paper: 6 of 12)."""
    normalise_mean: bool = True
    """Whether the average of the normalised levels is layer-normalised again."""
    teacher: TeacherConfig = field(default_factory=lambda: TeacherConfig("constant", 0.9998))
    """How the teacher follows the encoder. The default suits runs of 100,000 steps and more."""

    def __post_init__(self) -> None:
        for name in ("weight", "beta"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        if self.top is not None and self.top < 1:
            raise ValueError(f"top is {self.top}; it must be 1 or more, or left out for the upper half")


class Data2Vec(Objective):
    """Smooth-L1 regression of the mean of the teacher's top levels, each normalised (data2vec, section 3.3).

    Levels of one width are averaged and read by one linear head. Levels of different widths cannot be: each then has
    its own head, and the losses are averaged instead of the targets.
    """

    def __init__(self, config: Data2VecConfig, model: ModelView) -> None:
        super().__init__()
        self.config = config
        dims = top_level_dims(model.encoder, config.top)
        self.teacher = Teacher(model, config.teacher, lambda encoder: TopLevels(encoder, len(dims)))
        self.dims = dims
        targets = dims if len(set(dims)) > 1 else dims[:1]
        self.heads = nn.ModuleList(nn.Linear(model.latent_dim, dim) for dim in targets)

    def targets(self, batch: "Batch | None") -> list[Tensor]:
        """What each head is to say of every frame: target_BTKD, of the level's width."""
        return level_targets(list(self.teacher(batch).split(self.dims, -1)), self.config.normalise_mean)

    def forward(
        self,
        latent_BTKD: Tensor,
        predicted: tuple[Tensor, ...],
        batch: "Batch | None",
        generator: torch.Generator,
    ) -> Losses:
        """The prediction and the regression of the teacher's levels, each on the frames from the second on.

        Raises ValueError without the batch, whose pixels the teacher reads. `generator` is not read.
        """
        config = self.config
        prediction = prediction_loss(latent_BTKD, predicted, config.prediction)
        distance, dtype = PredictionConfig("l1"), next(self.heads.parameters()).dtype
        losses, scored = [], []
        for head, target_BTKD in zip(self.heads, self.targets(batch), strict=True):
            read = tuple(head(guess.to(dtype)) for guess in predicted)
            losses.append(regression_loss(target_BTKD, read, distance, config.beta))
            scored.append((target_BTKD, read))
        terms = {"prediction": prediction, "data2vec": torch.stack(losses).mean()}
        weights = {"prediction": config.prediction.weight, "data2vec": config.weight}
        return Losses(terms, weights, self.teacher.watch(*scored))

    def after_step(self, model: ModelView, progress: float) -> None:
        """Move the teacher; raises RuntimeError at a collapse if so configured."""
        self.teacher.follow(model.encoder, progress)


class TopLevels(nn.Module):
    """An encoder seen through its uppermost levels: pixels_BCYX to token_BKD, D being the sum of their widths."""

    def __init__(self, encoder: Any, count: int) -> None:
        super().__init__()
        self.encoder, self.count = encoder, count

    def forward(self, pixels_BCYX: Tensor) -> Tensor:
        """The levels as `split` by their widths gives them back."""
        return torch.cat(self.encoder.levels(pixels_BCYX)[-self.count :], -1)


def top_level_dims(encoder: nn.Module, top: int | None) -> tuple[int, ...]:
    """Widths of an encoder's uppermost levels; of the upper half of them if `top` is None.

    Raises ValueError for an encoder that does not show its levels, or has fewer.
    """
    dims: tuple[int, ...] | None = getattr(encoder, "level_dims", None)
    if dims is None:
        raise ValueError(
            f"data2vec: {type(encoder).__name__} does not show its levels; give it a method `levels` and `level_dims` "
            "as the conv and vit encoders have, or use objective ema"
        )
    count = max(1, len(dims) // 2) if top is None else top
    if count > len(dims):
        raise ValueError(f"data2vec: top is {count}, but the encoder has {len(dims)} levels; take at most that many")
    return dims[-count:]


def level_targets(levels: list[Tensor], normalise_mean: bool) -> list[Tensor]:
    """Each level (B, T, K, its width) normalised; levels of one width as their mean, normalised again if so asked.

    One level gives I-JEPA's target: normalising it again changes nothing.
    """
    normal = [normalised(level) for level in levels]
    if len({level.shape[-1] for level in levels}) > 1:
        return normal
    mean_BTKD = torch.stack(normal).mean(0)
    return [normalised(mean_BTKD) if normalise_mean else mean_BTKD]
