"""`multilobe-ui`: the verbs of the app without a browser, on the same home folder and the same core.

Data goes to standard output, progress and messages to standard error; with --json the data is JSON.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from ..errors import MultiLobeError
from . import bases, bundles, measure, merge, routers, talk, train
from .options import Commands, shared_options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, or 1 after an error that was said in a sentence,
    130 after Ctrl-C."""
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


def launch(options: argparse.Namespace) -> None:
    """Serve the app."""
    from ..ui.serve import serve

    memory = options.memory_mib
    serve(home=options.home, base=options.base, port=options.port, share=options.share, memory_budget_mib=memory)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="multilobe-ui", description="Train small LoRA lobes and let a router choose.")
    commands = Commands(parser.add_subparsers(required=True, metavar="command"), shared_options())
    serve = commands.add("launch", launch)
    serve.add_argument("--port", type=int)
    serve.add_argument("--share", action="store_true", help="ask Gradio for a public link")
    for group in (train, talk, routers, measure, merge, bundles, bases):
        group.add(commands)
    return parser
