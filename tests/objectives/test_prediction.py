import math

import pytest
import torch
from torch.testing import assert_close

from lewm.objectives import PredictionConfig, prediction_loss

# One clip of three frames, one token, two dimensions; the frames to predict are (0, 2) and (3, 4).
LATENT = torch.tensor([[[[9.0, 9.0]], [[0.0, 2.0]], [[3.0, 4.0]]]])
GUESS = torch.tensor([[[[1.0, 0.0]], [[3.0, 0.0]]]])


@pytest.mark.parametrize(
    "distance, expected",
    [
        ("l2", (1 + 4 + 0 + 16) / 4),
        ("l1", (1 + 2 + 0 + 4) / 4),
        ("cosine", ((1 - 0.0) + (1 - 0.6)) / 2),
    ],
)
def test_distances_by_hand(distance, expected):
    loss = prediction_loss(LATENT, (GUESS,), PredictionConfig(distance=distance))
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("distance", ["l2", "l1", "cosine"])
def test_entry_t_is_compared_with_frame_t_plus_one(distance):
    config = PredictionConfig(distance=distance)
    assert prediction_loss(LATENT, (LATENT[:, 1:],), config).item() == pytest.approx(0.0, abs=1e-6)
    assert prediction_loss(LATENT, (LATENT[:, :-1],), config).item() > 0.01


def test_several_modes_are_averaged():
    config = PredictionConfig()
    one = prediction_loss(LATENT, (GUESS,), config)
    assert_close(prediction_loss(LATENT, (GUESS, LATENT[:, 1:]), config), one / 2)
    assert_close(prediction_loss(LATENT, (GUESS, GUESS), config), one)


@pytest.mark.parametrize("stop_gradient", [False, True])
@pytest.mark.parametrize("distance", ["l2", "l1", "cosine"])
def test_stop_gradient_leaves_only_the_prediction_trainable(distance, stop_gradient):
    latent, guess = LATENT.clone().requires_grad_(), GUESS.clone().requires_grad_()
    prediction_loss(latent, (guess,), PredictionConfig(distance, stop_gradient)).backward()
    assert guess.grad is not None and guess.grad.abs().sum() > 0
    assert (latent.grad is None) == stop_gradient
    if latent.grad is not None:
        assert latent.grad[:, 0].abs().sum() == 0  # the first frame is predicted by nobody
        assert latent.grad[:, 1:].abs().sum() > 0


def test_l2_gradients_by_hand():
    latent, guess = LATENT.clone().requires_grad_(), GUESS.clone().requires_grad_()
    prediction_loss(latent, (guess,), PredictionConfig()).backward()
    expected = 2 * (GUESS - LATENT[:, 1:]) / 4
    assert_close(guess.grad, expected)
    assert_close(latent.grad[:, 1:], -expected)


def test_half_precision_is_compared_in_float32():
    loss = prediction_loss(LATENT.bfloat16(), (GUESS.bfloat16(),), PredictionConfig())
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(5.25)
    assert prediction_loss(LATENT.double(), (GUESS.double(),), PredictionConfig()).dtype == torch.float64


def test_cosine_of_a_collapsed_latent_is_finite_with_finite_gradient():
    latent, guess = torch.zeros(2, 3, 1, 4, requires_grad=True), torch.zeros(2, 2, 1, 4, requires_grad=True)
    loss = prediction_loss(latent, (guess,), PredictionConfig("cosine"))
    loss.backward()
    assert math.isfinite(loss.item()) and guess.grad.isfinite().all() and latent.grad.isfinite().all()


def test_faults_are_named():
    with pytest.raises(ValueError, match="no prediction to score"):
        prediction_loss(LATENT, (), PredictionConfig())
    with pytest.raises(ValueError, match=r"shape \(1, 3, 1, 2\), but .* have shape \(1, 2, 1, 2\)"):
        prediction_loss(LATENT, (LATENT,), PredictionConfig())
    with pytest.raises(ValueError, match="from the second on"):
        prediction_loss(LATENT[:, :1], (LATENT[:, 1:1],), PredictionConfig())
    with pytest.raises(ValueError, match="prediction weight is -1"):
        PredictionConfig(weight=-1)
