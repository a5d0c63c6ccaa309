"""How a message is to be routed, as a row of controls under the message box: which router, how many
lobes, or weights by hand.

The Chat tab shows these folded away, so that a newcomer sees one dropdown. What they hold is one
flat list of components, `inputs`, which `routing_of` reads back; so a handler passes them on
without knowing them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...errors import ConfigError, MultiLobeError
from ...routing.decision import AUTO, MODES, Mixing, RoutingDecision
from . import guard
from .figures import share_bar
from .guard import friendly
from .html import Markup, around, escape, html, joined
from .lobes import usable_lobes
from .pulse import QUICK
from .table import bare
from .text import colour, score

if TYPE_CHECKING:
    from ...app.studio import Studio
    from ...app.views import RouterView

AUTOMATIC, MIX = "automatic", "mix"
DEFAULT = "hybrid"
MOST_SLIDERS = 12
MOST_K = 8
STRONG = 1.5
"""Sum of weights from which a mix is likely to talk nonsense."""
PRESET = "Write Python code to solve quadratic equations"
MODE_TITLES = (
    ("Automatic: one lobe, or those that stand out", "auto"),
    ("Top-1", "top_1"),
    ("Top-k", "top_k"),
    ("Soft: all that matter", "soft"),
)

Lobes = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Routing:
    """What the person set: for `studio.chat(..., router=, mixing=, weights=)`."""

    router: str = DEFAULT
    mixing: Mixing = field(default_factory=Mixing)
    weights: Mapping[str, float] = field(default_factory=dict)


class RoutingRow:
    """Lays out and wires the controls. `build` where they belong, then `follow_choice` with the
    dropdown of who answers."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def build(self) -> None:
        """The folded part: router and mixing."""
        views = routers_of(self.studio)
        self.fold = gr.Accordion(fold_label(views), open=False, elem_id="routing")
        with self.fold:
            with gr.Row(elem_id="routing-line"):
                self.router = gr.Dropdown(
                    router_choices(views), value=DEFAULT, label="Router", elem_id="routing-router",
                    interactive=True, scale=2, min_width=180,
                )  # fmt: skip
                self.mode = gr.Radio(
                    list(MODE_TITLES), value=AUTO.mode, label="How many lobes answer", elem_id="routing-mode",
                    scale=3, min_width=280,
                )  # fmt: skip
            self.k = gr.Slider(
                2, MOST_K, 2, step=1, label="k", info="lobes that answer together", visible=False,
                elem_id="routing-k",
            )  # fmt: skip
            self.about = bare(about_router(views, DEFAULT), elem_id="routing-about")

    def build_mix(self) -> None:
        """Sliders, a lobe each; hidden until the person wants to mix by hand."""
        lobes = usable_lobes(self.studio)
        self.names = gr.State([name for name, _ in lobes[:MOST_SLIDERS]])
        with gr.Column(visible=False, elem_id="mix") as self.mix:
            self.which = gr.Dropdown(
                [name for name, _ in lobes], value=[name for name, _ in lobes[:MOST_SLIDERS]],
                multiselect=True, label=f"Lobes to mix, at most {MOST_SLIDERS}",
                visible=len(lobes) > MOST_SLIDERS, elem_id="mix-which", max_choices=MOST_SLIDERS,
                interactive=True,
            )  # fmt: skip
            with gr.Row(elem_id="mix-sliders"):
                self.sliders = [self._slider(i, lobes) for i in range(MOST_SLIDERS)]
            self.sum = bare(mix_card({}, lobes), elem_id="mix-sum")
            with gr.Row(elem_classes="train-actions"):
                self.fill = gr.Button("Take the router's weights", size="sm", elem_id="mix-fill")
                self.zero = gr.Button("All to zero", size="sm", elem_id="mix-zero")
                self.example = gr.Button(
                    "Example: quadratic equations in Python", size="sm", elem_id="mix-example"
                )

    @property
    def inputs(self) -> list[Any]:
        return [self.router, self.mode, self.k, self.names, *self.sliders]

    def wire(self, choice: Any, box: Any) -> None:
        """`choice` says who answers, `box` holds the message that is being written."""
        settings: list[Any] = [self.router, self.mode, self.k]
        for control in settings:
            control.input(self.settings_changed, settings, [self.fold, self.k, self.about], **QUICK)
        choice.change(_mixes, choice, [self.mix, self.fold], **QUICK)
        moved = [self.names, *self.sliders]
        for slider in self.sliders:
            # `change` and not `input`: weights that the router filled in count as well
            slider.change(self.summed, moved, self.sum, trigger_mode="always_last", **QUICK)
        shown = [self.names, self.which, *self.sliders, self.sum]
        self.which.input(self.choose, [self.which, self.names, *self.sliders], shown, **QUICK)
        filling: dict[str, Any] = {
            "api_visibility": "private",
            "concurrency_limit": 4,
            "show_progress_on": self.sum,
        }
        self.fill.click(self.take_weights, [box, *settings, self.names], [*shown, box], **filling)
        self.example.click(self.try_example, [*settings, self.names], [*shown, box], **filling)
        self.zero.click(lambda: [0] * MOST_SLIDERS, None, self.sliders, **QUICK)

    # ---- handlers --------------------------------------------------------------------------------

    @friendly(quiet=True)
    def settings_changed(self, router: Any, mode: Any, k: Any) -> tuple[Any, Any, str]:
        """Say the settings on the fold, and what the router is. What else the person set stays."""
        views = routers_of(self.studio)
        fold = gr.update(label=fold_label(views, router, mode, k))
        return fold, gr.update(visible=mode == "top_k"), about_router(views, router)

    @friendly(quiet=True)
    def summed(self, names: Any, *weights: Any) -> str:
        return mix_card(weights_of(names, weights), usable_lobes(self.studio))

    @friendly(quiet=True)
    def choose(self, chosen: Any, names: Any, *weights: Any) -> tuple[Any, ...]:
        """The person said which of many lobes have a slider; weights follow their lobes."""
        usable = {name for name, _ in usable_lobes(self.studio)}
        shown = [name for name in guard.some_names(chosen or [], "The lobes to mix") if name in usable]
        return self._filled(shown[:MOST_SLIDERS], weights_of(names, weights))

    @friendly
    def take_weights(self, words: Any, router: Any, mode: Any, k: Any, names: Any) -> tuple[Any, ...]:
        """What the chosen router would do with the message being written becomes the sliders' values."""
        if not isinstance(words, str) or not words.strip():
            raise ConfigError(
                "Write a message first; then the router can say how it would mix the lobes for it."
            )
        decision = self.studio.route(words, router_of(router), mixing_of(mode, k))
        return (*self._taken(decision, names), gr.skip())

    @friendly
    def try_example(self, router: Any, mode: Any, k: Any, names: Any) -> tuple[Any, ...]:
        """A prompt that wants several lobes, with the weights that the router gives it."""
        decision = self.studio.route(PRESET, router_of(router), mixing_of(mode, k))
        if decision.chosen and len(decision.weights) < 2:  # one lobe is no mix
            decision = self.studio.route(PRESET, router_of(router), Mixing("soft"))
        return (*self._taken(decision, names), PRESET)

    def _taken(self, decision: RoutingDecision, names: Any) -> tuple[Any, ...]:
        weights = {name: max(0.0, float(weight)) for name, weight in decision.weights.items()}
        shown = guard.some_names(names, "The lobes to mix")
        missing = [name for name in weights if name not in shown]
        if not weights:
            reason = decision.reason or "The router gives this message to the base model."
            gr.Info(escape(reason), title="No lobe", duration=6)
        return self._filled([*missing, *shown][:MOST_SLIDERS], weights)

    def _filled(self, names: list[str], weights: Mapping[str, float]) -> tuple[Any, ...]:
        """names, dropdown, sliders, sum."""
        lobes = usable_lobes(self.studio)
        values = on_grid([weights.get(name, 0.0) for name in names])
        sliders = [
            gr.update(label=name, value=value, visible=True)
            for name, value in zip(names, values, strict=True)
        ]
        sliders += [gr.update(visible=False, value=0)] * (MOST_SLIDERS - len(names))
        offered = [name for name, _ in lobes]
        which = gr.update(choices=offered, value=names, visible=len(offered) > MOST_SLIDERS)
        card = mix_card(dict(zip(names, values, strict=True)), lobes, names)
        return (names, which, *sliders, card)

    # ---- following -------------------------------------------------------------------------------

    def follow(self, when: Callable[..., Any]) -> None:
        """Draw anew whenever the event listener `when` fires: lobes or fits have changed."""
        when(
            self.refresh, [self.router, self.mode, self.k, self.names, *self.sliders],
            [self.router, self.fold, self.about, self.names, self.which, *self.sliders, self.sum],
            **QUICK,
        )  # fmt: skip

    @friendly(quiet=True)
    def refresh(self, router: Any, mode: Any, k: Any, names: Any, *weights: Any) -> tuple[Any, ...]:
        """Offer the routers and lobes there are; weights stay with their lobes."""
        views = routers_of(self.studio)
        if router not in [view.name for view in views]:
            router = DEFAULT
        usable = [name for name, _ in usable_lobes(self.studio)]
        shown = [name for name in names if name in usable]
        if len(usable) <= MOST_SLIDERS:
            shown = usable
        dropdown = gr.update(choices=router_choices(views), value=router)
        fold = gr.update(label=fold_label(views, router, mode, k))
        return (dropdown, fold, about_router(views, router), *self._filled(shown, weights_of(names, weights)))

    def _slider(self, place: int, lobes: Lobes) -> Any:
        names = [name for name, _ in lobes] + [f"lobe {place + 1}"] * MOST_SLIDERS
        return gr.Slider(
            0, 1, 0, step=0.05, label=names[place], visible=place < len(lobes), elem_id=f"mix-{place}",
            min_width=100, buttons=[], interactive=True,
        )  # fmt: skip


