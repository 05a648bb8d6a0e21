"""A peer's LeWM checkpoint: its answers to the last digits, every tensor accounted for, one sentence per mistake.

The golden numbers were written by stable-worldmodel 0.1.1 itself (its LeWM, torch 2.13, transformers 5.23) on the
checkpoint of `peer_models`; `test_the_golden_numbers_are_the_peers` computes them again wherever it is installed.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peer_models import FACTS, SMALL, normalised, open_peer, pixels, scaled_actions, tensors, write_checkpoint
from torch import Tensor

from lewm.checkpoint import load
from lewm.cli import main
from lewm.import_model import DataFacts, data_facts, import_model, read_model
from lewm.nets.encoders import ViTConfig
from lewm.nets.predictors import AdaLNConfig
from lewm.peer import PAPER, Peer
from lewm.peer_layout import describe
from lewm.schema import SchemaError
from lewm.world_model import ModelConfig, WorldModel

LATENT = [2.646538, 2.205058, -4.888388, 2.317914, 2.855993, -4.950037, 1.661026, 3.330252]
"""The first frame."""
PREDICTED = [0.852835, -1.068907, 0.096466, 0.790796, -0.732842, 0.063411, 0.515252, -0.669829]
"""What follows the third, seen with the two before it."""
ROLLED = [0.356567, -0.487344, 0.038716, 0.264246, -0.173482, 0.057094, -0.038090, -0.136378]
"""Five blocks after the first frame: the window of three has slid by then."""


def raw(scaled_BTA: Tensor) -> Tensor:
    """Actions before the scaling that FACTS describe."""
    blocks = scaled_BTA.shape[-1] // 2
    return scaled_BTA * torch.tensor(FACTS.action_std * blocks) + torch.tensor(FACTS.action_mean * blocks)


def answers(model: WorldModel, history: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, predictions and rollout of the standard input, without the axes of one token and one candidate."""
    action = raw(scaled_actions()).to(model.pixel_scale.dtype)
    latent = model.encode(pixels())
    rolled = model.rollout(latent[:, :history], action[:, : history - 1], action[:, None, history - 1 :])
    return latent[:, :, 0], model.predict(latent, action[:, :3])[:, :, 0], rolled[:, 0, :, 0]


def check_golden(model: WorldModel) -> None:
    latent, predicted, rolled = answers(model)
    for found, expected in ((latent[0, 0], LATENT), (predicted[0, -1], PREDICTED), (rolled[0, -1], ROLLED)):
        torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-5)


