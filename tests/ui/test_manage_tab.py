"""The Manage tab: HTML as data, handlers as plain calls, wiring in a bare Blocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from fake_studio import FakeStudio, StudioStatus

from multilobe_ui.errors import BusyError, LobeError
from multilobe_ui.ui.manage import lobe_card
from multilobe_ui.ui.manage import tab as manage_tab
from multilobe_ui.ui.manage.tab import ManageTab

SKIP = gr.skip()
NOBODY = SimpleNamespace(username=None)
TOKEN = "t" * 20
EVIL = "<img src=x onerror=alert(1)>"
VIEW = [
    "heading", "table", "save", "restore", "find", "detail", "row", "rename", "delete", "new_name", "base", "memory", "budget",
    "pin_row", "pin", "seen",
]  # fmt: skip


@pytest.fixture
def uploads(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def studio():
    return FakeStudio(3)


def look(tab, picked="", ticked=(), seen=None, token="", find=""):
    values = tab.look(NOBODY, picked, list(ticked), find, seen or {}, token)
    return SimpleNamespace(**dict(zip(VIEW, values, strict=True)))


def event(**data):
    return SimpleNamespace(_data=data)


def calls(studio, verb):
    return [arguments for called, arguments in studio.calls if called == verb]


# ---- looking ---------------------------------------------------------------------------------------------------------


def test_every_lobe_is_in_the_table_escaped():
    studio = FakeStudio(["medical", EVIL])
    seen = look(ManageTab(studio))
    assert seen.table.count("data-row=") == 2 and EVIL not in seen.table and "&lt;img" in seen.table
    assert "2.910 → <b>0.840</b>" in seen.table and "−71 %" in seen.table and "#e5484d" in seen.table
    assert "2 lobes, 2.8 MB" in seen.heading


def test_no_lobe_says_what_to_do():
    seen = look(ManageTab(FakeStudio(0)))
    assert "no lobe yet" in seen.table and seen.save["interactive"] is False and seen.restore["variant"] == "primary"
    assert seen.detail == gr.update(value="", visible=False)


def test_imported_lobes_without_losses_are_fine():
    studio = FakeStudio(1)
    studio.import_adapter("Bare", "x.zip")
    assert look(ManageTab(studio)).table.count("data-row=") == 2
    assert "Validation loss</dt><dd>–" in look(ManageTab(studio), "lobe_0002").detail["value"]


def test_a_picked_lobe_is_shown_whole(studio):
    seen = look(ManageTab(studio), "lobe_0002")
    assert "legal" in seen.detail["value"] and "q_proj" in seen.detail["value"] and seen.new_name == "legal"
    assert seen.row == gr.update(visible=True) and seen.delete == gr.update(interactive=True)
    assert 'class=picked' in seen.table


def test_nothing_new_is_not_sent_again_and_typing_is_not_disturbed(studio):
    tab = ManageTab(studio)
    first = look(tab, "lobe_0001")
    assert tab.look(NOBODY, "lobe_0001", [], "", first.seen, "") == (SKIP,) * len(VIEW)
    studio.delete("legal")
    second = look(tab, "lobe_0001", seen=first.seen)
    assert second.table != SKIP and second.new_name == SKIP and second.base == SKIP and second.budget == SKIP


def test_protected_and_unusable_lobes_say_so(studio):
    studio._lobes[0] = replace(studio._lobes[0], protected=True, usable=False)
    seen = look(ManageTab(studio), "lobe_0001")
    assert seen.rename == seen.delete == gr.update(interactive=False)
    assert "not yours" in seen.detail["value"] and "another base" in seen.detail["value"]
    assert "other base" in seen.table


def test_a_failing_studio_leaves_the_page_as_it_is(studio, monkeypatch):
    def fail():
        raise BusyError("no")

    monkeypatch.setattr(studio, "status", fail)
    assert ManageTab(studio).look(NOBODY, "", [], "", {}, "") == SKIP


def test_a_damaged_lobe_says_why(studio):
    studio._lobes[0] = replace(studio._lobes[0], fault=f"its weights are {EVIL}", usable=False)
    seen = look(ManageTab(studio), "lobe_0001")
    assert "cannot be used: its weights are &lt;img" in seen.detail["value"] and "another base" not in seen.detail["value"]
    assert "damaged" in seen.table and "other base" not in seen.table and seen.pin_row == gr.update(visible=False)


def test_of_many_lobes_some_are_drawn_and_all_are_found():
    tab = ManageTab(FakeStudio([f"Lobe {i}" for i in range(1000)]))
    seen = look(tab)
    assert seen.table.count("data-row=") == lobe_card.MOST_ROWS and "100 of 1,000 are shown" in seen.table
    assert seen.find == gr.update(visible=True) and "1,000 lobes" in seen.heading
    found = look(tab, find="LOBE 77", seen=seen.seen)
    assert found.table.count("data-row=") == 11 and "shown" not in found.table and found.memory == SKIP
    assert "No lobe has &lt;img" in look(tab, find=EVIL).table
    assert look(ManageTab(FakeStudio(3))).find == gr.update(visible=False)
    assert look(tab, picked="lobe_0999").detail["value"].count("Lobe 998") == 1  # also what is not drawn can be picked
    for wrong in ("x" * 81, 3, ["a"]):
        assert tab.look(NOBODY, "", [], wrong, {}, "") == SKIP


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_what_is_in_memory_is_shown(studio):
    tab = ManageTab(studio)
    first = look(tab)
    assert "No lobe is in memory yet" in first.memory and first.budget is None
    studio.resident = ["lobe_0001", "lobe_0003"]
    second = look(tab, seen=first.seen)
    assert "2 of 3 lobes in memory, <b>2.7 MiB</b>." in second.memory and second.table == SKIP and second.budget == SKIP
    assert second.memory.index("python") < second.memory.index("medical")  # the most recently used first
    studio.pin("medical")
    third = look(tab, "lobe_0001", seen=second.seen)
    assert third.memory.index("medical") < third.memory.index("python") and third.memory.count("pinned") == 1
    assert "pinned" in third.table and third.pin == gr.update(value=manage_tab.UNPIN)
    studio.set_memory_budget(2)
    over = look(tab, "lobe_0001", seen=third.seen)
    assert "of 2 MiB" in over.memory and "More than the budget" in over.memory and over.budget == 2 and over.table == SKIP
    studio.set_memory_budget(1000)
    assert "More than" not in look(tab).memory and "of 1,000 MiB" in look(tab).memory


def test_names_in_memory_are_escaped_and_not_too_many():
    studio = FakeStudio([EVIL, *(f"lobe {i}" for i in range(60))])
    studio.resident = [lobe.id for lobe in studio.lobes()]
    studio.pin(EVIL)
    card = look(ManageTab(studio)).memory
    assert EVIL not in card and "&lt;img" in card and "and 37 more" in card and card.count("<li>") == 24


def test_set_the_budget(studio):
    tab = ManageTab(studio)
    tab.machine.do_set_budget(64)
    tab.machine.do_set_budget(None)
    assert calls(studio, "set_memory_budget") == [(64.0,), (None,)]
    for wrong in (0, -1, 1e12, float("nan"), "64", True):
        with pytest.raises(gr.Error):
            tab.machine.do_set_budget(wrong)


def test_pin_and_unpin(studio):
    tab = ManageTab(studio)
    assert look(tab, "lobe_0002").pin == gr.update(value=manage_tab.PIN)
    tab.do_pin(NOBODY, "lobe_0002", "")
    tab.do_pin(NOBODY, "lobe_0002", "")
    assert calls(studio, "pin") == [("legal", True), ("legal", False)]
    with pytest.raises(gr.Error):
        tab.do_pin(NOBODY, "gone", "")


def test_on_a_shared_server_visitors_set_neither():
    studio = FakeStudio(2, shared=True)
    tab = ManageTab(studio)
    for act in (lambda: tab.machine.do_set_budget(64), lambda: tab.do_pin(NOBODY, "lobe_0001", TOKEN)):
        with pytest.raises(gr.Error, match="shared"):
            act()
    assert not calls(studio, "set_memory_budget") and not calls(studio, "pin")
    assert look(tab, "lobe_0001").pin_row == gr.update(visible=False)
    with gr.Blocks():
        tab.build()
    assert tab.machine.budget.interactive is tab.machine.set_budget.interactive is False and "shared" in tab.machine.budget.info


# ---- one lobe --------------------------------------------------------------------------------------------------------


def test_rename(studio):
    ManageTab(studio).do_rename(NOBODY, "lobe_0001", "  Médecine 医学 ", "")
    assert calls(studio, "rename") == [("medical", "Médecine 医学", "")]
    for picked, name in (("", "x"), ("gone", "x"), (None, "x"), ("lobe_0001", ""), ("lobe_0001", 3)):
        with pytest.raises(gr.Error):
            ManageTab(studio).do_rename(NOBODY, picked, name, "")


def test_delete_takes_two_clicks_and_names_the_lobe(studio):
    tab = ManageTab(studio)
    doomed, confirm, said, label = tab.ask_delete(NOBODY, "lobe_0001", "")
    assert (doomed, confirm, label) == ("lobe_0001", gr.update(visible=True), "Delete medical") and "medical" in said
    assert not calls(studio, "delete")
    picked, doomed, confirm, *_ = tab.do_delete(NOBODY, "lobe_0001", doomed, "")
    assert (picked, doomed, confirm) == ("", "", gr.update(visible=False))
    assert calls(studio, "delete") == [("medical", "")]


@pytest.mark.parametrize(("picked", "doomed"), [("lobe_0001", ""), ("lobe_0001", "lobe_0002"), ("", ""), (None, None)])
def test_delete_without_the_first_click_does_nothing(studio, picked, doomed):
    with pytest.raises(gr.Error, match="nothing has been deleted"):
        ManageTab(studio).do_delete(NOBODY, picked, doomed, "")
    assert not calls(studio, "delete")


def test_the_question_is_escaped():
    studio = FakeStudio([EVIL])
    _, _, said, _ = ManageTab(studio).ask_delete(NOBODY, "lobe_0001", "")
    assert EVIL not in said and "&lt;img" in said


def test_a_lobe_gone_meanwhile_is_an_error(studio):
    tab = ManageTab(studio)
    studio.delete("medical")
    with pytest.raises(gr.Error, match="gone"):
        tab.do_delete(NOBODY, "lobe_0001", "lobe_0001", "")


def test_shared_use_asks_for_a_token():
    studio = FakeStudio(2, shared=True)
    tab = ManageTab(studio)
    with pytest.raises(gr.Error, match="shared"):
        tab.do_rename(NOBODY, "lobe_0001", "New", "")
    with pytest.raises(gr.Error, match="shared"):
        tab.do_delete(NOBODY, "lobe_0001", "lobe_0001", "")
    tab.do_rename(NOBODY, "lobe_0001", "New", TOKEN)
    assert calls(studio, "rename")[0][2].startswith("token:")


# ---- many lobes ------------------------------------------------------------------------------------------------------


def test_save_all_or_the_ticked(studio, uploads):
    tab = ManageTab(studio)
    ticked = tab.tick_lobe(tab.tick_lobe([], event(id="lobe_0003", on=True)), event(id="lobe_0001", on=True))
    assert look(tab, ticked=ticked).save["value"] == "Save 2 ticked lobes as a bundle"
    ready = tab.do_save(ticked)
    assert Path(ready["value"]).is_relative_to(uploads) and ready["visible"] is True and "lobes.zip" in ready["label"]
    tab.do_save([])
    assert calls(studio, "save_bundle") == [(["medical", "python"],), (None,)]
    assert tab.tick_lobe(ticked, event(id="lobe_0003", on=False)) == ["lobe_0001"]


def test_load_a_bundle(studio, uploads):
    file = uploads / "b.zip"
    file.write_bytes(b"PK")
    ManageTab(studio).arrivals.do_load(NOBODY, str(file), "replace", "")
    assert calls(studio, "load_bundle") == [(file.resolve(), "replace", "")]
    for path, clash in ((None, "rename"), ("/etc/passwd", "rename"), (str(file), "burn"), (str(file), None)):
        with pytest.raises(gr.Error):
            ManageTab(studio).arrivals.do_load(NOBODY, path, clash, "")


def test_import_an_adapter(studio, uploads):
    file = uploads / "a.zip"
    file.write_bytes(b"PK")
    ManageTab(studio).arrivals.do_import(NOBODY, str(file), "Bare", "")
    assert calls(studio, "import_adapter") == [("Bare", file.resolve(), "")]
    for path, name in ((None, "x"), ("/etc/passwd", "x"), (str(file), ""), (str(file), None)):
        with pytest.raises(gr.Error):
            ManageTab(studio).arrivals.do_import(NOBODY, path, name, "")


def test_restore_the_demo(studio):
    ManageTab(studio).do_restore()
    assert len(studio.lobes()) == 6
    ManageTab(studio).do_restore()
    assert len(studio.lobes()) == 6


def test_errors_of_the_studio_are_shown(studio):
    studio.fail_next = LobeError("A lobe called 'legal' exists already.")
    with pytest.raises(gr.Error, match="exists already"):
        ManageTab(studio).do_rename(NOBODY, "lobe_0001", "legal", "")


# ---- base ------------------------------------------------------------------------------------------------------------


def test_change_base(studio):
    ManageTab(studio).machine.do_change_base(" gpt2 ")
    assert calls(studio, "change_base") == [("gpt2",)]
    assert "Loading" in look(ManageTab(studio)).base
    for name in ("", None, 3, "x" * 501):
        with pytest.raises(gr.Error):
            ManageTab(studio).machine.do_change_base(name)


def test_shared_the_base_stays():
    studio = FakeStudio(1, shared=True)
    with pytest.raises(gr.Error, match="shared"):
        ManageTab(studio).machine.do_change_base("gpt2")
    assert not calls(studio, "change_base")
    tab = ManageTab(studio)
    with gr.Blocks():
        tab.build()
    assert tab.machine.change.interactive is tab.machine.base_name.interactive is False and "shared" in tab.machine.base_name.info
    assert "replace" not in [value for _, value in tab.arrivals.clash.choices]


def test_the_built_in_base_is_described_honestly(studio):
    card = look(ManageTab(studio)).base
    assert "12.5 M-parameter model trained on textbooks" in card and "1,024 tokens" in card and "float32" in card


def test_base_cards_in_every_state():
    other = StudioStatus("ready", "", {"name": EVIL, "parameters": 0}, 0, 1)
    assert EVIL not in lobe_card.base_card(other) and "textbooks" not in lobe_card.base_card(other)
    assert "Loading" in lobe_card.base_card(StudioStatus("loading", "Loading <b>", None, 0, 1))
    assert "alert bad" in lobe_card.base_card(StudioStatus("failed", "It failed.", None, 0, 1))


def test_forged_events_are_refused(studio):
    assert ManageTab(studio).pick(event(id={"a": 1})) == SKIP
    with pytest.raises(gr.Error):
        ManageTab(studio).tick_lobe([], event(on=True))


def test_wiring_is_private_and_waits_for_nobody(studio):
    with gr.Blocks() as page:
        ManageTab(studio).build()
    assert all(fn.api_visibility == "private" for fn in page.fns.values())
    for fn in page.fns.values():
        assert fn.queue is False or fn.concurrency_limit is None, fn.name
