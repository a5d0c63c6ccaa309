"""Training jobs with fake runners: nothing here waits for time, only for what happens."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from multilobe_ui.app import job_folder, job_handle
from multilobe_ui.app import jobs as jobs_module
from multilobe_ui.app.job import Job, JobSpec
from multilobe_ui.app.job_handle import JobHandle
from multilobe_ui.app.jobs import Jobs
from multilobe_ui.errors import DataError, JobError
from multilobe_ui.files import read_json, write_json

STEPS = 12
TESTS = Path(__file__).parent


class Desk:
    """A Jobs whose runner does what each test says by name, and a way to wait for what happens."""

    def __init__(self, folder: Path, runner=None):
        self.go = threading.Event()  # lets waiting runners end
        self.started: list[str] = []
        self.jobs = Jobs(folder, runner or self.run)

    def run(self, handle: JobHandle) -> str:
        self.started.append(handle.job.spec.name)
        handle.phase("Waiting")
        while not self.go.wait(0.001) and not handle.stop.is_set():
            pass
        return f"lobe of {handle.job.spec.name}"

    def submit(self, name: str, data: Path) -> Job:
        return self.jobs.submit(JobSpec(name, {"epochs": 1}), data)

    def until(self, condition) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.002)

    def until_state(self, id: str, *states: str) -> Job:
        self.until(lambda: self.jobs.get(id).state in states)
        return self.jobs.get(id)


@pytest.fixture
def data(tmp_path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n')
    return path


@pytest.fixture
def open_desk(tmp_path):
    desks = []

    def open_(runner=None, start=True, folder=tmp_path / "home" / "jobs") -> Desk:
        desk = Desk(folder, runner)
        desks.append(desk)
        if start:
            desk.jobs.start()
        return desk

    yield open_
    for desk in desks:
        desk.go.set()
        desk.jobs.close()
        assert desk.jobs._thread is None or not desk.jobs._thread.is_alive()


def count(handle: JobHandle, steps: int = STEPS) -> str:
    """A fake training with a checkpoint every fifth step."""
    state = handle.checkpoint / "state.json"
    step = read_json(state)["step"] if state.exists() else -1
    handle.truncate_metrics(step)
    while step < steps and not handle.stop.is_set():
        step += 1
        handle.record({"step": step, "loss": 9.0 - step, "validation_loss": 10.0 - step if step % 5 == 0 else None})
        if step % 5 == 0:
            handle.checkpoint.mkdir(exist_ok=True)
            write_json(state, {"step": step})
    return "lobe_0001"


def train_in_child(folder: str) -> None:
    """What the subprocesses below run: train until killed, and say when there is something to lose."""
    begun, submitted = threading.Event(), threading.Event()

    def runner(handle: JobHandle) -> str:
        count(handle, 8)
        with (handle.folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 9, "lo')
        begun.set()
        submitted.wait()
        print(handle.job.id, flush=True)
        handle.stop.wait()
        return ""

    jobs = Jobs(Path(folder), runner)
    jobs.start()
    jobs.submit(JobSpec("Medicine", {}), Path(__file__))
    begun.wait()
    for name in ("Law", "Code"):
        job = jobs.submit(JobSpec(name, {}), Path(__file__))
    jobs.move(job.id, -5)
    submitted.set()
    threading.Event().wait()


@pytest.fixture
def child(tmp_path):
    """A process that has trained to step 8 (its checkpoint: 5); its job's id is in `child.job`."""
    code = f"import sys; sys.path[:0] = {[str(TESTS), str(TESTS.parents[1])]!r}; import test_jobs; "
    code += f"test_jobs.train_in_child({str(tmp_path / 'home' / 'jobs')!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with process:
        process.job = process.stdout.readline().strip()
        try:
            assert process.job, f"the child has ended by itself: {process.poll()}"
            yield process
        finally:
            process.kill()


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


# ---- the life of a job -----------------------------------------------------------------------------------------------


def test_a_job_runs_and_is_the_same_after_a_restart(open_desk, data):
    desk = open_desk()
    config = {"target_modules": ("q", "v")}
    spec = JobSpec("Medicine", config, "visitor", "mine.jsonl", {"prompt": "a"}, True, {"x": [1]})
    job = desk.jobs.submit(spec, data)
    assert job.spec.config == {"target_modules": ["q", "v"]} and job.created
    data.write_text("changed since")
    desk.until_state(job.id, "running")
    desk.go.set()
    done = desk.until_state(job.id, "finished")
    assert (done.lobe_id, done.place, done.error) == ("lobe of Medicine", None, "") and done.started and done.finished
    assert "prompt" in (desk.jobs.folder / job.id / "data.jsonl").read_text()
    desk.jobs.close()
    assert open_desk().jobs.list() == [done]


