"""The command line, in this process, on a tiny random base."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from test_model import TOPICS, WordEmbedder, rows

from multilobe_ui.cli.commands import main


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


SETTINGS = (
    "--epochs", "1", "--lora-r", "2", "--batch-size", "8", "--learning-rate", "1e-2", "--validation-fraction", "0.1", "--quiet",
)  # fmt: skip


def test_every_verb_in_turn(run: Callable, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for topic, path in files.items():
        status, out, _ = run("train", topic, str(path), "--json", *SETTINGS)
        assert status == 0
        assert json.loads(out)["name"] == topic and json.loads(out)["adapter"]["r"] == 2
        assert json.loads(out)["training"]["kept"] == "last"

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
    assert answer["cost"]["answer_tokens"] > 0 and answer["cost"]["resident"] == ["Animals"]
    by_hand = json.loads(run("chat", "cat dog", "--lobe", "Animals", "--json", *greedy)[1])
    assert by_hand["answer"] == answer["answer"] and by_hand["cost"]["route_ms"] is None
    assert json.loads(run("chat", "cat dog", "--base-only", "--json", *greedy)[1])["selected_lobe"] is None
    monkeypatch.setattr("sys.stdin", io.StringIO("cat dog\n\nred blue\n"))
    assert run("chat", *greedy)[2].split("\n")[:2] == ["[Animals]", "[色 / colours]"]

    bundle = tmp_path / "out.zip"
    assert run("bundle", "save", str(bundle), "Animals")[0] == 0
    assert run("bundle", "verify", str(bundle))[1].strip() == f"{bundle} is sound."
    assert [c["name"] for c in json.loads(run("bundle", "list", str(bundle), "--json")[1])] == ["Animals"]
    assert json.loads(run("bundle", "load", str(bundle), "--json")[1]) == {"lobes": ["Animals (2)"]}
    assert [line.split("\t")[0] for line in run("bundle", "list")[1].splitlines()] == [*TOPICS, "Animals (2)"]


def test_fit_and_eval(run: Callable, files: dict[str, Path], tmp_path: Path) -> None:
    animals, numbers, _ = TOPICS
    for topic in (animals, numbers):
        assert run("train", topic, str(files[topic]), *SETTINGS)[0] == 0
    states = {line.split()[0]: line[11:23].strip() for line in run("routers")[1].splitlines()}
    assert states["hybrid"] == "ready" and states["gate"] == "needs a fit"
    told = run("chat", "cat dog", "--router", "gate", "--max-new-tokens", "1")[2]
    assert told.startswith("[base] ") and "fit" in told
    fitted = json.loads(run("fit", "gate", "--set", "ridge=0.5", "--json", "--quiet")[1])
    assert fitted["router"] == "gate" and fitted["report"]
    assert [json.loads(line)["state"] for line in run("routers", "--json")[1].splitlines()].count("ready") >= 6

    labelled = tmp_path / "labelled.csv"
    labelled.write_text(f"input,lobe\ncat dog,{animals}\none two,{numbers}\none cow,\n")
    out = tmp_path / "report.json"
    asked = ("eval", "report", str(labelled), "--set", 'routers=["gate", "keyword"]', "--quiet", "--out", str(out))
    status, text, _ = run(*asked)
    report = json.loads(out.read_text())
    assert status == 0 and list(report["routers"]) == ["gate", "keyword"] and report["labels"] == [animals, numbers, ""]
    lines = {line.split()[0]: line.split() for line in text.splitlines()}
    for name, found in report["routers"].items():
        assert lines[name][1:4] == [str(found["right"]), "3", f"{found['accuracy']:.1%}"]

    status, text, _ = run("eval", "losses", "--set", "task=false", "--quiet", "--out", str(out))
    losses = json.loads(out.read_text())
    assert status == 0 and losses["lobes"] == [animals, numbers] and len(losses["losses"]) == 3
    base = next(line for line in text.splitlines() if line.startswith("base"))
    assert base.split()[1:] == [f"{loss:.3f}" for loss in losses["losses"][0]]
    assert "gain over the base" in text

    status, text, _ = run("bench", "--set", "rounds=1", "--set", "tokens=2", "--set", "chats=2", "--quiet", "--out", str(out))
    speed = json.loads(out.read_text())
    lines = {re.split(r"\s{2,}", line)[0]: line.split()[-2] for line in text.splitlines()[1:]}
    assert status == 0 and lines["memory, a lobe"] == f"{speed['lobe_bytes'] / 2**20:,.1f}"
    assert [line for line in text.splitlines() if line.startswith("LoRA layers in one function: ")]
    assert {trick["name"]: trick["changed"] for trick in speed["fast"]}["modules called directly"] > 0
    assert lines["2 chats together"] == f"{speed['decoding']['together']:,.0f}"

    status, text, _ = run("eval", "forgetting", "--set", "epochs=1", "--set", "contrast=false", "--quiet")
    assert status == 0 and text.splitlines()[0] == "passed" and f"{animals}: identical" in text


def test_eval_of_lobes_that_held_nothing_out(run: Callable, files: dict[str, Path], tmp_path: Path) -> None:
    animals, numbers, _ = TOPICS
    for topic in (animals, numbers):
        assert run("train", topic, str(files[topic]), *SETTINGS, "--validation-fraction", "0")[0] == 0
    said, out = "All 2 lobes held nothing out: their prompts are training rows", tmp_path / "result.json"
    for what, settings in (("report", 'routers=["keyword"]'), ("losses", "task=false")):
        status, text, _ = run("eval", what, "--set", settings, "--quiet", "--out", str(out))
        assert status == 0 and text.splitlines()[-1].startswith(said)
        assert json.loads(out.read_text())["notes"] == [text.splitlines()[-1]]


def test_a_prompt_may_follow_the_weights(run: Callable, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    animals = next(iter(TOPICS))
    assert run("train", animals, str(files[animals]), *SETTINGS)[0] == 0
    greedy, pairs = ("--no-do-sample", "--max-new-tokens", "4", "--json"), ("--weights", f"{animals}=0.5")
    before = json.loads(run("chat", "cat dog", *greedy, *pairs)[1])
    for words in (("cat dog",), ("cat", "dog")):
        after = json.loads(run("chat", *greedy, *pairs, *words)[1])
        assert (after["prompt"], after["answer"]) == ("cat dog", before["answer"])
    for wrong, told in ((("Nobody=1", "cat"), "Nobody"), ((f"{animals}=much", "cat"), "much"), (("cat",), "LOBE=WEIGHT")):
        status, _, error = run("chat", "--weights", *wrong)
        assert status == 1 and told in error
    monkeypatch.setattr("sys.stdin", io.StringIO("cat dog\n"))
    assert json.loads(run("chat", *greedy, *pairs)[1])["answer"] == before["answer"]


def test_a_phase_is_told_on_a_line_of_its_own(run: Callable, files: dict[str, Path]) -> None:
    animals = next(iter(TOPICS))
    told = run("train", animals, str(files[animals]), *SETTINGS[:-1])[2]
    assert "Learning what to route here" in re.split(r"[\r\n]", told)


def test_merge(run: Callable, files: dict[str, Path], tmp_path: Path) -> None:
    animals, numbers, _ = TOPICS
    for topic in (animals, numbers):
        assert run("train", topic, str(files[topic]), *SETTINGS)[0] == 0
    parents = (f"{animals}=0.7", f"{numbers}=0.3")
    status, out, _ = run("merge", "Both", *parents, "--type", "svd", "--rank", "1", "--dry-run", "--json", "--quiet")
    tried = json.loads(out)
    assert status == 0 and tried["parents"] == [[animals, 0.7], [numbers, 0.3]] and tried["kept"] == ""
    assert tried["rank"] == 1 and tried["error"] > 0.1 and [row["dataset"] for row in tried["losses"]] == [animals, numbers]

    status, out, _ = run("merge", "Both", *parents, "--quiet")
    lines = out.splitlines()
    assert status == 0 and lines[0] == f"cat: 0.70 {animals} + 0.30 {numbers}" and lines[1].startswith("rank 4, ")
    assert "error of the delta 0.0000" in lines[1] and lines[-1] == "Kept as 'Both'."
    header, *table = lines[2:5]
    assert header.split()[-6:] == ["Animals", "Numbers", "v1.0", "exact", "mix", "merged"]
    assert [len(row.split()) - row.count("v1.0") for row in table] == [8, 8]
    assert [line.split("\t")[0] for line in run("bundle", "list")[1].splitlines()] == [animals, numbers, "Both"]
    assert run("merge", "both", *parents)[2].splitlines()[-1].endswith("delete that one first.")

    searched = ("--search", str(files[animals]), "--budget", "3", "--quiet", "--json")
    status, out, told = run("merge", "Found", animals, numbers, *searched)
    found = json.loads(out)
    assert status == 0 and found["kept"] == "Found" and f"{len(rows(animals))} rows" in told and "loss" in told
    assert {name for name, _ in found["parents"]} <= {animals, numbers}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "x", "/nowhere.jsonl"), "nowhere.jsonl"),
        (("train", "x", "{bad}", *SETTINGS), "line 2"),
        (("train", "x", "{good}", "--checkpoint", "{bad}/folder", *SETTINGS), "File exists"),
        (("train", "", "{bad}", "--skip-bad", *SETTINGS), "no name"),
        (("train", "x", "{bad}", "--epochs", "0"), "epochs is 0"),
        (("train", "x", "{bad}", "--validation-fraction", "0.9"), "validation_fraction is 0.9"),
        (("train", "x", "{bad}", "--map", "prompt"), "must be ROLE=COLUMN"),
        (("chat", ""), "prompt is empty"),
        (("route", "cat", " "), "prompt is empty"),
        (("chat", "hello", "--lobe", "Nobody"), "Nobody"),
        (("chat", "hello", "--home", "{bad}/home"), "cannot be made"),
        (("eval", "report", "--quiet"), "no"),
        (("eval", "losses", "{bad}"), "bad.jsonl"),
        (("eval", "report", "/nowhere.jsonl"), "nowhere.jsonl cannot be opened"),
        (("eval", "losses", "--out", "{folder}/none/result.json"), "cannot be written"),
        (("eval", "report", "--set", "most=0"), "most is 0"),
        (("merge", "x", "Nobody=1"), "Nobody"),
        (("merge", "x", "Nobody"), "must be LOBE=WEIGHT"),
        (("merge", "x", "Nobody=1", "--type", "soup"), "combination is 'soup'"),
        (("bundle", "save", "{folder}/b.zip"), "no lobe"),
        (("bundle", "load", "{bad}"), "bad.jsonl"),
        (("bundle", "verify", "{folder}/nowhere.zip"), "nowhere.zip"),
    ],
)
def test_mistakes_are_told_in_a_sentence(run: Callable, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"input": "a", "output": "b"}\nnot json\n')
    good = tmp_path / "good.jsonl"
    good.write_text("".join(json.dumps(row) + "\n" for row in rows("Animals")), encoding="utf-8")
    status, _, error = run(*(a.format(bad=bad, good=good, folder=tmp_path) for a in arguments))
    assert status == 1
    assert message in error and "Traceback" not in error
    assert error.splitlines()[-1].strip()
