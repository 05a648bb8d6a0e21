"""LeRobot data sets, v2 and v3, read without LeRobot: rows from parquet, pictures from MP4 files or from the tables.

A LeRobot episode has as many actions as frames; the last action leads past the recording and is left out.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lewm.data.importers.arrays import Arrays, Entry, as_recording
from lewm.data.importers.lerobot_episodes import INDICES, Tables, Tape
from lewm.data.importers.lerobot_tables import read_info, read_json, read_places, read_tasks
from lewm.data.importers.recording import Choice, Importer, Recording, identifier

STATE, ACTION, CAMERAS = "observation.state", "action", "observation.images."
OWN = "meta/lewm.json"
"""What our exporter knows and LeRobot has no place for; other tools ignore the file."""


def recognises(path: Path) -> bool:
    """A folder whose `meta/info.json` names a LeRobot version."""
    try:
        return {"codebase_version", "features"} <= read_json(path / "meta" / "info.json").keys()
    except ValueError:
        return False


def open_lerobot(path: Path, choice: Choice) -> Recording:
    """Open a data set folder. Videos are decoded with PyAV, forward, and every frame's time is checked."""
    info = read_info(path)
    features: dict[str, dict[str, Any]] = info["features"]
    own = read_json(path / OWN) if (path / OWN).is_file() else {}
    depth = sorted(name for name in features if _is_depth(features[name]) and name not in choice.cameras)
    pictures = {name: _picture(f) for name, f in features.items() if _is_picture(f) and name not in depth}
    videos = [name for name in pictures if features[name]["dtype"] == "video" and name in (choice.cameras or pictures)]
    places = read_places(path, info, videos)
    per_action = {choice.action or ACTION, *own.get("action_columns", ())}
    entries = _entries(features, pictures, per_action, places[0].length if places else 0)
    states = choice.state or tuple(name for name in (STATE,) if name in entries)
    tables = Tables(list(dict.fromkeys((*INDICES, choice.action or ACTION, *states, *choice.columns))))
    albums = Tables([name for name in pictures if name not in videos and name in (choice.cameras or pictures)])
    tapes = {name: Tape() for name in videos}
    fps = float(info["fps"])

    def rows(episode: int, name: str) -> NDArray[Any]:
        place = places[episode]
        if name in tapes:
            return tapes[name].pictures(place.clips[name], place.length, fps)
        if name in pictures:
            return albums.pictures(place, name)
        return tables.rows(place, name, entries[name].shape)[: place.length - (name in per_action)]

    arrays = Arrays(
        path,
        len(places),
        entries,
        rows=rows,
        count=lambda episode, name: places[episode].length - (name in per_action),
        place=lambda episode: f"{places[episode].data}, episode {places[episode].index}",
        check=lambda episode: tables.check(places[episode], fps),
    )
    source = f"lerobot {info['codebase_version']} {path.resolve().name}"
    recording = as_recording(arrays, choice, source, (ACTION,), states)
    tasks = read_tasks(path, info)
    own_actions = choice.action in ("", ACTION)
    return replace(
        recording,
        cameras=_short(recording.cameras, list(pictures)),
        state_names=_names(features, states, recording.state_names),
        control_dt=own.get("control_dt", 1.0 / fps),
        action_low=tuple(own["action_low"]) if own_actions and "action_low" in own else None,
        action_high=tuple(own["action_high"]) if own_actions and "action_high" in own else None,
        angle_names=tuple(own.get("angle_names", ())) if states == (STATE,) else (),
        task=tasks[0] if len(tasks) == 1 else "",
        notes=_notes(depth, tasks),
    )


def _entries(
    features: Mapping[str, Mapping[str, Any]],
    pictures: Mapping[str, tuple[int, ...]],
    per_action: set[str],
    length: int,
) -> dict[str, Entry]:
    entries = {name: Entry(length, shape, np.dtype(np.uint8)) for name, shape in pictures.items()}
    for name, feature in features.items():
        try:
            dtype = np.dtype(feature["dtype"])
        except TypeError:
            continue  # text, audio, pictures
        if dtype.kind in "biuf":
            shape = tuple(feature["shape"])
            entries[name] = Entry(length - (name in per_action), () if shape == (1,) else shape, dtype)
    return entries


def _is_picture(feature: Mapping[str, Any]) -> bool:
    return feature.get("dtype") in ("video", "image") and 3 in tuple(feature.get("shape") or ())


def _is_depth(feature: Mapping[str, Any]) -> bool:
    said = {**(feature.get("info") or {}), **(feature.get("video_info") or {})}
    visual = feature.get("dtype") in ("video", "image")
    return visual and bool(said.get("video.is_depth_map") or said.get("is_depth_map") or not _is_picture(feature))


def _picture(feature: Mapping[str, Any]) -> tuple[int, ...]:
    """(height, width, 3) of a picture, whichever order the feature has."""
    shape, names = tuple(feature["shape"]), feature.get("names")
    if isinstance(names, list) and {"height", "width"} <= set(names):
        return (shape[names.index("height")], shape[names.index("width")], 3)
    return shape if shape[-1] == 3 else (*shape[1:], 3)


def _short(cameras: tuple[str, ...], sources: list[str]) -> tuple[str, ...]:
    """Camera names without the part they all share, where that leaves them different."""
    names = {identifier(name): identifier(name.removeprefix(CAMERAS)) for name in sources}
    short = tuple(names[camera] for camera in cameras)
    return short if len(set(short)) == len(short) else cameras


def _names(
    features: Mapping[str, Mapping[str, Any]], states: tuple[str, ...], numbered: tuple[str, ...]
) -> tuple[str, ...]:
    """The names that the features give to the numbers of a state, where there is a different one for each."""
    found: list[str] = []
    for name in states:
        names = features[name].get("names")
        groups = list(names.values()) if isinstance(names, dict) else [names or []]
        found += [str(label) for group in groups for label in (group if isinstance(group, list) else [group])]
    return tuple(found) if len(found) == len(numbered) == len(set(found)) else numbered


def _notes(depth: list[str], tasks: tuple[str, ...]) -> tuple[str, ...]:
    notes = [f"depth maps are left out: {', '.join(depth)}"] if depth else []
    if len(tasks) > 1:
        notes.append(f"the texts of its {len(tasks)} tasks are left out; --columns task_index keeps their numbers")
    return tuple(notes)


IMPORTER = Importer(
    "LeRobot data set, v2.x or v3.x: parquet tables with MP4 videos or pictures", recognises, open_lerobot
)