def test_records_are_seen_at_once_and_summed_up(open_desk, data, monkeypatch):
    monkeypatch.setattr(job_handle, "SAVE_SECONDS", float("inf"))
    seen = []

    def runner(handle: JobHandle) -> str:
        handle.phase("Training")
        handle.update(rows=40)
        before = handle._jobs.version
        handle.record({"step": 0, "loss": None, "validation_loss": 3.0})
        for step, loss in enumerate((float("nan"), 2.0, 1.0, 1.5), start=1):
            handle.record({"step": step, "loss": loss + 0.5, "validation_loss": loss})
        on_disk = read_json(handle.folder / "job.json")
        handle.record({"step": 5, "loss": 0.9, "validation_loss": None})
        assert read_json(handle.folder / "job.json") == on_disk  # a plain step so soon is not worth a file
        assert handle._jobs.version >= before + 6
        seen.append(handle.job)
        return "lobe"

    desk = open_desk(runner)
    done = desk.until_state(desk.submit("Medicine", data).id, "finished", "failed")
    assert done.state == "finished" and seen[0].phase == "Training" and done.phase == ""
    assert (done.rows, done.base_validation_loss, done.best_validation_loss) == (40, 3.0, 1.0)
    assert done.latest == seen[0].latest == {"step": 5, "loss": 0.9, "validation_loss": None}
    assert [record["step"] for record in desk.jobs.metrics(done.id)] == [0, 1, 2, 3, 4, 5]
    assert read_json(desk.jobs.folder / done.id / "job.json")["latest"]["step"] == 5


def test_stop_keeps_the_best_and_resume_goes_on_in_one_curve(open_desk, data):
    reached, runs = threading.Event(), []

    def runner(handle: JobHandle) -> str:
        runs.append(handle)
        if len(runs) == 1:
            count(handle, 7)  # two steps past the checkpoint
            reached.set()
            handle.stop.wait()
            return "kept"
        assert not handle.stop.is_set() and handle.job.lobe_id == "kept"
        assert handle.job.best_validation_loss == 5.0
        if len(runs) == 2:
            raise DataError("Not today.")
        return count(handle)

    desk = open_desk(runner)
    job = desk.submit("Medicine", data)
    assert reached.wait(60)
    assert len(desk.jobs.metrics(job.id)) == 8  # so the viewer's cache is older than the truncation
    assert desk.jobs.stop(job.id).state in ("stopping", "stopped")
    stopped = desk.until_state(job.id, "stopped")
    assert stopped.lobe_id == "kept"
    assert desk.jobs.resume(job.id).id == job.id
    failed = desk.until_state(job.id, "failed", "finished")
    assert (failed.error, failed.lobe_id) == ("Not today.", "kept")
    desk.jobs.resume(job.id)
    done = desk.until_state(job.id, "finished", "failed")
    assert (done.state, done.lobe_id, done.latest["step"]) == ("finished", "lobe_0001", STEPS)
    assert [record["step"] for record in desk.jobs.metrics(job.id)] == list(range(STEPS + 1))


def test_a_stop_that_has_not_ended_yet_can_be_asked_again(open_desk, data):
    asked, let_go = threading.Event(), threading.Event()

    def runner(handle: JobHandle) -> str:
        asked.set()
        let_go.wait()
        return "lobe"

    desk = open_desk(runner)
    job = desk.submit("Medicine", data)
    assert asked.wait(60)
    assert desk.jobs.stop(job.id).state == desk.jobs.stop(job.id).state == "stopping"
    with pytest.raises(JobError, match="'Medicine' is stopping and cannot be resumed: wait"):
        desk.jobs.resume(job.id)
    let_go.set()
    assert desk.until_state(job.id, "stopped").lobe_id == "lobe"


# ---- the queue -------------------------------------------------------------------------------------------------------


def names(desk: Desk) -> list[str]:
    queued = sorted((job for job in desk.jobs.list() if job.place), key=lambda job: job.place)
    assert [job.place for job in queued] == list(range(1, len(queued) + 1))
    return [job.spec.name for job in queued]


