"""The Lab: experiments that run as jobs of the studio, so that they show progress, can be stopped, and outlive the page.

An experiment is a generator of `Progress` that returns a result with `to_json`; what it is belongs to `evaluation` and
`composition`. Here it is queued, run, and its result found again.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from ..data import dataset
from ..errors import ConfigError, JobError
from ..evaluation.compare import Column, Comparison, compare
from ..files import write_json
from ..progress import Progress
from ..routing.map import PromptMap
from ..settings import SamplingConfig, settings_of
from .feedback import ROUTING, Counts, Feedback
from .jobs import RESULT_FILE, Job, JobHandle, Jobs, JobSpec
from .ledger import Cost, Ledger
from .views import JobView

if TYPE_CHECKING:
    from ..evaluation.overlap import OverlapReport
    from ..model import MultiLobeModel

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
    """One kind of experiment. What it needs of the package is named, and imported when it is asked for: it brings torch.

    Attributes:
        title: what a person calls it. module: where it is.
        settings_name: frozen dataclass of what may be set, all with defaults, checked as it is made. run_name: does it.
        needs_label: whether rows that are given must say whose they are.
        alone: on a shared server only the owner of the machine may run it: it takes long, or makes lobes.
    """

    title: str
    module: str
    settings_name: str
    run_name: str
    needs_label: bool = False
    alone: bool = False

    def settings(self) -> type[Any]:
        return cast(type[Any], self._imported(self.settings_name))

    def run(self) -> Run:
        return cast(Run, self._imported(self.run_name))

    def _imported(self, name: str) -> Any:
        return getattr(import_module(f"multilobe_ui.{self.module}"), name)


EXPERIMENTS: Mapping[str, Experiment] = {
    "report": Experiment("Report card", "evaluation.report", "ReportSettings", "reporting", needs_label=True),
    "refit": Experiment(
        "Refit with corrections", "evaluation.refit", "RefitSettings", "refitting", needs_label=True, alone=True
    ),
    "losses": Experiment("Loss matrix", "evaluation.losses", "LossSettings", "measuring"),
    "forgetting": Experiment("Forgetting check", "evaluation.forgetting.measure", "ForgettingSettings", "checking", alone=True),
    "merge": Experiment("Merge lobes", "merging.merge", "MergeSettings", "run_merge", alone=True),
    "speed": Experiment("Speed of this machine", "evaluation.speed", "SpeedSettings", "timing", alone=True),
    "search": Experiment("Search weights", "merging.weighing", "SearchSettings", "run_search"),
}


class Lab:
    """See the module's text.

    Args:
        jobs: where experiments run. model: the model once it is loaded, within the seconds given.
        view: a job as a page shows it, for a visitor. base: name of the present base model.
        feedback: where votes go. ledger: what answers cost.
    """

    def __init__(
        self,
        jobs: Jobs,
        model: Callable[..., MultiLobeModel],
        view: Callable[[Job, str], JobView],
        base: Callable[[], str],
        shared: bool,
        feedback: Feedback,
        ledger: Ledger,
    ) -> None:
        self._jobs, self._model, self._view, self._base, self._shared = jobs, model, view, base, shared
        self._feedback, self._ledger = feedback, ledger
        self._keeping = threading.Lock()
        self._exports = tempfile.TemporaryDirectory(prefix="multilobe-feedback-", ignore_cleanup_errors=True)

    def start(
        self,
        name: str,
        settings: Mapping[str, Any] | None = None,
        files: Sequence[tuple[str, Path]] = (),
        owner: str = "",
        *,
        rows_of: str = "",
    ) -> JobView:
        """Queue an experiment.

        Args:
            name: of `EXPERIMENTS`. files: (what the person calls it, where it is); the rows are copied.
            rows_of: id of an earlier run whose rows to take instead.

        Raises:
            ConfigError: no such experiment or setting, a value out of range, or a shared server that does not run it.
            DataError: a file cannot be read, or has labels that are no lobes.
        """
        experiment = self._named(name)
        if self._shared and experiment.alone:
            raise ConfigError(f"This server is shared, so it does not run: {experiment.title}. Run your own copy for that.")
        names = self._model().lobe_names  # loaded, for the settings' module brings torch: see `Studio._ready`
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
            data = self._jobs.data(rows_of) if rows_of and self._may_see(self._jobs.get(rows_of), owner) else None
            return self._view(self._jobs.submit(spec, data), owner)
        from ..evaluation.labelled import read_labelled, write_rows

        rows = read_labelled(files, names, need_label=experiment.needs_label)
        with tempfile.TemporaryDirectory(prefix="multilobe-lab-") as scratch:
            write_rows(Path(scratch) / "rows.jsonl", rows)
            return self._view(self._jobs.submit(spec, Path(scratch) / "rows.jsonl"), owner)

    def runs(self, name: str, owner: str = "") -> list[JobView]:
        """Every run of an experiment, newest first; on a shared server not those on rows that somebody else has brought."""
        jobs = [job for job in self._jobs.list() if job.spec.kind == KIND and job.spec.name == name]
        return [self._view(job, owner) for job in jobs if self._may_see(job, owner)]

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
        found = handle.follow(work)
        if found is not None:
            handle.result(found.to_json())

    # ---- compare ----------------------------------------------------------------------------------------------------------

    def compare(
        self,
        prompt: str,
        columns: Sequence[Column],
        sampling: SamplingConfig | None = None,
        stop: threading.Event | None = None,
    ) -> Iterator[Comparison]:
        """One prompt, up to four answers at once: see `comparison.compare`."""
        return compare(self._model(), prompt, columns, sampling, stop)

    def vote(self, prompt: str, answers: Sequence[Mapping[str, Any]], best: int | None) -> None:
        """Keep which of several answers is best, None for a tie: see `feedback.Feedback.vote`."""
        self._feedback.vote(prompt, answers, best)

    def feedback_counts(self) -> Counts:
        return self._feedback.counts()

    def export_feedback(self, kind: str) -> Path:
        """What people said, as a JSONL file in a temporary folder: "routing" for labelled prompts of the present lobes,
        "training" for a training set.

        Raises:
            ConfigError: another kind, or a shared server: these are the words of others. DataError: there is none yet.
        """
        if self._shared:
            raise ConfigError(
                "This server is shared, so its feedback is not handed out: it holds the words of others. Run your own copy."
            )
        name = "labelled-prompts" if kind == ROUTING else "training-set"
        target = Path(self._exports.name) / f"feedback-{name}-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
        self._feedback.export(kind, target, self._model().lobe_names if kind == ROUTING else None)
        return target

    # ---- corrections ------------------------------------------------------------------------------------------------------

    def corrections(self) -> list[dict[str, Any]]:
        """What people have said of prompts, oldest first: {"id", "prompt", "lobe" (None: none fits), "was", "created", "kept"}.

        Raises:
            BusyError: the base model is still loading; a page that is being built does not wait for it.
        """
        model = self._model(0)
        names = {lobe.id: lobe.name for lobe in model.lobes} | {"": None}
        return [
            {**asdict(correction), "lobe": names[correction.lobe]}
            for correction in model.routers.corrections.all()
            if correction.lobe in names
        ]

    def correct(self, prompt: str, lobe: str | None, was: str = "") -> None:
        """Say who should answer a prompt: a lobe, or None for the base model. It counts once a refit with it has been kept.

        Raises:
            ConfigError: a shared server, or a prompt that is empty or too long. LobeError: no such lobe.
        """
        self._own("correct prompts")
        model = self._model()
        model.routers.corrections.add(prompt, model.lobes.named(lobe).id if lobe else "", was)

    def keep_refit(self, job_id: str) -> None:
        """Put the corrections of a run of "refit" in force, with the fits that it made.

        Raises:
            ConfigError: a shared server. JobError: no such run. RoutingError: lobes or corrections have changed since.
        """
        self._own("keep corrections")
        with self._keeping:
            result = self.result(job_id)
            if self._jobs.get(job_id).spec.name != "refit" or result is None:
                raise JobError("This run has not refitted anything. Refit with the corrections first.")
            model = self._model()
            from ..evaluation.refit import keep_refit

            keep_refit(model, result["ids"], self._jobs.made(job_id))
            write_json(self._jobs.folder / job_id / RESULT_FILE, {**result, "kept": True})

    def forget_corrections(self, ids: Sequence[str] | None = None) -> None:
        """Take back these corrections, or all. Raises ConfigError on a shared server."""
        self._own("take corrections back")
        self._model().routers.forget_corrections(ids)

    def _own(self, what: str) -> None:
        if self._shared:
            raise ConfigError(f"This server is shared, so nobody can {what} here. Run your own copy to do so.")

    # ---- merge ------------------------------------------------------------------------------------------------------------

    def merge_options(self, names: Sequence[str]) -> dict[str, str]:
        """For every way to combine lobes "" if these lobes can be combined so, else why not.

        Raises:
            LobeError, AdapterError: a lobe is gone or cannot be read.
        """
        store = self._model().lobes.store
        from ..lobes.adapter import read_header
        from ..merging import possible

        lobes = [store.by_name(name) for name in names]
        return possible([read_header(lobe.path) for lobe in lobes], [lobe.name for lobe in lobes])

    def keep_merge(self, job_id: str, name: str, owner: str = "", routed: bool = True) -> str:
        """Make a lobe of what a run of "merge" made; returns its name.

        Args:
            routed: let routers choose it, by rows of its parents.

        Raises:
            JobError: no such run, somebody else's, not a merge that has ended, or kept already. LobeError: the name is taken.
        """
        job = self._jobs.get(job_id)
        if self._shared and job.spec.owner != owner:
            raise JobError("This merge belongs to somebody else, so only they can keep it.")
        with self._keeping:
            result = self.result(job_id)
            if job.spec.name != "merge" or result is None:
                raise JobError("This run has made no lobe that could be kept. Try a merge first.")
            if result.get("kept"):
                raise JobError(f"This merge is kept already, as {result['kept']!r}. Try it again to make another lobe of it.")
            model = self._model()
            from ..merging import keep_merge

            lobe = keep_merge(model, self._jobs.made(job_id), result, name, owner=owner, routed=routed)
            with suppress(OSError):  # a second time is refused all the same: its files have gone into the lobe
                write_json(self._jobs.folder / job_id / RESULT_FILE, {**result, "kept": lobe.name})
        return lobe.name

    # ---- before training, and costs ---------------------------------------------------------------------------------------

    def overlap(
        self,
        path: str | Path,
        mapping: Mapping[str, str] | None = None,
        validation_fraction: float | None = None,
        seed: int = 0,
        skip_bad: bool = True,
    ) -> OverlapReport:
        """How a file sits among the lobes: see `evaluation.overlap`. Of a very long one the first rows, which are not split.

        Raises:
            DataError: it cannot be read. ConfigError: validation_fraction is out of range.
        """
        model = self._model()
        from ..evaluation.overlap import MOST_ROWS, overlap

        examples = dataset.load(path, mapping, skip_bad, MOST_ROWS + 1)
        truncated = len(examples) > MOST_ROWS
        context = model.routers.context(())
        rows = {name: context.rows.get(name) for name in context.lobes}
        fraction = 0.0 if truncated else validation_fraction
        report = overlap(examples[:MOST_ROWS], rows, context.embed, validation_fraction=fraction, seed=seed)
        return replace(report, truncated=truncated)

    def overlap_map(self, report: OverlapReport, name: str) -> PromptMap:
        """The new data of a report as one more lobe of that name, on the map of the lobes."""
        from ..routing.map import prompt_map

        new = {name: report.kept} if report.kept is not None else {}
        return prompt_map({**self._model().routers.context(()).rows, **new}, None)

    def ledger_totals(self) -> dict[str, dict[str, Any]]:
        """What answers cost, for each router: see `ledger.Ledger.totals`."""
        return self._ledger.totals()

    def ledger_recent(self, most: int = 20) -> list[Cost]:
        """The latest answers, newest first."""
        return self._ledger.recent(most)

    def clear_ledger(self, owner: str = "") -> None:
        """Begin the ledger anew. Raises ConfigError on a shared server: it is everybody's."""
        if self._shared:
            raise ConfigError("This server is shared, so its ledger stays. Run your own copy to begin one anew.")
        self._ledger.clear()

    # ---- inside -----------------------------------------------------------------------------------------------------------

    def _may_see(self, job: Job, owner: str) -> bool:
        return not self._shared or job.spec.owner == owner or not job.spec.data_name

    def _named(self, name: str) -> Experiment:
        if name not in EXPERIMENTS:
            raise ConfigError(f"There is no experiment {name!r}. There are: {', '.join(EXPERIMENTS)}.")
        return EXPERIMENTS[name]
