"""The Compare section: its handlers as plain calls on a fake lab, what it draws, and its wiring in a bare Blocks."""

from __future__ import annotations

import gradio as gr
import pytest
from fake_lab import FakeCompareLab
from fake_studio import FakeStudio

from multilobe_ui.app.feedback import Counts
from multilobe_ui.errors import BackboneError, ConfigError, LobeError
from multilobe_ui.evaluation.compare import Agreement, Answer, Column, Comparison
from multilobe_ui.routing.decision import manual_decision
from multilobe_ui.ui.lab import compare_card
from multilobe_ui.ui.lab.compare import CompareSection, Shown
from multilobe_ui.ui.lab.compare_form import columns_of, defaults, mixture_of, offers, sampling_of

ASK = "How does a vaccine protect a child?"
SETTINGS = (120, 0, "")
NONE = ("", "", "", "")
SKIP = gr.skip()
NAMES = ("medical", "legal", "python", "maths")


def section(lobes=6, **options) -> CompareSection:
    studio = FakeStudio(lobes, **options)
    FakeCompareLab(studio)
    made = CompareSection(studio)
    with gr.Blocks():
        made.build()
    studio.calls.clear()
    return made


@pytest.fixture
def compare(monkeypatch) -> CompareSection:
    monkeypatch.setattr("multilobe_ui.ui.lab.compare.DRAW_SECONDS", 0.0)
    return section()


def steps(compare, prompt=ASK, choices=("base", "automatic", "lobe:legal", ""), weights=NONE, settings=SETTINGS):
    return compare.compare(prompt, *settings, *choices, *weights)


def merged(many, before=None):
    """What the page shows after all steps, by name."""
    shown = before or [None] * 13
    for step in many:
        shown = [old if new == SKIP else new for old, new in zip(shown, step, strict=True)]
    names = ("cards", "best", "tie", "run", "stop", "summary", "state")
    parts = (shown[:4], shown[4:8], *shown[8:])
    return dict(zip(names, parts, strict=True))


def votable(page):
    return [button["interactive"] for button in (*page["best"], page["tie"])]


# ---- a comparison ----------------------------------------------------------------------------------------------------


def test_columns_grow_together_and_end_with_marks_and_votes(compare):
    many = list(steps(compare))
    first = merged(many[:1])
    assert first["run"]["visible"] is False and first["stop"]["visible"] is True and votable(first) == [False] * 5
    assert "Deciding" in first["cards"][0] and "Nobody answers here" in first["cards"][3]
    live = merged(many[:5])
    assert all("lab-compare-cursor" in card for card in live["cards"][:3]) and "mark" not in live["cards"][1]
    page = merged(many)
    base, routed, legal, nobody = page["cards"]
    assert "Base model" in base and "<mark>" not in base and "Good morning! I am well" in base
    assert "medical" in routed and "--c:#e5484d" in routed and "<mark>A vaccine trains" in routed
    assert "% sure of the choice" in routed
    assert "Duress" in legal and "% sure" not in legal and "by you" in legal and "7 ms" in routed
    assert "Nobody answers here" in nobody and not any("cursor" in card for card in page["cards"])
    assert votable(page) == [True, True, True, False, True]
    assert page["run"]["visible"] is True and page["stop"]["visible"] is False
    assert "2 of 2 differ from A" in page["summary"] and "always the likeliest token" in page["summary"]
    (call,) = [arguments for verb, arguments in compare.studio.calls if verb == "lab.compare"]
    prompt, columns, sampling, stop = call
    assert (prompt, columns) == (ASK, [Column("base"), Column(), Column("lobe:legal")])
    assert (sampling.max_new_tokens, sampling.temperature, sampling.seed) == (120, 0, None)
    assert stop.is_set()  # whatever still runs, ends with the generator


def test_a_column_left_out_keeps_the_others_at_their_places(compare):
    page = merged(steps(compare, choices=("", "lobe:python", "", "base")))
    assert ["Nobody" in card for card in page["cards"]] == [True, False, True, False]
    assert votable(page) == [False, True, False, True, True] and "The other differs from B" in page["summary"]
    alone = merged(steps(compare, choices=("", "", "base", "")))
    assert votable(alone) == [False] * 5 and "something to compare" in alone["summary"]


