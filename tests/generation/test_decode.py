"""Generation: prompts that fit, the decode loop's rows, sampling, stopping, and text that streams without a flaw. (That greedy
decoding equals transformers' own, on every architecture and in padded batches, is proved in test_architectures.py.)"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models

from multilobe_ui.base.backbone import Backbone
from multilobe_ui.errors import ConfigError
from multilobe_ui.generation.decode import (
    Request,
    Sampler,
    TextPieces,
    generate_text,
    generate_tokens,
    prepare,
    stream_text,
)
from multilobe_ui.lobes.bank import LobeBank
from multilobe_ui.lobes.weights import Mix
from multilobe_ui.settings import SamplingConfig

GREEDY = SamplingConfig(max_new_tokens=12, do_sample=False)


@pytest.fixture
def bank(backbone: Backbone, adapters: dict[str, Path]) -> LobeBank:
    made = LobeBank(backbone)
    for lobe, path in adapters.items():
        made.register(lobe, path)
    return made


def prompt(length: int, seed: int = 0) -> list[int]:
    return tiny.numbers(1, length, seed)[0].tolist()


def decode(bank: LobeBank, requests: Sequence[Request]) -> list[list[int]]:
    """Each row's tokens; a row that has ended never speaks again."""
    rows: list[list[int]] = [[] for _ in requests]
    ended = [False] * len(requests)
    for step in generate_tokens(bank, requests):
        for i, token in enumerate(step):
            assert token is None or not ended[i]
            ended[i] |= token is None
            rows[i] += [] if token is None else [token]
    return rows


# ---- ends ------------------------------------------------------------------------------------------------------------------


def test_each_row_stops_at_its_own_number_of_tokens(bank: LobeBank) -> None:
    requests = [
        Request(prompt(n, n), {}, SamplingConfig(max_new_tokens=most, do_sample=False))
        for n, most in ((3, 1), (9, 7), (5, 4))
    ]
    rows = decode(bank, requests)
    assert [len(row) for row in rows] == [1, 7, 4] and rows == [decode(bank, [r])[0] for r in requests]


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "llama"])  # two with a table of positions
def test_an_answer_ends_with_the_context(base_folder: Callable[..., Path], architecture: str) -> None:
    bank = LobeBank(Backbone.from_pretrained(base_folder(architecture), device="cpu"))
    long = SamplingConfig(max_new_tokens=30, do_sample=False)
    requests = [
        Request(prompt(tiny.CONTEXT - 4, 1), {}, long),
        Request(prompt(6, 2), {}, long),
        Request(prompt(tiny.CONTEXT), {}, long),
    ]
    rows = decode(bank, requests)
    assert [len(row) for row in rows] == [4, 30, 0] and rows[:2] == [decode(bank, [r])[0] for r in requests[:2]]


def test_every_stop_token_ends_its_row_and_is_not_given_out(base_folder: Callable[..., Path], bank: LobeBank) -> None:
    requests = [Request(prompt(8, 3), {}, GREEDY), Request(prompt(4, 2), {}, GREEDY)]
    whole = decode(bank, requests)
    assert len(whole[0]) == GREEDY.max_new_tokens
    backbone = Backbone.from_pretrained(base_folder(), device="cpu")
    for place in (0, 3, 7):
        end = whole[0][place]
        backbone.stop_ids = frozenset({0, end})
        expected = [row[: row.index(end)] if end in row else row for row in whole]
        assert decode(LobeBank(backbone), requests) == expected and len(expected[0]) <= place


def test_the_stop_event_ends_one_answer_at_once(bank: LobeBank) -> None:
    stopped, going = (Request(prompt(n, n), {}, GREEDY) for n in (5, 8))
    whole = decode(bank, [stopped, going])
    rows: list[list[int]] = [[], []]
    for count, step in enumerate(generate_tokens(bank, [stopped, going]), start=1):
        for row, token in zip(rows, step, strict=True):
            row += [] if token is None else [token]
        if count == 3:
            stopped.stop.set()
    assert rows == [whole[0][:3], whole[1]]
    assert list(generate_tokens(bank, [stopped])) == [] and list(stream_text(bank, stopped)) == []