def test_golden(tmp_path: Path) -> None:
    model = read_model(write_checkpoint(tmp_path), FACTS)
    check_golden(model)
    for part, eps in ((model.encoder, 1e-12), (model.predictor, 1e-5)):
        norms = [module for module in part.modules() if isinstance(module, torch.nn.LayerNorm)]
        assert len(norms) == 5 and {norm.eps for norm in norms} == {eps}


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As transformers before version 5 named its ViT."""
    renamed = {}
    for name, tensor in state.items():
        if name.startswith("encoder.layers."):
            name = name.replace("encoder.layers.", "encoder.encoder.layer.").replace("mlp.fc1", "intermediate.dense")
            name = name.replace("attention.o_proj", "attention.output.dense").replace("mlp.fc2", "output.dense")
            for letter, word in zip("qkv", ("query", "key", "value")):
                name = name.replace(f"attention.{letter}_proj", f"attention.attention.{word}")
        renamed[name] = tensor
    return renamed


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


LAYOUTS: dict[str, Any] = {
    "transformers 4": old_names(tensors()),
    "data parallel": prefixed("module.", tensors()),
    "compiled": prefixed("_orig_mod.", tensors()),
    "compiled encoder": {name.replace("encoder.l", "encoder._orig_mod.l"): value for name, value in tensors().items()},
    "trainer": {"state_dict": prefixed("model.", old_names(tensors())) | {"sigreg.t": torch.ones(17)}},
    "wrapped": {"model": tensors()},
    "with a mask token": tensors() | {"encoder.embeddings.mask_token": torch.ones(1, 1, 12)},
    "half precision": {name: t.bfloat16() if t.is_floating_point() else t for name, t in tensors().items()},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_model(layout: str, tmp_path: Path) -> None:
    expected = read_model(write_checkpoint(tmp_path / "plain"), FACTS).state_dict()
    found = read_model(write_checkpoint(tmp_path / "other", LAYOUTS[layout]), FACTS).state_dict()
    for name, tensor in expected.items():
        tolerance = 2**-8 if layout == "half precision" else 0.0  # bfloat16 keeps 8 bits
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=0)


def test_every_number_has_its_place(tmp_path: Path) -> None:
    """As many numbers as the source, the same ones: nothing is dropped, repeated or left as initialised."""
    source, model = tensors(), read_model(write_checkpoint(tmp_path), FACTS)
    theirs = torch.cat([t.double().flatten() for t in source.values()]).sort().values
    ours = torch.cat([t.double().flatten() for t in model.state_dict().values()]).sort().values
    assert torch.equal(ours, theirs)


def test_config_files_of_both_projects() -> None:
    """le-wm's names classes of its own and adds two keys; a training config keeps the model in a section."""
    lewm = json.loads(json.dumps(PAPER))
    lewm["encoder"] = {"_target_": "stable_pretraining.backbone.utils.vit_hf", "size": "tiny"}
    lewm["encoder"] |= {"patch_size": 14, "image_size": 224, "pretrained": False, "use_mask_token": False}
    lewm |= {"_target_": "jepa.JEPA", "embed_dim": 192, "history_size": 3}
    lewm["predictor"]["_target_"], lewm["projector"]["_target_"] = "module.ARPredictor", "module.MLP"
    expected = ModelConfig(ViTConfig(norm_eps=1e-12), AdaLNConfig(action_smoothed=10, norm_eps=1e-5))
    for config in (PAPER, lewm, {"model": lewm, "seed": 3}):
        assert describe(config, "x", 5, 2) == (expected, 224)
    small = lewm | {"encoder": lewm["encoder"] | {"size": "small", "layer_norm_eps": 1e-6}}
    encoder = describe(small, "x", 5, 2)[0].encoder
    assert encoder == ViTConfig(width=384, heads=6, norm_eps=1e-6)


def changed(section: str, **values: Any) -> dict[str, Any]:
    return SMALL | {section: SMALL[section] | values}


CONFIG_FAULTS: dict[str, tuple[Any, str]] = {
    "no mapping": ([1], "is a mapping, not list"),
    "no predictor": ({k: v for k, v in SMALL.items() if k != "predictor"}, "section 'predictor' is missing"),
    "another model": (SMALL | {"_target_": "swm.wm.pldm.PLDM"}, "_target_ is swm.wm.pldm.PLDM; only LeWM or JEPA"),
    "another encoder": (changed("encoder", _target_="timm.vit"), "encoder._target_ is timm.vit; only vit_hf"),
    "unknown key": (changed("encoder", hidden_act="relu"), "encoder.hidden_act is unknown"),
    "unknown size": (changed("encoder", size="giant"), "encoder.size is 'giant'; it must be one of tiny"),
    "unresolved": (changed("action_encoder", input_dim="???"), r"action_encoder.input_dim is '\?\?\?'"),
    "layer norm": (changed("projector", norm_fn={"_target_": "torch.nn.LayerNorm"}), "projector: norm_fn is torch.nn"),
    "relu": (changed("pred_proj", act_fn={"_target_": "torch.nn.ReLU"}), "pred_proj: act_fn is .*has a GELU there"),
    "blocks": (
        changed("action_encoder", input_dim=10),
        "input_dim is 10, but 2 action .* 2 is 4; correct --frame-skip",
    ),
    "odd mlp": (changed("encoder", intermediate_size=50), "intermediate_size is 50; it must be a multiple of 12"),
}


@pytest.mark.parametrize("fault", CONFIG_FAULTS)
def test_another_config_is_refused(fault: str, tmp_path: Path) -> None:
    config, message = CONFIG_FAULTS[fault]
    with pytest.raises(SchemaError, match=rf"config\.json: .*{message}"):
        read_model(write_checkpoint(tmp_path, config=config), FACTS)


