"""Commands that measure: routers, lobes, what was forgotten, this machine."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from ..errors import ConfigError
from ..settings import settings_of
from .options import Commands, add_quiet, add_set, settings_of_pairs
from .work import followed, loaded_model, say, stopped_by_ctrl_c


def add(commands: Commands) -> None:
    measure = commands.add("eval", evaluate)
    measure.add_argument("what", choices=("report", "losses", "forgetting"))
    measure.add_argument(
        "data",
        nargs="*",
        help='files with a column "lobe", or named after lobes (default: rows that the lobes have kept)',
    )
    add_set(measure, "a setting of the experiment")
    measure.add_argument("--out", help="write the result here, as JSON")
    add_quiet(measure)

    timed = commands.add("bench", bench)
    timed.set_defaults(what="speed", data=[])
    add_set(timed, "rounds, tokens or chats")
    timed.add_argument("--out", help="write the result here, as JSON")
    add_quiet(timed)


def evaluate(options: argparse.Namespace) -> None:
    """Measure routers (report), lobes (losses) or what was forgotten (forgetting); Ctrl-C ends
    early with what there is."""
    from ..app.lab import EXPERIMENTS
    from ..evaluation.labelled import read_labelled, write_rows
    from .tables import TABLES

    out = _writable(options.out)
    model, experiment, data = loaded_model(options), EXPERIMENTS[options.what], None
    settings = settings_of(experiment.settings(), settings_of_pairs(options.set))
    files = [(Path(path).name, Path(path)) for path in options.data]
    with tempfile.TemporaryDirectory(prefix="multilobe-eval-") as scratch:
        if files:
            data = Path(scratch) / "rows.jsonl"
            write_rows(data, read_labelled(files, model.lobe_names, need_label=experiment.needs_label))
        run = experiment.run()(model, settings, data=data, made=Path(scratch) / "made", stop=stopped_by_ctrl_c())
        result = followed(run, options.quiet).to_json()
    if out:
        out.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    say(options, result, TABLES[options.what](result))


def bench(options: argparse.Namespace) -> None:
    """Time training, routing and answers on this machine, with this base and the lobes of the home."""
    evaluate(options)


def _writable(path: str | None) -> Path | None:
    """Where a result goes, tried before the work that it would be lost with; what stands there
    stays until then."""
    if not path:
        return None
    target = Path(path)
    try:
        was_there = target.exists()
        target.open("a", encoding="utf-8").close()
        if not was_there:
            target.unlink()
    except OSError as error:
        raise ConfigError(f"--out is {path!r}: it cannot be written ({error.strerror}). Choose another target.") from None
    return target