def test_nothing_is_computed_after_the_last_token(bank: LobeBank, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    run = bank.run
    monkeypatch.setattr(bank, "run", lambda *args, **kwargs: calls.append(1) or run(*args, **kwargs))
    request = Request(prompt(5), {}, GREEDY)
    steps = generate_tokens(bank, [request])
    next(steps)
    request.stop.set()
    assert list(steps) == [] and len(calls) == 1
    decode(bank, [Request(prompt(5), {}, GREEDY)])
    assert len(calls) == 1 + GREEDY.max_new_tokens


def test_between_tokens_gradients_are_on(bank: LobeBank) -> None:
    for _ in generate_tokens(bank, [Request(prompt(5), {"plain": 1.0}, GREEDY)]):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_an_abandoned_answer_leaves_nothing_behind(bank: LobeBank) -> None:
    ids = tiny.numbers(1, 8)
    base = bank.run(None, input_ids=ids).logits
    steps = generate_tokens(bank, [Request(prompt(5), {"plain": 1.0}, GREEDY)])
    next(steps)
    assert torch.equal(bank.run(None, input_ids=ids).logits, base)  # in mid-answer
    steps.close()
    assert torch.equal(bank.run(None, input_ids=ids).logits, base)


def test_chats_in_many_threads_while_a_mixture_runs(bank: LobeBank) -> None:
    requests = [
        Request(prompt(6 + i, i), w, GREEDY)
        for i, w in enumerate([{}, {"plain": 1.0}, {"patterns": 1.0}, {"plain": 0.5, "attention": 0.5}])
    ]
    alone, found = [decode(bank, [r]) for r in requests], {}

    def chat(i: int) -> None:
        found[i] = [decode(bank, [requests[i]]) for _ in range(3)]

    threads = [threading.Thread(target=chat, args=(i,)) for i in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: [rows] * 3 for i, rows in enumerate(alone)}


# ---- sampling --------------------------------------------------------------------------------------------------------------


def sampled(seed: int | None, **changes: Any) -> SamplingConfig:
    return SamplingConfig(**{"max_new_tokens": 12, "temperature": 1.5, "top_p": 1.0, "seed": seed} | changes)


def test_a_seed_fixes_one_answer_whatever_its_neighbours(bank: LobeBank) -> None:
    requests = [Request(prompt(5), {"plain": 1.0}, sampled(seed)) for seed in (1, 2, 1)]
    rows = decode(bank, requests)
    assert rows[0] == rows[2] != rows[1] and rows == [decode(bank, [r])[0] for r in requests]
    torch.manual_seed(0)
    assert decode(bank, [requests[0]])[0] == rows[0]
    state = torch.get_rng_state()
    decode(bank, requests)
    assert torch.equal(torch.get_rng_state(), state)  # training's dropout depends on it


def test_without_a_seed_answers_differ(bank: LobeBank) -> None:
    first, second = decode(bank, [Request(prompt(5), {}, sampled(None))] * 2)
    assert first != second


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0},
        {"do_sample": False},
        {"top_k": 1},
        {"top_p": 1e-6},
        {"temperature": 1e-4},
        {"temperature": 1e-40},
    ],
)
def test_settings_that_mean_greedy(bank: LobeBank, changes: dict[str, Any]) -> None:
    assert decode(bank, [Request(prompt(7), {}, sampled(3, **changes))]) == decode(
        bank, [Request(prompt(7), {}, GREEDY)]
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"temperature": 1.0}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 0.5}, [0.25, 0.09, 0.0225, 0.0025]),
        ({"temperature": 1.0, "top_k": 2}, [0.5, 0.3, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.7}, [0.5, 0.3, 0, 0]),
        ({"temperature": 1.0, "repetition_penalty": 2.0}, [0.5, 0.3**2, 0.15, 0.05]),
    ],
)
def test_tokens_are_drawn_as_often_as_they_should(changes: dict[str, Any], expected: list[float]) -> None:
    sampler, logits, count = (
        Sampler(sampled(0, **changes), torch.device("cpu")),
        torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log(),
        2500,
    )
    found = Counter(sampler.draw(logits.clone(), [1]) for _ in range(count))
    for token, share in enumerate(p / sum(expected) for p in expected):
        assert abs(found[token] / count - share) <= 5 * (share * (1 - share) / count) ** 0.5


