"""Feedback: what was said is kept whole, later words count, and both exports read back where they are to be used."""

from __future__ import annotations

import json
import multiprocessing
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from test_model import TOPICS, WordEmbedder

from multilobe_ui.app.feedback import Counts, Feedback, Thumb, Vote, Voted
from multilobe_ui.app.studio import Studio
from multilobe_ui.data import dataset
from multilobe_ui.errors import ConfigError, DataError
from multilobe_ui.evaluation.labelled import read_labelled
from multilobe_ui.routing.decision import manual_decision

BASE = {"choice": "base", "lobe": None, "text": "I do not know."}
PYTHON = {"choice": "lobe:python", "lobe": "python", "text": "Use a list."}
MATHS = {"choice": "automatic", "lobe": "maths", "text": "Divide by two."}
MIXED = {"choice": "mix", "lobe": "python", "text": "Use half a list."}


@pytest.fixture
def feedback(tmp_path: Path) -> Feedback:
    return Feedback(tmp_path / "feedback.jsonl")


# ---- keeping ---------------------------------------------------------------------------------------------------------------


def test_nothing_has_been_said_yet(feedback: Feedback) -> None:
    assert (feedback.opinions(), feedback.counts(), feedback.routing_rows(), feedback.training_rows()) == ([], Counts(), [], [])
    assert not feedback.path.exists()


def test_opinions_come_back_in_order_and_from_another_object(feedback: Feedback) -> None:
    feedback.thumb("How?", "So.", "python", True)
    feedback.vote("Why?", [BASE, PYTHON], 1)
    feedback.vote("Why?", [BASE, MATHS], None)
    expected = [
        Thumb("How?", "So.", "python", True),
        Vote("Why?", (Voted(**BASE), Voted(**PYTHON)), 1),
        Vote("Why?", (Voted(**BASE), Voted(**MATHS)), None),
    ]
    assert feedback.opinions() == Feedback(feedback.path).opinions() == expected
    assert feedback.counts() == Counts(votes=2, thumbs=1, damaged=0)
    lines = [json.loads(line) for line in feedback.path.read_text("utf-8").splitlines()]
    assert list(lines[0]) == ["time", "prompt", "answer", "lobe", "liked"]  # as the first version wrote them
    assert list(lines[1]) == ["kind", "time", "prompt", "answers", "best"] and lines[1]["answers"] == [BASE, PYTHON]
    assert not any("owner" in line for line in lines)


def test_lines_of_the_first_version_are_read(feedback: Feedback) -> None:
    old = {"time": "2026-05-01T10:00:00+00:00", "prompt": "Hi", "answer": "Hello", "lobe": None, "liked": False}
    feedback.path.write_text(json.dumps(old) + "\n", "utf-8")
    assert feedback.opinions() == [Thumb("Hi", "Hello", None, False)]


@pytest.mark.parametrize(
    "text", ["two\nlines\r\nand \u2028 more \x85", "中文 😀 <b>", 'quotes " and \\ and \0', "half a pair \ud83d of signs"]
)
def test_any_text_is_kept(feedback: Feedback, text: str) -> None:
    feedback.thumb(text, text, text, True)
    feedback.vote(text, [{**BASE, "text": text}, PYTHON], 0)
    kept = text.encode("utf-8", "replace").decode()
    assert feedback.opinions()[0] == Thumb(kept, kept, kept, True) and feedback.counts() == Counts(1, 1, 0)


@pytest.mark.parametrize(
    ("answers", "best"),
    [
        ([BASE], 0),
        ([BASE] * 5, 0),
        ([BASE, PYTHON], 2),
        ([BASE, PYTHON], -1),
        ([BASE, PYTHON], True),
        ([BASE, PYTHON], 0.0),
        ([BASE, {**PYTHON, "text": None}], 0),
        ([BASE, {**PYTHON, "lobe": 3}], 0),
        ([BASE, {**PYTHON, "text": "x" * 200_001}], 0),
        ([BASE, {}], None),
    ],
)
def test_what_is_no_vote_is_refused(feedback: Feedback, answers: Any, best: Any) -> None:
    with pytest.raises(ConfigError, match="vote"):
        feedback.vote("Why?", answers, best)
    assert not feedback.path.exists()


