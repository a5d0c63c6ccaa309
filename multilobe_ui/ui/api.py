"""The eleven named endpoints for programs: train, train_status, stop, chat, route, routers,
fit_router, lobes, save_bundle, load_bundle, delete_lobe.

    client = gradio_client.Client("http://127.0.0.1:7860")
    job = client.predict(file=handle_file("recipes.jsonl"), name="Cooking", api_name="/train")

The same checks and the same owners as on the page: the login name, or on a shared server the
`token` that was given when the job was started. Files come in as uploads only. Annotations are real
types here, for Gradio makes the documentation of them.
"""

import threading
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..app.desk import CLASHES
from ..errors import ConfigError
from ..settings import SamplingConfig
from .kit import guard
from .kit.guard import friendly
from .kit.routing_row import mixing_of

if TYPE_CHECKING:
    from ..app.studio import Studio

ENDPOINTS = (
    "train", "train_status", "stop", "chat", "route", "routers", "fit_router", "lobes", "save_bundle",
    "load_bundle",
    "delete_lobe",
)  # fmt: skip
MIX = "mix"
ROLES = ("system", "user", "assistant")
LONGEST_PROMPT = 100_000
MOST_MESSAGES = 200
MOST_ANSWERS = 4
"""Answers at once over the API, so that programs leave some room for people."""

Json = dict[str, Any]


def add_endpoints(studio: "Studio") -> None:
    """Call it once, inside gr.Blocks."""
    endpoints = Endpoints(studio)
    for name in ENDPOINTS:
        limit = MOST_ANSWERS if name == "chat" else None
        gr.api(getattr(endpoints, name), api_name=name, concurrency_limit=limit)  # type: ignore[attr-defined]


