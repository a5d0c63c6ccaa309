"""The real app, in a real browser, as a newcomer would use it. The conftest beside it says what holds at any time."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import expect
from safetensors.numpy import load as tensors_of
from safetensors.numpy import save as tensor_bytes
from visitor import DEMO, ROOT, TRAINED, App, Visitor, until

pytestmark = [pytest.mark.browser, pytest.mark.builtin]

INSULIN = "Could you tell me what insulin does once it is in the blood?"
STORY = "Tell me a very long story about the sea."
BREAD = "How do I bake sourdough bread?"
ODD_NAME = "🧪 试验.v1.0 <b>x</b>"
ENDPOINTS = (
    "train", "train_status", "stop", "chat", "route", "routers", "fit_router", "lobes", "save_bundle", "load_bundle",
    "delete_lobe",
)  # fmt: skip
Files = dict[str, bytes]
Visit = Callable[..., Visitor]


def rows(count: int) -> bytes:
    words = ("amber", "birch", "cedar", "daisy", "elder", "fern", "gorse", "hazel", "iris", "jasmine")
    lines = [
        {"input": f"Which word belongs to number {i}?", "output": f"The word of number {i} is {words[i % 10]}."}
        for i in range(count)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def file(name: str, content: bytes) -> dict[str, Any]:
    return {"name": name, "mimeType": "application/octet-stream", "buffer": content}


# ---- the first page --------------------------------------------------------------------------------------------------


def test_a_newcomer_asks_and_sees_which_lobe_answers_and_why(visitor: Visitor) -> None:
    visitor.sees("body", "One frozen language model, many small experts.")
    visitor.sees("#status", "6 lobes")
    answer = visitor.ask(INSULIN)
    assert "blood sugar" in answer
    assert visitor.chip().startswith("medical")
    assert "%" in visitor.chip()
    lit = visitor.on("#why .ml-brain-cell.is-lit title")
    assert lit.all_text_contents() == ["medical: 100 %"]
    bars = visitor.on("#why .ml-bars").first.locator("> ol > li")  # those of single stages are folded away below
    assert sorted(bars.locator("span").all_text_contents()) == list(DEMO)
    expect(visitor.on("#why .ml-bars > ol > li.is-chosen").first).to_have_text(re.compile(r"medical\s*[01]\.\d\d"))
    expect(visitor.on("#why .ml-threshold").first).to_have_text(re.compile(r"threshold 0\.\d\d"))
    expect(visitor.on("#why .ml-verdict h3")).to_have_text("medical")
    expect(visitor.on("#why .ml-sure")).to_have_text(re.compile(r"\d %\s*sure"))
    facts = dict(zip(visitor.on("#why dt").all_text_contents(), visitor.on("#why dd").all_text_contents(), strict=True))
    assert facts["Decided by"] in ("embedding", "log-prob")
    assert re.fullmatch(r"[\d.]+ (ms|s)", facts["Routing took"])
    assert "tokens/s" in facts["Speed"]
    assert visitor.on("#why .ml-near li").count() == 3


def test_what_no_lobe_knows_goes_to_the_base_model_and_the_panel_says_why(visitor: Visitor) -> None:
    visitor.ask(BREAD)
    assert visitor.chip().startswith("Base model")
    expect(visitor.on("#why .ml-verdict h3")).to_have_text("Base model")
    visitor.sees("#why .ml-reason", re.compile(r"Nothing that a lobe has learned is near|no lobe", re.I))
    expect(visitor.on("#why svg.ml-brain")).to_have_attribute("aria-label", re.compile("The base model is lit"))
    assert visitor.on("#why .ml-brain-cell.is-lit").count() == 0
    assert visitor.on("#why .ml-bars > ol > li.is-chosen").count() == 0
    # another turn, of another kind: every answer keeps its own label and its own panel
    visitor.ask(INSULIN)
    assert visitor.chip().startswith("medical")
    visitor.on('#chat .bot-row [data-testid="bot"]').first.click()
    expect(visitor.on("#why .ml-verdict h3")).to_have_text("Base model")


def test_a_starter_is_one_click(visitor: Visitor) -> None:
    visitor.page.get_by_text("How does a vaccine protect a child?").click()
    assert visitor.answered()
    assert visitor.chip().startswith("medical")


def test_a_person_can_say_who_answers(visitor: Visitor) -> None:
    visitor.set(Longest_answer=24)
    visitor.choose("Base model only")
    visitor.ask(INSULIN)
    assert visitor.chip() == "Base model"
    visitor.sees("#why .ml-facts", "chosen by you")
    visitor.choose("Always legal")
    visitor.ask(INSULIN)
    assert visitor.chip() == "legal"
    assert visitor.on("#why .ml-brain-cell.is-lit title").all_text_contents() == ["legal: 100 %"]
    visitor.choose("Automatic: the router decides")
    visitor.ask(INSULIN)
    assert visitor.chip().startswith("medical")


def says_stopped(visitor: Visitor) -> None:
    visitor.sees("#why .ml-note", re.compile(r"Stopped after \d+ token"))
    until("the label says so too", lambda: visitor.chip().endswith("stopped"))


def test_stop_retry_edit_and_undo(visitor: Visitor) -> None:
    page = visitor.page
    visitor.choose("Base model only")
    visitor.set(Longest_answer=1024, Temperature=0, Repetition_penalty=0.8)  # what was said is said again: it never ends
    begun = visitor.interrupt(STORY)
    assert len(begun) > 3
    says_stopped(visitor)

    visitor.set(Longest_answer=40, Repetition_penalty=1.1)
    visitor.choose("Always medical")
    page.get_by_role("button", name="Retry", exact=True).click()
    visitor.sees("#why .ml-verdict h3", "medical")
    retried = visitor.answered()
    assert visitor.chip() == "medical"
    assert retried != begun

    page.get_by_role("button", name="Edit", exact=True).click()
    visitor.on("#chat textarea").fill(INSULIN)
    page.get_by_role("button", name="Submit", exact=True).click()
    visitor.sees("#chat .bot-row", "blood sugar")
    visitor.answered()
    visitor.sees("#chat .user-row", INSULIN)

    page.get_by_role("button", name="Undo", exact=True).click()
    expect(visitor.on("#chat .bot-row")).to_have_count(0)
    expect(visitor.on("#message textarea")).to_have_value(INSULIN)
    page.get_by_role("button", name="Send", exact=True).click()
    assert "blood sugar" in visitor.answered()

    visitor.choose("Base model only")
    visitor.set(Longest_answer=1024, Repetition_penalty=0.8)
    begun = visitor.interrupt_with_a_busy_page(STORY)
    says_stopped(visitor)
    visitor.set(Longest_answer=40, Repetition_penalty=1.1)
    visitor.choose("Always medical")
    page.get_by_role("button", name="Retry", exact=True).click()
    visitor.sees("#why .ml-verdict h3", "medical")
    assert visitor.answered(2) != begun


# ---- the page --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_of_a_phone(visit: Visit, scheme: str) -> None:
    visitor = visit(viewport={"width": 390, "height": 844}, color_scheme=scheme)

    def fits(where: str) -> None:
        script = """() => [...document.querySelectorAll('body, body *')].reduce((most, e) => {
            for (let p = e.parentElement; p; p = p.parentElement)
                if (['auto', 'scroll', 'hidden', 'clip'].includes(getComputedStyle(p).overflowX) && p !== document.body
                    && p.getBoundingClientRect().right <= innerWidth + 1) return most;
            const right = e.getBoundingClientRect().right;
            return right > most[0] ? [right, e.tagName + '.' + e.className] : most;
        }, [0, ''])"""
        assert visitor.page.evaluate("document.documentElement.scrollWidth") <= 390, where
        right, who = visitor.page.evaluate(script)
        assert right <= 391, f"{where}: {who} ends at {right}"

    fits("Chat, empty")
    visitor.ask(INSULIN)
    fits("Chat")
    visitor.tab("Train")
    visitor.on("#train-sample-maths").click()
    visitor.sees("#train-report", "Format")
    visitor.sees("#train-lengths", "tokens")
    visitor.on("#train-settings .label-wrap").click()
    fits("Train")
    visitor.tab("Manage")
    visitor.on("#manage-table .ml-name").first.click()
    visitor.sees("#manage-detail", "Validation loss")
    fits("Manage")
    dark = "document.body.classList.contains('dark') || !!document.querySelector('.dark')"
    assert visitor.page.evaluate(dark) is (scheme == "dark")


# ---- training --------------------------------------------------------------------------------------------------------


def step_of(visitor: Visitor) -> int:
    found = re.search(r"step ([\d,]+) of", visitor.on("#train-status").inner_text())
    return int(found[1].replace(",", "")) if found else 0


def start_training(visitor: Visitor, name: str, epochs: int) -> None:
    visitor.on("#train-name textarea").fill(name)
    box = visitor.on("#train-epochs input")
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
    first.sees("#train-card", "The best so far is kept as a lobe.")
    second.tab("Train")
    second.sees("#train-card .train-pill", "Stopped")
    assert ODD_NAME in app.lobes()

    # A second run, as long as about eight seconds of the first: long enough to be stopped, short enough to be finished.
    job = next(path.name for path in sorted((app.home / "jobs").iterdir(), reverse=True) if path.is_dir())
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
    assert first.on("#train-runs .ml-name").all_inner_texts() == ["words.v2", ODD_NAME]

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


# ---- lobes, bundles, adapters ----------------------------------------------------------------------------------------


def demo_files(lobe: str = "medical") -> Files:
    """A bundle of one demo lobe, as {path: bytes}."""
    root = ROOT / "assets" / "demo_bundle"
    manifest = json.loads((root / "bundle.json").read_text())
    manifest["lobes"], manifest["routers"] = [entry for entry in manifest["lobes"] if entry["name"] == lobe], []
    folder = manifest["lobes"][0]["folder"]
    names = [f"lobes/{folder}/{name}" for name in manifest["lobes"][0]["files"]]
    return {"bundle.json": json.dumps(manifest).encode(), **{name: (root / name).read_bytes() for name in names}}


def adapter_files(lobe: str = "medical") -> Files:
    wanted = ("adapter_config.json", "adapter_model.safetensors")
    files = demo_files(lobe)
    return {name: content for path, content in files.items() if (name := Path(path).name) in wanted}


def zipped(files: Mapping[str, bytes], *more: tuple[zipfile.ZipInfo | str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in [*files.items(), *more]:
            archive.writestr(name, content)
    return sink.getvalue()


def pick_lobe(visitor: Visitor, name: str) -> None:
    visitor.page.locator("#manage-table .ml-name").filter(has_text=name).click()
    visitor.sees("#manage-detail .manage-title", name)


def load_bundle(visitor: Visitor, name: str, content: bytes | Path) -> None:
    visitor.upload("#manage-bundle", content if isinstance(content, Path) else file(name, content))
    visitor.on("#manage-load").click()


def test_rename_delete_save_and_load(visitor: Visitor, app: App, tmp_path: Path) -> None:
    name = "Körper & <i>Geist</i>.v2 🧠"
    visitor.set(Temperature=0)
    visitor.tab("Manage")
    load_bundle(visitor, "one.zip", zipped(demo_files()))
    visitor.toast("Loaded 1 lobe: medical (2)")
    expect(visitor.on("#manage-table .ml-name")).to_have_count(7)
    pick_lobe(visitor, "medical (2)")
    visitor.on("#manage-new-name textarea").fill(name)
    visitor.on("#manage-rename").click()
    visitor.toast(f"medical (2) is called {name} now.")
    visitor.sees("#manage-detail .manage-title", name)
    visitor.tab("Chat")
    visitor.choose(f"Always {name}")
    before = visitor.ask(INSULIN)
    assert "blood sugar" in before

    visitor.tab("Manage")
    visitor.page.get_by_label(f"Put into the bundle: {name}").check()
    visitor.sees("#manage-save", "Save 1 ticked lobe")
    visitor.on("#manage-save").click()
    visitor.toast("ready to be downloaded")
    with visitor.page.expect_download() as coming:
        visitor.on("#manage-download").click()
    saved = tmp_path / coming.value.suggested_filename
    coming.value.save_as(saved)
    assert saved.name.endswith(".zip")
    with zipfile.ZipFile(saved) as archive:
        assert [lobe["name"] for lobe in json.loads(archive.read("bundle.json"))["lobes"]] == [name]

    visitor.on("#manage-delete").click()
    visitor.sees("#manage-question", f"Delete {name} for good?")
    assert name in app.lobes()
    visitor.on("#manage-keep").click()
    expect(visitor.on("#manage-question")).to_be_hidden()
    assert name in app.lobes()
    visitor.on("#manage-delete").click()
    visitor.sees("#manage-question", f"Delete {name} for good?")
    visitor.on("#manage-really").click()
    visitor.toast(f"{name} has been deleted.")
    expect(visitor.on("#manage-table .ml-name")).to_have_count(6)
    assert app.lobes() == list(DEMO)
    visitor.tab("Chat")
    expect(visitor.page.get_by_role("combobox", name="Who answers")).to_have_value("Automatic: the router decides")

    visitor.tab("Manage")
    load_bundle(visitor, saved.name, saved)
    visitor.toast(f"Loaded 1 lobe: {name}")
    expect(visitor.on("#manage-table .ml-name")).to_have_count(7)
    visitor.tab("Chat")
    visitor.clear()
    visitor.choose(f"Always {name}")
    assert visitor.ask(INSULIN) == before


def test_any_peft_adapter_becomes_a_lobe(visitor: Visitor) -> None:
    visitor.set(Temperature=0)
    visitor.choose("Always medical")
    expected = visitor.ask(INSULIN)
    visitor.tab("Manage")
    visitor.page.get_by_role("tab", name="PEFT adapter", exact=True).click()
    folder = {f"my-adapter/{name}": content for name, content in adapter_files().items()}
    visitor.upload("#manage-adapter", file("my-adapter.zip", zipped(folder)))
    visitor.on("#manage-adapter-name textarea").fill("imported")
    visitor.on("#manage-import").click()
    visitor.toast("imported has been imported.")
    expect(visitor.on("#manage-table .ml-name")).to_have_count(7)
    visitor.tab("Chat")
    visitor.clear()
    visitor.choose("Always imported")
    assert visitor.ask(INSULIN) == expected
    assert visitor.chip() == "imported"


# ---- two at once -----------------------------------------------------------------------------------------------------


def test_two_people_on_two_lobes_do_not_disturb_each_other_while_a_third_trains(
    visit: Visit, app: App, tmp_path: Path
) -> None:
    from gradio_client import handle_file

    questions = {
        "Always medical": (INSULIN, "And what do veins do?", "Why do joints need cartilage?"),
        "Always python": ("How do I write a text file?", "And how do I read it again?", "How do I sort a list?"),
    }

    def arrive(who: str) -> Visitor:
        visitor = visit()
        visitor.set(Temperature=0, Longest_answer=60)
        visitor.choose(who)
        return visitor

    pair = {who: arrive(who) for who in questions}
    alone = {who: [visitor.ask(text) for text in questions[who]] for who, visitor in pair.items()}
    for visitor in pair.values():
        visitor.clear()
    data = tmp_path / "words.jsonl"
    data.write_bytes(rows(40))
    job = app.call("train", handle_file(data), "third", {"epochs": 1000})["id"]
    until("the third lobe trains", lambda: app.call("train_status", job)["step"] > 0)
    together: dict[str, list[str]] = {who: [] for who in questions}
    for turn in range(3):
        for who, visitor in pair.items():
            assert visitor.send(questions[who][turn]) == turn + 1
        for who, visitor in pair.items():
            together[who].append(visitor.answered(turn + 1))
            assert visitor.chip() == who.removeprefix("Always ")
    assert together == alone
    assert app.call("train_status", job)["state"] == "running"


# ---- bad files -------------------------------------------------------------------------------------------------------

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


def manifest_with(files: Files, **values: Any) -> Files:
    return {**files, "bundle.json": json.dumps({**json.loads(files["bundle.json"]), **values}).encode()}


def lobe_path(files: Files, name: str) -> str:
    return next(path for path in files if path.endswith(name))


def with_file(files: Files, name: str, content: bytes, *, honest: bool = True) -> Files:
    """One of a lobe's files replaced; `honest`: with its sha256 in the manifest."""
    manifest = json.loads(files["bundle.json"])
    if honest:
        manifest["lobes"][0]["files"][name] = hashlib.sha256(content).hexdigest()
    return {**files, lobe_path(files, name): content, "bundle.json": json.dumps(manifest).encode()}