def test_the_same_answer_twice_is_said_to_be_the_same(compare):
    page = merged(steps(compare, choices=("lobe:legal", "lobe:legal", "", "")))
    assert "Same as A." in page["cards"][1] and "No difference." in page["summary"]


def test_a_mixture_is_read_shown_and_run(compare):
    page = merged(steps(compare, choices=("base", "mix", "", ""), weights=("", "python=0.6, Maths = 40 %", "", "")))
    (call,) = [arguments for verb, arguments in compare.studio.calls if verb == "lab.compare"]
    assert call[1][1] == Column("mix", weights={"python": 0.6, "maths": 0.4})
    assert "python + maths" in page["cards"][1] and "60 %" in page["cards"][1] and ">Weights<" in page["cards"][1]


def test_it_is_drawn_now_and_then_only(compare, monkeypatch):
    monkeypatch.setattr("multilobe_ui.ui.lab.compare.DRAW_SECONDS", 60.0)
    many = list(steps(compare))
    assert len(many) == 3 and merged(many)["state"].comparison.done  # waiting, the decisions, the end


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": "  "}, "The prompt is empty"),
        ({"prompt": None}, "must be text"),
        ({"prompt": "x" * 100_001}, "100,000 is the most"),
        ({"choices": ("", "", "", "")}, "Nobody answers"),
        ({"choices": ("base", "lobe:<b>gone</b>", "", "")}, "no lobe .*&lt;b&gt;gone"),
        ({"choices": ("base", "admin", "", "")}, "Column B"),
        ({"choices": ("base", {"x": 1}, "", "")}, "must be text"),
        ({"choices": ("mix", "base", "", ""), "weights": NONE}, "mixture of Column A is empty"),
        ({"choices": ("mix", "base", "", ""), "weights": ("<i>=1", "", "", "")}, "no lobe .*&lt;i&gt;"),
        ({"settings": (0, 0, "")}, "longest answer"),
        ({"settings": (120, float("nan"), "")}, "temperature"),
        ({"settings": (120, 0, "seven")}, "seed is 'seven'"),
        ({"settings": (120, 0, ["1"])}, "seed"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence_and_changes_nothing(compare, change, words):
    with pytest.raises(gr.Error, match=words):
        list(steps(compare, **change))
    assert compare.studio.calls == []


def test_a_failure_gives_the_buttons_back(compare):
    compare.studio.lab.fail_next = BackboneError("The prompt is <too> long.")
    seen = []
    with pytest.raises(gr.Error, match="&lt;too&gt; long"):
        for step in steps(compare):
            seen.append(step)
    page = merged(seen)
    assert page["run"]["visible"] is True and votable(page) == [False] * 5 and "press Compare" in page["cards"][0]


def test_a_closed_page_ends_the_generation(compare):
    going = steps(compare)
    for _ in range(4):
        next(going)
    going.close()
    assert compare.studio.lab.closed == 1


def test_stop_keeps_what_came_but_not_for_a_vote(compare):
    going = steps(compare)
    seen = [next(going) for _ in range(5)]
    going.close()
    page = merged(seen)
    after = merged([compare.stopped(page["state"])], [*page["cards"], *page["best"], *list(page.values())[2:]])
    assert "A vaccine" in after["cards"][1] and "cursor" not in after["cards"][1]
    assert "Stopped" in after["summary"] and votable(after) == [False] * 5 and after["run"]["visible"] is True
    with pytest.raises(gr.Error, match="nothing to vote on"):
        compare.vote(0, page["state"])
    early = merged([compare.stopped(Shown())])
    assert "press Compare" in early["cards"][0] and early["run"]["visible"] is True


def test_an_answer_waits_for_the_base_to_load(monkeypatch):
    monkeypatch.setattr("multilobe_ui.ui.lab.compare.PROBE_SECONDS", 0.01)
    compare = section(state="loading")
    going = steps(compare)
    next(going)
    assert "Loading the built-in base model" in merged([next(going)])["summary"]
    compare.studio.become_ready()
    assert merged(going)["state"].comparison.done
    failed = section(state="failed")
    with pytest.raises(gr.Error, match="could not be loaded"):
        list(steps(failed))


def test_without_lobes_the_base_answers_and_the_page_says_why():
    compare = section(0)
    assert "no lobe yet" in compare.summary.value and [c.value for c in compare.choosers] == ["base", "automatic", "", ""]
    page = merged(steps(compare, choices=("base", "automatic", "", "")))
    assert "Base model" in page["cards"][1] and "Same as A." in page["cards"][1] and "% sure" not in page["cards"][1]
    with pytest.raises(gr.Error, match="no lobe"):
        list(steps(compare, choices=("mix", "", "", ""), weights=("medical=1", "", "", "")))


# ---- votes -----------------------------------------------------------------------------------------------------------


def test_a_vote_is_kept_once_with_what_was_shown(compare):
    state = merged(steps(compare, choices=("base", "", "automatic", "mix"), weights=("", "", "", "legal=1")))["state"]
    *buttons, after, line = compare.vote(2, state)
    assert [b["interactive"] for b in buttons] == [False] * 5 and buttons[2]["value"] == "Your vote" and "1 vote" in line
    (vote,) = compare.studio.lab.feedback.opinions()
    assert (vote.prompt, vote.best) == (ASK, 1) and vote.winner.lobe == "medical"
    assert [(a.choice, a.lobe) for a in vote.answers] == [("base", None), ("automatic", "medical"), ("mix", "legal")]
    assert vote.winner.text.startswith("A vaccine trains") and vote.winner.text.endswith("disease.")
    with pytest.raises(gr.Error, match="You have voted"):
        compare.vote(0, after)
    assert compare.studio.lab.feedback_counts() == Counts(1, 0, 0)
    assert compare.studio.lab.feedback.routing_rows() == [{"input": ASK, "lobe": "medical"}]


def test_no_difference_is_a_vote_too(compare):
    state = merged(steps(compare))["state"]
    *buttons, after, _ = compare.vote(None, state)
    assert after.voted and buttons[4]["value"] == "Your vote: no difference"
    assert compare.studio.lab.feedback.opinions()[0].best is None


def test_what_was_not_shown_cannot_be_voted_on(compare):
    state = merged(steps(compare))["state"]
    for forged in (None, {}, {"prompt": "x"}, Shown(), "x"):
        with pytest.raises(gr.Error, match="nothing to vote on"):
            compare.vote(0, forged)
    with pytest.raises(gr.Error, match="nothing to vote on"):
        compare.vote(3, state)  # nobody answered in D
    assert not compare.studio.lab.feedback.path.exists()


def test_votes_are_taken_on_a_shared_server_and_exports_are_not(compare):
    shared = section(shared=True)
    assert not shared.routing.visible and not shared.training.visible and "words of others" in shared.counts.value
    state = merged(steps(shared))["state"]
    assert "1 vote" in shared.vote(1, state)[-1]
    with pytest.raises(gr.Error, match="shared"):
        shared.export("routing")


def test_exports_can_be_downloaded(compare):
    with pytest.raises(gr.Error, match="no feedback to export"):
        compare.export("training")
    compare.vote(1, merged(steps(compare))["state"])
    for kind in ("routing", "training"):
        made = compare.export(kind)
        assert made["visible"] and made["label"].startswith(f"Download feedback-{kind}.jsonl (")
        with open(made["value"], encoding="utf-8") as file:
            assert ASK in file.read()
    with pytest.raises(gr.Error, match="kind of export"):
        compare.export("../x")


def test_the_count_follows_thumbs_from_chat(compare):
    line = compare.counts.value
    assert "0 votes, 0 thumbs" in line and compare.count() == line
    compare.studio.lab.feedback.thumb("x", "y", "legal", True)
    assert "0 votes, 1 thumb" in compare.count()


# ---- choosing --------------------------------------------------------------------------------------------------------


def test_columns_begin_with_base_router_and_two_lobes():
    assert defaults(NAMES) == ["base", "automatic", "lobe:medical", "lobe:legal"]
    assert defaults(()) == ["base", "automatic", "", ""] and defaults(("one",))[2:] == ["lobe:one", ""]
    assert [value for _, value in offers(("one",))] == ["base", "automatic", "lobe:one", "mix", ""]
    assert "mix" not in [value for _, value in offers(())]


def test_lobes_that_come_and_go(compare):
    names = list(compare._names())
    compare.studio.delete("medical")
    known, note, *choosers = compare.refresh(names, Shown(), "base", "lobe:medical", "lobe:legal", "mix")
    assert known == names[1:] and note == ""
    assert [c["value"] for c in choosers] == ["base", "automatic", "lobe:legal", "mix"]
    assert "lobe:medical" not in [value for _, value in choosers[0]["choices"]]
    for name in known:
        compare.studio.delete(name)
    known, note, *choosers = compare.refresh(known, Shown(), "mix", "automatic", "lobe:legal", "")
    assert [c["value"] for c in choosers] == ["base", "automatic", "", ""] and "no lobe yet" in note
    compare.studio.restore_demo()
    known, note, *choosers = compare.refresh(known, Shown(), "base", "automatic", "", "")
    assert [c["value"] for c in choosers] == ["base", "automatic", "lobe:medical", "lobe:legal"] and note == ""
    shown = merged(steps(compare))["state"]
    assert compare.refresh(known, shown, "base", "automatic", "", "")[1] == SKIP  # the last result's line stays
    assert [c["value"] for c in compare.refresh(known, shown, "base", "", "", "")[2:]] == ["base", "", "", ""]


def test_a_mixture_asks_for_weights_and_begins_with_an_example(compare):
    weights, card = compare.picked(0, "mix", "", Shown())
    assert weights == gr.update(visible=True, value="medical=0.6, legal=0.4") and "press Compare" in card
    assert mixture_of(weights["value"], NAMES, "Column A") == {"medical": 0.6, "legal": 0.4}
    assert compare.picked(0, "mix", "maths=1", Shown())[0]["value"] == "maths=1"
    assert compare.picked(0, "base", "", Shown())[0]["visible"] is False


def test_an_empty_card_follows_its_chooser_and_an_answer_stays(compare):
    assert "Nobody answers here" in compare.picked(3, "", "", Shown())[1]
    shown = merged(steps(compare))["state"]
    assert compare.picked(1, "base", "", shown)[1] == SKIP and "press Compare" in compare.picked(3, "base", "", shown)[1]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("python=0.6, maths=0.4", {"python": 0.6, "maths": 0.4}),
        (" Python = 60% ;\n maths=.4,", {"python": 0.6, "maths": 0.4}),
        ("Law, US=0.5, a=b=1", {"Law, US": 0.5, "a=b": 1.0}),
        ("色 / colours=1", {"色 / colours": 1.0}),
        ("python=0, maths=1", {"python": 0.0, "maths": 1.0}),
    ],
)
def test_mixtures_as_people_write_them(said, expected):
    assert mixture_of(said, ["python", "maths", "Law, US", "a=b", "色 / colours"], "Column A") == expected


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        ("", ConfigError, "is empty"),
        (7, ConfigError, "must be text"),
        ("python", ConfigError, "write it as"),
        ("python=", ConfigError, "write it as"),
        ("=0.5", ConfigError, "write it as"),
        ("python=much", ConfigError, "write it as"),
        ("python=1.5", ConfigError, "write it as"),
        ("python=-1", ConfigError, "write it as"),
        ("python=nan", ConfigError, "write it as"),
        ("python=inf", ConfigError, "write it as"),
        ("python=0.2, PYTHON=0.3", ConfigError, "python twice"),
        ("python=0", ConfigError, "zero"),
        ("cobol=1", LobeError, "no lobe 'cobol'.*python, maths"),
        ("x" * 2001, ConfigError, "2,000 is the most"),
    ],
)
def test_mixtures_that_make_no_sense(said, error, words):
    with pytest.raises(error, match=words):
        mixture_of(said, ["python", "maths"], "Column A")


