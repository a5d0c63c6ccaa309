"""What lobes may take in memory, and the base model beneath them. Both are the machine's: on a
shared server they stay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...errors import ConfigError
from ..kit import guard
from ..kit.guard import friendly
from ..kit.table import bare, heading
from .memory_card import mib as mib_words
from .telling import tell

if TYPE_CHECKING:
    from ...app.studio import Studio

MOST_MIB = 1_000_000
SHARED_BASE = "This server is shared, so its base model stays. Run your own copy to choose another."
SHARED_MEMORY = "This server is shared, so whoever runs it says what stays in memory (MULTILOBE_MEMORY_MIB)."
BASE_HELP = "builtin, a folder on this machine, or a Hugging Face id such as gpt2."
BUDGET_HELP = "MiB beside the base model. Empty: no limit."


class MachineSide:
    """The budget of memory and the base, each with what is known of it."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.budget_help, self.base_help = BUDGET_HELP, BASE_HELP
        if studio.shared:
            self.budget_help, self.base_help = SHARED_MEMORY, SHARED_BASE

    def build(self) -> None:
        mine = not self.studio.shared
        about = "A lobe is read when it is first asked. Beyond the budget, those asked longest ago leave."
        bare(heading("Memory", about, "manage-heading"))
        self.memory = bare(elem_id="manage-memory")
        with gr.Row(elem_classes="manage-line"):
            self.budget = gr.Number(
                label="Most memory for lobes", info=self.budget_help, placeholder="no limit", minimum=0,
                interactive=mine, min_width=180, elem_id="manage-budget",
            )  # fmt: skip
            self.set_budget = gr.Button("Set", interactive=mine, elem_id="manage-set-budget")
        bare(heading("Base model", "Frozen: training never changes it.", "manage-heading"))
        self.base = bare(elem_id="manage-base")
        with gr.Row(elem_classes="manage-line"):
            self.base_name = gr.Textbox(
                label="Another base model", info=self.base_help, placeholder="builtin", max_length=500,
                interactive=mine, min_width=180, elem_id="manage-base-name",
            )  # fmt: skip
            self.change = gr.Button("Load", interactive=mine, elem_id="manage-change-base")

    def wire(self, looking: Mapping[str, Any]) -> None:
        """`looking` is what draws the tab anew."""
        private: dict[str, Any] = {"outputs": None, "api_visibility": "private", "concurrency_limit": None}
        for act in (self.set_budget.click, self.budget.submit):
            act(self.do_set_budget, self.budget, show_progress="hidden", **private).success(**looking)
        for act in (self.change.click, self.base_name.submit):
            act(self.do_change_base, self.base_name, **private).success(**looking)

    @friendly
    def do_set_budget(self, mib: Any) -> None:
        if self.studio.shared:
            raise ConfigError(SHARED_MEMORY)
        if mib is None or mib == "":
            self.studio.desk().set_memory_budget(None)
            tell("Lobes stay in memory without a limit.")
            return
        most = guard.a_number(mib, "The memory for lobes", 1, MOST_MIB)
        self.studio.desk().set_memory_budget(most)
        tell(f"Lobes stay in memory up to {mib_words(most)}.")

    @friendly
    def do_change_base(self, name: Any) -> None:
        if self.studio.shared:
            raise ConfigError(SHARED_BASE)
        self.studio.desk().change_base(guard.a_text(name, "The base model", 500))
        tell("The base model is being loaded. Lobes of another base stay on disk and cannot be used meanwhile.")
