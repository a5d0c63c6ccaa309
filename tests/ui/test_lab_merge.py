"""The Merge lab on the page: cards and costs as data, handlers as plain calls, wiring in a bare Blocks."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
from fake_lab import FakeMerges, merge_result, search_result
from fake_studio import FakeStudio

from multilobe_ui.errors import LobeError
from multilobe_ui.merging.kinds import COMBINATIONS
from multilobe_ui.ui.lab import merge_card, search_card
from multilobe_ui.ui.lab.drawing import report_page
from multilobe_ui.ui.lab.merge import MOST_SLIDERS, MergeSection, weights_of
from multilobe_ui.ui.lab.tab import LabTab

SKIP = gr.skip()
NOBODY = SimpleNamespace(username=None)
EVIL = "<img src=x onerror=alert(1)>"
COLOURS = {"medical": "#e5484d", "legal": "#c9880b"}
MIX = {"medical": 0.7, "legal": -0.2}


@pytest.fixture
def studio() -> FakeStudio:
    return FakeStudio(6)


@pytest.fixture
def lab(studio: FakeStudio) -> FakeMerges:
    return FakeMerges(studio)


@pytest.fixture
def section(studio: FakeStudio, lab: FakeMerges) -> MergeSection:
    built, tab = MergeSection(studio), LabTab(studio)
    tab.sections = [built]
    with gr.Blocks() as page:
        tab.build()
        built.follow(page.load)
    return built


def told(section: MergeSection, values: tuple[Any, ...]) -> dict[str, Any]:
    """What fills `section.shown`, by name; of sliders those that can be seen, label → value."""
    which, names, *rest = values
    assert len(values) == len(section.shown)
    sliders = {u["label"]: u["value"] for u in rest[:MOST_SLIDERS] if u["visible"]}
    row, even, line, kind, cards, density, rank, seed = rest[MOST_SLIDERS:]
    fields = {name for name, update in (("density", density), ("rank", rank), ("seed", seed)) if update["visible"]}
    return {"which": which, "names": names, "sliders": sliders, "sum": line, "kind": kind, "cards": cards, "fields": fields,
            "row": row["visible"], "even": even["visible"]}  # fmt: skip


def eight(*values: float) -> list[float]:
    return [*values, *[0.0] * (MOST_SLIDERS - len(values))]


def seen(panel: Any, owner: str = "") -> tuple[dict[str, Any], tuple[Any, ...]]:
    values = panel.view(panel.studio.desk(owner), None, {})
    return next(v for v in values if isinstance(v, dict) and "job" in v and "bar" in v), values


# ---- pictures --------------------------------------------------------------------------------------------------------


def test_every_combination_is_a_card_and_what_cannot_be_done_says_why() -> None:
    page = merge_card.combination_cards({"linear": f"it needs one rank, and {EVIL} has 8"}, "svd")
    assert re.findall(r'data-row="(\w+)"', page) == [
        name for _, _, names in merge_card.FAMILIES for name in names if name != "linear"
    ]
    assert {name for _, _, names in merge_card.FAMILIES for name in names} == set(COMBINATIONS)
    assert page.count('aria-checked="true"') == 1 and 'aria-checked="true" data-row="svd"' in page
    assert page.count("is-off") == 1 and "<small>It needs one rank, and &lt;img" in page and EVIL not in page
    for combination in COMBINATIONS.values():
        assert combination.says.replace("'", "&#39;") in page


def test_a_merge_shows_what_it_costs() -> None:
    result = merge_result(MIX, "ties", error=0.42)
    page = merge_card.merge_result(result, COLOURS)
    for words in ("ties", "1.4 MB", "352 k", "0.42", "part is lost", "not kept yet", "48 held-out rows", "0.50"):
        assert words in page, words
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", page)
    assert len(rows) == 2
    for row, data in zip(rows, result["losses"], strict=True):
        cells = re.findall(r'<td class="([^"]*)">([^<]*)</td>', row)
        numbers = [data["base"], *data["parents"], data["mixture"], data["merged"]]
        assert [cell for _, cell in cells[:-1]] == [f"{x:.3f}" for x in numbers]
        assert [cell for kind, cell in cells if "is-best" in kind] == [f"{min(numbers):.3f}"]
    first = result["losses"][0]
    kept = (first["base"] - first["merged"]) / (first["base"] - first["parents"][0])
    assert f"{kept:.0%}".replace("%", " %") in rows[0]
    assert '<td class="gain">–</td>' in rows[1]  # it is taken away, so nothing of it should be left
    worst = max(result["layer_errors"], key=lambda m: result["layer_errors"][m])
    assert worst in page and page.count("<i style=\"--a:") == len(result["layer_errors"])
    assert "#e5484d" in page and "Seed" not in page
    assert "Seed" in merge_card.merge_result(merge_result(MIX, "dare_ties"), COLOURS)
    assert "kept as New &lt;b&gt;" in merge_card.merge_result({**result, "kept": "New <b>"}, COLOURS)


@pytest.mark.parametrize(
    ("error", "band", "low", "high"),
    [(0.0, "exact", 0, 25), (1e-7, "exact", 0, 25), (0.01, "close", 25, 50), (0.1, "close", 49, 50), (0.3, "part is lost", 50, 75),
     (0.9, "much is lost", 75, 100), (7.0, "much is lost", 100, 100)],
)  # fmt: skip
def test_the_scale_of_the_error(error: float, band: str, low: float, high: float) -> None:
    page = merge_card.merge_result(merge_result(MIX, error=error), COLOURS)
    assert f'<span class="is-here">{band}</span>' in page
    place = re.search(r"--at:([\d.]+)%", page)
    assert place and low <= float(place[1]) <= high


def test_results_from_disk_may_be_odd() -> None:
    result = merge_result({EVIL: 0.5, "legal": 0.5})
    result["layer_errors"] = {"a.0.q": None, "head": 0.2, EVIL: 0.1}
    result["losses"][0] |= {"merged": None, "base": None}
    result |= {"advice": EVIL, "says": EVIL, "combination": EVIL, "without_rows": [EVIL]}
    page = merge_card.merge_result(result, {EVIL: "red;background:url(x)"})
    assert EVIL not in page and "url(" not in page and "1 layer where the sum is zero" in page
    assert "nothing can be measured on them" in page
    assert EVIL not in search_card.search_result({"weights": {EVIL: 0.5}, "trials": [{}, {"loss": None}]}, {})
    assert EVIL not in merge_card.weight_card({EVIL: 0.5}, [EVIL], {EVIL: "</style>"})
    assert "</style>" not in merge_card.weight_card({EVIL: 0.5}, [EVIL], {EVIL: "</style>x"}).replace("</style><p", "")
    for empty in ({}, {"losses": None, "layer_errors": None, "parents": None}):
        assert "merge-card" in merge_card.merge_result(empty, {})
    assert "merge-card" in search_card.search_result({}, {})
    stopped = merge_card.merge_result({**result, "losses": [], "stopped": True}, {})
    assert "Stopped before" in stopped and "merge-table" not in stopped


def test_an_exact_merge_has_no_strip() -> None:
    page = merge_card.merge_result(merge_result(MIX, "cat", error=1e-9), COLOURS)
    assert "merge-layers" not in page and "exact</span>" in page
    assert "merge-scroll" in report_page("Merge", "2026-07-01T09:30:00", [page])


def test_a_search_is_drawn_while_it_runs_and_after() -> None:
    result = search_result(["medical", "legal"], budget=12)
    page = search_card.search_result(result, COLOURS)
    assert f"Loss 2.900 → {result['loss']:.3f}" in page and "12 trials" in page
    for name, weight in result["weights"].items():
        assert f'title="{name}"' in page and f"<b>{weight:+.2f}</b>" in page
    trials, best_so_far = search_card.search_curve(result, COLOURS).data
    assert len(trials.x) == len(best_so_far.y) == 12 and list(best_so_far.y) == sorted(best_so_far.y, reverse=True)
    assert list(trials.customdata) == [trial["loss"] for trial in result["trials"]]
    best, records = float("inf"), [{"step": 0, "steps": 12, "values": {}}]
    for trial in result["trials"]:
        best = min(best, trial["loss"])
        records.append({"step": trial["number"], "steps": 12, "values": {"loss": trial["loss"], "best": best}})
    live = search_card.search_live(records, COLOURS)
    assert f"Best so far {best:.3f}" in live and len(search_card.live_curve(records).data[0].x) == 12
    assert search_card.search_live(records[:1], COLOURS) == "" and search_card.live_curve(records[:2]) is None


# ---- choosing --------------------------------------------------------------------------------------------------------


def test_sliders_follow_the_chosen_lobes(section: MergeSection, lab: FakeMerges) -> None:
    lab.ranks = {"maths": 8}
    one = told(section, section.choose(["medical"], "cat", [], *eight()))
    assert one["sliders"] == {"medical": 1.0} and one["row"] and not one["even"] and one["cards"].count("is-off") == 9
    two = told(section, section.choose(["medical", "legal"], "ties", ["medical"], *eight(0.8)))
    assert two["sliders"] == {"medical": 0.8, "legal": 0.5} and two["names"] == ["medical", "legal"] and two["even"]
    untouched = told(section, section.choose(["medical", "legal"], "ties", ["medical"], *eight(1.0)))
    assert untouched["sliders"] == {"medical": 0.5, "legal": 0.5}
    assert (two["kind"], two["fields"], two["cards"].count("is-off")) == ("ties", {"density"}, 0)
    assert "Weights add up to 1.30" in two["sum"] and "#merge-w1{--slider-color:#c9880b}" in two["sum"]
    three = told(section, section.choose(["medical", "maths"], "ties", two["names"], *eight(0.8, -0.5)))
    assert three["kind"] == "cat" and three["fields"] == set() and "medical has rank 16 where maths has 8" in three["cards"]
    none = told(section, section.choose([], "svd", three["names"], *eight(0.8)))
    assert none["sliders"] == {} and not none["row"] and "Choose the lobes" in none["sum"] and none["cards"].count("is-off") == 0
    even = told(section, section.equal("svd", ["medical", "legal", "python"]))
    assert set(even["sliders"].values()) == {0.33} and even["fields"] == {"rank"}
    assert told(section, section.choose(["Nobody"], "cat", [], *eight()))["names"] == []


def test_cards_are_picked_unless_they_cannot_be(section: MergeSection, lab: FakeMerges) -> None:
    def pick(kind: object, names: list[str]) -> tuple[Any, ...]:
        event: Any = SimpleNamespace(_data={"id": kind})
        return section.pick(event, "cat", names)

    kind, cards, density, rank, seed = pick("dare_ties_svd", ["medical", "legal"])
    assert kind == "dare_ties_svd" and 'aria-checked="true" data-row="dare_ties_svd"' in cards
    assert density["visible"] and rank["visible"] and seed["visible"]
    assert pick("ties", ["medical"])[0] == "cat"
    for bad in ("soup", None, 3):
        with pytest.raises(gr.Error):
            pick(bad, ["medical"])


def test_lobes_that_come_and_go(section: MergeSection, studio: FakeStudio) -> None:
    studio.delete("legal")
    studio._add("New one", "trained here")
    now = told(section, section.refresh("svd", ["medical", "legal", "python"], *eight(0.5, 0.3, -0.1)))
    assert now["sliders"] == {"medical": 0.5, "python": -0.1} and now["which"]["value"] == ["medical", "python"]
    assert "New one" in now["which"]["choices"] and "legal" not in now["which"]["choices"] and now["kind"] == "svd"
    loading = MergeSection(FakeStudio(3, state="loading"))
    assert set(loading._options(["medical"]).values()) == {""}


def test_at_most_eight(studio: FakeStudio) -> None:
    many = FakeStudio(12)
    FakeMerges(many)
    section = MergeSection(many)
    with gr.Blocks():
        section.build()
    names = [lobe.name for lobe in many.lobes()]
    assert len(told(section, section.choose(names, "cat", [], *eight()))["sliders"]) == MOST_SLIDERS


# ---- asking ----------------------------------------------------------------------------------------------------------


def test_what_is_asked_of_a_merge(section: MergeSection, lab: FakeMerges) -> None:
    names = ["medical", "legal", "python"]
    settings, files = section.asked(names, "dare_ties_svd", 0.4, 8, 3, *eight(0.5, 0.0, -0.25))
    assert files == () and settings == {
        "lobes": [["medical", 0.5], ["python", -0.25]], "combination": "dare_ties_svd", "density": 0.4, "rank": 8, "seed": 3,
    }  # fmt: skip
    plain, _ = section.asked(names, "cat", 0.4, 8, 3, *eight(1, 1, 1))
    assert set(plain) == {"lobes", "combination"}
    assert "rank" not in section.asked(names, "svd", 0.4, 0, 3, *eight(1, 1, 1))[0]
    assert section.asked(["medical"], "cat", 0.5, 0, 0, *eight(-1.5))[0]["lobes"] == [["medical", -1.5]]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (([], "cat", 0.5, 0, 0, *eight()), "No lobe has a weight"),
        ((["medical"], "cat", 0.5, 0, 0, *eight(0.0)), "No lobe has a weight"),
        ((["medical"], "cat", 0.5, 0, 0, *eight(9.0)), "from -1.5 to 1.5"),
        ((["medical"], "cat", 0.5, 0, 0, "much"), "must be a number"),
        ((["medical"], "soup", 0.5, 0, 0, *eight(1.0)), "must be one of"),
        ((["medical"], "ties", 0.5, 0, 0, *eight(1.0)), "ties cannot combine these lobes: with a single lobe"),
        ((["medical", "legal"], "ties", 2, 0, 0, *eight(1.0, 1.0)), "The density is 2"),
        ((["medical", "legal"], "svd", 0.5, 2.5, 0, *eight(1.0, 1.0)), "whole number"),
        ((["medical", "legal"], "dare_linear", 0.5, 0, -1, *eight(1.0, 1.0)), "The seed is -1"),
        ((["Nobody"], "cat", 0.5, 0, 0, *eight(1.0)), "Nobody"),
        (("medical", "cat", 0.5, 0, 0, *eight(1.0)), "must be a list"),
    ],
)
def test_values_that_make_no_sense_are_refused(section: MergeSection, values: tuple[Any, ...], words: str) -> None:
    with pytest.raises((ValueError, LobeError), match=words):
        section.asked(*values)


def test_what_is_asked_of_a_search(section: MergeSection) -> None:
    settings, files = section.search_asked(["medical", "legal"], None, 20.0, 0.1)
    assert settings == {"lobes": ["medical", "legal"], "budget": 20, "penalty": 0.1} and files == ()
    for values, words in ((([], None, 20, 0.1), "Choose the lobes"), ((["medical"], None, 1, 0.1), "The trials"),
                          ((["medical"], "/etc/passwd", 20, 0.1), "not among the uploads")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            section.search_asked(*values)
    assert weights_of(["a"], [0.5, 0.1]) == {"a": 0.5}


# ---- results and keeping -----------------------------------------------------------------------------------------------


def test_a_merge_can_be_kept_once(section: MergeSection, studio: FakeStudio, lab: FakeMerges) -> None:
    panel = section.merge
    assert not seen(panel)[1][-1]["visible"]
    lab.ran("merge", merge_result(MIX))
    known, values = seen(panel)
    assert values[-1]["visible"] and "not kept yet" in str(values) and len(values) == len(panel.outputs)
    assert panel.view(panel.studio.desk(), None, known) == (SKIP,) * len(panel.outputs)

    def keep(name: object, routed: object = True, shown: object = known) -> tuple[Any, ...]:
        return panel.keep(NOBODY, None, shown, "", name, routed)  # type: ignore[arg-type]

    for name, routed, shown, words in (("", True, known, "empty"), ("x" * 81, True, known, "80"), ("New", True, {}, "No merge"),
                                       ("New", "yes", known, "true or false"), ("New", True, None, "No merge")):  # fmt: skip
        with pytest.raises(gr.Error, match=words):
            keep(name, routed, shown)
    lab.fail_next = LobeError("A lobe called 'law' exists already.")
    with pytest.raises(gr.Error, match="exists already"):
        keep("law")
    *view, emptied = keep(" New ", False)
    assert emptied == "" and not view[-1]["visible"] and "kept as New" in str(view)
    assert studio.calls[-1] == ("lab.keep_merge", (known["job"], "New", "", False))
    assert "New" in [lobe.name for lobe in studio.lobes()]
    with pytest.raises(gr.Error, match="kept already"):
        keep("New 2")


def test_a_search_fills_the_sliders(section: MergeSection, studio: FakeStudio, lab: FakeMerges) -> None:
    panel = section.search
    assert not seen(panel)[1][-1]["visible"]
    with pytest.raises(gr.Error, match="Search for weights first"):
        section.use({}, "cat")
    result = search_result(["medical", "legal"])
    result["weights"] = {"medical": 0.777, "legal": -0.2}
    lab.ran("search", result)
    known, values = seen(panel)
    assert values[-1]["visible"]
    filled = told(section, section.use(known, "svd"))
    assert filled["sliders"] == {"medical": 0.78, "legal": -0.2} and filled["kind"] == "svd"
    studio.delete("medical")
    assert told(section, section.use(known, "svd"))["sliders"] == {"legal": -0.2}
    studio.delete("legal")
    with pytest.raises(gr.Error, match="no longer there"):
        section.use(known, "cat")


def test_others_merges_cannot_be_kept_here() -> None:
    studio = FakeStudio(3, shared=True)
    lab = FakeMerges(studio)
    section = MergeSection(studio)
    with gr.Blocks() as page:
        section.build()
    assert any("does not merge lobes" in str(block.value) for block in page.blocks.values() if isinstance(block, gr.HTML))
    lab.ran("merge", merge_result(MIX), owner="token:1")
    assert not seen(section.merge, "token:2")[1][-1]["visible"]
    assert seen(section.merge, "token:1")[1][-1]["visible"]


def test_endpoints_are_private(section: MergeSection, studio: FakeStudio) -> None:
    built = MergeSection(studio)
    with gr.Blocks() as page:
        tab = LabTab(studio)
        tab.sections = [built]
        tab.build()
        built.follow(page.load)
    assert [d for d in page.config["dependencies"] if d["api_visibility"] != "private"] == []
