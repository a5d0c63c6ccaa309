"""The backbone: one frozen causal language model, its tokenizer and its prompt format.

It loads a model by hub id, local folder or the name "builtin", says what it is (fingerprint,
context length, device) and turns messages into token ids, in the very same way for training,
routing and generation. It knows nothing of lobes.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from ..assets import builtin_base
from ..errors import BackboneError
from .device import choose_device, choose_dtype
from .fast import Report, for_every_tree

BUILTIN = "builtin"
OPTIONAL_ARGUMENTS = ("position_ids", "logits_to_keep")
Messages = Sequence[Mapping[str, str]]

PLAIN_FORMAT = """{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}

{% elif m['role'] == 'user' %}### Instruction:
{{ m['content'] }}

{% else %}### Response:
{{ m['content'] }}{{ eos_token }}

{% endif %}{% endfor %}{% if add_generation_prompt %}### Response:
{% endif %}"""
"""The format of a tokenizer that has no chat template: instruction and response headings, as in
Alpaca's data."""


class Backbone:
    """A frozen causal LM with its tokenizer.

    Attributes:
        name: what it was loaded from: "builtin", a hub id or a folder.
        model: the plain transformers model, frozen, in evaluation mode; once loaded, with weights
            laid out and packed for its processor. Nobody hooks or changes this tree: serving and
            training each wrap a twin of it, which shares its weights.
        tokenizer: its tokenizer; always has a pad token and a chat template.
        stop_ids: token ids that end an answer.
        fast: what was made faster in its weights.
    """

    fast = Report()

    def __init__(self, name: str, model: nn.Module, tokenizer: Any) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.config = cast(Any, model.config)
        self._text_config: Any = self.config.get_text_config()
        self.has_chat_template = bool(tokenizer.chat_template)
        if not self.has_chat_template:
            opens = tokenizer.bos_token_id is not None and tokenizer.bos_token_id in tokenizer.encode("Q")
            tokenizer.chat_template = "{{ bos_token }}" * opens + PLAIN_FORMAT
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
        self.end_id, self.stop_ids = self._end_of_turn()

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str] = BUILTIN,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        **model_kwargs: Any,
    ) -> Backbone:
        """Load a base model.

        Args:
            name: "builtin", a folder, or a Hugging Face hub id.
            device: "cpu", "cuda", "cuda:1", "mps"; None takes the best there is.
            dtype: a torch dtype or its name; None chooses by device and size (see `choose_dtype`).
            model_kwargs: passed to `AutoModelForCausalLM.from_pretrained` (`quantization_config`,
                `revision`, ...). Code from the hub is never run: `trust_remote_code` is refused.

        Raises:
            BackboneError: it cannot be found or read, or is not a causal language model.
        """
        name = str(name).strip()
        if not name:
            raise BackboneError("The base model has no name. Give 'builtin', a folder, or a hub id such as 'gpt2'.")
        if model_kwargs.pop("trust_remote_code", False):
            raise BackboneError(
                "trust_remote_code is refused: a base model must run with the code of transformers alone."
            )
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            model, tokenizer, missing = _loaded(name, choose_device(device), dtype, model_kwargs)
        except BackboneError:
            raise
        except Exception as error:  # a damaged folder raises whatever the library at hand raises
            raise BackboneError(_why_not_loaded(name, error)) from error
        if missing:
            raise BackboneError(
                f"{name!r} is not a whole causal language model: {len(missing)} of its weights are missing, {missing[0]} "
                "first. Download it again, or choose another."
            )
        if not _is_causal(model):
            raise BackboneError(
                f"{name!r} is an encoder, which reads text but cannot write it. Choose a causal language model."
            )
        backbone = cls(name, model, tokenizer)
        backbone.fast = for_every_tree(backbone.model)  # now that its weights are frozen
        return backbone

    # ---- what it is -------------------------------------------------------------------------------------------------------

    @cached_property
    def device(self) -> torch.device:
        """Asked for every token; walking to the first parameter is 20 microseconds each time."""
        device = next(self.model.parameters()).device
        if device.type != "meta":
            return device
        hook: Any = getattr(self.model, "_hf_hook", None)  # accelerate's: the weights come when they are needed
        return torch.device(getattr(hook, "execution_device", None) or "cpu")

    @cached_property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for p in self.model.parameters() if p.is_floating_point())

    @property
    def hidden_size(self) -> int:
        return int(self._text_config.hidden_size)

    @property
    def context_length(self) -> int:
        """Most tokens in one sequence; 2,048 when the configuration does not say."""
        return int(getattr(self._text_config, "max_position_embeddings", None) or 2048)

    @cached_property
    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that identify architecture and weights, whatever the device or floating dtype.

        Hashes the shapes of all parameters and up to 256 evenly spaced values of each floating one,
        rounded to bf16, so that a 7B model takes a moment. A quantised layer's packed integers
        count by shape alone.
        """
        config = self._text_config
        digest = hashlib.sha256(f"{config.model_type} {config.vocab_size}".encode())
        for name, parameter in sorted(self.model.named_parameters()):
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            if parameter.is_floating_point():
                flat = parameter.detach().flatten()
                sample = flat[:: max(1, flat.numel() // 256)][:256]
                digest.update(sample.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
        return digest.hexdigest()[:16]

    def twin(self) -> nn.Module:
        """A second module tree over the same weights, packed ones too: wrapping or hooking it
        leaves `model` and other twins alone.

        `deepcopy` asks its memo before it copies, so a memo that maps every tensor to itself copies
        modules only.
        """
        memo: dict[int, Any] = {id(t): t for t in (*self.model.parameters(), *self.model.buffers())}
        return copy.deepcopy(self.model, memo)

    def accepted(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Without the optional forward arguments that this architecture does not have (Falcon's
        ALiBi needs no positions), and with the KV cache under the name that it has: `cache` since
        transformers 5.24 and `past_key_values` before."""
        known = self._parameters
        inputs = {key: value for key, value in inputs.items() if key not in OPTIONAL_ARGUMENTS or key in known}
        if "past_key_values" in inputs and "past_key_values" not in known and "cache" in known:
            inputs["cache"] = inputs.pop("past_key_values")
        return inputs

    @cached_property
    def _parameters(self) -> frozenset[str]:
        return frozenset(inspect.signature(type(self.model).forward).parameters)

    # ---- prompt format ----------------------------------------------------------------------------------------------------

    def encode_chat(self, messages: Messages) -> list[int]:
        """Token ids of the conversation up to where the assistant's next answer begins.

        Raises:
            BackboneError: the tokenizer's template refuses these messages (for instance a system
                role it does not know).
        """
        try:
            ids = self.tokenizer.apply_chat_template(
                [dict(m) for m in messages], add_generation_prompt=True, tokenize=True, return_dict=False
            )
        except Exception as error:  # templates raise jinja errors and their own exceptions
            raise BackboneError(f"The chat template of {self.name} refuses this conversation: {error}") from error
        return [int(i) for i in ids]

    def encode_answer(self, answer: str) -> list[int]:
        """Token ids of an answer with its end-of-turn token: what follows `encode_chat` in training."""
        return [*self.tokenizer.encode(answer, add_special_tokens=False), self.end_id]

    def encode_prompt(self, text: str) -> tuple[list[int], list[int]]:
        """(opening, words): the template's tokens before a user's words, and the tokens of the
        words themselves."""
        ids = self.encode_chat([{"role": "user", "content": text}])
        before, after = self._frame
        before = min(before, len(ids))
        return ids[:before], ids[before : max(before, len(ids) - after)]

    @cached_property
    def _frame(self) -> tuple[int, int]:
        """How many tokens the template puts before and after a single user's words (read off two
        different words)."""
        one, two = (self.encode_chat([{"role": "user", "content": word}]) for word in ("Hello", "42"))
        before = _shared_start(one, two)
        after = _shared_start(one[before:][::-1], two[before:][::-1])
        return before, after

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def _end_of_turn(self) -> tuple[int, frozenset[int]]:
        """The token that ends an assistant's turn, and every token that ends generation.

        The template says which it is: render an answer and look at the special token that follows
        it. Llama 3 ends turns with <|eot_id|> and Gemma with <end_of_turn>, neither of which is the
        tokenizer's eos token.
        """
        tokenizer = self.tokenizer
        stops: set[int] = set()
        generation = getattr(self.model, "generation_config", None)
        for value in (
            getattr(generation, "eos_token_id", None),
            self._text_config.eos_token_id,
            tokenizer.eos_token_id,
        ):
            if isinstance(value, (list, tuple)):
                stops.update(value)
            elif value is not None:
                stops.add(value)
        end = tokenizer.eos_token_id
        turn = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
        try:
            ids = tokenizer.apply_chat_template(turn, tokenize=True, return_dict=False)
            after = [i for i in ids[len(self.encode_chat(turn[:1])) :] if i in set(tokenizer.all_special_ids) | stops]
            end = next(iter(after), end)
        except Exception:
            pass
        if end is None:
            raise BackboneError(f"The tokenizer of {self.name} has no end-of-text token, so no answer could ever end.")
        return int(end), frozenset({int(end), *map(int, stops)})


