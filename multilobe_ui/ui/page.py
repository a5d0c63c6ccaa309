"""The page: header, live status, the tabs, and how to launch it. Only composition; each part knows
its own business."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import gradio as gr

from . import api
from .chat.brain_map import brain_mark
from .chat.tab import ChatTab
from .kit.cancelling import mend_cancelling
from .kit.guard import friendly
from .kit.html import Markup, html, joined
from .kit.pulse import QUICK, Pulse
from .kit.static import stylesheets
from .kit.text import big, count, percent, short, time_left
from .kit.theme import theme
from .kit.typing import remember_typing
from .lab.tab import LabTab
from .manage.tab import ManageTab
from .routers.tab import RoutersTab
from .train.tab import TrainTab

if TYPE_CHECKING:
    from ..app.studio import Studio
    from ..app.views import JobView, StudioStatus

TITLE = "MultiLobe"
MOST_WAITING = 64
QUEUE_SECONDS = 0.02
"""Until an event that has to queue is seen, at most."""
_BUSY = ("running", "stopping")
_VERBS = {"lobe": "Training", "router": "Fitting", "lab": "Measuring"}


def build_page(studio: Studio) -> gr.Blocks:
    page: gr.Blocks
    mend_cancelling()
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        page.queue(max_size=MOST_WAITING)  # first: it makes an app that describes every component there is
        # Gradio looks a thousand times a second whether somebody waits: a tenth of a core while
        # nobody is there
        page._queue.sleep_when_free, page._queue.progress_update_sleep_when_free = (
            QUEUE_SECONDS,
            5 * QUEUE_SECONDS,
        )
        pulse, header = Pulse(), Header(studio)
        header.build()
        chat, lab = ChatTab(studio), LabTab(studio)
        train, routers, manage = TrainTab(studio), RoutersTab(studio), ManageTab(studio)
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Chat", id="chat"):
                chat.build()
            with gr.Tab("Train", id="train"):
                train.build()
            with gr.Tab("Routers", id="routers"):
                routers.build()
            with gr.Tab("Lab", id="lab"):
                lab.build()
            with gr.Tab("Manage", id="manage"):
                manage.build()
        api.add_endpoints(studio)
        for part in (header, train, routers, lab, manage):
            part.watch(pulse)
        lobes = pulse.when(chat.offered)
        for tab in (chat, lab):
            tab.follow(lobes)
            tab.follow(page.load)
        remember_typing()
        pulse.start()
        _spare_loading_states(page, pulse.timer)
    return page


def _spare_loading_states(page: gr.Blocks, carrier: gr.Timer) -> None:
    """Let `carrier`, the page's first component, have the loading state of all events that show none.

    Every event writes into all outputs that any event has had so far, twice, whether they are
    loading, and Gradio 6.31 looks each of them up by walking the tree of all components: on this
    page an answer took twice as long to arrive.
    """
    for function in page.fns.values():
        if function.show_progress == "hidden" and not function.show_progress_on:
            function.show_progress_on = [carrier]


SESSIONS = 200
"""Sessions whose state Gradio keeps, the latest ones (its default is 10,000): each takes most of a
MiB, and every call of the API without a session of its own makes one. A page that has lost its
state starts afresh."""


def launch_options(studio: Studio) -> dict[str, Any]:
    """For `page.launch`: since Gradio 6 the look is given there. Host and port come from
    GRADIO_SERVER_NAME and _PORT."""
    return {
        "theme": theme(),
        "css": stylesheets(),
        "head": _head(studio.shared),
        "ssr_mode": False,
        "run_history": False,
        "footer_links": ["api", "settings"],
        "state_session_capacity": SESSIONS,
        "max_file_size": "200mb" if studio.shared else "4gb",
        "show_error": True,
        "pwa": False,
    }


class Header:
    """Title, and the strip that says how the server is."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def build(self) -> None:
        brand = html(
            '<div class="ml-brand">{}<div><h1>MultiLobe</h1><p>One frozen language model, many small '
            "experts. Ask in Chat and see which lobe answers, or teach it a new one in Train.</p></div>"
            "</div>",
            brain_mark(_MARK),
        )
        with gr.Row(elem_classes="ml-head"):
            gr.HTML(brand)
            self.strip = gr.HTML(self.draw(), elem_id="status")

    def watch(self, pulse: Pulse) -> None:
        pulse.when(self.draw)(self.draw, None, self.strip, **QUICK)

    @friendly(quiet=True)
    def draw(self) -> Markup:
        jobs = self.studio.desk().jobs()
        busy = next((job for job in jobs if job.state in _BUSY), None)
        return status_strip(self.studio.status(), busy, sum(job.state == "queued" for job in jobs))