KEY = "predictor.transformer.layers.1.attn.to_qkv.weight"


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = tensors()
    diverged = torch.full((24, 8), torch.nan)
    for changed_state, message in (
        ({k: v for k, v in state.items() if k != KEY}, rf"tensor {KEY} is missing \(1 in all\)"),
        (state | {"stray": torch.ones(1)}, r"describes no model with tensor stray \(1 such in all\)"),
        (state | {KEY: torch.ones(8, 24)}, rf"{KEY} has shape \(8, 24\); config.json needs \(24, 8\)"),
        (state | {KEY: diverged}, rf"{KEY} holds NaN or infinity"),
        (state | {f"model.{KEY}": torch.ones(24, 8)}, f"{KEY} is there twice"),
        ({"epoch": 3, **state}, "is not a mapping of names to tensors"),
        ([1, 2], "is not a mapping of names to tensors"),
    ):
        with pytest.raises(ValueError, match=rf"weights\.pt.*{message}"):
            read_model(write_checkpoint(tmp_path, changed_state), FACTS)


def test_every_missing_tensor_is_missed(tmp_path: Path) -> None:
    for name in tensors():
        left = {k: v for k, v in tensors().items() if k != name}
        with pytest.raises(ValueError, match=f"tensor {name} is missing"):
            read_model(write_checkpoint(tmp_path, left), FACTS)


