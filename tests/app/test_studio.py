"""The studio on a tiny random base: chat, jobs, lobes, several people at once, and a process that is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from test_model import TOPICS, WordEmbedder, rows

from multilobe_ui.app.studio import Studio
from multilobe_ui.errors import BusyError, ConfigError, DataError, JobError, LobeError, MultiLobeError
from multilobe_ui.routing.decision import Mixing
from multilobe_ui.settings import SamplingConfig, TrainingConfig

GREEDY = SamplingConfig(max_new_tokens=12, do_sample=False)
CONFIG = TrainingConfig(epochs=1, lora_r=2, learning_rate=1e-2, batch_size=8, validation_fraction=0.1)
LONG = TrainingConfig(epochs=1000, lora_r=2, batch_size=2, learning_rate=1e-4)


def data(folder: Path, topic: str = "Animals") -> Path:
    path = folder / f"{list(TOPICS).index(topic)}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(topic)), encoding="utf-8")
    return path


def wait_for(condition: Callable[[], object], seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def make_studio(
    base_folder: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Studio]]:
    monkeypatch.setattr("multilobe_ui.model.Embedder", lambda *a: WordEmbedder())
    made: list[Studio] = []

    def make(**options: object) -> Studio:
        studio = Studio(tmp_path / "home", str(base_folder()), **options)  # type: ignore[arg-type]
        studio.start()
        studio.ready(60)
        wait_for(lambda: studio.status().state == "ready")
        made.append(studio)
        return studio

    yield make
    for studio in made:
        studio.close()


def train(studio: Studio, folder: Path, topic: str, config: TrainingConfig = CONFIG, **options: object) -> str:
    return studio.desk().train(topic, data(folder, topic), config, **options).id  # type: ignore[arg-type]


def finish(studio: Studio, job_id: str) -> None:
    wait_for(lambda: studio.desk().job(job_id).state not in ("queued", "running", "stopping"))


def chat(studio: Studio, text: str, choice: str = "automatic") -> str:
    return list(studio.chat([{"role": "user", "content": text}], choice, GREEDY))[-1].text


def test_importing_the_studio_does_not_import_torch() -> None:
    code = "import multilobe_ui.app.studio, sys; sys.exit('torch' in sys.modules or 'gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nobody_imports_torch_while_the_loading_does(tmp_path: Path) -> None:
    """Two threads in the midst of torch's imports fail both: whoever comes early waits first, and only then imports."""
    program = """
import sys
from multilobe_ui.errors import BusyError
from multilobe_ui.app.studio import Studio

studio, waited = Studio(sys.argv[1]), []
studio.loading._loaded.wait = lambda seconds=None: waited.append(seconds)  # nobody waits long
early = {
    "chat": lambda: list(studio.chat([{"role": "user", "content": "x"}])),
    "route": lambda: studio.route("x"),
    "prompt_map": lambda: studio.prompt_map("x"),
    "stratify": lambda: studio.stratify(),
    "experiment": lambda: studio.desk().lab.start("losses"),
    "compare": lambda: list(studio.lab.compare("x", [])),
    "merge_options": lambda: studio.lab.merge_options(["x", "y"]),
    "overlap": lambda: studio.lab.overlap(sys.argv[1]),
}
for name, call in early.items():
    waited.clear()
    try:
        call()
    except BusyError:
        pass
    assert waited and "torch" not in sys.modules, name
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)


def test_a_home_that_cannot_be_made_is_told_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match=re.escape(f"{str(tmp_path / 'file' / 'home')!r} cannot be made")):
        Studio(tmp_path / "file" / "home")


def test_train_then_chat(make_studio: Callable, tmp_path: Path) -> None:
    studio = make_studio()
    assert studio.desk().lobes() == []
    version = studio.status().version
    job = train(studio, tmp_path, "Animals")
    finish(studio, job)
    view = studio.desk().job(job)
    assert view.state == "finished", view.error
    assert view.step == view.steps and view.rows == len(rows("Animals")) and view.best_validation_loss is not None
    assert [lobe.name for lobe in studio.desk().lobes()] == ["Animals"]
    assert studio.status().version > version
    records = studio.metrics(job)
    assert [r["step"] for r in records if r["loss"] is not None] == list(range(1, view.steps + 1))

    events = list(studio.chat([{"role": "user", "content": "cat dog"}], sampling=GREEDY))
    assert events[0].text == "" and events[0].decision.chosen == "Animals"
    assert events[-1].done and not events[-1].stopped and events[-1].answer_tokens > 0
    assert [e.done for e in events].count(True) == 1


def test_once_ready_a_first_question_is_all_that_is_read(
    make_studio: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = make_studio()
    for topic in list(TOPICS)[:2]:
        finish(earlier, train(earlier, tmp_path, topic))
    earlier.close()
    read: list[str] = []
    encode = WordEmbedder.__call__
    monkeypatch.setattr(WordEmbedder, "__call__", lambda self, texts: read.extend(texts) or encode(self, texts))
    studio = make_studio()
    assert len(set(read)) > 1  # the prompts of everyday talk, and more
    read.clear()
    studio.route("cat dog")
    assert set(read) == {"cat dog"}


def test_choices(make_studio: Callable, tmp_path: Path) -> None:
    studio = make_studio()
    finish(studio, train(studio, tmp_path, "Animals"))
    model = studio.loading.model
    assert chat(studio, "cat dog", "base") == model.generate("cat dog", weights={}, max_new_tokens=12, do_sample=False)
    assert chat(studio, "cat dog", "lobe:Animals") == model.generate(
        "cat dog", "Animals", max_new_tokens=12, do_sample=False
    )
    with pytest.raises(MultiLobeError, match="Nobody"):
        chat(studio, "x", "lobe:Nobody")
    with pytest.raises(ConfigError, match="choice is 'anything'"):
        chat(studio, "x", "anything")


def test_a_stop_ends_an_answer(make_studio: Callable) -> None:
    studio, stop = make_studio(), threading.Event()
    events = studio.chat([{"role": "user", "content": "one"}], sampling=SamplingConfig(max_new_tokens=90), stop=stop)
    next(events)
    stop.set()
    last = list(events)[-1]
    assert last.done and last.stopped and last.answer_tokens <= 1


def test_two_chats_at_once_while_a_third_lobe_trains(make_studio: Callable, tmp_path: Path) -> None:
    studio = make_studio()
    first, second, third = TOPICS
    for topic in (first, second):
        finish(studio, train(studio, tmp_path, topic))
    choices = [f"lobe:{first}", f"lobe:{second}", "base"]
    alone = [chat(studio, "red cat one", choice) for choice in choices]
    job = train(studio, tmp_path, third, LONG)
    wait_for(lambda: studio.desk().job(job).step > 2)
    results: dict[int, list[str]] = {i: [] for i in range(6)}

    def talk(i: int) -> None:
        for _ in range(4):
            results[i].append(chat(studio, "red cat one", choices[i % 3]))

    threads = [threading.Thread(target=talk, args=(i,)) for i in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert studio.desk().job(job).state == "running"
    for i, texts in results.items():
        assert texts == [alone[i % 3]] * 4
    studio.desk().stop(job)
    finish(studio, job)


def test_stop_keeps_the_newest_and_resume_goes_on(make_studio: Callable, tmp_path: Path) -> None:
    studio = make_studio()
    config = TrainingConfig(epochs=6, lora_r=2, learning_rate=5e-3, batch_size=2)
    job = train(studio, tmp_path, "Animals", config)
    wait_for(lambda: studio.desk().job(job).step >= 5)
    studio.desk().stop(job)
    finish(studio, job)
    stopped = studio.desk().job(job)
    assert stopped.state == "stopped" and 5 <= stopped.step < stopped.steps
    assert [lobe.name for lobe in studio.desk().lobes()] == ["Animals"]
    studio.desk().rename("Animals", "Beasts")
    studio.desk().resume(job)
    finish(studio, job)
    assert studio.desk().job(job).state == "finished", studio.desk().job(job).error
    assert [lobe.name for lobe in studio.desk().lobes()] == ["Beasts"]  # the same lobe, trained to the end
    steps = [r["step"] for r in studio.metrics(job) if r["loss"] is not None]
    assert steps == list(range(1, studio.desk().job(job).steps + 1))


def test_the_queue(make_studio: Callable, tmp_path: Path) -> None:
    studio = make_studio()
    first, second, third = TOPICS
    running = train(studio, tmp_path, first, LONG)
    waiting, last = train(studio, tmp_path, second), train(studio, tmp_path, third)
    with pytest.raises(LobeError, match="being trained already"):
        studio.desk().train(third.upper(), data(tmp_path, third))
    wait_for(lambda: studio.desk().job(running).state == "running")
    assert [studio.desk().job(j).place for j in (waiting, last)] == [1, 2]
    assert studio.desk().move(last, -1).place == 1
    studio.desk().cancel(waiting)
    with pytest.raises(BusyError, match="training"):
        studio.desk().change_base("builtin")
    studio.desk().stop(running)
    finish(studio, last)
    assert {lobe.name for lobe in studio.desk().lobes()} == {first, third}


def test_failures_are_told_and_leave_no_lobe(make_studio: Callable, tmp_path: Path) -> None:
    studio = make_studio()
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"input": "a", "output": "b"}\nnot json\n')
    job = studio.desk().train("Bad", bad, CONFIG).id
    finish(studio, job)
    assert studio.desk().job(job).state == "failed" and "line 2" in studio.desk().job(job).error
    assert studio.desk().lobes() == []
    good = studio.desk().train("Good", bad, CONFIG, skip_bad=True).id
    finish(studio, good)
    assert studio.desk().job(good).state == "finished"
    with pytest.raises(DataError):
        studio.desk().train("Empty", tmp_path / "nowhere.jsonl")
    with pytest.raises(JobError):
        studio.desk().stop("../../etc")


def test_shared_use(make_studio: Callable, tmp_path: Path) -> None:
    studio = make_studio(shared=True)
    anna, ben, nobody = studio.desk("token:anna"), studio.desk("token:ben"), studio.desk()
    job = anna.train("Animals", data(tmp_path, "Animals"), LONG).id
    wait_for(lambda: nobody.job(job).step > 0)
    assert anna.job(job).mine and not ben.job(job).mine
    for verb in (ben.stop, ben.resume, ben.cancel, ben.forget, nobody.stop):
        with pytest.raises(JobError, match="somebody else"):
            verb(job)
    anna.stop(job)
    finish(studio, job)
    for act in (lambda: ben.delete("Animals"), lambda: nobody.rename("Animals", "X")):
        with pytest.raises(LobeError, match="somebody else"):
            act()
    with pytest.raises(ConfigError, match="shared"):
        anna.change_base("builtin")
    bundle = studio.save_bundle()
    with pytest.raises(ConfigError, match="replace"):
        ben.load_bundle(bundle, "replace")
    names = ben.load_bundle(bundle)
    assert [lobe.protected for lobe in ben.lobes()] == [True, False]
    ben.delete(names[0])
    anna.delete("Animals")


def test_another_base(make_studio: Callable, base_folder: Callable, tmp_path: Path) -> None:
    studio = make_studio()
    finish(studio, train(studio, tmp_path, "Animals"))
    studio.desk().change_base(str(tmp_path / "nowhere"))
    wait_for(lambda: studio.status().state == "ready")
    assert "nowhere" in studio.status().message  # the old base goes on
    assert chat(studio, "cat dog") is not None
    studio.desk().change_base(str(base_folder("gpt2")))
    wait_for(lambda: studio.status().state == "ready")
    assert studio.status().base["architecture"] == "GPT2LMHeadModel"
    assert [lobe.usable for lobe in studio.desk().lobes()] == [False]
    finish(studio, train(studio, tmp_path, "Numbers v1.0"))
    assert [lobe.usable for lobe in studio.desk().lobes()] == [False, True]
    studio.desk().change_base(str(base_folder()))
    wait_for(lambda: studio.status().state == "ready")
    assert [lobe.usable for lobe in studio.desk().lobes()] == [True, False]


def test_no_base_at_all(tmp_path: Path) -> None:
    studio = Studio(tmp_path / "home", str(tmp_path / "nowhere"))
    studio.start()
    with pytest.raises(MultiLobeError, match="nowhere"):
        studio.ready(60)
    assert studio.status().state == "failed"
    with pytest.raises(MultiLobeError, match="nowhere"):
        next(studio.chat([{"role": "user", "content": "x"}]))
    studio.close()


KILLED = """
import sys, time; sys.path.insert(0, sys.argv[1])
import test_model as t, multilobe_ui.model as m
m.Embedder = lambda *a: t.WordEmbedder()
from multilobe_ui.app.studio import Studio
from multilobe_ui.settings import TrainingConfig
studio = Studio(sys.argv[2], sys.argv[3]); studio.start(); studio.ready()
job = studio.desk().train("Animals", sys.argv[4], TrainingConfig(**t.json.loads(sys.argv[5]))).id
while True:
    view = studio.desk().job(job)
    print(job, view.step, (studio.home / "jobs" / job / "checkpoint" / "state.json").exists(), flush=True)
    time.sleep(0.02)
