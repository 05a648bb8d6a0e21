"""The commands on recordings: import, export, merge, inspect, preview, audit, cache-features; options and deeds."""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from lewm.commands.shared import add_device, add_json, write_rows

CODECS = ("raw", "png", "webp", "jpeg")
CODEC_HELP = "raw is fastest to read, png and webp are lossless, jpeg is lossy"


def add_import(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm import`."""
    _list_in_help(sub, "formats", _importers)
    sub.add_argument("source", type=Path, help="file or folder of the recording")
    sub.add_argument("--out", type=Path, required=True, help="store to write; must not exist or be empty")
    sub.add_argument("--format", default="", metavar="NAME", help="format of the source (default: recognised)")
    sub.add_argument("--camera", nargs="+", default=[], metavar="NAME", help="picture entries (default: all)")
    sub.add_argument("--action", default="", metavar="NAME", help="action entry (default: the format's usual one)")
    sub.add_argument("--state", nargs="+", default=[], metavar="NAME", help="entries that make up the state")
    sub.add_argument("--column", nargs="+", default=[], metavar="NAME", help="other number entries to keep")
    sub.add_argument("--task", default="", metavar="NAME", help="a task of lewm allows evaluation (default: its own)")
    sub.add_argument("--settings", type=mapping, default={}, metavar="YAML", help="of that task, as '{size: 64}'")
    sub.add_argument("--size", type=int, metavar="N", help="resize frames to N x N pixels (default: as recorded)")
    sub.add_argument("--state-names", nargs="+", default=[], metavar="NAME", help="names of the state's numbers")
    sub.add_argument("--angle-names", nargs="+", default=[], metavar="NAME", help="those that are angles in radians")
    sub.add_argument("--action-low", type=float, nargs="+", metavar="X", help="smallest action (default: what occurs)")
    sub.add_argument("--action-high", type=float, nargs="+", metavar="X", help="largest action")
    sub.add_argument("--control-dt", type=float, metavar="S", help="seconds per action (default: the source's)")
    sub.add_argument("--episodes", type=int, metavar="N", help="only the first N")
    sub.add_argument("--broken", choices=["refuse", "skip"], default="refuse", help="episodes that cannot be read")
    sub.add_argument("--codec", choices=CODECS, default="raw", help=f"{CODEC_HELP} (default raw)")
    sub.add_argument("--shard-episodes", type=int, default=50, metavar="N", help="episodes per shard (default 50)")


def import_(args: argparse.Namespace) -> None:
    """Bring a foreign recording."""
    from lewm.data.importers import Choice
    from lewm.data.importers.run import ImportConfig, import_recording
    from lewm.data.inspect import describe

    choice = Choice(tuple(args.camera), args.action, tuple(args.state), tuple(args.column))
    names = [field.name for field in fields(ImportConfig) if field.name != "choice"]
    given: dict[str, Any] = {name: getattr(args, name) for name in names}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    config = ImportConfig(choice=choice, **given)
    with _counted("import", "episodes") as progress:
        imported = import_recording(args.source, args.out, config, progress)
    print(describe(imported.store))
    for sentence in imported.notes:
        print(f"note       {sentence}")
    for sentence in imported.skipped:
        print(f"left out   {sentence}")


def add_export(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm export`."""
    _list_in_help(sub, "formats", _exporters)
    _add_store(sub)
    sub.add_argument("--out", type=Path, required=True, help="file or folder to write; must not exist")
    sub.add_argument("--format", required=True, metavar="NAME", help="format to write")
    sub.add_argument("--codec", default="", help="how pictures are stored (default: the format's first)")
    sub.add_argument("--crf", type=int, metavar="N", help="coarseness of a lossy video (default: the codec's)")
    sub.add_argument("--episodes", type=int, metavar="N", help="only the first N")


def export(args: argparse.Namespace) -> None:
    """Write a store for other tools."""
    from lewm.data.exporters.exporter import ExportConfig
    from lewm.data.exporters.run import export_store
    from lewm.data.store import Store

    config = ExportConfig(args.format, args.codec, args.crf, args.episodes)
    with _counted("export", "episodes") as progress:
        path = export_store(Store.open(args.data), args.out, config, progress)
    print(f"{args.format} {path}")


def add_merge(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm merge`."""
    sub.add_argument("data", type=Path, nargs="+", help="folders of two stores or more, of one task and layout")
    sub.add_argument("--out", type=Path, required=True, help="store to write; must not exist or be empty")
    sub.add_argument("--codec", choices=CODECS, help="encode frames again where they differ from this")


def merge(args: argparse.Namespace) -> None:
    """Several stores become one."""
    from lewm.data.inspect import describe
    from lewm.data.merge import merge
    from lewm.data.store import Store

    with _counted("merge", "episodes") as progress:
        store = merge([Store.open(path) for path in args.data], args.out, args.codec, progress)
    print(describe(store))


def add_inspect(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm inspect`."""
    _add_store(sub)
    sub.add_argument("--out", type=Path, metavar="PNG", help="contact sheet (default DATA/contact_sheet.png)")
    sub.add_argument("--verify", action="store_true", help="read every value, not only sizes")


def inspect(args: argparse.Namespace) -> None:
    """Say what is in a store."""
    from lewm.data.inspect import contact_sheet, describe
    from lewm.data.store import Store

    store = Store.open(args.data, verify=args.verify)
    print(describe(store))
    sheet = args.out if args.out is not None else args.data / "contact_sheet.png"
    contact_sheet(store, sheet)
    print(f"contact sheet {sheet}")


def add_preview(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm preview`."""
    _add_store(sub)
    sub.add_argument("--episodes", type=int, nargs="+", metavar="ID", help="which (default: 8 spread over the store)")
    sub.add_argument("--video", type=Path, metavar="MP4", help="video of whole episodes (default DATA/preview.mp4)")
    sub.add_argument("--sheet", type=Path, metavar="PNG", help="contact sheet (default DATA/preview.png)")
    sub.add_argument("--frames", type=int, default=10, metavar="N", help="pictures per row of the sheet (default 10)")
    sub.add_argument("--size", type=int, default=256, metavar="N", help="least side of a picture in the video (256)")
    sub.add_argument("--fps", type=int, metavar="N", help="frames per second (default: as fast as it was, at most 60)")


def preview(args: argparse.Namespace) -> None:
    """Show episodes; with neither --video nor --sheet both are written."""
    from lewm.data.inspect import contact_sheet, spread
    from lewm.data.preview import preview_video
    from lewm.data.store import Store

    store = Store.open(args.data)
    episodes = args.episodes if args.episodes is not None else spread(store.num_episodes, 8)
    for episode in episodes:
        if not 0 <= episode < store.num_episodes:
            raise ValueError(f"episode {episode} is not in {args.data}: it has episodes 0..{store.num_episodes - 1}")
    both = args.video is None and args.sheet is None
    sheet, video = (args.data / "preview.png", args.data / "preview.mp4") if both else (args.sheet, args.video)
    if sheet is not None:
        contact_sheet(store, sheet, episodes, args.frames)
        print(f"contact sheet {sheet}")
    if video is not None:
        with _counted("preview", "episodes") as progress:
            preview_video(store, video, episodes, args.fps, args.size, progress)
        print(f"video {video}")


def add_audit(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm audit`."""
    _list_in_help(sub, "checks", _audits)
    _add_store(sub)
    sub.add_argument("--episodes", type=int, default=60, metavar="N", help="whose pictures are read (default 60)")
    sub.add_argument("--steps", type=int, default=100, metavar="N", help="most steps of each of them (default 100)")
    sub.add_argument("--all", action="store_true", help="read all pictures of all episodes")
    add_json(sub)


def audit(args: argparse.Namespace) -> None:
    """Say what is wrong with a recording; exit code 1 when something is bad."""
    from lewm.data.audit import audit, table
    from lewm.data.audit_sample import AuditConfig
    from lewm.data.store import Store

    config = AuditConfig(None if args.all else args.episodes, args.steps)
    with _counted("audit", "clips") as progress:
        result = audit(Store.open(args.data), config, progress)
    write_rows(args.json, result.findings)
    print(table(result))
    if result.verdict == "bad":
        raise SystemExit(1)


def add_cache_features(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm cache-features`."""
    _add_store(sub)
    sub.add_argument("--encoder", required=True, metavar="PATH", help="folder of the encoder, or its name on the hub")
    sub.add_argument("--grid", type=int, default=4, metavar="N", help="tokens per side, as model.encoder.grid (4)")
    sub.add_argument("--size", type=int, metavar="N", help="pixels, as model.encoder.size (default: the encoder's own)")
    sub.add_argument(
        "--compute",
        choices=["float32", "bfloat16"],
        default="float32",
        help="precision the encoder runs in, as model.encoder.compute (default float32)",
    )
    sub.add_argument(
        "--precision",
        choices=["float16", "float32"],
        default="float16",
        help="precision features are stored in (default float16)",
    )
    sub.add_argument("--batch", type=int, default=64, metavar="N", help="frames encoded at once (default 64)")
    add_device(sub)


def cache_features(args: argparse.Namespace) -> None:
    """Encode all frames of a store with a frozen encoder."""
    if args.batch < 1:
        raise ValueError(f"--batch is {args.batch}; it must be at least 1")
    from lewm.data.store import Store
    from lewm.nets.frozen import FrozenConfig
    from lewm.nets.frozen.cache import cache_features, plan_features
    from lewm.pipeline import pick_device

    config = FrozenConfig(path=args.encoder, grid=args.grid, size=args.size, compute=args.compute)
    plan = plan_features(Store.open(args.data), config, args.precision, pick_device(args.device))
    print(plan.describe(), flush=True)
    print(f"features   {cache_features(plan, args.batch).folder}")


def mapping(text: str) -> dict[str, Any]:
    """`{size: 64}` as a dictionary."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not YAML") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a mapping such as '{{size: 64}}'")
    return value


def _add_store(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("data", type=Path, help="folder of the store")


@contextmanager
def _counted(name: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress callback (done, in all); its line appears with the first unit, so that a refusal is one sentence."""
    from lewm.progress import Stage

    stage, begun = Stage(name, 0, unit), time.monotonic()
    with ExitStack() as stack:

        def report(done: int, total: int) -> None:
            if not stage.total:
                stage.total = total
                stack.enter_context(stage)
                stage.started = begun
            stage.update(done - stage.done)

        yield report


def _importers() -> dict[str, str]:
    from lewm.data.importers import IMPORTERS

    return {name: importer.what for name, importer in IMPORTERS.items()}


def _exporters() -> dict[str, str]:
    from lewm.data.exporters import EXPORTERS

    return {name: f"{exporter.what}; codecs {', '.join(exporter.codecs)}" for name, exporter in EXPORTERS.items()}


def _audits() -> dict[str, str]:
    from lewm.data.audit import AUDITS

    return {name: (check.__doc__ or "").splitlines()[0] for name, check in AUDITS.items()}


def _list_in_help(sub: argparse.ArgumentParser, title: str, rows: Callable[[], dict[str, str]]) -> None:
    """End the help with a table; the modules that hold it are imported only when help is asked for."""
    plain = sub.format_help

    def format_help() -> str:
        return "\n".join([plain(), f"{title}:", *(f"  {name:<18} {what}" for name, what in rows().items()), ""])

    sub.format_help = format_help  # type: ignore[method-assign]
