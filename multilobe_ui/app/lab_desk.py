"""The Lab for one visitor: what starts, keeps or clears something, and which runs they see."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import JobError
from ..files import write_json
from ..settings import settings_of
from .feedback import ROUTING
from .job import RESULT_FILE, Job, JobSpec
from .lab import KIND, Experiment, Lab, experiment_named
from .views import JobView, job_view
from .visitors import Visitor


class LabDesk:
    """See the module's text."""

    def __init__(self, lab: Lab, visitor: Visitor) -> None:
        self._lab, self._visitor = lab, visitor

    def start(
        self,
        name: str,
        settings: Mapping[str, Any] | None = None,
        files: Sequence[tuple[str, Path]] = (),
        *,
        rows_of: str = "",
    ) -> JobView:
        """Queue an experiment.

        Args:
            name: of `EXPERIMENTS`. files: (what the person calls it, where it is); the rows are copied.
            rows_of: id of an earlier run whose rows to take instead.

        Raises:
            ConfigError: no such experiment or setting, a value out of range, or a shared server
                that does not run it.
            DataError: a file cannot be read, or has labels that are no lobes.
        """
        experiment, jobs = experiment_named(name), self._lab.jobs
        if experiment.alone:
            self._visitor.must_be_allowed("run a long experiment", experiment.title)
        names = (
            self._lab.loading.ready().lobe_names
        )  # loaded, for the settings' module brings torch: see `Loading.ready`
        settings_of(experiment.settings(), settings or {})
        spec = JobSpec(
            name=name,
            config=dict(settings or {}),
            owner=self._visitor.id,
            data_name=", ".join(called for called, _ in files),
            extra={"base": self._lab.loading.base},
            kind=KIND,
        )
        if files:
            return self._view(self._with_rows(spec, files, names, experiment))
        if rows_of and self._may_see(jobs.get(rows_of)):
            return self._view(jobs.submit(spec, jobs.data(rows_of)))
        return self._view(jobs.submit(spec, None))

    def runs(self, name: str) -> list[JobView]:
        """Every run of an experiment, newest first; on a shared server not those on rows that
        somebody else has brought."""
        jobs = [job for job in self._lab.jobs.list() if job.spec.kind == KIND and job.spec.name == name]
        return [self._view(job) for job in jobs if self._may_see(job)]

    def export_feedback(self, kind: str) -> Path:
        """What people said, as a JSONL file in a temporary folder: "routing" for labelled prompts
        of the present lobes, "training" for a training set.

        Raises:
            ConfigError: another kind, or a shared server: these are the words of others. DataError:
                there is none yet.
        """
        self._visitor.must_be_allowed("export feedback")
        name, lobes = "training-set", None
        if kind == ROUTING:
            name, lobes = "labelled-prompts", self._lab.loading.ready().lobe_names
        target = self._lab.exports / f"feedback-{name}-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
        self._lab.feedback.export(kind, target, lobes)
        return target

    def correct(self, prompt: str, lobe: str | None, was: str = "") -> None:
        """Say who should answer a prompt: a lobe, or None for the base model. It counts once a
        refit with it has been kept.

        Raises:
            ConfigError: a shared server, or a prompt that is empty or too long. LobeError: no such lobe.
        """
        self._visitor.must_be_allowed("correct prompts")
        model, id = self._lab.loading.ready(), ""
        if lobe:
            id = model.lobes.named(lobe).id
        model.routers.corrections.add(prompt, id, was)

    def keep_refit(self, job_id: str) -> None:
        """Put the corrections of a run of "refit" in force, with the fits that it made.

        Raises:
            ConfigError: a shared server. JobError: no such run. RoutingError: lobes or corrections
                have changed since.
        """
        self._visitor.must_be_allowed("keep corrections")
        with self._lab.keeping:
            result = self._lab.result(job_id)
            if self._lab.jobs.get(job_id).spec.name != "refit" or result is None:
                raise JobError("This run has not refitted anything. Refit with the corrections first.")
            model = self._lab.loading.ready()
            from ..evaluation.refit import keep_refit

            keep_refit(model, result["ids"], self._lab.jobs.made(job_id))
            write_json(self._lab.jobs.folder / job_id / RESULT_FILE, {**result, "kept": True})

    def forget_corrections(self, ids: Sequence[str] | None = None) -> None:
        """Take back these corrections, or all. Raises ConfigError on a shared server."""
        self._visitor.must_be_allowed("take corrections back")
        self._lab.loading.ready().routers.forget_corrections(ids)

    def keep_merge(self, job_id: str, name: str, routed: bool = True) -> str:
        """Make a lobe of what a run of "merge" made; returns its name.

        Args:
            routed: let routers choose it, by rows of its parents.

        Raises:
            JobError: no such run, somebody else's, not a merge that has ended, or kept already.
                LobeError: the name is taken.
        """
        job = self._lab.jobs.get(job_id)
        self._visitor.must_be_allowed("keep a merge", owner=job.spec.owner)
        with self._lab.keeping:
            result = self._lab.result(job_id)
            if job.spec.name != "merge" or result is None:
                raise JobError("This run has made no lobe that could be kept. Try a merge first.")
            if result.get("kept"):
                raise JobError(
                    f"This merge is kept already, as {result['kept']!r}. Try it again to make another lobe of it."
                )
            model = self._lab.loading.ready()
            from ..merging import keep_merge

            made, owner = self._lab.jobs.made(job_id), self._visitor.id
            lobe = keep_merge(model, made, result, name, owner=owner, routed=routed)
            with suppress(OSError):  # a second time is refused all the same: its files have gone into the lobe
                write_json(self._lab.jobs.folder / job_id / RESULT_FILE, {**result, "kept": lobe.name})
        return lobe.name

    def clear_ledger(self) -> None:
        """Begin the ledger anew. Raises ConfigError on a shared server: it is everybody's."""
        self._visitor.must_be_allowed("clear the ledger")
        self._lab.ledger.clear()

    def _with_rows(
        self, spec: JobSpec, files: Sequence[tuple[str, Path]], lobes: Sequence[str], experiment: Experiment
    ) -> Job:
        """Queue an experiment with the rows of a person's files."""
        from ..evaluation.labelled import read_labelled, write_rows

        rows = read_labelled(files, lobes, need_label=experiment.needs_label)
        with tempfile.TemporaryDirectory(prefix="multilobe-lab-") as scratch:
            write_rows(Path(scratch) / "rows.jsonl", rows)
            return self._lab.jobs.submit(spec, Path(scratch) / "rows.jsonl")

    def _may_see(self, job: Job) -> bool:
        return not job.spec.data_name or self._visitor.owns(job.spec.owner)

    def _view(self, job: Job) -> JobView:
        return job_view(job, self._visitor.owns(job.spec.owner))
