"""`multilobe-ui`: the verbs of the app without a browser, on the same home folder and the same core.

Data goes to standard output, progress and messages to standard error; with --json the data is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, MultiLobeError
from ..files import home_folder, made_home
from ..settings import (
    EMPTY_IS,
    SamplingConfig,
    TrainingConfig,
    about,
    budget_from_environment,
    kind_of,
    rule,
    settings_of,
)

if TYPE_CHECKING:
    from ..model import MultiLobeModel
    from ..routers import RoutingDecision
    from ..routing.decision import Mixing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, or 1 after an error that was said in a sentence, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    # what libraries mean to change one day is for their callers, not for people
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        options.run(options)
    except MultiLobeError as error:
        print(f"multilobe-ui: {error}", file=sys.stderr)
        for line, reason in getattr(error, "lines", ()):
            print(f"  line {line}: {reason}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmultilobe-ui: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:  # a full disk, a folder that may not be written, a port that is taken
        print(f"multilobe-ui: {error}", file=sys.stderr)
        return 1
    return 0


# ---- commands -------------------------------------------------------------------------------------------------------------


def launch(options: argparse.Namespace) -> None:
    """Serve the app."""
    from ..ui.serve import serve

    memory = options.memory_mib
    serve(home=options.home, base=options.base, port=options.port, share=options.share, memory_budget_mib=memory)


def train(options: argparse.Namespace) -> None:
    """Train a lobe, with a progress bar; Ctrl-C stops and keeps what has been learned by then."""
    stop = threading.Event()
    _stop_on_ctrl_c(stop)
    config = TrainingConfig(**{field.name: getattr(options, field.name) for field in fields(TrainingConfig)})
    mapping = _mapping(options.map)
    run = _model(options).train(
        options.name,
        options.data,
        config,
        mapping=mapping,
        skip_bad=options.skip_bad,
        checkpoint=Path(options.checkpoint) if options.checkpoint else None,
        stop=stop,
    )

    def shown(record: Any) -> dict[str, float]:
        return {} if record.validation_loss is None else {"validation loss": record.validation_loss}

    lobe = _followed(run, options.quiet, shown)
    result = lobe.card.training
    before, after = result.get("base_validation_loss"), result.get("validation_loss")
    summary = f"{lobe.name}: {result['steps']} steps in {result['seconds']:.0f} s, {result['kept']} step kept"
    if before is not None and after is not None:
        summary += f", held-out loss {before:.3f} -> {after:.3f}"
    _say(options, {"id": lobe.id, **lobe.card.to_json()}, summary)


def chat(options: argparse.Namespace) -> None:
    """Answer one prompt, or talk until end of input."""
    pairs, prompt = _pairs_and_prompt(options.weights, options.prompt)
    by_hand, sampling, mixing = _weights(pairs), _sampling(options), _mixing(options)
    model = _model(options)
    from ..generation.decode import stream_text

    def answer(messages: list[dict[str, str]]) -> str:
        weights = {} if options.base_only else by_hand
        lobe = None if weights is not None else options.lobe
        if options.json:
            asked: dict[str, Any] = {"weights": weights, "mixing": mixing, **asdict(sampling)}
            text, details = model.generate(messages, lobe, return_metadata=True, **asked)
            details["decision"] = details["decision"].to_json()
            print(json.dumps({"prompt": messages[-1]["content"], "answer": text, **details}, ensure_ascii=False))
            return text
        decision = model.answers.decide(messages, lobe, weights, mixing=mixing)
        why = "" if decision.weights else f" {decision.reason}"  # no lobe fits, or the router has not been fitted
        print(f"[{_who(decision)}]{why}", file=sys.stderr)
        pieces = []
        for piece in stream_text(model.bank, model.answers.request(messages, decision, sampling, mixing=mixing)):
            pieces.append(piece)
            print(piece, end="", flush=True)
        print()
        return "".join(pieces).strip()

    if prompt:
        answer([{"role": "user", "content": _not_empty(" ".join(prompt))}])
        return
    messages: list[dict[str, str]] = []
    while (line := _read_line("you> ")) is not None:
        if line.strip():
            messages.append({"role": "user", "content": line})
            messages.append({"role": "assistant", "content": answer(messages)})


def route(options: argparse.Namespace) -> None:
    """Say which lobe would answer each prompt (from the arguments, else a line each from standard input)."""
    prompts = [_not_empty(prompt) for prompt in options.prompt]
    model, mixing = _model(options), _mixing(options)
    for prompt in prompts or (line.rstrip("\n") for line in sys.stdin):
        decision = model.route(prompt, mixing=mixing)
        if options.json:
            print(json.dumps({"prompt": prompt, **decision.to_json()}, ensure_ascii=False))
        else:
            print(f"{_who(decision)}\t{_sure(decision)}\t{decision.elapsed_ms:.0f} ms\t{prompt}")


def fit(options: argparse.Namespace) -> None:
    """Fit a router to the lobes of the home, with a progress bar; Ctrl-C stops and keeps the best so far."""
    from ..data import dataset

    model = _model(options)
    router = model.routers.named(options.name)
    settings: dict[str, Any] = _settings(options.set)
    if options.data:
        settings["rows"] = dataset.pairs(options.data)
    stop = threading.Event()
    _stop_on_ctrl_c(stop)
    fitted = _followed(model.routers.fitting(options.name, settings, stop), options.quiet, lambda record: record.values)
    report = {name: value for name, value in fitted.report.items() if isinstance(value, (int, float, str))}
    summary = ", ".join(
        f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in report.items()
    )
    _say(options, {"router": options.name, "report": fitted.report}, f"{router.title} is fitted. {summary}".strip())


def routers(options: argparse.Namespace) -> None:
    """List the routers, and whether each can be used."""
    from ..routers import ROUTERS

    model = _model(options)
    for name in ROUTERS:
        router = model.routers.named(name)
        state = "needs a fit" if not router.is_fitted else "stale" if model.routers.is_stale(name) else "ready"
        if options.json:
            print(json.dumps({"name": name, "title": router.title, "state": state, "sentence": router.sentence}))
        else:
            print(f"{name:11}{state:12}{router.sentence}")


def evaluate(options: argparse.Namespace) -> None:
    """Measure routers (report), lobes (losses) or what was forgotten (forgetting); Ctrl-C ends early with what there is."""
    from ..app.lab import EXPERIMENTS
    from ..evaluation.labelled import read_labelled, write_rows
    from .tables import TABLES

    out = _writable(options.out)
    model, experiment, stop = _model(options), EXPERIMENTS[options.what], threading.Event()
    settings = settings_of(experiment.settings(), _settings(options.set))
    files = [(Path(path).name, Path(path)) for path in options.data]
    with tempfile.TemporaryDirectory(prefix="multilobe-eval-") as scratch:
        data = Path(scratch) / "rows.jsonl" if files else None
        if data:
            write_rows(data, read_labelled(files, model.lobe_names, need_label=experiment.needs_label))
        _stop_on_ctrl_c(stop)
        run = experiment.run()(model, settings, data=data, made=Path(scratch) / "made", stop=stop)
        result = _followed(run, options.quiet, lambda record: record.values).to_json()
    if out:
        out.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    _say(options, result, TABLES[options.what](result))


def bench(options: argparse.Namespace) -> None:
    """Time training, routing and answers on this machine, with this base and the lobes of the home."""
    evaluate(options)


def merge(options: argparse.Namespace) -> None:
    """Make a lobe out of several, after saying what it costs; Ctrl-C ends the search, or the measuring."""
    from ..merging import MergeSettings, keep_merge
    from ..merging.merge import run_merge

    model, stop = _model(options), threading.Event()
    weights = _parents(options.lobes, model.lobe_names, searched=options.search is not None)
    if not options.dry_run:
        model.lobes.store.check_free(options.name)
    with tempfile.TemporaryDirectory(prefix=".merging-", dir=model.home) as scratch:
        search = _search(model, options, list(weights), Path(scratch)) if options.search is not None else None
        asked = MergeSettings(
            tuple((search or weights).items()), options.type, rank=options.rank, density=options.density, seed=options.seed
        )
        _stop_on_ctrl_c(stop)
        run = run_merge(model, asked, made=Path(scratch) / "made", stop=stop)
        result = _followed(run, options.quiet, lambda record: record.values).to_json()
        if not options.dry_run:
            routed = not options.not_routed
            result["kept"] = keep_merge(model, Path(scratch) / "made", result, options.name, routed=routed).name
    _say(options, {"name": options.name, **result}, _cost(result))


def _search(model: MultiLobeModel, options: argparse.Namespace, names: Sequence[str], scratch: Path) -> dict[str, float]:
    """Weights for these lobes by search on a file, or on their own rows if none is named; those near zero are left out."""
    from ..evaluation.labelled import read_labelled, write_rows
    from ..merging import SearchSettings
    from ..merging.weighing import run_search

    data, stop = None, threading.Event()
    if options.search:
        path = Path(options.search)
        data = scratch / "rows.jsonl"
        write_rows(data, read_labelled([(path.name, path)], names, need_label=False))
    asked = SearchSettings(tuple(names), budget=options.budget, seed=options.seed)
    _stop_on_ctrl_c(stop)
    found = _followed(run_search(model, asked, data=data, stop=stop), options.quiet, lambda record: record.values)
    told = ", ".join(f"{name} {weight:.2f}" for name, weight in found.weights.items())
    print(f"found on {found.rows} rows: {told}; loss {found.base:.3f} -> {found.loss:.3f}", file=sys.stderr)
    weights = {name: weight for name, weight in found.weights.items() if abs(weight) >= 0.005}
    if not weights:
        raise ConfigError("The search found nothing better than the base with no lobe. Choose other lobes, or other examples.")
    return weights


def bundle_save(options: argparse.Namespace) -> None:
    """Write lobes as a bundle."""
    path = _model(options).save(options.path, options.lobes or None)
    _say(options, {"path": str(path)}, f"Saved {path}")


def bundle_load(options: argparse.Namespace) -> None:
    """Add a bundle's lobes to the home."""
    names = [lobe.name for lobe in _model(options).load_bundle(options.path, options.on_clash)]
    _say(options, {"lobes": names}, f"Loaded {', '.join(names)}")


