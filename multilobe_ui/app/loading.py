"""The base model of the page: loaded in the background, changed for another, and said how far it is.

Torch is imported by the thread that loads, so that the page can answer long before the model does.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..assets import demo_bundle
from ..errors import BackboneError, BusyError, ConfigError, MultiLobeError
from ..files import read_json, write_json
from ..lobes.store import LobeStore

if TYPE_CHECKING:
    from ..model import MultiLobeModel

BUILTIN = "builtin"
LONGEST_NAME = 500
log = logging.getLogger(__name__)


class Loading:
    """One base model and what is said about it. Safe to use from several threads.

    Args:
        home: where the choice is remembered. base: name of the base; None takes the one chosen
            last, else the built-in one.
        demo: install the demo lobes once in a new home. memory_budget_mib: see `Studio`.

    Attributes:
        model: None until it is loaded. base: its name, or of the one that is being loaded first.
        state, message: see `views.StudioStatus`. changes: rises with every one of them.
    """

    def __init__(self, home: Path, base: str | None, demo: bool, memory_budget_mib: float | None) -> None:
        self._home, self._demo = home, demo
        self.memory_budget_mib = memory_budget_mib
        self.base = base or _remembered_base(home) or BUILTIN
        self.model: MultiLobeModel | None = None
        self.state: Literal["loading", "ready", "failed"] = "loading"
        self.message = f"Loading {_spoken(self.base)}…"
        self.changes = 0
        self.lock = threading.RLock()
        self._loaded = threading.Event()
        self._stored = LobeStore(home / "lobes")  # until the model is there

    def start(self) -> None:
        """Load the first base in the background."""
        threading.Thread(target=self._load, args=(self.base,), name="load-base", daemon=True).start()

    def change(self, name: str) -> None:
        """Load another base in the background; the present one answers until then.

        Raises:
            ConfigError: no name, or too long a one. BusyError: a base is being loaded.
        """
        name = str(name).strip()
        if not name or len(name) > LONGEST_NAME:
            raise ConfigError("The base model needs a name: 'builtin', a folder, or a hub id such as 'gpt2'.")
        with self.lock:
            if self.state == "loading":
                raise BusyError("A base model is being loaded. Wait until it is ready.")
            self._say("loading", f"Loading {_spoken(name)}…")
        threading.Thread(target=self._load, args=(name,), name="load-base", daemon=True).start()

    def ready(self, timeout: float | None = 120.0) -> MultiLobeModel:
        """The model, waited for.

        What needs torch is imported after this call, never before: two threads that import it at
        once see each other's half-made modules, and the base would fail to load.

        Raises:
            BackboneError: it failed. BusyError: it takes longer than `timeout` seconds.
        """
        if not self._loaded.wait(timeout):
            raise BusyError(f"{self.message} It takes longer than usual; try again in a moment.")
        with self.lock:
            if self.model is None:
                raise BackboneError(self.message)
            return self.model

    @property
    def store(self) -> LobeStore:
        """The lobes of the home, of whatever base."""
        model = self.model
        if model is None:
            return self._stored
        return model.lobes.store

    def changed(self) -> None:
        """Something that the page shows has changed."""
        with self.lock:
            self.changes += 1

    def restore_demo(self) -> list[str]:
        """Bring back the demo lobes that are gone; returns their names.

        Raises:
            ConfigError: they belong to another base than the present one.
        """
        model = self.ready()
        if model.backbone.name != BUILTIN or not demo_bundle().is_dir():
            raise ConfigError("The demo lobes belong to the built-in base model. Load that one first.")
        with _demo_without({lobe.name.casefold() for lobe in model.lobes.store.all()}) as missing:
            if missing is None:
                return []
            return [lobe.name for lobe in model.load_bundle(missing)]

    def _load(self, name: str) -> None:
        try:
            from ..base.device import choose_threads
            from ..model import MultiLobeModel

            model = MultiLobeModel.from_pretrained(name, home=self._home, memory_budget_mib=self.memory_budget_mib)
            choose_threads(model.backbone.device, model.backbone.parameter_count, in_a_crowd=True)
            self._install_demo(model)
            with self.lock:
                self.model, self.base = model, name
                self._say("loading", "Preparing the router…")
            self._loaded.set()
            model.routers.prepare()
            if model.lobes:
                model.route("ready")  # what a router makes at its first question takes a second: nobody waits for it
            write_json(self._home / "settings.json", {"base": name})
            self._say("ready", f"{_spoken(name).capitalize()} is ready.")
        except MultiLobeError as error:
            self._failed(str(error))
        except Exception as error:
            log.exception("loading %s failed", name)
            self._failed(f"The base model {name!r} cannot be loaded ({type(error).__name__}); the log says more.")

    def _failed(self, why: str) -> None:
        with self.lock:
            if self.model is None:
                self._say("failed", why)
            else:  # the old base goes on
                self._say("ready", f"{why} {_spoken(self.base).capitalize()} goes on answering.")
        self._loaded.set()

    def _install_demo(self, model: MultiLobeModel) -> None:
        """Once in a home: whoever deletes a demo lobe has done so for good."""
        mark = self._home / "demo_installed.json"
        if self._demo and model.backbone.name == BUILTIN and not mark.exists() and demo_bundle().is_dir():
            model.load_bundle(demo_bundle())
            write_json(mark, {"installed": True})

    def _say(self, state: Literal["loading", "ready", "failed"], message: str) -> None:
        with self.lock:
            self.state, self.message = state, message
            self.changes += 1


def _remembered_base(home: Path) -> str | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(read_json(home / "settings.json")["base"])
    return None


def _spoken(base: str) -> str:
    if base == BUILTIN:
        return "the built-in base model"
    return f"the base model {base}"


@contextmanager
def _demo_without(names: set[str]) -> Iterator[Path | None]:
    """A copy of the demo bundle without the lobes of these (casefolded) names; None if none is left."""
    with tempfile.TemporaryDirectory(prefix="multilobe-demo-") as scratch:
        copy = Path(scratch) / "bundle"
        shutil.copytree(demo_bundle(), copy)
        manifest = read_json(copy / "bundle.json")
        manifest["lobes"] = [entry for entry in manifest["lobes"] if entry["name"].casefold() not in names]
        if not manifest["lobes"]:
            yield None
            return
        kept = {entry["folder"] for entry in manifest["lobes"]}
        for folder in (copy / "lobes").iterdir():
            if folder.name not in kept:
                shutil.rmtree(folder)
        write_json(copy / "bundle.json", manifest)
        yield copy
