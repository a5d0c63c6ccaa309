"""Jobs (a lobe to train, a router to fit, an experiment) that outlive the page, the process and SIGKILL: one runs, others queue.

    jobs/lock  queue.json  <id>/job.json  metrics.jsonl  data.jsonl  result.json  checkpoint/  made/  error.txt

The worker thread owns every status; viewers only read. What a job does is the runner's business: nothing here knows of
models. One process per folder has the lock and works; any other reads along, and takes over once the first has ended.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import secrets
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, TypeVar

from ..errors import JobError, MultiLobeError
from ..files import new_folder, read_json, write_json
from ..progress import Progress
from ..settings import from_json

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two processes apart
    fcntl = None  # type: ignore[assignment]

JOB_FILE, METRICS_FILE, DATA_FILE, ERROR_FILE = "job.json", "metrics.jsonl", "data.jsonl", "error.txt"
RESULT_FILE = "result.json"
QUEUE_FILE, LOCK_FILE, CHECKPOINT_FOLDER, MADE_FOLDER = "queue.json", "lock", "checkpoint", "made"
ENDED = ("finished", "stopped", "failed", "interrupted")
STATES = ("queued", "running", "stopping", *ENDED)
_ALLOWED = {  # in which states a job can be ...
    "stopped": ("running", "stopping"),
    "resumed": ("stopped", "failed", "interrupted"),
    "cancelled": ("queued",),
    "moved": ("queued",),
    "forgotten": ("queued", *ENDED),
}
_WAY_OUT = dict.fromkeys(_ALLOWED["resumed"], "resume it, or forget it") | {
    "queued": "cancel it, move it in the queue, or wait",
    "running": "stop it, or wait until it ends",
    "stopping": "wait until it has stopped",
    "finished": "start a new one, or forget it",
}
_ID = re.compile(r"[0-9a-f]{32}")
_SAVE_EVERY = 0.5  # seconds between two job.json of plain steps
_CURVES_KEPT = 8  # in memory: a long one takes tens of megabytes
_log = logging.getLogger(__name__)

T = TypeVar("T")
Record = dict[str, Any]
Records = list[Record]


@dataclass(frozen=True)
class JobSpec:
    """What was asked for. `config` holds the settings as JSON; `data_name` is what the person calls the file.

    `kind` is "lobe" (then `name` is the lobe's, `config` a TrainingConfig), "router" (then `name` is the router's) or "lab" (then
    `name` is one of `lab.EXPERIMENTS`).
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
        created, started, finished: ISO 8601, UTC; "" if not yet. `started` is that of the last run, if resumed.
        phase: what it is doing, in the runner's words. error: for a person. lobe_id: what it made, kept when resumed.
        latest: the last record. best_validation_loss: the least after step 0. base_validation_loss: that of step 0.
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