def test_settings_and_choices_are_checked():
    assert sampling_of(5.0, 1, " 42 ").seed == 42 and sampling_of(5, 0, None).greedy
    for wrong in ((1025, 0, ""), (1.5, 0, ""), (5, 3, ""), (5, 0, "-1"), (5, 0, "1" * 19), (True, 0, ""), (5, 0, "٣٣")):
        with pytest.raises(ConfigError):
            sampling_of(*wrong)
    assert columns_of(("base", None, "", "automatic"), NONE, NAMES) == {0: Column("base"), 3: Column("automatic")}
    with pytest.raises(LobeError, match="column D"):
        columns_of(("base", "", "", "lobe:nobody"), NONE, NAMES)


# ---- what is drawn ---------------------------------------------------------------------------------------------------


def answer(text, lobe="<img src=x>", **values):
    return Answer(Column(f"lobe:{lobe}"), manual_decision({lobe: 1.0}, [lobe]), text, (1, 2, 3), True, 0.5, **values)


def drawn(*texts, agreement, done=True):
    columns = tuple(answer(text) for text in texts)
    comparison = Comparison(columns, done, False, 7, 1, 0, 2.0, agreement)
    return comparison, compare_card.cards(comparison, {"<img src=x>": "red;}"}, range(len(texts)))


