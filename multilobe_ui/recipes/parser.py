"""The shipped parser: a small English spaCy pipeline (tagger, morphologizer, dependency parser)
trained from a treebank.

    python -m multilobe_ui.recipes.parser TREEBANK_FOLDER OUTPUT_FOLDER

The folder holds CoNLL-U files whose names end in train, dev and test (`.conllu` or `.conllu.gz`).
The development part chooses the best step, the test part is read once, at the end, for the scores
of the card. Needs no network, no vectors and no transformer.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import DataError

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc, DocBin

NAME = "ud_ewt_sm"
PARTS = ("train", "dev", "test")
SENTENCES = 4
"""Sentences in one training text: prompts are short, but the parser must also learn where a sentence ends."""
TREEBANK = "UD English EWT (Universal Dependencies, English Web Treebank)"
LICENCE = "CC BY-SA 4.0"
SCORES = {
    "token_f": "tokens (F1)",
    "sents_f": "sentences (F1)",
    "tag_acc": "TAG",
    "pos_acc": "POS",
    "morph_acc": "MORPH",
    "dep_uas": "UAS",
    "dep_las": "LAS",
}
"""spaCy's name of each score of the card, and the card's."""

# Layers as in spaCy's own small models (width 96, depth 4, a receptive field of 9 words), with
# fewer hash rows.
CONFIG = """
[nlp]
lang = "en"
pipeline = ["tok2vec", "tagger", "morphologizer", "parser"]

[components]

[components.tok2vec]
factory = "tok2vec"

[components.tok2vec.model]
@architectures = "spacy.Tok2Vec.v2"

[components.tok2vec.model.embed]
@architectures = "spacy.MultiHashEmbed.v2"
width = 96
attrs = ["NORM", "PREFIX", "SUFFIX", "SHAPE", "SPACY", "IS_SPACE"]
rows = [4000, 1000, 2000, 1000, 50, 50]
include_static_vectors = false

[components.tok2vec.model.encode]
@architectures = "spacy.MaxoutWindowEncoder.v2"
width = 96
depth = 4
window_size = 1
maxout_pieces = 3

[components.tagger]
factory = "tagger"

[components.tagger.model]
@architectures = "spacy.Tagger.v2"

[components.tagger.model.tok2vec]
@architectures = "spacy.Tok2VecListener.v1"
width = 96

[components.morphologizer]
factory = "morphologizer"

[components.morphologizer.model]
@architectures = "spacy.Tagger.v2"

[components.morphologizer.model.tok2vec]
@architectures = "spacy.Tok2VecListener.v1"
width = 96

[components.parser]
factory = "parser"

[components.parser.model]
@architectures = "spacy.TransitionBasedParser.v2"
state_type = "parser"
extra_state_tokens = false
hidden_width = 64
maxout_pieces = 2
use_upper = true

[components.parser.model.tok2vec]
@architectures = "spacy.Tok2VecListener.v1"
width = 96

[corpora]

[corpora.train]
@readers = "spacy.Corpus.v1"
path = ${paths.train}

[corpora.train.augmenter]
@augmenters = "spacy.lower_case.v1"
level = 0.15

[corpora.dev]
@readers = "spacy.Corpus.v1"
path = ${paths.dev}

[training]
dropout = 0.15
patience = 0
max_epochs = 0

[training.batcher]
@batchers = "spacy.batch_by_words.v1"
discard_oversize = false
tolerance = 0.2

[training.batcher.size]
@schedules = "compounding.v1"
start = 100
stop = 800
compound = 1.002

[training.optimizer]
@optimizers = "Adam.v1"
L2_is_weight_decay = true
L2 = 0.01
grad_clip = 1.0
use_averages = true

[training.optimizer.learn_rate]
@schedules = "warmup_linear.v1"
initial_rate = 0.002
warmup_steps = 200

