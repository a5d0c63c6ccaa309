"""The Lab through a studio on a tiny random base: experiments are queued, run, stopped, and their results stay."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import test_studio
from test_model import TOPICS, rows
from test_studio import CONFIG, finish, train, wait_for

from multilobe_ui.app.lab import EXPERIMENTS
from multilobe_ui.app.studio import Studio
from multilobe_ui.errors import ConfigError, DataError, JobError, LobeError

make_studio = test_studio.make_studio


@pytest.fixture
def studio(make_studio: Callable[..., Studio], tmp_path: Path) -> Studio:
    """With two lobes."""
    made = make_studio()
    for topic in list(TOPICS)[:2]:
        finish(made, train(made, tmp_path, topic, CONFIG))
    return made


def labelled(folder: Path, copies: int = 1) -> Path:
    """A file with prompts of two lobes and of none."""
    own = [{"input": row["input"], "lobe": topic} for topic in list(TOPICS)[:2] for row in rows(topic)[::3]]
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [*own, {"input": "strange", "lobe": None}] * copies), encoding="utf-8")
    return path


def run(studio: Studio, name: str, settings: dict[str, Any] | None = None, files: Any = ()) -> dict[str, Any]:
    job = studio.desk().lab.start(name, settings, files)
    finish(studio, job.id)
    view = studio.desk().job(job.id)
    assert view.state == "finished", view.error
    return dict(studio.lab.result(job.id) or {})


def test_the_names_of_experiments_do_not_bring_torch() -> None:
    code = "import multilobe_ui.app.lab, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
def test_every_experiment_has_settings_with_defaults(name: str) -> None:
    settings = fields(EXPERIMENTS[name].settings())
    assert all(f.default is not MISSING or f.default_factory is not MISSING for f in settings)
    assert callable(EXPERIMENTS[name].run()) and EXPERIMENTS[name].title


def test_a_report_card_is_what_routing_by_hand_gives_and_outlives_the_studio(
    studio: Studio, make_studio: Callable[..., Studio], tmp_path: Path
) -> None:
    job = studio.desk().lab.start("report", {"routers": ["hybrid", "keyword"]}, [("my prompts.jsonl", labelled(tmp_path))])
    finish(studio, job.id)
    result = studio.lab.result(job.id)
    assert result is not None and studio.desk().job(job.id).state == "finished"
    assert result["labels"] == [*list(TOPICS)[:2], ""] and {p["source"] for p in result["prompts"]} == {"my prompts.jsonl"}
    for name in ("hybrid", "keyword"):
        by_hand = [studio.loading.model.route(p["prompt"], name).chosen or "" for p in result["prompts"]]
        assert [result["labels"][i] for i in result["routers"][name]["decided"]] == by_hand
    records = studio.metrics(job.id)
    assert records[-1]["step"] == records[-1]["steps"] == 2 * len(result["prompts"])
    studio.close()
    again = make_studio()
    assert [view.id for view in again.desk().lab.runs("report")] == [job.id] and again.desk().lab.runs("losses") == []
    assert again.lab.result(job.id) == result


def test_without_a_file_held_out_rows_are_taken(studio: Studio) -> None:
    card, losses = run(studio, "report", {"most": 5}), run(studio, "losses", {"most_rows": 2, "task_rows": 1})
    assert 0 < len(card["prompts"]) <= 5
    assert {p["lobe"] for p in card["prompts"]} == set(losses["datasets"]) == set(list(TOPICS)[:2])
    assert losses["own"] == losses["datasets"] == losses["lobes"] and len(losses["losses"]) == 3


def test_stop_keeps_what_there_is(studio: Studio, tmp_path: Path) -> None:
    job = studio.desk().lab.start("report", {"routers": ["logprob"]}, [("p.jsonl", labelled(tmp_path, copies=500))])
    wait_for(lambda: studio.desk().job(job.id).step > 10)
    studio.desk().stop(job.id)
    finish(studio, job.id)
    result = studio.lab.result(job.id)
    assert studio.desk().job(job.id).state in ("stopped", "finished") and result is not None and result["stopped"]
    asked = result["routers"]["logprob"]["of"]
    assert 10 < asked == len(result["prompts"]) < 2000


def test_a_result_is_not_there_before_the_end(studio: Studio, tmp_path: Path) -> None:
    job = studio.desk().lab.start("report", {"routers": ["logprob"]}, [("p.jsonl", labelled(tmp_path, copies=500))])
    assert studio.lab.result(job.id) is None
    with pytest.raises(JobError, match="no training job"):
        studio.lab.result("0" * 32)
    wait_for(lambda: studio.desk().job(job.id).state == "running")
    studio.desk().stop(job.id)
    finish(studio, job.id)


def test_wrong_settings_are_refused_before_anything_is_queued(make_studio: Callable[..., Studio]) -> None:
    studio = make_studio()
    for name, settings, match in (
        ("nothing", {}, "no experiment 'nothing'. There are: .*report"),
        ("report", {"router": "x"}, "settings is .'router'.*among routers, most"),
        ("report", {"routers": ["nobody"]}, "nobody"),
        ("report", {"most": "10"}, "most is '10'"),
        ("losses", {"most_rows": -1}, "most_rows is -1"),
        ("losses", {"router": 7}, "router is 7"),
    ):
        with pytest.raises(ConfigError, match=match):
            studio.desk().lab.start(name, settings)
    assert studio.desk().jobs() == []


def test_wrong_files_are_refused_before_anything_is_queued(make_studio: Callable[..., Studio], tmp_path: Path) -> None:
    studio, path = make_studio(), tmp_path / "mine.jsonl"
    finish(studio, train(studio, tmp_path, "Animals"))
    for text, match in (
        ('{"input": "a", "lobe": "Nobody"}\n', r"mine\.jsonl, line 1: the label is 'Nobody'.*There are: Animals"),
        ('{"input": "a", "output": "b"}\n', r'mine\.jsonl does not say whose prompts it has\. Add a column "lobe"'),
        ("", "empty"),
        ("\x00\x01", "binary"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=match):
            studio.desk().lab.start("report", {}, [("mine.jsonl", path)])
    assert [view.kind for view in studio.desk().jobs()] == ["lobe"]


def test_a_failed_experiment_says_why(make_studio: Callable[..., Studio]) -> None:
    empty = make_studio()
    job = empty.desk().lab.start("report")
    finish(empty, job.id)
    assert empty.desk().job(job.id).state == "failed" and "There are no labelled prompts" in empty.desk().job(job.id).error
    assert empty.lab.result(job.id) is None


def test_a_correction_goes_from_the_report_through_a_trial_into_force_and_back(studio: Studio, tmp_path: Path) -> None:
    animals, numbers, _ = TOPICS
    report = studio.desk().lab.start("report", {"routers": ["embedding"]}, [("p.jsonl", labelled(tmp_path))])
    finish(studio, report.id)
    prompt = rows(animals)[0]["input"]
    before = studio.route(prompt).chosen
    studio.desk().lab.correct(prompt, numbers, was=before or "")
    told = studio.lab.corrections()
    assert [(c["prompt"], c["lobe"], c["was"], c["kept"]) for c in told] == [(prompt, numbers, before or "", False)]
    trial = studio.desk().lab.start("refit", {"routers": ["embedding"]}, rows_of=report.id)
    finish(studio, trial.id)
    result = studio.lab.result(trial.id)
    asked = len(studio.lab.result(report.id)["prompts"])  # type: ignore[index]
    assert result and result["routers"]["embedding"]["of"] == asked - 1 and not result["kept"]
    assert studio.route(prompt).chosen == before
    studio.desk().lab.keep_refit(trial.id)
    assert studio.route(prompt).chosen == numbers and studio.lab.result(trial.id)["kept"]  # type: ignore[index]
    studio.desk().lab.forget_corrections([told[0]["id"]])
    assert studio.route(prompt).chosen == before and studio.lab.corrections() == []
    with pytest.raises(JobError, match="not refitted anything"):
        studio.desk().lab.keep_refit(report.id)
    with pytest.raises(LobeError, match="no lobe called 'Nobody'"):
        studio.desk().lab.correct(prompt, "Nobody")


def test_on_a_shared_server_rows_stay_with_who_brought_them(
    make_studio: Callable[..., Studio], studio: Studio, tmp_path: Path
) -> None:
    studio.close()
    shared = make_studio(shared=True)
    me, you = shared.desk("token:me").lab, shared.desk("token:you").lab
    mine = me.start("report", {"routers": ["keyword"]}, [("p.jsonl", labelled(tmp_path))])
    ours = me.start("report", {"routers": ["keyword"]})
    for job in (mine, ours):
        finish(shared, job.id)
    assert [job.id for job in me.runs("report")] == [ours.id, mine.id]
    assert [job.id for job in you.runs("report")] == [ours.id]
    for refused in (
        lambda: me.correct("cat", None),
        me.forget_corrections,
        lambda: me.keep_refit(mine.id),
        lambda: me.start("merge"),
        lambda: me.start("refit"),
        me.clear_ledger,
        lambda: me.export_feedback("routing"),
    ):
        with pytest.raises(ConfigError, match="server is shared"):
            refused()