def test_other_peoples_words_are_escaped():
    text = '<script>alert("1")</script> & more'
    comparison, made = drawn(text, text, agreement=(Agreement(), Agreement(0, ((0, 8), (9, 18)))))
    for card in made:
        assert "<script" not in card and "<img" not in card and "red;}" not in card and "--c:#8a93a0" in card
    assert "<mark>&lt;script&gt;</mark>a<mark>lert(&#34;1&#34;)</mark>" in made[1]
    assert "seed 7" in compare_card.summary(comparison, (0, 1))
    assert "<b>" not in compare_card.empty_card(0, "<b>")


def test_marks_leave_the_text_as_it_was():
    text = "a < b & c"
    assert compare_card.marked(text, ()) == "a &lt; b &amp; c"
    assert compare_card.marked(text, ((0, 1), (4, 9))) == "<mark>a</mark> &lt; <mark>b &amp; c</mark>"


def test_where_a_column_leaves_the_first():
    _, (first, later, at_once, same) = drawn(
        "ab", "ac", "x", "ab", agreement=(Agreement(), Agreement(1, ((0, 2),)), Agreement(0, ((0, 1),)), Agreement())
    )
    assert "lab-compare-note" not in first and "Same as A for 1 character, then it differs." in later
    assert "from its first character" in at_once and "Same as A." in same
    assert "3 tokens" in later and "6.0 tokens/s" in later
    empty = compare_card.cards(Comparison((answer(""),), True, False, None, 1, 0, 1.0, (Agreement(),)), {}, (2,))
    assert "No answer" in empty[0] and "<span>C</span>" in empty[0]


