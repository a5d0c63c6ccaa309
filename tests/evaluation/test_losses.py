"""The loss matrix, the oracle and short answers: against PEFT row by row, naive loops, and values worked out by hand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from test_model import TOPICS, WordEmbedder, rows, trained
from test_report import some_without_held_out_rows

from multilobe_ui import MultiLobeModel
from multilobe_ui.base.backbone import Backbone
from multilobe_ui.data.examples import Example
from multilobe_ui.errors import ConfigError, DataError, RoutingError
from multilobe_ui.evaluation import (
    LabelledRow,
    LossSettings,
    exact_match,
    held_out_rows,
    lobe_losses,
    loss_matrix,
    token_f1,
)
from multilobe_ui.evaluation.loss_table import LossTable, share_of_exact
from multilobe_ui.evaluation.losses import losses_under
from multilobe_ui.evaluation.tasks import greedy_answers, is_short
from multilobe_ui.lobes.bank import LobeBank
from multilobe_ui.routers import RoutingDecision
from multilobe_ui.routing.decision import base_decision
from multilobe_ui.training.batches import TokenRows, answer_losses, mean_answer_loss

# ---- losses against PEFT --------------------------------------------------------------------------------------------------


def by_hand(backbone: Backbone, model: Any, example: Example) -> tuple[float, int]:
    """(NLL of the answer in nats, its tokens) of one row alone, by transformers' forward."""
    prompt, answer = backbone.encode_chat(example.context), backbone.encode_answer(example.answer)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].double()
    found = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1].gather(-1, torch.tensor(answer)[:, None])
    return -float(found.sum()), len(answer)


@pytest.mark.parametrize("architecture", ["llama", "bloom"])  # one packs rows side by side, one pads them
def test_every_rows_loss_is_that_of_peft(base_folder: Any, tmp_path: Path, architecture: str) -> None:
    base = Backbone.from_pretrained(base_folder(architecture), device="cpu")
    adapter = tiny.save_adapter(base.model, tmp_path / "a", seed=4)
    bank, examples = LobeBank(base), tiny.examples(9)
    bank.register("a", adapter)
    for lobe, reference in ((None, base.model), ("a", tiny.with_peft(base.model, adapter))):
        nll, tokens = losses_under(bank, lobe, TokenRows(base, examples, 96))
        expected = [by_hand(base, reference, example) for example in examples]
        assert tokens.tolist() == [count for _, count in expected]
        np.testing.assert_allclose(nll, [value for value, _ in expected], rtol=1e-4)


def test_the_matrix_is_the_mean_over_tokens_not_over_rows(backbone: Backbone, adapters: dict[str, Path]) -> None:
    bank = LobeBank(backbone)
    for name, folder in adapters.items():
        bank.register(name, folder)
    datasets = {"short": tiny.examples(4), "long": tiny.examples(7, start=4), "none": []}
    found = loss_matrix(bank, list(adapters), datasets)
    assert found.shape == (4, 3)
    for i, model in enumerate([backbone.model, *(tiny.with_peft(backbone.model, folder) for folder in adapters.values())]):
        for j, examples in enumerate(datasets.values()):
            values = [by_hand(backbone, model, example) for example in examples]
            expected = sum(v for v, _ in values) / max(1, sum(n for _, n in values))
            assert found[i, j] == pytest.approx(expected, rel=1e-4)


def test_rows_that_are_cut_count_what_is_left(backbone: Backbone) -> None:
    long = Example(({"role": "user", "content": "why " * 30},), "because " * 30)
    tokenised = TokenRows(backbone, [long, *tiny.examples(2)], 24)
    nll, tokens = answer_losses(backbone.model, backbone, tokenised)
    assert tokens[0] == 24 - tokenised.prompt_lengths[0]
    assert mean_answer_loss(backbone.model, backbone, tokenised) == pytest.approx(nll.sum() / tokens.sum())


# ---- what is looked up ----------------------------------------------------------------------------------------------------


