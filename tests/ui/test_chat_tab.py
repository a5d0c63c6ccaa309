"""The Chat tab's handlers as plain calls, and its wiring in a bare Blocks."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import gradio as gr
import pytest
from fake_studio import FakeStudio

from multilobe_ui.errors import BackboneError, ConfigError
from multilobe_ui.ui.chat.conversation import plain
from multilobe_ui.ui.chat.knobs import sampling_of
from multilobe_ui.ui.chat.tab import STARTERS, ChatTab, choices

KNOBS = (200, 0.3, 0.9, 0, 1.1, "")
ASK = "How does a vaccine protect a child?"
SKIP = gr.skip()


def normalised(*turns):
    """A conversation as Gradio 6 hands it to a handler."""
    roles = ("user", "assistant")
    return [
        {"role": roles[i % 2], "content": [{"type": "text", "text": t}], "metadata": None, "options": None}
        for i, t in enumerate(turns)
    ]


def texts(history):
    return [message["content"] for message in history]


def merged(steps):
    """What the page shows after all steps: the last value that was not skipped, per output."""
    shown = [None] * 6
    for step in steps:
        shown = [old if new == SKIP else new for old, new in zip(shown, step, strict=True)]
    return shown


@pytest.fixture
def tab():
    return ChatTab(FakeStudio(6))


def test_a_message_is_answered_and_explained(tab):
    steps = list(tab.send(ASK, [], [], "automatic", *KNOBS))
    assert texts(steps[0][0]) == [ASK]
    assert steps[0][1]["value"] == ""
    assert "Routing" in steps[0][2]
    chat, box, panel, tokens, labels, replies = merged(steps)
    assert texts(chat)[1].startswith("A vaccine trains")
    assert box["submit_btn"] == "Send"
    assert box["stop_btn"] is False
    assert "Answered by" in panel
    assert "medical" in labels
    assert len(replies) == 1
    assert replies[0].done
    assert replies[0].decision.chosen == "medical"
    assert tokens == gr.update(value="", visible=False)
    verb, (messages, choice, sampling, router, mixing, weights) = tab.studio.calls[0]
    assert (router, mixing.mode, weights) == ("hybrid", "auto", {})
    assert (verb, choice) == ("chat", "automatic")
    assert messages == [{"role": "user", "content": ASK}]
    assert (sampling.max_new_tokens, sampling.temperature, sampling.repetition_penalty, sampling.seed) == (
        200,
        0.3,
        1.1,
        None,
    )


def test_the_panel_is_drawn_at_the_decision_and_at_the_end_only(tab):
    steps = list(tab.send(ASK, [], [], "automatic", *KNOBS))
    drawn = [i for i, step in enumerate(steps) if step[2] != SKIP]
    assert drawn == [0, 1, len(steps) - 1]
    assert "Answering now" in steps[1][2]


def test_an_empty_message_does_nothing(tab):
    for text in ("", "  \n", None):
        assert list(tab.send(text, [], [], "automatic", *KNOBS)) == [(SKIP,) * 6]
    assert tab.studio.calls == []


def test_later_turns_keep_earlier_labels(tab):
    *_, replies = merged(tab.send(ASK, [], [], "automatic", *KNOBS))
    chat, _, _, _, labels, replies = merged(tab.send("Good morning", normalised(ASK, "x"), replies, "automatic", *KNOBS))
    assert len(chat) == 4
    assert [r.decision.chosen for r in replies] == ["medical", None]
    assert "nth-child(2 of .bot-row)" in labels


@pytest.mark.parametrize(("choice", "chosen"), [("base", None), ("lobe:legal", "legal")])
def test_a_person_may_choose(tab, choice, chosen):
    *_, replies = merged(tab.send(ASK, [], [], choice, *KNOBS))
    assert replies[0].decision.chosen == chosen


def test_an_error_gives_the_conversation_and_the_text_back(tab):
    tab.studio.fail_next = BackboneError("The prompt is <too> long.")
    with pytest.warns(UserWarning, match="&lt;too&gt; long"):
        chat, box, panel, _, _, replies = merged(tab.send(" again ", normalised(ASK, "x"), [], "automatic", *KNOBS))
    assert texts(chat) == [ASK, "x"]
    assert box["value"] == " again "
    assert "Who will answer?" in panel
    assert replies == []


def test_a_bug_is_logged_and_not_shown(tab, caplog):
    tab.studio.fail_next = ValueError("secret")
    with pytest.warns(UserWarning, match="Something went wrong") as seen:
        chat, box, *_ = merged(tab.send(ASK, [], [], "automatic", *KNOBS))
    assert chat == []
    assert box["value"] == ASK
    assert not any("secret" in str(w.message) for w in seen)
    assert "secret" in caplog.text


def test_a_lobe_that_is_gone_is_said_so(tab):
    with pytest.warns(UserWarning, match="no lobe called"):
        chat, *_ = merged(tab.send(ASK, [], [], "lobe:nobody", *KNOBS))
    assert chat == []


def test_bad_settings_are_said_so(tab):
    with pytest.warns(UserWarning, match="temperature is 99"):
        merged(tab.send(ASK, [], [], "automatic", 200, 99, 0.9, 0, 1.1, ""))
    assert sampling_of(10, 0, 1, 5, 1, "7").seed == 7
    assert sampling_of(1e9, 0, 1, 5, 1, None).max_new_tokens == 4096
    for wrong in (
        (None, 0.3, 0.9, 0, 1.1, ""),
        ("x", 0.3, 0.9, 0, 1.1, ""),
        (200, 0.3, 0.9, 0, 1.1, "abc"),
        (float("inf"), 0.3, 0.9, 0, 1.1, ""),
    ):
        with pytest.raises(ConfigError):
            sampling_of(*wrong)


def test_while_loading_it_says_so_and_then_answers(monkeypatch):
    tab = ChatTab(FakeStudio(6, state="loading"))
    monkeypatch.setattr("multilobe_ui.ui.chat.answering.PROBE_SECONDS", 0.01)
    steps = tab.send(ASK, [], [], "automatic", *KNOBS)
    next(steps)
    chat, _, panel, *_ = next(steps)
    assert "Loading the built-in base model" in chat[-1]["content"]
    assert "One moment" in panel
    threading.Timer(0.1, tab.studio.become_ready).start()
    chat, *_ = merged(steps)
    assert texts(chat) == [ASK, "A vaccine trains the immune system to recognize and fight a disease."]


def test_a_new_home_is_not_said_to_be_empty_before_its_lobes_are_there():
    tab = ChatTab(FakeStudio(0, state="loading"))
    _, panel, chat = tab.refresh("automatic", [])
    assert "being loaded" in chat["placeholder"] and "once the model is loaded" in panel
    tab.studio.become_ready()
    _, panel, chat = tab.refresh("automatic", [])
    assert "no lobe yet" in chat["placeholder"] and "no lobe yet" in panel


def test_a_base_that_cannot_be_loaded_ends_the_wait():
    tab = ChatTab(FakeStudio(6, state="failed"))
    with pytest.warns(UserWarning, match="could not be loaded"):
        _, box, *_ = merged(tab.send(ASK, [], [], "automatic", *KNOBS))
    assert box["value"] == ASK


def test_closing_the_answer_closes_the_generation(tab):
    closed = threading.Event()

    def chat(messages, choice, sampling, stop, **how):
        try:
            yield from FakeStudio(6).chat(messages, choice, sampling, stop, **how)
        finally:
            assert not stop.is_set()
            closed.set()

    tab.studio.chat = chat
    steps = tab.send(ASK, [], [], "automatic", *KNOBS)
    for _ in range(4):
        next(steps)
    steps.close()
    assert closed.is_set()


def test_stop_keeps_what_came(tab):
    steps = tab.send(ASK, [], [], "automatic", *KNOBS)
    for _ in range(4):
        *_, replies = next(steps)
    steps.close()
    _, box, panel, _, labels, replies = tab.stopped("", normalised(ASK, "A vaccine"), replies)
    assert replies[0].stopped
    assert replies[0].done
    assert "Stopped after" in panel
    assert "stopped" in labels
    assert box["submit_btn"] == "Send"


@pytest.mark.parametrize("turns", [(ASK,), (ASK, "*Loading…*")])
def test_stop_before_the_first_word_takes_the_message_back(tab, turns):
    chat, box, *_, replies = tab.stopped("", normalised(*turns), [])
    assert chat == []
    assert box["value"] == ASK
    assert replies == []
    assert tab.stopped("", [], [])[0] == []


@pytest.mark.parametrize("count", [2, 4])
def test_stop_keeps_what_was_still_under_way_to_the_page(tab, count):
    steps = tab.send(ASK, [], [], "automatic", *KNOBS)
    for _ in range(count):
        *_, replies = next(steps)
    steps.close()
    chat, box, panel, _, labels, replies = tab.stopped("", normalised(ASK), replies)
    assert texts(chat) == [ASK, replies[0].answer or "…"]
    assert replies[0].done and replies[0].stopped
    assert "Stopped after" in panel and "stopped" in labels
    assert "value" not in box


def replies_of(tab, *questions):
    replies = []
    for question in questions:
        replies = merged(tab.send(question, normalised(*["x"] * 2 * len(replies)), replies, "automatic", *KNOBS))[-1]
    return replies


def test_retry_asks_the_same_and_drops_what_came_later(tab):
    replies = replies_of(tab, ASK, "a contract")
    history = normalised(ASK, "old", "a contract", "old")
    chat, *_, now = merged(tab.retry(history, replies, SimpleNamespace(index=0), "automatic", *KNOBS))
    assert texts(chat)[0] == ASK
    assert len(chat) == 2
    assert len(now) == 1


def test_a_failed_retry_keeps_the_old_answer(tab):
    replies = replies_of(tab, ASK)
    tab.studio.fail_next = BackboneError("busy")
    with pytest.warns(UserWarning):
        chat, *_, now = merged(
            tab.retry(normalised(ASK, "old"), replies, SimpleNamespace(index=0), "automatic", *KNOBS)
        )
    assert texts(chat) == [ASK, replies[0].answer]
    assert now == replies


def test_edit_asks_the_new_text(tab):
    replies = replies_of(tab, ASK, "a contract")
    history = normalised("a contract law", "old", "more", "old")
    event = SimpleNamespace(index=0, value="a contract law", previous_value=ASK)
    chat, *_, now = merged(tab.edit(history, replies, event, "automatic", *KNOBS))
    assert texts(chat)[0] == "a contract law"
    assert [r.decision.chosen for r in now] == ["legal"]


def test_undo_gives_the_last_message_back(tab):
    replies = replies_of(tab, ASK, "a contract")
    event = SimpleNamespace(index=2)
    chat, box, panel, _, _, now = tab.undo(normalised(ASK, "a", "a contract", "b"), replies, event)
    assert texts(chat) == [ASK, "a"]
    assert box["value"] == "a contract"
    assert now == replies[:1]
    assert "medical" in panel


@pytest.mark.parametrize(("index", "name"), [(0, "medical"), (1, "medical"), (2, "legal"), ([3, 0], "legal")])
def test_a_click_explains_that_answer(tab, index, name):
    replies = replies_of(tab, ASK, "a contract")
    panel, _, labels = tab.look_at(normalised(ASK, "a", "a contract", "b"), replies, SimpleNamespace(index=index))
    assert f"<span>{name}</span></h3>" in panel
    assert "border-left-color" in labels


def test_a_click_that_means_nothing_changes_nothing(tab):
    assert tab.look_at(normalised(ASK), [], SimpleNamespace(index=0)) == (SKIP, SKIP, SKIP)
    assert tab.look_at([], [], SimpleNamespace(index=7)) == (SKIP, SKIP, SKIP)


def test_a_starter_is_sent(tab):
    event = SimpleNamespace(value={"text": STARTERS[0][0]})
    chat, *_ = merged(tab.start_with([], [], event, "automatic", *KNOBS))
    assert texts(chat)[0] == STARTERS[0][0]


def test_clear_starts_again(tab):
    _, panel, _, _, replies = tab.cleared()
    assert "Who will answer?" in panel
    assert replies == []


def test_new_lobes_are_offered_and_a_deleted_choice_is_left(tab):
    dropdown, panel, _ = tab.refresh("lobe:medical", [])
    assert dropdown["value"] == "lobe:medical"
    assert "6 lobes" in panel
    tab.studio.delete("medical")
    dropdown, panel, _ = tab.refresh("lobe:medical", replies_of(tab, ASK))
    assert dropdown["value"] == "automatic"
    assert ("Always legal", "lobe:legal") in dropdown["choices"]
    assert panel == SKIP


def test_choices():
    assert [value for _, value in choices([("a", "#000000")])] == ["automatic", "base", "mix", "lobe:a"]
    assert [value for _, value in choices([])] == ["automatic", "base"]


def test_any_history_becomes_plain():
    assert plain(None) == []
    strange = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "file", "file": {}}, "b"]},
        {"role": "x", "content": None},
    ]
    assert plain(strange) == [{"role": "user", "content": "ab"}, {"role": "user", "content": ""}]


def test_two_people_do_not_mix(tab):
    one = tab.send(ASK, [], [], "automatic", *KNOBS)
    two = tab.send("a contract", [], [], "automatic", *KNOBS)
    shown = [merged([step]) for pair in zip(one, two, strict=False) for step in pair]
    assert {len(s[0]) for s in shown if s[0]} == {1, 2}
    assert {s[5][0].decision.chosen for s in shown[::2] if s[5]} == {"medical"}
    assert {s[5][0].decision.chosen for s in shown[1::2] if s[5]} == {"legal"}


# ---- routing ---------------------------------------------------------------------------------------------------------


def routing(router="hybrid", mode="auto", k=2, **weights):
    """What `RoutingRow.inputs` would hold."""
    return (router, mode, k, list(weights), *[*weights.values(), *[0] * 12][:12])


@pytest.mark.parametrize(("mode", "count"), [("auto", 6), ("top_1", 1), ("top_k", 3), ("soft", 6)])
def test_a_router_and_a_mixing_mode_are_handed_on(tab, mode, count):
    *_, replies = merged(tab.send(ASK, [], [], "automatic", *KNOBS, *routing("keyword", mode, 3)))
    _, (*_, router, mixing, _) = tab.studio.calls[0]
    assert (router, mixing.mode, mixing.k) == ("keyword", mode, 3)
    assert replies[0].decision.router == "keyword"
    assert 1 <= len(replies[0].decision.weights) <= count


def test_a_mix_by_hand_is_answered_with_its_weights(tab):
    *_, labels, replies = merged(
        tab.send(ASK, [], [], "mix", *KNOBS, *routing(python=0.5, maths=0.4, legal=0, sentiment=0.1))
    )
    assert tab.studio.calls[0][1][-1] == {"python": 0.5, "maths": 0.4, "sentiment": 0.1}
    assert replies[0].decision.chosen == "python"
    for words in ("python 50", "maths 40", "sentiment 10"):
        assert words in labels


@pytest.mark.parametrize(
    ("choice", "values", "said"),
    [
        ("mix", routing(python=0), "All weights are zero"),
        ("mix", routing(python=7), "from 0 to 1"),
        ("automatic", routing(mode="all"), "must be one of"),
        ("automatic", routing(k="x"), "must be a number"),
        ("automatic", routing(router="nobody"), "no router"),
        ("mix", routing(nobody=0.5), "no lobe called"),
    ],
)
def test_odd_routing_is_said_so(tab, choice, values, said):
    with pytest.warns(UserWarning, match=said):
        chat, *_ = merged(tab.send(ASK, [], [], choice, *KNOBS, *values))
    assert chat == []


def test_weights_left_on_the_sliders_count_for_nothing_elsewhere(tab):
    merged(tab.send(ASK, [], [], "automatic", *KNOBS, *routing(python=0.5)))
    assert tab.studio.calls[0][1][-1] == {}


def test_tokens_are_shown_where_a_router_weighs_them(tab):
    job = tab.studio.fit_router("xlora")
    tab.studio.advance(job.id, 999)
    steps = list(tab.send(ASK, [], [], "automatic", *KNOBS, *routing("xlora")))
    tokens = merged(steps)[3]
    assert tokens["visible"] and "vaccine" in tokens["value"] and "data:image/png;base64," in tokens["value"]
    drawn = [step[3] for step in steps[1:] if step[3] != SKIP]
    assert 1 <= len(drawn) < len(steps) - 1, "drawn now and then, not at every token"
    reply = merged(steps)[5][0]
    assert len(reply.trace) == 12
    assert sum(reply.weights.values()) == pytest.approx(1, abs=0.01)
    panel, again, _ = tab.look_at(normalised(ASK, "a"), [reply], SimpleNamespace(index=1))
    assert again == tokens and "the mean over the answer&#39;s 12 tokens and all layers" in panel


def test_only_the_latest_answers_remember_their_tokens(tab, monkeypatch):
    monkeypatch.setattr("multilobe_ui.ui.chat.answering.MOST_TRACES", 1)
    tab.studio.advance(tab.studio.fit_router("xlora").id, 999)
    replies = []
    for n in range(3):
        history = normalised(*["x"] * 2 * n)
        replies = merged(tab.send(ASK, history, replies, "automatic", *KNOBS, *routing("xlora")))[5]
    assert [bool(reply.trace) for reply in replies] == [False, True, True]


def test_wiring_is_private_and_an_answer_can_be_cancelled():
    tab = ChatTab(FakeStudio(6))
    with gr.Blocks() as page:
        tab.build()
        tab.follow(page.load)
    functions = list(page.fns.values())
    assert all(f.api_visibility == "private" for f in functions if f.fn is not None)
    answering = {f._id for f in functions if f.concurrency_id == "chat"}
    assert len(answering) == 4
    cancelled = [set(f.cancels) for f in functions if f.cancels]
    assert answering in cancelled


def test_an_answer_that_came_back_half_drawn_counts_as_it_was_given(tab):
    chat, *_, replies = merged(tab.send(ASK, [], [], "automatic", *KNOBS))
    answer = texts(chat)[1]
    half = normalised(ASK, answer[:11])
    chat, *_ = merged(tab.send("Good morning", half, replies, "automatic", *KNOBS))
    assert texts(chat)[1] == answer
    assert [m["content"] for m in tab.studio.calls[-1][1][0]] == [ASK, answer, "Good morning"]
    assert texts(half)[1][0]["text"] == answer[:11]  # what the browser sent is not written to
