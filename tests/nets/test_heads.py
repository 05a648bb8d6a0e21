"""Links: what they compute, whom they give a gradient, and that every encoder and predictor ends with its own."""

import math
from dataclasses import replace

import pytest
import test_encoders
import test_predictors
import torch

from lewm.nets.encoders import build_encoder
from lewm.nets.heads import LINKS
from lewm.nets.predictors import build_predictor

RECTIFYING = sorted(LINKS.keys() - {"identity"})
X = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("name", RECTIFYING)
def test_rectifying_links_are_relu_to_the_bit(name: str) -> None:
    assert LINKS[name](X).tolist() == [0, 0, 0, 0.5, 3]
    assert LINKS["identity"](X).tolist() == X.tolist()
    many = torch.randn(1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(LINKS[name](many), many.clamp(min=0))


def test_relu_passes_gradients_through_positive_entries_only() -> None:
    x = X.clone().requires_grad_()
    LINKS["relu"](x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 0, 0, 1, 1]


def test_rep_relu_has_the_gradient_of_gelu() -> None:
    """d/dx x Phi(x) = Phi(x) + x phi(x): above zero from -0.75 on, where a dead entry can come back."""
    x = X.clone().requires_grad_()
    LINKS["rep_relu"](x).sum().backward()
    by_hand = [
        0.5 * (1 + math.erf(v / math.sqrt(2))) + v * math.exp(-(v**2) / 2) / math.sqrt(2 * math.pi) for v in X.tolist()
    ]
    assert x.grad is not None and x.grad.tolist() == pytest.approx(by_hand, abs=1e-12)
    assert x.grad[1] > 0 and x.grad[0] < 0


@pytest.mark.parametrize("link", RECTIFYING)
@pytest.mark.parametrize("name", [name for name, (config, _) in test_encoders.SMALL.items() if hasattr(config, "link")])
def test_an_encoder_ends_with_its_link(name: str, link: str) -> None:
    config, size = test_encoders.SMALL[name]
    found = []
    for each in ("identity", link):
        torch.manual_seed(0)
        found.append(build_encoder(replace(config, link=each), 3, size)(test_encoders.pixels(6, size=size)))  # type: ignore[arg-type]
    assert (found[0] < 0).any()
    assert torch.equal(found[1], found[0].clamp(min=0))


@pytest.mark.parametrize("link", RECTIFYING)
@pytest.mark.parametrize(("name", "tokens"), test_predictors.CASES)
def test_a_predictor_ends_with_its_link(name: str, tokens: int, link: str) -> None:
    """After the residual connection, where there is one."""
    found = []
    for each in ("identity", link):
        torch.manual_seed(0)
        config = replace(test_predictors.SMALL[name][0], link=each)  # type: ignore[arg-type]
        predictor = build_predictor(config, test_predictors.D, test_predictors.A, tokens).eval()
        found.append(predictor(*test_predictors.window(tokens)))
    assert (found[0] < 0).any()
    assert torch.equal(found[1], found[0].clamp(min=0))


def test_an_unknown_link_is_refused() -> None:
    for config in (test_encoders.SMALL["conv"][0], test_encoders.SMALL["vit"][0]):
        with pytest.raises(ValueError, match="link is 'silu'; it must be one of identity, relu, rep_relu"):
            replace(config, link="silu")  # type: ignore[arg-type]
    for predictor, _ in test_predictors.SMALL.values():
        with pytest.raises(ValueError, match="link is 'silu'; it must be one of identity, relu, rep_relu"):
            replace(predictor, link="silu")  # type: ignore[arg-type]