def bundle_list(options: argparse.Namespace) -> None:
    """What a bundle, or the home if no path is given, holds."""
    from ..bundles.load import open_bundle
    from ..lobes.store import LobeStore

    if options.path:
        with open_bundle(options.path) as opened:
            cards = [card for _, card in opened.lobe_folders]
    else:
        cards = [lobe.card for lobe in LobeStore(home_folder(options.home) / "lobes").all()]
    if options.json:
        print(json.dumps([{**card.to_json(), "owner": ""} for card in cards], ensure_ascii=False, indent=2))
    for card in cards if not options.json else ():
        loss, size = card.training.get("validation_loss"), int(card.adapter.get("bytes", 0)) / 2**20
        held_out = "" if loss is None else f"loss {loss:.3f}"
        print(card.name, f"r={card.adapter.get('r')}", f"{size:.1f} MiB", held_out, card.base["name"], sep="\t")


def bundle_verify(options: argparse.Namespace) -> None:
    """Check every file of a bundle against its manifest."""
    from ..bundles.load import verify_bundle
    from ..errors import BundleError

    problems = verify_bundle(options.path)
    if options.json:
        print(json.dumps({"path": str(options.path), "problems": problems}, ensure_ascii=False))
    if problems:
        raise BundleError(f"{options.path} has {len(problems)} problem(s): {'; '.join(problems)}")
    if not options.json:
        print(f"{options.path} is sound.")


