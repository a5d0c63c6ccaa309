"""The report card of the Lab: ask routers about labelled prompts, read what went wrong, correct it,
and see what a refit changes.

What is picked (router, cell of its matrix, prompt) lives in the page. It comes from the browser, so
it is looked up in the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...errors import ConfigError, MultiLobeError
from ..kit import guard, text
from ..kit.guard import friendly
from ..kit.html import Markup, around
from ..kit.lobes import colours_of
from ..kit.routing_row import DEFAULT, routers_of
from ..kit.static import script
from ..kit.table import bare, heading, shown
from .corrections_card import corrections_list, refit_card
from .drawing import Drawing, Part
from .experiment import Asked, ExperimentPanel, chart, shown_figure
from .labelled_upload import upload, uploads
from .report_curves import curves_of
from .report_figures import NONE, all_matrices, best_router, cell_prompts, prompt_card, report_card, router_details

if TYPE_CHECKING:
    from ...app.studio import Studio
    from ...app.views import RouterView

Outputs = tuple[Any, ...]
Picked = dict[str, Any]
"""{"job": id of the run, "router": name, "cell": (wanted, decided) or None, "prompt": place or None}"""

BASE, LOBE = "base", "lobe:"
CORRECTIONS = "What you know better than the routers. A refit tries it out first; nothing changes before you keep it."
FILES = "Labelled files: a column “lobe”, or named after lobes. Empty: the lobes’ own rows"


class ReportSection:
    """See the module."""

    title = "Report card"
    about = (
        "Which router can be trusted? Give prompts of which you know who should answer them, and all routers "
        "are asked. Nothing is generated. Click down to single prompts, correct what is wrong, and see what "
        "a refit would change before it counts."
    )

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.panel = ExperimentPanel(
            studio, "report", Drawing(report_card, taken_away=taken_away), run="Ask the routers"
        )
        self.refit = ExperimentPanel(studio, "refit", Drawing(refit_card), run="Try a refit with the corrections")
        self.panels: Sequence[ExperimentPanel] = (self.panel, self.refit)

    # ---- layout ----------------------------------------------------------------------------------

    def build(self) -> None:
        """Call it inside gr.Blocks, in the tab or column where it belongs."""
        self.token = guard.visitor()
        self.picked = gr.State({})
        views = routers_of(self.studio)
        names = usable(views)
        self.offered = gr.State(names)
        with gr.Row(elem_classes="rc-asking"):
            self.files = upload("report-files", FILES)
            with gr.Column(min_width=280):
                self.routers = gr.CheckboxGroup(
                    choices_of(views), value=names, label="Routers to ask", interactive=True,
                    elem_id="report-routers"
                )
                self.missing = bare(missing(views), elem_id="report-missing")
        self.panel.build()
        self.details = bare(visible=False, js_on_load=script("table") + script("pick_line"), elem_id="report-details")
        self.curves: list[Any] = []
        with gr.Row(visible=False, elem_id="report-curves", elem_classes="rc-curves") as row:
            for place in ("calibration", "abstention"):
                with gr.Column(min_width=300):
                    self.curves += [bare(), chart(f"report-{place}"), bare()]
        self.curves.append(row)
        self.prompts = bare(visible=False, js_on_load=script("table"), elem_id="report-prompts")
        with gr.Column(visible=False, elem_id="report-ask", elem_classes="ml-box") as self.ask:
            self.quote = bare(elem_id="report-quote")
            with gr.Row(elem_classes="rc-correct", visible=not self.studio.shared):
                self.who = gr.Dropdown(
                    [], label="Who should answer?", interactive=True, min_width=220, elem_id="report-who"
                )
                self.correct = gr.Button("Correct it", variant="primary", elem_id="report-correct")
        self._corrections_side()
        self._wire()

    def _corrections_side(self) -> None:
        # on a shared server nobody may change what routers do for all
        with gr.Column(visible=not self.studio.shared, elem_id="report-corrections", elem_classes="rc-corrections"):
            bare(heading("Corrections", CORRECTIONS))
            self.told = bare(self._told(), js_on_load=script("table"), elem_id="report-told")
            self.refit.build()
            with gr.Row(elem_classes="train-actions"):
                self.keep = gr.Button("Keep this refit", variant="primary", visible=False, elem_id="report-keep")
                self.undo = gr.Button(
                    "Undo: forget all corrections",
                    variant="stop",
                    visible=bool(self._all_told()),
                    elem_id="report-undo",
                )

    def _wire(self) -> None:
        quick: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
        private: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
        self.panel.wire(self.asked, [self.files, self.routers])
        self.refit.wire(self.asked_refit, [self.panel.seen])
        drill = [self.picked, self.details, self.prompts, self.ask, self.quote, self.who, *self.curves]
        told = [self.told, self.undo]
        for block in (self.panel.result, self.details, self.prompts):
            block.pick(self.pick, [self.panel.seen, self.picked], drill, **quick).success(
                None, js=script("show_report"), **quick
            )
        # a result that came, went or changed redraws its block, and with it what is below
        self.panel.result.change(self.redraw, [self.panel.seen, self.picked], drill, **quick)
        self.refit.result.change(self.redraw_refit, self.refit.seen, self.keep, **quick)
        correcting = [self.panel.seen, self.picked, self.who, self.token]
        self.correct.click(self.do_correct, correcting, [*drill, *told], **private)
        self.told.pick(self.do_forget, [self.token], told, **private)
        self.undo.click(self.do_forget_all, [self.token], told, **private)
        kept = [self.refit.result, self.keep, *told]
        self.keep.click(self.do_keep, [self.refit.seen, self.token], kept, **private)
        offer = [self.routers, self.offered, self.missing, *told]
        for opened in [*tabs_around(), gr.context.Context.root_block]:
            if opened is not None:
                listen = opened.select if isinstance(opened, gr.Tab) else opened.load  # type: ignore[attr-defined]
                listen(self.refresh, [self.routers, self.offered], offer, **quick)

    # ---- handlers: asking ------------------------------------------------------------------------

    def asked(self, files: Any, routers: Any) -> Asked:
        """Settings and files of a run; no router ticked is all that can be used. Raises ConfigError."""
        names = guard.some_names(routers or [], "The routers")
        known = usable(routers_of(self.studio))
        for name in names:
            guard.a_choice(name, "A router", known)
        return {"routers": names}, uploads(files)

    def asked_refit(self, seen: Any) -> Asked:
        """A trial on the prompts of the report on display; without one, on the lobes' own rows."""
        if not self._all_told():
            raise ConfigError(
                "There is no correction to learn from. Click a number of a matrix, then a prompt, and "
                "correct it."
            )
        job, result = self._result(seen)
        return {}, [], job if result else ""

    @friendly(quiet=True)
    def refresh(self, ticked: Any, offered: Any) -> Outputs:
        """The routers that can be asked now; what was not ticked stays so, what is new is ticked."""
        views = routers_of(self.studio)
        names = usable(views)
        ticked = ticked if isinstance(ticked, list) else []
        # none ticked is all: the page may have been opened before there were any to tick
        value = [name for name in names if name in ticked or name not in (offered or ())] or names
        return gr.update(choices=choices_of(views), value=value), names, missing(views), *self._told_updates()

    # ---- handlers: looking closer ----------------------------------------------------------------

    @friendly(quiet=True)
    def redraw(self, seen: Any, picked: Any) -> Outputs:
        """The result on display has changed: begin with its best router, or stay with the one that
        was picked."""
        job, result = self._result(seen)
        picked = picked if isinstance(picked, Mapping) else {}
        if not result:
            return self._drawn(None, dict(picked))  # a run at work: its result begins where the person was
        if picked.get("job") != job:
            router = picked.get("router")
            known = isinstance(router, str) and not (result["routers"].get(router) or {"error": "none"}).get("error")
            picked = {"job": job, "router": router if known else best_router(result, DEFAULT)}
        return self._drawn(result, dict(picked))

    @friendly
    def pick(self, event: gr.EventData, seen: Any, picked: Any) -> Outputs:
        """A router, a cell or a prompt was clicked."""
        job, result = self._result(seen)
        if not result:
            raise ConfigError("No report is on display. Run one first.")
        now = dict(picked) if isinstance(picked, Mapping) and picked.get("job") == job else {"job": job}
        return self._drawn(result, then_picked(result, now, guard.event_value(event, "id")))

    def _result(self, seen: Any) -> tuple[str, Mapping[str, Any] | None]:
        """(run on display, its result)."""
        job = seen.get("job") if isinstance(seen, Mapping) else None
        return (job, self.studio.lab.result(job)) if isinstance(job, str) and job else ("", None)

    def _drawn(self, result: Mapping[str, Any] | None, picked: Picked) -> Outputs:
        """picked, details, prompts, form, quote, dropdown, and the parts of the two curves."""
        router, cell, place = picked.get("router", ""), picked.get("cell"), picked.get("prompt")
        hidden = gr.update(visible=False)
        if not result or not router:
            return (picked, shown(""), shown(""), hidden, "", gr.skip(), *(gr.skip(),) * 6, hidden)
        colours = colours_of(self.studio)
        details, prompts = shown(router_details(result, colours, router, cell)), shown("")
        curves = _parts_of_curves(result, router)
        if cell is not None:
            corrected = {one["prompt"]: one["lobe"] for one in self._all_told()}
            prompts = shown(cell_prompts(result, colours, router, cell, place, corrected))
        if cell is None or place is None:
            return (picked, details, prompts, hidden, "", gr.skip(), *curves)
        names = [lobe.name for lobe in self.studio.desk().lobes() if lobe.usable]
        choices = [*((name, LOBE + name) for name in names), (f"{NONE}: the base model", BASE)]
        label, value = result["prompts"][place]["lobe"], BASE
        if label in names:
            value = LOBE + label
        who = gr.update(choices=choices, value=value)
        quote = prompt_card(result, colours, router, place)
        return (picked, details, prompts, gr.update(visible=True), quote, who, *curves)

    # ---- handlers: correcting --------------------------------------------------------------------

    @friendly
    def do_correct(self, request: gr.Request, seen: Any, picked: Any, who: Any, token: Any) -> Outputs:
        """Note who should answer the prompt on display."""
        desk = guard.acting_desk(self.studio, request, token)
        job, result = self._result(seen)
        if not result or not isinstance(picked, Mapping) or picked.get("job") != job or picked.get("prompt") is None:
            raise ConfigError("No prompt is on display. Click one in the list.")
        names = [lobe.name for lobe in self.studio.desk().lobes() if lobe.usable]
        choice = guard.a_choice(who, "Who should answer", [*(LOBE + name for name in names), BASE])
        lobe = choice.removeprefix(LOBE) if choice != BASE else None
        prompt, own = result["prompts"][picked["prompt"]], result["routers"][picked["router"]]
        was = result["labels"][own["decided"][picked["prompt"]]]
        desk.lab.correct(str(prompt["prompt"]), lobe, was)
        gr.Info("Noted. Try a refit below to see what it changes.", title="Correction", duration=5)
        return (*self._drawn(result, {**picked, "prompt": None}), *self._told_updates())

    @friendly
    def do_forget(self, request: gr.Request, event: gr.EventData, token: Any) -> Outputs:
        """Take one correction back."""
        desk = guard.acting_desk(self.studio, request, token)
        kind, _, id = guard.event_value(event, "id").partition("|")
        if kind != "forget" or id not in [one["id"] for one in self._all_told()]:
            raise ConfigError("This correction is not there any more. Reload the page.")
        desk.lab.forget_corrections([id])
        return self._told_updates()

    @friendly
    def do_forget_all(self, request: gr.Request, token: Any) -> Outputs:
        desk = guard.acting_desk(self.studio, request, token)
        desk.lab.forget_corrections()
        gr.Info("All corrections are forgotten; the routers answer as before them.", title="Corrections", duration=6)
        return self._told_updates()

    @friendly(quiet=True)
    def redraw_refit(self, seen: Any) -> Any:
        """A refit can be kept once it has ended, and only once."""
        _, result = self._result(seen)
        return gr.update(visible=can_keep(result))

    @friendly
    def do_keep(self, request: gr.Request, seen: Any, token: Any) -> Outputs:
        """Put the refit on display into service."""
        desk = guard.acting_desk(self.studio, request, token)
        job, result = self._result(seen)
        if not can_keep(result):
            raise ConfigError("There is no refit to keep. Try one first.")
        desk.lab.keep_refit(job)
        gr.Info("Kept: the routers answer like this from now on.", title="Refit", duration=5)
        after = self.studio.lab.result(job)
        drawn = shown(refit_card(after, colours_of(self.studio)) if after else "")
        return (drawn, gr.update(visible=can_keep(after)), *self._told_updates())

    def _all_told(self) -> Sequence[Mapping[str, Any]]:
        """All corrections; none while the studio cannot say."""
        try:
            return self.studio.lab.corrections()
        except MultiLobeError:
            return ()

    def _told(self) -> Markup:
        return corrections_list(self._all_told(), colours_of(self.studio))

    def _told_updates(self) -> Outputs:
        """List of corrections, and the button that forgets them all."""
        return self._told(), gr.update(visible=bool(self._all_told()))


