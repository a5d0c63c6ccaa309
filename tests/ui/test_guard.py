"""The guard: owners nobody can forge, errors as sentences, values of any kind refused with a reason."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from fake_studio import FakeStudio
from gradio.utils import get_upload_folder

from multilobe_ui.errors import ConfigError, DataError, JobError
from multilobe_ui.settings import TrainingConfig
from multilobe_ui.ui.kit import guard
from multilobe_ui.ui.kit.guard import friendly

NOBODY = SimpleNamespace(username=None)
ANNA = SimpleNamespace(username="anna")
TOKEN = guard.new_token()


# ---- owners ----------------------------------------------------------------------------------------------------------


def test_login_wins_over_token():
    assert guard.owner_of(ANNA, TOKEN) == guard.owner_of(ANNA, None) == "user:anna"


def test_a_token_is_an_owner_but_is_not_written_anywhere():
    owner = guard.owner_of(NOBODY, TOKEN)
    assert owner.startswith("token:") and TOKEN not in owner
    assert owner == guard.owner_of(None, TOKEN) != guard.owner_of(NOBODY, guard.new_token())


@pytest.mark.parametrize("token", [None, "", "short", "x" * 201, 7, ["x" * 20], {"a": 1}])
def test_what_is_no_token_is_nobody(token):
    assert guard.owner_of(NOBODY, token) == ""


def test_no_token_poses_as_a_login():
    assert guard.owner_of(NOBODY, "user:anna-and-some-more") != guard.owner_of(ANNA)


def test_shared_use_must_know_who_acts():
    assert guard.acting_desk(FakeStudio(), NOBODY).visitor.id == ""
    with pytest.raises(JobError, match="token"):
        guard.acting_desk(FakeStudio(shared=True), NOBODY)
    assert guard.acting_desk(FakeStudio(shared=True), NOBODY, TOKEN).visitor.id


def test_first_visit_gets_a_token_and_keeps_it():
    token = guard.keep_or_make_token(None)
    assert len(token) >= guard.SHORTEST_TOKEN and guard.keep_or_make_token(token) == token
    assert guard.keep_or_make_token({"uid": None}) != guard.keep_or_make_token("")


def test_one_visitor_state_a_page_outside_of_all_tabs():
    with gr.Blocks() as page, gr.Tabs(), gr.Tab("One"):
        first = guard.visitor()
        with gr.Column():
            assert guard.visitor() is first
    assert first in page.children
    with gr.Blocks():
        assert guard.visitor() is not first
    with pytest.raises(RuntimeError):
        guard.visitor()


# ---- errors ----------------------------------------------------------------------------------------------------------


@friendly
def fails(error):
    raise error


@friendly
def streams(error):
    yield 1
    raise error


def test_our_errors_become_their_own_sentence_escaped():
    with pytest.raises(gr.Error) as caught:
        fails(DataError("a<b>.csv is 'empty'."))
    assert caught.value.message == "a&lt;b&gt;.csv is 'empty'."
    assert caught.value.print_exception is False
    with pytest.raises(gr.Error, match="a<b>"):
        friendly(markup=False)(fails.__wrapped__)(DataError("a<b>"))


def test_bugs_are_logged_and_never_shown(caplog):
    with caplog.at_level(logging.ERROR), pytest.raises(gr.Error) as caught:
        fails(KeyError("/secret/path"))
    assert "secret" not in caught.value.message and "went wrong" in caught.value.message
    assert "secret" in caplog.text and caught.value.message.split()[-1].rstrip(".") in caplog.text


def test_streams_are_guarded_too():
    stream = streams(DataError("no"))
    assert next(stream) == 1
    with pytest.raises(gr.Error, match="no"):
        next(stream)


def test_gradio_errors_pass_and_ticks_stay_quiet():
    with pytest.raises(gr.Error, match="mine"):
        fails(gr.Error("mine"))
    assert friendly(quiet=True)(fails.__wrapped__)(DataError("no")) == gr.skip()


def test_gradio_still_sees_the_handler_behind():
    class Tab:
        @friendly
        def act(self, request: gr.Request, value: str) -> str:
            return value

    from gradio.helpers import special_args

    inputs, *_ = special_args(Tab().act, inputs=["x"], request="R")
    assert inputs == ["R", "x"]


# ---- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 3, ["x"], {"a": 1}, "", "   ", "x" * 201])
def test_text_refused(value):
    with pytest.raises(ConfigError, match="The name"):
        guard.a_text(value, "The name")


@pytest.mark.parametrize("value", [None, "3", True, math.nan, math.inf, 3.5, 0, 11, [3]])
def test_whole_number_refused(value):
    with pytest.raises(ConfigError, match="steps"):
        guard.a_whole(value, "steps", 1, 10)


def test_values_accepted():
    assert guard.a_text("  hi ", "x") == "hi"
    assert guard.a_text("", "x", may_be_empty=True) == ""
    assert guard.a_whole(3.0, "x", 1, 10) == 3 and isinstance(guard.a_whole(3.0, "x", 1, 10), int)
    assert guard.a_number(0.5, "x", 0, 1) == 0.5
    assert guard.a_choice("b", "x", ("a", "b")) == "b"
    assert guard.some_names(["a", "b", "a"], "x") == ["a", "b"]
    assert guard.a_flag(True, "x") is True


@pytest.mark.parametrize("value", ["abc", {"a": 1}, [3], [""], ["x"] * 1001, None])
def test_names_refused(value):
    with pytest.raises(ConfigError):
        guard.some_names(value, "names")


def test_settings_from_a_form():
    empty = guard.training_config({"epochs": 2.0, "learning_rate": "", "target_modules": "", "use_rslora": False})
    assert empty == TrainingConfig(epochs=2)
    full = guard.training_config({"learning_rate": "2e-4", "target_modules": "q_proj, v_proj", "use_rslora": True})
    assert (full.learning_rate, full.target_modules, full.use_rslora) == (2e-4, ("q_proj", "v_proj"), True)
    assert guard.training_config({"learning_rate": "0,001"}).learning_rate == 0.001
    assert guard.training_config({"target_modules": ".*evil.*"}).target_modules == (".*evil.*",)


@pytest.mark.parametrize(
    "settings",
    [
        None, [], "epochs", {"epochs": "many"}, {"epochs": 1.5}, {"epochs": 0}, {"epochs": True}, {"unknown": 1},
        {"lora_r": math.inf}, {"learning_rate": "fast"}, {"learning_rate": [1]}, {"use_rslora": "yes"},
        {"target_modules": {"a": 1}}, {"target_modules": [f"m{i}" for i in range(65)]}, {"target_modules": [1]}, {"seed": 2**40},
        {"validation_fraction": "half"}, {7: 7},
    ],
)  # fmt: skip
def test_settings_refused(settings):
    with pytest.raises(ConfigError):
        guard.training_config(settings)


def test_event_values_are_checked():
    event = SimpleNamespace(_data={"id": "abc", "on": True})
    assert guard.event_value(event, "id") == "abc" and guard.event_value(event, "on", bool) is True
    for wrong in (event, SimpleNamespace(_data=None), SimpleNamespace(), SimpleNamespace(_data={"key": ["x"]})):
        with pytest.raises(ConfigError):
            guard.event_value(wrong, "key")
    with pytest.raises(ConfigError):
        guard.event_value(SimpleNamespace(_data={"id": "x" * 1001}), "id")


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def uploads(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    folder = Path(get_upload_folder()) / "abc"
    folder.mkdir(parents=True)
    return folder


def test_uploads_are_accepted(uploads):
    file = uploads / "a.csv"
    file.write_text("x")
    assert guard.an_upload(str(file)) == file.resolve()
    assert guard.an_upload({"path": str(file), "meta": {"_type": "gradio.FileData"}}) == file.resolve()


def test_what_is_no_upload_is_refused(uploads, tmp_path):
    outside = tmp_path / "secret.txt"
    outside.write_text("x")
    inside = uploads / "a.csv"
    inside.write_text("x")
    link = uploads / "link.csv"
    link.symlink_to(outside)
    refused = [
        None, "", 3, [], str(outside), "/etc/passwd", f"{uploads}/../../secret.txt", str(link), str(uploads), "a\0b",
        {"path": str(inside)}, {"path": str(inside), "meta": {}}, {"meta": {"_type": "gradio.FileData"}},
        {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, {"path": 3, "meta": {"_type": "gradio.FileData"}},
    ]  # fmt: skip
    for value in refused:
        with pytest.raises(ConfigError):
            guard.an_upload(value)


def test_downloads_are_copies_in_a_folder_nobody_guesses(uploads, tmp_path):
    source = tmp_path / "lobes.zip"
    source.write_bytes(b"zip")
    first, second = Path(guard.downloadable(source)), Path(guard.downloadable(source))
    assert first.name == "lobes.zip" and first.read_bytes() == b"zip" and first != second
    assert first.is_relative_to(get_upload_folder())