# ---- arguments ------------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--home", help="folder of lobes and jobs (default: $MULTILOBE_HOME, else ~/.multilobe)")
    shared.add_argument("--base", help="base model: builtin, a folder, or a hub id (default: builtin)")
    shared.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")
    shared.add_argument(
        "--router", default="hybrid", help="who routes; `multilobe-ui routers` lists them (default: hybrid)"
    )
    shared.add_argument(
        "--memory-mib",
        type=float,
        metavar="MIB",
        help="memory for lobes; those used longest ago leave (default: $MULTILOBE_MEMORY_MIB, else as set for the home)",
    )
    shared.add_argument("--json", action="store_true", help="print data as JSON")
    parser = argparse.ArgumentParser(prog="multilobe-ui", description="Train small LoRA lobes and let a router choose.")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Any, under: Any = commands) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = under.add_parser(name, help=run.__doc__.splitlines()[0], parents=[shared])
        added.set_defaults(run=run)
        return added

    serve = command("launch", launch)
    serve.add_argument("--port", type=int)
    serve.add_argument("--share", action="store_true", help="ask Gradio for a public link")

    teach = command("train", train)
    teach.add_argument("name", help="the lobe's name")
    teach.add_argument("data", help="JSONL, JSON, CSV or Parquet file")
    teach.add_argument(
        "--map", action="append", default=[], metavar="ROLE=COLUMN", help="prompt=..., answer=..., system=..."
    )
    teach.add_argument("--skip-bad", action="store_true", help="use the good rows of a file that has bad ones")
    teach.add_argument("--checkpoint", help="folder for progress; training resumes from what is there")
    teach.add_argument("--quiet", action="store_true", help="no progress bar")
    _add_settings(teach, TrainingConfig)

    talk = command("chat", chat)
    talk.add_argument("prompt", nargs="*", help="without one, a conversation")
    talk.add_argument("--lobe", help="the lobe that answers (default: the router chooses)")
    talk.add_argument("--base-only", action="store_true", help="no lobe")
    talk.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="LOBE=WEIGHT",
        help="a mixture by hand, such as python=0.6 maths=0.4",
    )
    _add_mixing(talk)
    _add_settings(talk, SamplingConfig)

    ask = command("route", route)
    ask.add_argument("prompt", nargs="*", help="without one, a line each from standard input")

    _add_mixing(ask)

    learn = command("fit", fit)
    learn.add_argument("name", help="the router's name")
    learn.add_argument("--data", help="rows to learn from instead of the lobes' own (complexity only)")
    learn.add_argument("--set", action="append", default=[], metavar="SETTING=VALUE", help="a setting of the router")
    learn.add_argument("--quiet", action="store_true", help="no progress bar")
    command("routers", routers)

    measure = command("eval", evaluate)
    measure.add_argument("what", choices=("report", "losses", "forgetting"))
    measure.add_argument(
        "data",
        nargs="*",
        help='files with a column "lobe", or named after lobes (default: rows that the lobes have kept)',
    )
    measure.add_argument("--set", action="append", default=[], metavar="SETTING=VALUE", help="a setting of the experiment")
    measure.add_argument("--out", help="write the result here, as JSON")
    measure.add_argument("--quiet", action="store_true", help="no progress bar")

    timed = command("bench", bench)
    timed.set_defaults(what="speed", data=[])
    timed.add_argument("--set", action="append", default=[], metavar="SETTING=VALUE", help="rounds, tokens or chats")
    timed.add_argument("--out", help="write the result here, as JSON")
    timed.add_argument("--quiet", action="store_true", help="no progress bar")

    join = command("merge", merge)
    join.add_argument("name", help="the new lobe's name")
    join.add_argument("lobes", nargs="+", metavar="LOBE=WEIGHT", help="such as medical=0.6 legal=0.4; names alone with --search")
    join.add_argument("--type", default="cat", help="a combination of PEFT's add_weighted_adapter (default: cat, which is exact)")
    join.add_argument("--rank", type=int, help="rank of the result, for the svd forms (default: the lobes' largest)")
    join.add_argument("--density", type=float, default=0.5, help="share of numbers kept, where some are dropped (default: 0.5)")
    join.add_argument("--seed", type=int, default=0, help="default: 0")
    join.add_argument(
        "--search", nargs="?", const="", metavar="DATA", help="find the weights on this file, else on the lobes' own rows"
    )
    join.add_argument("--budget", type=int, default=40, help="trials of the search (default: 40)")
    join.add_argument("--not-routed", action="store_true", help="only by hand, not by routers that go by its parents' prompts")
    join.add_argument("--dry-run", action="store_true", help="say what it costs and keep nothing")
    join.add_argument("--quiet", action="store_true", help="no progress bar")

    bundles = commands.add_parser("bundle", help="Save, load, list or verify bundles.").add_subparsers(
        required=True, metavar="verb"
    )
    save = command("save", bundle_save, bundles)
    save.add_argument("path", help="a folder, or a file that ends in .zip")
    save.add_argument("lobes", nargs="*", help="names (default: all)")
    load = command("load", bundle_load, bundles)
    load.add_argument("path")
    load.add_argument("--on-clash", choices=("refuse", "rename", "replace"), default="rename")
    command("list", bundle_list, bundles).add_argument("path", nargs="?")
    command("verify", bundle_verify, bundles).add_argument("path")
    return parser