"""


def test_a_killed_process_leaves_an_interrupted_run_that_resumes(
    make_studio: Callable, base_folder: Callable, tmp_path: Path
) -> None:
    config = {"epochs": 30, "lora_r": 2, "learning_rate": 5e-3, "batch_size": 2, "lora_dropout": 0.1, "validation_fraction": 0.1}
    arguments = [
        str(Path(__file__).parents[1]),
        str(tmp_path / "home"),
        str(base_folder()),
        str(data(tmp_path)),
        json.dumps(config),
    ]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        job, step, checkpoint = line.split()
        if int(step) > 20 and checkpoint == "True":
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    studio = make_studio()
    view = studio.desk().job(job)
    assert view.state == "interrupted" and 0 < view.step < view.steps
    studio.desk().resume(job)
    finish(studio, job)
    assert studio.desk().job(job).state == "finished", studio.desk().job(job).error
    assert [r["step"] for r in studio.metrics(job) if r["loss"] is not None] == list(range(1, view.steps + 1))

    straight = studio.desk().train("Straight", data(tmp_path), TrainingConfig(**config)).id
    finish(studio, straight)

    def curve(j: str) -> list[float]:
        return [r["validation_loss"] for r in studio.metrics(j) if r["validation_loss"] is not None]

    assert curve(job)[-1] == pytest.approx(curve(straight)[-1], rel=0.01)
    assert curve(job) == pytest.approx(curve(straight), rel=0.01)


def test_a_run_whose_lobe_is_there_already_resumes(make_studio: Callable, tmp_path: Path) -> None:
    """A process that was killed between adding the lobe and noting it leaves a run without a lobe's id."""
    studio = make_studio()
    job = train(studio, tmp_path, "Animals")
    finish(studio, job)
    (lobe,) = studio.desk().lobes()
    jobs = studio.runs.jobs
    jobs._put(replace(jobs.get(job), state="interrupted", lobe_id=""))
    studio.desk().resume(job)
    finish(studio, job)
    assert studio.desk().job(job).state == "finished", studio.desk().job(job).error
    assert [(found.name, found.rows) for found in studio.desk().lobes()] == [(lobe.name, lobe.rows)]


