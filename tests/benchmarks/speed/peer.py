"""`multilobe` 0.1.0 in an environment of its own, asked over a pipe (`peer_worker.py` answers)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("peer_worker.py")
PACKAGES = ("multilobe==0.1.0", "torch>=2.6,<2.14")


def peer_python(environment: Path) -> Path:
    """Python of the peer's environment, which is made if it is not there (a minute or two, from PyPI)."""
    python = environment / "bin" / "python"
    if not python.exists():
        print(f"Installing multilobe 0.1.0 in {environment} ...", file=sys.stderr, flush=True)
        venv.create(environment, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
    return python


class Peer:
    """A worker process; works only while it is asked, so it takes no time from whoever it is compared with.

    Args:
        environment: folder of its virtual environment. threads: of its torch.
    """

    def __init__(self, environment: Path, threads: int) -> None:
        self._process = subprocess.Popen(
            [peer_python(environment), str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        )

    def ask(self, work: str, **arguments: Any) -> Any:
        """Run a function of the worker; its JSON result.

        Raises:
            RuntimeError: with the worker's traceback.
        """
        assert self._process.stdin and self._process.stdout
        print(json.dumps({"work": work, "arguments": arguments}), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The peer ended while it was asked for {work}.")
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(f"The peer failed at {work}:\n{reply['error']}")
        return reply["result"]

    def close(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait(timeout=30)
