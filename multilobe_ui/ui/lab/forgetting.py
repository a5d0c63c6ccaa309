"""The forgetting check of the Lab: one click that proves that training leaves base and lobes alone,
and shows the alternative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...errors import ConfigError
from ...evaluation.settings import ForgettingSettings
from ..kit import guard
from ..kit.forms import words_of
from ..kit.guard import friendly
from ..kit.table import bare
from .drawing import Drawing
from .drift_figure import drift_figure
from .experiment import Asked, ExperimentPanel
from .forgetting_card import below_the_figure, forgetting_card, live
from .parts import asking

if TYPE_CHECKING:
    from ...app.studio import Studio

AUTOMATIC = ""
SHARED = (
    "This server is shared, so it does not run the check: it trains for a minute or two. Run your own copy "
    "for that. Results of its owner are shown."
)
QUICK: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}


class ForgettingSection:
    """See the module."""

    title = "Forgetting"
    about = (
        "Does a new lobe harm what was there? One click trains the newest lobe's rows again, and compares "
        "base and lobes to the last bit. Then one ordinary adapter learns two of your domains in turn, and "
        "you see what it forgets."
    )

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        drawing = Drawing(forgetting_card, drift_figure, below_the_figure, live=live)
        self.panel = ExperimentPanel(studio, "forgetting", drawing, run="Check now")
        self.panels: Sequence[ExperimentPanel] = (self.panel,)

    def build(self) -> None:
        """Call it inside gr.Blocks, in the tab or column where it belongs."""
        if self.studio.shared:
            bare(asking(SHARED), elem_id="forgetting-shared")
        offered = self._offered()
        pickers: list[Any] = []
        with gr.Row(elem_classes="fg-asking"):
            for name in ("first", "second"):
                picker = gr.Dropdown(
                    offered, value=AUTOMATIC, interactive=True, min_width=180, elem_id=f"forgetting-{name}",
                    **words_of(ForgettingSettings, name),
                )  # fmt: skip
                pickers.append(picker)
        self.panel.build()
        self.panel.wire(self.asked, pickers)
        # `seen` has the lobes' colours in it, so it changes when lobes come, go, or are renamed
        self.panel.seen.change(self.refresh, pickers, pickers, **QUICK)

    def asked(self, first: Any, second: Any) -> Asked:
        """Settings of a run. Raises ConfigError."""
        names = self._names()
        chosen = {
            key: guard.a_choice(value or AUTOMATIC, what, [AUTOMATIC, *names])
            for key, what, value in (("first", "The first lobe", first), ("second", "The second lobe", second))
        }
        if chosen["first"] and chosen["first"] == chosen["second"]:
            raise ConfigError(f"Both are {chosen['first']!r}. Choose two different lobes, or leave one to the app.")
        return {key: name for key, name in chosen.items() if name}, ()

    @friendly(quiet=True)
    def refresh(self, first: Any, second: Any) -> tuple[Any, Any]:
        """The pickers for the lobes there are now; a lobe that has gone is no longer chosen."""
        names, offered = self._names(), self._offered()
        return tuple(  # type: ignore[return-value]
            gr.update(choices=offered, value=value if value in names else AUTOMATIC) for value in (first, second)
        )

    def _names(self) -> list[str]:
        return [lobe.name for lobe in self.studio.desk().lobes() if lobe.usable]

    def _offered(self) -> list[tuple[str, str]]:
        return [("Automatic", AUTOMATIC), *((name, name) for name in self._names())]
