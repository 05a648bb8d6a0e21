"""`lewm merge`: several stores of the same task become one; shards are copied, not decoded."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from lewm.data.building import built_beside
from lewm.data.codec import Codec
from lewm.data.collect import git_revision
from lewm.data.meta import UNKNOWN_SUCCESS, PolicyMeta, Provenance, ShardMeta, Statistics, StoreMeta
from lewm.data.store import Store
from lewm.data.writer import Episode, StoreWriter, shard_name, write_shard

Progress = Callable[[int, int], None]

LAYOUT = (
    "task",
    "settings",
    "frame",
    "cameras",
    "action_dim",
    "action_low",
    "action_high",
    "state_names",
    "angle_names",
    "control_dt",
    "columns",
)
"""What stores must share to become one; a single camera may have any name."""


def merge(stores: Sequence[Store], out: Path, codec: Codec | None = None, progress: Progress | None = None) -> Store:
    """Write all episodes of the stores, in order, into a new store at `out`; a failed merge leaves nothing there.

    Shards in `codec` (default: that of all stores) are copied byte for byte, others are decoded and encoded again.
    `progress` is called with (episodes written, episodes in all). Raises ValueError naming the first difference between
    the stores, FileExistsError when `out` is not empty.
    """
    check_alike(stores)
    if codec is None:
        codec = _common_codec(stores)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} is not empty: choose another --out")
    total, done = sum(store.num_episodes for store in stores), 0
    with built_beside(out, "merging") as building, StoreWriter(building, merged_meta(stores, codec)) as writer:
        for number, (store, shard, first, policy) in enumerate(_parts(stores)):
            writer.commit(_add(writer, shard_name(number), store, shard, first, policy))
            done += shard.episodes
            if progress:
                progress(done, total)
    return Store.open(out)


def check_alike(stores: Sequence[Store]) -> None:
    """Raise ValueError unless there are two different stores or more, and all of one task and layout."""
    if len(stores) < 2:
        raise ValueError(f"there is {len(stores)} store to merge: name two or more")
    paths = [store.path.resolve() for store in stores]
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"{path} is named twice: its episodes would be there twice; name each store once")
    first, *others = stores
    for other in others:
        old, new = _layout(first.meta), _layout(other.meta)
        for key in LAYOUT:
            if old[key] != new[key] and not (key == "cameras" and len(new[key]) == 1):
                raise ValueError(
                    f"{other.path} has {key} = {_short(new[key])}, {first.path} has {_short(old[key])}: only stores of "
                    "one task and layout can be merged; record or import one of them again with the other's"
                )


def merged_meta(stores: Sequence[Store], codec: Codec) -> StoreMeta:
    """The common layout, and where all episodes come from."""
    first, origins = stores[0].meta, [store.meta.provenance for store in stores]
    steps = {origin.steps for origin in origins}
    renderers = dict.fromkeys(origin.renderer for origin in origins)
    provenance = Provenance(
        policies=tuple(policy for store in stores for policy in _policies(store)),
        seed=origins[0].seed,
        episodes=sum(store.num_episodes for store in stores),
        steps=steps.pop() if len(steps) == 1 else 0,
        source="merge of " + ", ".join(f"{_name(store)} ({store.meta.provenance.source})" for store in stores),
        versions=_common(origin.versions for origin in origins),
        renderer="; ".join(renderers),
        git_revision=git_revision(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return replace(first, codec=codec, provenance=provenance, shards=(), statistics=Statistics())


def _parts(stores: Sequence[Store]) -> Iterator[tuple[Store, ShardMeta, int, int]]:
    """Every shard: its store, its first episode there, and how far its policy numbers move."""
    policy = 0
    for store in stores:
        first = 0
        for shard in store.meta.shards:
            yield store, shard, first, policy
            first += shard.episodes
        policy += len(_policies(store))


def _add(writer: StoreWriter, name: str, store: Store, shard: ShardMeta, first: int, policy: int) -> ShardMeta:
    """One shard in the temporary folder of the new store."""
    folder = writer.temporary(name)
    if store.meta.codec != writer.meta.codec:
        episodes = (_episode(store, number, policy) for number in range(first, first + shard.episodes))
        return write_shard(folder, writer.meta, episodes, name)
    folder.mkdir(parents=True)
    for file in shard.bytes:
        shutil.copyfile(store.path / "shards" / shard.name / file, folder / file)
    rows = np.load(folder / "episodes.npy", allow_pickle=False)
    rows["policy"] += policy
    np.save(folder / "episodes.npy", rows, allow_pickle=False)
    sizes = {file: (folder / file).stat().st_size for file in shard.bytes}
    return replace(shard, name=name, bytes=sizes)


def _episode(store: Store, number: int, policy: int) -> Episode:
    row = store.episodes[number]
    success = None if row["success"] == UNKNOWN_SUCCESS else bool(row["success"])
    extra = {column.name: store.column(column.name, number) for column in store.meta.columns}
    return Episode(
        store.pixels(number),
        store.actions(number),
        store.states(number),
        int(row["seed"]),
        int(row["policy"]) + policy,
        success,
        extra,
    )


def _policies(store: Store) -> tuple[PolicyMeta, ...]:
    """Who acted; a store that does not say still has its policy 0."""
    return store.meta.provenance.policies or (PolicyMeta("unknown", 1.0, 0.0),)


def _name(store: Store) -> str:
    """The folder and the one it is in: stores are often called `data`."""
    return "/".join(store.path.resolve().parts[-2:])


def _common_codec(stores: Sequence[Store]) -> Codec:
    codecs = {store.meta.codec: store.path for store in stores}
    if len(codecs) > 1:
        found = ", ".join(f"{path} {codec}" for codec, path in codecs.items())
        raise ValueError(f"the frames are stored in different ways ({found}): choose one with --codec")
    return stores[0].meta.codec


def _common(versions: Iterator[dict[str, str]]) -> dict[str, str]:
    """Per package, the versions that recorded, in order."""
    found: dict[str, dict[str, None]] = {}
    for each in versions:
        for package, version in each.items():
            found.setdefault(package, {})[version] = None
    return {package: ", ".join(all_versions) for package, all_versions in found.items()}


def _layout(meta: StoreMeta) -> dict[str, Any]:
    layout: dict[str, Any] = json.loads(json.dumps(asdict(meta)))
    return layout


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
