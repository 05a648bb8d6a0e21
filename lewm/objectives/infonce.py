"""InfoNCE: every prediction must pick its frame out of the batch, and every frame its prediction.

Cosines over a learned temperature, cross-entropy in both directions (CLIP's form, which VL-JEPA uses). Frames that no
encoder could tell apart are positives of each other: in control data, calling them negatives is the main failure.
"""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lewm.distributed import gather_ranks, rank, sum_over_ranks, world_size
from lewm.objectives.base import ModelView, Objective
from lewm.objectives.losses import Losses, full_precision
from lewm.objectives.prediction import PredictionConfig, prediction_loss

if TYPE_CHECKING:
    from lewm.data.windows import Batch

EPS = 1e-8
"""Least length a vector is divided by."""
THUMBNAIL = 32
"""Largest height and width at which pictures are compared."""
MAX_TEMPERATURE = 1.0
"""A learned temperature stays below: a batch that is still collapsed must not switch the contrast off."""


@dataclass(frozen=True)
class InfoNCEConfig:
    """Contrast between the predictions and the encoded frames of a batch."""

    name: Literal["infonce"] = "infonce"
    """Selects this objective."""
    prediction: PredictionConfig = field(default_factory=lambda: PredictionConfig(stop_gradient=True))
    """The prediction term. The contrast leaves the length of latents open, and planning compares lengths: this term,
    with the target held constant, settles it. Weight 0 is the published loss; plan with a cosine cost then."""
    weight: float = 1.0
    """Weight of the contrast."""
    temperature: float = 0.07
    """Initial temperature. Small ones push frames far apart, which makes planning costs rugged: 0.1 to 0.2 for toys."""
    learn_temperature: bool = True
    """Whether the temperature is trained along."""
    min_temperature: float = 0.01
    """A learned temperature stays above."""
    other_times: int | None = None
    """Frames of the same clip that are at least this many blocks away are candidates too: hard negatives. Only other
    clips at the same time step if left out."""
    window_tolerance: int | None = 2
    """Clips that start at most this many environment steps apart in the recordings count as the same; never if left
    out."""
    picture_tolerance: float | None = 0.5
    """Frames whose pictures differ by at most this root mean square, in grey levels of 255, count as the same, such as
    static ones; raise it for noisy cameras. Pictures are not compared if left out."""

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"weight is {self.weight}; it must be 0 or more")
        if not 0 < self.min_temperature <= self.temperature <= MAX_TEMPERATURE:
            raise ValueError(
                f"temperature is {self.temperature} and min_temperature {self.min_temperature}; "
                f"they must satisfy 0 < min_temperature <= temperature <= {MAX_TEMPERATURE:g}"
            )
        if self.other_times is not None and self.other_times < 1:
            raise ValueError(f"other_times is {self.other_times}; it must be 1 or more blocks, or left out")
        for name in ("window_tolerance", "picture_tolerance"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} is {value}; it must be 0 or more, or left out")


@dataclass(frozen=True)
class Same:
    """Which frames show the same and are positives of each other; every frame is its own positive anyway."""

    across_TBB: Tensor
    """bool: this rank's clip (rows) and any rank's clip (columns), at the same time step."""
    within_BTT: Tensor
    """bool: two time steps of this rank's clips."""


@dataclass(frozen=True)
class Contrast:
    """What a contrast came to, over all ranks."""

    loss: Tensor
    """Mean cross-entropy of both directions; log of the number of candidates at collapse."""
    information: Tensor
    """Log of the number of candidates minus the loss: a lower bound of the mutual information in nats, 0 at collapse
    (van den Oord et al. 2018)."""
    accuracy: Tensor
    """Share of predictions whose best candidate is a positive."""


