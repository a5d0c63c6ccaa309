"""Between a request and the studio: whose request it is, whether its values make sense, how errors are said.

Gradio's private endpoints are only hidden: anyone can POST anything to them. So every handler
checks its values here, and every handler is wrapped in `friendly`, so that a person reads a
sentence and never a traceback.
"""

from __future__ import annotations

import hashlib
import html
import inspect
import logging
import math
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import gradio as gr
from gradio.context import Context
from gradio.utils import get_upload_folder

from ...errors import ConfigError, JobError, MultiLobeError
from ...settings import TrainingConfig, kind_of
from . import text

if TYPE_CHECKING:
    from ...app.desk import Desk
    from ...app.studio import Studio

log = logging.getLogger(__name__)

Handler = TypeVar("Handler", bound=Callable[..., Any])

LONGEST_TOKEN = 200
SHORTEST_TOKEN = 16
MOST_NAMES = 1000
MOST_STAGES = 12
_FILE_MARK = {"_type": "gradio.FileData"}
KEEPS = ("last", "best")
_LARGEST = 2**31 - 1


# ---- whose request ---------------------------------------------------------------------------------------------------


def new_token() -> str:
    """A visitor's secret: nobody guesses it, so nobody stops somebody else's job."""
    return secrets.token_urlsafe(24)


def owner_of(request: gr.Request | None, token: object = None) -> str:
    """Who asks: the login name if there is one, else the token, else "" (one person uses this machine).

    Names and tokens get different prefixes, so that no token can pose as a name. Of a token only
    the hash goes on, because owners are written to disk beside jobs and lobes. Without sharing the
    studio ignores all this.
    """
    name = getattr(request, "username", None)
    if name:
        return f"user:{name}"
    if isinstance(token, str) and SHORTEST_TOKEN <= len(token) <= LONGEST_TOKEN:
        return f"token:{hashlib.sha256(token.encode()).hexdigest()[:32]}"
    return ""


def desk(studio: Studio, request: gr.Request | None, token: object = None) -> Desk:
    """The desk of whoever looks."""
    return studio.desk(owner_of(request, token))


def acting_desk(studio: Studio, request: gr.Request | None, token: object = None) -> Desk:
    """The desk of somebody who changes something: in shared use it must be known who.

    Raises:
        JobError: shared use, no login, no token; else all nameless visitors would own each other's jobs.
    """
    owner = owner_of(request, token)
    if studio.shared and not owner:
        raise JobError(
            "This server is shared, so it must know whose jobs are whose. In the browser: reload the page. "
            f"Over the API: pass token, any secret text of {SHORTEST_TOKEN} characters or more."
        )
    return studio.desk(owner)


def visitor() -> gr.BrowserState:
    """The page's visitor token, kept in the browser; the same component however many tabs ask for it.

    It is put at the root of the page: inside a tab that is not open Gradio would not mount it, and
    it would stay empty. `secret` is fixed because a random one would lose every visitor at a
    restart; it hides nothing from anybody.
    """
    root = Context.root_block
    if root is None:
        raise RuntimeError("visitor() is for use inside gr.Blocks.")
    known: gr.BrowserState | None = getattr(root, "multilobe_visitor", None)
    if known is None:
        inside, Context.block = Context.block, root
        try:
            known = gr.BrowserState("", storage_key="multilobe_visitor", secret="multilobe")
        finally:
            Context.block = inside
        root.load(  # type: ignore[attr-defined]
            keep_or_make_token, known, known, queue=False, show_progress="hidden", api_visibility="private"
        )
        root.multilobe_visitor = known  # type: ignore[attr-defined]
    return known


def keep_or_make_token(token: object) -> str:
    """The token the browser has, or a new one. (Not `setdefault`: the key is there, and empty, on
    the first visit.)"""
    return token if isinstance(token, str) and SHORTEST_TOKEN <= len(token) <= LONGEST_TOKEN else new_token()


# ---- errors as sentences ---------------------------------------------------------------------------------------------


@overload
def friendly(handler: Handler) -> Handler: ...
@overload
def friendly(*, quiet: bool = ..., markup: bool = ...) -> Callable[[Handler], Handler]: ...


def friendly(handler: Any = None, *, quiet: bool = False, markup: bool = True) -> Any:
    """Wrap a handler (function or generator): errors become toasts with the studio's own sentence,
    bugs a neutral one.

    Args:
        quiet: for ticks; whatever fails is logged and nothing on the page changes, for a toast a
            second helps nobody.
        markup: toasts are HTML, so the sentence (it has file and lobe names) is escaped; False for
            API clients, who read text.
    """
    if handler is None:
        return partial(_wrapped, quiet=quiet, markup=markup)
    return _wrapped(handler, quiet, markup)


