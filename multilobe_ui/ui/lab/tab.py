"""The Lab tab: proof. Each section is a file of its own; here they are put side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import gradio as gr

from ..kit import guard, text
from ..kit.guard import friendly
from ..kit.html import html
from ..kit.pulse import QUICK, Pulse, when_opened
from ..kit.table import bare
from .compare import CompareSection
from .experiment import ExperimentPanel
from .forgetting import ForgettingSection
from .ledger import LedgerSection
from .losses import LossesSection
from .merge import MergeSection
from .report import ReportSection

if TYPE_CHECKING:
    from ...app.studio import Studio


class Section(Protocol):
    """A part of the Lab. `title` names its sub-tab; `panels` are its experiments, kept up to date
    by the tab."""

    title: str
    about: str

    @property
    def panels(self) -> Sequence[ExperimentPanel]: ...

    def build(self) -> None: ...


class LabTab:
    """Lays out the sections. Each gets the studio and nothing else."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.compare, self.merge, self.ledger = CompareSection(studio), MergeSection(studio), LedgerSection(studio)
        self.sections: Sequence[Section] = (
            ReportSection(studio),
            LossesSection(studio),
            ForgettingSection(studio),
            self.compare,
            self.merge,
            self.ledger,
        )

    def follow(self, when: Callable[..., Any]) -> None:
        """Offer the present lobes whenever the event listener `when` fires (a text's change, a
        page's load)."""
        self.compare.follow(when)
        self.merge.follow(when)

    def build(self) -> None:
        """Call it inside gr.Blocks, in the tab or column where it belongs."""
        self.token = guard.visitor()
        with gr.Tabs(elem_classes="lab-tabs"):
            for section in self.sections:
                with gr.Tab(section.title, elem_id=f"lab-{text.slug(section.title)}"):
                    bare(html('<p class="lab-about">{}</p>', section.about))
                    section.build()
        self.panels = [panel for section in self.sections for panel in section.panels]
        told = [part for panel in self.panels for part in (panel.runs, panel.seen)]
        filled = [part for panel in self.panels for part in panel.outputs]
        self.looking: dict[str, Any] = {"inputs": [self.token, *told], "outputs": filled, **QUICK}
        when_opened(self.look_anew, self.looking["inputs"], filled)

    def watch(self, pulse: Pulse) -> None:
        """Look whenever something has changed that the tab shows."""
        pulse.when(self.shows)(self.look, **self.looking)
        self.compare.watch(pulse)
        self.ledger.watch(pulse)

    def shows(self) -> object:
        jobs = [job for job in self.studio.desk().jobs() if job.kind == "lab"]
        return jobs, [(lobe.name, lobe.colour) for lobe in self.studio.desk().lobes()]

    @friendly(quiet=True)
    def look(self, request: gr.Request, token: Any, *told: Any) -> tuple[Any, ...]:
        """A tick: what has changed since the page last looked."""
        desk = guard.desk(self.studio, request, token)
        views = zip(self.panels, told[::2], told[1::2], strict=True)
        return tuple(value for panel, picked, seen in views for value in panel.view(desk, picked, seen))

    @friendly(quiet=True)
    def look_anew(self, request: gr.Request, token: Any, *told: Any) -> tuple[Any, ...]:
        """For a page that has just been opened."""
        return self.look(request, token, *(value if i % 2 == 0 else {} for i, value in enumerate(told)))
