"""What masked pretraining learns: of noisy waves their orientation, which a random encoder's mean token does not hold."""

import pytest
from pretrain_toys import method, train, waves

from lewm.pretrain import Pretraining
from lewm.pretrain.probe import encode
from lewm.probes import linear_probe_r2


def orientation_r2(taught: Pretraining) -> float:
    """Held-out R2 of a linear probe on the mean token of single pictures."""
    (fit, fit_state), (test, test_state) = waves(512, seed=1), waves(512, seed=2)
    features = [encode(taught.kept(), clip[:, 0], taught.normalise).mean(1) for clip in (fit, test)]
    return linear_probe_r2(features[0], fit_state, features[1], test_state).mean().item()


@pytest.mark.parametrize("name, steps", [("mae", 200), ("ijepa", 200), ("vjepa2", 150)])
def test_the_orientation_of_noisy_waves_is_learned(name: str, steps: int) -> None:
    taught = method(name)
    before = orientation_r2(taught)
    train(taught, steps)
    after = orientation_r2(taught)
    print(name, before, after)
    assert before < 0.2
    assert after > before + 0.3