def test_the_line_on_feedback():
    line = compare_card.feedback_line(Counts(3, 5, 0), False)
    assert "<b>3 votes, 5 thumbs</b>" in line and "exported" not in line
    assert "1 line of the file cannot be read and stays aside" in compare_card.feedback_line(Counts(1, 1, 1), False)
    assert "<b>1 vote, 1 thumb</b>" in compare_card.feedback_line(Counts(1, 1, 1), False)
    assert "then it can be exported" in compare_card.feedback_line(Counts(), False)


# ---- wiring ----------------------------------------------------------------------------------------------------------


def test_the_wiring_hides_its_endpoints_and_bounds_what_is_slow():
    studio = FakeStudio(3)
    FakeCompareLab(studio)
    made = CompareSection(studio)
    with gr.Blocks() as page:
        made.build()
        made.follow(page.load)
    assert (made.title, made.panels) == ("Compare", ()) and "one batch" in " ".join(made.about.split())
    assert not page.get_api_info()["named_endpoints"]
    functions = page.fns.values()
    answering = [fn for fn in functions if fn.concurrency_id == "lab-compare"]
    assert len(answering) == 1 and {fn.concurrency_limit for fn in answering} == {2}
    assert any(set(fn.cancels) == {one._id for one in answering} for fn in functions if fn.cancels)
