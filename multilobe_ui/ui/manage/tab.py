"""The Manage tab: the lobes as a table, what can be done with one, with many, and with the base
model beneath them.

Deleting takes two clicks, and the second names the lobe. Bundles come in as uploads and leave as
downloads; no path on the server is ever taken from the page, but for the folder of a base model,
where one person runs their own copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...errors import ConfigError, LobeError
from ..kit import guard, text
from ..kit.changes import Changes
from ..kit.guard import friendly
from ..kit.pulse import QUICK, Pulse, digest, when_opened
from ..kit.static import script, scroll_to
from ..kit.table import bare, heading, shown
from .arrivals import ArrivalsSide
from .lobe_card import MOST_ROWS, NOTHING_PICKED, base_card, lobe_card, lobe_table, question
from .machine import SHARED_MEMORY, MachineSide
from .memory_card import memory_card
from .telling import tell

if TYPE_CHECKING:
    from ...app.desk import Desk
    from ...app.studio import Studio
    from ...app.views import LobeView, MemoryView

Outputs = tuple[Any, ...]

PIN, UNPIN = "Keep it in memory", "Let it leave memory"


class ManageTab:
    """Lays out and wires the tab. Which lobe is picked and which are ticked is kept by id, since
    names change."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.arrivals, self.machine = ArrivalsSide(studio), MachineSide(studio)

    def build(self) -> None:
        """Call it inside gr.Blocks, in the tab or column where it belongs."""
        self.token = guard.visitor()
        self.picked = gr.State("")
        self.ticked = gr.State([])
        self.doomed = gr.State("")
        self.seen = gr.State({})
        with gr.Row(elem_classes="manage-row"):
            with gr.Column(scale=8, min_width=320):
                self._lobes_side()
                self.machine.build()
            with gr.Column(scale=5, min_width=320):
                self._lobe_side()
                self.arrivals.build()
        self._wire()

    # ---- layout ----------------------------------------------------------------------------------

    def _lobes_side(self) -> None:
        self.heading = bare(heading("Lobes", "", "manage-heading"), elem_id="manage-heading")
        self.find = gr.Textbox(
            label="Find a lobe", placeholder="Part of its name", max_length=80, visible=False,
            elem_id="manage-find"
        )
        self.table = bare(js_on_load=script("table"), elem_id="manage-table")
        with gr.Row(elem_classes="manage-actions"):
            self.save = gr.Button("Save all as a bundle", size="sm", interactive=False, elem_id="manage-save")
            self.download = gr.DownloadButton("Download", size="sm", visible=False, elem_id="manage-download")
            self.restore = gr.Button("Restore the demo lobes", size="sm", elem_id="manage-restore")

    def _lobe_side(self) -> None:
        self.detail = bare(NOTHING_PICKED, elem_id="manage-detail")
        with gr.Row(visible=False, elem_classes="manage-line") as self.rename_row:
            self.new_name = gr.Textbox(label="New name", max_length=80, min_width=140, elem_id="manage-new-name")
            self.rename = gr.Button("Rename", elem_id="manage-rename")
            self.delete = gr.Button("Delete…", variant="stop", elem_id="manage-delete")
        with gr.Row(visible=False, elem_classes="manage-actions") as self.pin_row:
            self.pin_it = gr.Button(PIN, size="sm", elem_id="manage-pin")
        with gr.Column(visible=False, min_width=0) as self.confirm:
            self.question = bare(elem_id="manage-question")
            with gr.Row(elem_classes="manage-actions"):
                self.really = gr.Button("Delete", variant="stop", size="sm", elem_id="manage-really")
                self.keep = gr.Button("Keep it", size="sm", elem_id="manage-keep")
        self.asking = [self.doomed, self.confirm, self.question, self.really]

    # ---- wiring ----------------------------------------------------------------------------------

    def _wire(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
        quiet: dict[str, Any] = {**private, "show_progress": "hidden"}
        machine = self.machine
        view = [
            self.heading, self.table, self.save, self.restore, self.find, self.detail, self.rename_row,
            self.rename, self.delete, self.new_name, machine.base, machine.memory, machine.budget,
            self.pin_row, self.pin_it, self.seen,
        ]  # fmt: skip
        asked = [self.picked, self.ticked, self.find]
        look: dict[str, Any] = {"fn": self.look, "inputs": [*asked, self.seen, self.token], "outputs": view, **QUICK}
        self.looking = look
        picked = self.table.pick(self.pick, None, self.picked, **QUICK)
        picked.then(self.do_keep, None, self.asking, **QUICK).then(**look, js=scroll_to("#manage-detail"))
        self.table.check(self.tick_lobe, self.ticked, self.ticked, **quiet).then(**look)
        self.find.change(**look)
        for act in (self.rename.click, self.new_name.submit):
            act(self.do_rename, [self.picked, self.new_name, self.token], None, **quiet).success(**look)
        self.pin_it.click(self.do_pin, [self.picked, self.token], None, **quiet).success(**look)
        self.delete.click(self.ask_delete, [self.picked, self.token], self.asking, **quiet)
        self.keep.click(self.do_keep, None, self.asking, **QUICK)
        deleting = [self.picked, self.doomed, self.token]
        self.really.click(self.do_delete, deleting, [self.picked, *self.asking], **quiet).success(**look)
        self.save.click(self.do_save, self.ticked, self.download, **private)
        self.restore.click(self.do_restore, None, None, **private).success(**look)
        for side in (self.arrivals, machine):
            side.wire(look)
        when_opened(self.look_anew, [*asked, self.token], view)

    def watch(self, pulse: Pulse) -> None:
        """Look whenever something has changed that the tab shows."""
        pulse.when(self.shows)(**self.looking)

    def shows(self) -> object:
        status = self.studio.status()
        return status.version, status.state, self.studio.desk().memory()

    # ---- handlers: looking -----------------------------------------------------------------------

    @friendly(quiet=True)
    def look_anew(self, request: gr.Request, picked: Any, ticked: Any, find: Any, token: Any) -> Outputs:
        """For a page that has just been opened."""
        return self._view(request, picked, ticked, find, {}, token)

    @friendly(quiet=True)
    def look(self, request: gr.Request, picked: Any, ticked: Any, find: Any, seen: Any, token: Any) -> Outputs:
        """What has changed since `seen`; reads only."""
        return self._view(request, picked, ticked, find, seen, token)

    def _view(
        self, request: gr.Request, picked: str, ticked: list[str], find: Any, seen: dict[str, Any], token: Any
    ) -> Outputs:
        status, desk = self.studio.status(), guard.desk(self.studio, request, token)
        memory = desk.memory()
        find = guard.a_text(find or "", "What to find", 80, may_be_empty=True)
        probe = [status.version, status.state, picked, ticked, find, desk.visitor.id, digest(memory)]
        if probe == seen.get("probe"):
            return (gr.skip(),) * 16
        lobes = desk.lobes()
        lobe = next((one for one in lobes if one.id == picked), None)
        chosen = [one.id for one in lobes if one.id in ticked]
        # digests, so that what is remembered of a visitor's page is short however many lobes there are
        keys = {
            "probe": probe,
            "table": digest((lobes, lobe, chosen, find)),
            "lobe": digest(lobe),
            "base": digest((status.state, status.message, status.base)),
            "memory": digest((memory, [(one.id, one.name) for one in lobes])),
            "budget": digest(memory.budget_mib),
        }
        changes = Changes(keys, seen)
        return (
            *changes.draw("table", _listed, lobes, lobe, chosen, find, width=5),
            *changes.draw("lobe table", _detail, lobe, bool(lobes), width=4),
            *changes.draw("lobe", _name, lobe),  # else what is being typed stays
            *changes.draw("base", lambda: (base_card(status),)),
            *changes.draw("memory", lambda: (memory_card(memory, lobes),)),
            *changes.draw("budget", lambda: (memory.budget_mib,)),
            *changes.draw("lobe memory", _pins, lobe, memory, width=2),
            keys,
        )

    @friendly(quiet=True)
    def pick(self, event: gr.EventData) -> str:
        """A row was clicked."""
        return str(guard.event_value(event, "id"))

    @friendly
    def tick_lobe(self, ticked: Any, event: gr.EventData) -> list[str]:
        """A lobe was ticked or unticked for the bundle."""
        lobe, on = guard.event_value(event, "id"), guard.event_value(event, "on", bool)
        return [id for id in ticked if id != lobe][: guard.MOST_NAMES] + [lobe] * on

    # ---- handlers: one lobe ----------------------------------------------------------------------

    @friendly
    def do_rename(self, request: gr.Request, picked: Any, new_name: Any, token: Any) -> None:
        desk = guard.acting_desk(self.studio, request, token)
        old, new = self._named(picked, desk).name, guard.a_text(new_name, "The new name", 80)
        desk.rename(old, new)
        tell(f"{old} is called {new} now.")

    @friendly
    def ask_delete(self, request: gr.Request, picked: Any, token: Any) -> Outputs:
        """First click: ask, by name."""
        lobe = self._named(picked, guard.desk(self.studio, request, token))
        return lobe.id, gr.update(visible=True), question(lobe), f"Delete {text.short(lobe.name, 28)}"

    def do_keep(self) -> Outputs:
        """Changed their mind, or turned to another lobe."""
        return "", gr.update(visible=False), "", "Delete"

    @friendly
    def do_delete(self, request: gr.Request, picked: Any, doomed: Any, token: Any) -> Outputs:
        """Second click. Without a first one for this very lobe nothing is deleted."""
        if not doomed or doomed != picked:
            raise LobeError("Press Delete first, then confirm; nothing has been deleted.")
        desk = guard.acting_desk(self.studio, request, token)
        name = self._named(doomed, desk).name
        desk.delete(name)
        tell(f"{name} has been deleted.")
        return ("", *self.do_keep())

    def _named(self, picked: Any, desk: Desk) -> LobeView:
        """The lobe that is picked. Raises LobeError if there is none (any more)."""
        for lobe in desk.lobes():
            if lobe.id == picked:
                return lobe
        raise LobeError("No lobe is chosen, or it is gone. Choose one in the table.")

    @friendly
    def do_pin(self, request: gr.Request, picked: Any, token: Any) -> None:
        """Keep the lobe in memory, or let it leave again."""
        desk = guard.acting_desk(self.studio, request, token)
        lobe = self._named(picked, desk)
        if self.studio.shared:
            raise ConfigError(SHARED_MEMORY)
        desk.pin(lobe.name, not lobe.pinned)
        if lobe.pinned:
            tell(f"{lobe.name} may leave memory now.")
        else:
            tell(f"{lobe.name} stays in memory now, also after a restart.")

    # ---- handlers: many lobes --------------------------------------------------------------------

    @friendly
    def do_save(self, ticked: Any) -> Any:
        """A bundle of the ticked lobes, or of all."""
        names = [lobe.name for lobe in self.studio.desk().lobes() if lobe.id in ticked]
        path = self.studio.save_bundle(names or None)
        label = f"Download {path.name} ({text.size(path.stat().st_size)})"
        tell("The bundle is ready to be downloaded.")
        return gr.update(value=guard.downloadable(path), label=label, visible=True)

    @friendly
    def do_restore(self) -> None:
        names = self.studio.desk().restore_demo()
        words = "All the demo lobes are here already."
        if names:
            words = f"Back again: {text.listed(names)}."
        tell(words)


# ---- pure ----------------------------------------------------------------------------------------


def _listed(lobes: Sequence[LobeView], lobe: LobeView | None, ticked: Sequence[str], find: str = "") -> Outputs:
    """heading, table, save button, restore button, box to find a lobe in."""
    about, picked = "", ""
    label, variant = "Save all as a bundle", "primary"
    if lobes:
        total = text.size(sum(one.nbytes for one in lobes))
        about, variant = f"{text.count(len(lobes), 'lobe')}, {total}. Tick some to save only those.", "secondary"
    if ticked:
        label = f"Save {text.count(len(ticked), 'ticked lobe')} as a bundle"
    if lobe is not None:
        picked = lobe.id
    return (
        heading("Lobes", about, "manage-heading"),
        lobe_table(lobes, picked, ticked, find),
        gr.update(value=label, interactive=bool(lobes)),
        gr.update(variant=variant),
        gr.update(visible=len(lobes) > MOST_ROWS),
    )


def _pins(lobe: LobeView | None, memory: MemoryView) -> Outputs:
    """row of the button, button: for a lobe that could be in memory, where people may say so."""
    if lobe is None or not memory.changeable or not lobe.usable:
        return gr.update(visible=False), gr.skip()
    if lobe.pinned:
        return gr.update(visible=True), gr.update(value=UNPIN)
    return gr.update(visible=True), gr.update(value=PIN)


def _detail(lobe: LobeView | None, any_lobes: bool) -> Outputs:
    """detail card, row of actions, rename button, delete button."""
    if lobe is not None:
        free = gr.update(interactive=not lobe.protected)
        return shown(lobe_card(lobe)), gr.update(visible=True), free, free
    card = shown("")
    if any_lobes:
        card = shown(NOTHING_PICKED)
    return card, gr.update(visible=False), gr.skip(), gr.skip()


def _name(lobe: LobeView | None) -> Outputs:
    if lobe is None:
        return ("",)
    return (lobe.name,)
