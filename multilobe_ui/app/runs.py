"""Runs: lobes that are trained and routers that are fitted, queued as jobs and done on the jobs'
thread with the present model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..data import dataset
from ..data.formats import sniff
from ..errors import JobError, LobeError
from ..files import read_json
from ..settings import TrainingConfig, from_json, settings_of
from .job import ENDED, Job, JobSpec
from .job_handle import JobHandle
from .jobs import Jobs
from .loading import Loading

if TYPE_CHECKING:
    from ..lobes.store import Lobe
    from ..model import MultiLobeModel


class Runs:
    """The jobs of a home, and what is done for each kind.

    Args:
        folder: of the jobs. experiment: does a job of the Lab.

    Attributes:
        jobs: the queue.
    """

    def __init__(self, folder: Path, loading: Loading, experiment: Callable[[MultiLobeModel, JobHandle], None]) -> None:
        self.jobs = Jobs(folder, self._run)
        self._loading, self._experiment = loading, experiment

    @property
    def busy(self) -> bool:
        """Whether one is at work just now."""
        return any(job.state in ("running", "stopping") for job in self.jobs.list())

    def train(
        self,
        name: str,
        path: Path,
        config: TrainingConfig,
        *,
        mapping: Mapping[str, str] | None,
        skip_bad: bool,
        owner: str,
        data_name: str,
    ) -> Job:
        """Queue the training of a lobe under a name that is free in the store; the file is copied.

        Raises:
            LobeError: the name is waiting in the queue. DataError: the file's kind is not known.
        """
        if any(job.spec.name.casefold() == name.casefold() for job in self.jobs.list() if job.state not in ENDED):
            raise LobeError(f"A lobe called {name!r} is being trained already. Choose another name.")
        sniff(path, mapping)
        spec = JobSpec(
            name=name,
            config=config.to_json(),
            owner=owner,
            data_name=data_name or path.name,
            mapping=dict(mapping or {}) or None,
            skip_bad=skip_bad,
            extra={"base": self._loading.base},
        )
        return self.jobs.submit(spec, path)

    def fit(self, name: str, settings: Mapping[str, Any], path: Path | None, *, owner: str, data_name: str) -> Job:
        """Queue the fit of a router from the lobes' rows, or (complexity) from those of a file,
        which is copied.

        Raises:
            ConfigError: no such router or setting. JobError: it is being fitted.
        """
        router = self._loading.ready().routers.named(name)
        if name in self.fits_under_way():
            raise JobError(f"The router {router.title!r} is being fitted already. Wait, or stop that fit.")
        if router.settings is not None:
            settings_of(router.settings, settings)
        if path is not None:
            sniff(path, None)
            data_name = data_name or path.name
        spec = JobSpec(
            name=name,
            config=dict(settings),
            owner=owner,
            data_name=data_name,
            extra={"base": self._loading.base},
            kind="router",
        )
        return self.jobs.submit(spec, path)

    def fits_under_way(self) -> dict[str, str]:
        """Ids of the fits that wait or run, by router."""
        return {
            job.spec.name: job.id for job in self.jobs.list() if job.spec.kind == "router" and job.state not in ENDED
        }

    def _run(self, handle: JobHandle) -> str:
        """What the jobs' thread does for a job, with every record written down; returns the id of
        the lobe made, if any."""
        model, job = self._loading.ready(None), handle.job
        wanted = job.spec.extra.get("base", model.backbone.name)
        if wanted != model.backbone.name:
            raise JobError(f"This run belongs to the base model {wanted!r}. Load that one under Manage, then resume.")
        if job.spec.kind == "router":
            _fit(model, handle)
            return ""
        if job.spec.kind == "lab":
            self._experiment(model, handle)
            return ""
        return _train(model, handle)


def _train(model: MultiLobeModel, handle: JobHandle) -> str:
    """Train a lobe, from its checkpoint if there is one. Returns the lobe's id."""
    job = handle.job
    handle.truncate_metrics(_checkpoint_step(handle.checkpoint))
    earlier = _made_before(model, job)
    run = model.train(
        job.spec.name if earlier is None else earlier.name,
        handle.data,
        from_json(TrainingConfig, job.spec.config),
        mapping=job.spec.mapping,
        skip_bad=job.spec.skip_bad,
        checkpoint=handle.checkpoint,
        stop=handle.stop,
        replaces="" if earlier is None else earlier.id,
        data_name=job.spec.data_name,
        owner=job.spec.owner,
        run=job.id,
    )
    try:
        while not handle.closing:
            event = next(run)
            if isinstance(event, str):
                handle.phase(event)
            else:
                handle.record(event.to_json())
    except StopIteration as end:
        lobe = cast("Lobe", end.value)
        handle.update(rows=lobe.card.data.get("rows"))
        return lobe.id
    run.close()
    return job.lobe_id


def _made_before(model: MultiLobeModel, job: Job) -> Lobe | None:
    """The lobe that an earlier part of this run has made: by the run that its card names, or as the
    job remembers it."""
    lobes = model.lobes.store.all()
    by_run = [lobe for lobe in lobes if lobe.card.data.get("run") == job.id]
    by_id = [lobe for lobe in lobes if job.lobe_id and lobe.id == job.lobe_id]
    return next(iter(by_run + by_id), None)


def _fit(model: MultiLobeModel, handle: JobHandle) -> None:
    """Fit a router; it has no checkpoint, so a resumed fit begins anew."""
    spec = handle.job.spec
    handle.truncate_metrics(-1)
    settings = dict(spec.config)
    if handle.data.is_file():
        settings["rows"] = dataset.pairs(handle.data)
    handle.follow(model.routers.fitting(spec.name, settings, handle.stop, owner=spec.owner))


def _checkpoint_step(checkpoint: Path) -> int:
    """Step of a checkpoint, -1 if there is none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return int(read_json(checkpoint / "state.json")["step"])
    return -1
