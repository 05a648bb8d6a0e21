"""V-JEPA 2-AC's weights in our predictor: the answers of the formulas, what a state becomes, a sentence per mistake."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ac_naive
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from toy_models import FACTS, toy_origin

from lewm.ac_layout import load_ac_tensors, read_ac_tensors
from lewm.checkpoint import load, save_checkpoint
from lewm.cli import main
from lewm.data.proprio import Measured
from lewm.nets.encoders import ConvConfig
from lewm.nets.predictors import ACConfig, RotaryConfig, build_predictor
from lewm.nets.predictors.ac import RELEASED
from lewm.planning.costs import CostConfig, GoalCost, Situation
from lewm.planning.fast_rollout import prepare
from lewm.world_model import ModelConfig, WorldModel

SMALL = ACConfig(context=4, width=28, layers=2, heads=2, mlp_ratio=2, state="integrated", compat=True)
NAMES = ("x", "y", "grip", *(f"camera{i}" for i in range(6)))


def world(config: Any = SMALL, names: tuple[str, ...] = NAMES[:3], width: int | None = None) -> WorldModel:
    """A model on 2 x 2 patches of 6 entries; the encoder is never asked."""
    measured = tuple(Measured("state", i, False, 0.5 - 0.1 * i, 0.4 + 0.2 * i) for i in range(len(names)))
    three = {"action_low": (-1.0,) * 3, "action_high": (1.0,) * 3}
    three |= {"action_mean": (0.1, -0.2, 0.3), "action_std": (0.5, 2.0, 0.7)}
    encoder = ConvConfig(latent_dim=ac_naive.PICTURE, channels=(4, 4, 4))
    torch.manual_seed(0)
    facts = replace(FACTS, proprio=measured, **three)
    single = replace(config, grid=None) if isinstance(config, ACConfig) else config
    model = WorldModel(ModelConfig(encoder, single, frame_skip=1, proprio=names, proprio_width=width), facts)
    extra = model.latent_dim - model.picture_dim
    model.tokens = 4
    model.predictor = build_predictor(config, model.latent_dim, model.action_dim, 4, extra)
    return model.eval().requires_grad_(False)


def clip(frames: int, states: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Patches, raw actions, raw measurements of one clip."""
    draw = torch.Generator().manual_seed(5)
    return tuple(
        torch.randn(shape, generator=draw)
        for shape in ((frames, 4, ac_naive.PICTURE), (frames, ac_naive.ACTIONS), (frames, states))
    )


def as_latent(model: WorldModel, patches_TKD: Tensor, raw_TP: Tensor | None) -> Tensor:
    """latent_BTKD of one clip; measurements as the encoder appends them."""
    if raw_TP is None or not raw_TP.numel():
        return patches_TKD[None]
    measured_TM = model.measure(raw_TP)
    return torch.cat([patches_TKD, measured_TM[:, None].expand(-1, 4, -1)], -1)[None]


@pytest.mark.parametrize("compat", [True, False])
@pytest.mark.parametrize("grid", [None, 16])
@pytest.mark.parametrize("camera", [False, True])
def test_it_answers_as_the_formulas_do(compat: bool, grid: int | None, camera: bool) -> None:
    """To raw actions and raw states, whatever our recordings' statistics are."""
    names = NAMES if camera else NAMES[:3]
    model = world(replace(SMALL, compat=compat, grid=grid, extrinsics=6 * camera), names)
    weights = ac_naive.released()
    load_ac_tensors(weights, model, Path("x"))
    patches, actions, raw = clip(3, len(names))
    found = model.predict(as_latent(model, patches, raw), actions[None])[0]
    cameras = raw[:, 3:] if camera else None
    expected = ac_naive.forward(weights, patches, actions, raw[:, :3], cameras, compat, grid or ac_naive.SIDE)
    torch.testing.assert_close(model.pictured(found), expected, rtol=1e-4, atol=1e-4)
    moved = torch.cat([raw[:, :3] + actions, raw[:, 3:]], 1)
    torch.testing.assert_close(found[:, 0, 6:], model.measure(moved), rtol=1e-5, atol=1e-5)


def test_without_a_state_it_answers_too() -> None:
    model, weights = world(names=()), ac_naive.released(states=0)
    load_ac_tensors(weights, model, Path("x"))
    patches, actions, _ = clip(2)
    found = model.predict(patches[None], actions[None])[0]
    torch.testing.assert_close(found, ac_naive.forward(weights, patches, actions), rtol=1e-4, atol=1e-4)


def test_a_cached_rollout_of_them_is_the_plain_one() -> None:
    """With a state token, a camera token and the released rotations; the window slides."""
    model = world(replace(SMALL, extrinsics=6, grid=16), NAMES).double()
    load_ac_tensors({k: v.double() for k, v in ac_naive.released().items()}, model, Path("x"))
    draw = torch.Generator().manual_seed(1)
    now, past = torch.randn(2, 2, 4, 15, generator=draw).double(), torch.randn(2, 1, 3, generator=draw).double()
    now[..., 6:] = now[..., :1, 6:]
    goal, action = torch.randn(2, 4, 15, generator=draw).double(), torch.randn(2, 5, 6, 3, generator=draw).double()
    measured = torch.randn(2, 9, generator=draw).double()
    costs = [
        GoalCost(
            model,
            None,
            CostConfig({"latent_l1": 1.0, "measured": 1.0}),
            Situation(now, past, None, measured),
            goal,
            fast,
        )(action)
        for fast in (None, prepare(model))
    ]
    torch.testing.assert_close(costs[1], costs[0], rtol=1e-9, atol=1e-9)