def test_bundles_and_adapters(make_studio: Callable, adapters: dict[str, Path], tmp_path: Path) -> None:
    studio = make_studio()
    finish(studio, train(studio, tmp_path, "Animals"))
    before = chat(studio, "cat dog", "lobe:Animals")
    path = studio.save_bundle(["Animals"])
    studio.desk().delete("Animals")
    assert studio.desk().lobes() == []
    assert studio.desk().load_bundle(path) == ["Animals"]
    assert chat(studio, "cat dog", "lobe:Animals") == before
    assert studio.desk().import_adapter("Plain", adapters["plain"]).r == 4
    assert len({lobe.colour for lobe in studio.desk().lobes()}) == 2


# ---- routers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_lobes(make_studio: Callable, tmp_path: Path) -> Studio:
    studio = make_studio()
    for topic in list(TOPICS)[:2]:
        finish(studio, train(studio, tmp_path, topic))
    return studio


def test_a_router_is_fitted_as_a_job_and_goes_stale(with_lobes: Studio, tmp_path: Path) -> None:
    studio = with_lobes
    views = {view.name: view for view in studio.desk().routers()}
    assert studio.desk().routers()[0].name == "hybrid" and all(view.title and view.sentence for view in views.values())
    assert views["gate"].asks_for_fit and not views["gate"].fitted and "fit" in views["gate"].why
    version = studio.status().version
    job = studio.desk().fit_router("gate")
    assert job.kind == "router" and job.name == "gate"
    finish(studio, job.id)
    assert studio.desk().job(job.id).state == "finished", studio.desk().job(job.id).error
    assert studio.status().version > version
    curve = studio.metrics(job.id)
    assert curve and all({"step", "steps", "phase", "values"} <= record.keys() for record in curve)
    view = next(view for view in studio.desk().routers() if view.name == "gate")
    assert view.fitted and not view.stale and view.why == "" and view.fitted_at and "accuracy" in view.report
    finish(studio, train(studio, tmp_path, list(TOPICS)[2]))
    view = next(view for view in studio.desk().routers() if view.name == "gate")
    assert view.fitted and view.stale and "again" in view.why


