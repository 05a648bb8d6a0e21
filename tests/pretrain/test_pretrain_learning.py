"""What masked pretraining learns: the orientation of noisy waves, which a random encoder's mean token does not hold."""

import pytest
from pretrain_toys import method, train, waves

from lewm.pretrain import Pretraining
from lewm.pretrain.masks import TubeConfig
from lewm.pretrain.probe import encode
from lewm.pretrain.tubes import ClipStage
from lewm.probes import linear_probe_r2


def orientation_r2(taught: Pretraining) -> float:
    """Held-out R2 of a linear probe on the mean token of single pictures."""
    (fit, fit_state), (test, test_state) = waves(512, seed=1), waves(512, seed=2)
    features = [encode(taught.kept(), clip[:, 0], taught.normalise).mean(1) for clip in (fit, test)]
    return linear_probe_r2(features[0], fit_state, features[1], test_state).mean().item()


CHANGES = {"vjepa2": {"stages": (ClipStage(1.0, 2),), "masks": (TubeConfig(4, 0.15),)}}
"""Short clips under one kind of mask: a third of the time."""


@pytest.mark.parametrize("name, steps", [("mae", 120), ("ijepa", 150), ("vjepa2", 200)])
def test_the_orientation_of_noisy_waves_is_learned(name: str, steps: int) -> None:
    taught = method(name, **CHANGES.get(name, {}))
    before = orientation_r2(taught)
    train(taught, steps)
    after = orientation_r2(taught)
    # Measured: -0.05 to -0.06 before; 0.86, 0.80 and 0.49 after.
    assert before < 0.1
    assert after > before + 0.3
