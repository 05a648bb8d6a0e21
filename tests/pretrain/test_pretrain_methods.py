"""Every method: its loss by an independent formula, who gets a gradient, who moves, and what equals what."""

import math
import typing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pretrain_toys import BLOCKS, CONFIGS, PREDICTOR, SMALL, generator, method, setup, waves
from torch import Tensor

from lewm.nets.pretrained import PretrainedFacts, load_pretrained_encoder
from lewm.nets.token_vit import TokenViT, TokenViTFacts
from lewm.objectives.teacher import TeacherConfig
from lewm.pretrain import (
    PRETRAIN,
    CJepaConfig,
    Data2VecConfig,
    DistillConfig,
    IJepaConfig,
    MaeConfig,
    MethodConfig,
    Pretraining,
    VJepa2Config,
    VJepa21Config,
    VJepaConfig,
    build_method,
)
from lewm.pretrain.cjepa import CJepa
from lewm.pretrain.config import PretrainRun
from lewm.pretrain.folder import save_encoder
from lewm.pretrain.masks import Masks, TubeConfig, block_mask, multi_block, tubes
from lewm.pretrain.predictor import MaskPredictor
from lewm.pretrain.tubes import ClipStage
from lewm.pretrain.vjepa21 import ramp, spaced_levels

MOVING = ("ijepa", "cjepa", "data2vec", "vjepa", "vjepa2", "vjepa21")
"""Methods with an EMA teacher."""


def write_teacher(path: Path, facts: TokenViTFacts, frames: int = 1, mean: float = 0.5, width: int = 24) -> Path:
    """An encoder folder of fresh weights."""
    torch.manual_seed(9)
    size = replace(SMALL, width=width)
    about = PretrainedFacts(size, facts, 16, frames, (mean,) * 3, (0.25,) * 3, True)
    save_encoder(path, TokenViT(size, facts), about, PretrainRun(IJepaConfig()), "waves", None)
    return path


@pytest.fixture
def teacher_folder(tmp_path: Path) -> Path:
    return write_teacher(tmp_path / "teacher", TokenViTFacts(video=True, tubelet=2), 4)


def build(name: str, folder: Path) -> Pretraining:
    if name != "distill":
        return method(name)
    torch.manual_seed(0)
    return build_method(DistillConfig(str(folder), predictor=PREDICTOR), setup())


def clip_for(taught: Pretraining, batch: int = 6) -> Tensor:
    return waves(batch, taught.clip_shape(0.5).frames)[0]


def layer_norm(x: Tensor) -> Tensor:
    """By hand, without parameters."""
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()


def pick(x_SD: Tensor, index_P: Tensor) -> Tensor:
    return torch.stack([x_SD[int(i)] for i in index_P])


def test_every_method_is_tested() -> None:
    assert set(CONFIGS) | {"distill"} == set(PRETRAIN)
    assert {config.__dataclass_fields__["name"].default for config in typing.get_args(MethodConfig)} == set(PRETRAIN)


@pytest.mark.parametrize("name", sorted(PRETRAIN))
def test_gradients_reach_all_that_is_trained_and_no_teacher(name: str, teacher_folder: Path) -> None:
    taught = build(name, teacher_folder)
    losses = taught(clip_for(taught), 0.5, generator())
    assert losses.total.isfinite() and all(term >= 0 for term in losses.terms.values())
    losses.total.backward()
    for key, parameter in taught.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, key
            assert parameter.grad.abs().sum() > 0, key
        else:
            assert parameter.grad is None and key.startswith(("teacher.", "ijepa.teacher.", "average.")), key
    assert set(losses.metrics) == {"target_std", "prediction_std"}


@pytest.mark.parametrize("name", sorted(PRETRAIN))
def test_losses_are_a_function_of_clip_and_seed(name: str, teacher_folder: Path) -> None:
    first, again = build(name, teacher_folder), build(name, teacher_folder)
    clip = clip_for(first)
    assert torch.equal(first(clip, 0.5, generator()).total, again(clip, 0.5, generator()).total)
    assert not torch.equal(first(clip, 0.5, generator(1)).total, again(clip, 0.5, generator(2)).total)