# ---- pure ----------------------------------------------------------------------------------------


def _parts_of_curves(result: Mapping[str, Any], router: str) -> Outputs:
    """Head, figure and numbers of both curves, and the row in which they are."""
    parts: list[Any] = []
    for curve in curves_of(result, router):
        parts += [curve.head(), shown_figure(curve.figure), curve.table()]
    return (*parts, gr.update(visible=True))


def taken_away(result: Mapping[str, Any], colours: Mapping[str, str]) -> Sequence[Part]:
    """The curves of the router that comes first, and every router's matrix."""
    first = best_router(result)
    if not first:
        return []
    curves = [part for curve in curves_of(result, first) for part in (curve.head(), curve.figure, curve.table())]
    return [*curves, all_matrices(result, colours)]


def then_picked(result: Mapping[str, Any], picked: Picked, id: str) -> Picked:
    """What is picked after a click on `id`: "router|name", "cell|router|wanted|decided" or "prompt|place".

    Raises:
        ConfigError: it is none of those in the result.
    """
    kind, _, rest = id.partition("|")
    if kind == "router":
        return {"job": picked["job"], "router": _router(result, rest)}
    if kind == "cell" and rest.count("|") >= 2:
        name, wanted, decided = rest.rsplit("|", 2)
        size = len(result["labels"])
        cell = (_place(wanted, size), _place(decided, size))
        return {"job": picked["job"], "router": _router(result, name), "cell": cell}
    if kind == "prompt" and picked.get("cell") is not None:
        return {**picked, "prompt": _place(rest, len(result["prompts"]))}
    raise ConfigError(f"The page sent {text.short(id, 40)!r}, which is nothing of this report. Reload the page.")


