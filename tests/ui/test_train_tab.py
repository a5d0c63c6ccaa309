"""The Train tab: HTML as data, handlers as plain calls, wiring in a bare Blocks."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pytest
from fake_studio import FakeStudio, JobView

from multilobe_ui.data.examples import Example
from multilobe_ui.data.formats import sniff
from multilobe_ui.data.held_out import held_out_share
from multilobe_ui.errors import BusyError, DataError, LobeError
from multilobe_ui.settings import suggested_epochs
from multilobe_ui.ui.train import dataset_card, form, live_side, run_card, runs
from multilobe_ui.ui.train.tab import TrainTab

SKIP = gr.skip()
NOBODY = SimpleNamespace(username=None)
TOKEN, OTHER = "t" * 20, "o" * 20
SETTINGS = ("3", "", "0.1", 16, 32, 0.05, 4, 512, 0, 0.1, 0, "last", "", False)
EVIL = "<img src=x onerror=alert(1)>"

VIEW = [
    "status", "card", "plot", "stop", "resume", "chat", "earlier", "later", "cancel", "forget", "runs_heading", "runs",
    "compared", "rate", "seen",
]  # fmt: skip
REPORT = ["report", "lengths", "mapping", "prompt", "answer", "skip_bad", "name", "start", "source"]


@pytest.fixture
def studio():
    return FakeStudio(2)


@pytest.fixture
def uploads(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def sample(studio):
    return studio.sample_files()["legal"]


def named(keys, values):
    return SimpleNamespace(**dict(zip(keys, values, strict=True)))


def look(tab, shown="", ticked=(), seen=None, token=""):
    return named(VIEW, tab.live.look(NOBODY, shown, list(ticked), seen or {}, token))


def drop(tab, path, name="", source=None):
    """What the page shows in the end after a file was dropped."""
    steps = list(tab.data.use_file(str(path), name, source or {}, 512))
    return named(REPORT, steps[-1])


def write(folder, name, rows):
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), "utf-8")
    return path


def event(**data):
    return SimpleNamespace(_data=data)


# ---- a file ----------------------------------------------------------------------------------------------------------


def test_a_good_file_can_be_started_at_once(studio, uploads):
    rows = [{"input": f"Question {i} {EVIL}", "output": "x" * i} for i in range(1, 41)]
    seen = drop(TrainTab(studio), write(uploads, "my_first-recipes.jsonl", rows))
    assert seen.start == gr.update(interactive=True)
    assert seen.name == "My first recipes"
    assert "40" in seen.report["value"] and "input / output" in seen.report["value"]
    assert EVIL not in seen.report["value"] and "&lt;img" in seen.report["value"]
    assert "<svg" in seen.lengths["value"] and seen.mapping["visible"] is False and seen.skip_bad["visible"] is False
    assert seen.source["rows"] == 40 and seen.source["bad"] == 0


def test_bad_rows_are_listed_and_must_be_left_out_knowingly(studio, uploads):
    rows = [{"input": "a", "output": str(i)} for i in range(30)]
    rows[4], rows[11] = '{"input": "b"', '{"input": "", "output": "c"}'
    tab = TrainTab(studio)
    seen = drop(tab, write(uploads, "some.jsonl", rows))
    assert "line 5" in seen.report["value"] and "line 12" in seen.report["value"]
    assert seen.skip_bad == gr.update(visible=True, value=False)
    assert seen.start == gr.update(interactive=False)
    assert tab.data.allow_start(True, seen.source) == gr.update(interactive=True)
    assert tab.data.allow_start(False, seen.source) == gr.update(interactive=False)


def test_no_more_than_twenty_bad_rows_are_listed(studio, uploads):
    rows = [{"input": "a", "output": "b"}] + ["{bad"] * 50
    seen = drop(TrainTab(studio), write(uploads, "some.jsonl", rows))
    assert seen.report["value"].count("<li>") == 20 and "and 30 more" in seen.report["value"]


def test_unknown_columns_can_be_mapped(studio, uploads):
    path = write(uploads, "export.csv", ["Frage,It's \"it\",Thema", "a,b,c", "d,e,f"])
    tab = TrainTab(studio)
    seen = drop(tab, path)
    columns = list(sniff(path, {"prompt": "Frage", "answer": "Thema"}).columns)
    assert seen.mapping == gr.update(visible=True) and seen.prompt["choices"] == columns
    assert seen.start == gr.update(interactive=False)
    one = list(tab.data.use_columns("Frage", None, "", seen.source, 512))
    assert one == [(SKIP,) * 9]
    (both,) = tab.data.use_columns("Frage", "Thema", "", seen.source, 512)
    seen = named(REPORT, both)
    assert seen.start == gr.update(interactive=True) and seen.source["mapping"] == {"prompt": "Frage", "answer": "Thema"}


def test_a_column_that_is_not_there_is_said_and_asked_again(studio, uploads):
    tab = TrainTab(studio)
    seen = drop(tab, write(uploads, "export.csv", ["Frage,Antwort", "a,b"]))
    (again,) = tab.data.use_columns("Frage", EVIL, "", seen.source, 512)
    seen = named(REPORT, again)
    assert seen.mapping["visible"] is True and seen.start["interactive"] is False
    assert EVIL not in seen.report["value"]


@pytest.mark.parametrize("content", ["", "PK\x03\x04zip", '{"a": 1', "[]"])
def test_what_cannot_be_read_is_said_in_the_card(studio, uploads, content):
    seen = drop(TrainTab(studio), write(uploads, "odd.jsonl", [content]))
    assert "odd.jsonl" in seen.report["value"] and seen.start == gr.update(interactive=False) and not seen.source


def test_paths_that_are_no_uploads_are_refused(studio, uploads):
    for path in ("/etc/passwd", None, 3, {"path": "/etc/passwd"}):
        with pytest.raises(gr.Error):
            list(TrainTab(studio).data.use_file(path, "", {}, 512))
    assert not studio.calls


def test_samples_fill_the_form_and_take_the_file_away(studio):
    steps = list(TrainTab(studio).data.use_sample("legal", "", {}, 512))
    file, *rest = steps[-1]
    seen = named(REPORT, rest)
    assert file is None and seen.name == "Legal (2)" and seen.start["interactive"] is True
    with pytest.raises(gr.Error):
        list(TrainTab(studio).data.use_sample("../secret", "", {}, 512))


def test_a_typed_name_stays_and_a_suggested_one_follows_the_file(studio, uploads, sample):
    tab = TrainTab(studio)
    first = named(REPORT, list(tab.data.use_sample("legal", "", {}, 512))[-1][1:])
    second = named(REPORT, list(tab.data.use_sample("maths", first.name, first.source, 512))[-1][1:])
    assert second.name == "Maths"
    third = named(REPORT, list(tab.data.use_sample("python", "My own", second.source, 512))[-1][1:])
    assert third.name == "My own"


def test_token_lengths_come_when_the_base_does(studio, sample, monkeypatch):
    ready = []
    plain = FakeStudio.inspect
    monkeypatch.setattr(
        FakeStudio, "inspect",
        lambda self, *a: plain(self, *a) if ready else replace(plain(self, *a), token_lengths=()),
    )  # fmt: skip
    monkeypatch.setattr(FakeStudio, "ready", lambda self, timeout=None: ready.append(1))
    first, second = TrainTab(studio).data.use_sample("legal", "", {}, 512)
    assert "appear when" in named(REPORT, first[1:]).lengths["value"]
    assert "<svg" in named(REPORT, second[1:]).lengths["value"]
    assert named(REPORT, second[1:]).report == SKIP


def test_taking_the_file_away_empties_the_form(studio):
    seen = named(REPORT, TrainTab(studio).data.use_nothing())
    assert seen.source == {} and seen.start == gr.update(interactive=False) and seen.report == gr.update(visible=False)


# ---- start and other verbs -------------------------------------------------------------------------------------------


def begin(tab, source, name="Law", skip=False, token="", settings=SETTINGS):
    return tab.begin(NOBODY, token, source, name, skip, *settings)


def test_start_makes_one_job_with_the_settings_and_shows_it(studio, sample):
    tab = TrainTab(studio)
    job, seen = begin(tab, {"path": str(sample)}, settings=("5", "1e-3", "", 8, *SETTINGS[4:11], "best", "q_proj v_proj", True))
    assert seen == {} and studio.job(job).name == "Law"
    (call,) = [arguments for verb, arguments in studio.calls if verb == "train"]
    config = call[2]
    assert (config.epochs, config.lora_r, config.learning_rate) == (5, 8, 1e-3)
    assert config.target_modules == ("q_proj", "v_proj") and config.use_rslora
    assert (config.validation_fraction, config.keep) == (None, "best")


@pytest.mark.parametrize(
    ("position", "value", "said"),
    [(0, "0", "epochs"), (0, "", None), (0, "2.5", "epochs"), (1, "fast", "learning_rate"), (2, "0.9", "validation_fraction"),
     (2, "", None), (3, 1.5, "lora_r"), (5, 1.0, "lora_dropout"), (7, 3, "max_length"), (11, "worst", "keep"),
     (12, {"a": 1}, "target_modules")],
)  # fmt: skip
def test_settings_out_of_range_are_named(studio, sample, position, value, said):
    settings = [*SETTINGS]
    settings[position] = value
    if said is None:
        begin(TrainTab(studio), {"path": str(sample)}, settings=settings)
    else:
        with pytest.raises(gr.Error, match=said):
            begin(TrainTab(studio), {"path": str(sample)}, settings=settings)
        assert not studio.jobs()


def test_start_without_data_or_name_is_refused(studio, sample):
    with pytest.raises(gr.Error, match="no data"):
        begin(TrainTab(studio), {})
    for name in ("", "  ", None, 5, "x" * 81):
        with pytest.raises(gr.Error, match="name"):
            begin(TrainTab(studio), {"path": str(sample)}, name=name)
    with pytest.raises(gr.Error):
        begin(TrainTab(studio), {"path": str(sample)}, skip="yes")


def test_the_studio_s_own_errors_are_shown(studio, sample):
    studio.fail_next = LobeError("A lobe called 'Law' exists already.")
    with pytest.raises(gr.Error, match="exists already"):
        begin(TrainTab(studio), {"path": str(sample)})


def test_verbs_act_on_the_run_on_display(studio, sample):
    tab = TrainTab(studio)
    job, *_ = begin(tab, {"path": str(sample)})
    queued, *_ = begin(tab, {"path": str(sample)}, "Two")
    studio.advance(job, 3)
    tab.live.doing("later")(NOBODY, {"job": queued}, "")
    tab.live.doing("earlier")(NOBODY, {"job": queued}, "")
    tab.live.doing("stop")(NOBODY, {"job": job}, "")
    tab.live.doing("resume")(NOBODY, {"job": job}, "")
    tab.live.doing("cancel")(NOBODY, {"job": queued}, "")
    verbs = [(verb, arguments[:-1]) for verb, arguments in studio.calls if verb != "train"]
    assert verbs == [
        ("move", (queued, 1)), ("move", (queued, -1)), ("stop", (job,)), ("resume", (job,)), ("cancel", (queued,)),
        ("forget", (queued,)),
    ]  # fmt: skip
    with pytest.raises(gr.Error, match="No run"):
        tab.live.doing("stop")(NOBODY, {}, "")
    with pytest.raises(gr.Error, match="no job"):
        tab.live.doing("stop")(NOBODY, {"job": "gone"}, "")


def test_shared_only_the_owner_may_act(sample):
    studio = FakeStudio(2, shared=True)
    tab = TrainTab(studio)
    with pytest.raises(gr.Error, match="shared"):
        begin(tab, {"path": str(sample)})
    job, *_ = begin(tab, {"path": str(sample)}, token=TOKEN)
    with pytest.raises(gr.Error, match="somebody else"):
        tab.live.doing("stop")(NOBODY, {"job": job}, OTHER)
    assert look(tab, token=OTHER).stop["visible"] is False
    assert "another visitor" in look(tab, token=OTHER).card
    assert look(tab, token=TOKEN).stop["visible"] is True
    tab.live.doing("stop")(NOBODY, {"job": job}, TOKEN)


# ---- looking ---------------------------------------------------------------------------------------------------------


def test_before_the_first_run(studio):
    seen = look(TrainTab(studio))
    assert "No training" in seen.status and seen.plot == gr.update(visible=False) and seen.runs == gr.update(visible=False)
    assert not any(getattr(seen, button)["visible"] for button in VIEW[3:10])
    assert seen.rate == gr.update(info="Empty: automatic, 0.002 for this base.")


def test_any_visitor_sees_the_running_job(studio, sample):
    job = studio.train(EVIL, sample)
    studio.advance(job.id, 30)
    seen = look(TrainTab(studio))
    assert "step 30 of 60" in seen.status and "50%" in seen.card
    assert EVIL not in seen.status + seen.card + seen.runs["value"]
    assert seen.plot["visible"] is True and seen.stop["visible"] is True and seen.resume["visible"] is False
    assert seen.seen["job"] == job.id


def test_nothing_new_is_not_sent_again(studio, sample):
    tab = TrainTab(studio)
    job = studio.train("Law", sample)
    studio.advance(job.id, 5)
    first = look(tab)
    assert tab.live.look(NOBODY, "", [], first.seen, "") == (SKIP,) * len(VIEW)
    studio.advance(job.id, 1)
    second = look(tab, seen=first.seen)
    assert second.card != SKIP and second.rate == SKIP and second.compared == SKIP
    assert tab.live.look_anew(NOBODY, "", [], "")[0] == second.status


def test_the_plot_is_drawn_at_most_every_two_seconds_of_training(studio, sample):
    tab = TrainTab(studio)
    job = studio.train("Law", sample)
    studio.advance(job.id, 5)
    drawn, seen = 0, look(tab).seen
    for _ in range(4):  # half a second each
        studio.advance(job.id, 1)
        now = look(tab, seen=seen)
        drawn, seen = drawn + (now.plot != SKIP), now.seen
    assert drawn == 1


def test_a_failing_studio_leaves_the_page_as_it_is(studio, monkeypatch):
    def fail(owner=""):
        raise BusyError("no")

    monkeypatch.setattr(studio, "jobs", fail)
    assert TrainTab(studio).live.look(NOBODY, "", [], {}, "") == SKIP


@pytest.mark.parametrize(
    ("state", "step", "buttons", "word"),
    [("running", 9, {"stop"}, "Training"), ("stopping", 9, {"stop"}, "Stopping"),
     ("finished", 60, {"chat", "forget"}, "Finished"), ("stopped", 9, {"resume", "chat", "forget"}, "Stopped"),
     ("stopped", 0, {"resume", "forget"}, "Cancelled"), ("failed", 9, {"resume", "forget"}, "Failed"),
     ("interrupted", 9, {"resume", "forget"}, "Interrupted"), ("queued", 0, {"cancel"}, "Waiting")],
)  # fmt: skip
def test_only_buttons_that_would_work_are_shown(studio, sample, state, step, buttons, word):
    job = studio.train("Law", sample)
    studio._put(job.id, state=state, step=step, place=1 if state == "queued" else None)
    seen = look(TrainTab(studio))
    assert {name for name in VIEW[3:10] if getattr(seen, name)["visible"]} == buttons
    assert word in seen.card and word in seen.runs["value"]
    if state == "stopping":
        assert seen.stop["interactive"] is False


def test_places_in_the_queue(studio, sample):
    for name in ("One", "Two", "Three", "Four"):
        studio.train(name, sample)
    two, three, four = (next(j.id for j in studio.jobs() if j.name == n) for n in ("Two", "Three", "Four"))
    tab = TrainTab(studio)
    moves = {id: (look(tab, id).earlier["visible"], look(tab, id).later["visible"]) for id in (two, three, four)}
    assert moves == {two: (False, True), three: (True, True), four: (True, False)}
    assert "Place 2 in the queue" in look(tab, three).card


def test_which_run_is_on_display():
    def job(id, **more):
        return JobView(id, id, **more)

    mine, theirs, old = job("a", state="running"), job("b", state="running", mine=False), job("c", state="finished")
    show = runs.on_display
    assert show([], "x") is None
    assert show([old, theirs, mine], "") is mine
    assert show([old, theirs], "") is theirs
    assert show([old, theirs, mine], "c") is old
    assert show([old], "gone") is old


def test_ticked_runs_are_compared(studio, sample):
    tab = TrainTab(studio)
    for name in ("One", EVIL):
        job = studio.train(name, sample)
        studio.advance(job.id, 60)
    ids = [job.id for job in studio.jobs()]
    ticked = tab.live.tick_run(tab.live.tick_run([], event(id=ids[0], on=True)), event(id=ids[1], on=True))
    assert ticked == ids
    seen = look(tab, ticked=ticked)
    names = {trace.name for trace in seen.compared["value"].data}
    assert names == {"One", "&lt;img src=x onerror=alert(1)&gt;"} and seen.runs["value"].count("checked") == 2
    assert tab.live.tick_run(ticked, event(id=ids[0], on=False)) == ids[1:]
    assert look(tab, ticked=["gone"]).compared == gr.update(visible=False)
    many = [f"job{i}" for i in range(live_side.MOST_COMPARED)]
    assert len(tab.live.tick_run(many, event(id="one more", on=True))) == live_side.MOST_COMPARED


def test_forged_events_are_refused(studio):
    tab = TrainTab(studio)
    assert tab.live.pick(event(id=["x"])) == SKIP
    with pytest.raises(gr.Error):
        tab.live.tick_run([], event(id="x", on="yes"))


def test_the_list_of_runs_is_not_endless(studio, sample):
    for i in range(live_side.MOST_RUNS + 5):
        studio.train(f"Run {i}", sample)
    seen = look(TrainTab(studio))
    assert seen.runs["value"].count("data-row=") == live_side.MOST_RUNS and "newest 50 of 55" in seen.runs_heading["value"]


# ---- pure ------------------------------------------------------------------------------------------------------------


def test_status_lines_say_it_all():
    job = JobView("x", "Law", "running", step=42, steps=90, epoch=1.4, tokens_per_second=1230, seconds_left=38,
                  best_validation_loss=2.1, base_validation_loss=3.4)  # fmt: skip
    assert run_card.status_line(job) == (
        "Law: Training, step 42 of 90, epoch 1.4, 1,230 tokens/s, about 40 s left. "
        "Best validation loss 2.100, base model 3.400."
    )
    assert run_card.status_line(replace(job, state="queued", place=2)) == "Law: waiting, place 2 in the queue."
    failed = replace(job, state="failed", error="Out of memory.", seconds=70)
    assert run_card.status_line(failed).startswith("Law: failed after 1 min 10 s.")
    assert run_card.status_line(failed).endswith("Out of memory.")
    preparing = JobView("x", "Law", "running", phase="Preparing data")
    assert run_card.status_line(preparing) == "Law: Preparing data."


def test_unknown_columns_come_with_the_error(tmp_path):
    path = write(tmp_path, "a.csv", ["Frage;it's;\"say \"\"hi\"\"\"", "1;2;3"])
    with pytest.raises(DataError) as caught:
        sniff(path)
    assert caught.value.columns == ("Frage", "it's", 'say "hi"')
    assert "it&#39;s, say &#34;hi&#34;" in dataset_card.refusal_card(caught.value, "a.csv")


@pytest.mark.parametrize(
    ("label", "taken", "name"),
    [("my_recipes-v2.jsonl", [], "My recipes v2"), ("a.b.csv", [], "A b"), ("légal.csv", ["Légal"], "Légal (2)"),
     ("x.csv", ["X", "x (2)"], "X (3)"), ("...", [], "My lobe"), ("y" * 200, [], "Y" + "y" * 69)],
)  # fmt: skip
def test_free_names(label, taken, name):
    assert form.free_name(label, taken) == name


def test_length_histogram_counts_what_will_be_cut():
    lengths = [10] * 50 + [600] * 3
    html = dataset_card.length_histogram(lengths, 512, 53)
    assert "3 rows are longer than 512 tokens and will be cut" in html and 'class="over"' in html
    assert "None is longer than 700" in dataset_card.length_histogram(lengths, 700, 53)
    assert "sample of 53" in dataset_card.length_histogram(lengths, 512, 9000)
    assert dataset_card.length_histogram([], 512, 0) == "" and "appear when" in dataset_card.length_histogram([], 512, 9)
    for odd in (None, "x", -3, 0):
        dataset_card.length_histogram([7], odd, 1)


def test_wiring_is_private_and_waits_for_nobody(studio):
    with gr.Blocks() as page:
        TrainTab(studio).build()
    assert all(fn.api_visibility == "private" for fn in page.fns.values())
    for fn in page.fns.values():
        assert fn.queue is False or fn.concurrency_limit is None, fn.name


def plan_of(tab, rows, share="", keep="last"):
    examples = [Example(({"role": "user", "content": p},), a) for p, a in rows]
    held_out = held_out_share(examples)
    return tab.data.show_plan({"rows": len(rows), "held_out": held_out}, share, keep)


def test_the_plan_says_what_is_trained_and_why(studio):
    tab = TrainTab(studio)
    facts = [(f"What is {i}?", f"It is the number {i * 37} in the book of {i * 11}.") for i in range(60)]
    labels = [(f"Is number {i} good?", ("Yes", "No")[i % 2]) for i in range(500)]
    line, epochs = plan_of(tab, facts)
    assert "All 60 rows are trained, because nearly every answer is different" in line["value"]
    assert f"automatic, {suggested_epochs(60)} for these" in epochs["info"]
    line, epochs = plan_of(tab, labels)
    assert "25 of 500 rows are held out to draw the validation curve, because answers repeat." in line["value"]
    assert f"automatic, {suggested_epochs(475)} for these" in epochs["info"]
    assert "6 of 60 rows are held out to draw" in plan_of(tab, facts, "0.1")[0]["value"]
    assert "All 500 rows are trained, as the settings say." in plan_of(tab, labels, "0")[0]["value"]
    assert "lowest validation loss is kept" in plan_of(tab, labels, "", "best")[0]["value"]
    assert "Without held-out rows the last step is kept." in plan_of(tab, facts, "", "best")[0]["value"]
    assert tab.data.show_plan({}, "", "last")[0] == gr.update(visible=False)
    assert plan_of(tab, facts, "many") == gr.skip()  # said when training is started