[training.score_weights]
tag_acc = 0.15
pos_acc = 0.15
morph_acc = 0.1
dep_uas = 0.2
dep_las = 0.4
"""


def find_part(folder: Path, part: str) -> Path:
    """The CoNLL-U file of "train", "dev" or "test".

    Raises:
        DataError: there is none, or more than one.
    """
    found = [path for ending in ("conllu", "conllu.gz") for path in folder.glob(f"*{part}.{ending}")]
    if len(found) != 1:
        raise DataError(
            f"{folder} has {len(found)} files for {part!r}: it needs one, named like en_ewt-{part}.conllu.gz."
        )
    return found[0]


def documents(path: Path, sentences: int) -> Iterator[Doc]:
    """The texts of a CoNLL-U file as gold documents of at most so many sentences, never across a `#
    newdoc` mark.

    Subtokens stay apart: the treebank cuts "don't" and "Bush's" where spaCy's English tokenizer
    does ("do n't", "Bush 's"), so merged words would not align with what the parser sees later.
    """
    from spacy.training.converters import conllu_to_docs  # type: ignore[attr-defined]

    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        text = file.read()
    for document in re.split(r"(?m)^# newdoc.*$", text):
        if document.strip():
            yield from conllu_to_docs(document, n_sents=sentences, merge_subtokens=False, no_print=True)  # type: ignore[no-untyped-call]


def corpus(path: Path, sentences: int) -> DocBin:
    """The documents in spaCy's binary format; from it they can be had in the vocabulary of any pipeline."""
    from spacy.tokens import DocBin

    return DocBin(attrs=["ORTH", "SPACY", "TAG", "POS", "MORPH", "HEAD", "DEP"], docs=documents(path, sentences))


def train(folder: Path, *, steps: int, evaluate_every: int, seed: int) -> Language:
    """Train on the train part and return the pipeline as it was at its best step on the dev part.

    Raises:
        DataError: a part of the treebank is missing.
    """
    import spacy
    from spacy.language import DEFAULT_CONFIG
    from spacy.training.initialize import init_nlp
    from spacy.training.loop import train as run
    from thinc.api import Config

    paths = {part: find_part(folder, part) for part in ("train", "dev")}
    with tempfile.TemporaryDirectory(prefix="multilobe-treebank-") as name:
        work = Path(name)
        config = DEFAULT_CONFIG.merge(Config().from_str(CONFIG, interpolate=False))
        for part, path in paths.items():
            corpus(path, SENTENCES).to_disk(work / f"{part}.spacy")
            config["paths"][part] = str(work / f"{part}.spacy")
        config["training"] |= {"max_steps": steps, "eval_frequency": evaluate_every, "seed": seed}
        config["training"]["optimizer"]["learn_rate"]["total_steps"] = steps
        run(init_nlp(config, use_gpu=-1), work, use_gpu=-1, stdout=sys.stdout, stderr=sys.stderr)
        nlp = spacy.load(work / "model-best")
    nlp.config["paths"] = dict.fromkeys(nlp.config["paths"])  # they are gone
    return nlp


def evaluate(nlp: Language, path: Path, sentences: int, gold_tokens: bool = False) -> dict[str, float]:
    """Scores in percent. On raw text (the default) the pipeline tokenizes the text itself, and a
    word cut otherwise than in the treebank counts as wrong. Attachment (UAS, LAS) leaves
    punctuation out, as spaCy's scorer does."""
    from spacy.tokens import Doc
    from spacy.training import Example

    examples = []
    for gold in corpus(path, sentences).get_docs(nlp.vocab):
        words, spaces = [token.text for token in gold], [bool(token.whitespace_) for token in gold]
        given = Doc(nlp.vocab, words=words, spaces=spaces) if gold_tokens else nlp.make_doc(gold.text)
        examples.append(Example(given, gold))
    scores = nlp.evaluate(examples)
    return {name: round(100 * scores[name], 2) for name in SCORES}