def test_a_fit_is_refused_with_the_reason(with_lobes: Studio) -> None:
    with pytest.raises(ConfigError, match=r"no router 'x'"):
        with_lobes.desk().fit_router("x")
    with pytest.raises(ConfigError, match="settings"):
        with_lobes.desk().fit_router("gate", {"nonsense": 1})


def test_chat_by_router_mixing_and_hand(with_lobes: Studio) -> None:
    studio = with_lobes
    first, second = list(TOPICS)[:2]

    def events(choice: str = "automatic", **how: object) -> list:
        return list(studio.chat([{"role": "user", "content": "cat dog"}], choice, GREEDY, **how))  # type: ignore[arg-type]

    assert events(router="keyword")[0].decision.router == "keyword"
    mixed = events("mix", weights={first: 0.5, second: 0.5})
    assert mixed[0].decision.weights == {first: 0.5, second: 0.5}
    alone = {name: events(f"lobe:{name}")[-1].text for name in (first, second)}
    assert events("mix", weights={first: 1.0})[-1].text == alone[first]
    assert events("mix", weights={})[-1].text == events("base")[-1].text
    with pytest.raises(MultiLobeError, match="no lobe called"):
        events("mix", weights={"nobody": 1.0})
    with pytest.raises(MultiLobeError, match="mixing mode"):
        Mixing("all")
    two = events(router="embedding", mixing=Mixing("soft"))[0].decision
    assert two.chosen is None or sum(two.weights.values()) == pytest.approx(1)