_MARK = ("#e5484d", "#c9880b", "#2f8fe0", "#8e5bd9", "#1f9d6b", "#d6498f")


def status_strip(status: StudioStatus, job: JobView | None, waiting: int = 0) -> Markup:
    """One line: is it ready, on what base, how many lobes, what is being trained. Pure."""
    words, lamp = status.message, f"is-{status.state}"
    parts = []
    if status.base is not None or status.state == "ready":
        lamp = "is-loading"
        parts = [
            html("<span>{}</span>", _base(status.base or {})),
            html("<span>{}</span>", count(status.lobes, "lobe")),
        ]
    if status.state == "ready":
        words, lamp = "Ready", ""
    parts.insert(0, html('<span><i class="ml-lamp {}"></i><b>{}</b></span>', lamp, words))
    if job is not None:
        parts.append(_training(job, waiting))
    return html('<div class="ml-status" role="status">{}</div>', joined(parts))


def _base(base: Mapping[str, Any]) -> str:
    """'gpt2, 124 M parameters, cpu'."""
    parts = [short(str(base.get("name", "")), 32)]
    if base.get("name") == "builtin":
        parts = ["built-in base"]
    if base.get("parameters"):
        parts.append(f"{big(base['parameters'])} parameters")
    if base.get("device"):
        parts.append(str(base["device"]))
    return ", ".join(parts)


def _training(job: JobView, waiting: int) -> Markup:
    """What is done, to what, how far it is, and how many jobs wait for it."""
    share = job.step / max(job.steps, 1)
    doing, facts = _VERBS.get(job.kind, "Working on"), [percent(share)]
    if job.state == "stopping":
        doing = "Stopping"
    elif job.kind == "lobe" and job.phase:
        doing = job.phase
    if job.state == "running" and job.seconds_left is not None:
        facts.append(time_left(job.seconds_left))
    if waiting:
        facts.append(f"{waiting} waiting")
    return html(
        '<span><i class="ml-lamp is-training"></i>{} <b>{}</b><span class="ml-progress"><i '
        'style="width:{:.0f}%"></i></span>{}</span>',
        doing, short(job.name, 24), 100 * share, ", ".join(facts),
    )  # fmt: skip


def _head(shared: bool) -> Markup:
    """The tab's icon, and a rule that pictures come from here: else an answer with a picture in it
    could make the browser tell a stranger what was asked. (On Spaces the frame around the page is
    from Hugging Face.)"""
    pictures = "'self' data: blob:"
    if shared:
        pictures += " https://huggingface.co https://*.huggingface.co https://*.hf.co"
    return html(
        '<meta http-equiv="Content-Security-Policy" content="img-src {}; media-src {}; object-src {}">'
        '<link rel="icon" type="image/svg+xml" href="data:image/svg+xml,{}">',
        Markup(pictures), Markup("'self' data: blob:"), Markup("'none'"), quote(_icon()),
    )  # fmt: skip


def _icon() -> Markup:
    """The mark as a stand-alone picture: there are no page variables in a tab's icon."""
    return brain_mark(_MARK, ".ml-brain-ground,.ml-brain-base path{fill:#9aa3a8}.ml-brain-edge{fill:none}")
