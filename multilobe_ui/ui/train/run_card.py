"""A training run as HTML: one sentence, a card, and a row of the list of runs. Pure; names are escaped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..kit import text
from ..kit.table import Column, Row, fact
from ..kit.text import change

if TYPE_CHECKING:
    from ...app.studio import JobView

ACTIVE = ("running", "stopping")
RESUMABLE = ("stopped", "interrupted", "failed")
ENDED = ("finished", *RESUMABLE)
COLUMNS = (
    Column("Run"), Column("State"), Column("Rows", "num wide"), Column("Steps", "num wide"),
    Column("Validation loss", "num"), Column("Took", "num wide"), Column("Settings", "extra"), Column("When", "extra"),
)  # fmt: skip
NOTHING_YET = "No training has been started yet."
EMPTY_CARD = (
    '<div class="ml-box train-empty"><svg viewBox="0 0 200 70" aria-hidden="true">'
    '<path class="axis" d="M8 6V62H192"/><path class="base" d="M8 16H192"/>'
    '<path class="fall" d="M10 12C40 16 52 40 84 46S150 54 190 55"/></svg>'
    "<p><b>Your loss curve will grow here.</b></p>"
    '<p class="ml-faint">Drop a file or choose a sample on this page, then press Start training.</p></div>'
)
STATE_WORDS = {
    "queued": "Waiting", "running": "Training", "stopping": "Stopping", "finished": "Finished", "stopped": "Stopped",
    "failed": "Failed", "interrupted": "Interrupted",
}  # fmt: skip


def has_lobe(job: JobView) -> bool:
    """A run that ended well has a lobe; one cancelled before its first step has none."""
    return job.state == "finished" or (job.state == "stopped" and job.step > 0)


def percent_done(job: JobView) -> int:
    return round(100 * job.step / job.steps) if job.steps else 0


def epochs_of(job: JobView) -> int | None:
    """Passes over the rows: as asked for, or as chosen once the first step tells; None before."""
    asked = (job.config or {}).get("epochs")
    if asked is None and job.step and job.epoch:
        return round(job.epoch * job.steps / job.step)
    return asked


def keeps_best(job: JobView) -> bool:
    """Whether the adapter of the lowest validation loss is kept, and not that of the last step."""
    return (job.config or {}).get("keep") == "best" and job.best_validation_loss is not None


def status_html(line: str) -> str:
    return f'<p class="train-status">{text.escape(line)}</p>'


def state_word(job: JobView) -> str:
    cancelled = job.state == "stopped" and not job.step
    return "Cancelled" if cancelled else STATE_WORDS.get(job.state, job.state)


def pill(job: JobView) -> str:
    return f'<span class="train-pill {text.escape(job.state)}">{text.escape(state_word(job))}</span>'


def status_line(job: JobView) -> str:
    """The run in one sentence: the accessible value of the card and the plot."""
    if job.state == "queued":
        return f"{job.name}: waiting, place {job.place} in the queue."
    known = job.best_validation_loss is not None
    best = f" Best validation loss {text.loss(job.best_validation_loss)}" if known else ""
    if known and job.base_validation_loss is not None:
        best += f", base model {text.loss(job.base_validation_loss)}"
    best += "." * known
    if not known and job.step and job.loss is not None:
        best = f" Train loss {text.loss(job.loss)}; no rows are held out."
    if job.state == "running":
        doing = job.phase or "Training"
        if not job.steps:
            return f"{job.name}: {doing}."
        left = f", {text.time_left(job.seconds_left)}" if job.step else ""
        speed = f", {text.rate(job.tokens_per_second)}" if job.tokens_per_second else ""
        return f"{job.name}: {doing}, step {job.step:,} of {job.steps:,}, epoch {job.epoch:.1f}{speed}{left}.{best}"
    word = state_word(job).lower()
    if job.state == "stopping":
        kept = "the best so far" if keeps_best(job) else "what it has learned"
        return f"{job.name}: stopping; {kept} is kept.{best}"
    after = f" after {text.duration(job.seconds)}" if job.seconds else ""
    return f"{job.name}: {word}{after}.{best}" + (f" {job.error}" if job.error else "")


def job_card(job: JobView) -> str:
    """The run at a glance: state, progress, numbers, and what to do next."""
    who = "" if job.mine else '<span class="ml-faint">started by another visitor</span>'
    head = f'<div class="train-head"><b class="train-title">{text.escape(job.name)}</b>{pill(job)}{who}</div>'
    percent = 100 if job.state == "finished" else percent_done(job)
    label = f"Progress of {text.escape(job.name)}"
    bar = (
        f'<div class="train-bar {text.escape(job.state)}" role="progressbar" aria-label="{label}" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{percent}"><div style="width:{percent}%"></div></div>'
    )
    return f'<div class="ml-box train-job">{head}{bar}{_numbers(job)}{_next_step(job)}</div>'


def _numbers(job: JobView) -> str:
    if job.state == "queued":
        return ""
    doing = job.phase if job.state == "running" else ""
    facts = [("Step", f"{job.step:,} / {job.steps:,}" if job.steps else "–", doing)]
    epochs = epochs_of(job)
    facts += [("Epoch", f"{job.epoch:.1f}", f"of {epochs}" if epochs else "")]
    facts += [("Speed", f"{job.tokens_per_second:,.0f}" if job.tokens_per_second else "–", "tokens/s")]
    if job.state in ACTIVE:
        facts += [("Time left", text.time_left(job.seconds_left).removesuffix(" left") if job.step else "–", "")]
    else:
        facts += [("Took", text.duration(job.seconds) if job.seconds else "–", "")]
    facts += [_loss(job)]
    return f'<div class="train-facts">{"".join(fact(*one) for one in facts)}</div>'


def _loss(job: JobView) -> tuple[str, str, str]:
    """Title, value and remark: the validation loss, or the train loss where no rows are held out."""
    if job.step and job.best_validation_loss is None and job.base_validation_loss is None:
        return "Train loss", text.loss(job.loss), "no rows held out"
    return "Best validation loss", text.loss(job.best_validation_loss), _against_base(job)


def _against_base(job: JobView) -> str:
    if job.base_validation_loss is None:
        return ""
    gain = change(job.base_validation_loss, job.best_validation_loss)
    return f"base {text.loss(job.base_validation_loss)}" + (f", {gain}" if gain else "")


def _next_step(job: JobView) -> str:
    if job.state == "finished":
        kept = "step with the lowest validation loss" if keeps_best(job) else "last step"
        ready = f"The lobe is ready, as it was at its {kept}. Ask it something in Chat, or let the router find it."
        return f'<p class="train-good">{ready}</p>'
    if job.state == "stopped" and job.step:
        kept = "The best so far" if keeps_best(job) else "What it has learned so far"
        return f'<p class="train-good">{kept} is kept as a lobe. Resume to go on from here.</p>'
    if job.state == "queued":
        return f'<p class="ml-faint">Place {job.place} in the queue. It starts by itself when its turn comes.</p>'
    if job.state == "interrupted":
        return '<p class="train-ask">The app was closed during this run. Resume goes on from the last checkpoint.</p>'
    if job.state == "failed":
        return f'<p class="train-warn">{text.escape(job.error or "The run has failed.")}</p>'
    return ""


def run_row(job: JobView, colour: str) -> Row:
    done = f"{percent_done(job)} %" if job.state in ACTIVE else f"{job.step:,} / {job.steps:,}" if job.steps else "–"
    loss = f"{text.loss(job.best_validation_loss)}<small>{text.escape(_gain_of(job))}</small>"
    config = job.config or {}
    rate = config.get("learning_rate")
    learning = f"rate {rate:g}" if isinstance(rate, float) else "rate auto"
    epochs = epochs_of(job)
    passes = "epochs auto" if epochs is None else text.count(epochs, "epoch")
    settings = f"r {config.get('lora_r', '?')}, {passes}, {learning}"
    rows = f"{job.rows:,}" if job.rows is not None else "–"
    took = text.duration(job.seconds) if job.seconds else "–"
    cells = (pill(job), rows, done, loss, took, text.escape(settings), text.escape(text.when(job.created)))
    return Row(job.id, job.name, colour, cells)


def _gain_of(job: JobView) -> str:
    if job.base_validation_loss is None and job.best_validation_loss is None and job.step:
        return "no rows held out"
    if job.base_validation_loss is None or job.best_validation_loss is None:
        return ""
    return change(job.base_validation_loss, job.best_validation_loss)