def _add_settings(parser: argparse.ArgumentParser, kind: type[Any]) -> None:
    """An option for every field of a settings dataclass."""
    for of in fields(kind):
        option = "--" + of.name.replace("_", "-")
        plain, words, _ = kind_of(kind, of.name)
        told = f"{about(of).help} ({rule(kind, of)}; default: {EMPTY_IS if of.default is None else of.default})"
        told = told.replace("%", "%%")
        if of.name == "target_modules":
            parser.add_argument(option, nargs="+", default=None, help=about(of).help)
        elif plain is bool:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=of.default, help=about(of).help)
        else:
            parser.add_argument(option, type=plain, choices=words or None, default=of.default, help=told)


def _add_mixing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mixing", default="auto", help="how many lobes answer: auto, top_1, top_k or soft (default: auto)"
    )
    parser.add_argument("--k", type=int, default=2, help="lobes of top_k (default: 2)")


def _mixing(options: argparse.Namespace) -> Mixing:
    from ..routing.decision import Mixing

    return Mixing(options.mixing, options.k)


def _mapping(pairs: Sequence[str]) -> dict[str, str] | None:
    """ROLE=COLUMN pairs; None if there are none."""
    for pair in pairs:
        if "=" not in pair:
            raise ConfigError(f"--map is {pair!r}: it must be ROLE=COLUMN, such as prompt=question.")
    return dict(pair.split("=", 1) for pair in pairs) or None


