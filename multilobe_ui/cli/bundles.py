"""Commands of bundles."""

from __future__ import annotations

import argparse
import json

from ..files import home_folder
from .options import Commands
from .work import loaded_model, say


def add(commands: Commands) -> None:
    verbs = commands.group("bundle", "Save, load, list or verify bundles.")
    save = verbs.add("save", bundle_save)
    save.add_argument("path", help="a folder, or a file that ends in .zip")
    save.add_argument("lobes", nargs="*", help="names (default: all)")
    load = verbs.add("load", bundle_load)
    load.add_argument("path")
    load.add_argument("--on-clash", choices=("refuse", "rename", "replace"), default="rename")
    verbs.add("list", bundle_list).add_argument("path", nargs="?")
    verbs.add("verify", bundle_verify).add_argument("path")


def bundle_save(options: argparse.Namespace) -> None:
    """Write lobes as a bundle."""
    path = loaded_model(options).save(options.path, options.lobes or None)
    say(options, {"path": str(path)}, f"Saved {path}")


def bundle_load(options: argparse.Namespace) -> None:
    """Add a bundle's lobes to the home."""
    names = [lobe.name for lobe in loaded_model(options).load_bundle(options.path, options.on_clash)]
    say(options, {"lobes": names}, f"Loaded {', '.join(names)}")


def bundle_list(options: argparse.Namespace) -> None:
    """What a bundle, or the home if no path is given, holds."""
    from ..bundles.load import open_bundle
    from ..lobes.store import LobeStore

    if options.path:
        with open_bundle(options.path) as opened:
            cards = [card for _, card in opened.lobe_folders]
    else:
        cards = [lobe.card for lobe in LobeStore(home_folder(options.home) / "lobes").all()]
    if options.json:
        print(json.dumps([{**card.to_json(), "owner": ""} for card in cards], ensure_ascii=False, indent=2))
        return
    for card in cards:
        loss, size, held_out = card.training.get("validation_loss"), int(card.adapter.get("bytes", 0)) / 2**20, ""
        if loss is not None:
            held_out = f"loss {loss:.3f}"
        print(card.name, f"r={card.adapter.get('r')}", f"{size:.1f} MiB", held_out, card.base["name"], sep="\t")


def bundle_verify(options: argparse.Namespace) -> None:
    """Check every file of a bundle against its manifest."""
    from ..bundles.load import verify_bundle
    from ..errors import BundleError

    problems = verify_bundle(options.path)
    if options.json:
        print(json.dumps({"path": str(options.path), "problems": problems}, ensure_ascii=False))
    if problems:
        raise BundleError(f"{options.path} has {len(problems)} problem(s): {'; '.join(problems)}")
    if not options.json:
        print(f"{options.path} is sound.")