class Endpoints:
    """One method for each endpoint; its signature and docstring are its documentation."""

    def __init__(self, studio: "Studio") -> None:
        self.studio = studio

    @friendly(markup=False)
    def train(
        self,
        request: gr.Request,
        file: gr.FileData,
        name: str,
        settings: dict[str, Any] | None = None,
        mapping: dict[str, str] | None = None,
        skip_bad: bool = False,
        token: str = "",
    ) -> dict[str, Any]:
        """Queue the training of a lobe on an uploaded file, and return the job.

        settings: any of TrainingConfig, such as {"epochs": 3, "lora_r": 16}; what is left out suits
        the base and the rows. mapping: {"prompt": column, "answer": column} for a file of unknown
        layout. skip_bad: use the good rows only. token: on a shared server, a secret of your own of
        16 characters or more, to be given again to stop the job.
        """
        desk = guard.acting_desk(self.studio, request, token)
        path = guard.an_upload(file, "The training file")
        title = guard.a_text(name, "The name of the lobe", 80)
        config = guard.training_config(settings or {})
        columns, skip = _mapping(mapping), guard.a_flag(skip_bad, "skip_bad")
        job = desk.train(title, path, config, mapping=columns, skip_bad=skip)
        return asdict(job)

    @friendly(markup=False)
    def train_status(
        self, request: gr.Request, job_id: str, curve: bool = False, token: str = ""
    ) -> dict[str, Any]:
        """How a job, training or fit, is: state, step, steps, losses, seconds_left. curve: also
        "curve", a record for each step."""
        job = guard.desk(self.studio, request, token).job(guard.a_text(job_id, "job_id"))
        more: Json = {"curve": self.studio.metrics(job.id)} if guard.a_flag(curve, "curve") else {}
        return asdict(job) | more

    @friendly(markup=False)
    def stop(self, request: gr.Request, job_id: str, token: str = "") -> dict[str, Any]:
        """Stop a running job after the step under way and keep the lobe as it is then (the best so
        far, where the job keeps the best); returns the job."""
        desk = guard.acting_desk(self.studio, request, token)
        return asdict(desk.stop(guard.a_text(job_id, "job_id")))

    @friendly(markup=False)
    def chat(
        self,
        message: str,
        lobe: str = "automatic",
        history: list[dict[str, str]] | None = None,
        max_new_tokens: int = 256,
        temperature: float = 0.7,
        seed: int | None = None,
        router: str = "hybrid",
        mixing: str = "auto",
        k: int = 2,
        weights: dict[str, float] | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Answer a message, as a stream: each event has the whole text so far, the last one has done = true.

        lobe: "automatic" lets the router choose, "base" asks the base model, "lobe:NAME" one lobe.
        history: earlier messages as {"role", "content"}. router, mixing, k: as of /route, for
        "automatic". lobe "mix" answers with `weights`, an object of lobes' names and weights from 0
        to 1, such as {"python": 0.5, "maths": 0.5}. The first event comes before any text and has
        the router's decision; "trace" has the lobes' weights at each token where a router weighs
        tokens. The last event has the cost: route_ms, prompt_tokens, answer_tokens, seconds,
        tokens_per_second, and the lobes in memory (resident).
        """
        messages = [
            *_history(history),
            {"role": "user", "content": guard.a_text(message, "The message", LONGEST_PROMPT)},
        ]
        sampling = SamplingConfig(
            max_new_tokens=guard.a_whole(max_new_tokens, "max_new_tokens", 1, 4096),
            temperature=guard.a_number(temperature, "temperature", 0, 10),
            seed=None if seed is None else guard.a_whole(seed, "seed", 0, 2**31 - 1),
        )
        stop, choice = threading.Event(), guard.a_text(lobe, "lobe")
        asked: Json = {"router": guard.a_text(router, "router", 60), "mixing": mixing_of(mixing, k, "mixing")}
        if choice == MIX:
            asked["weights"] = _weights(weights)
        try:
            for event in self.studio.chat(messages, choice, sampling, stop, **asked):
                decision = event.decision.to_json() if event.decision else None
                plain = {
                    key: value
                    for key, value in vars(event).items()
                    if key not in ("decision", "trace", "cost")
                }
                cost = event.cost.to_json() if event.cost else None
                trace = [{"text": token.text, "weights": dict(token.weights)} for token in event.trace]
                yield {**plain, "decision": decision, "trace": trace, "cost": cost}
        finally:
            stop.set()  # the client has gone, or all is said: nothing may go on computing

    @friendly(markup=False)
    def route(self, prompt: str, router: str = "hybrid", mixing: str = "auto", k: int = 2) -> dict[str, Any]:
        """Which lobes would answer a prompt, and why: scores, probabilities, weights, chosen,
        confidence, reason, evidence.

        confidence is the probability that what was decided is right: the lobe chosen, or that no
        lobe fits. Probabilities of the lobes are at most 1 together; evidence["none"], where it is
        there, is that of no lobe. weights say what answers. router: a name that /routers gives.
        mixing: "auto" (the best and those that stand out), "top_1", "top_k" (the k best) or "soft"
        (all that are not negligible).
        """
        words = guard.a_text(prompt, "The prompt", LONGEST_PROMPT, may_be_empty=True)
        return self.studio.route(words, guard.a_text(router, "router", 60), mixing_of(mixing, k, "mixing")).to_json()

    @friendly(markup=False)
    def routers(self, request: gr.Request, token: str = "") -> list[dict[str, Any]]:
        """Every router: name, title, whether it is fitted or stale and why, settings of a fit,
        report of the last fit, job_id."""
        return [asdict(view) for view in guard.desk(self.studio, request, token).routers()]

    @friendly(markup=False)
    def fit_router(
        self,
        request: gr.Request,
        name: str,
        settings: dict[str, Any] | None = None,
        file: gr.FileData | None = None,
        token: str = "",
    ) -> dict[str, Any]:
        """Queue the fit of a router to the lobes there are, and return the job; /train_status and
        /stop take its id.

        settings: any that /routers lists for it, such as {"seed": 1}. file: for "complexity", rows
        to learn from instead of the lobes' own.
        """
        desk = guard.acting_desk(self.studio, request, token)
        known = {view.name: view for view in desk.routers()}
        view = known[guard.a_choice(name, "The router", list(known))]
        chosen = guard.router_settings(view.settings, settings or {})
        path = str(guard.an_upload(file)) if file is not None else None
        return asdict(desk.fit_router(view.name, chosen, path))

    @friendly(markup=False)
    def lobes(self, request: gr.Request, token: str = "") -> list[dict[str, Any]]:
        """Every lobe: name, rows, rank, size, losses, base, origin, and whether it can be used now."""
        return [asdict(lobe) for lobe in guard.desk(self.studio, request, token).lobes()]

    @friendly(markup=False)
    def save_bundle(self, names: list[str] | None = None) -> gr.FileData:
        """A zip of the lobes named, or of all, to be loaded elsewhere."""
        chosen = guard.some_names(names, "names") if names else None
        path = self.studio.save_bundle(chosen)
        return gr.FileData(path=guard.downloadable(path), orig_name=path.name).model_dump()  # type: ignore[return-value]

    @friendly(markup=False)
    def load_bundle(
        self, request: gr.Request, file: gr.FileData, on_clash: str = "rename", token: str = ""
    ) -> list[str]:
        """Add the lobes of an uploaded bundle and return their names. on_clash: "rename", "replace"
        or "refuse"."""
        desk = guard.acting_desk(self.studio, request, token)
        path = guard.an_upload(file, "The bundle")
        return desk.load_bundle(path, guard.a_choice(on_clash, "on_clash", CLASHES))

    @friendly(markup=False)
    def delete_lobe(self, request: gr.Request, name: str, token: str = "") -> list[str]:
        """Delete a lobe for good; returns the names of those that are left."""
        desk = guard.acting_desk(self.studio, request, token)
        desk.delete(guard.a_text(name, "The name", 200))
        return [lobe.name for lobe in desk.lobes()]


def _mapping(mapping: object) -> dict[str, str] | None:
    if mapping is None or mapping == {}:
        return None
    if not isinstance(mapping, dict):
        raise ConfigError('mapping must be an object such as {"prompt": "question", "answer": "reply"}.')
    roles = ("prompt", "answer", "system")
    return {
        guard.a_choice(r, "A role in mapping", roles): guard.a_text(c, "A column", 1000)
        for r, c in mapping.items()
    }


def _weights(weights: object) -> dict[str, float]:
    if not isinstance(weights, dict) or not 1 <= len(weights) <= guard.MOST_NAMES:
        raise ConfigError('weights must be an object such as {"python": 0.5, "maths": 0.5}.')
    return {
        guard.a_text(n, "A lobe in weights"): guard.a_number(w, f"The weight of {n}", 0, 1)
        for n, w in weights.items()
    }


def _history(history: object) -> list[dict[str, str]]:
    if history is None:
        return []
    if not isinstance(history, list) or len(history) > MOST_MESSAGES:
        raise ConfigError(f"history must be a list of at most {MOST_MESSAGES} messages.")
    return [_message(turn) for turn in history]


def _message(turn: object) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise ConfigError(
            'A message in history must be an object such as {"role": "user", "content": "Hello"}.'
        )
    role = guard.a_choice(turn.get("role"), "A role in history", ROLES)
    return {
        "role": role,
        "content": guard.a_text(turn.get("content"), "A content in history", LONGEST_PROMPT),
    }
