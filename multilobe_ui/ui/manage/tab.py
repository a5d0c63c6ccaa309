"""The Manage tab: the lobes as a table, what can be done with one, with many, and with the base model beneath them.

Deleting takes two clicks, and the second names the lobe. Bundles come in as uploads and leave as downloads; no path on the
server is ever taken from the page, but for the folder of a base model, where one person runs their own copy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...errors import ConfigError, LobeError
from ..kit import guard, text
from ..kit.guard import friendly
from ..kit.html import Markup, escape
from ..kit.pulse import Pulse
from ..kit.static import script, scroll_to
from ..kit.table import bare, heading, shown
from . import memory_card
from .lobe_card import MOST_ROWS, NOTHING_PICKED, base_card, lobe_card, lobe_table, question

if TYPE_CHECKING:
    from ...app.studio import LobeView, MemoryView, Studio

Outputs = tuple[Any, ...]

MOST_MIB = 1_000_000
CLASHES = (
    ("Keep both: the new one gets another name", "rename"),
    ("Replace mine", "replace"),
    ("Refuse: change nothing", "refuse"),
)


class ManageTab:
    """Lays out and wires the tab. Which lobe is picked and which are ticked is kept by id, since names change."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

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
                self._memory_side()
                self._base_side()
            with gr.Column(scale=5, min_width=320):
                self._lobe_side()
                self._arrivals_side()
        self._wire()

    # ---- layout --------------------------------------------------------------------------------------------------

    def _lobes_side(self) -> None:
        self.heading = bare(_heading("Lobes", ""), elem_id="manage-heading")
        self.find = gr.Textbox(
            label="Find a lobe", placeholder="Part of its name", max_length=80, visible=False, elem_id="manage-find"
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

    def _arrivals_side(self) -> None:
        bare(_heading("Bring lobes in", "A bundle saved here or elsewhere, or any PEFT LoRA adapter."))
        with gr.Tabs(elem_classes="manage-tabs"):
            with gr.Tab("Bundle"):
                self._bundle_form()
            with gr.Tab("PEFT adapter"):
                self._adapter_form()

    def _bundle_form(self) -> None:
        self.bundle = gr.File(
            label="Bundle (.zip)", file_types=[".zip"], type="filepath", height=180, elem_id="manage-bundle"
        )
        clashes = [choice for choice in CLASHES if choice[1] != "replace" or not self.studio.shared]
        self.clash = gr.Radio(list(clashes), value="rename", label="If a lobe of that name exists", elem_id="manage-clash")
        self.load = gr.Button("Load the bundle", interactive=False, elem_id="manage-load")

    def _adapter_form(self) -> None:
        self.adapter = gr.File(
            label="Adapter folder (.zip)", file_types=[".zip"], type="filepath", height=180, elem_id="manage-adapter"
        )
        self.adapter_name = gr.Textbox(
            label="Name of the new lobe", placeholder="Such as: Medicine", max_length=80, elem_id="manage-adapter-name"
        )
        self.take = gr.Button("Import the adapter", interactive=False, elem_id="manage-import")

    def _memory_side(self) -> None:
        bare(_heading("Memory", "A lobe is read when it is first asked. Beyond the budget, those asked longest ago leave."))
        self.memory = bare(elem_id="manage-memory")
        shared = self.studio.shared
        about = SHARED_MEMORY if shared else "MiB beside the base model. Empty: no limit."
        with gr.Row(elem_classes="manage-line"):
            self.budget = gr.Number(
                label="Most memory for lobes", info=about, placeholder="no limit", minimum=0, interactive=not shared,
                min_width=180, elem_id="manage-budget",
            )  # fmt: skip
            self.set_budget = gr.Button("Set", interactive=not shared, elem_id="manage-set-budget")

    def _base_side(self) -> None:
        bare(_heading("Base model", "Frozen: training never changes it."))
        self.base = bare(elem_id="manage-base")
        shared = self.studio.shared
        about = SHARED_BASE if shared else "builtin, a folder on this machine, or a Hugging Face id such as gpt2."
        with gr.Row(elem_classes="manage-line"):
            self.base_name = gr.Textbox(
                label="Another base model", info=about, placeholder="builtin", max_length=500, interactive=not shared,
                min_width=180, elem_id="manage-base-name",
            )  # fmt: skip
            self.change = gr.Button("Load", interactive=not shared, elem_id="manage-change-base")

    # ---- wiring --------------------------------------------------------------------------------------------------

    def _wire(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
        quick: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
        view = [
            self.heading, self.table, self.save, self.restore, self.detail, self.rename_row, self.new_name, self.rename,
            self.delete, self.base, self.find, self.memory, self.budget, self.pin_row, self.pin_it, self.seen,
        ]  # fmt: skip
        asked = [self.picked, self.ticked, self.find]
        look: dict[str, Any] = {"fn": self.look, "inputs": [*asked, self.seen, self.token], "outputs": view, **quick}
        asking = [self.doomed, self.confirm, self.question, self.really]
        quiet: dict[str, Any] = {**private, "show_progress": "hidden"}

        picked = self.table.pick(self.pick, None, self.picked, **quick)
        picked.then(self.do_keep, None, asking, **quick).then(**look, js=scroll_to("#manage-detail"))
        self.table.check(self.tick_lobe, self.ticked, self.ticked, **quiet).then(**look)
        renaming: dict[str, Any] = {"fn": self.do_rename, "inputs": [self.picked, self.new_name, self.token], "outputs": None}
        self.rename.click(**renaming, **quiet).success(**look)
        self.new_name.submit(**renaming, **quiet).success(**look)
        self.find.change(**look)
        budget: dict[str, Any] = {"fn": self.do_set_budget, "inputs": self.budget, "outputs": None, **quiet}
        self.set_budget.click(**budget).success(**look)
        self.budget.submit(**budget).success(**look)
        self.pin_it.click(self.do_pin, [self.picked, self.token], None, **quiet).success(**look)
        self.delete.click(self.ask_delete, [self.picked, self.token], asking, **quiet)
        self.keep.click(self.do_keep, None, asking, **quick)
        gone = self.really.click(self.do_delete, [self.picked, self.doomed, self.token], [self.picked, *asking], **quiet)
        gone.success(**look)
        self.save.click(self.do_save, self.ticked, self.download, **private)
        self.restore.click(self.do_restore, None, None, **private).success(**look)
        for file, button in ((self.bundle, self.load), (self.adapter, self.take)):
            file.change(_has_file, file, button, **quick)
        # Only success touches the form: on the outputs of what fails Gradio lays "Error", over the file and its name.
        loaded = self.load.click(self.do_load, [self.bundle, self.clash, self.token], None, **private)
        loaded.success(lambda: None, None, self.bundle, **quick).then(**look)
        taken = self.take.click(self.do_import, [self.adapter, self.adapter_name, self.token], None, **private)
        taken.success(lambda: (None, ""), None, [self.adapter, self.adapter_name], **quick).then(**look)
        changing: dict[str, Any] = {"fn": self.do_change_base, "inputs": self.base_name, "outputs": None, **private}
        self.change.click(**changing).success(**look)
        self.base_name.submit(**changing).success(**look)
        self.looking = look
        root = gr.context.Context.root_block
        if root is not None:
            root.load(self.look_anew, [*asked, self.token], view, **quick)  # type: ignore[attr-defined]

    def watch(self, pulse: Pulse) -> None:
        """Look whenever something has changed that the tab shows."""
        pulse.when(self.shows)(**self.looking)

    def shows(self) -> object:
        status = self.studio.status()
        return status.version, status.state, self.studio.memory()

    # ---- handlers: looking ---------------------------------------------------------------------------------------

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
        status, memory, owner = self.studio.status(), self.studio.memory(), guard.owner_of(request, token)
        find = guard.a_text(find or "", "What to find", 80, may_be_empty=True)
        probe = [status.version, status.state, picked, ticked, find, owner, _digest(memory)]
        if probe == seen.get("probe"):
            return (gr.skip(),) * 16
        lobes = self.studio.lobes(owner)
        lobe = next((one for one in lobes if one.id == picked), None)
        chosen = [one.id for one in lobes if one.id in ticked]
        # hashed, so that what is remembered of a visitor's page is short however many lobes there are
        keys = {
            "probe": probe,
            "table": _digest(lobes, lobe and lobe.id, chosen, find),
            "lobe": _digest(lobe),
            "base": _digest(status.state, status.message, status.base),
            "memory": _digest(memory, [(one.id, one.name) for one in lobes]),
            "budget": _digest(memory.budget_mib),
        }
        changed = {key for key in keys if keys[key] != seen.get(key, ...)}
        listed = _listed(lobes, lobe, chosen, find) if "table" in changed else (gr.skip(),) * 4
        detail = _detail(lobe, bool(lobes)) if changed & {"lobe", "table"} else (gr.skip(),) * 5
        if seen.get("lobe") == keys["lobe"]:
            detail = (*detail[:2], gr.skip(), *detail[3:])  # what is being typed stays
        base = base_card(status) if "base" in changed else gr.skip()
        finding = gr.update(visible=len(lobes) > MOST_ROWS) if "table" in changed else gr.skip()
        used = memory_card.memory_card(memory, lobes) if "memory" in changed else gr.skip()
        budget = memory.budget_mib if "budget" in changed else gr.skip()  # else what is being typed stays
        pins = _pins(lobe, memory) if changed & {"lobe", "memory"} else (gr.skip(),) * 2
        return (*listed, *detail, base, finding, used, budget, *pins, keys)

    @friendly(quiet=True)
    def pick(self, event: gr.EventData) -> str:
        """A row was clicked."""
        return str(guard.event_value(event, "id"))

    @friendly
    def tick_lobe(self, ticked: Any, event: gr.EventData) -> list[str]:
        """A lobe was ticked or unticked for the bundle."""
        lobe, on = guard.event_value(event, "id"), guard.event_value(event, "on", bool)
        return [id for id in ticked if id != lobe][: guard.MOST_NAMES] + [lobe] * on

    # ---- handlers: one lobe --------------------------------------------------------------------------------------

    @friendly
    def do_rename(self, request: gr.Request, picked: Any, new_name: Any, token: Any) -> None:
        owner = guard.acting_owner(self.studio, request, token)
        old, new = self._named(picked, owner).name, guard.a_text(new_name, "The new name", 80)
        self.studio.rename(old, new, owner)
        _tell(f"{old} is called {new} now.")

    @friendly
    def ask_delete(self, request: gr.Request, picked: Any, token: Any) -> Outputs:
        """First click: ask, by name."""
        lobe = self._named(picked, guard.owner_of(request, token))
        return lobe.id, gr.update(visible=True), question(lobe), f"Delete {text.short(lobe.name, 28)}"

    def do_keep(self) -> Outputs:
        """Changed their mind, or turned to another lobe."""
        return "", gr.update(visible=False), "", "Delete"

    @friendly
    def do_delete(self, request: gr.Request, picked: Any, doomed: Any, token: Any) -> Outputs:
        """Second click. Without a first one for this very lobe nothing is deleted."""
        if not doomed or doomed != picked:
            raise LobeError("Press Delete first, then confirm; nothing has been deleted.")
        owner = guard.acting_owner(self.studio, request, token)
        name = self._named(doomed, owner).name
        self.studio.delete(name, owner)
        _tell(f"{name} has been deleted.")
        return ("", *self.do_keep())

    def _named(self, picked: Any, owner: str) -> LobeView:
        """The lobe that is picked. Raises LobeError if there is none (any more)."""
        for lobe in self.studio.lobes(owner):
            if lobe.id == picked:
                return lobe
        raise LobeError("No lobe is chosen, or it is gone. Choose one in the table.")

    @friendly
    def do_pin(self, request: gr.Request, picked: Any, token: Any) -> None:
        """Keep the lobe in memory, or let it leave again."""
        lobe = self._named(picked, guard.acting_owner(self.studio, request, token))
        if self.studio.shared:
            raise ConfigError(SHARED_MEMORY)
        self.studio.pin(lobe.name, not lobe.pinned)
        _tell(f"{lobe.name} {'may leave memory now' if lobe.pinned else 'stays in memory now, also after a restart'}.")

    @friendly
    def do_set_budget(self, mib: Any) -> None:
        if self.studio.shared:
            raise ConfigError(SHARED_MEMORY)
        most = None if mib is None or mib == "" else guard.a_number(mib, "The memory for lobes", 1, MOST_MIB)
        self.studio.set_memory_budget(most)
        said = "without a limit" if most is None else f"up to {memory_card.mib(most)}"
        _tell(f"Lobes stay in memory {said}.")

    # ---- handlers: many lobes ------------------------------------------------------------------------------------

    @friendly
    def do_save(self, ticked: Any) -> Any:
        """A bundle of the ticked lobes, or of all."""
        names = [lobe.name for lobe in self.studio.lobes() if lobe.id in ticked]
        path = self.studio.save_bundle(names or None)
        label = f"Download {path.name} ({text.size(path.stat().st_size)})"
        _tell("The bundle is ready to be downloaded.")
        return gr.update(value=guard.downloadable(path), label=label, visible=True)

    @friendly
    def do_load(self, request: gr.Request, file: Any, clash: Any, token: Any) -> None:
        owner = guard.acting_owner(self.studio, request, token)
        allowed = [value for _, value in CLASHES]
        path = guard.an_upload(file, "The bundle")
        names = self.studio.load_bundle(path, guard.a_choice(clash, "The choice for clashes", allowed), owner)
        _tell(f"Loaded {text.count(len(names), 'lobe')}: {text.listed(names)}." if names else "It held nothing new.")

    @friendly
    def do_import(self, request: gr.Request, file: Any, name: Any, token: Any) -> None:
        owner = guard.acting_owner(self.studio, request, token)
        path = guard.an_upload(file, "The adapter")
        lobe = self.studio.import_adapter(guard.a_text(name, "The name of the lobe", 80), path, owner)
        _tell(f"{lobe.name} has been imported.")

    @friendly
    def do_restore(self) -> None:
        names = self.studio.restore_demo()
        _tell(f"Back again: {text.listed(names)}." if names else "All the demo lobes are here already.")

    # ---- handlers: base ------------------------------------------------------------------------------------------

    @friendly
    def do_change_base(self, name: Any) -> None:
        if self.studio.shared:
            raise ConfigError(SHARED_BASE)
        self.studio.change_base(guard.a_text(name, "The base model", 500))
        _tell("The base model is being loaded. Lobes of another base stay on disk and cannot be used meanwhile.")


SHARED_BASE = "This server is shared, so its base model stays. Run your own copy to choose another."


SHARED_MEMORY = "This server is shared, so whoever runs it says what stays in memory (MULTILOBE_MEMORY_MIB)."
PIN, UNPIN = "Keep it in memory", "Let it leave memory"


def _digest(*values: object) -> str:
    """The same for the same values, and short."""
    return hashlib.sha256(repr(values).encode("utf-8", "replace")).hexdigest()[:16]


def _has_file(file: Any) -> Any:
    return gr.update(interactive=bool(file))


def _tell(sentence: str) -> None:
    """A toast; it is HTML, and names are other people's words."""
    gr.Info(escape(sentence), title="Done", duration=6)


# ---- pure ------------------------------------------------------------------------------------------------------------


def _heading(title: str, about: str) -> Markup:
    return heading(title, about, "manage-heading")


def _listed(lobes: Sequence[LobeView], lobe: LobeView | None, ticked: Sequence[str], find: str = "") -> Outputs:
    """heading, table, save button, restore button."""
    about, picked = "", ""
    label, variant = "Save all as a bundle", "primary"
    if lobes:
        total = text.size(sum(one.nbytes for one in lobes))
        about, variant = f"{text.count(len(lobes), 'lobe')}, {total}. Tick some to save only those.", "secondary"
    if ticked:
        label = f"Save {text.count(len(ticked), 'ticked lobe')} as a bundle"
    if lobe is not None:
        picked = lobe.id
    save = gr.update(value=label, interactive=bool(lobes))
    return _heading("Lobes", about), lobe_table(lobes, picked, ticked, find), save, gr.update(variant=variant)


def _pins(lobe: LobeView | None, memory: MemoryView) -> Outputs:
    """row of the button, button: for a lobe that could be in memory, where people may say so."""
    if lobe is None or not memory.changeable or not lobe.usable:
        return gr.update(visible=False), gr.skip()
    if lobe.pinned:
        return gr.update(visible=True), gr.update(value=UNPIN)
    return gr.update(visible=True), gr.update(value=PIN)


def _detail(lobe: LobeView | None, any_lobes: bool) -> Outputs:
    """detail card, row of actions, new name, rename button, delete button."""
    if lobe is not None:
        free = gr.update(interactive=not lobe.protected)
        return shown(lobe_card(lobe)), gr.update(visible=True), lobe.name, free, free
    card = shown("")
    if any_lobes:
        card = shown(NOTHING_PICKED)
    return card, gr.update(visible=False), "", gr.skip(), gr.skip()