def test_the_repetition_penalty_is_that_of_transformers(bank: LobeBank, backbone: Backbone) -> None:
    ids = torch.tensor([prompt(9)])
    made = backbone.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=12,
        do_sample=False,
        repetition_penalty=1.7,
        eos_token_id=sorted(backbone.stop_ids),
    )
    penalised = Request(prompt(9), {}, SamplingConfig(max_new_tokens=12, do_sample=False, repetition_penalty=1.7))
    expected = [token for token in made[0, 9:].tolist() if token not in backbone.stop_ids]
    assert (
        decode(bank, [Request(prompt(4), {}, GREEDY), penalised])[1]
        == expected
        != decode(bank, [Request(prompt(9), {}, GREEDY)])[0]
    )


# ---- text ------------------------------------------------------------------------------------------------------------------


def like_llama2() -> Any:
    """A tokenizer with ▁ for spaces and single bytes for what it does not know."""
    words = ["▁", "a", "b", "s", "▁a", "▁the", ".", ",", "中", "文", "\n", "▁.", "▁'", "'", "n't"]
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    core = Tokenizer(
        models.BPE({token: i for i, token in enumerate(vocabulary)}, [], byte_fallback=True, unk_token="<unk>")
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(steps)
    return tf.PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {"bytes": tiny.tokenizer, "metaspace": like_llama2}


@pytest.fixture(scope="module", params=TOKENIZERS)
def decoder(request: pytest.FixtureRequest) -> Any:
    """As much of a backbone as text needs."""
    tokenizer = TOKENIZERS[request.param]()
    return SimpleNamespace(
        tokenizer=tokenizer, decode=lambda ids: Backbone.decode(SimpleNamespace(tokenizer=tokenizer), ids)
    )


def pieces(decoder: Any, ids: Sequence[int]) -> list[str]:
    stream = TextPieces(decoder)
    return [*(stream.add(i) for i in ids), stream.rest()]


def test_streamed_pieces_are_the_whole_text_for_any_tokens() -> None:
    """Also for tokens that are no text at all. (Not with single-byte tokens: there a bad byte spoils good ones before it.)"""
    tokenizer, dice = tiny.tokenizer(), random.Random(0)
    decoder = SimpleNamespace(decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=True))
    short = [i for i in range(len(tokenizer)) if len(decoder.decode([i])) <= 1]  # bytes, spaces, specials
    for case in range(200):
        ids = dice.choices(short if case % 2 else range(len(tokenizer)), k=dice.choice([1, 3, 20, 150]))
        assert "".join(pieces(decoder, ids)) == decoder.decode(ids), ids


def test_streamed_pieces_are_the_whole_text_for_any_text(decoder: Any) -> None:
    dice, alphabet = random.Random(0), "ab .,\n'sé中文字😀\u200d👩\u0301ß\ufffd"
    for _ in range(100):
        ids = decoder.tokenizer.encode(
            "".join(dice.choices(alphabet, k=dice.choice([1, 5, 80]))), add_special_tokens=False
        )
        assert "".join(pieces(decoder, ids)) == decoder.decode(ids), ids


TEXT = (
    "Zwölf Boxkämpfer 😀👩‍👩‍👧 jagen  Viktor\n\n\tquer.  中文字汉字かな Привет , it 's , don 't ! e\u0301 \U0001f3f4\U000e0067 fin"
    + "文中" * 60
    + "😀😀" * 30
)


def test_pieces_never_end_inside_a_character(decoder: Any) -> None:
    ids = decoder.tokenizer.encode(TEXT, add_special_tokens=False)
    streamed = pieces(decoder, ids)
    assert "".join(streamed) == decoder.decode(ids) and not any("\ufffd" in piece for piece in streamed)


def test_text_comes_as_soon_as_it_is_certain(decoder: Any) -> None:
    ids, stream, given = decoder.tokenizer.encode(TEXT[:120], add_special_tokens=False), TextPieces(decoder), ""
    for count, token in enumerate(ids, start=1):
        given += stream.add(token)
        so_far = decoder.decode(ids[:count])
        assert given == so_far or so_far.endswith("\ufffd")


def test_a_streamed_answer_is_the_generated_one(bank: LobeBank) -> None:
    requests = [Request(prompt(5 + i, i), {"plain": 1.0}, sampled(i, max_new_tokens=40)) for i in range(3)]
    streamed = ["".join(stream_text(bank, request)) for request in requests]
    assert generate_text(bank, requests) == [text.strip() for text in streamed] and len(set(streamed)) == 3
    assert streamed == [bank.backbone.decode(row) for row in decode(bank, requests)]


