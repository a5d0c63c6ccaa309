"""What commands do alike: load the model, follow long work behind a progress bar, and print."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ..files import made_home
from ..settings import budget_from_environment

if TYPE_CHECKING:
    from ..model import MultiLobeModel


def loaded_model(options: argparse.Namespace) -> MultiLobeModel:
    from ..base.device import choose_threads
    from ..model import MultiLobeModel

    home, budget_mib = made_home(options.home), options.memory_mib
    if budget_mib is None:
        budget_mib = budget_from_environment()
    model = MultiLobeModel.from_pretrained(
        options.base or "builtin",
        device=options.device,
        home=home,
        router=options.router,
        memory_budget_mib=budget_mib,
    )
    choose_threads(model.backbone.device, model.backbone.parameter_count)
    model.routers.prepare()
    return model


def followed(
    run: Generator[Any, None, Any], quiet: bool, shown: Callable[[Any], Mapping[str, float]] = attrgetter("values")
) -> Any:
    """Run to the end behind a progress bar; returns what the generator returns. Texts that it
    yields are its phases."""
    from tqdm import tqdm

    bar: Any = None
    try:
        while True:
            event = next(run)
            if isinstance(event, str):
                tqdm.write(event, file=sys.stderr)  # on a line of its own, above a bar that there may be
                continue
            bar = bar or tqdm(total=event.steps, unit="step", file=sys.stderr, disable=quiet)
            bar.update(event.step - bar.n)
            if values := shown(event):
                bar.set_postfix_str(
                    ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in values.items())
                )
    except StopIteration as end:
        if bar is not None and bar.n == bar.total - 1:
            bar.update()  # some work tells of a step when it begins
        return end.value
    finally:
        if bar is not None:
            bar.close()


def stopped_by_ctrl_c() -> threading.Event:
    """An event that the next Ctrl-C sets, which asks for an end; the one after it is one."""
    stop = threading.Event()

    def interrupted(*_: Any) -> None:
        if stop.is_set():
            sys.exit(130)
        stop.set()

    signal.signal(signal.SIGINT, interrupted)
    return stop


def say(options: argparse.Namespace, data: Any, text: str) -> None:
    """Print the text, or with --json the data."""
    if options.json:
        text = json.dumps(data, ensure_ascii=False, indent=2)
    print(text)
