"""Checkpoints: what was saved comes back exactly; what is damaged is refused by name."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_models import toy_head, toy_model, toy_origin

import lewm
from lewm.checkpoint import load, save_checkpoint
from lewm.cost_to_go import CostToGoConfig
from lewm.nets.predictors import AdaLNConfig, MLPConfig, RotaryConfig
from lewm.schema import SchemaError

PREDICTORS = {
    "mlp": MLPConfig(width=16),
    "adaln": AdaLNConfig(layers=1, heads=2, head_dim=4, mlp_hidden=8, action_hidden=8, projector_hidden=8),
    "rotary": RotaryConfig(context=4, width=8, layers=1, heads=2),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = toy_model()
    save_checkpoint(tmp_path / "c", model, toy_head(model), toy_origin(), {"note": 1})
    return tmp_path / "c"


@pytest.mark.parametrize("name", PREDICTORS)
@pytest.mark.parametrize("stack", [1, 2])
def test_round_trip(name: str, stack: int, tmp_path: Path) -> None:
    model = toy_model(PREDICTORS[name], frame_stack=stack)
    head = toy_head(model)
    save_checkpoint(tmp_path / "c", model, head, toy_origin(), {"note": 1})
    loaded = load(tmp_path / "c")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, 3 * stack, 32, 32), generator=generator, dtype=torch.uint8)
    actions = torch.randn(2, 3, model.action_dim, generator=generator)
    latent = model.encode(pixels)
    assert torch.equal(loaded.model.encode(pixels), latent)
    assert torch.equal(loaded.model.predict(latent, actions), model.predict(latent, actions))
    assert loaded.cost_to_go is not None
    assert torch.equal(loaded.cost_to_go(latent, latent[:, :1]), head(latent, latent[:, :1]))
    assert (loaded.model.config, loaded.model.facts) == (model.config, model.facts)
    assert (loaded.origin, loaded.cost_to_go.config) == (toy_origin(), head.config)
    assert not loaded.model.training
    assert not any(p.requires_grad for p in [*loaded.model.parameters(), *loaded.cost_to_go.parameters()])


def test_a_model_without_cost_to_go(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", toy_model(), None, toy_origin(), {})
    assert load(tmp_path / "c").cost_to_go is None
    assert "without a cost-to-go head" in (tmp_path / "c" / "README.md").read_text()


def test_loading_needs_nothing_but_the_folder(tiny_checkpoint_path: Path, tmp_path: Path) -> None:
    """Neither the recordings nor the configuration file: a copy elsewhere loads alike."""
    shutil.copytree(tiny_checkpoint_path, tmp_path / "elsewhere")
    here, there = lewm.load(tiny_checkpoint_path), lewm.load(str(tmp_path / "elsewhere"))
    for key, value in here.model.state_dict().items():
        assert torch.equal(value, there.model.state_dict()[key])
    assert sorted(p.name for p in tiny_checkpoint_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def change_tensors(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_header(folder: Path, change: Any) -> None:
    header = json.loads((folder / "config.json").read_text())
    change(header)
    (folder / "config.json").write_text(json.dumps(header))


KEY = "model.predictor.out.bias"


def test_tensors_that_do_not_fit_are_named(folder: Path) -> None:
    original = (folder / "model.safetensors").read_bytes()
    for change, expected in (
        (lambda t: t.pop(KEY), rf"model\.safetensors: tensor {KEY} is missing \(1 in all\)"),
        (lambda t: t.update(stray=torch.ones(1)), r"tensor stray is not part of the model .* \(1 in all\)"),
        (lambda t: t.update({KEY: torch.zeros(5)}), rf"{KEY} has shape \(5,\); the model needs \(4,\)"),
        (lambda t: t.pop("cost_to_go.mean_D"), "tensor cost_to_go.mean_D is missing"),
    ):
        (folder / "model.safetensors").write_bytes(original)
        change_tensors(folder, change)
        with pytest.raises(ValueError, match=expected):
            load(folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(folder: Path, share: float) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read .*copy the checkpoint again"):
        load(folder)


def test_headers_that_do_not_fit_are_named(folder: Path) -> None:
    original = (folder / "config.json").read_text()
    for change, error, expected in (
        (lambda h: h.update(version=99), ValueError, "format version 99 is not 1; use the lewm that wrote it"),
        (lambda h: h.update(format="other"), ValueError, "format must be 'lewm-checkpoint'"),
        (lambda h: h["model"].update(frame_skipp=3), SchemaError, "model.frame_skipp is unknown; did you mean model.f"),
        (lambda h: h["facts"].pop("size"), SchemaError, "facts.size is missing"),
        (lambda h: h["model"]["encoder"].update(name="vgg"), SchemaError, "model.encoder.name is 'vgg'"),
        (lambda h: h["model"]["encoder"].update(latent_dim=5), ValueError, "has shape"),
        (lambda h: h.update(cost_to_go=None), ValueError, "cost_to_go.mean_D is not part of the model"),
    ):
        (folder / "config.json").write_text(original)
        change_header(folder, change)
        with pytest.raises(error, match=expected):
            load(folder)
    for content in (b"{", b"[]", b"\xff\xfe\x00"):
        (folder / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"config\.json"):
            load(folder)


def test_what_is_no_checkpoint_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere/config\.json is missing: .* is not a lewm checkpoint"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="is not a lewm checkpoint"):
        load(folder / "config.json")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        load(folder)


def test_a_save_killed_at_any_rename_leaves_a_complete_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next save works and leaves one folder."""
    new = toy_model()
    with torch.no_grad():
        next(new.parameters()).fill_(0.25)

    def save(note: int) -> None:
        save_checkpoint(folder, new, None, replace(toy_origin(), seed=note), {})

    real, calls = Path.replace, [0]
    for stop in range(2):
        calls[0] = 0

        def replace_or_die(source: Path, target: Path, stop: int = stop) -> Path:
            if calls[0] == stop:
                raise KeyboardInterrupt
            calls[0] += 1
            return real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace_or_die)
            with pytest.raises(KeyboardInterrupt):
                save(stop)
        complete = [path for path in folder.parent.iterdir() if _loads(path)]
        assert complete, f"no complete checkpoint after a kill at rename {stop}"
        save(10 + stop)
        assert load(folder).origin.seed == 10 + stop
    save(20)
    assert [path.name for path in folder.parent.iterdir()] == ["c"]


def _loads(path: Path) -> bool:
    try:
        load(path)
    except (ValueError, OSError):
        return False
    return True


def test_saving_leaves_the_old_one_alone_when_it_fails(folder: Path) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(TypeError):
        save_checkpoint(folder, toy_model(), None, toy_origin(), {"not json": object()})
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_the_card_says_what_it_is(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    count = sum(p.numel() for p in toy_model().parameters())
    for part in (
        "two_room",
        "conv encoder, mlp predictor",
        f"{count:,} parameters",
        "with a cost-to-go head",
        "32 x 32",
    ):
        assert part in card


def test_settings_of_the_head_are_kept(tmp_path: Path) -> None:
    model = toy_model()
    head = toy_head(model)
    head.config = CostToGoConfig(width=8, expectile=0.75, steps=3)
    save_checkpoint(tmp_path / "c", model, head, toy_origin(), {})
    loaded = load(tmp_path / "c").cost_to_go
    assert loaded is not None and loaded.config == head.config
