"""A job at one moment, and the files that it is kept in."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from ..errors import JobError
from ..settings import from_json

JOB_FILE, METRICS_FILE, DATA_FILE, ERROR_FILE = "job.json", "metrics.jsonl", "data.jsonl", "error.txt"
RESULT_FILE = "result.json"
QUEUE_FILE, LOCK_FILE, CHECKPOINT_FOLDER, MADE_FOLDER = "queue.json", "lock", "checkpoint", "made"
ENDED = ("finished", "stopped", "failed", "interrupted")
STATES = ("queued", "running", "stopping", *ENDED)
ALLOWED = {  # in which states a job can be ...
    "stopped": ("running", "stopping"),
    "resumed": ("stopped", "failed", "interrupted"),
    "cancelled": ("queued",),
    "moved": ("queued",),
    "forgotten": ("queued", *ENDED),
}
WAY_OUT = dict.fromkeys(ALLOWED["resumed"], "resume it, or forget it") | {
    "queued": "cancel it, move it in the queue, or wait",
    "running": "stop it, or wait until it ends",
    "stopping": "wait until it has stopped",
    "finished": "start a new one, or forget it",
}
ID = re.compile(r"[0-9a-f]{32}")

Record = dict[str, Any]
Records = list[Record]


@dataclass(frozen=True)
class JobSpec:
    """What was asked for. `config` holds the settings as JSON; `data_name` is what the person calls the file.

    `kind` is "lobe" (then `name` is the lobe's, `config` a TrainingConfig), "router" (then `name`
    is the router's) or "lab" (then `name` is one of `lab.EXPERIMENTS`).
    """

    name: str
    config: dict[str, Any]
    owner: str = ""
    data_name: str = ""
    mapping: dict[str, str] | None = None
    skip_bad: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    kind: str = "lobe"


@dataclass(frozen=True)
class Job:
    """A job at one moment.

    Attributes:
        created, started, finished: ISO 8601, UTC; "" if not yet. `started` is that of the last run,
            if resumed.
        phase: what it is doing, in the runner's words. error: for a person. lobe_id: what it made,
            kept when resumed.
        latest: the last record. best_validation_loss: the least after step 0. base_validation_loss:
            that of step 0.
        place: 1 for the next in the queue; None if not queued.
    """

    id: str
    spec: JobSpec
    state: str = "queued"
    created: str = ""
    started: str = ""
    finished: str = ""
    phase: str = ""
    error: str = ""
    lobe_id: str = ""
    latest: Record = field(default_factory=dict)
    best_validation_loss: float | None = None
    base_validation_loss: float | None = None
    rows: int | None = None
    place: int | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(replace(self, place=None))

    def after(self, records: Iterable[Record]) -> Job:
        """This job when these records have come in."""
        latest, best, base = self.latest, self.best_validation_loss, self.base_validation_loss
        for latest in records:
            loss = latest.get("validation_loss")
            if isinstance(loss, int | float) and math.isfinite(loss):
                if latest.get("step") == 0:
                    base = loss
                else:
                    best = loss if best is None else min(best, loss)
        return replace(self, latest=latest, best_validation_loss=best, base_validation_loss=base)


def now_iso() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def is_id(id: object) -> bool:
    return isinstance(id, str) and ID.fullmatch(id) is not None


def parse_job(id: str, value: dict[str, Any]) -> Job:
    """Raises ValueError, TypeError, KeyError or AttributeError unless `value` is the JSON of job `id`."""
    job = from_json(Job, value | {"spec": from_json(JobSpec, value["spec"])})
    texts = (job.spec.name, job.spec.owner, job.created, job.phase, job.error, job.lobe_id)
    sound = all(isinstance(text, str) for text in texts) and isinstance(job.latest, dict) and job.state in STATES
    if job.id != id or not sound or not isinstance(job.spec.config, dict):
        raise ValueError("its values are not those of this job")
    return job


@contextmanager
def disk(what: str) -> Iterator[None]:
    """Turns what the disk refuses into a JobError."""
    try:
        yield
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        way_out = "Free some space or check the folder's rights, then try again."
        raise JobError(f"{what} ({reason}). {way_out}") from error