def random_table(seed: int, lobes: int = 3, rows: int = 7) -> LossTable:
    """Datasets of every lobe and of none, with random losses and a router that is right now and then."""
    dice = np.random.default_rng(seed)
    names = [f"lobe{i}" for i in range(lobes)]
    own = [*names, None]
    table = LossTable(names, own)
    for j, mine in enumerate(own):
        table.tokens[j] = dice.integers(1, 20, rows)
        for name in (None, *names):
            table.nll[name, j] = table.tokens[j] * (dice.random(rows) + (0.2 if name == mine else 1.0))
        table.choices[j] = [mine if dice.random() < 0.6 else dice.choice([None, *names]) for _ in range(rows)]
    return table


@pytest.mark.parametrize("seed", range(5))
def test_lookups_are_a_naive_loop(seed: int) -> None:
    table = random_table(seed)
    base = oracle = routed = 0.0
    for j, own in enumerate(table.own):
        ours = 0.0
        for i, choice in enumerate(table.choices[j]):
            ours += table.nll[choice, j][i]
            if own:
                base += table.nll[None, j][i]
                oracle += table.nll[own, j][i]
                routed += table.nll[choice, j][i]
        assert table.mean(j, table.routed(j)) == pytest.approx(ours / sum(table.tokens[j]))
    assert table.share_of_oracle() == pytest.approx((base - routed) / (base - oracle))
    losses = table.losses()
    for j, own in enumerate(table.own):
        for i, name in enumerate((None, *table.lobes)):
            assert losses[i][j] == pytest.approx(sum(table.nll[name, j]) / sum(table.tokens[j]))
        assert table.oracle()[j] == (losses[1 + table.lobes.index(own)][j] if own else None)
        if own:
            assert table.gain()[own] == pytest.approx(losses[0][j] - table.oracle()[j])
    assert set(table.gain()) == set(table.lobes) and table.idle() == []


def test_a_router_like_the_oracle_has_all_of_its_gain_and_one_that_abstains_none() -> None:
    table = random_table(1)
    table.choices = {j: [own] * 7 for j, own in enumerate(table.own)}
    assert table.share_of_oracle() == pytest.approx(1)
    table.choices = {j: [None] * 7 for j in range(4)}
    assert table.share_of_oracle() == 0


def test_idle_lobes_gain_nothing_or_do_not_win_their_dataset() -> None:
    ones = np.ones(2, int)
    table = LossTable(["good", "useless", "beaten", "unknown"], ["good", "useless", "beaten"], tokens=dict.fromkeys(range(3), ones))
    for name, losses in {
        None: (3, 3, 3), "good": (1, 3, 1), "useless": (3, 3, 3), "beaten": (3, 3, 2), "unknown": (3, 3, 3)
    }.items():  # fmt: skip
        for j, loss in enumerate(losses):
            table.nll[name, j] = np.full(2, float(loss))
    assert table.gain() == {"good": 2.0, "useless": 0.0, "beaten": 1.0}
    assert table.idle() == ["useless", "beaten"]


def test_what_is_not_measured_yet_is_null() -> None:
    table = random_table(2)
    del table.nll["lobe2", 2], table.choices[3]
    table.choices[2] = ["lobe2"] * 7
    assert table.losses()[3][2] is None and table.oracle()[2] is None and table.routed(2) is None and table.routed(3) is None
    assert "lobe2" not in table.gain() and table.share_of_oracle() is not None
    empty = LossTable(["a"], ["a"])
    assert (empty.losses(), empty.gain(), empty.idle(), empty.share_of_oracle()) == ([[None], [None]], {}, [], None)


def test_lobes_that_gain_nothing_have_no_share() -> None:
    same = {(name, 0): np.ones(1) for name in (None, "a")}
    assert LossTable(["a"], ["a"], same, {0: np.ones(1)}, {0: ["a"]}).share_of_oracle() is None


# ---- the experiment -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(backbone: Backbone) -> MultiLobeModel:
    return trained(backbone)


def labelled() -> list[LabelledRow]:
    own = [LabelledRow(r["input"], r["output"], topic, "f.jsonl") for topic in TOPICS for r in rows(topic)[::4]]
    others = [LabelledRow(f"strange thing {i}", "no idea", None, "more.jsonl") for i in range(3)]
    return [*own, *others, LabelledRow("unanswered", "", None, "prompts.jsonl")]


