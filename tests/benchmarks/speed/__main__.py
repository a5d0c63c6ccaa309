"""How fast is it, beside the peer and beside plain PEFT? One table and a JSON file.

    python tests/benchmarks/speed                        the fast subset, under three minutes
    python tests/benchmarks/speed --full                 every size
    python tests/benchmarks/speed --only decoding routing  some parts

`multilobe` 0.1.0 runs in an environment of its own (`--peer`), which is made at the first run; `--no-peer` leaves it out. Every
number is the median of rounds in which all take turns; the spread is that of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

PARTS = ("training", "routing", "decoding", "many_lobes", "startup")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="python tests/benchmarks/speed"
    )
    parser.add_argument("--full", action="store_true", help="every size; takes an hour")
    parser.add_argument("--built-in", action="store_true", help="with --full: the built-in base alone, half an hour")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=" ".join(PARTS))
    parser.add_argument("--rounds", type=int, help="measurements of each (2; with --full 5)")
    parser.add_argument("--threads", type=int, default=1, help="of torch, ours and theirs alike")
    parser.add_argument("--peer", type=Path, default=Path(".peer-venv"), help="environment of multilobe 0.1.0")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--json", type=Path, default=Path("speed.json"), help="where the numbers go")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)

    import contest
    import torch
    from peer import Peer
    from settings import Settings
    from world import World

    from multilobe_ui.evaluation.speed import machine, machine_rates

    torch.set_num_threads(options.threads)
    if options.threads > 1:
        contest.use_wall_clock()
    peer = None if options.no_peer else Peer(options.peer.absolute(), options.threads)
    settings = Settings(
        options.full,
        options.full and not options.built_in,
        options.rounds or (5 if options.full else 2),
        options.threads,
        peer,
    )
    began, found = time.perf_counter(), []
    gflops, copied = machine_rates(torch.device("cpu"), 5)
    about = {**machine(torch.device("cpu")), "gflops": gflops, "copy_gib_s": copied, "torch": torch.__version__}
    print(
        f"{about['processor']}, {about['cores']} cores, {options.threads} used; {gflops:.0f} GFLOP/s, copy {copied:.1f} GiB/s"
    )
    with tempfile.TemporaryDirectory(prefix="multilobe-speed-") as scratch:
        try:
            world = World(Path(scratch))
            for part in options.only:
                for result in importlib.import_module(part).results(world, settings):
                    line = f"  {result.work}, {result.base}: {result.ratio:.2f} against {result.against}"
                    print(line, file=sys.stderr, flush=True)
                    found.append(result)
        finally:
            if peer is not None:
                peer.close()
    about["seconds"] = time.perf_counter() - began
    print(contest.table(found))
    options.json.write_text(
        json.dumps({"machine": about, "full": settings.full, "results": [r.to_json() for r in found]}, indent=1) + "\n",
        encoding="utf-8",
    )
    print(f"\n{about['seconds']:.0f} s; numbers in {options.json}")


if __name__ == "__main__":
    main()
