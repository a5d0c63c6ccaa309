"""Who may do what. On a person's own machine everybody may do everything; this is the one place
that says what may not be done on a server that several people share, and what a person is told who tries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError, JobError, LobeError, MultiLobeError


@dataclass(frozen=True)
class Rule:
    """A rule of a shared server.

    Attributes:
        who: "owner": whoever made the thing. "nobody": it is everybody's, or costs too much.
        sentence: for the others; {name} is the thing's name. error: its kind.
    """

    who: Literal["owner", "nobody"]
    sentence: str
    error: type[MultiLobeError] = ConfigError


def _nobody(sentence: str) -> Rule:
    return Rule("nobody", f"This server is shared, so {sentence}")


def _cannot_be_changed(what: str) -> Rule:
    return _nobody(f"{what} cannot be changed. Run your own copy to do so.")


POLICY: Mapping[str, Rule] = {
    "change the base": _nobody("its base model stays. Run your own copy to choose another."),
    "change a run": Rule("owner", "The run {name!r} belongs to somebody else, so only they can change it.", JobError),
    "change a lobe": Rule(
        "owner", "The lobe {name!r} belongs to somebody else or to the demo, so it stays as it is.", LobeError
    ),
    "replace lobes by a bundle": _nobody("a bundle cannot replace lobes. Choose 'rename' or 'refuse'."),
    "train experts": _nobody("it trains no experts for complexity. Run your own copy for that."),
    "change keywords": _cannot_be_changed("the words of the keyword router"),
    "change the chain": _cannot_be_changed("the chain of routers"),
    "change the memory budget": _cannot_be_changed("what lobes may take in memory"),
    "pin a lobe": _cannot_be_changed("which lobes stay in memory"),
    "run a long experiment": _nobody("it does not run: {name}. Run your own copy for that."),
    "keep a merge": Rule("owner", "This merge belongs to somebody else, so only they can keep it.", JobError),
    "correct prompts": _nobody("nobody can correct prompts here. Run your own copy to do so."),
    "keep corrections": _nobody("nobody can keep corrections here. Run your own copy to do so."),
    "take corrections back": _nobody("nobody can take corrections back here. Run your own copy to do so."),
    "export feedback": _nobody("its feedback is not handed out: it holds the words of others. Run your own copy."),
    "clear the ledger": _nobody("its ledger stays. Run your own copy to begin one anew."),
}


@dataclass(frozen=True)
class Visitor:
    """Somebody who asks.

    Attributes:
        id: what their runs and lobes are marked with; "" for one who has not said who they are.
        shared: whether several people use this server.
    """

    id: str
    shared: bool

    def owns(self, owner: str) -> bool:
        """Whether what is marked so may be changed by this visitor; what is nobody's (the demo)
        only by whoever runs the server."""
        return not self.shared or (bool(self.id) and owner == self.id)

    def must_be_allowed(self, verb: str, name: str = "", owner: str = "") -> None:
        """Raise the error of the rule for `verb` unless this visitor may do it.

        Args:
            verb: of `POLICY`. name: what it is done to. owner: whose that is.
        """
        rule = POLICY[verb]
        if not self.shared or (rule.who == "owner" and self.owns(owner)):
            return
        raise rule.error(rule.sentence.format(name=name))
