"""Methods whose loss falls with smaller latents, and what takes that way out: a BatchNorm at the end of the encoder."""

import pytest
import torch
from taught import clips, imagine, score
from toy_models import FACTS, SIZE

from lewm.data.windows import Batch
from lewm.nets.encoders import ConvConfig
from lewm.nets.predictors import MLPConfig
from lewm.objectives import ObjectiveConfig, build_objective
from lewm.objectives.data2vec import Data2VecConfig
from lewm.objectives.ema import EmaConfig
from lewm.objectives.reconstruction import DecoderConfig, ReconstructionConfig
from lewm.objectives.simsiam import SimSiamConfig
from lewm.objectives.teacher import TeacherConfig
from lewm.probes import linear_probe_r2
from lewm.world_model import ModelConfig, WorldModel

STEPS, RATE, SQUARE, STRIDE = 100, 3e-3, 6, 6
CONFIGS: dict[str, ObjectiveConfig] = {
    "ema": EmaConfig(),
    "simsiam": SimSiamConfig(),
    "data2vec": Data2VecConfig(),
    "reconstruction": ReconstructionConfig(decoder=DecoderConfig((8, 8))),
}


def fresh(batch_norm: bool, frame_skip: int = 2) -> WorldModel:
    torch.manual_seed(0)
    encoder = ConvConfig(latent_dim=8, channels=(4, 8, 8), batch_norm=batch_norm)
    return WorldModel(ModelConfig(encoder, MLPConfig(width=32), frame_skip), FACTS)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_smaller_last_layer_lowers_the_prediction_loss_unless_latents_are_standardised(name, batch_norm):
    losses, batch = [], clips(16)
    for share in (1.0, 0.5):
        model = fresh(batch_norm)
        with torch.no_grad():
            for parameter in model.encoder.out.parameters():
                parameter *= share
        torch.manual_seed(1)
        objective = build_objective(CONFIGS[name], model)
        losses.append(score(objective, *imagine(model, batch), batch).terms["prediction"].item())
    if batch_norm:
        assert losses[1] == pytest.approx(losses[0], rel=0.01)
    else:
        assert losses[1] < 0.9 * losses[0]


def moving_squares(B: int, seed: int) -> Batch:
    """Clips of a dark square on white that moves by up to STRIDE pixels a step, where the action says."""
    generator = torch.Generator().manual_seed(seed)
    room = SIZE - SQUARE
    position_BTS = torch.empty(B, 3, 2)
    position_BTS[:, 0] = room * torch.rand(B, 2, generator=generator)
    action_BTS = STRIDE * (2 * torch.rand(B, 2, 2, generator=generator) - 1)
    for t in range(2):
        position_BTS[:, t + 1] = (position_BTS[:, t] + action_BTS[:, t]).clamp(0, room)
    corner_BTS1, ticks = position_BTS.round()[..., None], torch.arange(SIZE)
    x_BTX, y_BTY = ((ticks >= corner_BTS1) & (ticks < corner_BTS1 + SQUARE)).unbind(2)
    inside_BTYX = y_BTY[..., None] & x_BTX[..., None, :]
    pixels = torch.where(inside_BTYX, 40, 230).to(torch.uint8)[:, :, None].repeat(1, 1, 3, 1, 1)
    return Batch(pixels, position_BTS.diff(dim=1) / STRIDE, position_BTS, torch.arange(B))


def learned(batch_norm: bool) -> tuple[float, float]:
    """Mean standard deviation of the latent entries after STEPS of `ema`, and R2 of the position, on new clips."""
    model = fresh(batch_norm, frame_skip=1)
    objective = build_objective(EmaConfig(teacher=TeacherConfig("constant", 0.9)), model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * min(1.0, 2 * (1 - step / STEPS))
        batch = moving_squares(32, step)
        optimizer.zero_grad()
        score(objective, *imagine(model, batch), batch).total.backward()
        optimizer.step()
        objective.after_step(model, (step + 1) / STEPS)
    model.eval()
    fit, new = moving_squares(128, 1000), moving_squares(128, 1001)
    with torch.no_grad():
        latents = [model.encode(some.pixels_BTCYX).flatten(0, 2) for some in (fit, new)]
    states = [some.state_BTS.flatten(0, 1) for some in (fit, new)]
    r2 = linear_probe_r2(latents[0], states[0], latents[1], states[1])
    return latents[1].std(0).mean().item(), r2.min().item()


def test_ema_shrinks_latents_and_with_a_batch_norm_keeps_their_scale_and_the_position():
    shrunk, _ = learned(False)
    std, r2 = learned(True)
    assert shrunk < 0.3
    assert std > 0.7 and r2 > 0.85
