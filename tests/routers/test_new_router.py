"""A router of one's own: one class with `judge`, one line in ROUTERS, and everything has it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from test_model import TOPICS, WordEmbedder, rows, trained
from test_studio import make_studio  # noqa: F401 - a fixture

from multilobe_ui.base.backbone import Backbone
from multilobe_ui.cli.commands import main
from multilobe_ui.evaluation import report_card
from multilobe_ui.routers import ROUTERS, Router, Verdict
from multilobe_ui.ui.kit.routing_row import router_choices


class InitialRouter(Router):
    """The lobe whose name begins as a word of the prompt does."""

    name: ClassVar[str] = "initial"
    title: ClassVar[str] = "Initials"
    sentence: ClassVar[str] = "The lobe whose name begins with the letter that most words begin with."

    def judge(self, prompt: str) -> Verdict:
        words = prompt.casefold().split()
        scores = {name: float(sum(word[0] == name[0].casefold() for word in words)) for name in self.context.lobes}
        total = sum(scores.values())
        if not total:
            return Verdict.base("initial", "No word begins as the name of a lobe does.")
        likely = {name: score / total for name, score in scores.items()}
        return Verdict(scores, likely, stage="initial", reason="Words of the prompt begin as its name does.")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(ROUTERS, "initial", lambda context, threshold: InitialRouter(context))  # type: ignore[arg-type]
    yield


def test_the_package_and_the_report_card_have_it(backbone: Backbone) -> None:
    model = trained(backbone)
    assert model.route("an apple", "initial").chosen == "Animals"
    decision = model.route("zzz", "initial")
    assert decision.abstained and decision.confidence == 1.0
    card = report_card(model, ["initial"], most=8)
    assert list(card.routers) == ["initial"] and card.routers["initial"].of == 8


def test_the_page_has_it(make_studio: Any) -> None:  # noqa: F811
    studio = make_studio()
    assert ("Initials", "initial") in router_choices(studio.desk().routers())


def test_the_command_line_has_it(
    base_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("multilobe_ui.model.Embedder", lambda *_: WordEmbedder())
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows(next(iter(TOPICS))))))
    common = ["--home", str(tmp_path / "home"), "--base", str(base_folder())]
    assert main(["train", "Animals", str(path), "--epochs", "1", *common]) == 0
    capsys.readouterr()
    assert main(["route", "an apple", "--router", "initial", "--json", *common]) == 0
    assert json.loads(capsys.readouterr().out)["chosen"] == "Animals"