def save(
    nlp: Language, target: Path, performance: Mapping[str, Mapping[str, float]], recipe: Mapping[str, int]
) -> None:
    """Write the pipeline, its meta.json and its card.

    performance: scores in percent by the kind of text they were measured on. recipe: settings of
    the command, for the card.
    """
    nlp.to_disk(target)
    # The words of the treebank are of no use at run time (features are hashed); without the labels'
    # names tags cannot be read.
    labels = sorted({label for _, pipe in nlp.pipeline for label in getattr(pipe, "labels", ())})
    (target / "vocab" / "strings.json").write_text(json.dumps(labels), encoding="utf-8")
    meta = json.loads((target / "meta.json").read_text(encoding="utf-8"))
    meta |= {
        "name": NAME,
        "version": "1.0.0",
        "spacy_version": ">=3.8.0,<4.0.0",
        "description": "Small English tagger, morphologizer and dependency parser for MultiLobe UI.",
        "license": LICENCE,
        "sources": [
            {"name": TREEBANK, "license": LICENCE, "url": "https://github.com/UniversalDependencies/UD_English-EWT"}
        ],
        "performance": performance,
        "recipe": recipe,
    }
    (target / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    (target / "CARD.md").unlink(missing_ok=True)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    (target / "CARD.md").write_text(card(performance, recipe, size), encoding="utf-8")


def card(performance: Mapping[str, Mapping[str, float]], recipe: Mapping[str, int], size: int) -> str:
    """The text of CARD.md."""
    heads = "".join(f" | {name}" for name in SCORES.values())
    rows = "".join(
        f"| {kind}{''.join(f' | {scores[name]:.2f}' for name in SCORES)} |\n" for kind, scores in performance.items()
    )
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in recipe.items())
    return f"""# Parser `en_{NAME}`

A small English spaCy pipeline: hash-embedding convolutional tok2vec (width 96, depth 4, no vectors), tagger, morphologizer and
transition-based dependency parser. {size / 1e6:.1f} MB. It measures the complexity of prompts where no larger spaCy pipeline is
installed. It finds no named entities and no lemmas.

## Origin and licence

Trained from nothing on the train part of {TREEBANK}: Silveira et al. 2014,
"A Gold Standard Dependency Corpus for English". The treebank's annotations are under {LICENCE}
(https://creativecommons.org/licenses/by-sa/4.0/). Whether weights are an adaptation of the data they were trained on is not
settled; to be on the safe side the files of this folder are offered under {LICENCE} too, not under the Apache licence of the
program. No sentence of the treebank is in them. What was changed: a share of the texts was lower-cased while training.

## Recipe

    python -m multilobe_ui.recipes.parser TREEBANK_FOLDER OUTPUT_FOLDER {options}

on one CPU core, no network. Subtokens stay apart ("do n't"), as spaCy's English tokenizer cuts them. The best step was chosen on
the dev part.

## Scores

On the test part, in percent. In the first two rows the pipeline gets raw text: it tokenizes and cuts sentences itself, and a word
cut otherwise than in the treebank counts as wrong. UAS and LAS leave out punctuation; LAS compares relations with their subtypes.

| text given{heads} |
|---{"|---" * len(SCORES)}|
{rows}"""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m multilobe_ui.recipes.parser", description="Train the shipped parser.")
    parser.add_argument("treebank", type=Path, help="folder with the CoNLL-U files of train, dev and test")
    parser.add_argument("output", type=Path, help="folder that gets the pipeline")
    parser.add_argument("--steps", type=int, default=6500, help="optimizer steps; the rate falls to zero over them")
    parser.add_argument("--evaluate-every", type=int, default=325, help="steps between two looks at the dev part")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    recipe = {"steps": options.steps, "evaluate_every": options.evaluate_every, "seed": options.seed}
    started = time.monotonic()
    nlp = train(options.treebank, **recipe)
    save(nlp, options.output, performance(nlp, find_part(options.treebank, "test")), recipe)
    print(f"{options.output} written after {time.monotonic() - started:.0f} s.")


def performance(nlp: Language, path: Path) -> dict[str, dict[str, float]]:
    """The scores of the card: on whole documents, and on single sentences, which are nearer to a prompt."""
    return {
        "whole documents": evaluate(nlp, path, sentences=sys.maxsize),
        "single sentences": evaluate(nlp, path, sentences=1),
        "single sentences, tokens given": evaluate(nlp, path, sentences=1, gold_tokens=True),
    }


if __name__ == "__main__":
    main()