def _wrapped(handler: Callable[..., Any], quiet: bool, markup: bool) -> Callable[..., Any]:
    if inspect.isgeneratorfunction(handler):

        @wraps(handler)
        def stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with _said_kindly(handler, markup):
                yield from handler(*args, **kwargs)

        return stream

    @wraps(handler)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            with _said_kindly(handler, markup):
                return handler(*args, **kwargs)
        except gr.Error:
            if not quiet:
                raise
            return gr.skip()

    return call


@contextmanager
def _said_kindly(handler: Callable[..., Any], markup: bool) -> Iterator[None]:
    try:
        yield
    except gr.Error:
        raise
    except MultiLobeError as error:
        text = str(error)
        if markup:
            text = html.escape(text, quote=False)
        raise gr.Error(text, print_exception=False) from error
    except Exception as error:
        code = secrets.token_hex(3)
        log.exception("%s failed [%s]", getattr(handler, "__qualname__", handler), code)
        text = f"Something went wrong on the server. Its log has the details under the code {code}."
        raise gr.Error(text, print_exception=False) from error


# ---- values ----------------------------------------------------------------------------------------------------------


def a_text(value: object, what: str, longest: int = 200, *, may_be_empty: bool = False) -> str:
    """Trimmed text. Raises ConfigError unless it is one, not too long, and not empty."""
    if not isinstance(value, str):
        raise ConfigError(f"{what} is {_short(value)}; it must be text.")
    text = value.strip()
    if not text and not may_be_empty:
        raise ConfigError(f"{what} is empty. Fill it in.")
    if len(text) > longest:
        raise ConfigError(f"{what} has {len(text):,} characters; {longest:,} is the most.")
    return text


def a_number(value: object, what: str, low: float = -math.inf, high: float = math.inf) -> float:
    """Raises ConfigError unless it is a finite number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{what} is {_short(value)}; it must be a number.")
    if not low <= value <= high:
        raise ConfigError(f"{what} is {value:g}; it must be from {low:g} to {high:g}.")
    return float(value)


def a_whole(value: object, what: str, low: int, high: int) -> int:
    """Raises ConfigError unless it is a whole number from `low` to `high`; 3.0 is one, since forms
    send numbers so."""
    number = a_number(value, what, low, high)
    if number != int(number):
        raise ConfigError(f"{what} is {number:g}; it must be a whole number.")
    return int(number)


def a_flag(value: object, what: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{what} is {_short(value)}; it must be true or false.")
    return value


def a_choice(value: object, what: str, allowed: Sequence[str]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(f"{what} is {_short(value)}; it must be one of {', '.join(allowed) or 'nothing yet'}.")
    return value


def some_names(value: object, what: str) -> list[str]:
    """A list of texts without repeats, in order. Raises ConfigError if it is something else."""
    if not isinstance(value, (list, tuple)) or len(value) > MOST_NAMES:
        raise ConfigError(f"{what} is {_short(value)}; it must be a list of at most {MOST_NAMES} names.")
    return list(dict.fromkeys(a_text(name, f"A name in {what}") for name in value))


def some_weights(names: object, values: Sequence[object], what: str, low: float, high: float) -> dict[str, float]:
    """A weight from `low` to `high` for every name. Raises ConfigError."""
    listed = zip(some_names(names, what), values, strict=False)
    return {name: a_number(value, f"The weight of {name}", low, high) for name, value in listed}


def an_upload(value: object, what: str = "The file") -> Path:
    """The path of an uploaded file, from a File component (a path) or an API client (a FileData dictionary).

    Gradio vouches only for dictionaries that carry its mark, and hands everything else through as
    it came. So the mark is asked for, and the path must lie in the upload folder: a client cannot
    name a file of the server.

    Raises:
        ConfigError: nothing was uploaded, or the path is not an upload.
    """
    if isinstance(value, Mapping):
        value = value.get("path") if value.get("meta") == _FILE_MARK else None
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{what} is missing. Upload one (Python clients: handle_file('…')).")
    try:
        path, uploads = Path(value).resolve(), Path(get_upload_folder()).resolve()
        uploaded = path.is_relative_to(uploads) and path.is_file()
    except (OSError, ValueError):
        uploaded = False
    if not uploaded:
        raise ConfigError(f"{what} is not among the uploads, or was cleared away meanwhile. Upload it again.")
    return path


def downloadable(path: Path) -> str:
    """The file where Gradio may serve it from, in a folder nobody guesses; Gradio clears it away
    with the uploads.

    The home folder is not in `allowed_paths`, and should not be: it holds everybody's lobes.
    """
    folder = Path(get_upload_folder()) / secrets.token_hex(16)
    folder.mkdir(parents=True)
    return str(shutil.copy2(path, folder / path.name))


def training_config(settings: object) -> TrainingConfig:
    """Settings from a form or an API client; empty ones (None, "") keep their default.

    Raises:
        ConfigError: an unknown setting, or a value of the wrong type or out of range.
    """
    if not isinstance(settings, Mapping):
        raise ConfigError(f"The settings are {_short(settings)}; they must be an object such as {{'epochs': 3}}.")
    known = {field.name for field in fields(TrainingConfig)}
    for key in settings:
        a_choice(key, "A setting", sorted(known))
    given = {key: value for key, value in settings.items() if value is not None and value != ""}
    return TrainingConfig(**{key: _setting(key, value) for key, value in given.items()})


def router_settings(defaults: Mapping[str, Any], given: object) -> dict[str, Any]:
    """Settings of a router's fit, each of the type of its default; empty ones (None, "") keep it
    and are left out.

    Raises:
        ConfigError: an unknown setting, or a value of another type.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"The settings are {_short(given)}; they must be an object such as {{'seed': 1}}.")
    for key in given:
        a_choice(key, "A setting", sorted(defaults))
    filled = {k: v for k, v in given.items() if v is not None and not (isinstance(v, str) and not v.strip())}
    return {key: _like(key, value, defaults[key]) for key, value in filled.items()}


