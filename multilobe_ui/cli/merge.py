"""The command that makes a lobe out of several."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .options import Commands, add_quiet, parents_of_pairs
from .work import followed, loaded_model, say, stopped_by_ctrl_c

if TYPE_CHECKING:
    from ..model import MultiLobeModel


def add(commands: Commands) -> None:
    join = commands.add("merge", merge)
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
    add_quiet(join)


def merge(options: argparse.Namespace) -> None:
    """Make a lobe out of several, after saying what it costs; Ctrl-C ends the search, or the measuring."""
    from ..merging import MergeSettings, keep_merge
    from ..merging.merge import run_merge

    model = loaded_model(options)
    weights = parents_of_pairs(options.lobes, model.lobe_names, searched=options.search is not None)
    if not options.dry_run:
        model.lobes.store.check_free(options.name)
    with tempfile.TemporaryDirectory(prefix=".merging-", dir=model.home) as scratch:
        if options.search is not None:
            weights = _search(model, options, list(weights), Path(scratch))
        settings = MergeSettings(
            tuple(weights.items()), options.type, rank=options.rank, density=options.density, seed=options.seed
        )
        run = run_merge(model, settings, made=Path(scratch) / "made", stop=stopped_by_ctrl_c())
        result = followed(run, options.quiet).to_json()
        if not options.dry_run:
            routed = not options.not_routed
            result["kept"] = keep_merge(model, Path(scratch) / "made", result, options.name, routed=routed).name
    say(options, {"name": options.name, **result}, _cost(result))


def _search(model: MultiLobeModel, options: argparse.Namespace, names: Sequence[str], scratch: Path) -> dict[str, float]:
    """Weights for these lobes by search on a file, or on their own rows if none is named; those
    near zero are left out."""
    from ..evaluation.labelled import read_labelled, write_rows
    from ..merging import SearchSettings
    from ..merging.weighing import run_search

    data = None
    if options.search:
        path = Path(options.search)
        data = scratch / "rows.jsonl"
        write_rows(data, read_labelled([(path.name, path)], names, need_label=False))
    settings = SearchSettings(tuple(names), budget=options.budget, seed=options.seed)
    result = followed(run_search(model, settings, data=data, stop=stopped_by_ctrl_c()), options.quiet)
    listed = ", ".join(f"{name} {weight:.2f}" for name, weight in result.weights.items())
    print(f"found on {result.rows} rows: {listed}; loss {result.base:.3f} -> {result.loss:.3f}", file=sys.stderr)
    weights = {name: weight for name, weight in result.weights.items() if abs(weight) >= 0.005}
    if not weights:
        raise ConfigError("The search found nothing better than the base with no lobe. Choose other lobes, or other examples.")
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
    if result["losses"]:
        lines += _columns(rows)
    lines.append(result["advice"])
    if result["kept"]:
        lines.append(f"Kept as {result['kept']!r}.")
    else:
        lines.append("Nothing was kept.")
    return "\n".join(lines)


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table: the first column flush left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        numbers = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        yield "  ".join([first.ljust(widths[0]), *numbers]).rstrip()