def _pairs_and_prompt(pairs: Sequence[str], prompt: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """argparse gives `--weights` all words that follow, so a prompt after its pairs ends up among them."""
    first = next((i for i, word in enumerate(pairs) if not _is_meant_as_pair(word)), len(pairs))
    return (pairs, prompt) if prompt or first == 0 else (pairs[:first], pairs[first:])


def _is_meant_as_pair(word: str) -> bool:
    """LOBE=WEIGHT, or a slip of it such as python=much; not a sentence in which something equals something."""
    _, equals, number = word.rpartition("=")
    with suppress(ValueError):
        float(number)
        return bool(equals)
    return bool(equals) and " " not in word


def _weights(pairs: Sequence[str]) -> dict[str, float] | None:
    """LOBE=WEIGHT pairs; None if there are none."""
    weights = {}
    for pair in pairs:
        name, _, number = pair.rpartition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            raise ConfigError(f"--weights is {pair!r}: it must be LOBE=WEIGHT, such as python=0.6.") from None
    return weights or None


def _parents(pairs: Sequence[str], lobes: Sequence[str], *, searched: bool) -> dict[str, float]:
    """LOBE=WEIGHT pairs; if the weights are `searched`, a name alone will do (a name may have "=" in it)."""
    weights = {}
    for pair in pairs:
        name, _, number = (pair, "", "1") if pair in lobes or "=" not in pair else pair.rpartition("=")
        try:
            if name == pair and not searched:
                raise ValueError
            weights[name] = float(number)
        except ValueError:
            raise ConfigError(f"{pair!r} must be LOBE=WEIGHT, such as medical=0.6 (or search for weights: --search).") from None
    return weights


def _cost(result: Mapping[str, Any]) -> str:
    """What a merge costs, as text in columns."""
    parents = " + ".join(f"{weight:.2f} {name}" for name, weight in result["parents"])
    size = f"{result['parameters']:,} parameters, {result['nbytes'] / 2**20:.2f} MiB"
    lines = [
        f"{result['combination']}: {parents}",
        f"rank {result['rank']}, {size}, error of the delta {result['error']:.4f} (0 is the exact weighted sum)",
    ]
    rows = [("loss, nats per answer token", "base", *(name for name, _ in result["parents"]), "exact mix", "merged")]
    for row in result["losses"]:
        numbers = (row["base"], *row["parents"], row["mixture"], row["merged"])
        rows.append((f"{row['dataset']} ({row['rows']} rows)", *("-" if x is None else f"{x:.3f}" for x in numbers)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows if len(rows) > 1 else []:
        numbers_told = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *numbers_told]).rstrip())
    lines.append(result["advice"])
    lines.append(f"Kept as {result['kept']!r}." if result["kept"] else "Nothing was kept.")
    return "\n".join(lines)


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    """SETTING=VALUE pairs; a value is JSON if it can be read so, else text."""
    settings: dict[str, Any] = {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        try:
            settings[name] = json.loads(text)
        except ValueError:
            settings[name] = text
    return settings


def _stop_on_ctrl_c(stop: threading.Event) -> None:
    """The first Ctrl-C asks for an end, the second is one."""
    import signal

    signal.signal(signal.SIGINT, lambda *_: stop.set() if not stop.is_set() else sys.exit(130))


def _followed(run: Generator[Any, None, Any], quiet: bool, shown: Callable[[Any], Mapping[str, float]]) -> Any:
    """Run to the end behind a progress bar; returns what the generator returns. Texts that it yields are its phases."""
    from tqdm import tqdm

    bar: Any = None
    try:
        while True:
            event = next(run)
            if isinstance(event, str):
                tqdm.write(event, file=sys.stderr)  # on a line of its own, above a bar that there may be
                continue
            bar = bar or tqdm(total=event.steps, unit="step", file=sys.stderr, disable=quiet)
            bar.update(event.step - bar.n)
            if values := shown(event):
                bar.set_postfix_str(
                    ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in values.items())
                )
    except StopIteration as end:
        if bar is not None and bar.n == bar.total - 1:
            bar.update()  # some work tells of a step when it begins
        return end.value
    finally:
        if bar is not None:
            bar.close()


