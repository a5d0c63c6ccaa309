"""The command that trains a lobe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..settings import TrainingConfig
from .options import Commands, add_quiet, add_settings, mapping_of_pairs, settings_from
from .work import followed, loaded_model, say, stopped_by_ctrl_c


def add(commands: Commands) -> None:
    teach = commands.add("train", train)
    teach.add_argument("name", help="the lobe's name")
    teach.add_argument("data", help="JSONL, JSON, CSV or Parquet file")
    teach.add_argument(
        "--map", action="append", default=[], metavar="ROLE=COLUMN", help="prompt=..., answer=..., system=..."
    )
    teach.add_argument("--skip-bad", action="store_true", help="use the good rows of a file that has bad ones")
    teach.add_argument("--checkpoint", help="folder for progress; training resumes from what is there")
    add_quiet(teach)
    add_settings(teach, TrainingConfig)


def train(options: argparse.Namespace) -> None:
    """Train a lobe, with a progress bar; Ctrl-C stops and keeps what has been learned by then."""
    stop = stopped_by_ctrl_c()
    config = settings_from(options, TrainingConfig)
    mapping, checkpoint = mapping_of_pairs(options.map), None
    if options.checkpoint:
        checkpoint = Path(options.checkpoint)
    run = loaded_model(options).train(
        options.name,
        options.data,
        config,
        mapping=mapping,
        skip_bad=options.skip_bad,
        checkpoint=checkpoint,
        stop=stop,
    )

    def shown(record: Any) -> dict[str, float]:
        if record.validation_loss is None:
            return {}
        return {"validation loss": record.validation_loss}

    lobe = followed(run, options.quiet, shown)
    result = lobe.card.training
    before, after = result.get("base_validation_loss"), result.get("validation_loss")
    summary = f"{lobe.name}: {result['steps']} steps in {result['seconds']:.0f} s, {result['kept']} step kept"
    if before is not None and after is not None:
        summary += f", held-out loss {before:.3f} -> {after:.3f}"
    say(options, {"id": lobe.id, **lobe.card.to_json()}, summary)