def test_damaged_lines_are_passed_over_and_counted(feedback: Feedback) -> None:
    feedback.thumb("one", "1", "python", True)
    bad: list[bytes] = [
        b"{", b"[]", b"\xff\xfe", b'{"prompt": 1, "answer": "a", "lobe": null, "liked": true}', b"[" * 100_000, b"1" * 5000,
        b'{"prompt": "p", "answer": "a", "lobe": null, "liked": 1}', b'{"kind": "vote", "prompt": "p", "answers": {}, "best": 0}',
        b'{"kind": "poll", "prompt": "p", "answer": "a", "lobe": null, "liked": true}', b'{"prompt": "p"}', b"null",
    ]  # fmt: skip
    with feedback.path.open("ab") as file:
        file.write(b"\n".join([*bad, b"", b'{"prompt": "half a li']))
    feedback.thumb("two", "2", None, True)  # begins a line of its own
    assert [one.prompt for one in feedback.opinions()] == ["one", "two"]
    assert feedback.counts() == Counts(0, 2, len(bad) + 1)


def shout(path: str, name: str) -> None:
    feedback = Feedback(Path(path))
    for i in range(40):
        feedback.thumb(f"{name} {i}", name * 5000, "python", True)


def test_threads_and_processes_do_not_spoil_each_others_lines(feedback: Feedback) -> None:
    fork = multiprocessing.get_context("spawn")
    others = [fork.Process(target=shout, args=(str(feedback.path), name)) for name in "ab"]
    threads = [threading.Thread(target=shout, args=(str(feedback.path), name)) for name in "cd"]
    threads += [threading.Thread(target=lambda i=i: feedback.thumb(f"e {i}", "e", None, True)) for i in range(20)]
    for each in (*others, *threads):
        each.start()
    for each in (*others, *threads):
        each.join()
    found = {one.prompt for one in feedback.opinions()}
    assert feedback.counts() == Counts(0, 180, 0) and len(found) == 180


# ---- rows ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What is said, and the labels that follow from it."""

    say: Callable[[Feedback], object]
    labels: dict[str, str | None]