def test_one_runs_and_the_others_queue_in_the_order_given(open_desk, data):
    desk = open_desk()
    a, b, c, d = (desk.submit(name, data) for name in "abcd")
    desk.until_state(a.id, "running")
    assert [job.spec.name for job in desk.jobs.list()] == ["d", "c", "b", "a"]
    assert names(desk) == ["b", "c", "d"]
    assert desk.jobs.move(d.id, -1).place == 2 and names(desk) == ["b", "d", "c"]
    assert desk.jobs.move(b.id, 99).place == 3 and names(desk) == ["d", "c", "b"]
    assert desk.jobs.move(b.id, -99).place == 1 and names(desk) == ["b", "d", "c"]
    assert desk.jobs.move(b.id, -1).place == 1 and names(desk) == ["b", "d", "c"]
    assert desk.jobs.cancel(d.id).state == "stopped" and names(desk) == ["b", "c"]
    assert desk.jobs.resume(d.id).place == 3
    desk.jobs.forget(c.id)
    desk.go.set()
    for job in (a, b, d):
        desk.until_state(job.id, "finished")
    assert desk.started == ["a", "b", "d"]


def test_the_queue_and_its_order_survive_a_restart(open_desk, data):
    desk = open_desk()
    a, _, c = (desk.submit(name, data) for name in "abc")
    desk.until_state(a.id, "running")
    desk.jobs.move(c.id, -1)
    desk.jobs.close()
    assert desk.jobs.get(a.id).state == "interrupted"
    again = open_desk()
    again.until(lambda: again.started == ["c"])
    assert names(again) == ["b"]


def test_what_is_wrong_in_this_state_is_said_with_the_way_out(open_desk, data):
    desk = open_desk()
    running, queued = desk.submit("Medicine", data), desk.submit("Law", data)
    desk.until_state(running.id, "running")
    for act, verb in (
        (desk.jobs.resume, "resumed"),
        (desk.jobs.cancel, "cancelled"),
        (lambda id: desk.jobs.move(id, 1), "moved"),
        (desk.jobs.forget, "forgotten"),
    ):
        with pytest.raises(JobError, match=f"'Medicine' is running and cannot be {verb}: stop it"):
            act(running.id)
    with pytest.raises(JobError, match="'Law' is queued and cannot be stopped: cancel it"):
        desk.jobs.stop(queued.id)
    desk.go.set()
    desk.until_state(queued.id, "finished")
    with pytest.raises(JobError, match="'Law' is finished and cannot be resumed: start a new one, or forget it"):
        desk.jobs.resume(queued.id)


# ---- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (DataError("There is no row to train on."), "There is no row to train on."),
        (ZeroDivisionError("secret"), "Something unexpected stopped this run (ZeroDivisionError). Its progress"),
        (SystemExit("secret"), "Something unexpected stopped this run (SystemExit)."),
        (DataError("\udcff"), "\udcff"),  # cannot be written, but must not end the worker
    ],
)
def test_a_failed_job_says_why_and_the_next_one_runs(open_desk, data, problem, said):
    def runner(handle: JobHandle) -> str:
        if handle.job.spec.name == "bad" and not handle.checkpoint.exists():
            handle.checkpoint.mkdir()
            raise problem
        return "lobe"

    desk = open_desk(runner)
    bad, good = desk.submit("bad", data), desk.submit("good", data)
    failed = desk.until_state(bad.id, "failed")
    assert failed.error.startswith(said) and "secret" not in failed.error and failed.finished
    trace = desk.jobs.folder / bad.id / "error.txt"
    assert ("secret" in trace.read_text()) if "unexpected" in said else not trace.exists()
    desk.until_state(good.id, "finished")
    desk.jobs.resume(bad.id)
    assert desk.until_state(bad.id, "finished").error == ""