# ---- plain values --------------------------------------------------------------------------------


def routers_of(studio: Studio) -> Sequence[RouterView]:
    """The routers; none while the studio cannot say."""
    try:
        return studio.desk().routers()
    except MultiLobeError:
        return ()


def routing_of(values: Sequence[Any], choice: str) -> Routing:
    """What `RoutingRow.inputs` hold. Weights count for nothing unless the person mixes by hand.

    Raises:
        ConfigError, RoutingError: a value that is none of those offered; no weight above zero in a mix.
    """
    if not values:
        return Routing()
    router, mode, k, names, *sliders = values
    routing = Routing(router_of(router), mixing_of(mode, k))
    if choice != MIX:
        return routing
    weights = {name: w for name, w in weights_of(names, sliders).items() if w}
    if not weights:
        raise ConfigError("All weights are zero. Raise at least one slider, or let the base model answer.")
    return replace(routing, weights=weights)


def router_of(value: Any) -> str:
    return guard.a_text(value, "The router", 60)


def mixing_of(mode: Any, k: Any, what: str = "The mixing mode") -> Mixing:
    return Mixing(guard.a_choice(mode, what, MODES), guard.a_whole(k, "k", 1, 1000))


def weights_of(names: Any, values: Sequence[Any]) -> dict[str, float]:
    """Lobe's name → slider's value. Raises ConfigError: what is no number from 0 to 1."""
    return guard.some_weights(names, values, "The lobes to mix", 0, 1)