CASES = {
    "a liked answer of a lobe": Case(lambda f: f.thumb("P", "a", "python", True), {"P": "python"}),
    "a liked answer of the base": Case(lambda f: f.thumb("P", "a", None, True), {}),
    "a thumb down": Case(lambda f: f.thumb("P", "a", "python", False), {}),
    "a lobe wins": Case(lambda f: f.vote("P", [BASE, MATHS], 1), {"P": "maths"}),
    "the base wins": Case(lambda f: f.vote("P", [BASE, MATHS], 0), {"P": None}),
    "a mixture wins": Case(lambda f: f.vote("P", [MIXED, MATHS], 0), {}),
    "no difference": Case(lambda f: f.vote("P", [BASE, MATHS], None), {}),
    "a later vote wins": Case(
        lambda f: (f.thumb("P", "a", "python", True), f.vote("p  ", [BASE, MATHS], 1)), {"p  ": "maths"}
    ),
    "a later thumb wins": Case(
        lambda f: (f.vote("P", [BASE, MATHS], 0), f.thumb("P", "a", "python", True)), {"P": "python"}
    ),
    "taken back": Case(lambda f: (f.vote("P", [BASE, MATHS], 1), f.thumb("P", "b", "maths", False)), {}),
    "another lobe's thumb down": Case(
        lambda f: (f.vote("P", [BASE, MATHS], 1), f.thumb("P", "b", "python", False)), {"P": "maths"}
    ),
    "the base's thumb down": Case(lambda f: (f.vote("P", [BASE, MATHS], 0), f.thumb("P", "b", None, False)), {"P": None}),
    "a tie afterwards": Case(lambda f: (f.vote("P", [BASE, MATHS], 1), f.vote("P", [BASE, PYTHON], None)), {"P": "maths"}),
    "an empty prompt": Case(lambda f: f.thumb("  ", "a", "python", True), {}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_opinions_say_of_routing(feedback: Feedback, case: Case) -> None:
    case.say(feedback)
    assert feedback.routing_rows() == [{"input": prompt, "lobe": lobe} for prompt, lobe in case.labels.items()]


def test_rows_of_lobes_that_are_gone_can_be_left_out(feedback: Feedback) -> None:
    for prompt, lobe in (("a", "python"), ("b", "gone"), ("c", "MATHS")):
        feedback.thumb(prompt, "x", lobe, True)
    feedback.vote("d", [BASE, PYTHON], 0)
    rows = feedback.routing_rows(["python", "maths"])
    assert [(row["input"], row["lobe"]) for row in rows] == [("a", "python"), ("c", "maths"), ("d", None)]


def test_training_rows_by_hand(feedback: Feedback) -> None:
    feedback.thumb("P", "good", "python", True)
    feedback.thumb("P", "good", "python", True)  # said twice is there once
    feedback.thumb("P", "bad", "python", False)
    feedback.thumb("P", "regretted", "maths", True)
    feedback.thumb("P", "regretted", "maths", False)
    feedback.thumb("Q", "from the base", None, True)
    feedback.thumb("Q", " ", "python", True)
    feedback.vote("Q", [BASE, MIXED, MATHS], 2)
    feedback.vote("R", [BASE, MIXED], 1)
    feedback.vote("S", [BASE, PYTHON], None)
    rows = [(row["input"], row["output"]) for row in feedback.training_rows()]
    assert rows == [("P", "good"), ("Q", "from the base"), ("Q", "Divide by two."), ("R", "Use half a list.")]
    assert feedback.training_rows("Maths") == [{"input": "Q", "output": "Divide by two."}]


# ---- exports ---------------------------------------------------------------------------------------------------------------


def test_exports_read_back_where_they_are_used(feedback: Feedback, tmp_path: Path) -> None:
    odd = "a\u2028b\n中文 \"q\""
    feedback.thumb(odd, f"So: {odd}", "python", True)
    feedback.vote("Why?", [BASE, MATHS], 0)
    feedback.vote("Where?", [BASE, MATHS], 1)
    feedback.thumb("When?", "x", "gone", True)
    routing, training = tmp_path / "out.jsonl", tmp_path / "rows.jsonl"
    assert feedback.export("routing", routing, ["python", "maths"]) == 3
    labelled = read_labelled([("out.jsonl", routing)], ["python", "maths"])
    assert [(row.prompt, row.lobe) for row in labelled] == [(odd, "python"), ("Why?", None), ("Where?", "maths")]
    assert feedback.export("training", training) == 4
    assert [(row.prompt, row.answer) for row in dataset.load(training)] == [
        (odd, f"So: {odd}"), ("Why?", BASE["text"]), ("Where?", MATHS["text"]), ("When?", "x"),
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["feedback.jsonl", "out.jsonl", "rows.jsonl"]


def test_exports_that_cannot_be(feedback: Feedback, tmp_path: Path) -> None:
    for kind in ("routing", "training"):
        with pytest.raises(DataError, match="no feedback to export"):
            feedback.export(kind, tmp_path / "out.jsonl")
    with pytest.raises(ConfigError, match="routing, training"):
        feedback.export("everything", tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


# ---- in the studio ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_studio(base_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Studio]:
    monkeypatch.setattr("multilobe_ui.model.Embedder", lambda *a: WordEmbedder())

    def make(**options: Any) -> Studio:
        studio = Studio(tmp_path / "home", str(base_folder()), **options)
        studio.start()
        studio.ready(60)
        return studio

    return make


def test_the_studio_keeps_thumbs_and_votes_in_one_file(make_studio: Callable[..., Studio]) -> None:
    studio = make_studio()
    name = next(iter(TOPICS))
    studio.feedback("cat dog", "Woof.", manual_decision({name: 1.0}, [name]), True)
    studio.feedback("cat", "Meow.", None, False)
    studio.lab.vote("red", [{**BASE, "text": "Blue."}, {**PYTHON, "text": "Green."}], 0)
    assert studio.lab.feedback_counts() == Counts(1, 2, 0) == Feedback(studio.home / "feedback.jsonl").counts()
    path = studio.desk().lab.export_feedback("training")
    assert [(row.prompt, row.answer) for row in dataset.load(path)] == [("cat dog", "Woof."), ("red", "Blue.")]
    labelled = studio.desk().lab.export_feedback("routing")  # no lobe of this name is here: only the base's win is left
    assert [(row.prompt, row.lobe) for row in read_labelled([("x.jsonl", labelled)], [])] == [("red", None)]
    with pytest.raises(ConfigError, match="routing, training"):
        studio.desk().lab.export_feedback("../../etc")
    studio.close()


def test_a_shared_server_takes_votes_and_hands_nothing_out(make_studio: Callable[..., Studio]) -> None:
    studio = make_studio(shared=True)
    studio.lab.vote("red", [BASE, PYTHON], 0)
    assert studio.lab.feedback_counts().votes == 1
    for kind in ("routing", "training"):
        with pytest.raises(ConfigError, match="shared"):
            studio.desk().lab.export_feedback(kind)
    studio.close()
