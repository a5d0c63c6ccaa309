"""The brain map as data: well-formed, one region per lobe, lit by weight, small, deterministic, and safe."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from multilobe_ui.ui.chat.brain_map import MOST_REGIONS, OTHERS, brain_map, brain_mark

SVG = "{http://www.w3.org/2000/svg}"
COLOURS = ("#e5484d", "#c9880b", "#2f8fe0", "#8e5bd9", "#1f9d6b", "#d6498f")


def lobes(count):
    return [(f"lobe {i}", COLOURS[i % 6]) for i in range(count)]


def cells(picture):
    return [e for e in ET.fromstring(picture).iter(f"{SVG}path") if "ml-brain-cell" in e.get("class", "")]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 6, 12])
def test_one_region_for_every_lobe(count):
    found = cells(brain_map(lobes(count)))
    assert [cell.find(f"{SVG}title").text for cell in found] == [name for name, _ in lobes(count)]
    assert [cell.get("fill") for cell in found] == [tone for _, tone in lobes(count)]
    assert len({cell.get("d") for cell in found}) == count


@pytest.mark.parametrize("count", [13, 20, 200])
def test_beyond_twelve_the_heaviest_and_the_others(count):
    last = f"lobe {count - 1}"
    found = cells(brain_map(lobes(count), {last: 1.0}))
    titles = [cell.find(f"{SVG}title").text for cell in found]
    assert len(found) == MOST_REGIONS + 1
    assert titles[-2:] == [f"{last}: answers", f"{count - MOST_REGIONS} others"]
    assert found[-1].get("fill") == OTHERS


def test_light_follows_weight():
    found = cells(brain_map(lobes(4), {"lobe 0": 1.0, "lobe 1": 0.5, "lobe 2": float("nan")}))
    opacity = [float(cell.get("fill-opacity")) for cell in found]
    assert opacity[0] > opacity[1] > opacity[2] == opacity[3]
    assert [("is-lit" in cell.get("class")) for cell in found] == [True, True, False, False]


def test_a_region_stays_where_it_is_when_the_lights_change():
    before, after = cells(brain_map(lobes(6))), cells(brain_map(lobes(6), {"lobe 3": 1.0}, state="live"))
    assert [cell.get("d") for cell in before] == [cell.get("d") for cell in after]


def test_the_base_is_lit_when_it_answers():
    assert "is-base" not in brain_map(lobes(2))
    root = ET.fromstring(brain_map(lobes(2), {}, base=True))
    assert "is-base" in root.get("class")
    assert root.get("aria-label").endswith("The base model is lit.")


def test_it_can_be_read_aloud():
    root = ET.fromstring(brain_map(lobes(3), {"lobe 1": 0.7, "lobe 2": 0.3}))
    assert root.get("role") == "img"
    assert root.get("aria-label") == "A brain with 3 lobes. Lit by weight: lobe 1 70 %, lobe 2 30 %."
    assert brain_map(lobes(3), {"lobe 1": 1.0}).count("lobe 1: answers") == 2, "a light is a weight, no certainty"
    assert "without lobes" in brain_map([])


def test_small_and_deterministic():
    picture = brain_map(lobes(6), {"lobe 1": 1.0})
    assert len(picture) < 8000
    assert picture == brain_map(lobes(6), {"lobe 1": 1.0})


def test_two_pictures_on_a_page_do_not_share_ids():
    ids = [re.search(r'clipPath id="(\w+)"', brain_map(lobes(6), {f"lobe {i}": 1.0})).group(1) for i in range(6)]
    assert len(set(ids)) == 6


def test_names_and_colours_of_strangers_are_harmless():
    evil = '"><script>alert(1)</script>'
    picture = brain_map([(evil, 'red" onload="x'), ("b", "#2f8fe0")], {evil: 1.0})
    assert "<script" not in picture
    assert "onload" not in picture
    assert cells(picture)[0].find(f"{SVG}title").text == f"{evil}: answers"


@pytest.mark.parametrize("colours", [(), COLOURS[:1], COLOURS, COLOURS * 5])
def test_the_mark(colours):
    found = [e for e in ET.fromstring(brain_mark(colours)).iter(f"{SVG}path") if e.get("fill")]
    assert len(found) == min(6, len(colours))
