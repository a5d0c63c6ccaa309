"""Facts: a lobe trained with the defaults knows its own rows word for word, which is what people train their files for."""

from __future__ import annotations

import pytest
from facts import facts

from multilobe_ui.base.backbone import Backbone
from multilobe_ui.generation.decode import generate_text
from multilobe_ui.lobes.store import Lobe
from multilobe_ui.model import MultiLobeModel
from multilobe_ui.settings import SamplingConfig


def right_word_for_word(model: MultiLobeModel, lobe: Lobe, rows: list[dict[str, str]]) -> int:
    """How many rows' prompts the lobe answers exactly, greedily."""
    sampling = SamplingConfig(do_sample=False, max_new_tokens=96)
    asked = [[{"role": "user", "content": row["input"]}] for row in rows]
    requests = [model.answers.request(messages, model.answers.decide(messages, lobe.name), sampling) for messages in asked]
    answers = [a for i in range(0, len(rows), 16) for a in generate_text(model.bank, requests[i : i + 16])]
    return sum(answer.strip() == row["output"] for answer, row in zip(answers, rows, strict=True))


def test_the_facts_are_all_different() -> None:
    for rows in (facts(300, 1), facts(60, 2, long=True), facts(60, 3, phrasings=1)):
        assert len({row["input"] for row in rows}) == len({row["output"] for row in rows}) == len(rows)
    assert facts(60, 1) == facts(60, 1) != facts(60, 2)
    words = [len(row["output"].split()) for row in facts(300, 1)]
    assert min(words) >= 4 and max(words) <= 16


@pytest.mark.builtin
def test_sixty_facts_are_known_word_for_word_with_the_defaults(builtin: Backbone) -> None:
    model, rows = MultiLobeModel(builtin), facts(60, 1)
    lobe = model.add_lobe("My facts", rows)
    assert (lobe.card.training["train_rows"], lobe.card.training["kept"]) == (60, "last")
    assert right_word_for_word(model, lobe, rows) >= 55