def _router(result: Mapping[str, Any], name: str) -> str:
    known = [router for router, own in result["routers"].items() if not own.get("error")]
    return guard.a_choice(name, "The router", known)


def _place(digits: str, size: int) -> int:
    """A place in a list of `size`. Raises ConfigError if it is none."""
    if not (digits.isascii() and digits.isdigit() and len(digits) < 9) or int(digits) >= size:
        raise ConfigError(
            f"The page sent {text.short(digits, 20)!r}, which is nothing of this report. Reload the page."
        )
    return int(digits)


def can_keep(result: Mapping[str, Any] | None) -> bool:
    """Whether a refit ended, is complete, and is not in service yet."""
    return bool(result and result.get("routers") and not result.get("kept") and not result.get("stopped"))


def usable(views: Sequence[RouterView]) -> list[str]:
    """Routers that can choose lobes now."""
    return [view.name for view in views if view.fitted]


def choices_of(views: Sequence[RouterView]) -> list[tuple[str, str]]:
    return [(view.title + (" (stale)" if view.stale else ""), view.name) for view in views if view.fitted]


def missing(views: Sequence[RouterView]) -> Markup:
    """Who cannot be asked, and what to do about it."""
    names = [view.title for view in views if not view.fitted]
    if not views:
        return Markup('<p class="ml-faint">The routers appear here once the base model is loaded.</p>')
    return around('<p class="ml-faint">Not ready: {}. Fit what needs it under Routers.</p>', text.listed(names))


def tabs_around() -> Iterator[gr.Tab]:
    """The tabs in which whatever is laid out now will be, innermost first."""
    block = gr.context.Context.block
    while block is not None:
        if isinstance(block, gr.Tab):
            yield block
        block = block.parent