def lighter(files: Files) -> Files:
    """With the matrices of the first layer only: quicker to pack and to send."""
    path = lobe_path(files, "adapter_model.safetensors")
    few = tensor_bytes({name: value for name, value in tensors_of(files[path]).items() if ".layers.0." in name})
    return with_file(files, "adapter_model.safetensors", few) if "bundle.json" in files else {**files, path: few}


def weights_with(content: bytes, change: Callable[[np.ndarray], np.ndarray]) -> bytes:
    """Adapter weights with the first matrix changed."""
    tensors = tensors_of(content)
    first = min(tensors)
    return tensor_bytes({**tensors, first: np.ascontiguousarray(change(tensors[first]))})


def info(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.create_system, made.external_attr = 3, mode << 16
    return made


def bomb() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bundle.json", b" " * (50 << 20))
    return sink.getvalue()


def bad_bundles() -> list[tuple[str, bytes, str]]:
    files = lighter(demo_files())
    good, weights = zipped(files), files[lobe_path(files, "adapter_model.safetensors")]
    config = json.loads(files[lobe_path(files, "adapter_config.json")])
    stranger = {"name": "gpt2", "fingerprint": "0123456789abcdef"}
    entry = json.loads(files["bundle.json"])["lobes"][0]
    outside = {**entry, "folder": "../../lobe_0001"}
    missing = {path: content for path, content in files.items() if not path.endswith("card.json")}

    def reconfigured(**values: Any) -> bytes:
        return zipped(with_file(files, "adapter_config.json", json.dumps({**config, **values}).encode()))

    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = zipped(files, ("bundle.json", b"{}"))
    return [
        ("text.zip", b"hello", "text.zip is not a zip file, or a damaged one"),
        ("nothing.zip", b"", "nothing.zip is not a zip file"),
        ("truncated.zip", good[: len(good) // 2], "truncated.zip is not a zip file, or a damaged one"),
        ("flipped.zip", good.replace(weights[5000:5016], bytes(16)), "Bad CRC-32"),
        ("hollow.zip", zipped({}), "hollow.zip is not a bundle"),
        ("climb.zip", zipped(files, ("../../evil.json", b"{}")), "climbs out of the folder"),
        ("absolute.zip", zipped(files, ("/etc/evil.json", b"{}")), "has an absolute path"),
        ("backslash.zip", zipped(files, ("..\\evil.json", b"{}")), "has a backslash in its name"),
        ("drive.zip", zipped(files, ("C:evil.json", b"{}")), "has a drive letter"),
        ("link.zip", zipped(files, (info("x.json", stat.S_IFLNK | 0o777), b"/etc/passwd")), "is a link or a special file"),
        ("bomb.zip", bomb(), "as a zip bomb does"),
        ("twice.zip", twice, "'bundle.json' twice"),
        ("pickle.zip", zipped(files, ("lobes/lobe_0003/adapter_model.bin", b"\x80\x04.")), "does not belong there"),
        ("nested.zip", zipped(files, ("inner.zip", good)), "is an archive inside the archive"),
        ("disguised.zip", zipped(files, ("inner.txt", good)), "'inner.txt' is an archive inside the archive"),
        ("newer.zip", zipped(manifest_with(files, format_version=99)), "The bundle has format version 99"),
        ("stranger.zip", zipped(manifest_with(files, base=stranger)), "The bundle is for the base gpt2"),
        ("outside.zip", zipped(manifest_with(files, lobes=[outside])), "is misnamed or listed twice"),
        ("no_lobes.zip", zipped(manifest_with(files, lobes=[])), "it lists no lobes"),
        ("no_json.zip", zipped({**files, "bundle.json": b"{oops"}), "bundle.json is not readable JSON"),
        ("list.zip", zipped({**files, "bundle.json": b"[]"}), "bundle.json holds a list, not an object"),
        ("changed.zip", zipped(with_file(files, "card.json", b"{}", honest=False)), "card.json was changed after"),
        ("missing.zip", zipped(missing), "card.json is missing"),
        ("card.zip", zipped(with_file(files, "card.json", b'{"name": 5}')), "is not the card of a lobe"),
        ("cut.zip", zipped(with_file(files, "adapter_model.safetensors", weights[:999])), "is damaged"),
        ("ia3.zip", reconfigured(peft_type="IA3"), "is a IA3 adapter: only LoRA"),
        ("html.zip", zipped(manifest_with(files, lobes=[{**entry, "name": "<img src=x onerror=alert(1)>"}])),
         "The lobe '<img src=x onerror=alert(1)>'"),
    ]  # fmt: skip


def bad_adapters() -> list[tuple[str, bytes, str]]:
    files = lighter(adapter_files())
    config, weights = json.loads(files["adapter_config.json"]), files["adapter_model.safetensors"]
    tensors = tensors_of(weights)

    def configured(**values: Any) -> bytes:
        return zipped({**files, "adapter_config.json": json.dumps({**config, **values}).encode()})

    def weighted(content: bytes) -> bytes:
        return zipped({**files, "adapter_model.safetensors": content})

    renamed = {name.replace("self_attn", "cross_attn"): value for name, value in tensors.items()}
    wider = {n: np.pad(v, ((0, 0), (0, 8))) if "lora_A" in n else v for n, v in tensors.items()}
    two = {f"{folder}/{name}": content for folder in ("a", "b") for name, content in files.items()}
    pickled = {"adapter_config.json": files["adapter_config.json"], "adapter_model.bin": b"\x80\x04."}
    return [
        ("text.zip", b"hello", "text.zip is not a zip file, or a damaged one"),
        ("climb.zip", zipped(files, ("../adapter_config.json", b"{}")), "climbs out of the folder"),
        ("alone.zip", zipped({"adapter_config.json": b"{}"}), "alone.zip has no adapter_config.json with"),
        ("pickle.zip", zipped(pickled), "An adapter_model.bin is a pickle and never opened"),
        ("two.zip", zipped(two), "two.zip holds 2 adapters"),
        ("ia3.zip", configured(peft_type="IA3"), "is a IA3 adapter: only LoRA adapters can become lobes"),
        ("dora.zip", configured(use_dora=True), "uses DoRA, which the bank cannot run exactly"),
        ("saved.zip", configured(modules_to_save=["lm_head"]), "uses modules_to_save"),
        ("bias.zip", configured(bias="all"), "trains biases"),
        ("alpha.zip", configured(lora_alpha="much"), "lora_alpha is much; it must be a finite number"),
        ("no_json.zip", zipped({**files, "adapter_config.json": b"{oops"}), "is not readable JSON"),
        ("cut.zip", weighted(weights[:999]), "adapter_model.safetensors is damaged"),
        ("flat.zip", weighted(weights_with(weights, lambda m: m[:-1])), "LoRA needs (r, in) and (out, r)"),
        ("wide.zip", weighted(tensor_bytes(wider)), "does not fit"),
        ("layers.zip", weighted(tensor_bytes(renamed)), "the base has no linear layer"),
        ("nan.zip", weighted(weights_with(weights, lambda m: m * np.nan)), "holds numbers that are not finite"),
    ]


def test_bad_bundles_and_adapters_are_explained(visitor: Visitor, app: App) -> None:
    visitor.tab("Manage")
    expect(visitor.on("#manage-table .ml-name")).to_have_count(6)
    before = visitor.rows()
    for name, content, fragment in bad_bundles():
        load_bundle(visitor, name, content)
        visitor.toast(fragment)
        assert visitor.rows() == before, name
    visitor.page.get_by_role("tab", name="PEFT adapter", exact=True).click()
    visitor.on("#manage-adapter-name textarea").fill("newcomer")
    for name, content, fragment in bad_adapters():
        visitor.upload("#manage-adapter", file(name, content))
        visitor.on("#manage-import").click()
        visitor.toast(fragment)
        assert visitor.rows() == before, name
    visitor.upload("#manage-adapter", file("good.zip", zipped(adapter_files())))
    for title, fragment in ((" ", "is empty"), ("MEDICAL", "A lobe called 'medical' exists already")):
        visitor.on("#manage-adapter-name textarea").fill(title)
        visitor.on("#manage-import").click()
        visitor.toast(fragment)
    assert app.lobes() == list(DEMO)
    assert list(app.home.rglob("*evil*")) == []
    visitor.tab("Chat")
    assert "blood sugar" in visitor.ask(INSULIN)


# ---- for programs ----------------------------------------------------------------------------------------------------


def test_the_named_endpoints_are_these_and_all_work(visit: Visit, app: App, tmp_path: Path) -> None:
    from gradio_client import handle_file

    visit()  # the model is ready, and what this test makes is cleared away
    named = app.api.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert sorted(named) == sorted(f"/{name}" for name in ENDPOINTS)
    assert app.lobes() == list(DEMO)
    route = app.call("route", INSULIN)
    assert route["chosen"] == "medical"
    assert route["scores"]["medical"] > route["threshold"]
    assert app.call("route", INSULIN, router="gate")["chosen"] == "medical"
    assert {view["name"] for view in app.call("routers") if view["fitted"]} >= {"hybrid", "gate", "xlora", "arrow"}
    fit = app.call("fit_router", "gate")
    until("the gate is fitted", lambda: app.call("train_status", fit["id"])["state"] == "finished")
    events = list(app.api.submit(INSULIN, "automatic", None, 60, 0, api_name="/chat"))
    assert events[0]["text"] == ""
    assert events[0]["decision"]["chosen"] == "medical"
    assert events[-1]["done"]
    assert "blood sugar" in events[-1]["text"]
    assert app.call("chat", INSULIN, "base", None, 20, 0)["decision"]["chosen"] is None

    data = tmp_path / "words.csv"
    with data.open("w", newline="") as sink:
        csv.writer(sink).writerows([("input", "output"), *[(f"Number {i}?", f"Word {i}.") for i in range(12)]])
    job = app.call("train", handle_file(data), "words", {"epochs": 1000, "lora_r": 4})
    assert job["state"] in ("queued", "running")
    until("a step", lambda: app.call("train_status", job["id"])["step"] > 0)
    assert app.call("train_status", job["id"], True)["curve"][-1]["step"] > 0
    assert app.call("stop", job["id"])["state"] in ("stopping", "stopped")
    assert app.ended(job["id"])["state"] == "stopped"
    assert app.lobes() == [*DEMO, "words"]

    bundle = app.call("save_bundle", ["words"])
    assert zipfile.is_zipfile(bundle)
    assert app.call("delete_lobe", "words") == list(DEMO)
    assert app.call("load_bundle", handle_file(bundle)) == ["words"]
    assert app.call("load_bundle", handle_file(bundle), "rename") == ["words (2)"]
    assert app.call("delete_lobe", "words (2)") == [*DEMO, "words"]