class Trap:
    """What a malicious file would run."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch sprung",)


def test_a_file_with_objects_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"cannot be read as plain tensors, .* save the model's state_dict\(\) instead"
    ):
        read_model(write_checkpoint(tmp_path, {"a": Trap()}), FACTS)
    assert not (tmp_path / "sprung").exists()
    (tmp_path / "weights.pt").write_bytes(b"broken")
    with pytest.raises(ValueError, match="cannot be read as plain tensors"):
        read_model(tmp_path, FACTS)


def test_which_file_is_meant(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "a")
    check_golden(read_model(folder / "weights.pt", FACTS))
    (folder / "weights.pt").rename(folder / "weights_epoch_10.pt")
    check_golden(read_model(folder, FACTS))
    (folder / "weights_epoch_9.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds weights_epoch_10.pt, weights_epoch_9.pt; name the one to import"):
        read_model(folder, FACTS)
    check_golden(read_model(folder / "weights_epoch_10.pt", FACTS))
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing: a LeWM checkpoint is"):
        read_model(folder / "weights_epoch_10.pt", FACTS)
    with pytest.raises(FileNotFoundError, match=r"nowhere is missing"):
        read_model(tmp_path / "nowhere", FACTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action_low": (-1.0,)}, "action_low has 1 entries and action_mean 2"),
        ({"action_low": (-1.0, 1.0)}, r"action_low is \(-1.0, 1.0\); each must be below action_high"),
        ({"action_mean": (0.0, float("nan"))}, "action_mean is .*; every entry must be finite"),
        ({"action_std": (1.0, 1e-4)}, "action_std is .*; each must be at least 0.001"),
        ({"frame_skip": 0}, "frame_skip is 0 and control_dt 0.1; both must be positive"),
    ],
)
def test_facts_that_cannot_be(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(FACTS, **change)


def test_facts_from_options_and_a_file(tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    stats.write_text(json.dumps({"action_mean": [0.1, -0.2], "action_std": [9, 9], "action_low": [-1, -1]}))
    given = {"task": "two_room", "action_std": [0.5, 2.0], "action_high": [1.0, 1.0], "frame_skip": 2}
    assert data_facts(given | {"action_mean": None}, stats) == FACTS
    with pytest.raises(
        SchemaError, match=r"--action-low is missing and the checkpoint does not say it: .*--stats FILE"
    ):
        data_facts(given, None)
    stats.write_text(json.dumps({"action_men": [0.1]}))
    with pytest.raises(SchemaError, match="action_men is unknown; did you mean action_mean"):
        data_facts(given | {"action_mean": [0.0, 0.0], "action_low": [-1.0, -1.0]}, stats)


OPTIONS = ["--task", "two_room", "--frame-skip", "2", "--action-mean", "0.1", "-0.2", "--action-std", "0.5", "2"]
BOUNDS = ["--action-low", "-1", "-1", "--action-high", "1", "1"]


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write_checkpoint(tmp_path / "theirs"), tmp_path / "ours"
    for _ in range(2):  # the second replaces the first
        main(["import-model", str(source), "--out", str(out), *OPTIONS, *BOUNDS])
    assert f"checkpoint {out}\n" in capsys.readouterr().out
    loaded = load(out)
    check_golden(loaded.model)
    assert loaded.model.facts.action_low == (-1.0, -1.0) and loaded.model.config.frame_skip == 2
    assert (loaded.origin.task, loaded.origin.settings, loaded.origin.held_out) == ("two_room", {"size": 14}, 0.0)
    imported = json.loads((out / "config.json").read_text())["training"]["imported"]
    assert imported["config"] == SMALL and len(imported["sha256"]) == 64
    with pytest.raises(SystemExit) as stopped:
        main(["import-model", str(source), "--out", str(out), *OPTIONS])
    assert stopped.value.code == 2 and "--action-low is missing" in capsys.readouterr().err


def test_what_is_no_checkpoint_is_not_replaced(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "theirs")
    with pytest.raises(ValueError, match="theirs exists and is not a lewm checkpoint; it would be replaced"):
        import_model(source, source, FACTS)
    assert (source / "weights.pt").is_file()


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    with open_peer() as opened:
        yield opened


@pytest.mark.peers
def test_the_golden_numbers_are_the_peers(peer: Peer, tmp_path: Path) -> None:
    peer.ask("load", folder=str(write_checkpoint(tmp_path)), device="cpu")
    found = peer.answer(normalised(pixels()), scaled_actions())
    for name, index, expected in (("latent", 0, LATENT), ("predicted", -1, PREDICTED), ("rollout", -1, ROLLED)):
        torch.testing.assert_close(found[name][0, index], torch.tensor(expected), rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ViTConfig(norm_eps=0.0), "norm_eps is 0.0; it must be positive"),
        (lambda: AdaLNConfig(norm_eps=-1.0), "norm_eps is -1.0; it must be positive"),
        (lambda: AdaLNConfig(action_smoothed=0), "action_smoothed is 0; it must be at least 1, or null"),
    ],
)
def test_settings_that_the_import_needs(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


PAPER_FACTS = DataFacts("x", (-1.0, -1.0), (1.0, 1.0), (0.1, -0.2), (0.5, 2.0))


@pytest.mark.peers
@pytest.mark.parametrize("size", ["small", "paper"])
@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
def test_it_answers_as_the_peer_does(size: str, double: bool, peer: Peer, tmp_path: Path) -> None:
    """With random weights made by the peer: latents, predictions and rollouts after one and after two frames.

    Measured largest difference: 4e-6 in float32 and 2e-7 in float64, where the pixel scaling of both stays in float32.
    """
    config, facts = (SMALL, FACTS) if size == "small" else (PAPER, PAPER_FACTS)
    peer.make(config, 0, tmp_path / "model")
    model = read_model(tmp_path / "model", facts)
    generator = torch.Generator().manual_seed(0)
    side, width = model.facts.size, model.action_dim
    frames = torch.randint(0, 256, (2, 3, 3, side, side), dtype=torch.uint8, generator=generator)
    scaled = torch.randn(2, 6, width, generator=generator)
    model = model.double() if double else model
    action, dtype = raw(scaled).to(model.pixel_scale.dtype), model.pixel_scale.dtype
    latent = model.encode(frames)
    for history in (1, 2):
        theirs = peer.answer(normalised(frames).to(dtype), scaled.to(dtype), history, double)
        rolled = model.rollout(latent[:, :history], action[:, : history - 1], action[:, None, history - 1 :])
        ours = {"latent": latent[:, :, 0], "predicted": model.predict(latent, action[:, :3])[:, :, 0]}
        for name, found in (ours | {"rollout": rolled[:, 0, :, 0]}).items():
            assert theirs[name].dtype == dtype and theirs[name].std() > 0.1
            torch.testing.assert_close(found, theirs[name], rtol=0, atol=1e-6 if double else 1e-5)
