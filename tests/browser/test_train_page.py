"""Training in the real app and a real browser. The conftest beside it says what holds at any time."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import expect
from uploads import file, rows, zipped
from visitor import DEMO, INSULIN, TRAINED, App, Visit, Visitor, until

pytestmark = [pytest.mark.browser, pytest.mark.builtin]

ODD_NAME = "🧪 试验.v1.0 <b>x</b>"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
GOOD = b'{"input": "a", "output": "b"}\n'
BAD_DATA: tuple[tuple[str, bytes, str], ...] = (
    ("empty.jsonl", b"", "empty.jsonl is empty"),
    ("blank.csv", b"  \n \n", "blank.csv is empty"),
    ("../../etc/passwd.jsonl", b"", "passwd.jsonl is empty"),
    ("<img src=x onerror=alert(1)>.jsonl", b"", "is empty"),
    ("picture.jsonl", PNG, "picture.jsonl is a PNG image"),
    ("table.csv", zipped({"a.txt": b"a"}), "table.csv is a ZIP or Excel file"),
    ("paper.txt", b"%PDF-1.7\n...", "paper.txt is a PDF"),
    ("packed.jsonl", b"\x1f\x8b\x08\x00\x00", "packed.jsonl is gzip"),
    ("nul.csv", b"input,output\na\0b,c\n", "binary (NUL bytes)"),
    ("late_nul.csv", b"input,output\n" + b"a,b\n" * 20_000 + b"a\0b,c\n", "the line holds NUL bytes"),
    ("scalar.json", b"42", "42"),
    ("numbers.json", b"[1, 2, 3]", "not an object with columns"),
    ("nothing.json", b"[]", "nothing.json has no rows"),
    ("object.json", b'{\n "input": "a",\n "output": "b"\n}', "is one JSON object over many lines"),
    ("columns.jsonl", b'{"foo": "a", "bar": "b"}\n', "has columns we do not know: foo, bar"),
    ("broken.jsonl", GOOD * 2 + b'{"input": "c", "output": \n' + GOOD, "line 3 not valid JSON"),
    ("bad.jsonl", b'{"input": "a", "output": ""}\n' * 3, "No row can be used"),
    ("header.csv", b"input,output\n", "has no rows, only a header"),
    ("latin1.csv", "input,output\ncafé,Müll\n".encode("latin-1"), "is not valid UTF-8"),
    ("twice.csv", b"input,input,output\na,b,c\n", "has the column 'input' twice"),
    ("quote.csv", b'input,output\n"never closed,b\nc,d\n', "broken quotes"),
    ("fields.csv", b"input,output\na,b,c,d\n", "4 fields under 2 columns"),
    ("cut.parquet", b"PAR1" + bytes(100), "is a damaged Parquet file"),
    ("deep.json", b"[" * 100_000, "line 1"),
    ("long.jsonl", json.dumps({"input": "a" * 1_000_001, "output": "b"}).encode(), "longer than 1,000,000 characters"),
    ("silent.jsonl", b'{"messages": [{"role": "user", "content": "Hi"}]}\n', "must end with the assistant's message"),
    ("robot.jsonl", b'{"messages": [{"role": "robot", "content": "Hi"}]}\n', "has the role 'robot'"),
    ("text.jsonl", b'{"messages": "Hi"}\n', "must be a list of messages, not text"),
)  # fmt: skip


def step_of(visitor: Visitor) -> int:
    found = re.search(r"step ([\d,]+) of", visitor.on("#train-status").inner_text())
    return int(found[1].replace(",", "")) if found else 0


def start_training(visitor: Visitor, name: str, epochs: int) -> None:
    visitor.on("#train-name textarea").fill(name)
    box = visitor.on("#train-epochs textarea")
    box.fill(str(epochs))
    box.press("Tab")
    visitor.on("#train-start").click()
    visitor.toast("has been started")
    visitor.sees("#train-card .train-title", name)


def stopped(visitor: Visitor) -> None:
    expect(visitor.on("#train-card .train-pill")).to_have_text("Stopped", timeout=TRAINED * 1000)


def test_train_watch_reload_stop_resume_and_use(visit: Visit, app: App) -> None:
    first = visit()
    first.tab("Train")
    first.upload("#train-file", file("Wörter.v2 (final).jsonl", rows(38) + rows(2)))
    report = first.on("#train-report")
    first.sees("#train-report", "input / output")
    assert re.search(r"Rows\s+40\s+Format\s+JSON lines", report.inner_text())
    assert re.search(r"Duplicates\s+2\s+left out\s+Bad rows\s+0", report.inner_text())
    first.sees("#train-report", "The word of number 3 is daisy.")
    first.sees("#train-plan", "All 38 rows are trained, because")
    first.sees("#train-lengths", re.compile(r"Rows have \d+ to \d+ tokens"))
    first.on("#train-settings .label-wrap").click()
    start_training(first, ODD_NAME, 1000)  # far longer than the test looks at it

    expect(first.on("#train-plot .main-svg").first).to_be_visible()
    expect(first.on("#train-plot path.js-line").first).to_be_attached()
    seen = until("the first step", lambda: step_of(first))
    until("the step counter moves", lambda: step_of(first) > seen)
    first.sees("#status", ODD_NAME[:8])

    first.open()  # a reload
    first.tab("Train")
    first.sees("#train-card .train-title", ODD_NAME)
    expect(first.on("#train-plot path.js-line").first).to_be_attached()
    assert until("the step counter is there again", lambda: step_of(first)) > seen

    second = visit()
    second.tab("Train")
    second.sees("#train-card .train-title", ODD_NAME)
    expect(second.on("#train-plot path.js-line").first).to_be_attached()
    second.tab("Chat")
    assert "blood sugar" in second.ask(INSULIN)
    assert second.chip().startswith("medical")

    first.on("#train-stop").click()
    stopped(first)
    first.sees("#train-card", "What it has learned so far is kept as a lobe.")
    second.tab("Train")
    second.sees("#train-card .train-pill", "Stopped")
    assert ODD_NAME in app.lobes()

    # A second run, as long as about eight seconds of the first: long enough to be stopped, short enough to be finished.
    jobs = [json.loads(path.read_text()) for path in (app.home / "jobs").glob("*/job.json")]
    job = next(job["id"] for job in jobs if job["spec"]["name"] == ODD_NAME)
    status = app.call("train_status", job)
    epochs = max(8, round(8 * status["step"] / status["seconds"] / (status["steps"] / 1000)))
    first.upload("#train-file", file("words.jsonl", rows(40)))
    first.sees("#train-report", "input / output")
    first.on("#train-settings .label-wrap").click()
    start_training(first, "words.v2", min(epochs, 900))
    until("the first step", lambda: step_of(first))
    first.on("#train-stop").click()
    stopped(first)
    shown = re.search(r"Step\s+([\d,]+) / ([\d,]+)", first.on("#train-card").inner_text())
    assert shown and int(shown[1].replace(",", "")) < int(shown[2].replace(",", ""))
    first.on("#train-resume").click()
    expect(first.on("#train-card .train-pill")).to_have_text("Finished", timeout=TRAINED * 1000)
    assert re.search(rf"Step\s+{shown[2]} / {shown[2]}", first.on("#train-card").inner_text())
    expect(first.on("#train-plot path.js-line").first).to_be_attached()
    assert first.on("#train-runs .ml-name").all_inner_texts()[:2] == ["words.v2", ODD_NAME]

    second.tab("Chat")  # without a reload
    second.choose("Always words.v2")
    second.set(Temperature=0)
    assert "word of number" in second.ask("Which word belongs to number 3?")
    assert second.chip() == "words.v2"
    second.choose(f"Always {ODD_NAME}")
    second.ask("Which word belongs to number 3?")
    assert second.chip() == re.sub(r"\s+", " ", ODD_NAME)


def test_columns_with_unknown_names_can_be_pointed_at(visitor: Visitor) -> None:
    visitor.tab("Train")
    visitor.upload(
        "#train-file", file("plants.csv", "Frage;Antwort\nWas blüht?;Die Rose.\nUnd jetzt?;Die Aster.\n".encode())
    )
    visitor.sees("#train-report", "has columns we do not know: Frage, Antwort")
    for column, value in (("prompt", "Frage"), ("answer", "Antwort")):
        visitor.on(f"#train-{column}-column input").click()
        visitor.page.get_by_role("option", name=value, exact=True).click()
        expect(visitor.page.get_by_role("option")).to_have_count(0)
    visitor.sees("#train-report", "Die Rose.")
    expect(visitor.on("#train-start")).to_be_enabled()


def test_bad_training_files_are_explained(visitor: Visitor, app: App) -> None:
    visitor.tab("Train")
    for name, content, fragment in BAD_DATA:
        visitor.upload("#train-file", file(name, content))
        words = re.compile(re.escape(fragment).replace(r"\ ", r"\s+"))
        expect(visitor.on("#train-report"), name).to_contain_text(words)
        expect(visitor.on("#train-start"), name).to_be_disabled()
        visitor.check()
        visitor.on("#train-file").get_by_role("button", name="Clear", exact=True).click()
        expect(visitor.on("#train-report"), name).to_be_hidden()
    visitor.upload("#train-file", file("broken.jsonl", GOOD * 2 + b"{\n" + rows(3)))
    visitor.sees("#train-report", "1 bad row")
    visitor.on("#train-skip-bad input").check()  # the good rows are still of use
    expect(visitor.on("#train-start")).to_be_enabled()
    assert app.lobes() == list(DEMO)
    visitor.tab("Chat")
    assert "blood sugar" in visitor.ask(INSULIN)