def test_token_routers_give_a_trace_that_adds_up_to_the_answer(with_lobes: Studio) -> None:
    hot = SamplingConfig(max_new_tokens=6, temperature=5.0, seed=0)  # so that the answer does not end at its first token
    event = list(with_lobes.chat([{"role": "user", "content": "cat dog"}], "automatic", hot, router="arrow"))[-1]
    assert event.answer_tokens
    if event.decision.per_token:
        assert len(event.trace) == event.answer_tokens
        assert "".join(token.text for token in event.trace).strip() == event.text
        for token in event.trace:
            assert sum(token.weights.values()) == pytest.approx(1, abs=1e-4)
            assert token.layers.shape[1] == len(token.weights) == 2
    assert event.decision.per_token == bool(event.trace)


def test_words_of_the_keyword_router_are_a_persons_to_change(with_lobes: Studio) -> None:
    studio = with_lobes
    first, second = list(TOPICS)[:2]
    learned = studio.desk().keyword_terms(first)
    assert learned and studio.route("zebra", "keyword").chosen is None
    changed = studio.desk().set_keyword_terms(first, [*[term for term, _ in learned][:3], "zebra"])
    assert [term for term, _ in changed if term == "zebra"]
    assert studio.route("zebra", "keyword").chosen == first
    assert studio.desk().set_keyword_terms(first, []) == learned
    assert studio.desk().keyword_terms(second)


def test_every_usable_router_is_compared(with_lobes: Studio) -> None:
    decisions = with_lobes.compare_routers("cat dog")
    names = [d.router for d in decisions]
    assert names[0] == "hybrid" and {"embedding", "logprob", "keyword"} <= set(names) and "gate" not in names
    shown = with_lobes.prompt_map("cat dog")
    assert shown.prompt is not None and set(shown.lobes) == set(list(TOPICS)[:2])
    assert with_lobes.prompt_map().prompt is None


def test_a_shared_server_keeps_what_all_use(make_studio: Callable, tmp_path: Path) -> None:
    studio = make_studio(shared=True)
    finish(studio, studio.desk("me").train("Animals", data(tmp_path, "Animals"), CONFIG).id)
    for attempt in (
        lambda: studio.desk().set_keyword_terms("Animals", ["x"]),
        lambda: studio.desk().set_chain([["keyword", 0.5]]),
        lambda: studio.desk().fit_router("complexity"),
    ):
        with pytest.raises(ConfigError, match="shared"):
            attempt()


def test_on_a_shared_server_chats_are_decoded_together(make_studio: Callable[..., Studio], tmp_path: Path) -> None:
    single = make_studio()
    for topic in list(TOPICS)[:2]:
        finish(single, train(single, tmp_path, topic))
    asked = [("cat dog", "lobe:Animals"), ("one two", "lobe:Numbers v1.0"), ("red", "base"), ("cat", "lobe:Animals")]
    alone = [chat(single, *one) for one in asked]
    single.close()
    shared = make_studio(shared=True)
    serving = shared.ready().serving
    sizes: list[int] = []
    step, take_in = serving._step, serving._take_in

    def watched() -> None:
        sizes.append(len(serving._rows))
        step()

    def all_at_once() -> bool:
        if not sizes:
            wait_for(lambda: len(serving._waiting) == len(asked))
        return take_in()

    serving._step, serving._take_in = watched, all_at_once  # type: ignore[method-assign]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda one: chat(shared, *one), asked)) == alone
    assert max(sizes) > 1, "they were in one batch"
    long = SamplingConfig(max_new_tokens=60, do_sample=False)
    events = shared.chat([{"role": "user", "content": "cat dog"}], "lobe:Animals", long)
    next(events), next(events)
    events.close()  # type: ignore[attr-defined]
    wait_for(lambda: not serving._rows)
    assert shared.ledger.recent(1)[0].stopped
