"""Where a frozen encoder comes from: its folder (downloaded once for a hub name), and the hash of its weights."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from lewm.schema import read_json

INDEX = "model.safetensors.index.json"
HUB_FILES = ["config.json", "*processor*config.json", "model*.safetensors", INDEX]
"""All that is downloaded: plain data, no pickles, no code."""


def locate(path: str) -> Path:
    """The folder of an encoder, given as a folder or by its name on the Hugging Face hub.

    Raises FileNotFoundError where it is neither, ValueError for no path, ImportError without extra `[frozen]`.
    """
    if not path:
        raise ValueError("encoder.path is empty: give the folder of a pretrained encoder, or its name on the hub")
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", path) or folder.exists():
        raise FileNotFoundError(
            f"encoder.path is {path}, which is no folder here and no hub name such as facebook/dinov2-small: give the "
            "folder that holds config.json and model.safetensors"
        )
    require_transformers()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(snapshot_download(path, allow_patterns=HUB_FILES))
    except (OSError, ValueError, EntryNotFoundError) as error:  # no network, no such name, no permission
        reason = str(error).strip().splitlines()[0].rstrip(".:") if str(error).strip() else type(error).__name__
        raise FileNotFoundError(
            f"encoder.path is {path}, which is no folder here and cannot be had from the hub ({reason}): download it "
            "elsewhere and give its folder"
        ) from error


def require_transformers() -> Any:
    """The transformers library; one sentence where extra `[frozen]` is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise ImportError("encoder frozen needs transformers: pip install 'lewm[frozen]'") from error
    return transformers


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of an encoder folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {folder} holds no pretrained encoder that says what it is")
    raw = read_json(path)
    if not isinstance(raw, dict):
        raise ValueError(f"{path} must hold a mapping, not {type(raw).__name__}; copy the encoder again")
    return raw


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of an encoder folder, sorted. Raises FileNotFoundError where one is missing."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not (folder / INDEX).is_file():
        others = sorted(item.name for item in folder.iterdir() if item.suffix in (".bin", ".pt", ".pth", ".h5"))
        hint = f"; {others[0]} may run code when it is read: convert it to safetensors" if others else ""
        raise FileNotFoundError(f"{folder / 'model.safetensors'} is missing: the encoder has no weights{hint}")
    index = read_json(folder / INDEX)
    files = [folder / name for name in sorted(set(index["weight_map"].values()))]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, which {INDEX} names: copy the encoder again, whole")
    return files


def weights_sha256(folder: Path) -> str:
    """SHA-256 of the weights file, as the hub shows it; of several files, of their hashes one after the other."""
    found = []
    for file in weight_files(folder):
        with file.open("rb") as handle:
            found.append(hashlib.file_digest(handle, "sha256").hexdigest())
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def digest(data: Any) -> str:
    """SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
