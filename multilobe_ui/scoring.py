"""Log-probability of prompts under many lobes at once: the bank's batch trick that the log-prob router lives on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .bank import LobeBank, Mix
from .routers.base import Vector

ROWS_AT_ONCE = 64


@torch.inference_mode()
def prompt_nll(bank: LobeBank, texts: Sequence[str], lobes: Sequence[str], max_tokens: int = 30) -> Vector:
    """Mean negative log-likelihood per token of each text's first words, under every lobe and the plain base.

    A text is repeated once a lobe and run as one batch in which each row has its own lobe. It stands in the prompt format, and
    only its own words count (the template's are the same for all), so even a text of one token has a score.

    Args:
        lobes: ids in the bank. max_tokens: at most this many tokens of each text are read.
    Returns: (texts, lobes + 1) in nats, the base last; NaN for a text without tokens.
    """
    result = np.full((len(texts), len(lobes) + 1), np.nan, np.float32)
    owners: list[dict[str, float]] = [*({lobe: 1.0} for lobe in lobes), {}]
    for i, text in enumerate(texts):
        opening, words = bank.backbone.encode_prompt(text)
        if (
            not opening
        ):  # a format that starts with the user's words: the first of them has nothing to be predicted from
            opening, words = words[:1], words[1:]
        words = words[:max_tokens]
        if not words:
            continue
        ids = torch.tensor([opening + words], device=bank.backbone.device)
        targets = ids[0, len(opening) :]
        for start in range(0, len(owners), ROWS_AT_ONCE):
            rows = owners[start : start + ROWS_AT_ONCE]
            keep = len(words) + 1
            output = bank.run(Mix.rows(rows), input_ids=ids.expand(len(rows), -1), logits_to_keep=keep, use_cache=False)
            logits = output.logits[:, -keep:-1].float()
            nll = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), targets.repeat(len(rows)), reduction="none"
            ).view(len(rows), -1)
            result[i, start : start + len(rows)] = nll.mean(1).cpu().numpy()
    return result


@torch.inference_mode()
def mean_hidden(bank: LobeBank, texts: Sequence[str]) -> Vector:
    """Mean hidden state of the plain base's last layer over each text's own tokens, unit length: (texts, hidden)."""
    rows = []
    for text in texts:
        opening, words = bank.backbone.encode_prompt(text)
        words = words[: bank.backbone.context_length - len(opening)]
        ids = torch.tensor([opening + words], device=bank.backbone.device)
        output = bank.run(None, input_ids=ids, use_cache=False, output_hidden_states=True, logits_to_keep=1)
        rows.append(output.hidden_states[-1][0, len(opening) :].float().mean(0).cpu().numpy())
    vectors = np.nan_to_num(np.stack(rows)) if rows else np.zeros((0, bank.backbone.hidden_size), np.float32)
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9), np.float32)
