"""The stages of a chain: which routers are asked in turn, and from which confidence on each decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...routing.router import Router
from ..kit import guard, text
from ..kit.guard import friendly
from ..kit.html import Markup
from ..kit.pulse import QUICK
from ..kit.table import bare

if TYPE_CHECKING:
    from ...app.studio import Studio
    from ...app.views import RouterView

Outputs = tuple[Any, ...]
Stages = Sequence[Sequence[Any]]
"""[router, threshold] of each."""

MOST_STAGES = 6
STAGES = ("embedding", "gate", "logprob", "keyword", "complexity")
"""What a new stage may begin as: a router is in a chain once."""
ABOUT = Markup(
    '<p class="ml-faint">Asked from the top. The first that is sure enough decides; if none is, the base '
    'model answers.</p>'
)


class ChainForm:
    """A row for each stage that there may be; those in use can be seen. `outputs` are what
    `stage_updates` fills."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def build(self, routers: Sequence[Router]) -> None:
        offered = [
            (router.title, router.name)
            for router in routers
            if router.name not in ("chain", "hybrid") and not router.per_token
        ]
        bare(ABOUT)
        rows, moves, self.routers, self.limits = [], [], [], []
        for place in range(MOST_STAGES):
            with gr.Row(visible=False, elem_classes="chain-stage", elem_id=f"chain-{place}") as row:
                self.routers.append(
                    gr.Dropdown(offered, value=None, label=f"Stage {place + 1}", interactive=True, min_width=120)
                )
                self.limits.append(
                    gr.Slider(
                        0, 1, 0.5, step=0.05, label="Sure enough from", interactive=True, buttons=[],
                        min_width=120
                    )
                )
                for sign, act in (("Up", "up"), ("Down", "down"), ("Remove", "out")):
                    moves.append((gr.Button(sign, size="sm", elem_id=f"chain-{act}-{place}"), place, act))
            rows.append(row)
        self.length = gr.State(0)
        with gr.Row(elem_classes="train-actions"):
            moves.append((gr.Button("Add a stage", size="sm", elem_id="chain-add"), 0, "add"))
            save = gr.Button("Save the chain", variant="primary", size="sm", elem_id="chain-save")
        self.outputs = [*rows, *self.routers, *self.limits, self.length]
        form = [self.length, *self.routers, *self.limits]
        for button, place, act in moves:
            button.click(_mover(place, act), form, self.outputs, **QUICK)
        save.click(
            self.do_save,
            [guard.visitor(), *form],
            None,
            show_progress="hidden",
            api_visibility="private",
            concurrency_limit=None,
        )

    @friendly
    def do_save(self, request: gr.Request, token: Any, length: Any, *values: Any) -> None:
        desk = guard.acting_desk(self.studio, request, token)
        stages = guard.stages(_read(length, values))
        desk.set_chain(stages)
        gr.Info(f"The chain has {text.count(len(stages), 'stage')} now.", title="Chain", duration=5)


# ---- pure ----------------------------------------------------------------------------------------


def stages_of(views: Sequence[RouterView]) -> list[tuple[str, float]]:
    """(router, threshold) of the chain's stages; none while the chain is not known."""
    stages = [stage for view in views if view.name == "chain" for stage in view.settings.get("stages", ())]
    return [(str(name), float(limit)) for name, limit in stages][:MOST_STAGES]


def moved(stages: Stages, place: int, act: str) -> list[list[Any]]:
    """The stages after one was moved "up" or "down", taken "out", or "add"ed at the end."""
    after = [list(stage) for stage in stages]
    other = place + {"up": -1, "down": 1}.get(act, 0)
    if act == "add" and len(after) < MOST_STAGES:
        used = [stage[0] for stage in after]
        after.append([next((name for name in STAGES if name not in used), STAGES[0]), 0.0])
    elif act == "out" and len(after) > 1:
        del after[place : place + 1]
    elif place < len(after) and 0 <= other < len(after):
        after[place], after[other] = after[other], after[place]
    return after


def stage_updates(stages: Stages) -> Outputs:
    """Rows, dropdowns, sliders and the number of stages."""
    unused = [gr.skip()] * (MOST_STAGES - len(stages))
    rows = [gr.update(visible=place < len(stages)) for place in range(MOST_STAGES)]
    routers, limits = ([gr.update(value=stage[i]) for stage in stages] for i in (0, 1))
    return (*rows, *routers, *unused, *limits, *unused, len(stages))


def _read(length: Any, values: Sequence[Any]) -> list[list[Any]]:
    """The rows of the form that are in use, as [router, threshold]."""
    number = guard.a_whole(length, "The number of stages", 0, MOST_STAGES)
    routers, limits = values[:MOST_STAGES], values[MOST_STAGES : 2 * MOST_STAGES]
    return [[router, limit] for router, limit in zip(routers[:number], limits[:number], strict=True)]


def _mover(place: int, act: str) -> Callable[..., Outputs]:
    @friendly(quiet=True)
    def move(length: Any, *values: Any) -> Outputs:
        return stage_updates(moved(_read(length, values), place, act))

    return move
