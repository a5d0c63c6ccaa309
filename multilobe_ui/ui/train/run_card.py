"""A training run as HTML: one sentence, a card, and a row of the list of runs. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..kit import text
from ..kit.html import Markup, html, joined
from ..kit.table import Column, Row, fact

if TYPE_CHECKING:
    from ...app.views import JobView

ACTIVE = ("running", "stopping")
RESUMABLE = ("stopped", "interrupted", "failed")
ENDED = ("finished", *RESUMABLE)
COLUMNS = (
    Column("Run"), Column("State"), Column("Rows", "num wide"), Column("Steps", "num wide"),
    Column("Validation loss", "num"), Column("Took", "num wide"), Column("Settings", "extra"),
    Column("When", "extra"),
)  # fmt: skip
NOTHING_YET = "No training has been started yet."
EMPTY_CARD = Markup(
    '<div class="ml-box train-empty"><svg viewBox="0 0 200 70" aria-hidden="true"><path class="axis" d="M8 '
    '6V62H192"/><path class="base" d="M8 16H192"/><path class="fall" d="M10 12C40 16 52 40 84 46S150 54 '
    '190 55"/></svg><p><b>Your loss curve will grow here.</b></p><p class="ml-faint">Drop a file or choose '
    "a sample on this page, then press Start training.</p></div>"
)
STATE_WORDS = {
    "queued": "Waiting", "running": "Training", "stopping": "Stopping", "finished": "Finished",
    "stopped": "Stopped", "failed": "Failed", "interrupted": "Interrupted",
}  # fmt: skip


def has_lobe(job: JobView) -> bool:
    """A run that ended well has a lobe; one cancelled before its first step has none."""
    return job.state == "finished" or (job.state == "stopped" and job.step > 0)


def percent_done(job: JobView) -> int:
    return round(100 * job.step / max(job.steps, 1))


def epochs_of(job: JobView) -> int | None:
    """Passes over the rows: as asked for, or as chosen once the first step tells; None before."""
    epochs = (job.config or {}).get("epochs")
    if epochs is None and job.step and job.epoch:
        return round(job.epoch * job.steps / job.step)
    return epochs


def keeps_best(job: JobView) -> bool:
    """Whether the adapter of the lowest validation loss is kept, and not that of the last step."""
    return (job.config or {}).get("keep") == "best" and job.best_validation_loss is not None


def status_html(line: str) -> Markup:
    return html('<p class="train-status">{}</p>', line)


def state_word(job: JobView) -> str:
    if job.state == "stopped" and not job.step:
        return "Cancelled"
    return STATE_WORDS.get(job.state, job.state)


def pill(job: JobView) -> Markup:
    return html('<span class="train-pill {}">{}</span>', job.state, state_word(job))


def status_line(job: JobView) -> str:
    """The run in one sentence: the accessible value of the card and the plot."""
    if job.state == "queued":
        return f"{job.name}: waiting, place {job.place} in the queue."
    doing = job.phase or "Training"
    if job.state == "running" and not job.steps:
        return f"{job.name}: {doing}."
    loss = _loss_so_far(job)
    if job.state == "running":
        parts = [f"{doing}, step {job.step:,} of {job.steps:,}, epoch {job.epoch:.1f}"]
        if job.tokens_per_second:
            parts.append(text.rate(job.tokens_per_second))
        if job.step:
            parts.append(text.time_left(job.seconds_left))
        return f"{job.name}: {', '.join(parts)}.{loss}"
    if job.state == "stopping":
        return f"{job.name}: stopping; {_kept(job, 'the best so far', 'what it has learned')} is kept.{loss}"
    after = ""
    if job.seconds:
        after = f" after {text.duration(job.seconds)}"
    return f"{job.name}: {state_word(job).lower()}{after}.{loss}{text.phrase(' {}', job.error)}"


def _loss_so_far(job: JobView) -> str:
    """The best validation loss and that of the base; the train loss where no rows are held out; ""
    before the first."""
    if job.best_validation_loss is not None:
        base = text.phrase(", base model {:.3f}", job.base_validation_loss)
        return f" Best validation loss {text.loss(job.best_validation_loss)}{base}."
    if job.step and job.loss is not None:
        return f" Train loss {text.loss(job.loss)}; no rows are held out."
    return ""


def _kept(job: JobView, best: str, last: str) -> str:
    """The words for which adapter becomes the lobe."""
    if keeps_best(job):
        return best
    return last


def job_card(job: JobView) -> Markup:
    """The run at a glance: state, progress, numbers, and what to do next."""
    percent, whose = percent_done(job), Markup('<span class="ml-faint">started by another visitor</span>')
    if job.state == "finished":
        percent = 100
    if job.mine:
        whose = Markup()
    return html(
        '<div class="ml-box train-job"><div class="train-head"><b '
        'class="train-title">{name}</b>{pill}{whose}</div><div class="train-bar {state}" '
        'role="progressbar" aria-label="Progress of {name}" aria-valuemin="0" aria-valuemax="100" '
        'aria-valuenow="{percent}"><div style="width:{percent}%"></div></div>{numbers}{next}</div>',
        name=job.name, pill=pill(job), whose=whose, state=job.state, percent=percent, numbers=_numbers(job),
        next=_next_step(job),
    )  # fmt: skip


def _numbers(job: JobView) -> Markup:
    if job.state == "queued":
        return Markup()
    doing, epochs = "", text.phrase("of {}", epochs_of(job))
    if job.state == "running":
        doing = job.phase
    facts = [
        fact("Step", _steps(job), doing), fact("Epoch", f"{job.epoch:.1f}", epochs),
        fact("Speed", text.known("{:,.0f}", job.tokens_per_second or None), "tokens/s"), _time(job), fact(*_loss(job)),
    ]  # fmt: skip
    return html('<div class="train-facts">{}</div>', joined(facts))


def _steps(job: JobView) -> str:
    if not job.steps:
        return text.NOTHING
    return f"{job.step:,} / {job.steps:,}"


def _time(job: JobView) -> Markup:
    if job.state not in ACTIVE:
        return fact("Took", text.duration(job.seconds or None))
    if not job.step:
        return fact("Time left", text.NOTHING)
    return fact("Time left", text.time_left(job.seconds_left).removesuffix(" left"))


def _loss(job: JobView) -> tuple[str, str, str]:
    """Title, value and remark: the validation loss, or the train loss where no rows are held out."""
    if job.step and job.best_validation_loss is None and job.base_validation_loss is None:
        return "Train loss", text.loss(job.loss), "no rows held out"
    return "Best validation loss", text.loss(job.best_validation_loss), _against_base(job)


def _against_base(job: JobView) -> str:
    if job.base_validation_loss is None:
        return ""
    gain = text.change(job.base_validation_loss, job.best_validation_loss)
    return ", ".join(filter(None, [f"base {text.loss(job.base_validation_loss)}", gain]))


def _next_step(job: JobView) -> Markup:
    if job.state == "finished":
        return html(
            '<p class="train-good">The lobe is ready, as it was at its {}. Ask it something in Chat, or '
            "let the router find it.</p>",
            _kept(job, "step with the lowest validation loss", "last step"),
        )
    if job.state == "stopped" and job.step:
        kept = _kept(job, "The best so far", "What it has learned so far")
        return html('<p class="train-good">{} is kept as a lobe. Resume to go on from here.</p>', kept)
    if job.state == "queued":
        return html(
            '<p class="ml-faint">Place {} in the queue. It starts by itself when its turn comes.</p>',
            job.place,
        )
    if job.state == "interrupted":
        return Markup(
            '<p class="train-ask">The app was closed during this run. Resume goes on from the last '
            "checkpoint.</p>"
        )
    if job.state == "failed":
        return html('<p class="train-warn">{}</p>', job.error or "The run has failed.")
    return Markup()


def run_row(job: JobView, colour: str) -> Row:
    done, loss = _steps(job), html("{}<small>{}</small>", text.loss(job.best_validation_loss), _gain_of(job))
    if job.state in ACTIVE:
        done = f"{percent_done(job)} %"
    rows, took, created = (
        text.known("{:,}", job.rows),
        text.duration(job.seconds or None),
        text.when(job.created),
    )
    return Row(job.id, job.name, colour, (pill(job), rows, done, loss, took, _settings(job), created))


def _settings(job: JobView) -> str:
    config, epochs, passes = job.config or {}, epochs_of(job), "epochs auto"
    if epochs is not None:
        passes = text.count(epochs, "epoch")
    rate = text.phrase("{:g}", config.get("learning_rate")) or "auto"
    return f"r {config.get('lora_r', '?')}, {passes}, rate {rate}"


def _gain_of(job: JobView) -> str:
    if job.base_validation_loss is None and job.best_validation_loss is None and job.step:
        return "no rows held out"
    return text.change(job.base_validation_loss, job.best_validation_loss)
