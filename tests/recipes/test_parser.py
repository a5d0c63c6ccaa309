"""The recipe of the shipped parser: a tiny treebank becomes a pipeline that loads, and the shipped card agrees with meta.json."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path

import pytest

from multilobe_ui.assets import folder
from multilobe_ui.errors import DataError
from multilobe_ui.recipes import parser as treebank

TINY = """\
# newdoc id = a
# sent_id = a-1
# text = Dogs don't sleep.
1	Dogs	dog	NOUN	NNS	Number=Plur	4	nsubj	_	_
2-3	don't	_	_	_	_	_	_	_	_
2	do	do	AUX	VBP	Mood=Ind	4	aux	_	_
3	n't	not	PART	RB	Polarity=Neg	4	advmod	_	_
4	sleep	sleep	VERB	VB	VerbForm=Inf	0	root	_	SpaceAfter=No
5	.	.	PUNCT	.	_	4	punct	_	_

# sent_id = a-2
# text = We know cats.
1	We	we	PRON	PRP	Number=Plur|Person=1	2	nsubj	_	_
2	know	know	VERB	VBP	Mood=Ind	0	root	_	_
3	cats	cat	NOUN	NNS	Number=Plur	2	obj	_	SpaceAfter=No
4	.	.	PUNCT	.	_	2	punct	_	_

# newdoc id = b
# sent_id = b-1
# text = Hello
1	Hello	hello	INTJ	UH	_	0	root	_	_
"""


@pytest.fixture
def tiny_treebank(tmp_path: Path) -> Path:
    source = tmp_path / "treebank"
    source.mkdir()
    (source / "tiny-train.conllu").write_text(TINY * 30, encoding="utf-8")  # rarer relations are dropped
    (source / "tiny-dev.conllu").write_text(TINY, encoding="utf-8")
    with gzip.open(source / "tiny-test.conllu.gz", "wt", encoding="utf-8") as file:
        file.write(TINY)
    return source


def test_documents_keep_subtokens_and_do_not_cross_marks(tiny_treebank: Path) -> None:
    path = treebank.find_part(tiny_treebank, "test")
    together, hello = treebank.documents(path, sentences=10)
    assert [token.text for token in together] == ["Dogs", "do", "n't", "sleep", ".", "We", "know", "cats", "."]
    assert together.text.split() == ["Dogs", "don't", "sleep.", "We", "know", "cats."]
    assert [token.head.text for token in together[:5]] == ["sleep", "sleep", "sleep", "sleep", "sleep"]
    assert hello.text.strip() == "Hello"
    assert len(list(treebank.documents(path, sentences=1))) == 3


def test_a_missing_or_doubled_part_is_told(tiny_treebank: Path) -> None:
    (tiny_treebank / "other-dev.conllu").write_text(TINY, encoding="utf-8")
    for part, count in (("dev", 2), ("validation", 0)):
        with pytest.raises(DataError, match=rf"{count} files for '{part}'"):
            treebank.find_part(tiny_treebank, part)


def test_the_command_trains_a_pipeline_that_loads(tiny_treebank: Path, tmp_path: Path) -> None:
    import spacy

    output = tmp_path / "parser"
    treebank.main([str(tiny_treebank), str(output), "--steps", "2", "--evaluate-every", "1", "--seed", "3"])
    nlp = spacy.load(output)
    assert nlp.pipe_names == ["tok2vec", "tagger", "morphologizer", "parser"]
    doc = nlp("Dogs don't frobnicate. We know cats.")
    assert all(token.tag_ and token.pos_ and token.dep_ for token in doc)
    path = treebank.find_part(tiny_treebank, "test")
    assert nlp.meta["performance"] == treebank.performance(nlp, path)  # what was saved is what was measured
    assert nlp.meta["recipe"] == {"steps": 2, "evaluate_every": 1, "seed": 3}
    # Nothing of the machine it was made on, nor the words of the treebank
    written = "".join(file.read_text(encoding="utf-8") for file in output.rglob("*.*") if file.suffix != ".bin")
    assert str(tmp_path) not in written and "multilobe-treebank-" not in written
    assert "sleep" not in json.loads((output / "vocab" / "strings.json").read_text(encoding="utf-8"))


def test_the_shipped_card_tells_the_scores_of_meta_json() -> None:
    shipped = folder("assets") / "parser"
    card = (shipped / "CARD.md").read_text(encoding="utf-8")
    meta = json.loads((shipped / "meta.json").read_text(encoding="utf-8"))
    head, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in card.splitlines()
        if line.startswith("|") and not line.startswith("|-")
    ]
    told = {row[0]: dict(zip(head[1:], map(float, row[1:]), strict=True)) for row in rows}
    assert told == {
        kind: {treebank.SCORES[name]: value for name, value in scores.items()}
        for kind, scores in meta["performance"].items()
    }
    assert meta["license"] == treebank.LICENCE and treebank.LICENCE in card and treebank.TREEBANK in card
    size = re.search(r"([\d.]+) MB", card)
    assert size is not None
    files = [path for path in shipped.rglob("*") if path.is_file()]
    assert sum(os.path.getsize(path) for path in files) / 1e6 == pytest.approx(float(size[1]), abs=0.1)
    assert max(map(os.path.getsize, files)) < 10e6