class InfoNCE(Objective):
    """The contrast and its learned temperature."""

    def __init__(self, config: InfoNCEConfig, model: ModelView) -> None:
        super().__init__()
        self.config = config
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature)), config.learn_temperature)

    def forward(
        self,
        latent_BTKD: Tensor,
        predicted: tuple[Tensor, ...],
        batch: "Batch | None",
        generator: torch.Generator,
    ) -> Losses:
        """Prediction term and contrast, averaged over ways of predicting.

        `batch` tells which frames are the same; without one, all clips count as different. `generator` is not read.
        Metrics: `information` and `accuracy` (see `Contrast`) and `temperature`.
        """
        # First, because it checks the shapes.
        prediction = prediction_loss(latent_BTKD, predicted, self.config.prediction)
        same = None if batch is None else same_frames(batch, self.config)
        scale, target = self.log_scale.exp(), latent_BTKD[:, 1:]
        ways = [info_nce(guess, target, scale, same, self.config.other_times) for guess in predicted]
        terms = {"prediction": prediction, "infonce": torch.stack([way.loss for way in ways]).mean()}
        metrics = {
            "information": torch.stack([way.information for way in ways]).mean(),
            "accuracy": torch.stack([way.accuracy for way in ways]).mean(),
            "temperature": 1 / scale.detach(),
        }
        return Losses(terms, {"prediction": self.config.prediction.weight, "infonce": self.config.weight}, metrics)

    @torch.no_grad()
    def after_step(self, model: ModelView, progress: float) -> None:
        """Keep the temperature in [min_temperature, 1]; clamping the parameter leaves its gradient alive."""
        self.log_scale.clamp_(-math.log(MAX_TEMPERATURE), -math.log(self.config.min_temperature))


def info_nce(
    predicted_BTKD: Tensor,
    target_BTKD: Tensor,
    scale: Tensor | float,
    same: Same | None = None,
    other_times: int | None = None,
) -> Contrast:
    """Bidirectional cross-entropy of scale x cosine (CLIP, figure 3), one per time step, averaged over time.

    The candidates of a prediction are the targets of all clips and tokens of all ranks at its time step, and those of
    its own clip and token at least `other_times` steps away; the candidates of a target are predictions likewise.
    Several positives share the probability equally. The time and memory of a step are T (B K)^2 over all ranks, shared
    between them. Raises ValueError for fewer than two samples per time step.
    """
    n = target_BTKD.shape[0] * target_BTKD.shape[2] * world_size()
    if n < 2:
        raise ValueError(f"InfoNCE needs 2 or more samples per time step, not {n}; raise the batch size")
    unit = [F.normalize(full_precision(x), dim=-1, eps=EPS) for x in (predicted_BTKD, target_BTKD)]
    every = gather_ranks(torch.stack(unit, 1)).unbind(1)
    positive_TNM = _positives(target_BTKD, same, other_times)
    # Autocast would round the cosines to bf16: 0.05 in the logits at temperature 0.07.
    with torch.autocast(target_BTKD.device.type, enabled=False):
        logits = [_logits(scale * unit[i], every[1 - i], unit[1 - i], other_times) for i in range(2)]
    loss = torch.stack([soft_cross_entropy(logit_TNM, positive_TNM) for logit_TNM in logits]).mean()
    with torch.no_grad():
        best_TN1 = logits[0].argmax(-1, keepdim=True)
        accuracy = positive_TNM.gather(-1, best_TN1).to(loss.dtype).mean()
        candidates = logits[0].isfinite().sum(-1).to(loss.dtype).log().mean()
    loss, accuracy, candidates = (sum_over_ranks(torch.stack([loss, accuracy, candidates])) / world_size()).unbind()
    return Contrast(loss, (candidates - loss).detach(), accuracy.detach())


def soft_cross_entropy(logit_NM: Tensor, positive_NM: Tensor) -> Tensor:
    """Mean over rows of the cross-entropy to equal shares on the row's positives; leading axes are rows too.

    Logits of -inf are no candidates, and never positives. Every row needs a positive.
    """
    log_share_NM = logit_NM.log_softmax(-1).masked_fill(~positive_NM, 0)
    return -(log_share_NM.sum(-1) / positive_NM.sum(-1)).mean()


def _logits(one_BTKD: Tensor, every_BTKD: Tensor, other_BTKD: Tensor, other_times: int | None) -> Tensor:
    """Products of a rank's vectors with their candidates, (T, B x K, M); -inf for frames too close in time."""
    rows_TND, columns_TMD = (x.transpose(0, 1).flatten(1, 2) for x in (one_BTKD, every_BTKD))
    across_TNM = rows_TND @ columns_TMD.transpose(1, 2)
    if other_times is None:
        return across_TNM
    within_BKTT = one_BTKD.transpose(1, 2) @ other_BTKD.permute(0, 2, 3, 1)
    near_TT = ~_far(one_BTKD.shape[1], other_times, one_BTKD.device)
    within_TNT = within_BKTT.masked_fill(near_TT, -math.inf).flatten(0, 1).transpose(0, 1)
    return torch.cat([across_TNM, within_TNT], -1)