def on_grid(weights: Sequence[float], step: float = 0.05) -> list[float]:
    """Weights as the sliders can show them; what rounding took or gave is the heaviest's, so that
    the sum stays."""
    values = [round(step * round(min(1.0, max(0.0, weight)) / step), 2) for weight in weights]
    if values:
        best = values.index(max(values))
        rest = round(step * round((math.fsum(weights) - math.fsum(values)) / step), 2)
        values[best] = min(1.0, max(0.0, round(values[best] + rest, 2)))
    return values


def router_choices(views: Sequence[RouterView]) -> list[tuple[str, str]]:
    """(what it says, its value) of the dropdown: what cannot choose yet says so."""
    return [(view.title + _remark(view), view.name) for view in views] or [("Automatic", DEFAULT)]


def fold_label(
    views: Sequence[RouterView], router: Any = DEFAULT, mode: Any = AUTO.mode, k: Any = AUTO.k
) -> str:
    """The present settings in a few words."""
    how = {"auto": "automatic", "top_1": "one lobe", "top_k": f"best {k}", "soft": "soft mix"}.get(
        str(mode), ""
    )
    view = _view_of(views, router)
    if view is None:
        return f"Routing: {router}, {how}"
    if view.per_token and mode == AUTO.mode:
        return f"Routing: {view.title}, weighs each token"
    if view.per_token:
        return f"Routing: {view.title}, {how} for each token"
    return f"Routing: {view.title}, {how}"


def about_router(views: Sequence[RouterView], router: Any) -> Markup:
    """What the chosen router does, and what stands in its way."""
    view = _view_of(views, router)
    if view is None:
        return Markup()
    sentence = view.sentence
    if view.per_token:
        sentence += " Lobes are chosen for each token and layer, not once for the message."
    why = around('<p class="train-ask">{} See the Routers tab.</p>', view.why)
    return html('<p class="ml-faint">{}</p>{}', sentence, why)


def _view_of(views: Sequence[RouterView], router: Any) -> RouterView | None:
    return next((view for view in views if view.name == router), None)


def mix_card(weights: Mapping[str, float], lobes: Lobes, names: Sequence[str] = ()) -> Markup:
    """The sum, the shares, and each slider in its lobe's colour. `names` are the lobes that have one."""
    colours = dict(lobes)
    order = names or list(weights or colours)
    tones = joined(
        html("#mix-{}{{--slider-color:{}}}", i, colour(colours.get(name)))
        for i, name in enumerate(order[:MOST_SLIDERS])
    )
    used = {name: weight for name, weight in weights.items() if weight}
    total, words, alert = math.fsum(used.values()), "All zero: raise a slider.", Markup()
    if used:
        words = f"Sum {score(total)}"
    if total > STRONG:
        alert = Markup('<span class="is-strong">far above 1, an answer may fall apart</span>')
    shares = share_bar(used, colours, "The mix")
    return html('<style>{}</style><p class="mix-total"><b>{}</b> {}</p>{}', tones, words, alert, shares)


def _remark(view: RouterView) -> str:
    """' (experimental, stale)'; "" for a router that can choose."""
    stale = view.fitted and view.stale
    remarks = {"experimental": view.experimental, "needs a fit": not view.fitted, "stale": stale}
    words = ", ".join(remark for remark, applies in remarks.items() if applies)
    if not words:
        return ""
    return f" ({words})"


def _mixes(choice: Any) -> tuple[Any, Any]:
    """The sliders where the person mixes by hand; the router's settings wherever a router may be asked."""
    return gr.update(visible=choice == MIX), gr.update(visible=choice in (AUTOMATIC, MIX))
