"""Commands of routers: list them, and fit one."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .options import Commands, add_quiet, add_set, settings_of_pairs
from .work import followed, loaded_model, say, stopped_by_ctrl_c


def add(commands: Commands) -> None:
    learn = commands.add("fit", fit)
    learn.add_argument("name", help="the router's name")
    learn.add_argument("--data", help="rows to learn from instead of the lobes' own (complexity only)")
    add_set(learn, "a setting of the router")
    add_quiet(learn)
    commands.add("routers", routers)


def fit(options: argparse.Namespace) -> None:
    """Fit a router to the lobes of the home, with a progress bar; Ctrl-C stops and keeps the best so far."""
    from ..data import dataset

    model = loaded_model(options)
    router = model.routers.named(options.name)
    settings: dict[str, Any] = settings_of_pairs(options.set)
    if options.data:
        settings["rows"] = dataset.pairs(options.data)
    fitted = followed(model.routers.fitting(options.name, settings, stopped_by_ctrl_c()), options.quiet)
    summary = ", ".join(f"{name} {_short(value)}" for name, value in fitted.report.items() if isinstance(value, int | float | str))
    say(options, {"router": options.name, "report": fitted.report}, f"{router.title} is fitted. {summary}".strip())


def _short(value: float | str) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value)


def routers(options: argparse.Namespace) -> None:
    """List the routers, and whether each can be used."""
    from ..routers import ROUTERS

    model = loaded_model(options)
    for name in ROUTERS:
        router = model.routers.named(name)
        state = "ready"
        if not router.is_fitted:
            state = "needs a fit"
        elif model.routers.is_stale(name):
            state = "stale"
        if options.json:
            print(json.dumps({"name": name, "title": router.title, "state": state, "sentence": router.sentence}))
        else:
            print(f"{name:11}{state:12}{router.sentence}")
