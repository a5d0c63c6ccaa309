"""Runs inside the environment of `multilobe` 0.1.0: reads a line of JSON, does the work with the peer's own code, answers.

Nothing of the peer is changed. Two things are done for it, because it cannot do them: its `load` does not find what its `save`
wrote (PEFT nests the adapter one folder deeper), so adapters are given to PEFT's `load_adapter` directly, which is what `load`
calls; and its default sentence encoder needs a network, so it gets the same weights from a folder.
"""

import json
import os
import sys
import time
import traceback

replies = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # its progress bars and prints are not answers

import multilobe.model  # noqa: E402
import torch  # noqa: E402
from multilobe import MultiLobeModel  # noqa: E402
from multilobe.lobe import Lobe, LobeMetadata  # noqa: E402
from multilobe.trainer import LobeTrainer  # noqa: E402
from peft import PeftModel  # noqa: E402

CPU = torch.device("cpu")
state = {"now": time.process_time}  # as in contest.py


def prepare(base, encoder, threads):
    """A model without lobes, its encoder loaded: it would load it while it is timed."""
    torch.set_num_threads(threads)
    state["now"] = time.process_time if threads == 1 else time.perf_counter
    state["model"] = MultiLobeModel.from_pretrained(base, device=CPU, embedding_model=encoder)
    state["model"].embedding_router.encode(["a text"])


def add_lobes(adapters):
    """Lobes of trained adapters, as `MultiLobeModel.load` would have made them."""
    model = state["model"]
    for number in range(len(model.lobes), len(adapters)):
        name, adapter = f"l{number}", f"lobe_l{number}"
        if model._peft_model is None:
            model._peft_model = PeftModel.from_pretrained(model.model, adapters[number], adapter_name=adapter)
            model.model = model._peft_model
        else:
            model._peft_model.load_adapter(adapters[number], adapter_name=adapter)
        model.lobes[name] = Lobe(LobeMetadata(name=name, adapter_name=adapter))


def logprob(prompt):
    """Seconds of stage 2 on one prompt."""
    model = state["model"]
    start = state["now"]()
    model.logprob_router.route(prompt, model.lobes, model=model.model, tokenizer=model.tokenizer, device=model.device)
    return state["now"]() - start


class TimedTrainer(LobeTrainer):
    """The peer's, which says how long its steps took without what comes before and after them."""

    def train(self, *arguments, **named):
        start = state["now"]()
        stats = super().train(*arguments, **named)
        state["stepping"] = state["now"]() - start
        return stats


multilobe.model.LobeTrainer = TimedTrainer


def train(data, epochs, name, learning_rate):
    """{"seconds", "stepping", "loss"}: of `add_lobe`, of its steps alone, and its mean loss of the last epoch."""
    start = state["now"]()
    lobe = state["model"].add_lobe(name, data, epochs=epochs, target_modules="all-linear", learning_rate=learning_rate)
    return {"seconds": state["now"]() - start, "stepping": state["stepping"], "loss": lobe.metadata.training_loss}


WORKS = {work.__name__: work for work in (prepare, add_lobes, logprob, train)}
for line in sys.stdin:
    asked = json.loads(line)
    try:
        reply = {"result": WORKS[asked["work"]](**asked["arguments"])}
    except Exception:
        reply = {"error": traceback.format_exc()}
    print(json.dumps(reply), file=replies, flush=True)