def _like(key: str, value: object, default: object) -> Any:
    """The value, as its default is one."""
    kind: type[Any] = float
    if default is not None:
        kind = type(default)
    if kind not in (bool, str, int, float) and key != "target_modules":
        raise ConfigError(f"{key} cannot be set here.")
    return _of_kind(kind, key, value, may_be_written=True)


def stages(value: object) -> list[list[Any]]:
    """Stages of a chain: [[router, threshold], …]. Raises ConfigError unless each is a name and a
    number from 0 to 1."""
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= MOST_STAGES:
        raise ConfigError(f"The chain is {_short(value)}; it must have 1 to {MOST_STAGES} stages.")
    checked = []
    for stage in value:
        if not isinstance(stage, (list, tuple)) or len(stage) != 2:
            raise ConfigError(f"A stage is {_short(stage)}; it must be a router and its threshold.")
        router = a_text(stage[0], "The router of a stage", 60)
        checked.append([router, a_number(stage[1], f"The threshold of {stage[0]}", 0, 1)])
    return checked


def a_share(value: object) -> float | None:
    """The held-out share as the form has it, "" for automatic. Raises ConfigError unless it is a
    number from 0 to 0.5."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        value = _read_number(value)
    return a_number(value, "The held-out share", 0, 0.5)


def _setting(key: str, value: object) -> Any:
    """A setting of a training as a form or client has it; whether it is in range is checked with
    the settings."""
    kind, words, optional = kind_of(TrainingConfig, key)
    if words:
        return a_choice(value, key, words)
    return _of_kind(kind, key, value, may_be_written=optional)


def _of_kind(kind: type[Any], key: str, value: object, *, may_be_written: bool) -> Any:
    """The value of a setting of this type; a number `may_be_written` as text."""
    if key == "target_modules":
        return _module_names(value)
    if kind is bool:
        return a_flag(value, key)
    if kind is str:
        return a_text(value, key)
    if may_be_written and isinstance(value, str):
        value = _read_number(value)
    if kind is int:
        return a_whole(value, key, -_LARGEST, _LARGEST)
    return a_number(value, key)


def _read_number(text: str) -> object:
    """A number written as a person would ("2e-4", "0,0002"); what is none stays text, to be refused
    by name."""
    try:
        return float(text.strip().replace(",", "."))
    except ValueError:
        return text


def _module_names(value: object) -> tuple[str, ...] | None:
    """Names as a tuple, never one string: PEFT takes that as a regular expression, and a bad one
    runs for hours."""
    if isinstance(value, str):
        value = value.replace(",", " ").split()
    listed = some_names(value, "target_modules")
    if len(listed) > 64:
        raise ConfigError(f"target_modules has {len(listed)} names; 64 is the most.")
    return tuple(listed) or None


def event_value(event: Any, key: str, kind: type = str) -> Any:
    """A value that the page's own script sent with an event. Raises ConfigError if it is missing or
    of another type."""
    data = getattr(event, "_data", None)
    value = data.get(key) if isinstance(data, Mapping) else None
    if not isinstance(value, kind) or (isinstance(value, str) and len(value) > 1000):
        raise ConfigError(f"The page sent {_short(value)} as {key!r}. Reload the page.")
    return value


def _short(value: object) -> str:
    return text.short(repr(value), 60)
