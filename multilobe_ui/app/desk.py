"""What one visitor may see and change. A desk knows who sits at it, so nothing below has to be told.

Every verb asks `visitors.POLICY` first, where there is a rule for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from ..errors import BusyError, ConfigError
from ..routers.kept import without_lobes
from ..routing.router import learn_now
from ..settings import TrainingConfig
from .job import Job
from .lab import Lab
from .lab_desk import LabDesk
from .loading import Loading
from .runs import Runs
from .views import LOADING, JobView, LobeView, MemoryView, RouterView, job_view, lobe_view, router_view
from .visitors import Visitor

NEW_TERM_WEIGHT = 3.0
"""Of a word that a person adds to a lobe: e to the 3 is 20 times the odds."""
CLASHES = ("rename", "replace", "refuse")


class Desk:
    """See the module's text.

    Attributes:
        visitor: who sits here. lab: the Lab for them.
    """

    def __init__(self, visitor: Visitor, loading: Loading, runs: Runs, lab: Lab) -> None:
        self.visitor, self._loading, self._runs = visitor, loading, runs
        self.lab = LabDesk(lab, visitor)

    def change_base(self, name: str) -> None:
        """Load another base model in the background: "builtin", a folder, or a hub id. The present
        one answers until then.

        Raises:
            ConfigError: the server is shared, or no name. BusyError: a lobe is training, or a base
                is loading.
        """
        self.visitor.must_be_allowed("change the base")
        if self._runs.busy:
            raise BusyError("A lobe is training on the present base model. Stop it, or wait until it has finished.")
        self._loading.change(name)

    # ---- runs -----------------------------------------------------------------------------------------------------

    def train(
        self,
        name: str,
        path: str | Path,
        config: TrainingConfig | None = None,
        *,
        mapping: Mapping[str, str] | None = None,
        skip_bad: bool = False,
        data_name: str = "",
    ) -> JobView:
        """Queue a training run; the file is copied.

        Raises:
            LobeError: the name is refused, taken, or waiting in the queue. DataError: the file's
                kind is not known.
        """
        job = self._runs.train(
            self._loading.store.check_free(name),
            Path(path),
            config or TrainingConfig(),
            mapping=mapping,
            skip_bad=skip_bad,
            owner=self.visitor.id,
            data_name=data_name,
        )
        return self._view(job)

    def fit_router(
        self,
        name: str,
        settings: Mapping[str, Any] | None = None,
        path: str | Path | None = None,
        *,
        data_name: str = "",
    ) -> JobView:
        """Queue the fit of a router from the lobes' rows, or (complexity) from those of a file,
        which is copied.

        Raises:
            ConfigError: no such router or setting, or a shared server where it would make lobes.
                JobError: it is being fitted.
        """
        file = None
        if path is not None:
            file = Path(path)
        if name == "complexity" or file:
            self.visitor.must_be_allowed("train experts")
        job = self._runs.fit(name, settings or {}, file, owner=self.visitor.id, data_name=data_name)
        return self._view(job)

    def jobs(self) -> list[JobView]:
        """All jobs, newest first."""
        return [self._view(job) for job in self._runs.jobs.list()]

    def job(self, job_id: str) -> JobView:
        """Raises JobError if there is none."""
        return self._view(self._runs.jobs.get(job_id))

    def stop(self, job_id: str) -> JobView:
        """Stop after the step under way and keep what has been learned by then."""
        return self._view(self._runs.jobs.stop(self._changeable(job_id)))

    def resume(self, job_id: str) -> JobView:
        """Go on from the checkpoint."""
        return self._view(self._runs.jobs.resume(self._changeable(job_id)))

    def cancel(self, job_id: str) -> JobView:
        """Take a job out of the queue."""
        return self._view(self._runs.jobs.cancel(self._changeable(job_id)))

    def move(self, job_id: str, offset: int) -> JobView:
        """Move a queued job by so many places (negative: sooner)."""
        return self._view(self._runs.jobs.move(self._changeable(job_id), offset))

    def forget(self, job_id: str) -> None:
        """Delete a run's record and checkpoint; the lobe that it made stays."""
        self._runs.jobs.forget(self._changeable(job_id))

    def _view(self, job: Job) -> JobView:
        return job_view(job, self.visitor.owns(job.spec.owner))

    def _changeable(self, job_id: str) -> str:
        spec = self._runs.jobs.get(job_id).spec
        self.visitor.must_be_allowed("change a run", spec.name, spec.owner)
        return job_id

    # ---- routers --------------------------------------------------------------------------------------------------

    def routers(self) -> list[RouterView]:
        """Every router, the default first; while the base is loading, none can be used."""
        model = self._loading.model
        if model is None:
            return [router_view(router, why=LOADING) for router in without_lobes()]
        busy = self._runs.fits_under_way()
        views = []
        for name in model.routers.names:
            router, stale, why = model.routers.named(name), model.routers.is_stale(name), ""
            if not router.is_fitted and not model.lobes:
                why = "There is no lobe yet to learn from."
            elif not router.is_fitted:
                why = "It has not been fitted yet."
            elif stale:
                why = "Lobes or corrections have changed since it was fitted: fit it again, so that it knows them."
            fit = model.routers.fit_of(name)
            views.append(router_view(router, fit, stale=stale, why=why, job_id=busy.get(name, "")))
        return views

    def keyword_terms(self, lobe: str) -> list[tuple[str, float]]:
        """A lobe's words and their weights, the weightiest first."""
        keyword = cast(Any, self._loading.ready().routers.named("keyword"))
        return list(keyword.terms().get(self._loading.store.by_name(lobe).name, {}).items())

    def set_keyword_terms(self, lobe: str, terms: Sequence[str] | None) -> list[tuple[str, float]]:
        """A person's words for a lobe; those that it had keep their weight. None, or no words,
        learns them again."""
        self.visitor.must_be_allowed("change keywords")
        name, known = self._loading.store.by_name(lobe).name, dict(self.keyword_terms(lobe))
        chosen = {term: known.get(term, NEW_TERM_WEIGHT) for term in terms or ()}

        def change(router: Any) -> None:
            router.set_terms(name, chosen or None)
            if not chosen:
                learn_now(router)

        self._loading.ready().routers.change("keyword", change)
        self._loading.changed()
        return self.keyword_terms(lobe)

    def set_chain(self, stages: Sequence[Sequence[Any]]) -> None:
        """The stages of the chain router in their order: (router, probability from which it decides)."""
        self.visitor.must_be_allowed("change the chain")
        self._loading.ready().routers.change("chain", lambda router: cast(Any, router).set_stages(stages))
        self._loading.changed()

    # ---- lobes ----------------------------------------------------------------------------------------------------

    def lobes(self) -> list[LobeView]:
        """Every lobe in the home, oldest first; those of another base are not usable now."""
        model = self._loading.model
        return [lobe_view(lobe, model, self.visitor.owns(lobe.card.owner)) for lobe in self._loading.store.all()]

    def rename(self, name: str, new_name: str) -> None:
        self._loading.ready().rename_lobe(self._own_lobe(name), new_name)

    def delete(self, name: str) -> None:
        self._loading.ready().remove_lobe(self._own_lobe(name))

    def load_bundle(self, path: str | Path, on_clash: str = "rename") -> list[str]:
        """Add the lobes of a bundle; returns their names."""
        if on_clash not in CLASHES:
            raise ConfigError(f"on_clash is {on_clash!r}: it must be 'refuse', 'rename' or 'replace'.")
        if on_clash == "replace":
            self.visitor.must_be_allowed("replace lobes by a bundle")
        clash = cast(Literal["refuse", "rename", "replace"], on_clash)
        mine = not self.visitor.shared  # then a person's own settings of routers may come with it
        lobes = self._loading.ready().load_bundle(path, clash, owner=self.visitor.id, settings=mine)
        return [lobe.name for lobe in lobes]

    def import_adapter(self, name: str, path: str | Path) -> LobeView:
        """A new lobe from any PEFT LoRA adapter, folder or zip."""
        model = self._loading.ready()
        return lobe_view(model.import_adapter(name, path, owner=self.visitor.id), model, True)

    def restore_demo(self) -> list[str]:
        """Bring back the demo lobes that are gone; returns their names."""
        return self._loading.restore_demo()

    def _own_lobe(self, name: str) -> str:
        lobe = self._loading.store.by_name(name)
        self.visitor.must_be_allowed("change a lobe", lobe.name, lobe.card.owner)
        return lobe.name

    # ---- memory ---------------------------------------------------------------------------------------------------

    def memory(self) -> MemoryView:
        """What lobes take in memory; nothing while the base is loading."""
        model, changeable = self._loading.model, not self.visitor.shared
        if model is None:
            return MemoryView((), 0, frozenset(), self._loading.memory_budget_mib, changeable)
        bank = model.bank
        return MemoryView(
            bank.memory.resident, bank.memory.resident_bytes, bank.memory.pinned, model.memory.budget_mib, changeable
        )

    def set_memory_budget(self, mib: float | None) -> None:
        """MiB that lobes may take in memory; None is no limit. What is over it is given back at once.

        Raises:
            ConfigError: the server is shared, or it is not above 0.
        """
        self.visitor.must_be_allowed("change the memory budget")
        self._loading.ready().memory.set_budget(mib)
        self._loading.memory_budget_mib = mib  # another base that is loaded later keeps to it

    def pin(self, name: str, pinned: bool = True) -> None:
        """Keep a lobe in memory, from now on and after a restart, or no longer.

        Raises:
            ConfigError: the server is shared. LobeError: no such lobe on this base. AdapterError:
                it is damaged.
        """
        self.visitor.must_be_allowed("pin a lobe")
        model = self._loading.ready()
        id = model.lobes.named(name).id
        if pinned:
            model.memory.pin(id)
        else:
            model.memory.unpin(id)
        self._loading.changed()