def test_the_released_size() -> None:
    """305 million parameters: 24 blocks of 12 w^2 + 13 w, w = 1024, and the maps of 1408 entries and 7 numbers."""
    with torch.device("meta"):
        net = build_predictor(RELEASED, 1408 + 7, 7, 256, 7)
    w = 1024
    inside = 24 * (12 * w**2 + 13 * w) + 2 * w
    count = sum(p.numel() for name, p in net.named_parameters() if not name.startswith("change"))
    assert count == inside + 1408 * w + w + w * 1408 + 1408 + 2 * (7 * w + w) == 305_213_824


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "data parallel": lambda w: {f"module.{k}": v for k, v in w.items()},
    "a release": lambda w: {
        "encoder": {"module.backbone.norm.weight": torch.ones(2)},
        "predictor": {f"module.backbone.{k}": v for k, v in w.items()},
        "epoch": 3,
        "opt": {"lr": 0.1},
    },
    "the hub": lambda w: {f"predictor.{k}": v for k, v in w.items()} | {"encoder.norm.weight": torch.ones(2)},
}


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_every_wrapping_holds_the_same_tensors(wrapping: str, tmp_path: Path) -> None:
    weights = ac_naive.released()
    torch.save(WRAPPED[wrapping](weights), tmp_path / "w.pt")
    save_file(weights, tmp_path / "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        found = read_ac_tensors(tmp_path / name)
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[key], value) for key, value in weights.items())


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Into a checkpoint of ours; the rest of it stays, and it says where the predictor comes from."""
    encoder = ConvConfig(latent_dim=6, channels=(4, 4, 4))
    torch.manual_seed(0)
    facts = replace(
        FACTS, action_low=(-1.0,) * 3, action_high=(1.0,) * 3, action_mean=(0.1,) * 3, action_std=(0.5,) * 3
    )
    model = WorldModel(ModelConfig(encoder, SMALL, frame_skip=1), facts).eval()
    save_checkpoint(tmp_path / "ours", model, None, toy_origin(), {"seed": 1})
    weights = ac_naive.released(states=0)
    save_file(weights, tmp_path / "ac.safetensors")
    words = ["import-model", str(tmp_path / "ac.safetensors"), "--into", str(tmp_path / "ours")]
    main([*words, "--out", str(tmp_path / "new")])
    assert str(tmp_path / "new") in capsys.readouterr().out
    loaded = load(tmp_path / "new").model
    torch.testing.assert_close(loaded.predictor.out.weight, weights["predictor_proj.weight"])  # type: ignore[union-attr]
    torch.testing.assert_close(loaded.encoder.state_dict(), model.encoder.state_dict())
    assert "imported_predictor" in (tmp_path / "new" / "config.json").read_text()
    with pytest.raises(SystemExit):
        main([*words, "--out", str(tmp_path / "other"), "--task", "push_t"])
    assert "--task is what" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    with pytest.raises(SystemExit):
        main([*words, "--out", str(tmp_path / "full")])
    assert "is not a lewm checkpoint; it would be replaced" in capsys.readouterr().err


def changed(**tensors: Tensor | None) -> dict[str, Tensor]:
    merged = ac_naive.released() | {name.replace("__", "."): value for name, value in tensors.items()}
    return {name: value for name, value in merged.items() if value is not None}


@pytest.mark.parametrize(
    ("model", "weights", "expected"),
    [
        (lambda: world(RotaryConfig(width=16, heads=2)), changed(), "predictor is rotary; .* need ac"),
        (lambda: world(replace(SMALL, state="predicted")), changed(), "model.predictor.state is predicted"),
        (lambda: world(replace(SMALL, layers=3)), changed(), r"predictor_blocks.2.* is missing \(12 in all\)"),
        (lambda: world(replace(SMALL, layers=1)), changed(), r"no place for tensor predictor_blocks.1.* \(12 such"),
        (lambda: world(names=()), changed(), "no place for tensor state_encoder.*in model.proprio"),
        (lambda: world(names=NAMES[:2]), changed(), r"state_encoder.weight has shape \(28, 3\); .* \(28, 2\)"),
        (lambda: world(width=3), changed(), "set model.proprio_width to null"),
        (world, changed(predictor_norm__bias=torch.full((28,), torch.nan)), "predictor_norm.bias holds NaN"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_refused_in_a_sentence(
    model: Callable[[], WorldModel], weights: dict[str, Tensor], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        load_ac_tensors(weights, model(), Path("x"))


def test_files_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"is missing: give the \.safetensors or \.pt file"):
        read_ac_tensors(tmp_path / "nowhere.pt")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"0123456789abcdef")
    for name in ("module.pt", "broken.safetensors"):
        with pytest.raises(ValueError, match="cannot be read as plain tensors, and nothing else is opened"):
            read_ac_tensors(tmp_path / name)
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="is not a mapping of names to tensors"):
        read_ac_tensors(tmp_path / "list.pt")