@pytest.mark.parametrize("name", MOVING)
def test_the_gradient_step_leaves_the_teacher_alone_and_the_average_moves_it(name: str) -> None:
    taught = method(name)
    followed = taught.ijepa if isinstance(taught, CJepa) else taught
    student, teacher = followed.encoder, followed.teacher.encoder
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(), strict=True))
    before = [p.clone() for p in teacher.parameters()]
    taught(clip_for(taught), 0.0, generator()).total.backward()
    torch.optim.SGD([p for p in taught.parameters() if p.requires_grad], 0.5).step()
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(before, student.parameters(), strict=True))
    taught.after_step(0.5)
    for old, now, new in zip(before, teacher.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * old + 0.1 * new)


def test_published_momenta() -> None:
    momenta = {c.name: (c.teacher.schedule, c.teacher.momentum) for c in (IJepaConfig(), VJepaConfig(), VJepa2Config())}
    assert momenta == {"ijepa": ("linear", 0.996), "vjepa": ("linear", 0.998), "vjepa2": ("constant", 0.99925)}
    assert Data2VecConfig().teacher.momentum == 0.9998 and VJepa21Config().teacher.momentum == 0.99925


def test_ijepa_by_hand() -> None:
    clip = waves(3)[0]
    for kind, score in (
        ("smooth_l1", lambda e: torch.where(e.abs() < 1, 0.5 * e**2, e.abs() - 0.5)),
        ("l2", lambda e: e**2),
        ("l1", lambda e: e.abs()),
    ):
        taught = method("ijepa", distance=kind)
        masks = multi_block((1, 4, 4), BLOCKS, 3, generator(4))
        target = layer_norm(taught.encoder(clip))  # teacher and student are the same yet
        errors = []
        for b in range(3):
            context = taught.encoder(clip[b : b + 1], masks.context_BN[b : b + 1])
            for group in masks.target_BMP[b]:
                alone = Masks(masks.context_BN[b : b + 1], group[None, None])
                guess = taught.predictor(context, alone, (1, 4, 4))[0][0, 0]
                errors.append(score(guess - pick(target[b], group)))
        found = taught(clip, 0.5, generator(4)).terms["prediction"]
        torch.testing.assert_close(found, torch.stack(errors).mean())


def test_vjepa_by_hand() -> None:
    taught, clip = method("vjepa"), waves(3, 4)[0]
    target, source, losses = layer_norm(taught.encoder(clip)), generator(4), []
    for kind, tube in enumerate(VJepaConfig().masks):
        masks = tubes((2, 4, 4), tube, 3, source)
        guess, visible = taught.predictor(taught.encoder(clip, masks.context_BN), masks, (2, 4, 4), kind)
        assert visible is None
        wanted = torch.stack([pick(target[b], masks.target_BMP[b, 0]) for b in range(3)])
        losses.append((guess[:, 0] - wanted).abs().mean())
    torch.testing.assert_close(taught(clip, 0.5, generator(4)).total, (losses[0] + losses[1]) / 2)


