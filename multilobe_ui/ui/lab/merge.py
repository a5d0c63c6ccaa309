"""The Merge lab: choose lobes and weights, see what each way to combine them would cost, keep the
one that is worth it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...errors import ConfigError, JobError
from ...merging.kinds import COMBINATIONS
from ...merging.settings import MergeSettings, SearchSettings
from ..kit import guard
from ..kit.forms import words_of
from ..kit.guard import friendly
from ..kit.html import Markup, escape, html
from ..kit.lobes import usable_lobes
from ..kit.static import script
from ..kit.table import bare
from .drawing import Drawing
from .experiment import Asked, ExperimentPanel, Outputs
from .merge_card import combination_cards, merge_result, weight_card
from .search_card import live_curve, search_curve, search_live, search_result

if TYPE_CHECKING:
    from ...app.desk import Desk
    from ...app.studio import Studio

MOST_SLIDERS = 8
WIDEST = 1.5
FIRST = "cat"
STEP = Markup('<h3 class="merge-step">{}</h3>')
QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
SHARED = "This server is shared, so it does not merge lobes. Run your own copy for that; the search for weights works here too."


class MergePanel(ExperimentPanel):
    """The experiment "merge", and below its result what makes a lobe of it."""

    def __init__(self, studio: Studio) -> None:
        super().__init__(studio, "merge", Drawing(merge_result), run="Try it")

    def build(self) -> None:
        super().build()
        with gr.Row(visible=False, elem_id="merge-keep") as self.keep_row:
            self.called = gr.Textbox(
                label="Name of the new lobe", placeholder="Law and medicine", max_lines=1,
                elem_id="merge-name"
            )
            self.routed = gr.Checkbox(
                True, label="Let routers choose it",
                info="It shares its parents' prompts, so they compete for them.", elem_id="merge-routed",
            )  # fmt: skip
            self.keep_it = gr.Button("Keep as a lobe", variant="primary", elem_id="merge-keep-it")

    @property
    def outputs(self) -> list[Any]:
        return [*super().outputs, self.keep_row]

    def wire(self, asked: Callable[..., Asked], inputs: Sequence[Any]) -> None:
        super().wire(asked, inputs)
        self.keep_it.click(
            self.keep, [self.runs, self.seen, self.token, self.called, self.routed],
            [*self.outputs, self.called], api_visibility="private", concurrency_limit=None,
            show_progress="hidden",
        )  # fmt: skip

    def view(self, desk: Desk, picked: Any, seen: Any) -> Outputs:
        values = super().view(desk, picked, seen)
        if len(values) == len(self.outputs):  # nothing has changed
            return values
        job = next((job for job in desk.lab.runs(self.name) if job.id == values[-1]["job"]), None)
        result = self.studio.lab.result(job.id) if job and job.mine else None
        return (*values, gr.update(visible=bool(result) and not (result or {}).get("kept")))

    @friendly
    def keep(self, request: gr.Request, picked: Any, seen: Any, token: Any, name: Any, routed: Any) -> Outputs:
        """Make a lobe of the merge on display."""
        desk = guard.acting_desk(self.studio, request, token)
        job = seen.get("job") if isinstance(seen, Mapping) else None
        if not job:
            raise JobError("No merge is on display. Try one first.")
        name = guard.a_text(name, "The name of the new lobe", 80)
        kept = desk.lab.keep_merge(job, name, guard.a_flag(routed, "Let routers choose it"))
        gr.Info(
            f"{escape(kept)} is a lobe now: chat with it, mix it, save it in a bundle.", title="Kept",
            duration=6
        )
        return (*self.view(desk, job, {}), "")


class SearchPanel(ExperimentPanel):
    """The experiment "search", and a button that takes its weights over."""

    def __init__(self, studio: Studio) -> None:
        drawing = Drawing(search_result, search_curve, live=search_live, live_figure=live_curve)
        super().__init__(studio, "search", drawing, run="Search weights")

    def build(self) -> None:
        super().build()
        self.use = gr.Button("Use these weights", size="sm", visible=False, elem_id="merge-use")

    @property
    def outputs(self) -> list[Any]:
        return [*super().outputs, self.use]

    def view(self, desk: Desk, picked: Any, seen: Any) -> Outputs:
        values = super().view(desk, picked, seen)
        if len(values) == len(self.outputs):
            return values
        job = values[-1]["job"]
        return (*values, gr.update(visible=bool(job and self.studio.lab.result(job))))


class MergeSection:
    """The section. Call `follow` with the events after which lobes may be others."""

    title = "Merge"
    about = (
        "Make one new lobe out of several. Every way that PEFT offers can be tried, and before a merge is "
        "kept you see what it costs: its rank and size, how far it is from the exact weighted sum, and how "
        "well it still does on each parent's data."
    )

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self.search, self.merge = SearchPanel(studio), MergePanel(studio)
        self.panels = (self.search, self.merge)

    def build(self) -> None:
        names = [name for name, _ in usable_lobes(self.studio)]
        self.names, self.combination = gr.State([]), gr.State(FIRST)
        if self.studio.shared:
            bare(html('<p class="merge-note">{}</p>', SHARED))
        with gr.Column(elem_id="merge-form"):
            self._build_weights(names)
            with gr.Accordion("Find weights by search", open=False, elem_id="merge-search"):
                self._build_search()
            bare(html(STEP, "How to combine them"))
            self.cards = bare(combination_cards({}, FIRST), js_on_load=script("table"), elem_id="merge-cards")
            with gr.Row(elem_id="merge-fields"):
                self.density = gr.Slider(
                    0.05, 1, 0.5, step=0.05, **words_of(MergeSettings, "density"),
                    visible=False, buttons=[], elem_id="merge-density",
                )  # fmt: skip
                whole: dict[str, Any] = {"precision": 0, "visible": False}
                # without a minimum: an empty one sends 0, which Gradio would refuse before anybody
                # here is asked
                self.rank = gr.Number(
                    0, **words_of(MergeSettings, "rank"), elem_id="merge-rank", **whole
                )
                self.seed = gr.Number(0, **words_of(MergeSettings, "seed"), elem_id="merge-seed", **whole)
        self.merge.build()
        self._wire()

    def _build_weights(self, names: Sequence[str]) -> None:
        bare(html(STEP, "Lobes and weights"))
        self.which = gr.Dropdown(
            list(names), value=[], multiselect=True, max_choices=MOST_SLIDERS,
            label=f"Lobes to merge, at most {MOST_SLIDERS}", interactive=True, elem_id="merge-which",
        )  # fmt: skip
        with gr.Row(elem_id="merge-sliders", visible=False) as self.slider_row:
            self.sliders = [
                gr.Slider(-WIDEST, WIDEST, 0, step=0.01, label=f"lobe {i + 1}", visible=False, buttons=[], elem_id=f"merge-w{i}",
                          min_width=150, interactive=True)
                for i in range(MOST_SLIDERS)
            ]  # fmt: skip
        self.sum = bare(weight_card({}, [], {}), elem_id="merge-sum")
        with gr.Row(elem_classes="train-actions"):
            self.even = gr.Button("Equal shares", size="sm", visible=False, elem_id="merge-even")

    def _build_search(self) -> None:
        bare(
            Markup(
                '<p class="merge-hint">A few examples are enough: weights are tried one after the other, '
                'without gradients, '
                "and those that answer best are found. Without a file, rows that the lobes have kept are "
                "used: those held out from training, if there are any.</p>"
            )
        )
        with gr.Row(elem_id="merge-search-form"):
            self.file = gr.File(
                label="Examples of the new task (optional)", type="filepath", height=140, elem_id="merge-file"
            )
            with gr.Column(min_width=220):
                self.budget = gr.Slider(
                    5, 200, 40, step=5, **words_of(SearchSettings, "budget"), buttons=[], elem_id="merge-budget"
                )
                self.penalty = gr.Slider(
                    0, 1, 0.05, step=0.01, **words_of(SearchSettings, "penalty"), buttons=[],
                    elem_id="merge-penalty",
                )  # fmt: skip
        self.search.build()

    def _wire(self) -> None:
        self.merge.wire(self.asked, [self.names, self.combination, self.density, self.rank, self.seed, *self.sliders])
        self.search.wire(self.search_asked, [self.names, self.file, self.budget, self.penalty])
        moved, shown = [self.names, *self.sliders], self.shown
        self.which.input(self.choose, [self.which, self.combination, *moved], shown, **QUICK)
        self.even.click(self.equal, [self.combination, self.names], shown, **QUICK)
        self.cards.pick(
            self.pick, [self.combination, self.names], [self.combination, self.cards, *self.fields], **QUICK
        )
        for slider in self.sliders:
            slider.change(self.summed, moved, self.sum, trigger_mode="always_last", **QUICK)
        self.search.use.click(self.use, [self.search.seen, self.combination], shown, **QUICK)

    @property
    def fields(self) -> list[Any]:
        return [self.density, self.rank, self.seed]

    @property
    def shown(self) -> list[Any]:
        """What `_filled` fills."""
        rows = [self.slider_row, self.even, self.sum]
        return [self.which, self.names, *self.sliders, *rows, self.combination, self.cards, *self.fields]

    def follow(self, when: Callable[..., Any]) -> None:
        """Draw anew whenever the event listener `when` fires: lobes have come or gone."""
        when(self.refresh, [self.combination, self.names, *self.sliders], self.shown, **QUICK)

    # ---- what is asked of the studio -------------------------------------------------------------

    def asked(self, names: Any, combination: Any, density: Any, rank: Any, seed: Any, *weights: Any) -> Asked:
        """Settings of a merge. Raises ConfigError: no lobe with a weight, or a way in which these
        cannot be combined."""
        used = {name: weight for name, weight in weights_of(names, weights).items() if weight}
        if not used:
            raise ConfigError(
                "No lobe has a weight. Choose at least one lobe above, and move its slider away from zero."
            )
        kind = guard.a_choice(combination, "The combination", list(COMBINATIONS))
        reason = self.studio.lab.merge_options(list(used)).get(kind)
        if reason:
            raise ConfigError(f"{kind} cannot combine these lobes: {reason}.")
        settings: dict[str, Any] = {"lobes": [[name, weight] for name, weight in used.items()], "combination": kind}
        if COMBINATIONS[kind].prunes:
            settings["density"] = guard.a_number(density, "The density", 0.01, 1)
        if COMBINATIONS[kind].chooses_rank and rank not in (None, "", 0):
            settings["rank"] = guard.a_whole(rank, "The rank", 1, 4096)
        if "dare" in kind:
            settings["seed"] = guard.a_whole(seed, "The seed", 0, 2**31 - 1)
        return settings, ()

    def search_asked(self, names: Any, file: Any, budget: Any, penalty: Any) -> Asked:
        listed = guard.some_names(names, "The lobes")
        if not listed:
            raise ConfigError("Choose the lobes above first; then the search can weigh them.")
        settings = {
            "lobes": listed,
            "budget": guard.a_whole(budget, "The trials", 2, 200),
            "penalty": guard.a_number(penalty, "The penalty", 0, 100),
        }
        path = guard.an_upload(file, "The file of examples") if file else None
        return settings, [(Path(path).name, path)] if path else ()

    # ---- handlers --------------------------------------------------------------------------------

    @friendly
    def choose(self, chosen: Any, combination: Any, names: Any, *weights: Any) -> tuple[Any, ...]:
        """The person said which lobes. Weights follow their lobes; until one has been moved, all
        get equal shares."""
        known = [name for name, _ in usable_lobes(self.studio)]
        kept = [name for name in guard.some_names(chosen or [], "The lobes") if name in known][:MOST_SLIDERS]
        before = weights_of(names, weights)
        moved = any(weight != _share(len(before)) for weight in before.values())
        share = _share(len(kept))
        return self._filled(kept, {name: before.get(name, share) if moved else share for name in kept}, combination)

    @friendly
    def equal(self, combination: Any, names: Any) -> tuple[Any, ...]:
        kept = guard.some_names(names, "The lobes")[:MOST_SLIDERS]
        return self._filled(kept, dict.fromkeys(kept, _share(len(kept))), combination)

    @friendly
    def use(self, seen: Any, combination: Any) -> tuple[Any, ...]:
        """The weights that the search on display has found become the sliders'."""
        job = seen.get("job") if isinstance(seen, Mapping) else None
        found = (self.studio.lab.result(job) or {}).get("weights") if job else None
        if not found:
            raise JobError("No search is on display. Search for weights first.")
        known = [name for name, _ in usable_lobes(self.studio)]
        kept = [name for name in found if name in known][:MOST_SLIDERS]
        if not kept:
            raise ConfigError("The lobes of this search are no longer there. Choose others, and search again.")
        return self._filled(kept, {name: float(found[name]) for name in kept}, combination)

    @friendly
    def pick(self, event: gr.EventData, combination: Any, names: Any) -> tuple[Any, ...]:
        """A card was clicked."""
        kind = guard.a_choice(guard.event_value(event, "id"), "The combination", list(COMBINATIONS))
        options = self._options(guard.some_names(names, "The lobes"))
        kind = kind if not options.get(kind) else _known(combination)
        return kind, combination_cards(options, kind), *_fields(kind)

    @friendly(quiet=True)
    def summed(self, names: Any, *weights: Any) -> str:
        return weight_card(weights_of(names, weights), guard.some_names(names, "The lobes"), dict(usable_lobes(self.studio)))

    @friendly(quiet=True)
    def refresh(self, combination: Any, names: Any, *weights: Any) -> tuple[Any, ...]:
        """Offer the lobes there are; weights stay with their lobes."""
        known = [name for name, _ in usable_lobes(self.studio)]
        before = weights_of(names, weights)
        kept = [name for name in before if name in known]
        return self._filled(kept, before, combination)

    def _filled(self, names: list[str], weights: Mapping[str, float], combination: Any) -> tuple[Any, ...]:
        """See `shown`."""
        values = [round(min(WIDEST, max(-WIDEST, weights.get(name, 0.0))), 2) for name in names]
        sliders = [
            gr.update(label=names[i], value=values[i], visible=True)
            if i < len(names)
            else gr.update(visible=False, value=0)
            for i in range(MOST_SLIDERS)
        ]
        lobes, options, kind = usable_lobes(self.studio), self._options(names), _known(combination)
        kind = kind if not options.get(kind) else FIRST
        card = weight_card(dict(zip(names, values, strict=True)), names, dict(lobes))
        which = gr.update(choices=[name for name, _ in lobes], value=names)
        some, several = gr.update(visible=bool(names)), gr.update(visible=len(names) > 1)
        return (which, names, *sliders, some, several, card, kind, combination_cards(options, kind), *_fields(kind))

    def _options(self, names: Sequence[str]) -> Mapping[str, str]:
        """For every combination "" or the reason against it; none while nothing is chosen, or the
        model is not there."""
        if not names or self.studio.status().base is None:
            return dict.fromkeys(COMBINATIONS, "")
        return self.studio.lab.merge_options(names)


def weights_of(names: Any, values: Sequence[Any]) -> dict[str, float]:
    """Lobe's name → slider's value. Raises ConfigError: what is no number from -1.5 to 1.5."""
    return guard.some_weights(names, values, "The lobes", -WIDEST, WIDEST)


def _share(lobes: int) -> float:
    return round(1 / max(1, lobes), 2)


def _known(combination: Any) -> str:
    return combination if isinstance(combination, str) and combination in COMBINATIONS else FIRST


def _fields(kind: str) -> tuple[Any, Any, Any]:
    """Density, rank and seed: those that this combination reads."""
    about = COMBINATIONS[kind]
    return gr.update(visible=about.prunes), gr.update(visible=about.chooses_rank), gr.update(visible="dare" in kind)
