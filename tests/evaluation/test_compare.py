"""Compare: columns of one batch against answers that were made one by one, and where texts part."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from test_model import TOPICS, WordEmbedder, trained

from multilobe_ui.assets import demo_bundle
from multilobe_ui.base.backbone import Backbone
from multilobe_ui.errors import ConfigError, RoutingError
from multilobe_ui.evaluation.compare import WORD, Agreement, Column, Comparison, compare, decide, difference
from multilobe_ui.generation.decode import generate_tokens
from multilobe_ui.model import MultiLobeModel
from multilobe_ui.routing.decision import Mixing
from multilobe_ui.settings import SamplingConfig

FIRST, SECOND, THIRD = TOPICS
GREEDY = SamplingConfig(max_new_tokens=16, do_sample=False)
FOUR = (Column("base"), Column(), Column(f"lobe:{SECOND}"), Column("mix", weights={FIRST: 0.6, THIRD: 0.4}))


@pytest.fixture(scope="module")
def model(base_folder: Callable[..., Path]) -> MultiLobeModel:
    return trained(Backbone.from_pretrained(base_folder(), device="cpu"))


def end(model: MultiLobeModel, prompt: str, columns: Sequence[Column], sampling: SamplingConfig = GREEDY) -> Comparison:
    return list(compare(model, prompt, columns, sampling))[-1]


def alone(model: MultiLobeModel, prompt: str, column: Column, sampling: SamplingConfig = GREEDY) -> list[int]:
    """A column's tokens from a run of its own, a batch of one."""
    messages = [{"role": "user", "content": prompt}]
    request = model.answers.request(messages, decide(model, messages, column), sampling, mixing=column.mixing)
    return [token for (token,) in generate_tokens(model.bank, [request]) if token is not None]


def apart(model: MultiLobeModel, prompt: str, columns: Sequence[Column]) -> list[list[int]]:
    return [alone(model, prompt, column) for column in columns]


@pytest.mark.parametrize("prompt", ["cat dog", "red one", "What do a horse and a yellow seven have in common?"])
def test_four_columns_equal_four_runs_token_for_token(model: MultiLobeModel, prompt: str) -> None:
    last = end(model, prompt, FOUR)
    assert [list(answer.ids) for answer in last.columns] == apart(model, prompt, FOUR)
    assert len({answer.ids for answer in last.columns}) > 2  # the lobes do answer otherwise
    assert [answer.text for answer in last.columns] == [
        model.backbone.decode(list(answer.ids)).strip() for answer in last.columns
    ]
    whole = model.generate(prompt, weights={FIRST: 0.6, THIRD: 0.4}, max_new_tokens=16, do_sample=False)
    assert last.columns[3].text == whole and all(answer.tokens > 1 for answer in last.columns)


def test_token_routers_run_beside_the_others_and_equal_their_own_runs(model: MultiLobeModel) -> None:
    soft = Column(router="arrow", mixing=Mixing("soft"))
    columns = (Column("base"), soft, Column(router="arrow"), soft)
    last = end(model, "cat dog", columns)
    assert [answer.decision.per_token for answer in last.columns] == [False, True, True, True]
    assert [list(answer.ids) for answer in last.columns] == apart(model, "cat dog", columns)
    assert last.columns[1].ids == last.columns[3].ids != last.columns[0].ids


