"""From a file of rows to a lobe among the others: read, train, keep what routing needs, take in."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Generator, Mapping
from pathlib import Path

from ..data import dataset
from ..data.formats import Source
from ..data.held_out import held_out_share
from ..lobes.collection import Lobes
from ..lobes.rows import rows_to_keep, write_routing_rows
from ..lobes.store import Lobe
from ..settings import TrainingConfig
from .lobe import StepRecord, train_lobe


def train_new_lobe(
    lobes: Lobes,
    name: str,
    source: Source,
    config: TrainingConfig,
    *,
    mapping: Mapping[str, str] | None = None,
    skip_bad: bool = False,
    checkpoint: Path | None = None,
    stop: threading.Event | None = None,
    replaces: str = "",
    data_name: str = "",
    owner: str = "",
    run: str = "",
) -> Generator[StepRecord | str, None, Lobe]:
    """Train a lobe and take it in: yields the name of each phase (str) and every StepRecord.

    Args:
        mapping, skip_bad: see `dataset.load`. stop: set it to stop early and keep what has been
            learned by then.
        checkpoint: folder that progress is kept in, and taken up from.
        replaces: id of the lobe that an earlier part of this run left, when it was stopped.
        data_name, owner, run: for the card; by `run`, the id of the run, its lobe is found again if
            the process ends before it has noted it.
    """
    name = lobes.store.check_free(name, besides=replaces)
    yield "Reading the data"
    examples = dataset.load(source, mapping, skip_bad=skip_bad)
    share = config.validation_fraction
    if share is None:
        share = held_out_share(examples).share
    train, validation = dataset.split(examples, share, config.seed)
    backbone = lobes.bank.backbone
    config = config.resolved(len(train), backbone.hidden_size, share)
    workspace = Path(tempfile.mkdtemp(prefix=".training-", dir=lobes.store.folder.parent))
    adapter = workspace / "adapter"
    try:
        yield "Training"
        result = yield from train_lobe(
            backbone, train, validation, config, adapter, checkpoint=checkpoint, stop=stop
        )
        yield "Learning what to route here"
        write_routing_rows(adapter, rows_to_keep(lobes.encoder, train, validation))
        data: dict[str, str | int] = {"name": data_name or _file_name(source), "rows": len(examples)}
        if run:
            data["run"] = run
        card = lobes.new_card(
            name, "trained here", config=config.to_json(), data=data, training=result.to_json(), owner=owner
        )
        return lobes.add(adapter, card, replaces)
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _file_name(source: Source) -> str:
    return Path(source).name if isinstance(source, (str, Path)) else "rows"