# ---- prompts that fit ------------------------------------------------------------------------------------------------------


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def conversation(turns: int) -> list[dict[str, str]]:
    talk = [turn("user" if i % 2 == 0 else "assistant", f"Turn {i}.") for i in range(turns)]
    return [turn("system", "Be brief."), *talk]


def test_a_prompt_that_fits_is_left_as_it_is(backbone: Backbone) -> None:
    messages = [turn("user", "Hello")]
    assert prepare(backbone, messages, 8) == (backbone.encode_chat(messages), messages)


def test_only_as_many_of_the_oldest_turns_go_as_must(backbone: Backbone) -> None:
    messages = conversation(21)
    before, lengths = [dict(m) for m in messages], []
    for most in (1, 20, tiny.CONTEXT // 2, 10_000):
        ids, kept = prepare(backbone, messages, most)
        room = tiny.CONTEXT - min(most, tiny.CONTEXT // 2)
        assert ids == backbone.encode_chat(kept) and len(ids) <= room
        assert kept == [messages[0], *messages[len(messages) - len(kept) + 1 :]]
        assert [m["role"] for m in kept[1:]] == ["user", "assistant"] * (len(kept) // 2 - 1) + ["user"]
        lengths.append(len(kept))
        one_more = [messages[0], *messages[len(messages) - len(kept) - 1 :]]  # a question and its answer
        assert len(backbone.encode_chat(one_more)) > room
    assert messages == before and lengths == sorted(lengths, reverse=True) and lengths[0] > lengths[-1]


def test_turns_that_do_not_alternate_go_one_by_one(backbone: Backbone) -> None:
    messages = [
        turn("assistant", "Welcome! " * 4),
        turn("user", "One. " * 6),
        turn("user", "Two."),
        turn("user", "Three."),
    ]
    _, kept = prepare(backbone, messages, 48)
    assert kept == messages[2:]


def test_the_last_turn_and_system_messages_stay_or_nothing_does(backbone: Backbone) -> None:
    long = "word " * 100
    for messages in (
        [turn("user", long)],
        [*conversation(3), turn("user", long)],
        [turn("system", long), turn("user", "Hello")],
    ):
        with pytest.raises(ConfigError, match=rf"reads {tiny.CONTEXT} in all.*Shorten"):
            prepare(backbone, messages, 8)


@pytest.mark.parametrize(
    "messages", [[], [turn("user", "  \n")], [turn("user", "Hello"), turn("assistant", "Hi")], [turn("system", "x")]]
)
def test_without_a_question_there_is_nothing_to_answer(backbone: Backbone, messages: list[dict[str, str]]) -> None:
    with pytest.raises(ConfigError, match="nothing to answer"):
        prepare(backbone, messages, 8)


@pytest.mark.parametrize("template", [tiny.CHATML, tiny.LIKE_LLAMA3, None])
def test_answers_end_with_the_end_of_turn_that_training_teaches(
    base_folder: Callable[..., Path], template: str | None
) -> None:
    """Force the model to say what training would teach it, and look at what comes out."""
    backbone = Backbone.from_pretrained(base_folder("llama", template), device="cpu")
    lesson = backbone.encode_answer("It is 中.")
    ids, _ = prepare(backbone, [turn("user", "What is it?")], 20)

    class Parrot(LobeBank):
        def run(self, mix: Mix | None, **inputs: Any) -> Any:
            output = super().run(mix, **inputs)
            output.logits[:] = torch.nn.functional.one_hot(torch.tensor(lesson[len(said)]), output.logits.shape[-1])
            said.append(1)
            return output

    said: list[int] = []
    assert generate_text(Parrot(backbone), [Request(ids, {}, SamplingConfig(do_sample=False))]) == ["It is 中."]
    assert len(said) == len(lesson)


@pytest.mark.builtin
def test_the_builtin_base_answers_like_transformers(builtin: Backbone) -> None:
    ids, _ = prepare(builtin, [turn("user", "What is the capital of France?")], 24)
    (ours,) = decode(LobeBank(builtin), [Request(ids, {}, SamplingConfig(max_new_tokens=24, do_sample=False))])
    inputs = torch.tensor([ids])
    theirs = builtin.model.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=24,
        do_sample=False,
        repetition_penalty=1.0,
        eos_token_id=sorted(builtin.stop_ids),
    )
    assert (
        ours == [token for token in theirs[0, len(ids) :].tolist() if token not in builtin.stop_ids] and len(ours) > 2
    )