def test_a_full_disk_is_said_and_the_worker_lives_on(open_desk, data, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")

    def refuse(path, value):
        raise full

    def runner(handle: JobHandle) -> str:
        for module in (jobs_module, job_folder):
            monkeypatch.setattr(module, "write_json", refuse)
        handle.phase("Training")
        return "lobe"

    desk = open_desk(runner)
    job = desk.submit("Medicine", data)
    assert "No space left on device" in desk.until_state(job.id, "failed").error
    with pytest.raises(JobError, match=r"mine\.jsonl cannot be copied \(No space left on device\)\. Free some space"):
        desk.submit("Law", data)
    with pytest.raises(JobError, match="No space left"):
        desk.jobs.resume(job.id)
    monkeypatch.undo()
    assert [path.name for path in desk.jobs.folder.iterdir() if path.is_dir()] == [job.id]
    with pytest.raises(JobError, match=r"missing\.jsonl cannot be copied"):
        desk.submit("Law", data.with_name("missing.jsonl"))
    desk.jobs.resume(job.id)
    desk.until_state(job.id, "failed")  # it ran: the worker is alive


def test_a_folder_that_cannot_be_made_is_a_job_error(data):
    with pytest.raises(JobError, match=r"cannot be made \(Not a directory\)"):
        Jobs(data / "jobs", lambda handle: "")


def test_close_interrupts_and_another_day_goes_on(open_desk, data):
    reached, told = threading.Event(), []

    def runner(handle: JobHandle) -> str:
        count(handle, 7)
        reached.set()
        handle.stop.wait()
        told.append(handle.closing)
        return ""

    desk = open_desk(runner)
    job = desk.submit("Medicine", data)
    assert reached.wait(60)
    desk.jobs.close()
    assert told == [True] and desk.jobs.get(job.id).state == "interrupted" and not desk.jobs.get(job.id).lobe_id
    with pytest.raises(JobError, match="closing"):
        desk.submit("Law", data)
    again = open_desk(count)
    again.jobs.resume(job.id)
    again.until_state(job.id, "finished")
    assert [record["step"] for record in again.jobs.metrics(job.id)] == list(range(STEPS + 1))


def test_sigkill_interrupts_and_resume_goes_on_in_one_curve(open_desk, child):
    kill(child)
    desk = open_desk(count)
    medicine = desk.jobs.get(child.job)
    assert (medicine.state, medicine.latest["step"], medicine.best_validation_loss) == ("interrupted", 8, 5.0)
    law, code = (next(job.id for job in desk.jobs.list() if job.spec.name == name) for name in ("Law", "Code"))
    assert desk.until_state(law, "finished").started > desk.until_state(code, "finished").started  # moved before it
    desk.jobs.resume(medicine.id)
    done = desk.until_state(medicine.id, "finished", "failed")
    assert (done.state, done.error, done.lobe_id) == ("finished", "", "lobe_0001")
    assert [record["step"] for record in desk.jobs.metrics(done.id)] == list(range(STEPS + 1))
    lines = (desk.jobs.folder / done.id / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(STEPS + 1))


def test_the_half_line_of_a_killed_process_does_not_spoil_the_next(open_desk, child):
    kill(child)
    desk = open_desk(lambda handle: handle.record({"step": 9}) or "lobe")
    desk.jobs.resume(child.job)
    assert desk.until_state(child.job, "finished", "failed").latest == {"step": 9}
    assert [record["step"] for record in desk.jobs.metrics(child.job)] == list(range(10))


def test_two_processes_on_one_home(open_desk, child, data):
    desk = open_desk(count)
    assert f"process {child.pid}" in desk.jobs.read_only
    assert desk.jobs.get(child.job).state == "running"
    assert [record["step"] for record in desk.jobs.metrics(child.job)] == list(range(9))  # and not the torn line
    for act in (lambda: desk.submit("History", data), lambda: desk.jobs.stop(child.job)):
        with pytest.raises(JobError, match="Another MultiLobe UI"):
            act()
    kill(child)
    history = desk.submit("History", data)  # the first has ended: this one takes over
    assert desk.jobs.get(child.job).state == "interrupted" and desk.jobs.read_only == ""
    assert desk.until_state(history.id, "finished").lobe_id == "lobe_0001"


def test_one_that_reads_along_sees_what_the_other_writes(open_desk, data):
    desk, viewer = open_desk(), open_desk(start=False)
    assert "not been started" in viewer.jobs.read_only
    version = viewer.jobs.version
    assert viewer.jobs.version == version
    a, b = desk.submit("a", data), desk.submit("b", data)
    desk.until(lambda: desk.jobs.get(a.id).phase == "Waiting")
    assert viewer.jobs.version > version and viewer.jobs.list() == desk.jobs.list()
    desk.jobs.forget(b.id)
    assert viewer.jobs.list() == desk.jobs.list()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"id": "x"}', '{"spec": {"name": "a"}}', "\0\0\0"])
def test_a_corrupt_job_is_listed_and_not_fatal(open_desk, data, text):
    desk = open_desk()
    bad, good = desk.submit("bad", data), desk.submit("good", data)
    desk.jobs.close()
    (desk.jobs.folder / bad.id / "job.json").write_text(text)
    (desk.jobs.folder / "queue.json").write_text(text)
    again = open_desk()
    again.until_state(good.id, "running")
    assert [job.id for job in again.jobs.list()] == [good.id]
    assert "job.json cannot be read" in again.jobs.broken[bad.id]
    again.jobs.forget(bad.id)
    assert not again.jobs.broken and not (again.jobs.folder / bad.id).exists()