def _writable(path: str | None) -> Path | None:
    """Where a result goes, tried before the work that it would be lost with; what stands there stays until then."""
    if not path:
        return None
    place = Path(path)
    try:
        was_there = place.exists()
        place.open("a", encoding="utf-8").close()
        if not was_there:
            place.unlink()
    except OSError as error:
        raise ConfigError(f"--out is {path!r}: it cannot be written ({error.strerror}). Choose another place.") from None
    return place


def _model(options: argparse.Namespace) -> MultiLobeModel:
    from ..base.backbone import choose_threads
    from ..model import MultiLobeModel

    home = made_home(options.home)
    model = MultiLobeModel.from_pretrained(
        options.base or "builtin",
        device=options.device,
        home=home,
        router=options.router,
        memory_budget_mib=options.memory_mib if options.memory_mib is not None else budget_from_environment(),
    )
    choose_threads(model.backbone)
    model.routers.prepare()
    return model


def _sampling(options: argparse.Namespace) -> SamplingConfig:
    return SamplingConfig(**{field.name: getattr(options, field.name) for field in fields(SamplingConfig)})


def _who(decision: RoutingDecision) -> str:
    """The lobe that answers, or the lobes with their weights."""
    if len(decision.weights) > 1:
        return " + ".join(f"{name} {weight:.0%}" for name, weight in decision.weights.items())
    return decision.chosen or "base"


def _sure(decision: RoutingDecision) -> str:
    """What the numbers beside are: how sure the router is of its choice, or the weights of a mix, which are no certainty."""
    from ..ui.kit.text import estimated

    if decision.per_token:
        return "mean weights"
    if not estimated(decision):
        return "-"
    if decision.chosen is None:
        return f"{decision.confidence:.0%} sure that no lobe fits"
    what = decision.chosen if len(decision.weights) > 1 else "the choice"
    return f"{decision.confidence:.0%} sure of {what}"


def _not_empty(prompt: str) -> str:
    if not prompt.strip():
        raise ConfigError("The prompt is empty: write a question with at least one character.")
    return prompt


def _say(options: argparse.Namespace, data: Any, text: str) -> None:
    print(json.dumps(data, ensure_ascii=False, indent=2) if options.json else text)


def _read_line(prompt: str) -> str | None:
    try:
        return input(prompt if sys.stdin.isatty() else "")
    except EOFError:
        return None
