"""The Lab: experiments that run as jobs of the studio, so that they show progress, can be stopped,
and outlive the page.

An experiment is a generator of `Progress` that returns a result with `to_json`; what it is belongs
to `evaluation` and `composition`. Here it is queued, run, and its result found again.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from ..data import dataset
from ..errors import ConfigError
from ..evaluation.compare import Column, Comparison, compare
from ..progress import Progress
from ..routing.map import PromptMap
from ..settings import SamplingConfig, settings_of
from .feedback import Counts, Feedback
from .job_handle import JobHandle
from .jobs import Jobs
from .ledger import Cost, Ledger
from .loading import Loading

if TYPE_CHECKING:
    from ..evaluation.overlap import OverlapReport
    from ..model import MultiLobeModel

KIND = "lab"


class Result(Protocol):
    """What an experiment returns."""

    def to_json(self) -> Any: ...


class Run(Protocol):
    """An experiment at work.

    `settings` is an instance of the experiment's own class; `data` what `labelled.write_rows`
    wrote, if a person gave rows; `made` a folder, not there yet, for files that are to stay with
    the result; `stop` asks for an early end with what there is.
    """

    def __call__(
        self, model: MultiLobeModel, settings: Any, *, data: Path | None, made: Path, stop: threading.Event
    ) -> Generator[Progress, None, Result]: ...


@dataclass(frozen=True)
class Experiment:
    """One kind of experiment. What it needs of the package is named, and imported when it is asked
    for: it brings torch.

    Attributes:
        title: what a person calls it. module: where it is.
        settings_name: frozen dataclass of what may be set, all with defaults, checked as it is
            made. run_name: does it.
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
    "forgetting": Experiment(
        "Forgetting check", "evaluation.forgetting.measure", "ForgettingSettings", "checking", alone=True
    ),
    "merge": Experiment("Merge lobes", "merging.merge", "MergeSettings", "run_merge", alone=True),
    "speed": Experiment("Speed of this machine", "evaluation.speed", "SpeedSettings", "timing", alone=True),
    "search": Experiment("Search weights", "merging.weighing", "SearchSettings", "run_search"),
}


def experiment_named(name: str) -> Experiment:
    """Raises ConfigError if there is none of this name."""
    if name not in EXPERIMENTS:
        raise ConfigError(f"There is no experiment {name!r}. There are: {', '.join(EXPERIMENTS)}.")
    return EXPERIMENTS[name]


class Lab:
    """What all visitors of the Lab share; what one of them starts or keeps is a verb of their
    `lab_desk.LabDesk`.

    Args:
        jobs: where experiments run. loading: the model. feedback: where votes go. ledger: what answers cost.

    Attributes:
        keeping: held while the result of a run is made a lobe or a fit, so that nobody does it twice.
    """

    def __init__(self, jobs: Jobs, loading: Loading, feedback: Feedback, ledger: Ledger) -> None:
        self.jobs, self.loading, self.feedback, self.ledger = jobs, loading, feedback, ledger
        self.keeping = threading.Lock()
        self._exports = tempfile.TemporaryDirectory(prefix="multilobe-feedback-", ignore_cleanup_errors=True)

    @property
    def exports(self) -> Path:
        """A folder for files that are handed out, which goes with the process."""
        return Path(self._exports.name)

    def result(self, job_id: str) -> Mapping[str, Any] | None:
        """What an experiment found, as its result's `to_json`; None if it has not ended. Raises
        JobError if there is none."""
        found = self.jobs.result(job_id)
        if isinstance(found, Mapping):
            return found
        return None

    def run(self, model: MultiLobeModel, handle: JobHandle) -> None:
        """Do what a job asks for, on the jobs' thread."""
        job, made = handle.job, handle.made
        experiment = experiment_named(job.spec.name)
        settings = settings_of(experiment.settings(), job.spec.config)
        handle.truncate_metrics(-1)
        data = None
        if handle.data.is_file():
            data = handle.data
        work = experiment.run()(model, settings, data=data, made=made, stop=handle.stop)
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
        return compare(self.loading.ready(), prompt, columns, sampling, stop)

    def vote(self, prompt: str, answers: Sequence[Mapping[str, Any]], best: int | None) -> None:
        """Keep which of several answers is best, None for a tie: see `feedback.Feedback.vote`."""
        self.feedback.vote(prompt, answers, best)

    def feedback_counts(self) -> Counts:
        return self.feedback.counts()

    # ---- corrections ------------------------------------------------------------------------------------------------------

    def corrections(self) -> list[dict[str, Any]]:
        """What people have said of prompts, oldest first: {"id", "prompt", "lobe" (None: none
        fits), "was", "created", "kept"}.

        Raises:
            BusyError: the base model is still loading; a page that is being built does not wait for it.
        """
        model = self.loading.ready(0)
        names = {lobe.id: lobe.name for lobe in model.lobes} | {"": None}
        return [
            {**asdict(correction), "lobe": names[correction.lobe]}
            for correction in model.routers.corrections.all()
            if correction.lobe in names
        ]

    # ---- merge ------------------------------------------------------------------------------------------------------------

    def merge_options(self, names: Sequence[str]) -> dict[str, str]:
        """For every way to combine lobes "" if these lobes can be combined so, else why not.

        Raises:
            LobeError, AdapterError: a lobe is gone or cannot be read.
        """
        store = self.loading.ready().lobes.store
        from ..lobes.adapter import read_header
        from ..merging import possible

        lobes = [store.by_name(name) for name in names]
        return possible([read_header(lobe.path) for lobe in lobes], [lobe.name for lobe in lobes])

    # ---- before training, and costs ---------------------------------------------------------------------------------------

    def overlap(
        self,
        path: str | Path,
        mapping: Mapping[str, str] | None = None,
        validation_fraction: float | None = None,
        seed: int = 0,
        skip_bad: bool = True,
    ) -> OverlapReport:
        """How a file sits among the lobes: see `evaluation.overlap`. Of a very long one the first
        rows, which are not split.

        Raises:
            DataError: it cannot be read. ConfigError: validation_fraction is out of range.
        """
        model = self.loading.ready()
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
        return prompt_map({**self.loading.ready().routers.context(()).rows, **new}, None)

    def ledger_totals(self) -> dict[str, dict[str, Any]]:
        """What answers cost, for each router: see `ledger.Ledger.totals`."""
        return self.ledger.totals()

    def ledger_recent(self, most: int = 20) -> list[Cost]:
        """The latest answers, newest first."""
        return self.ledger.recent(most)