def test_the_experiment_is_a_loop_over_rows_under_peft(model: MultiLobeModel) -> None:
    found = lobe_losses(model, labelled(), router="embedding", task=False)
    shown = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert shown["lobes"] == list(TOPICS) and shown["datasets"] == [*TOPICS, "more.jsonl"]
    assert shown["own"] == [*TOPICS, None] and shown["left_out"] == ["prompts.jsonl"]
    assert (shown["router"], shown["task"], shown["task_share"], shown["stopped"]) == ("embedding", {}, None, False)
    models = {None: model.backbone.model} | {lobe.name: tiny.with_peft(model.backbone.model, lobe.path) for lobe in model.lobes}
    routed_all = base_all = oracle_all = 0.0
    for j, name in enumerate(shown["datasets"]):
        own = [r for r in labelled() if r.answer and (r.lobe or r.source) == name]
        under = {lobe: [by_hand(model.backbone, peft, row.example) for row in own] for lobe, peft in models.items()}
        count = sum(n for _, n in under[None])
        assert (shown["rows"][j], shown["tokens"][j]) == (len(own), count)
        for i, lobe in enumerate(models):
            assert shown["losses"][i][j] == pytest.approx(sum(v for v, _ in under[lobe]) / count, rel=1e-4)
        choices = [model.route(row.prompt, "embedding").chosen for row in own]
        routed = sum(under[choice][i][0] for i, choice in enumerate(choices))
        assert shown["routed"][j] == pytest.approx(routed / count, rel=1e-4)
        if name in TOPICS:
            assert shown["oracle"][j] == shown["losses"][1 + list(TOPICS).index(name)][j]
            routed_all, base_all = routed_all + routed, base_all + sum(v for v, _ in under[None])
            oracle_all += sum(v for v, _ in under[name])
    assert shown["oracle"][-1] is None
    assert shown["share_of_oracle"] == pytest.approx((base_all - routed_all) / (base_all - oracle_all), rel=1e-3)


def test_held_out_rows_are_measured_where_none_are_given(model: MultiLobeModel) -> None:
    found = lobe_losses(model, task=False, most_rows=2)
    held = {topic: [r for r in held_out_rows(model) if r.lobe == topic] for topic in TOPICS}
    assert list(found.datasets) == list(TOPICS) and list(found.rows) == [min(2, len(own)) for own in held.values()]
    assert found.router == "hybrid" and found.notes == []


def test_lobes_that_held_nothing_out_are_measured_on_trained_rows_which_is_said(backbone: Backbone) -> None:
    mixed = some_without_held_out_rows(backbone)
    found = lobe_losses(mixed, task=False, router="keyword")
    assert list(found.datasets) == ["A", "B", "C"] and None not in [*found.losses[0], *found.routed]
    assert list(found.rows)[:2] == [27, 27] and 1 <= found.rows[2] <= 6
    assert found.notes == [
        "2 of 3 lobes held nothing out: their prompts are training rows, so these numbers flatter; "
        "give files of other prompts and answers for a fair test."
    ]
    assert lobe_losses(mixed, [LabelledRow("cat", "dog", "A", "f")], task=False).notes == []


# ---- lobes that come, go and change their names meanwhile: U8 ----------------------------------------------


def meddled(
    model: MultiLobeModel,
    when: str,
    meddle: Callable[[], Any],
    rows: list[LabelledRow] | None = None,
    **settings: Any,
) -> Any:
    """What is found if `meddle` is called once, at the first progress whose phase begins so."""
    called: list[str] = []

    def watch(p: Any) -> None:
        if not called and p.phase.startswith(when):
            called.append(p.phase)
            meddle()

    found = lobe_losses(model, labelled() if rows is None else rows, progress=watch, **settings)
    assert called
    return json.loads(json.dumps(found.to_json(), allow_nan=False))


@pytest.mark.parametrize("when", ["Asking", "Reading with the base", "Reading with 色", "Answering"])
def test_a_lobe_that_is_renamed_stays_under_its_old_name(backbone: Backbone, when: str) -> None:
    model = trained(backbone)
    expected = lobe_losses(model, labelled(), router="logprob").to_json()
    found = meddled(model, when, lambda: model.rename_lobe("色 / colours", "Colours"), router="logprob")
    assert {**found, "seconds": 0} == {**json.loads(json.dumps(expected)), "seconds": 0}


