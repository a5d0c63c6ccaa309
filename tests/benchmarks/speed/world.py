"""What the benchmarks run on: bases, adapters of made-up weights, lobes with made-up rows, and a real data file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from multilobe_ui import MultiLobeModel
from multilobe_ui.assets import builtin_base, sample_files
from multilobe_ui.base.backbone import Backbone
from multilobe_ui.lobes.card import Card, now
from multilobe_ui.lobes.rows import write_routing_rows
from multilobe_ui.lobes.store import LobeStore
from multilobe_ui.routers import RoutingRows
from multilobe_ui.routing.encoder import Embedder

BUILTIN, LARGE = "built-in", "Llama 135M"
RANK = 16
SHORT = "What does insulin do in the body?"
LONG = (
    "I have been reading about contracts for my course, and there is a case that I do not understand: a supplier promised to "
    "deliver forty machines by the first of May, delivered half of them, and then asked for the whole price because the buyer had "
    "used what came. Which remedies does the buyer have, what may a court refuse to enforce, and does it matter that nothing was "
    "said about partial delivery when the contract was signed?"
)
THINGS = (
    "insulin", "contracts", "chemistry", "sonnets", "volcanoes", "fractions", "bread", "tennis", "violins", "roses",
    "engines", "taxes", "glaciers", "bridges", "bees", "vaccines", "chess", "rivers", "telescopes", "cheese",
    "democracy", "batteries", "whales", "novels", "algebra", "harbours", "coffee", "painting", "satellites", "wheat",
    "copyright", "asthma", "football", "castles", "enzymes", "databases", "sailing", "opera", "earthquakes", "spices",
)  # fmt: skip
SIDES = (
    "the history of", "the price of", "the science of", "famous people and", "the law on", "common mistakes with", "the future of",
    "children and", "the making of", "old stories about", "the trade in", "safety and", "words for", "exams on", "museums of",
    "statistics of", "the beauty of", "the care of", "the politics of", "experiments with", "the risks of", "maps of", "jobs in",
    "the sound of", "myths about",
)  # fmt: skip
QUESTIONS = (
    "Tell me about {}.", "What should a beginner know of {}?", "Is there anything new about {}?", "Who is an expert on {}?",
    "Where can I read about {}?", "Why do people care about {}?", "Give me three facts about {}.", "How did {} begin?",
    "What is the hardest thing about {}?", "Write a paragraph on {}.",
)  # fmt: skip


class World:
    """Everything lies in one scratch folder and is made at first use.

    Args:
        scratch: an empty folder.
    """

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.embedder = Embedder()
        self._backbones: dict[str, Backbone] = {}
        self._plain: dict[str, Backbone] = {}

    def base_folder(self, base: str) -> Path:
        """A folder that transformers loads: the built-in base, or a Llama of 135M random weights, in bf16 as bases of this
        shape are published, with its tokenizer."""
        if base == BUILTIN:
            return builtin_base()
        folder = self.scratch / "llama-135m"
        if not folder.exists():
            torch.manual_seed(0)
            shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
            config = LlamaConfig(
                vocab_size=49152, num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True, **shape
            )
            LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
            for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
                if (builtin_base() / name).is_file():
                    shutil.copy(builtin_base() / name, folder)
        return folder

    def backbone(self, base: str) -> Backbone:
        if base not in self._backbones:
            self._backbones[base] = Backbone.from_pretrained(self.base_folder(base), device="cpu")
        return self._backbones[base]

    def plain(self, base: str) -> Backbone:
        """The base as transformers loads it, in float32: what others run."""
        if base not in self._plain:
            folder = self.base_folder(base)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            self._plain[base] = Backbone(str(folder), model, AutoTokenizer.from_pretrained(folder))
        return self._plain[base]

    def adapters(self, base: str, count: int) -> list[Path]:
        """Plain PEFT adapter folders, rank 16 on every linear layer. Each has its own random matrices, small enough that
        the base's answers stay its own."""
        root = self.scratch / "adapters" / base.replace(" ", "-")
        first = root / "0000"
        if not first.exists():
            lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
            wrapped = get_peft_model(self.backbone(base).twin(), lora)  # type: ignore[arg-type]
            wrapped.save_pretrained(str(first), save_embedding_layers=False)
        tensors = load_file(first / "adapter_model.safetensors")
        for number in range(count):
            folder = root / f"{number:04d}"
            if not (folder / "made").exists():
                folder.mkdir(exist_ok=True)
                shutil.copyfile(first / "adapter_config.json", folder / "adapter_config.json") if number else None
                generator = torch.Generator().manual_seed(number)
                made = {name: 0.01 * torch.randn(t.shape, generator=generator) for name, t in tensors.items()}
                save_file(made, folder / "adapter_model.safetensors")
                (folder / "made").touch()
        return [root / f"{number:04d}" for number in range(count)]

    def home(self, base: str, count: int) -> Path:
        """A home with `count` lobes, each with a few questions about its own topic for routing."""
        home = self.scratch / "homes" / f"{base.replace(' ', '-')}-{count}"
        if home.exists():
            return home
        backbone, store = self.backbone(base), LobeStore(home / "lobes")
        about = {"name": backbone.name, "fingerprint": backbone.fingerprint}
        for number, adapter in enumerate(self.adapters(base, count)):
            folder = Path(shutil.copytree(adapter, home / "incoming"))
            (folder / "made").unlink(missing_ok=True)
            write_routing_rows(folder, self._rows(number))
            store.add(folder, Card(topic(number), now(), "benchmark", about, embedding_model=self.embedder.name))
        return home

    def model(self, base: str, count: int, **settings: Any) -> MultiLobeModel:
        return MultiLobeModel(self.backbone(base), home=self.home(base, count), embedder=self.embedder, **settings)

    def _rows(self, number: int) -> RoutingRows:
        """Eight questions about the lobe's topic to learn from, two held out."""
        questions = [question.format(topic(number)) for question in QUESTIONS]
        vectors = self.embedder(questions)
        answers = [f"An answer about {topic(number)}."] * len(questions)
        return RoutingRows(
            vectors[:4], vectors[:8], vectors[8:], questions[:8], questions[8:], answers[:8], answers[8:]
        )

    def data(self, rows: int) -> Path:
        """A JSONL file of that many rows: sample data, from every file in turn."""
        path = self.scratch / f"rows-{rows}.jsonl"
        files = [file.read_text(encoding="utf-8").splitlines() for file in sample_files().values()]
        lines = [line for together in zip(*files, strict=False) for line in together]
        path.write_text("\n".join(lines[:rows]) + "\n", encoding="utf-8")
        return path


def topic(number: int) -> str:
    """What lobe `number` is about: a thousand differ."""
    return f"{SIDES[number // len(THINGS) % len(SIDES)]} {THINGS[number % len(THINGS)]}"


def read_rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