def _loaded(
    name: str, device: torch.device, dtype: torch.dtype | str | None, model_kwargs: dict[str, Any]
) -> tuple[Any, Any, list[str]]:
    """(model, tokenizer, names of missing weights) as transformers loads them; quantisers make
    weights of their own."""
    source = name
    if name == BUILTIN:
        source = str(builtin_base())
    hub_kwargs = {key: model_kwargs[key] for key in ("revision", "token", "cache_dir") if key in model_kwargs}
    config = AutoConfig.from_pretrained(source, **hub_kwargs)
    tokenizer = AutoTokenizer.from_pretrained(source, **hub_kwargs)
    quantised = "quantization_config" in model_kwargs or getattr(config, "quantization_config", None)
    if quantised:  # placed by its quantiser while loading; it cannot be moved afterwards
        model_kwargs.setdefault("device_map", {"": device})
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source, dtype=choose_dtype(dtype, device, config), output_loading_info=True, **model_kwargs
    )
    model, report = loaded
    if "device_map" not in model_kwargs:
        model = model.to(device)
    if quantised:
        return model, tokenizer, []
    return model, tokenizer, sorted(report["missing_keys"])


@torch.no_grad()
def _is_causal(model: Any) -> bool:
    """Whether a token ignores what follows it: encoders such as BERT, too, can be loaded as causal
    language models."""
    if getattr(model.config, "is_decoder", True):
        return True
    logits = model(input_ids=torch.tensor([[5, 6], [5, 7]], device=model.device)).logits[:, 0].float()
    return bool(torch.allclose(logits[0], logits[1], atol=1e-4, rtol=1e-3))


def _why_not_loaded(name: str, error: Exception) -> str:
    if name != BUILTIN and not os.path.exists(name) and ("/" not in name or os.environ.get("HF_HUB_OFFLINE") == "1"):
        place = "is neither a folder here nor in the local hub cache"
        return f"The base model {name[:80]!r} {place}. Check the spelling, or connect to the internet for a hub id."
    reason = " ".join(str(error).split()) or repr(error)
    return f"The base model {name[:80]!r} cannot be loaded: {reason[:300]}"


def describe(backbone: Backbone) -> dict[str, Any]:
    """What a card or a page says of a base model."""
    return {
        "name": backbone.name,
        "fingerprint": backbone.fingerprint,
        "architecture": type(backbone.model).__name__,
        "parameters": backbone.parameter_count,
        "context_length": backbone.context_length,
        "device": str(backbone.device),
        "dtype": str(backbone.dtype).removeprefix("torch."),
    }


def pad_left(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both (rows, longest), padded on the left so that every row's
    last token is last."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[i, longest - len(row) :] = 1
    return ids.to(device), mask.to(device)


def _shared_start(one: Sequence[int], two: Sequence[int]) -> int:
    """How many ids the two begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