@pytest.mark.parametrize("router", ["keyword", "embedding", "logprob", "hybrid"])
def test_a_lobe_deleted_before_it_was_measured_is_left_out(backbone: Backbone, router: str) -> None:
    """The others stay."""
    model = trained(backbone)
    expected = lobe_losses(model, labelled(), router=router).to_json()
    found = meddled(model, "Reading with the base", lambda: model.remove_lobe("Numbers v1.0"), router=router)
    assert found["lobes"] == ["Animals", "色 / colours"]
    assert found["datasets"] == [*found["lobes"], "more.jsonl"] and found["own"] == [*found["lobes"], None]
    for i, row in enumerate((0, 1, 3)):
        assert found["losses"][i] == [expected["losses"][row][j] for j in (0, 2, 3)]
    assert set(found["gain"]) == set(found["lobes"]) and "Numbers v1.0" not in found["task"]
    first = "The lobe Numbers v1.0 was deleted before all losses were measured, so it is left out."
    assert found["notes"][0] == first and not found["stopped"]
    for j, routed in enumerate(found["routed"]):
        said = any("so there is no routed loss of those" in note for note in found["notes"])
        assert routed == expected["routed"][(0, 2, 3)[j]] or (routed is None and said)


def test_a_lobe_deleted_while_it_was_measured_is_left_out(backbone: Backbone) -> None:
    model = trained(backbone)
    settings = {"task": False, "router": "keyword"}
    found = meddled(model, "Reading with Animals", lambda: model.remove_lobe("Animals"), **settings)
    assert found["lobes"] == list(TOPICS)[1:] and None not in found["losses"][0]
    assert "The lobe Animals was deleted" in found["notes"][0]


@pytest.mark.parametrize("router", ["keyword", "logprob"])
def test_a_router_that_reads_a_deleted_lobe_is_not_asked_further(backbone: Backbone, router: str) -> None:
    model = trained(backbone)
    found = meddled(model, "Asking", lambda: model.remove_lobe("Animals"), router=router)
    assert found["lobes"] == list(TOPICS)[1:] and all(None not in row for row in found["losses"])
    asked = "reads a lobe that was deleted meanwhile, so it could be asked about 0 of 4 datasets."
    assert any(asked in note for note in found["notes"]) == (router == "logprob")
    if router == "logprob":
        assert found["routed"] == [None] * 3 and found["share_of_oracle"] is None and found["task"] == {}


def test_answers_that_need_a_deleted_lobe_are_left_out(backbone: Backbone) -> None:
    model = trained(backbone)
    rows_of = [row for row in labelled() if row.lobe]
    found = meddled(model, "Answering An", lambda: model.remove_lobe("Animals"), rows_of, router="keyword")
    assert found["lobes"] == list(TOPICS) and all(None not in row for row in found["losses"])
    assert "Animals" not in found["task"] and "色 / colours" in found["task"]
    assert found["notes"][0].startswith("Not answered, because a lobe was deleted before: Animals")


def test_a_new_lobe_in_the_place_of_a_deleted_one_is_not_measured_for_it(backbone: Backbone) -> None:
    model = trained(backbone)

    def replace() -> None:
        model.remove_lobe("Animals")
        model.add_lobe("Animals", rows("Animals"), epochs=1, lora_r=2)

    found = meddled(model, "Reading with the base", replace, router="keyword", task=False)
    assert found["lobes"] == list(TOPICS)[1:] and "The lobe Animals was deleted" in found["notes"][0]


def test_rows_of_a_lobe_that_was_gone_before_it_began_are_left_out(backbone: Backbone) -> None:
    given = [*labelled(), LabelledRow("what", "that", "Gone", "f")]
    model = trained(backbone)
    found = lobe_losses(model, given, task=False)
    assert list(found.lobes) == list(TOPICS) and "Gone" not in found.datasets
    assert found.notes == [
        "No lobe is called Gone any more, so those rows are left out. Measure again if it was renamed."
    ]


def test_where_every_lobe_is_deleted_the_way_out_is_named(backbone: Backbone) -> None:
    model = trained(backbone)

    def all_of_them() -> None:
        for topic in TOPICS:
            model.remove_lobe(topic)

    own = [row for row in labelled() if row.lobe]
    with pytest.raises(DataError, match=r"Every lobe was deleted.*Measure the lobes"):
        meddled(model, "Reading with the base", all_of_them, own, router="keyword")


