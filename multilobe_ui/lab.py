"""The Lab: experiments that run as jobs of the studio, so that they show progress, can be stopped, and outlive the page.

An experiment is a generator of `Progress` that returns a result with `to_json`; what it is belongs to `evaluation` and
`composition`. Here it is queued, run, and its result found again.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .config import settings_of
from .errors import ConfigError
from .jobs import Job, JobHandle, Jobs, JobSpec
from .progress import Progress
from .views import JobView

if TYPE_CHECKING:
    from .model import MultiLobeModel

KIND = "lab"


class Result(Protocol):
    """What an experiment returns."""

    def to_json(self) -> Any: ...


class Run(Protocol):
    """An experiment at work.

    `settings` is an instance of the experiment's own class; `data` what `labelled.write_rows` wrote, if a person gave rows; `made`
    a folder, not there yet, for files that are to stay with the result; `stop` asks for an early end with what there is.
    """

    def __call__(
        self, model: MultiLobeModel, settings: Any, *, data: Path | None, made: Path, stop: threading.Event
    ) -> Generator[Progress, None, Result]: ...


@dataclass(frozen=True)
class Experiment:
    """One kind of experiment.

    Attributes:
        title: what a person calls it. settings: frozen dataclass of what may be set, all with defaults, checked as it is made.
        run: does it. needs_label: whether rows that are given must say whose they are.
        alone: on a shared server only the owner of the machine may run it: it takes long, or makes lobes.
    """

    title: str
    settings: Callable[[], type[Any]]
    run: Callable[[], Run]
    needs_label: bool = False
    alone: bool = False


EXPERIMENTS: Mapping[str, Experiment] = {}
"""By name. Classes and functions are named through functions, because importing them brings torch."""


class Lab:
    """See the module's text.

    Args:
        jobs: where experiments run. model: the model once it is loaded. view: a job as a page shows it, for a visitor.
        base: name of the present base model.
    """

    def __init__(
        self,
        jobs: Jobs,
        model: Callable[[], MultiLobeModel],
        view: Callable[[Job, str], JobView],
        base: Callable[[], str],
        shared: bool,
    ) -> None:
        self._jobs, self._model, self._view, self._base, self._shared = jobs, model, view, base, shared

    def start(
        self,
        name: str,
        settings: Mapping[str, Any] | None = None,
        files: Sequence[tuple[str, Path]] = (),
        owner: str = "",
    ) -> JobView:
        """Queue an experiment.

        Args:
            name: of `EXPERIMENTS`. files: (what the person calls it, where it is); the rows are copied.

        Raises:
            ConfigError: no such experiment or setting, a value out of range, or a shared server that does not run it.
            DataError: a file cannot be read, or has labels that are no lobes.
        """
        experiment = self._named(name)
        if self._shared and experiment.alone:
            raise ConfigError(f"This server is shared, so it does not run: {experiment.title}. Run your own copy for that.")
        settings_of(experiment.settings(), settings or {})
        spec = JobSpec(
            name=name,
            config=dict(settings or {}),
            owner=owner,
            data_name=", ".join(called for called, _ in files),
            extra={"base": self._base()},
            kind=KIND,
        )
        if not files:
            return self._view(self._jobs.submit(spec, None), owner)
        from .evaluation.labelled import read_labelled, write_rows

        rows = read_labelled(files, self._model().lobe_names, need_label=experiment.needs_label)
        with tempfile.TemporaryDirectory(prefix="multilobe-lab-") as scratch:
            write_rows(Path(scratch) / "rows.jsonl", rows)
            return self._view(self._jobs.submit(spec, Path(scratch) / "rows.jsonl"), owner)

    def runs(self, name: str, owner: str = "") -> list[JobView]:
        """Every run of an experiment, newest first."""
        return [self._view(job, owner) for job in self._jobs.list() if job.spec.kind == KIND and job.spec.name == name]

    def result(self, job_id: str) -> Mapping[str, Any] | None:
        """What an experiment found, as its result's `to_json`; None if it has not ended. Raises JobError if there is none."""
        found = self._jobs.result(job_id)
        return found if isinstance(found, Mapping) else None

    def run(self, model: MultiLobeModel, handle: JobHandle) -> None:
        """Do what a job asks for, on the jobs' thread."""
        job, made = handle.job, handle.made
        experiment = self._named(job.spec.name)
        settings = settings_of(experiment.settings(), job.spec.config)
        handle.truncate_metrics(-1)
        work = experiment.run()(
            model, settings, data=handle.data if handle.data.is_file() else None, made=made, stop=handle.stop
        )
        try:
            while not handle.closing:
                record = next(work)
                if record.phase != handle.job.phase:
                    handle.phase(record.phase)
                handle.record(record.to_json())
        except StopIteration as end:
            handle.result(end.value.to_json())
            return
        work.close()

    def _named(self, name: str) -> Experiment:
        if name not in EXPERIMENTS:
            raise ConfigError(f"There is no experiment {name!r}. There are: {', '.join(EXPERIMENTS)}.")
        return EXPERIMENTS[name]
