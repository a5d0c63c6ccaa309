"""The command line, in this process, on a tiny random base."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from test_model import TOPICS, WordEmbedder, rows

from multilobe_ui.cli import main


@pytest.fixture
def run(
    base_folder: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """run(*arguments) → (status, standard output, standard error)."""
    monkeypatch.setattr("multilobe_ui.model.Embedder", lambda *a: WordEmbedder())
    where = ["--home", str(tmp_path / "home"), "--base", str(base_folder()), "--device", "cpu"]

    def call(*arguments: str) -> tuple[int, str, str]:
        verbs = 2 if arguments[0] == "bundle" else 1
        status = main([*arguments[:verbs], *where, *arguments[verbs:]])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    made = {}
    for i, topic in enumerate(TOPICS):
        made[topic] = tmp_path / f"{i}.jsonl"
        made[topic].write_text("".join(json.dumps(row) + "\n" for row in rows(topic)), encoding="utf-8")
    return made


SETTINGS = ("--epochs", "1", "--lora-r", "2", "--batch-size", "8", "--learning-rate", "1e-2", "--quiet")


def test_every_verb_in_turn(run: Callable, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for topic, path in files.items():
        status, out, _ = run("train", topic, str(path), "--json", *SETTINGS)
        assert status == 0
        assert json.loads(out)["name"] == topic and json.loads(out)["adapter"]["r"] == 2

    status, out, _ = run("route", "--json", "cat dog", "red blue")
    decisions = [json.loads(line) for line in out.splitlines()]
    assert [d["chosen"] for d in decisions] == ["Animals", "色 / colours"]
    monkeypatch.setattr("sys.stdin", io.StringIO("cat dog\none two\n"))
    assert [line.split("\t")[0] for line in run("route")[1].splitlines()] == ["Animals", "Numbers v1.0"]

    greedy = ("--no-do-sample", "--max-new-tokens", "6")
    status, out, _ = run("chat", "cat", "dog", "--json", *greedy)
    answer = json.loads(out)
    assert status == 0 and answer["selected_lobe"] == "Animals" and answer["router_ms"] > 0
    assert run("chat", "cat", "dog", *greedy)[1].strip() == answer["answer"]
    assert json.loads(run("chat", "cat dog", "--base-only", "--json", *greedy)[1])["selected_lobe"] is None
    monkeypatch.setattr("sys.stdin", io.StringIO("cat dog\n\nred blue\n"))
    assert run("chat", *greedy)[2].split("\n")[:2] == ["[Animals]", "[色 / colours]"]

    bundle = tmp_path / "out.zip"
    assert run("bundle", "save", str(bundle), "Animals")[0] == 0
    assert run("bundle", "verify", str(bundle))[1].strip() == f"{bundle} is sound."
    assert [c["name"] for c in json.loads(run("bundle", "list", str(bundle), "--json")[1])] == ["Animals"]
    assert json.loads(run("bundle", "load", str(bundle), "--json")[1]) == {"lobes": ["Animals (2)"]}
    assert [line.split("\t")[0] for line in run("bundle", "list")[1].splitlines()] == [*TOPICS, "Animals (2)"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "x", "/nowhere.jsonl"), "nowhere.jsonl"),
        (("train", "x", "{bad}", *SETTINGS), "line 2"),
        (("train", "", "{bad}", "--skip-bad", *SETTINGS), "no name"),
        (("train", "x", "{bad}", "--epochs", "0"), "epochs is 0"),
        (("chat", "hello", "--lobe", "Nobody"), "Nobody"),
        (("bundle", "save", "{folder}/b.zip"), "no lobe"),
        (("bundle", "load", "{bad}"), "bad.jsonl"),
        (("bundle", "verify", "{folder}/nowhere.zip"), "nowhere.zip"),
    ],
)
def test_mistakes_are_told_in_a_sentence(run: Callable, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"input": "a", "output": "b"}\nnot json\n')
    status, _, error = run(*(a.format(bad=bad, folder=tmp_path) for a in arguments))
    assert status == 1
    assert message in error and "Traceback" not in error
    assert error.splitlines()[-1].strip()