class JobHandle:
    """What a runner gets: where its files are and how to tell what happens. `stop` is set when it must end soon."""

    def __init__(self, jobs: Jobs, id: str) -> None:
        self._jobs, self._id, self._saved = jobs, id, -math.inf
        self.folder = jobs.folder / id
        self.data = self.folder / DATA_FILE
        self.checkpoint = self.folder / CHECKPOINT_FOLDER
        self.made = self.folder / MADE_FOLDER
        self.stop = threading.Event()

    @property
    def job(self) -> Job:
        return self._jobs.get(self._id)

    @property
    def closing(self) -> bool:
        """Whether it must end because the app does, not a person's stop: then leave the checkpoint and return ""."""
        return self._jobs.closed and self.job.state != "stopping"

    def record(self, record: Record) -> None:
        """Append a line to the metrics. Viewers here see it at once, `job.json` half a second later at most.

        Raises:
            JobError: the disk is full.
        """
        with _disk("The training curve cannot be written"), (self.folder / METRICS_FILE).open("ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
        due = record.get("validation_loss") is not None or time.monotonic() - self._saved >= _SAVE_EVERY
        self._jobs._change(self._id, lambda job: job.after([record]), save=due)
        self._saved = time.monotonic() if due else self._saved

    def follow(self, work: Generator[Progress, None, T]) -> T | None:
        """Write down all that it yields; returns what it returns, or None where the app closes first."""
        try:
            while not self.closing:
                record = next(work)
                if record.phase != self.job.phase:
                    self.phase(record.phase)
                self.record(record.to_json())
        except StopIteration as end:
            value: T = end.value
            return value
        work.close()
        return None

    def result(self, value: Any) -> None:
        """Keep what came out, as JSON, beside the job.

        Raises:
            JobError: the disk is full.
        """
        with _disk("The result cannot be written"):
            write_json(self.folder / RESULT_FILE, value)

    def phase(self, text: str) -> None:
        self.update(phase=text)

    def update(self, **fields: Any) -> None:
        """Set fields of the job, such as rows; id, spec, state and place are not the runner's."""
        assert not fields.keys() & {"id", "spec", "state", "place"}
        self._jobs._change(self._id, lambda job: replace(job, **fields))

    def truncate_metrics(self, step: int) -> None:
        """Drop the records after `step`, that of the checkpoint from which training goes on (-1: it begins anew)."""
        self._jobs._truncate(self._id, step)


Runner = Callable[[JobHandle], str]
"""Does one job and returns the id of the lobe made, if any. Raises MultiLobeError for what a person can understand."""


class Jobs:
    """The folder of jobs and the thread that works through them. Safe to use from several threads.

    Attributes:
        broken: id and reason of folders that cannot be read; `forget` removes them.
    """

    def __init__(self, folder: Path, runner: Runner, on_change: Callable[[], None] | None = None) -> None:
        """`on_change` is called after every visible change, with no lock held. Raises JobError without a folder."""
        self.folder = folder
        self.broken: dict[str, str] = {}
        self._runner, self._on_change = runner, on_change
        self._lock = threading.Condition(threading.RLock())  # taken before _curve_lock, never after it
        self._curve_lock = threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._queue: list[str] = []
        self._curves: dict[str, tuple[int, int, Records]] = {}  # id: inode, bytes read, records
        self._version = 0
        self._handle: JobHandle | None = None
        self._thread: threading.Thread | None = None
        self._lock_file: IO[str] | None = None
        self._refusal = "Training has not been started in this process."
        self._closed = threading.Event()
        with _disk("The folder for training jobs cannot be made"):
            folder.mkdir(parents=True, exist_ok=True)
        self._look()

    def start(self) -> None:
        """Mark what a dead process left running as interrupted, and begin to work through the queue."""
        with self._lock:
            if self._thread is None and not self.closed:
                self._thread = threading.Thread(target=self._work, name="training-jobs", daemon=True)
                self._own()
                self._thread.start()

    def close(self, timeout: float | None = 30.0) -> None:
        """Ask the running job to stop after its step, to be resumed another day, and wait for it."""
        with self._lock:
            self._closed.set()
            self._refusal = "The app is closing. Start it again to train."
            if self._handle is not None:
                self._handle.stop.set()
            self._lock.notify_all()
        if self._thread is not None:
            self._thread.join(timeout)

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    @property
    def read_only(self) -> str:
        """Why nothing can be trained here, such as another process at work; "" if it can."""
        return "" if self._own() and not self.closed else self._refusal

    # ---- for viewers -------------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """Higher after every visible change."""
        self._look()
        return self._version

    def get(self, id: str) -> Job:
        """Raises JobError if there is none."""
        with self._lock:
            self._look()
            if not _is_id(id) or id not in self._jobs:
                raise JobError(f"There is no training job {str(id)[:40]!r}. Reload the page to see those that exist.")
            return replace(self._jobs[id], place=self._queue.index(id) + 1 if id in self._queue else None)

    def metrics(self, id: str) -> Records:
        """The records so far, oldest first; do not change them. A call reads only what is new since the last."""
        self.get(id)
        with self._curve_lock:
            return self._curve(id)

    def result(self, id: str) -> Any:
        """What the job's `JobHandle.result` kept; None before. Raises JobError if there is no such job."""
        self.get(id)
        with suppress(OSError, ValueError):
            return read_json(self.folder / id / RESULT_FILE)
        return None

    def data(self, id: str) -> Path | None:
        """The job's copy of its data, if it has any. Raises JobError."""
        self.get(id)
        path = self.folder / id / DATA_FILE
        return path if path.is_file() else None

    def made(self, id: str) -> Path:
        """Folder for files that the job leaves for later, such as an adapter that may be kept. Raises JobError."""
        self.get(id)
        return self.folder / id / MADE_FOLDER

    def list(self) -> list[Job]:
        """Every job, newest first."""
        with self._lock:
            self._look()
            newest_first = sorted(self._jobs.values(), key=lambda job: job.created, reverse=True)
            places = {id: place for place, id in enumerate(self._queue, start=1)}
            return [replace(job, place=places.get(job.id)) for job in newest_first]

    # ---- for people --------------------------------------------------------------------------------------------------

    def submit(self, spec: JobSpec, data: Path | None) -> Job:
        """Queue a job with its own copy of `data`, if it has any. Raises JobError: no room, or another process works here."""
        self._check_own()
        id = secrets.token_hex(16)
        # through JSON, so that it looks now as it will after a restart
        job = _parse(id, json.loads(json.dumps(Job(id, spec, created=_now()).to_json())))
        problem = f"The data {spec.data_name or (data.name if data else '')} cannot be copied".replace("  ", " ")
        with _disk(problem), new_folder(self.folder / id) as temporary:
            if data is not None:
                shutil.copyfile(data, temporary / DATA_FILE)
            write_json(temporary / JOB_FILE, job.to_json())
        with self._queueing():
            self._put(job, save=False)
            self._queue.append(id)
        return self.get(id)

    def stop(self, id: str) -> Job:
        """Ask the running job to end after its step and to keep what it has made. Asking twice is asking once."""
        with self._queueing():
            self._put(replace(self._need(id, "stopped"), state="stopping"), strict=False)  # even on a full disk
            assert self._handle is not None
            self._handle.stop.set()
        return self.get(id)

    def resume(self, id: str) -> Job:
        """Queue a job again that has stopped, failed or been interrupted: it goes on from its checkpoint."""
        with self._queueing():
            self._put(replace(self._need(id, "resumed"), state="queued", finished="", error=""))
            self._queue.append(id)
        return self.get(id)

    def cancel(self, id: str) -> Job:
        """Take a job out of the queue; it can be resumed."""
        with self._queueing():
            self._put(replace(self._need(id, "cancelled"), state="stopped", finished=_now()))
            self._queue.remove(id)
        return self.get(id)

    def move(self, id: str, offset: int) -> Job:
        """Move a job in the queue: -1 is one place earlier. It halts at the ends."""
        with self._queueing():
            self._put(self._need(id, "moved"), save=False)
            place = self._queue.index(id)
            self._queue.insert(max(0, min(place + offset, len(self._queue) - 1)), self._queue.pop(place))
        return self.get(id)

    def forget(self, id: str) -> None:
        """Delete a job that is not running, with its data, curve and checkpoint. The lobe it made stays."""
        with self._queueing():
            self._check_own()
            if not (_is_id(id) and id in self.broken):
                self._need(id, "forgotten")
            gone = self.folder / f".{id}.deleted"  # out of sight first: half a folder must never be read as a job
            with _disk("The job cannot be deleted"):
                os.replace(self.folder / id, gone)
            self._queue = [other for other in self._queue if other != id]
            for kept in (self._jobs, self.broken, self._curves):
                kept.pop(id, None)
            self._version += 1
        shutil.rmtree(gone, ignore_errors=True)

    @contextmanager
    def _queueing(self) -> Iterator[None]:
        """A block that changes jobs or their order; the worker and the viewers hear of it."""
        with self._lock:
            yield
            self._save_queue()
            self._lock.notify_all()
        self._notify()

    def _need(self, id: str, verb: str) -> Job:
        """The job, if it is in a state for this. Raises JobError."""
        job = self.get(id)
        if job.state not in _ALLOWED[verb]:
            raise JobError(f"{job.spec.name!r} is {job.state} and cannot be {verb}: {_WAY_OUT[job.state]}.")
        self._check_own()
        return job

    # ---- the worker --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while (handle := self._next()) is not None:
                self._run(handle)
        finally:
            with self._lock:
                if self._lock_file is not None:
                    self._lock_file.close()
                    self._lock_file = None

    def _next(self) -> JobHandle | None:
        """Wait for a job and mark it running; None when the app closes."""
        with self._lock:
            while not self.closed:
                if self._own() and self._queue:
                    id = self._queue.pop(0)
                    self._handle = JobHandle(self, id)
                    self._put(replace(self._jobs[id], state="running", started=_now()), strict=False)
                    self._save_queue()
                    return self._handle
                self._lock.wait(None if self._lock_file else 1.0)  # by then, the other process may have ended
        return None

    def _run(self, handle: JobHandle) -> None:
        self._notify()
        id, lobe_id, error = handle.folder.name, "", ""
        try:
            self._truncate(id, math.inf)  # drops the half line that a killed process may have left
            lobe_id = str(self._runner(handle) or "")
        except MultiLobeError as problem:
            error = str(problem) or type(problem).__name__
        except BaseException as problem:  # also SystemExit: this thread has to live on
            with suppress(OSError):
                (handle.folder / ERROR_FILE).write_text(traceback.format_exc(), encoding="utf-8", errors="replace")
            error = f"Something unexpected stopped this run ({type(problem).__name__}). "
            error += f"Its progress is kept: resume, or see {ERROR_FILE}."
        with self._lock:
            job = self._jobs[id]
            good = "stopped" if job.state == "stopping" else "interrupted" if self.closed else "finished"
            job = replace(job, state="failed" if error else good, error=error, lobe_id=lobe_id or job.lobe_id)
            self._put(replace(job, finished=_now(), phase=""), strict=False)
            self._handle = None
        self._notify()

    def _change(self, id: str, change: Callable[[Job], Job], save: bool = True) -> None:
        with self._lock:
            self._put(change(self._jobs[id]), save=save)
        self._notify()

    def _truncate(self, id: str, step: float) -> None:
        path = self.folder / id / METRICS_FILE
        with self._curve_lock, _disk("The training curve cannot be written"):
            kept = [record for record in self._curve(id) if record.get("step", 0) <= step]
            temporary = path.with_name(f".{path.name}.new")
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="ascii")
            os.replace(temporary, path)
            self._curves.pop(id, None)
        self._change(id, lambda job: replace(job, latest={}, best_validation_loss=None).after(kept))

    def _put(self, job: Job, *, save: bool = True, strict: bool = True) -> None:
        """Keep a new state on disk, then in memory. Not strict: in memory even if the disk refuses. Needs the lock."""
        try:
            if save:
                with _disk("The job cannot be written"):
                    write_json(self.folder / job.id / JOB_FILE, job.to_json())
        except JobError as error:
            if strict:
                raise
            _log.warning("job %s is %s now. %s", job.id, job.state, error)
        self._jobs[job.id] = job
        self._version += 1

    def _save_queue(self) -> None:
        with suppress(OSError):  # then only the order is lost, at the next start
            write_json(self.folder / QUEUE_FILE, self._queue)

    def _curve(self, id: str) -> Records:
        """The records of the metrics file, of which only the new end is read. Needs _curve_lock."""
        inode, offset, records = self._curves.pop(id, (0, 0, []))
        try:
            with (self.folder / id / METRICS_FILE).open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != inode or status.st_size < offset:  # another file since: read it all
                    offset, records = 0, []
                file.seek(offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # being written
                    offset += len(line)
                    with suppress(ValueError):
                        record = json.loads(line)
                        records += [record] if isinstance(record, dict) else []
        except FileNotFoundError:
            return []
        self._curves[id] = (status.st_ino, offset, records)
        if len(self._curves) > _CURVES_KEPT:
            del self._curves[next(iter(self._curves))]
        return records.copy()

    def _notify(self) -> None:
        """Call it without the lock: the callback may wait for someone who waits for the lock."""
        try:
            if self._on_change is not None:
                self._on_change()
        except Exception:
            _log.exception("on_change failed")

    # ---- one process works, others read along ------------------------------------------------------------------------

    def _own(self) -> bool:
        """Take the folder's lock unless a live process has it, and recover what a dead one left. Cheap once ours."""
        with self._lock:
            if self._lock_file is not None or self._thread is None or self.closed:
                return self._lock_file is not None
            try:
                file = (self.folder / LOCK_FILE).open("a+")
            except OSError as error:
                self._refusal = f"The folder for training jobs cannot be written ({error.strerror})."
                return False
            if not _lock(file):
                file.seek(0)
                self._refusal = f"Another MultiLobe UI (process {file.read(20).strip() or 'unknown'}) trains in this "
                self._refusal += "home folder. Train there, close it, or set another MULTILOBE_HOME."
                file.close()
                return False
            with suppress(OSError):
                file.truncate(0)
                file.write(str(os.getpid()))
                file.flush()
            self._look()  # for the last time: from here on, memory leads and the disk follows
            self._lock_file = file
            self._recover()
            return True

    def _check_own(self) -> None:
        if reason := self.read_only:
            raise JobError(reason)

    def _recover(self) -> None:
        for path in self.folder.glob(".*"):
            if _ID.match(path.name, 1):  # a job half submitted or half deleted
                shutil.rmtree(path, ignore_errors=True)
        for job in tuple(self._jobs.values()):
            _tidy(self.folder / job.id)
            if job.state in ("running", "stopping"):
                with self._curve_lock:
                    job = job.after(self._curve(job.id))  # job.json may be half a second behind
                self._put(replace(job, state="interrupted", phase=""), strict=False)

    def _look(self) -> None:
        """Read the folder, unless it is us who write it."""
        with self._lock:
            if self._lock_file is not None:
                return
            before = self._jobs, self._queue, self.broken
            self._jobs, self.broken = {}, {}
            for id in sorted(path.name for path in self.folder.iterdir() if _is_id(path.name)):
                try:
                    self._jobs[id] = _parse(id, read_json(self.folder / id / JOB_FILE))
                except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                    self.broken[id] = f"{JOB_FILE} cannot be read ({type(error).__name__}: {error})"[:300]
            try:
                places = {id: place for place, id in enumerate(read_json(self.folder / QUEUE_FILE))}
            except (OSError, ValueError, TypeError):
                places = {}
            waiting = sorted((job for job in self._jobs.values() if job.state == "queued"), key=lambda job: job.created)
            self._queue = sorted((job.id for job in waiting), key=lambda id: places.get(id, len(places)))
            self._version += before != (self._jobs, self._queue, self.broken)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _is_id(id: object) -> bool:
    return isinstance(id, str) and _ID.fullmatch(id) is not None


def _parse(id: str, value: dict[str, Any]) -> Job:
    """Raises ValueError, TypeError, KeyError or AttributeError unless `value` is the JSON of job `id`."""
    job = from_json(Job, value | {"spec": from_json(JobSpec, value["spec"])})
    texts = (job.spec.name, job.spec.owner, job.created, job.phase, job.error, job.lobe_id)
    sound = all(isinstance(text, str) for text in texts) and isinstance(job.latest, dict) and job.state in STATES
    if job.id != id or not sound or not isinstance(job.spec.config, dict):
        raise ValueError("its values are not those of this job")
    return job


def _lock(file: IO[str]) -> bool:
    """Whether the lock is ours now; the system takes it back when this process dies, however it dies."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        _log.warning("this file system has no locks (%s): run one MultiLobe UI per home folder", error)
    return True


def _tidy(folder: Path) -> None:
    """Remove what a killed process left half written; a checkpoint caught between its two renames is put back."""
    with suppress(OSError):
        for old in folder.glob(f".{CHECKPOINT_FOLDER}.*.old"):
            if not (folder / CHECKPOINT_FOLDER).exists():
                new = old.with_suffix(".new")
                os.replace(new if new.exists() else old, folder / CHECKPOINT_FOLDER)
        for path in folder.glob(".*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def _disk(what: str) -> Iterator[None]:
    """Turns what the disk refuses into a JobError."""
    try:
        yield
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        way_out = "Free some space or check the folder's rights, then try again."
        raise JobError(f"{what} ({reason}). {way_out}") from error