def test_vjepa21_by_hand() -> None:
    """Clips alone: both levels are predicted from both; visible tokens are weighted by distance and the warm-up."""
    one = (TubeConfig(2, 0.3),)
    taught, clip = method("vjepa21", images=0.0, masks=one, context_start=0.0, context_full=1.0), waves(3, 4)[0]
    masks = tubes((2, 4, 4), one[0], 3, generator(4))
    out = taught.encoder.outputs(clip)
    target = torch.cat([layer_norm(taught.encoder.norms[i](out[i])) for i in range(2)], -1)
    context = torch.cat(taught.encoder.levels(clip, masks.context_BN), -1)
    guess, answers = taught.predictor(context, masks, (2, 4, 4))
    hidden, visible = [], []
    for b in range(3):
        hidden.append((guess[b, 0] - pick(target[b], masks.target_BMP[b, 0])).abs())
        for i, token in enumerate(masks.context_BN[b].tolist()):
            here = (token // 16, token // 4 % 4, token % 4)
            gap = min(math.dist(here, (t // 16, t // 4 % 4, t % 4)) for t in masks.target_BMP[b, 0].tolist())
            visible.append((answers[b, i] - target[b, token]).abs().mean() / math.sqrt(gap))
    losses = taught(clip, 0.25, generator(4))
    torch.testing.assert_close(losses.terms["prediction"], torch.stack(hidden).mean())
    torch.testing.assert_close(losses.terms["context"], torch.stack(visible).mean())
    assert losses.weights == {"prediction": 1.0, "context": pytest.approx(0.5 * 0.25)}


def test_data2vec_by_hand() -> None:
    taught, clip = method("data2vec", top=2, beta=0.5), waves(3)[0]
    mask = block_mask((1, 4, 4), 0.6, 2, 3.0, 3, generator(4))
    target = layer_norm(sum(layer_norm(level) for level in taught.encoder.outputs(clip)) / 2)
    student = taught.encoder.outputs(clip, hidden=(mask, taught.hidden_D))[-1]
    error = (taught.head(taught.encoder.norms[0](student)) - target)[mask]
    by_hand = torch.where(error.abs() < 0.5, error**2, error.abs() - 0.25).mean()
    torch.testing.assert_close(taught(clip, 0.5, generator(4)).total, by_hand)


def test_data2vec_of_the_last_block_without_a_second_norm_has_ijepas_target() -> None:
    from lewm.pretrain.data2vec import top_average

    taught, clip = method("data2vec"), waves(2)[0]
    last = taught.encoder.outputs(clip)[-1]
    torch.testing.assert_close(top_average([last], False), layer_norm(last))


def test_mae_by_hand_and_only_hidden_patches_count() -> None:
    taught, clip = method("mae"), waves(3)[0]
    captured: list[Masks] = []
    taught.decoder.register_forward_pre_hook(lambda _, args: captured.append(args[1]))
    loss = taught(clip, 0.5, generator(4)).total
    (masks,) = captured
    assert masks.target_BMP.shape == (3, 1, 12)
    painted, _ = taught.decoder(taught.encoder(clip, masks.context_BN), masks, (1, 4, 4))
    errors = []
    for b in range(3):
        for i, token in enumerate(masks.target_BMP[b, 0].tolist()):
            y, x = 4 * (token // 4), 4 * (token % 4)
            patch = clip[b, 0, :, y : y + 4, x : x + 4].flatten()
            wanted = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
            errors.append((painted[b, 0, i] - wanted).square())
    torch.testing.assert_close(loss, torch.stack(errors).mean())


def test_mae_of_a_decoder_that_paints_the_mean() -> None:
    """With patches normalised by their unbiased variance an empty canvas costs (n - 1) / n, of n pixels times colours.

    What is visible does not count: changed where it is visible, a picture costs the same.
    """
    taught, clip = method("mae"), waves(3)[0]
    torch.nn.init.zeros_(taught.decoder.out.weight)
    loss = taught(clip, 0.5, generator(4)).total.item()
    assert loss == pytest.approx(47 / 48, abs=1e-4)
    raw = method("mae", normalise_patches=False)
    torch.nn.init.zeros_(raw.decoder.out.weight)
    masks: list[Masks] = []
    raw.decoder.register_forward_pre_hook(lambda _, args: masks.append(args[1]))
    before = raw(clip, 0.5, generator(4)).total
    cells = F.pixel_unshuffle(clip[:, 0], 4).flatten(2)
    for b in range(3):
        cells[b, :, masks[0].context_BN[b]] += 5.0
    brighter = F.pixel_shuffle(cells.unflatten(2, (4, 4)), 4)[:, None]
    torch.testing.assert_close(raw(brighter, 0.5, generator(4)).total, before)


def gradients(taught: Pretraining, clip: Tensor, progress: float = 0.5) -> tuple[Tensor, dict[str, Tensor]]:
    loss = taught(clip, progress, generator(4)).total
    loss.backward()
    return loss, {key: p.grad for key, p in taught.named_parameters() if p.grad is not None}


def test_vjepa21_with_one_level_and_nothing_else_is_vjepa2_bit_for_bit() -> None:
    clip = waves(4, 4)[0]
    plain = {"levels": 1, "context": 0.0, "images": 0.0}
    (loss, ours), (other, theirs) = (gradients(m, clip) for m in (method("vjepa21", **plain), method("vjepa2")))
    assert torch.equal(loss, other) and ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_cjepa_of_weight_0_is_ijepa_bit_for_bit() -> None:
    clip, masks = waves(4)[0], CONFIGS["cjepa"].masks
    (loss, ours), (other, theirs) = (
        gradients(m, clip) for m in (method("cjepa", weight=0.0), method("ijepa", masks=masks))
    )
    assert torch.equal(loss, other)
    assert all(torch.equal(ours[f"ijepa.{key}"], grad) for key, grad in theirs.items())


def test_cjepa_terms_by_hand() -> None:
    taught, clip = method("cjepa"), waves(8)[0]
    seen: list[Tensor] = []
    taught.projector.register_forward_hook(lambda _, args, out: seen.append(out))
    losses = taught(clip, 0.5, generator(4))
    first, second = seen
    hinge = [torch.relu(1 - (view.var(0) + 1e-4).sqrt()).mean() for view in seen]
    energy = [(torch.cov(v.T).square().sum() - torch.cov(v.T).diagonal().square().sum()) / 16 for v in seen]
    torch.testing.assert_close(losses.terms["variance"], (hinge[0] + hinge[1]) / 2)
    torch.testing.assert_close(losses.terms["covariance"], (energy[0] + energy[1]) / 2)
    torch.testing.assert_close(losses.terms["similarity"], (first - second).square().mean())
    coefficients = {"prediction": 1.0, "similarity": 0.025, "variance": 0.025, "covariance": 0.001}
    assert losses.weights == pytest.approx(coefficients)


def test_a_collapsed_context_costs_cjepa_its_hinge() -> None:
    taught, clip = method("cjepa"), waves(4)[0]
    torch.nn.init.zeros_(taught.projector.down.weight)
    terms = taught(clip, 0.5, generator()).terms
    assert terms["variance"].item() == pytest.approx(0.99) and terms["similarity"].item() == 0


def test_levels_are_spaced_as_published() -> None:
    assert spaced_levels(12, 4) == (2, 5, 8, 11)
    assert spaced_levels(24, 4) == (5, 11, 17, 23)
    assert spaced_levels(40, 4) == (9, 19, 29, 39)
    assert spaced_levels(6, 3) == (1, 3, 5)
    assert spaced_levels(6, 4) == (1, 2, 4, 5)
    assert spaced_levels(6, 1) == (5,)


def test_the_context_weight_waits_and_then_rises() -> None:
    assert [ramp(p, 0.1, 0.3) for p in (0, 0.1, 0.2, 0.3, 1)] == pytest.approx([0, 0, 0.5, 1, 1])
    taught, clip = method("vjepa21"), waves(4, 4)[0]
    weights = [taught(clip, p, generator()).weights for p in (0.05, 0.165, 0.5)]
    assert [w["context"] for w in weights] == pytest.approx([0, 0.125, 0.25])
    assert [w["image_context"] for w in weights] == pytest.approx([0, 0.175, 0.35])
    assert weights[0]["prediction"] == weights[0]["image_prediction"] == 0.5


def test_stages_grow_clips_and_pictures() -> None:
    config = VJepa2Config()
    shapes = [(config.clip_shape(p).frames, config.clip_shape(p).shrink) for p in (0, 0.29, 0.31, 0.99)]
    assert shapes == [(4, 2), (4, 2), (8, 1), (8, 1)]


def test_predictions_know_where_they_are_made_and_which_kind_of_mask_it_is() -> None:
    torch.manual_seed(0)
    predictor = MaskPredictor(PREDICTOR, TokenViT(SMALL, TokenViTFacts()), out=24, kinds=2)
    torch.nn.init.normal_(predictor.mask_token_KD)
    predictor.blocks[0].attention.qkv.weight.data *= 50  # fresh weights hardly look at positions
    context = torch.randn(1, 3, 24, generator=generator())
    masks = Masks(torch.tensor([[0, 1, 2]]), torch.tensor([[[7], [15]]]))
    one, _ = predictor(context, masks, (1, 4, 4), 0)
    two, _ = predictor(context, masks, (1, 4, 4), 1)
    assert one.shape == (1, 2, 1, 24)
    assert (one[0, 0] - one[0, 1]).abs().max() > 1e-3 and (one - two).abs().max() > 1e-3
    alone, _ = predictor(context, Masks(masks.context_BN, masks.target_BMP[:, 1:]), (1, 4, 4), 0)
    torch.testing.assert_close(alone[0, 0], one[0, 1])  # groups do not see each other


def test_distillation_asks_for_the_teachers_tokens(teacher_folder: Path) -> None:
    taught = build("distill", teacher_folder)
    clip = clip_for(taught)
    frozen = load_pretrained_encoder(teacher_folder)
    torch.testing.assert_close(taught.teacher.targets(clip), layer_norm(frozen.vit(clip)), rtol=1e-3, atol=1e-3)
    before = {key: value.clone() for key, value in taught.teacher.state_dict().items()}
    taught(clip, 0.5, generator()).total.backward()
    torch.optim.SGD([p for p in taught.parameters() if p.requires_grad], 0.5).step()
    taught.after_step(1.0)
    assert all(torch.equal(value, before[key]) for key, value in taught.teacher.state_dict().items())
    assert taught.kept() is not taught.encoder
    for kept, student in zip(taught.kept().parameters(), taught.encoder.parameters(), strict=True):
        assert not kept.requires_grad and kept.shape == student.shape


def test_a_teacher_of_other_recordings_gets_pictures_normalised_as_it_wants_them(tmp_path: Path) -> None:
    folder = write_teacher(tmp_path / "brighter", TokenViTFacts(), mean=0.3, width=36)
    taught = build("distill", folder)
    assert taught.clip_shape(0.0).frames == 1 and taught.predictor.out.out_features == 36
    clip = clip_for(taught)
    pixels = clip * 0.25 + 0.5  # ours: mean 0.5, deviation 0.25
    expected = layer_norm(load_pretrained_encoder(folder).vit((pixels - 0.3) / 0.25))
    torch.testing.assert_close(taught.teacher.targets(clip), expected, rtol=1e-3, atol=1e-3)


def test_a_student_of_a_teacher_with_an_image_path_learns_pictures_too(tmp_path: Path) -> None:
    facts = TokenViTFacts(video=True, tubelet=2, image_path=True, levels=(0, 1))
    taught = build("distill", write_teacher(tmp_path / "dual", facts, 4))
    losses = taught(clip_for(taught), 0.5, generator())
    assert set(losses.terms) == {"prediction", "context", "image_prediction", "image_context"}
    losses.total.backward()
    assert taught.encoder.embed_image.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "config, message",
    [
        (lambda: VJepaConfig(frames=3), "frames is 3 and tubelet 2"),
        (lambda: VJepaConfig(masks=()), "masks is empty"),
        (lambda: VJepa2Config(stages=(ClipStage(0.5, 4),)), r"stages end at \[0.5\]; .* the last must be 1"),
        (lambda: VJepa2Config(stages=(ClipStage(1.0, 5),)), "frames is 5 and tubelet 2"),
        (lambda: ClipStage(0.0, 4), "stage until 0.0"),
        (lambda: VJepa21Config(images=1.0), "images is 1.0"),
        (lambda: VJepa21Config(context_start=0.5), "context_start is 0.5 and context_full 0.22"),
        (lambda: VJepa21Config(levels=0), "levels is 0"),
        (lambda: CJepaConfig(masks=BLOCKS), "masks.maskings is 1; the similarity of views needs 2"),
        (lambda: CJepaConfig(weight=-1.0), "weight is -1.0"),
        (lambda: Data2VecConfig(masked=1.0), "masked is 1.0"),
        (lambda: Data2VecConfig(beta=0.0), "beta is 0.0"),
        (lambda: MaeConfig(masked=0.0), "masked is 0.0"),
        (lambda: DistillConfig("x", average=1.0), "average is 1.0"),
        (lambda: method("vjepa21", levels=3), "levels is 3, but the encoder has 2 blocks"),
        (lambda: method("data2vec", top=3), "top is 3, but the encoder has 2 blocks"),
        (lambda: method("mae", masked=0.99), "leaves none of 16 patches visible"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(config, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config()


def test_a_teacher_that_does_not_fit_is_refused(teacher_folder: Path, tmp_path: Path) -> None:
    config = DistillConfig(str(teacher_folder), predictor=PREDICTOR)
    with pytest.raises(ValueError, match="pictures of 16 and patches of 4 pixels; the student has 3, 16 and 8"):
        build_method(config, setup(replace(SMALL, patch=8)))
    with pytest.raises(ValueError, match=r"frames is 3; teacher .* takes multiples of 2"):
        build_method(replace(config, frames=3), setup())
    with pytest.raises(FileNotFoundError, match="is not an encoder folder"):
        build_method(DistillConfig(str(tmp_path)), setup())


def test_a_collapse_ends_the_training_where_it_is_asked_to() -> None:
    teacher = TeacherConfig("constant", 0.9, on_collapse="error", min_target_std=10.0, grace=0.0)
    taught = method("ijepa", teacher=teacher)
    taught(clip_for(taught), 0.5, generator())
    with pytest.raises(RuntimeError, match=r"target_std is .*, below 10.0"):
        taught.after_step(0.5)
