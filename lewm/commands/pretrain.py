"""`lewm pretrain`: its options and what it does."""

import argparse
from pathlib import Path

from lewm.commands.shared import add_device


def add_pretrain(sub: argparse.ArgumentParser) -> None:
    """Options of `lewm pretrain`."""
    sub.add_argument(
        "run",
        metavar="METHOD|CONFIG",
        help="ijepa, vjepa, vjepa2, vjepa21, cjepa, data2vec, mae or distill with its defaults; or a YAML file or "
        "shipped pretraining run (two_room_vjepa2, two_room_ijepa)",
    )
    sub.add_argument("--data", type=Path, help="store to train on")
    sub.add_argument("--out", type=Path, help="folder of the run; the encoder ends up in OUT/encoder")
    sub.add_argument("--print-config", action="store_true", help="print the resolved run and stop")
    sub.add_argument("--keys", action="store_true", help="list every key that can be overridden and stop")
    add_device(sub)
    sub.set_defaults(takes_overrides=True)


def pretrain(args: argparse.Namespace) -> None:
    """Train an encoder on recordings."""
    from lewm import config
    from lewm.pretrain import config as pretraining
    from lewm.schema import SchemaError

    if args.keys:
        print(pretraining.help_text())
        return
    run = pretraining.load(args.run, args.overrides)
    if args.print_config:
        print(config.dump(run), end="")
        return
    for name in ("data", "out"):
        if getattr(args, name) is None:
            raise SchemaError(f"command line: --{name} is missing; add it")
    from lewm import distributed, pipeline
    from lewm.data.store import Store
    from lewm.pretrain.loop import pretrain

    device = pipeline.pick_device(args.device)
    store = Store.open(args.data)
    distributed.init_from_env(device)
    # One that goes on may still be refused, and what is saved has to stay.
    if distributed.rank() == 0 and not (args.out / "trainer.pt").exists():
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "config.yaml").write_text(config.dump(run))
    path = pretrain(run, store, args.out, device)
    if distributed.rank() == 0:
        print(f"encoder {path}")
    distributed.finish()