def test_short_answers_are_those_of_generate(model: MultiLobeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks against answers generated one by one; the rows' wanted answers are the own lobe's, so that some are right."""
    greedy: dict[str, Any] = {"do_sample": False, "max_new_tokens": 48}
    given = []
    for topic in TOPICS:
        for row in rows(topic)[::7]:
            answer = model.generate(row["input"], topic, **greedy)
            given.append(LabelledRow(row["input"], " ".join(answer.split()[:8]) or "nothing", topic, "f"))
    found = lobe_losses(model, given, router="keyword", task_rows=3)
    assert found.task and any(marks["oracle"]["exact"] for marks in found.task.values())
    shares = {"routed": 0.0, "oracle": 0.0}
    for topic, marks in found.task.items():
        own = [row for row in given if row.lobe == topic]
        picked = [own[i * len(own) // marks["rows"]] for i in range(marks["rows"])]
        assert marks["rows"] == min(3, len(own))
        for way in ("base", "routed", "oracle"):
            exact, f1 = [], []
            for row in picked:
                lobe = {"base": None, "oracle": topic, "routed": model.route(row.prompt, "keyword").chosen}[way]
                answer = model.generate(row.prompt, weights={lobe: 1.0} if lobe else {}, **greedy)
                exact.append(exact_match(answer, row.answer)), f1.append(token_f1(answer, row.answer))
            assert marks[way] == {"exact": pytest.approx(np.mean(exact)), "f1": pytest.approx(np.mean(f1))}
            if way in shares:
                shares[way] += sum(exact)
    assert found.task_share == (pytest.approx(shares["routed"] / shares["oracle"]) if shares["oracle"] else None)


def test_long_answers_are_not_marked(model: MultiLobeModel) -> None:
    long = [LabelledRow("cat dog", "word " * 13, "Animals", "f")]
    assert lobe_losses(model, long).task == {}


def test_a_prompt_that_is_too_long_is_answered_by_nothing(model: MultiLobeModel) -> None:
    asked = [("cat " * 200, {}), ("cat dog", {"Animals": 1.0})]
    expected = model.generate("cat dog", "Animals", do_sample=False, max_new_tokens=48)
    assert greedy_answers(model, asked, threading.Event()) == ["", expected]
    lobe_losses(model, [LabelledRow("cat " * 200, "dog", "Animals", "f")])


def test_lobes_of_a_routers_own_are_measured_when_it_chooses_them(model: MultiLobeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lobe that is not among those that can be chosen, but is what a router chose."""
    context = model.routers.context
    monkeypatch.setattr(model.routers, "context", lambda: _without(context(), "Animals"))
    chosen = RoutingDecision("keyword", "keyword", {}, {}, {"Animals": 1.0}, "Animals", 1.0)
    monkeypatch.setattr(model.routers.named(), "decide", lambda prompt: chosen)
    found = lobe_losses(model, [r for r in labelled() if r.lobe != "Animals"], task=False)
    assert list(found.lobes) == [*list(TOPICS)[1:], "Animals"]
    assert found.routed == found.losses[-1]


def _without(context: Any, name: str) -> Any:
    context.__dict__["lobes"] = [lobe for lobe in context.lobes if lobe != name]
    return context


def test_a_run_that_is_stopped_tells_what_it_has(model: MultiLobeModel) -> None:
    stop = threading.Event()
    seen: list[Any] = []

    def watch(p: Any) -> None:
        seen.append(p)
        if p.phase.startswith("Reading with Animals"):
            stop.set()

    found = lobe_losses(model, labelled(), progress=watch, stop=stop)
    shown = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert shown["stopped"] and None not in shown["losses"][0] and shown["losses"][3] == [None] * 4
    assert shown["losses"][1] == [found.losses[1][0], None, None, None] and shown["task"] == {}
    stop.clear(), stop.set()
    nothing = lobe_losses(model, labelled(), stop=stop)
    assert nothing.stopped and nothing.losses[0] == [None] * 4 and nothing.tokens == [0] * 4


def test_progress_reaches_its_end(model: MultiLobeModel) -> None:
    seen: list[Any] = []
    lobe_losses(model, labelled(), progress=seen.append)
    steps = [p.step for p in seen]
    assert steps == sorted(steps) and seen[-1].step == seen[-1].steps


def test_a_router_that_fails_says_so(model: MultiLobeModel) -> None:
    with pytest.raises(RoutingError, match=r"Gate has not been fitted yet\. Fit it under Routers"):
        lobe_losses(model, labelled(), router="gate")


def test_without_answers_the_datasets_are_named(model: MultiLobeModel, backbone: Backbone) -> None:
    asked = [LabelledRow("x", "", "Animals", "f"), LabelledRow("y", " ", None, "more.csv")]
    with pytest.raises(DataError, match=r"Animals, more\.csv: no row has an answer"):
        lobe_losses(model, asked)
    with pytest.raises(DataError, match="no lobe has kept rows with answers"):
        lobe_losses(MultiLobeModel(backbone, embedder=WordEmbedder()))


def test_a_file_that_is_called_like_a_lobe_is_no_dataset_of_it(model: MultiLobeModel) -> None:
    given = [LabelledRow("cat", "dog", "Animals", "Animals"), LabelledRow("what", "that", None, "Animals")]
    assert list(lobe_losses(model, given, task=False).own) == ["Animals", None]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"most_rows": 0}, "most_rows is 0"),
        ({"max_length": 4}, "max_length is 4: it must be a whole number from 8"),
        ({"task_rows": 1.5}, r"task_rows is 1\.5"),
        ({"router": "nobody"}, "router is 'nobody'.*hybrid"),
        ({"router": None}, "router is None"),
        ({"task": "yes"}, "task is 'yes'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: Mapping[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        LossSettings(**settings)


def test_the_base_decision_runs_the_base(model: MultiLobeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = base_decision("keyword", "keyword", "none")
    monkeypatch.setattr(model.routers.named(), "decide", lambda prompt: nobody)
    found = lobe_losses(model, labelled(), task=False)
    assert found.routed == found.losses[0] and found.share_of_oracle == 0


# ---- short answers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "wanted", "exact", "f1"),
    [
        ("The Eiffel Tower.", "eiffel tower", True, 1.0),
        ("a  cat\n", "CAT!", True, 1.0),
        ("cat", "dog", False, 0.0),
        ("the cat sat", "a cat", False, 2 / 3),  # p = 1/2, r = 1
        ("cat cat dog", "cat dog dog", False, 2 / 3),  # each word as often as both have it: p = r = 2/3
        ("one two three four", "four three two", False, 6 / 7),  # p = 3/4, r = 1, whatever the order
        ("it's", "its", True, 1.0),
        ("theatre an-d", "theatre and", True, 1.0),  # an article is a word of its own
        ("", "", True, 1.0),
        ("the", "!", True, 1.0),
        ("", "cat", False, 0.0),
        ("Größe 3", "größe 3", True, 1.0),
    ],
)
def test_answers_are_compared_as_squad_does(answer: str, wanted: str, exact: bool, f1: float) -> None:
    assert exact_match(answer, wanted) is exact is exact_match(wanted, answer)
    assert token_f1(answer, wanted) == pytest.approx(f1) == token_f1(wanted, answer)


def test_short_answers_have_twelve_words_in_the_middle() -> None:
    def given(*counts: int) -> list[LabelledRow]:
        return [LabelledRow("q", "w " * count, None) for count in counts]

    assert is_short(given(1, 12, 100)) and is_short(given(12, 12)) and not is_short(given(1, 13, 14)) and not is_short([])


def test_shares_of_exact_matches_are_pooled_over_rows() -> None:
    marks = {
        "a": {"rows": 10, "routed": {"exact": 0.5}, "oracle": {"exact": 0.8}},
        "b": {"rows": 2, "routed": {"exact": 0.5}, "oracle": {"exact": 1.0}},
        "nobody's": {"rows": 50, "routed": {"exact": 1.0}, "oracle": {"exact": None}},
    }
    assert share_of_exact(marks) == pytest.approx((5 + 1) / (8 + 2))
    assert share_of_exact({"a": {"rows": 3, "routed": {"exact": 0.0}, "oracle": {"exact": 0.0}}}) is None
    assert share_of_exact({}) is None