def test_batches_of_token_routers_go_in_lockstep(model: MultiLobeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multilobe_ui.evaluation.compare.EVENT_SECONDS", 0.0)
    columns = (Column("base"), Column(router="arrow", mixing=Mixing("soft")), Column(f"lobe:{FIRST}"))
    events = list(compare(model, "cat dog", columns, GREEDY))
    ends = [len(ids) for ids in apart(model, "cat dog", columns)]
    for step, event in enumerate(events[:-1]):
        assert [answer.tokens for answer in event.columns] == [min(step, end) for end in ends]
    assert len(events) > 3


def test_a_column_that_ends_does_not_change_the_others(model: MultiLobeModel) -> None:
    backbone, before = model.backbone, model.backbone.stop_ids
    whole = apart(model, "cat dog", FOUR)
    lengths = set()
    try:
        for column, place in ((0, 0), (0, 3), (2, 5), (3, 1)):
            token = whole[column][place]
            backbone.stop_ids = frozenset({*before, token})
            expected = [ids[: ids.index(token)] if token in ids else ids for ids in whole]
            last = end(model, "cat dog", FOUR)
            assert [list(answer.ids) for answer in last.columns] == expected == apart(model, "cat dog", FOUR)
            assert all(answer.done for answer in last.columns)
            lengths |= {tuple(map(len, expected))}
    finally:
        backbone.stop_ids = before
    assert any(len(set(each)) > 1 for each in lengths)  # some did end before the others


def test_one_seed_for_all_columns(model: MultiLobeModel) -> None:
    warm = SamplingConfig(max_new_tokens=16, temperature=1.5, top_p=1.0)
    twins = (Column("base"), Column(f"lobe:{FIRST}"), Column("base"), Column("mix", weights={FIRST: 1.0}))
    last = end(model, "cat dog", twins, warm)
    assert last.seed is not None and last.columns[0].ids == last.columns[2].ids and last.columns[1].ids == last.columns[3].ids
    again = end(model, "cat dog", twins, replace(warm, seed=last.seed))
    assert [answer.ids for answer in again.columns] == [answer.ids for answer in last.columns]
    assert [list(answer.ids) for answer in again.columns] == [
        alone(model, "cat dog", c, replace(warm, seed=last.seed)) for c in twins
    ]
    assert end(model, "cat dog", twins, replace(warm, seed=last.seed + 1)).columns[0].ids != last.columns[0].ids
    assert end(model, "cat dog", twins).seed is None


def test_what_each_event_says(model: MultiLobeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multilobe_ui.evaluation.compare.EVENT_SECONDS", 0.0)
    events = list(compare(model, "cat dog", FOUR, GREEDY))
    assert [answer.text for answer in events[0].columns] == [""] * 4 and not events[0].done
    assert [answer.decision.chosen for answer in events[0].columns] == [None, FIRST, SECOND, FIRST]
    assert [answer.decision.router for answer in events[0].columns] == ["manual", "hybrid", "manual", "manual"]
    assert events[0].columns[1].decision.elapsed_ms > 0
    for earlier, later in pairwise(events[:-1]):
        # what has ended loses the white space at its end
        assert all(b.text.startswith(a.text.rstrip()) for a, b in zip(earlier.columns, later.columns, strict=True))
    assert [event.done for event in events] == [False] * (len(events) - 1) + [True]
    last = events[-1]
    assert all(answer.done and answer.tokens_per_second > 0 for answer in last.columns) and not last.stopped
    assert events[0].agreement == () and last.agreement[0] == Agreement()
    assert last.agreement == tuple(difference(last.columns[0].text, answer.text) for answer in last.columns)
    assert last.prompt_tokens == len(model.backbone.encode_chat([{"role": "user", "content": "cat dog"}]))


def test_it_can_be_stopped_and_closed(model: MultiLobeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("multilobe_ui.evaluation.compare.EVENT_SECONDS", 0.0)
    stop = threading.Event()
    events = []
    for event in compare(model, "cat dog", FOUR, GREEDY, stop):
        events.append(event)
        if len(events) == 4:
            stop.set()
    whole = apart(model, "cat dog", FOUR)
    assert events[-1].stopped and events[-1].done and events[-1].agreement
    assert [list(answer.ids) for answer in events[-1].columns] == [ids[:3] for ids in whole]
    going = compare(model, "cat dog", FOUR, GREEDY)
    next(going), next(going)
    going.close()  # type: ignore[attr-defined]
    assert end(model, "cat dog", FOUR[:1]).columns[0].done


@pytest.mark.parametrize(
    ("prompt", "columns", "error", "words"),
    [
        ("cat", (), ConfigError, "columns is 0"),
        ("cat", (Column(),) * 5, ConfigError, "1 to 4"),
        ("  ", (Column(),), ConfigError, "nothing to answer"),
        ("cat", (Column("all"),), ConfigError, "choice is 'all'"),
        ("cat", (Column("base"), Column("lobe:Nobody")), RoutingError, "Nobody"),
        ("cat", (Column("mix", weights={"Nobody": 1.0}),), RoutingError, "Nobody"),
        ("cat", (Column("mix", weights={FIRST: float("nan")}),), RoutingError, "finite"),
        ("cat", (Column(router="dice"),), ConfigError, "no router 'dice'"),
    ],
)
def test_what_cannot_be_compared(
    model: MultiLobeModel, prompt: str, columns: Sequence[Column], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        list(compare(model, prompt, columns, GREEDY))


def test_without_lobes_all_columns_are_the_base(backbone: Backbone) -> None:
    empty = MultiLobeModel(backbone, embedder=WordEmbedder())
    last = end(empty, "cat dog", (Column("base"), Column()))
    assert last.columns[0].ids == last.columns[1].ids and last.agreement == (Agreement(), Agreement())


# ---- differences -----------------------------------------------------------------------------------------------------------


def marked(first: str, text: str) -> list[str]:
    return [text[a:b] for a, b in difference(first, text).marks]


def test_differences_by_hand() -> None:
    assert difference("A cat sat.", "A cat sat.") == Agreement(None, ())
    assert difference("A cat sat.", "A dog sat.") == Agreement(2, ((2, 5),))
    assert marked("A cat sat.", "The old dog sat still.") == ["The old dog", "still"]
    assert difference("A cat sat on the mat.", "A cat sat.") == Agreement(9, ())  # what is missing cannot be marked
    assert difference("A cat", "A cat sat") == Agreement(5, ((6, 9),))
    assert difference("", "Hi") == Agreement(0, ((0, 2),)) and difference("Hi", "") == Agreement(0, ())
    assert difference("a  b", "a b") == Agreement(2, ())  # white space is no word
    assert marked("猫が好きです", "犬が好きです") == ["犬"]
    assert marked("f(x) = 1", "f(y) = 1") == ["y"]


def test_marks_hold_every_word_that_was_changed_in_a_random_text() -> None:
    dice = random.Random(5)
    for _ in range(60):
        words = [dice.choice(["alpha", "beta", "1", "2", ",", "."]) for _ in range(dice.randrange(1, 400))]
        other = [f"new{i}" if dice.random() < 0.2 else word for i, word in enumerate(words)]
        first, text = " ".join(words), " ".join(other)
        found = difference(first, text)
        inside = {w[0] for a, b in found.marks for w in WORD.finditer(text[a:b])}
        assert {word for word in other if word.startswith("new")} <= inside
        assert list(found.marks) == sorted(found.marks) and all(0 <= a < b <= len(text) for a, b in found.marks)
        if found.leaves is not None:
            assert first[: found.leaves] == text[: found.leaves] and first[found.leaves] != text[found.leaves]


# ---- the real base ---------------------------------------------------------------------------------------------------------


@pytest.mark.builtin
def test_demo_lobes_in_one_batch_equal_four_runs_token_for_token(builtin: Backbone) -> None:
    model = MultiLobeModel(builtin)
    model.load_bundle(demo_bundle())
    columns = (
        Column("base"), Column(), Column("lobe:medical"), Column("mix", weights={"python": 0.6, "maths": 0.4}),
    )  # fmt: skip
    sampling = SamplingConfig(max_new_tokens=32, do_sample=False)
    for prompt in ("How do I read a file line by line?", "Write Python code to solve quadratic equations"):
        last = end(model, prompt, columns, sampling)
        assert [list(answer.ids) for answer in last.columns] == [alone(model, prompt, c, sampling) for c in columns]
        assert len({answer.ids for answer in last.columns}) >= 3 and last.agreement[0] == Agreement()
