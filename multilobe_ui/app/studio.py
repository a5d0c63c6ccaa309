"""Studio: what the process shares with all its visitors: the base model, the runs, the home folder,
and the desks.

It is put together of `Loading` (the base), `Runs` (jobs) and the Lab. Its own methods only read;
whatever changes something, or looks different to different people, is a verb of their `desk`. All
take and return plain values and raise only `MultiLobeError`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import dataset
from ..data.examples import Example
from ..errors import ConfigError
from ..evaluation.compare import AUTOMATIC, Column
from ..files import made_home
from ..routing.decision import AUTO, Mixing, RoutingDecision
from ..routing.map import PromptMap
from ..settings import SamplingConfig, budget_from_environment, suggested_learning_rate
from .desk import Desk
from .feedback import Feedback
from .lab import Lab
from .ledger import Ledger
from .loading import Loading
from .runs import Runs
from .views import ChatEvent, StudioStatus
from .visitors import Visitor

if TYPE_CHECKING:
    from ..model import MultiLobeModel

KEPT_BUNDLES = 20


class Studio:
    """See the module's text.

    Args:
        home: where lobes, jobs and calibrations live; None is MULTILOBE_HOME, else ~/.multilobe.
        base: name of the base model; None takes the one chosen last, else the built-in one.
        shared: people may touch only what is theirs; None is true on Hugging Face Spaces and where
            MULTILOBE_SHARED=1.
        demo: install the ready-made demo lobes into a new home.
        memory_budget_mib: MiB that lobes may take in memory; None is MULTILOBE_MEMORY_MIB, else
            what was last set for the home.

    Raises:
        ConfigError: a budget that is no number above 0; a home that cannot be made.
    """

    def __init__(
        self,
        home: str | Path | None = None,
        base: str | None = None,
        *,
        shared: bool | None = None,
        demo: bool = True,
        memory_budget_mib: float | None = None,
    ) -> None:
        if memory_budget_mib is None:
            memory_budget_mib = budget_from_environment()
        if shared is None:
            shared = os.environ.get("MULTILOBE_SHARED", "") == "1" or os.environ.get("SYSTEM") == "spaces"
        self.home, self.shared = made_home(home), shared
        self.loading = Loading(self.home, base, demo, memory_budget_mib)
        self.feedback_file = Feedback(self.home / "feedback.jsonl")
        self.ledger = Ledger(self.home / "ledger.jsonl")
        self.runs = Runs(self.home / "jobs", self.loading, self._experiment)
        self.lab = Lab(self.runs.jobs, self.loading, self.feedback_file, self.ledger)

    def desk(self, visitor: str = "") -> Desk:
        """The studio for one visitor; "" is somebody who has not said who they are."""
        return Desk(Visitor(visitor, self.shared), self.loading, self.runs, self.lab)

    def start(self) -> None:
        """Load the base model and its lobes in the background, and begin to work on queued jobs;
        returns at once."""
        self.loading.start()
        self.runs.jobs.start()

    def close(self) -> None:
        """Let a running job keep its checkpoint, to be resumed another day."""
        self.runs.jobs.close()

    def status(self) -> StudioStatus:
        loading = self.loading
        with loading.lock:
            model, version = loading.model, loading.changes + self.runs.jobs.version
            if model is None:
                return StudioStatus(loading.state, loading.message, None, len(loading.store.all()), version)
            from ..base.backbone import describe

            base = describe(model.backbone)
            return StudioStatus(loading.state, loading.message, base, len(model.lobes), version + model.routers.version)

    def ready(self, timeout: float | None = 120.0) -> MultiLobeModel:
        """The model, once it is loaded: see `Loading.ready`."""
        return self.loading.ready(timeout)

    # ---- chat -----------------------------------------------------------------------------------------------------

    def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        choice: str = AUTOMATIC,
        sampling: SamplingConfig | None = None,
        stop: threading.Event | None = None,
        *,
        router: str | None = None,
        mixing: Mixing = AUTO,
        weights: Mapping[str, float] | None = None,
    ) -> Iterator[ChatEvent]:
        """Answer the last message: first an event with the decision, then the growing text, last
        one that is done.

        Args:
            choice: AUTOMATIC, BASE_ONLY, "lobe:NAME", or MIX. stop: set it to end early.
            router: who decides if the choice is AUTOMATIC; None is the default. mixing: how many
                lobes it may choose.
            weights: by lobe name, if the choice is MIX.

        Raises:
            MultiLobeError: the lobe is gone, the message empty or too long, or the model not to be had.
        """
        column = Column(choice, router, mixing, weights or {})
        model = self.ready()
        from .answering import Answering

        how = sampling or SamplingConfig()
        yield from Answering(model, messages, column, how, stop, self.ledger.add, together=self.shared).events()

    def feedback(self, prompt: str, answer: str, decision: RoutingDecision | None, liked: bool) -> None:
        """Keep a thumb up or down, as a line of `feedback.jsonl` in the home: later a training set,
        or labelled routing data."""
        lobe = None
        if decision is not None:
            lobe = decision.chosen
        self.feedback_file.thumb(prompt, answer, lobe, liked)

    # ---- before training ------------------------------------------------------------------------------------------

    def inspect(
        self, path: str | Path, mapping: Mapping[str, str] | None = None, progress: Callable[[int], None] | None = None
    ) -> dataset.DatasetReport:
        """What a file is; token lengths only once the base model is there."""
        model = self.loading.model
        if model is None:
            return dataset.inspect(path, mapping, None, progress=progress)
        backbone = model.backbone

        def count_tokens(rows: Sequence[Example]) -> list[int]:
            return [len(backbone.encode_chat(row.context)) + len(backbone.encode_answer(row.answer)) for row in rows]

        return dataset.inspect(path, mapping, count_tokens, progress=progress)

    def metrics(self, job_id: str) -> list[dict[str, Any]]:
        """The job's StepRecords as JSON, oldest first; do not change them."""
        return self.runs.jobs.metrics(job_id)

    def suggested_learning_rate(self) -> float | None:
        """What an empty learning rate means on this base; None while it is loading."""
        model = self.loading.model
        if model is None:
            return None
        return suggested_learning_rate(model.backbone.hidden_size)

    # ---- routers --------------------------------------------------------------------------------------------------

    def route(self, prompt: str, router: str | None = None, mixing: Mixing | None = None) -> RoutingDecision:
        """Decide without answering."""
        return self.ready().route(prompt, router, mixing or AUTO)

    def compare_routers(self, prompt: str) -> list[RoutingDecision]:
        """What every router that can be used decides, the default first."""
        return [self.route(prompt, view.name) for view in self.desk().routers() if view.fitted]

    def stratify(self, low: float = 0.3, high: float = 0.7, path: str | Path | None = None) -> dict[str, Any]:
        """How the lobes' prompts, or those of a file, fall into simple, medium and complex:
        {"rows", "counts", "examples", "means" of the features, "parser"}, each by tier."""
        from ..routers.complexity.features import Analyser, check_thresholds

        check_thresholds(low, high)
        if path:
            prompts = [row.prompt for row in dataset.load(path)]
        else:
            prompts = self.ready().routers.contexts.prompts()
        if not prompts:
            raise ConfigError("No lobe came with rows to look at. Train a lobe, or choose a file.")
        return {"rows": len(prompts), **Analyser().stratify(prompts, low, high).to_json()}

    def prompt_map(self, prompt: str = "") -> PromptMap:
        """Where a prompt lies among the lobes' rows."""
        from ..routing.map import prompt_map

        context = self.ready().routers.context()
        if not prompt.strip():
            return prompt_map(context.rows, None)
        return prompt_map(context.rows, context.embed([prompt])[0])

    # ---- bundles --------------------------------------------------------------------------------------------------

    def save_bundle(self, names: Sequence[str] | None = None) -> Path:
        """A zip of all lobes or those named, in a temporary folder from which the page may hand it out."""
        folder = Path(tempfile.gettempdir()) / "multilobe-bundles"
        folder.mkdir(exist_ok=True)
        made = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)
        for old in made[: -KEPT_BUNDLES or None]:
            shutil.rmtree(old, ignore_errors=True)
        place = Path(tempfile.mkdtemp(dir=folder))
        return self.ready().save(place / f"multilobe-{time.strftime('%Y%m%d-%H%M%S')}.zip", names or None)

    def _experiment(self, model: MultiLobeModel, handle: Any) -> None:
        self.lab.run(model, handle)
