"""The Routers tab: how every router stands, fit what needs fitting and watch it, and ask all of them about one prompt.

As on the Train tab, a fit is a job of the studio's. Page load, tick and every click end in the same read-only `look`.
Which router is picked is lost with the page, and cheap to choose again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...errors import ConfigError, JobError
from ..kit import guard, text
from ..kit.complexity_card import stratification_card
from ..kit.guard import friendly
from ..kit.html import Markup
from ..kit.plots import fit_curves, prompt_map_figure
from ..kit.pulse import Pulse
from ..kit.routing_row import routers_of
from ..kit.static import script, scroll_to
from ..kit.table import bare, heading, shown
from .router_card import (
    ACTIVE,
    WORKING,
    fit_card,
    report_card,
    router_detail,
    router_list,
    state_of,
    title_of,
)
from .verdicts import comparison

if TYPE_CHECKING:
    from ...app.studio import Studio
    from ...app.views import JobView, RouterView

Outputs = tuple[Any, ...]

KEYWORD, COMPLEXITY, CHAIN = "keyword", "complexity", "chain"
MOST_STAGES = 6
STAGES = ("embedding", "gate", "logprob", "keyword", "complexity")
"""What a new stage may begin as: a router is in a chain once."""
LONGEST_PROMPT = 20_000
MOST_TERMS = 300
PRESET = "Write Python code to solve quadratic equations"
CHOICES = {"granularity": ("token", "sequence"), "embedding": ("sentence", "base", "both")}
SLIDERS = ("low", "high")
INFO = {
    "low": "Prompts below are simple.",
    "high": "Prompts from here on are complex.",
    "steps": "Steps at most; it ends earlier when the held-out loss no longer falls.",
    "embedding": "What it reads: the sentence encoder, or the base's own hidden state.",
    "false_abstention": "Share of held-out rows that may go to the base although a lobe fits.",
    "learning_rate": "Peak rate of the first phase.",
    "weight_decay": "Pull towards small weights, against learning by heart.",
    "lora_r": "Size of every expert.",
    "lora_alpha": "Strength: scaled by alpha / r.",
    "target_modules": "Linear layers that get a LoRA. Empty: all.",
    "hidden": "Hidden units of the router.",
    "router_epochs": "Passes of phase 1, the router alone.",
    "expert_epochs": "Passes of phase 2, the experts alone.",
    "joint_epochs": "Passes of phase 3, both together.",
    "expert_learning_rate": "Peak rate of the experts. Empty: automatic.",
    "balance_weight": "How much an even use of the experts counts.",
    "batch_size": "Rows in one step; lower it if memory runs out.",
    "max_length": "Longest row in tokens; longer rows are cut.",
    "max_rows": "Most rows to learn from.",
    "rows_per_lobe": "Most training rows of each lobe.",
    "depth": "Linear layers of the head.",
    "size": "Features between the head's layers.",
    "layerwise": "Weights of their own for every layer.",
    "granularity": "Weigh each token, or the text so far as a whole.",
    "temperature": "Higher mixes more evenly.",
    "top_k": "Only the k best lobes mix; 0: all.",
    "supervised_steps": "Steps that learn which lobe a token belongs to.",
    "language_steps": "Steps that learn to answer with them.",
    "language_rate": "Rate of the second phase.",
    "label_weight": "Share of the lobe labels in the second phase.",
    "seed": "Same seed, same data: same fit.",
}


class RoutersTab:
    """Lays out and wires the tab. Handlers take and return plain values and make one call on the studio."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def build(self) -> None:
        """Call it inside gr.Blocks, in the tab or column where it belongs."""
        self.token = guard.visitor()
        self.picked = gr.State("")
        self.seen = gr.State({})
        self.views = routers_of(self.studio)
        with gr.Row(elem_classes="train-row"):
            with gr.Column(scale=4, min_width=300):
                bare(heading("Routers", "Each turns a message into weights over lobes, in its own way."))
                self.list = bare(js_on_load=script("table"), elem_id="router-list")
                self.fit_all = gr.Button("Fit all that need it", visible=False, elem_id="router-fit-all")
            with gr.Column(scale=8, min_width=320):
                self._detail_side()
        self._try_side()
        self._wire()

    # ---- layout --------------------------------------------------------------------------------------------------

    def _detail_side(self) -> None:
        self.detail = bare(elem_id="router-detail")
        self.fields: list[tuple[str, str]] = []
        self.components: list[Any] = []
        self.forms: dict[str, Any] = {}
        settings = {view.name: view.settings for view in self.views}
        for name in dict.fromkeys((*settings, COMPLEXITY, KEYWORD, CHAIN)):
            own = settings.get(name, {})
            with gr.Column(visible=False, min_width=0, elem_id=f"router-form-{name}") as form:
                if name == COMPLEXITY:
                    self._strata(own)
                self._form(name, own)
                if name == KEYWORD:
                    self._words()
                if name == CHAIN:
                    self._chain(own)
            self.forms[name] = form
        with gr.Row(elem_classes="train-actions"):
            self.fit = gr.Button("Fit", variant="primary", visible=False, elem_id="router-fit")
            self.stop = gr.Button("Stop and keep the best", variant="stop", visible=False, elem_id="router-stop")
            self.cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id="router-cancel")
        self.progress = bare(visible=False, elem_id="router-progress")
        self.plot = gr.Plot(
            show_label=False, label="Curves of the fit", container=False, visible=False, elem_id="router-plot", buttons=[]
        )
        self.report = bare(visible=False, elem_id="router-report")

    def _form(self, router: str, settings: Mapping[str, Any]) -> None:
        """A field for each setting that has a simple value; those drawn elsewhere are left out."""
        known = [(n, d) for n, d in settings.items() if _is_simple(d) and (router, n) not in self.fields]
        if not known:
            return
        with gr.Accordion("Settings", open=False), gr.Row(elem_classes="router-form"):
            for name, default in known:
                self._field(router, name, default)

    def _field(self, router: str, name: str, default: Any) -> None:
        about: dict[str, Any] = {
            "label": title_of(name), "info": INFO.get(name), "min_width": 150, "elem_id": f"router-{router}-{name}",
        }  # fmt: skip
        component: Any
        if isinstance(default, bool):
            component = gr.Checkbox(default, **about)
        elif name in CHOICES:
            offered = dict.fromkeys((*CHOICES[name], default))
            component = gr.Dropdown(list(offered), value=default, interactive=True, **about)
        elif name in SLIDERS:
            component = gr.Slider(0, 1, default, step=0.01, buttons=[], **about)
        elif isinstance(default, (str, type(None))):
            component = gr.Textbox(default or "", placeholder="automatic", max_length=2000, **about)
        elif isinstance(default, int):
            component = gr.Number(default, precision=0, **about)
        else:
            # a text box, because a number box shows 0.0003 as 0 once it has been emptied
            component = gr.Textbox(f"{default:g}", max_length=20, **about)
        self.fields.append((router, name))
        self.components.append(component)

    def _strata(self, settings: Mapping[str, Any]) -> None:
        """Thresholds, a file of one's own, and what they come to before any training."""
        with gr.Row(elem_classes="router-thresholds"):
            for name in SLIDERS:
                self._field(COMPLEXITY, name, settings.get(name, 0.3 if name == "low" else 0.7))
        self.low, self.high = self.components[-2:]
        with gr.Accordion("Learn from a file instead of the lobes' own rows", open=False):
            self.file = gr.File(
                label="Prompts and answers: JSONL, JSON, CSV or Parquet", height=150, type="filepath", elem_id="router-file",
                file_types=[".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt"],
            )  # fmt: skip
        with gr.Row(elem_classes="train-actions"):
            self.preview = gr.Button("Preview the tiers", elem_id="router-preview")
        self.strata = bare(visible=False, elem_id="router-strata")

    def _words(self) -> None:
        self.lobe = gr.Dropdown([], label="Lobe", interactive=True, elem_id="router-lobe")
        self.terms = gr.Dropdown(
            [], value=[], label="Its words", info="Take one away with ×; write one and press Enter to add it.", multiselect=True,
            allow_custom_value=True, interactive=True, elem_id="router-terms",
        )  # fmt: skip
        with gr.Row(elem_classes="train-actions"):
            self.save_words = gr.Button("Save these words", variant="primary", size="sm", elem_id="router-save-words")
            self.learned = gr.Button("Back to the learned words", size="sm", elem_id="router-learned")

    def _chain(self, settings: Mapping[str, Any]) -> None:
        stages = _stages_of(settings)
        offered = [(v.title, v.name) for v in self.views if v.name not in (CHAIN, "hybrid") and not v.per_token]
        bare(
            Markup(
                '<p class="ml-faint">Asked from the top. The first that is sure enough decides; if none is, the base model '
                "answers.</p>"
            )
        )
        self.stage_rows, self.stage_routers, self.stage_limits = [], [], []
        self.moves: list[tuple[Any, int, str]] = []
        for i in range(MOST_STAGES):
            name, limit = stages[i] if i < len(stages) else (None, 0.5)
            with gr.Row(visible=i < len(stages), elem_classes="chain-stage", elem_id=f"chain-{i}") as row:
                self.stage_routers.append(
                    gr.Dropdown(offered, value=name, label=f"Stage {i + 1}", interactive=True, min_width=120)
                )
                self.stage_limits.append(
                    gr.Slider(0, 1, limit, step=0.05, label="Sure enough from", interactive=True, buttons=[], min_width=120)
                )
                for sign, act in (("Up", "up"), ("Down", "down"), ("Remove", "out")):
                    button = gr.Button(sign, size="sm", elem_id=f"chain-{act}-{i}")
                    self.moves.append((button, i, act))
            self.stage_rows.append(row)
        self.length = gr.State(len(stages))
        with gr.Row(elem_classes="train-actions"):
            self.add_stage = gr.Button("Add a stage", size="sm", elem_id="chain-add")
            self.save_chain = gr.Button("Save the chain", variant="primary", size="sm", elem_id="chain-save")

    def _try_side(self) -> None:
        with gr.Column(elem_id="routers-try"):
            bare(heading("Ask the routers", "One message, every router's answer side by side; nothing is generated."))
            with gr.Row(elem_classes="compare-line"):
                self.prompt = gr.Textbox(
                    label="Message", show_label=False, container=False, placeholder=f"Such as: {PRESET}", lines=1, max_lines=6,
                    max_length=LONGEST_PROMPT, min_width=260, elem_id="compare-prompt",
                )  # fmt: skip
                self.ask = gr.Button("Ask the routers", variant="primary", elem_id="compare-ask")
            self.results = bare(elem_id="compare-results")
            self.map_title = bare(visible=False, elem_id="router-map-title")
            self.map = gr.Plot(
                show_label=False, label="Map of prompts", container=False, visible=False, elem_id="router-map", buttons=[]
            )

    # ---- wiring --------------------------------------------------------------------------------------------------

    def _wire(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
        quick: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
        stages = [*self.stage_rows, *self.stage_routers, *self.stage_limits, self.length]
        view = [
            self.list, self.fit_all, self.detail, *self.forms.values(), self.fit, self.stop, self.cancel, self.progress, self.plot,
            self.report, self.lobe, *stages, self.seen,
        ]  # fmt: skip
        self.width = len(view)
        look: dict[str, Any] = {
            "fn": self.look, "inputs": [self.picked, self.seen, self.token], "outputs": view, **quick
        }  # fmt: skip
        self.list.pick(self.pick, None, self.picked, **quick).then(**look, js=scroll_to("#router-detail"))
        asked = [self.picked, self.seen, self.file, self.token, *self.components]
        self.fit.click(self.begin, asked, [self.picked, self.seen], show_progress="hidden", **private).success(**look)
        self.fit_all.click(self.begin_all, self.token, self.seen, show_progress="hidden", **private).success(**look)
        for button, end in ((self.stop, self.do_stop), (self.cancel, self.do_cancel)):
            button.click(end, [self.seen, self.token], None, show_progress="hidden", **private).success(**look)
        self.preview.click(
            self.stratify, [self.low, self.high, self.file], self.strata, show_progress_on=self.strata, **private
        )
        self.file.clear(lambda: gr.update(visible=False), None, self.strata, **quick)
        self.lobe.change(self.show_words, self.lobe, self.terms, **quick)
        editing = [self.lobe, self.terms, self.token]
        self.save_words.click(self.do_save_words, editing, self.terms, show_progress="hidden", **private)
        self.learned.click(self.do_learned, [self.lobe, self.token], self.terms, show_progress="hidden", **private)
        chain = [self.length, *self.stage_routers, *self.stage_limits]
        for button, place, act in self.moves:
            button.click(_mover(place, act), chain, stages, **quick)
        self.add_stage.click(_mover(0, "add"), chain, stages, **quick)
        self.save_chain.click(self.do_save_chain, [*chain, self.token], None, show_progress="hidden", **private)
        comparing: dict[str, Any] = {
            "fn": self.compare, "inputs": self.prompt, "outputs": [self.results, self.prompt],
            "show_progress_on": self.results, "api_visibility": "private", "concurrency_limit": 2,
        }  # fmt: skip
        mapping: dict[str, Any] = {
            "fn": self.place, "inputs": self.prompt, "outputs": [self.map_title, self.map], "show_progress": "hidden", **private,
        }  # fmt: skip
        self.ask.click(**comparing).success(**mapping)
        self.prompt.submit(**comparing).success(**mapping)
        self.looking = look
        root = gr.context.Context.root_block
        if root is not None:
            root.load(self.look_anew, [self.picked, self.token], view, **quick)  # type: ignore[attr-defined]

    def watch(self, pulse: Pulse) -> None:
        """Look whenever something has changed that the tab shows."""
        pulse.when(self.shows)(**self.looking)

    def shows(self) -> object:
        status = self.studio.status()
        return status.version, status.state, router_jobs(self.studio.jobs())

    # ---- handlers: looking ---------------------------------------------------------------------------------------

    @friendly(quiet=True)
    def look_anew(self, request: gr.Request, picked: Any, token: Any) -> Outputs:
        """For a page that has just been opened."""
        return self._view(request, picked, {}, token)

    @friendly(quiet=True)
    def look(self, request: gr.Request, picked: Any, seen: Any, token: Any) -> Outputs:
        """What has changed since `seen`; reads only."""
        return self._view(request, picked, seen, token)

    def _view(self, request: gr.Request, picked: str, seen: Mapping[str, Any], token: Any) -> Outputs:
        owner = guard.owner_of(request, token)
        status, jobs = self.studio.status(), router_jobs(self.studio.jobs(owner))
        probe = (status.version, status.state, picked, owner, [(j.id, j.state, j.phase, j.step, j.place) for j in jobs])
        if probe == seen.get("probe"):
            return self._skipped()
        views = self.studio.routers(owner)
        by_name = newest(jobs)
        view = on_display(views, by_name, picked)
        if view is None:
            return self._skipped()
        job = by_name.get(view.name)
        lobes = [lobe.name for lobe in self.studio.lobes(owner) if lobe.usable] if status.state == "ready" else []
        chain = next((_stages_of(v.settings) for v in views if v.name == CHAIN), [])
        keys = {
            "probe": probe,
            "router": view.name,
            "job": job.id if job else "",
            "list": (repr(views), view.name, repr([by_name.get(v.name) for v in views])),
            "detail": (repr(view), job and (job.id, job.state)),
            "progress": repr(job),
            "plot": (view.name, job and (job.id, job.state, job.step)),
            "lobes": lobes,
            "chain": repr(chain),
        }
        changed = {key for key in keys if keys[key] != seen.get(key, ...)}
        listed = router_list(views, by_name, view.name) if "list" in changed else gr.skip()
        every = _fit_all(views, by_name) if "list" in changed else gr.skip()
        detail = router_detail(view, job) if "detail" in changed else gr.skip()
        forms = [gr.update(visible=name == view.name) if "router" in changed else gr.skip() for name in self.forms]
        buttons = _buttons(view, job) if changed & {"detail", "progress"} else (gr.skip(),) * 3
        progress = shown(fit_card(job, view.title)) if changed & {"progress", "router"} else gr.skip()
        plot = self._plot(view, job) if "plot" in changed else gr.skip()
        report = shown(report_card(view.report)) if "detail" in changed else gr.skip()
        words = gr.update(choices=lobes, value=lobes[0] if lobes else None) if "lobes" in changed else gr.skip()
        stages = stage_updates(chain) if "chain" in changed else (gr.skip(),) * (3 * MOST_STAGES + 1)
        return (listed, every, detail, *forms, *buttons, progress, plot, report, words, *stages, keys)

    def _skipped(self) -> Outputs:
        return (gr.skip(),) * self.width

    def _plot(self, view: RouterView, job: JobView | None) -> Any:
        records = self.studio.metrics(job.id) if job else []
        if job is None or not records:
            return gr.update(visible=False)
        steps = job.steps if job.state in ACTIVE else None
        return gr.update(value=fit_curves(records, steps), visible=True)

    @friendly(quiet=True)
    def pick(self, event: gr.EventData) -> str:
        """A router of the list was clicked."""
        return str(guard.event_value(event, "id"))

    # ---- handlers: fits ------------------------------------------------------------------------------------------

    @friendly
    def begin(self, request: gr.Request, picked: Any, seen: Any, file: Any, token: Any, *values: Any) -> tuple[str, Any]:
        """Queue the fit of the router on display, and keep it on display."""
        owner = guard.acting_owner(self.studio, request, token)
        views = {view.name: view for view in self.studio.routers(owner)}
        name = guard.a_choice(picked or seen.get("router"), "The router", list(views))
        view = views[name]
        given = zip(self.fields, values, strict=True)
        own = {key: value for (router, key), value in given if router == name and key in view.settings}
        settings = guard.router_settings(view.settings, own)
        path = str(guard.an_upload(file)) if file and name == COMPLEXITY else None
        job = self.studio.fit_router(name, settings, path, owner)
        waits = f" It waits for its turn: place {job.place} in the queue." if job.place else ""
        gr.Info(f"{text.escape(view.title)} is being fitted.{waits}", title="Routers", duration=6)
        return name, {}

    @friendly
    def begin_all(self, request: gr.Request, token: Any) -> dict[str, Any]:
        """Queue the fits of all routers that need one, with the settings as they come."""
        owner = guard.acting_owner(self.studio, request, token)
        waiting = needing(self.studio.routers(owner), newest(router_jobs(self.studio.jobs(owner))))
        for view in waiting:
            self.studio.fit_router(view.name, {}, None, owner)
        gr.Info(f"{text.count(len(waiting), 'router')} will be fitted, one after another.", title="Routers", duration=6)
        return {}

    @friendly
    def do_stop(self, request: gr.Request, seen: Any, token: Any) -> None:
        self.studio.stop(*self._acting(request, seen, token))

    @friendly
    def do_cancel(self, request: gr.Request, seen: Any, token: Any) -> None:
        self.studio.cancel(*self._acting(request, seen, token))

    def _acting(self, request: gr.Request, seen: Any, token: Any) -> tuple[str, str]:
        """(the fit on display, who asks)."""
        if not isinstance(seen, Mapping) or not seen.get("job"):
            raise JobError("No fit is on display. Choose a router in the list.")
        return seen["job"], guard.acting_owner(self.studio, request, token)

    @friendly
    def stratify(self, low: Any, high: Any, file: Any) -> Any:
        """How many rows each tier would get, with examples."""
        path = str(guard.an_upload(file)) if file else None
        limits = guard.a_number(low, "Low", 0, 1), guard.a_number(high, "High", 0, 1)
        if limits[0] >= limits[1]:
            raise ConfigError(f"Low is {limits[0]:g} and high {limits[1]:g}; low must be below high.")
        return shown(stratification_card(self.studio.stratify(*limits, path)))

    # ---- handlers: words, chain ----------------------------------------------------------------------------------

    @friendly(quiet=True)
    def show_words(self, lobe: Any) -> Any:
        """The words of another lobe."""
        return self._words_of(guard.a_text(lobe, "The lobe", 200)) if lobe else gr.update(choices=[], value=[])

    @friendly
    def do_save_words(self, request: gr.Request, lobe: Any, terms: Any, token: Any) -> Any:
        owner, name = guard.acting_owner(self.studio, request, token), guard.a_text(lobe, "The lobe", 200)
        words = guard.some_names(terms, "The words")
        if not 1 <= len(words) <= MOST_TERMS:
            raise ConfigError(f"{name} has {len(words)} words; give it 1 to {MOST_TERMS}, or go back to the learned ones.")
        self.studio.set_keyword_terms(name, words, owner)
        gr.Info(f"{text.count(len(words), 'word')} of {text.escape(name)} saved.", title="Keywords", duration=5)
        return self._words_of(name)

    @friendly
    def do_learned(self, request: gr.Request, lobe: Any, token: Any) -> Any:
        owner, name = guard.acting_owner(self.studio, request, token), guard.a_text(lobe, "The lobe", 200)
        self.studio.set_keyword_terms(name, None, owner)
        gr.Info(f"{text.escape(name)} has its learned words again.", title="Keywords", duration=5)
        return self._words_of(name)

    def _words_of(self, lobe: str) -> Any:
        """Every word with its weight, as chips."""
        terms = self.studio.keyword_terms(lobe)
        chips = [(f"{term}  {weight:.1f}", term) for term, weight in terms]
        return gr.update(choices=chips, value=[term for term, _ in terms], label=f"Words of {text.short(lobe, 40)}")

    @friendly
    def do_save_chain(self, request: gr.Request, length: Any, *values: Any) -> None:
        *values, token = values  # type: ignore[assignment]
        guard.acting_owner(self.studio, request, token)
        stages = guard.stages(_read_stages(length, values))
        self.studio.set_chain(stages)
        gr.Info(f"The chain has {text.count(len(stages), 'stage')} now.", title="Chain", duration=5)

    # ---- handlers: one prompt ------------------------------------------------------------------------------------

    @friendly
    def compare(self, prompt: Any) -> tuple[Any, Any]:
        """What every router says of a message; of the example, if there is none."""
        words = guard.a_text(prompt, "The message", LONGEST_PROMPT, may_be_empty=True) or PRESET
        decisions = self.studio.compare_routers(words)
        titles = {view.name: view.title for view in self.studio.routers()}
        return comparison(decisions, titles, self._colours()), words

    @friendly
    def place(self, prompt: Any) -> tuple[Any, Any]:
        """Where it lies among the lobes' rows."""
        words = guard.a_text(prompt, "The message", LONGEST_PROMPT, may_be_empty=True) or PRESET
        found = self.studio.prompt_map(words)
        if not found.lobes:
            return gr.update(visible=False), gr.update(visible=False)
        about = (
            "Dots are training prompts, large ones the prototypes that routers compare with. The two directions show "
            f"{text.percent(found.explained)} of what tells prototypes apart, so near here is likely near, not surely."
        )
        figure = prompt_map_figure(found, self._colours(), words)
        return shown(heading("Where it lies among the lobes", about)), gr.update(value=figure, visible=True)

    def _colours(self) -> dict[str, str]:
        return {lobe.name: lobe.colour for lobe in self.studio.lobes()}


# ---- pure --------------------------------------------------------------------------------------------------------


def newest(jobs: Sequence[JobView]) -> dict[str, JobView]:
    """The newest job of each router; `jobs` come newest first."""
    return {job.name: job for job in reversed(jobs)}


def on_display(views: Sequence[RouterView], jobs: Mapping[str, JobView], picked: str) -> RouterView | None:
    """The router that was picked; else the one being fitted, else one that is stale, else the first that a person fits."""
    chosen = [view for view in views if view.name == picked]
    working = [view for view in views if view.name in jobs and jobs[view.name].state in WORKING]
    stale = [view for view in views if view.stale and view.asks_for_fit]
    asks = [view for view in views if view.asks_for_fit]
    return next(iter([*chosen, *working, *stale, *asks, *views]), None)


def router_jobs(jobs: Sequence[JobView]) -> list[JobView]:
    return [job for job in jobs if job.kind == "router"]


def needing(views: Sequence[RouterView], jobs: Mapping[str, JobView]) -> list[RouterView]:
    """Routers that a person should fit: never fitted or stale, and not at it already."""
    return [view for view in views if view.asks_for_fit and state_of(view, jobs.get(view.name)) in ("needs", "stale")]


def _fit_all(views: Sequence[RouterView], jobs: Mapping[str, JobView]) -> Any:
    """The button for all of them at once, where that is more than one."""
    number = len(needing(views, jobs))
    return gr.update(visible=number > 1, value=f"Fit all {number} that need it")


def _buttons(view: RouterView, job: JobView | None) -> Outputs:
    """fit, stop, cancel: those that would work, for those who may."""
    state = state_of(view, job)
    busy = state in ("fitting", "waiting")
    mine = job is not None and job.mine
    label = "Fit again" if view.fitted else "Fit now"
    stopping = job is not None and job.state == "stopping"
    word = "Stopping…" if stopping else "Stop and keep the best"
    return (
        gr.update(visible=view.asks_for_fit and not busy, value=label),
        gr.update(visible=mine and state == "fitting", interactive=not stopping, value=word),
        gr.update(visible=mine and state == "waiting"),
    )


def _stages_of(settings: Mapping[str, Any]) -> list[tuple[str, float]]:
    """(router, threshold) of a chain's stages."""
    found = settings.get("stages", ())
    return [(str(name), float(limit)) for name, limit in found][:MOST_STAGES]


def _read_stages(length: Any, values: Sequence[Any]) -> list[list[Any]]:
    """The rows of the form that are in use, as [router, threshold]."""
    count = guard.a_whole(length, "The number of stages", 0, MOST_STAGES)
    routers, limits = values[:MOST_STAGES], values[MOST_STAGES : 2 * MOST_STAGES]
    return [[router, limit] for router, limit in zip(routers[:count], limits[:count], strict=True)]


def moved(stages: Sequence[Sequence[Any]], place: int, act: str) -> list[list[Any]]:
    """The stages after one was moved "up" or "down", taken "out", or "add"ed at the end."""
    found = [list(stage) for stage in stages]
    other = place + {"up": -1, "down": 1}.get(act, 0)
    if act == "add" and len(found) < MOST_STAGES:
        used = [stage[0] for stage in found]
        found.append([next((name for name in STAGES if name not in used), STAGES[0]), 0.0])
    elif act == "out" and len(found) > 1:
        del found[place : place + 1]
    elif place < len(found) and 0 <= other < len(found):
        found[place], found[other] = found[other], found[place]
    return found


def stage_updates(stages: Sequence[Sequence[Any]]) -> Outputs:
    """Rows, dropdowns, sliders and the number of stages."""
    used = [i < len(stages) for i in range(MOST_STAGES)]
    rows = [gr.update(visible=here) for here in used]
    routers = [gr.update(value=stages[i][0]) if here else gr.skip() for i, here in enumerate(used)]
    limits = [gr.update(value=stages[i][1]) if here else gr.skip() for i, here in enumerate(used)]
    return (*rows, *routers, *limits, len(stages))


def _mover(place: int, act: str) -> Any:
    @friendly(quiet=True)
    def move(length: Any, *values: Any) -> Outputs:
        return stage_updates(moved(_read_stages(length, values), place, act))

    return move


def _is_simple(default: Any) -> bool:
    return default is None or isinstance(default, (bool, int, float, str))
