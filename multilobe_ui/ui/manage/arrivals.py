"""Bring lobes in: a bundle, or any PEFT LoRA adapter. Both come as uploads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..kit import guard, text
from ..kit.guard import friendly
from ..kit.pulse import QUICK
from ..kit.table import bare, heading
from .telling import tell

if TYPE_CHECKING:
    from ...app.studio import Studio

CLASHES = (
    ("Keep both: the new one gets another name", "rename"),
    ("Replace mine", "replace"),
    ("Refuse: change nothing", "refuse"),
)


class ArrivalsSide:
    """Two forms, each on a tab of its own."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def build(self) -> None:
        about = "A bundle saved here or elsewhere, or any PEFT LoRA adapter."
        bare(heading("Bring lobes in", about, "manage-heading"))
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
        self.clash = gr.Radio(clashes, value="rename", label="If a lobe of that name exists", elem_id="manage-clash")
        self.load = gr.Button("Load the bundle", interactive=False, elem_id="manage-load")

    def _adapter_form(self) -> None:
        self.adapter = gr.File(
            label="Adapter folder (.zip)", file_types=[".zip"], type="filepath", height=180,
            elem_id="manage-adapter"
        )
        self.name = gr.Textbox(
            label="Name of the new lobe", placeholder="Such as: Medicine", max_length=80,
            elem_id="manage-adapter-name"
        )
        self.take = gr.Button("Import the adapter", interactive=False, elem_id="manage-import")

    def wire(self, looking: Mapping[str, Any]) -> None:
        """`looking` is what draws the tab anew."""
        token = guard.visitor()
        private: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
        for file, button in ((self.bundle, self.load), (self.adapter, self.take)):
            file.change(_has_file, file, button, **QUICK)
        # Only success touches the form: on the outputs of what fails Gradio lays "Error", over the
        # file and its name.
        loaded = self.load.click(self.do_load, [self.bundle, self.clash, token], None, **private)
        loaded.success(lambda: None, None, self.bundle, **QUICK).then(**looking)
        taken = self.take.click(self.do_import, [self.adapter, self.name, token], None, **private)
        taken.success(lambda: (None, ""), None, [self.adapter, self.name], **QUICK).then(**looking)

    @friendly
    def do_load(self, request: gr.Request, file: Any, clash: Any, token: Any) -> None:
        desk = guard.acting_desk(self.studio, request, token)
        path = guard.an_upload(file, "The bundle")
        choice = guard.a_choice(clash, "The choice for clashes", [value for _, value in CLASHES])
        names = desk.load_bundle(path, choice)
        if not names:
            tell("It held nothing new.")
            return
        tell(f"Loaded {text.count(len(names), 'lobe')}: {text.listed(names)}.")

    @friendly
    def do_import(self, request: gr.Request, file: Any, name: Any, token: Any) -> None:
        desk = guard.acting_desk(self.studio, request, token)
        path = guard.an_upload(file, "The adapter")
        lobe = desk.import_adapter(guard.a_text(name, "The name of the lobe", 80), path)
        tell(f"{lobe.name} has been imported.")


def _has_file(file: Any) -> Any:
    return gr.update(interactive=bool(file))
