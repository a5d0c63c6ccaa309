"""The Lab in the real app, from an empty home to a downloaded report."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from visitor import DEMO, ROOT, Visitor, until

pytestmark = [pytest.mark.browser, pytest.mark.builtin]
LOBES = [*DEMO, ""]


def section(visitor: Visitor, name: str) -> None:
    visitor.tab("Lab")
    visitor.tab(name)


def run(visitor: Visitor, name: str) -> None:
    visitor.on(f"#lab-{name}-run").click()
    visitor.page.wait_for_selector(f"#lab-{name}-stop, #lab-{name}-cancel, #lab-{name}-page", state="visible")
    visitor.page.wait_for_selector(f"#lab-{name}-page", state="visible", timeout=180_000)


def downloaded(visitor: Visitor, css: str, folder: Path) -> str:
    with visitor.page.expect_download() as download:
        visitor.on(css).click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path.read_text("utf-8")


def labelled(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """Every fourth row of the routing test, as a file."""
    lines = (ROOT / "sample_data/routing_test.jsonl").read_text("utf-8").splitlines()[::4]
    path = folder / "labelled.jsonl"
    path.write_text("\n".join(lines), "utf-8")
    return path, [json.loads(line) for line in lines]


def cells(texts: Sequence[str]) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", " ".join(texts))]


def test_from_a_file_to_a_downloaded_report_and_a_correction_that_counts(visitor: Visitor, tmp_path: Path) -> None:
    path, rows = labelled(tmp_path)
    section(visitor, "Report card")
    for title in ("Log-prob", "X-LoRA", "Arrow", "Chain", "Hybrid"):
        visitor.on("#report-routers").get_by_label(title, exact=True).uncheck()
    visitor.upload("#report-files", path)
    visitor.sees("#report-files tr", re.compile(r"labelled\s*\.jsonl"))  # in the list: it has been uploaded
    run(visitor, "report")
    visitor.open()  # a reload: the result comes back from disk
    section(visitor, "Report card")
    visitor.page.wait_for_selector("#lab-report-page", state="visible")

    data = json.loads(downloaded(visitor, "#lab-report-data", tmp_path))
    assert sorted(data["routers"]) == ["embedding", "gate", "keyword"] and data["labels"] == LOBES
    assert "<!doctype html>" in downloaded(visitor, "#lab-report-page", tmp_path)
    wanted = [row["lobe"] or "" for row in rows]
    visitor.on('#lab-report-result [data-row="router|gate"]').click()
    visitor.sees("#report-details", "Gate")
    gate = data["routers"]["gate"]
    chosen = [LOBES[i] for i in gate["decided"]]
    matrix = confusion_matrix(wanted, chosen, labels=LOBES)
    for i, j in zip(*matrix.nonzero(), strict=True):
        assert visitor.on(f'#report-details [data-row="cell|gate|{i}|{j}"]').inner_text().strip() == str(matrix[i, j])
    assert visitor.on('#report-details [data-row^="cell|"]').count() == (matrix > 0).sum()
    precision, recall, f1, _ = precision_recall_fscore_support(wanted, chosen, labels=LOBES, zero_division=0)
    lines = [line.inner_text() for line in visitor.on("#report-details table tbody tr").all()]
    for i, name in enumerate(DEMO):
        shown = next(cells([line]) for line in lines if line.strip().startswith(name) and line.count("%") == 3)
        assert shown == pytest.approx([100 * value for value in (precision[i], recall[i], f1[i])], abs=0.051)
    right = sum(a == b for a, b in zip(wanted, chosen, strict=True))
    visitor.sees('#lab-report-result [data-row="router|gate"]', f"{right} of {len(rows)}")

    # one prompt belongs elsewhere, a person says
    place = wanted.index("medical")
    visitor.on(f'#report-details [data-row="cell|gate|{LOBES.index("medical")}|{LOBES.index(chosen[place])}"]').click()
    visitor.on(f'#report-prompts [data-row="prompt|{place}"]').click()
    visitor.sees("#report-quote", rows[place]["input"][:40])
    visitor.on("#report-who input").click()
    visitor.page.get_by_role("option", name="legal", exact=True).click()
    visitor.on("#report-correct").click()
    visitor.sees("#report-told", rows[place]["input"][:40])
    assert visitor.app.call("route", rows[place]["input"])["chosen"] == "medical", "not yet in force"
    run(visitor, "refit")
    visitor.sees("#lab-refit-result", "1 of 1 correction")
    visitor.on("#report-keep").click()
    until("it is in force", lambda: visitor.app.call("route", rows[place]["input"])["chosen"] == "legal")
    assert visitor.app.call("route", rows[place]["input"], router="embedding")["stage"] == "corrected"
    visitor.on("#report-undo").click()
    until("it is undone", lambda: visitor.app.call("route", rows[place]["input"])["chosen"] == "medical")


def test_the_loss_matrix_names_the_winner_of_every_column(visitor: Visitor, tmp_path: Path) -> None:
    section(visitor, "Lobes")
    visitor.on("#losses-rows input").fill("8")
    visitor.on("#losses-answer input").uncheck()
    run(visitor, "losses")
    data = json.loads(downloaded(visitor, "#lab-losses-data", tmp_path))
    assert data["lobes"] == list(DEMO) and data["idle"] == [] and set(data["rows"]) == {8}
    for j, name in enumerate(data["datasets"]):
        column = [row[j] for row in data["losses"]]
        assert min(column) == column[1 + data["lobes"].index(name)]
        visitor.sees("#lab-losses-result", f"{column[0]:.3f}")


HOLD_DRAWING = """() => {
    const draw = window.requestAnimationFrame, held = [];
    window.requestAnimationFrame = (work) => held.push(work);
    window.drawAgain = () => { window.requestAnimationFrame = draw; held.forEach((work) => draw(work)); };
}"""


def test_a_number_typed_while_its_tab_is_still_being_built_counts(visitor: Visitor) -> None:
    """The page sets all fields of a new tab once it draws: here it draws after the number was typed."""
    visitor.tab("Lab")
    visitor.page.evaluate(HOLD_DRAWING)
    visitor.page.get_by_role("tab", name="Lobes", exact=True).dispatch_event("click")
    visitor.page.wait_for_selector("#losses-rows input", state="attached")
    visitor.page.eval_on_selector(
        "#losses-rows input", "(field) => { field.value = '8'; field.dispatchEvent(new Event('input', {bubbles: true})); }"
    )
    visitor.page.wait_for_timeout(500)  # Gradio waits for the drawing that is held
    visitor.page.evaluate("window.drawAgain()")
    visitor.page.wait_for_timeout(1000)
    assert visitor.on("#losses-rows input").input_value() == "8"


def test_four_answers_side_by_side_and_a_vote(visitor: Visitor) -> None:
    section(visitor, "Compare")
    visitor.on("#lab-compare-prompt textarea").fill("What does insulin do?")
    visitor.on("#lab-compare-run").click()
    best = visitor.page.get_by_role("button", name="B is best", exact=True)
    until("it may be voted for", best.is_enabled)
    answers = [card.inner_text() for card in visitor.on('[id^="lab-compare-"][id$="-card"]').all()]
    assert len(answers) == 4 and all("tokens" in answer for answer in answers)
    best.click()
    visitor.sees("#lab-compare-feedback", "1 vote")


def test_a_merge_is_tried_then_kept_as_a_lobe_that_answers(visitor: Visitor) -> None:
    section(visitor, "Merge")
    for name in ("legal", "maths"):
        visitor.on("#merge-which input").click()
        visitor.page.get_by_role("option", name=name, exact=True).click()
    visitor.page.keyboard.press("Escape")
    visitor.sees("#merge-sum", "maths")
    run(visitor, "merge")
    visitor.sees("#lab-merge-result", "legal")
    visitor.on("#merge-name textarea, #merge-name input").first.fill("Both")
    visitor.on("#merge-keep-it").click()
    until("it is a lobe", lambda: "Both" in visitor.app.lobes())
    events = visitor.app.call("chat", "What is duress?", "lobe:Both", temperature=0, max_new_tokens=8)
    assert events["answer"] if "answer" in events else events["text"]


def test_what_answers_cost_is_in_the_ledger(visitor: Visitor) -> None:
    before = visitor.on("#ledger-totals").inner_text() if visitor.on("#ledger-totals").is_visible() else ""
    visitor.ask("What does insulin do?")
    visitor.sees("#why", "tokens/s")
    section(visitor, "Cost")
    visitor.sees("#ledger-totals", "Hybrid")
    assert visitor.on("#ledger-totals").inner_text() != before