@pytest.mark.parametrize("complete", [True, False])
def test_what_a_killed_process_left_half_done_is_tidied(open_desk, data, complete):
    desk = open_desk(count)
    job = desk.submit("Medicine", data)
    desk.until_state(job.id, "finished")
    desk.jobs.close()
    folder = desk.jobs.folder / job.id
    (folder / "checkpoint").rename(folder / ".checkpoint.12ab.old")
    if complete:  # killed between the two renames of new_folder
        shutil.copytree(folder / ".checkpoint.12ab.old", folder / ".checkpoint.12ab.new")
        write_json(folder / ".checkpoint.12ab.new" / "state.json", {"step": 11})
    (folder / ".job.json.0011").write_text("{")
    (desk.jobs.folder / f".{'a' * 32}.0011.new").mkdir()
    again = open_desk(count)
    assert read_json(folder / "checkpoint" / "state.json")["step"] == (11 if complete else 10)
    assert not list(folder.glob(".*")) and not list(again.jobs.folder.glob(".*"))


# ---- viewers ---------------------------------------------------------------------------------------------------------


def test_readers_never_see_half_a_file(open_desk, data, monkeypatch):
    monkeypatch.setattr(job_handle, "SAVE_SECONDS", 0.0)
    begun, ended, problems, rounds = threading.Barrier(4), threading.Event(), [], []

    def runner(handle: JobHandle) -> str:
        begun.wait(60)
        for step in range(400):
            handle.record({"step": step, "text": "x" * step, "validation_loss": None})
            if step % 100 == 99:
                handle.truncate_metrics(step)
        return "lobe"

    def read(look):
        begun.wait(60)
        try:
            while not ended.is_set():
                records = look()
                assert [record["step"] for record in records] == list(range(len(records)))
                rounds.append(len(records))
        except Exception as problem:
            problems.append(problem)

    desk, viewer = open_desk(runner), open_desk(start=False)
    job = desk.submit("Medicine", data)

    def from_disk():
        step = read_json(desk.jobs.folder / job.id / "job.json")["latest"].get("step", -1)
        records = viewer.jobs.metrics(job.id)
        assert len(records) > step and viewer.jobs.get(job.id).state in ("running", "finished")
        return records

    looks = (lambda: desk.jobs.metrics(job.id), lambda: viewer.jobs.metrics(job.id), from_disk)
    threads = [threading.Thread(target=read, args=(look,)) for look in looks]
    for thread in threads:
        thread.start()
    desk.until_state(job.id, "finished", "failed")
    ended.set()
    for thread in threads:
        thread.join()
    assert not problems and rounds and len(desk.jobs.metrics(job.id)) == 400 and not viewer.jobs.broken


def test_polling_reads_only_what_is_new(open_desk, data):
    desk = open_desk(count)
    job = desk.submit("Medicine", data)
    desk.until_state(job.id, "finished")
    records = desk.jobs.metrics(job.id)
    path = desk.jobs.folder / job.id / "metrics.jsonl"
    with path.open("r+b") as file:
        file.write(b"?")  # what has been read once is not read again
    with path.open("a") as file:
        file.write('{"step": 13}\n{"st')
    assert desk.jobs.metrics(job.id) == [*records, {"step": 13}]
    with path.open("a") as file:
        file.write('ep": 14}\n')
    assert desk.jobs.metrics(job.id)[-1] == {"step": 14}


@pytest.mark.parametrize(
    "id", ["", ".", "..", "../x", "/etc/passwd", "a" * 31, "a" * 32 + "\n", "A" * 32, "a" * 32, "lock", None, 7, ["x"]]
)
def test_ids_from_outside_are_checked(open_desk, id):
    jobs = open_desk().jobs
    acts = (jobs.get, jobs.metrics, jobs.stop, jobs.resume, jobs.cancel, lambda id: jobs.move(id, 1), jobs.forget)
    for act in acts:
        with pytest.raises(JobError, match="There is no training job"):
            act(id)


def test_forget_deletes_the_folder(open_desk, data):
    desk = open_desk(count)
    job = desk.submit("Medicine", data)
    desk.until_state(job.id, "finished")
    assert desk.jobs.metrics(job.id)
    desk.jobs.forget(job.id)
    assert desk.jobs.list() == [] and sorted(os.listdir(desk.jobs.folder)) == ["lock", "queue.json"]
    with pytest.raises(JobError, match="no training job"):
        desk.jobs.metrics(job.id)


def test_neither_torch_nor_gradio_is_imported():
    code = "import sys, multilobe_ui.app.jobs; assert not {'torch', 'gradio', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=TESTS.parents[1], check=True)