def _positives(target_BTKD: Tensor, same: Same | None, other_times: int | None) -> Tensor:
    """Which of the candidates of `_logits` are positives: bool (T, B x K, M)."""
    B, T, K, _ = target_BTKD.shape
    device = target_BTKD.device
    own_BB = torch.eye(B * world_size(), dtype=torch.bool, device=device)[rank() * B : (rank() + 1) * B]
    across_TBB = own_BB.expand(T, -1, -1) if same is None else same.across_TBB | own_BB
    token_KK = torch.eye(K, dtype=torch.bool, device=device)
    across_TNM = (across_TBB[:, :, None, :, None] & token_KK[:, None]).flatten(3, 4).flatten(1, 2)
    if other_times is None:
        return across_TNM
    none_BTT = torch.zeros(B, T, T, dtype=torch.bool, device=device)
    within_BTT = (none_BTT if same is None else same.within_BTT) & _far(T, other_times, device)
    return torch.cat([across_TNM, within_BTT.repeat_interleave(K, 0).transpose(0, 1)], -1)


def _far(T: int, gap: int, device: torch.device) -> Tensor:
    time_T = torch.arange(T, device=device)
    return (time_T[:, None] - time_T).abs() >= gap


@torch.no_grad()
def same_frames(batch: "Batch", config: InfoNCEConfig) -> Same:
    """Which predicted frames (all but the first of a clip) are the same, by start of the clip and by picture.

    The numbers of clips run on from one episode to the next, so that a clip that ends an episode also counts as near
    one that begins the next: rare. Pictures larger than 32 x 32 are compared at that size.
    """
    B, T = batch.pixels_BTCYX.shape[0], batch.pixels_BTCYX.shape[1] - 1
    device = batch.pixels_BTCYX.device
    across_TBB = torch.zeros(T, B, B * world_size(), dtype=torch.bool, device=device)
    within_BTT = torch.zeros(B, T, T, dtype=torch.bool, device=device)
    if config.window_tolerance is not None:
        apart_BB = (batch.index_B[:, None] - gather_ranks(batch.index_B)).abs()
        across_TBB |= apart_BB <= config.window_tolerance
    if config.picture_tolerance is not None:
        picture_BTP = thumbnails(batch.pixels_BTCYX[:, 1:])
        every_BTP = gather_ranks(picture_BTP)
        # Without the common background, products of pixels lose no digits.
        mean_P = every_BTP.mean((0, 1))
        picture_BTP, every_BTP = picture_BTP - mean_P, every_BTP - mean_P
        across_TBB |= _rms(picture_BTP.transpose(0, 1), every_BTP.transpose(0, 1)) <= config.picture_tolerance
        within_BTT |= _rms(picture_BTP, picture_BTP) <= config.picture_tolerance
    return Same(across_TBB, within_BTT)


def thumbnails(pixels_BTCYX: Tensor) -> Tensor:
    """uint8 frames as float32 grey levels, averaged down to at most 32 x 32 and flattened: (B, T, P)."""
    frames = pixels_BTCYX.flatten(0, 1).float()
    Y, X = frames.shape[-2:]
    return (
        F.adaptive_avg_pool2d(frames, (min(Y, THUMBNAIL), min(X, THUMBNAIL)))
        .flatten(1)
        .unflatten(0, pixels_BTCYX.shape[:2])
    )


def _rms(a_TNP: Tensor, b_TMP: Tensor) -> Tensor:
    """Root mean square difference of every row of a with every row of b."""
    with torch.autocast(a_TNP.device.type, enabled=False):
        product_TNM = a_TNP @ b_TMP.transpose(1, 2)
    square_TNM = a_TNP.square().sum(-1)[:, :, None] + b_TMP.square().sum(-1)[:, None] - 2 * product_TNM
    return (square_TNM / a_TNP.shape[-1]).clamp(min=0).sqrt()
