"""What answers cost: sums against pandas, files that are torn or large, and the studio's answers in it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from test_studio import finish, make_studio, train  # noqa: F401

from multilobe_ui.app import ledger as module
from multilobe_ui.app.lab_desk import LabDesk
from multilobe_ui.app.ledger import Cost, Ledger
from multilobe_ui.app.visitors import Visitor
from multilobe_ui.errors import ConfigError
from multilobe_ui.settings import SamplingConfig

SECRET = "zebra crossing"


def cost(i: int, router: str = "hybrid", lobes: tuple[str, ...] = ("law",), **more: object) -> Cost:
    made = Cost(
        f"2026-07-01T09:{i % 60:02d}:00+00:00", router, "gate", lobes, 3.0 + i % 7, 20.0 + i, 10 + i, 5 + i % 11, 0.5 + i / 10,
        (5 + i % 11) / (0.5 + i / 10), ("law", "code"), 4_200_000,
    )  # fmt: skip
    return replace(made, **more)


def some(count: int) -> list[Cost]:
    lobes = [("law",), ("code", "law"), (), ("色 / colours",)]
    costs = [cost(i, ("hybrid", "gate", "manual")[i % 3], lobes[i % 4], stopped=i % 5 == 0) for i in range(count)]
    return [replace(one, route_ms=None) if one.router == "manual" else one for one in costs]


def told(costs: list[Cost]) -> dict[str, dict[str, object]]:
    """The totals by pandas."""
    frame = pd.DataFrame([one.to_json() for one in costs])
    found = {}
    for router, own in frame.groupby("router"):
        times = own["route_ms"].dropna().astype(float)
        names = own["lobes"].map(lambda lobes: list(lobes) or [""]).explode()
        found[str(router)] = {
            "replies": len(own),
            "stopped": int(own["stopped"].sum()),
            "prompt_tokens": int(own["prompt_tokens"].sum()),
            "answer_tokens": int(own["answer_tokens"].sum()),
            "seconds": pytest.approx(own["seconds"].sum()),
            "route_ms": pytest.approx(times.median()) if len(times) else None,
            "route_ms_mean": pytest.approx(times.mean()) if len(times) else None,
            "tokens_per_second": pytest.approx(own["answer_tokens"].sum() / own["seconds"].sum()),
            "first_token_ms": pytest.approx(own["first_token_ms"].median()),
            "by_lobe": names.value_counts().to_dict(),
        }
    return found


def test_totals_are_those_of_pandas(tmp_path: Path) -> None:
    ledger, costs = Ledger(tmp_path / "ledger.jsonl"), some(40)
    for i, one in enumerate(costs):
        ledger.add(one)
        if i % 9 == 0:
            assert ledger.totals() == told(costs[: i + 1])  # read while it grows
    assert ledger.totals() == told(costs) == Ledger(tmp_path / "ledger.jsonl").totals()
    assert ledger.recent(3) == costs[:-4:-1] and ledger.recent(0) == [] and len(ledger.recent(100)) == 40
    json.dumps(ledger.totals(), allow_nan=False)


def test_by_hand(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for ms, tokens, seconds in ((2.0, 10, 1.0), (4.0, 0, 0.0), (90.0, 50, 2.0)):
        ledger.add(cost(0, route_ms=ms, answer_tokens=tokens, seconds=seconds, first_token_ms=30.0 if tokens else None))
    (total,) = ledger.totals().values()
    assert (total["route_ms"], total["route_ms_mean"], total["tokens_per_second"]) == (4.0, 32.0, 20.0)
    assert (total["first_token_ms"], total["by_lobe"]) == (30.0, {"law": 3})


def test_no_ledger_yet_and_a_new_beginning(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert (ledger.totals(), ledger.recent()) == ({}, [])
    ledger.clear()
    ledger.add(cost(1))
    ledger.clear()
    assert ledger.totals() == {} and not list(tmp_path.iterdir())
    ledger.add(cost(2))
    assert ledger.recent() == [cost(2)]


@pytest.mark.parametrize("junk", [
    b"{", b"null", b"[]", b'"x"', b"\xff\xfe\x00", b'{"router": "hybrid"}', b"[" * 3000, b'{"folded": "hybrid", "replies": "x"}',
    json.dumps({**cost(1).to_json(), "seconds": float("nan")}).encode(), json.dumps({**cost(1).to_json(), "seconds": -1}).encode(),
    json.dumps({**cost(1).to_json(), "lobes": [3]}).encode(), json.dumps({**cost(1).to_json(), "answer_tokens": True}).encode(),
])  # fmt: skip
def test_damaged_lines_are_skipped(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.add(cost(1))
    path.write_bytes(path.read_bytes() + junk + b"\n\n")
    ledger.add(cost(2))
    path.write_bytes(path.read_bytes() + junk)  # half a line, as of a process that was killed
    assert Ledger(path).recent() == ledger.recent() == [cost(2), cost(1)]
    ledger.add(cost(3))
    assert Ledger(path).recent() == ledger.recent() == [cost(3), cost(2), cost(1)]


def test_a_large_file_is_folded_and_its_sums_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 20_000)
    ledger, costs = Ledger(tmp_path / "ledger.jsonl"), some(400)
    for one in costs:
        ledger.add(one)
        assert (tmp_path / "ledger.jsonl").stat().st_size < 21_000
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.jsonl"]
    own, wanted = ledger.totals(), told(costs)
    kept = ledger.recent(1000)
    assert 20 < len(kept) < 100 and kept == costs[: -len(kept) - 1 : -1]
    medians = told(kept)
    for router in wanted:
        for name in ("route_ms", "first_token_ms"):  # of those that still have lines
            assert own[router][name] == medians[router][name]
        assert {k: v for k, v in own[router].items() if k not in ("route_ms", "first_token_ms")} == {
            k: v for k, v in wanted[router].items() if k not in ("route_ms", "first_token_ms")
        }


def test_two_threads_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LIMIT", 30_000)
    ledger = Ledger(tmp_path / "ledger.jsonl")

    def note(router: str) -> None:
        for i in range(150):
            ledger.add(cost(i, router))
            ledger.totals()

    threads = [threading.Thread(target=note, args=(name,)) for name in ("gate", "hybrid")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wanted = told([cost(i, name) for name in ("gate", "hybrid") for i in range(150)])
    for router, total in Ledger(tmp_path / "ledger.jsonl").totals().items():
        assert (total["replies"], total["answer_tokens"]) == (150, wanted[router]["answer_tokens"])
        assert total["seconds"] == wanted[router]["seconds"]


def test_what_cannot_be_written_does_not_break_an_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "ledger.jsonl").mkdir()
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.add(cost(1))
    assert ledger.totals() == {} and "was not written" in caplog.text


# ---- in the studio -----------------------------------------------------------------------------------------------------


def ask(studio, text: str = SECRET, choice: str = "automatic", tokens: int = 12, **more: object) -> list:
    sampling = SamplingConfig(max_new_tokens=tokens, do_sample=False)
    return list(studio.chat([{"role": "user", "content": text}], choice, sampling, **more))


def test_every_answer_carries_its_cost_and_is_entered(make_studio: Callable, tmp_path: Path) -> None:  # noqa: F811
    studio = make_studio()
    finish(studio, train(studio, tmp_path, "Animals"))
    events = ask(studio, "cat dog")
    assert [event.cost for event in events[:-1]] == [None] * (len(events) - 1)
    last, found = events[-1], events[-1].cost
    assert (found.router, found.stage) == (last.decision.router, last.decision.stage) and found.lobes == ("Animals",)
    assert (found.prompt_tokens, found.answer_tokens) == (last.prompt_tokens, last.answer_tokens) and found.answer_tokens > 0
    assert found.prompt_tokens == len(studio.loading.model.backbone.encode_chat([{"role": "user", "content": "cat dog"}]))
    assert (found.seconds, found.tokens_per_second) == (last.seconds, last.tokens_per_second)
    assert found.route_ms == last.decision.elapsed_ms and found.first_token_ms == last.first_token_ms
    assert found.resident == ("Animals",) and found.resident_bytes == studio.loading.model.bank.memory.resident_bytes > 0
    assert not found.stopped
    by_hand = ask(studio, "cat dog", "lobe:Animals")[-1].cost
    base = ask(studio, "cat dog", "base")[-1].cost
    assert by_hand.route_ms is None and base.route_ms is None and base.lobes == ()
    assert studio.lab.ledger_recent() == [base, by_hand, found]
    totals = studio.lab.ledger_totals()
    assert totals["manual"]["by_lobe"] == {"": 1, "Animals": 1} and totals["manual"]["route_ms"] is None
    assert totals[found.router]["replies"] == 1
    assert Ledger(studio.home / "ledger.jsonl").totals() == totals


def test_a_stopped_answer_counts(make_studio: Callable) -> None:  # noqa: F811
    studio, stop = make_studio(), threading.Event()
    asked = [{"role": "user", "content": SECRET}]
    long = SamplingConfig(max_new_tokens=90, do_sample=False)
    assert len(ask(studio, tokens=90)[-1].text) > 0
    events = studio.chat(asked, sampling=long, stop=stop)  # stopped by its event
    next(events)
    stop.set()
    last = list(events)[-1]
    assert last.cost.stopped and last.cost.answer_tokens == last.answer_tokens
    closed = studio.chat(asked, sampling=long)  # closed, as Gradio does when Stop is pressed
    next(closed)
    seen = next(closed)
    closed.close()
    unread = studio.chat(asked, sampling=long)  # closed before the first token
    next(unread)
    unread.close()
    studio.chat(asked).close()  # never begun: nothing was done
    third, second, first, whole = studio.lab.ledger_recent()
    assert first == last.cost and not whole.stopped
    assert second.stopped and second.answer_tokens == seen.answer_tokens > 0 and second.prompt_tokens == seen.prompt_tokens
    assert (third.stopped, third.prompt_tokens, third.answer_tokens, third.seconds) == (True, 0, 0, 0.0)
    (total,) = studio.lab.ledger_totals().values()
    assert (total["replies"], total["stopped"]) == (4, 3)


def test_a_refused_question_costs_nothing(make_studio: Callable) -> None:  # noqa: F811
    studio = make_studio()
    with pytest.raises(ConfigError):
        ask(studio, "  ")
    assert studio.lab.ledger_totals() == {}


def test_the_file_has_no_words_and_no_owners(make_studio: Callable) -> None:  # noqa: F811
    studio = make_studio()
    answer = ask(studio)[-1].text
    written = (studio.home / "ledger.jsonl").read_text("utf-8")
    assert answer and answer not in written and not any(word in written for word in SECRET.split())
    assert set(json.loads(written)) == {
        "time", "router", "stage", "lobes", "route_ms", "first_token_ms", "prompt_tokens", "answer_tokens", "seconds",
        "tokens_per_second", "resident", "resident_bytes", "stopped",
    }  # fmt: skip


def test_clearing_is_refused_on_a_shared_server(make_studio: Callable) -> None:  # noqa: F811
    studio = make_studio()
    ask(studio)
    with pytest.raises(ConfigError, match="shared"):
        LabDesk(studio.lab, Visitor("user:anyone", shared=True)).clear_ledger()
    studio.desk().lab.clear_ledger()
    assert studio.lab.ledger_totals() == {} and studio.lab.ledger_recent() == []


def test_generate_tells_its_cost(make_studio: Callable, tmp_path: Path) -> None:  # noqa: F811
    studio = make_studio()
    finish(studio, train(studio, tmp_path, "Animals"))
    model = studio.loading.model
    text, details = model.generate("cat dog", return_metadata=True, max_new_tokens=12, do_sample=False)
    found = details["cost"]
    tokens = ask(studio, "cat dog")[-1].cost
    assert text == ask(studio, "cat dog")[-1].text
    assert (found["prompt_tokens"], found["answer_tokens"]) == (tokens.prompt_tokens, tokens.answer_tokens)
    assert found["resident"] == ["Animals"] and found["route_ms"] == details["decision"].elapsed_ms
    assert found["tokens_per_second"] == pytest.approx(found["answer_tokens"] / found["seconds"])
    assert model.generate("cat", "Animals", return_metadata=True, max_new_tokens=2)[1]["cost"]["route_ms"] is None
    json.dumps(found, allow_nan=False)
