"""Who may do what, and what the others are told."""

from __future__ import annotations

import pytest

from multilobe_ui.app.visitors import POLICY, Visitor

OWNER, OTHER, NAMELESS = (Visitor(id, shared=True) for id in ("user:anna", "user:ben", ""))


@pytest.mark.parametrize("verb", POLICY)
def test_on_a_machine_of_ones_own_everything_is_allowed(verb: str) -> None:
    for id in ("", "user:anna"):
        Visitor(id, shared=False).must_be_allowed(verb, "thing", "user:ben")


@pytest.mark.parametrize("verb", POLICY)
def test_on_a_shared_server_a_rule_is_kept_and_says_why(verb: str) -> None:
    rule = POLICY[verb]
    for visitor in (OTHER, NAMELESS):
        with pytest.raises(rule.error) as refused:
            visitor.must_be_allowed(verb, "thing", "user:anna")
        sentence = str(refused.value)
        assert "{" not in sentence and sentence.endswith(".")
        assert "belongs to somebody else" in sentence or "server is shared" in sentence
    if rule.who == "owner":
        OWNER.must_be_allowed(verb, "thing", "user:anna")
    else:
        with pytest.raises(rule.error):
            OWNER.must_be_allowed(verb, "thing", "user:anna")


def test_what_is_nobodys_belongs_to_no_visitor() -> None:
    assert not NAMELESS.owns("") and not OTHER.owns("") and OWNER.owns("user:anna")
