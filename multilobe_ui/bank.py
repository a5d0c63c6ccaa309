"""The lobe bank: many LoRAs on one frozen base model, run under any weights.

    y = W x + sum over lobes l of  w_l * B_l A_l x * scaling_l

Weights travel with the call, in a context variable that each linear layer reads; nothing of the model is switched. So requests
on different lobes can run at the same time from different threads without a lock, and without weights the layers are the
plain base, bit for bit. The bank knows adapters and weights; it does not know why somebody chose them.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from .adapter import WEIGHTS_FILE, AdapterHeader, check_fits, linear_features, read_header, read_matrices
from .backbone import Backbone
from .errors import AdapterError, LobeError
from .files import sha256_of
from .lean_base import call_directly, fuse_norms
from .packed_linear import PackedLinear, product

Matrices = Mapping[str, tuple[Tensor, Tensor]]
T = TypeVar("T")
PLANS_KEPT = 16
STRETCHED_AT_ONCE = 64
"""Most tokens whose weights per layer are stretched over the ranks of all layers at once: quick while decoding, but of a long
prompt it would take more memory than the layers' own activations."""
MANY_TOKENS = 8
"""Tokens a row from which it pays to gather each row's own matrices."""


@dataclass(frozen=True)
class Mix:
    """Weights over lobes for one forward call.

    Attributes:
        lobes: ids of the lobes, one for each place in the last dimension of `weights`.
        weights: (lobes,) the same for every token; (batch, lobes) for each row; (batch, tokens, lobes) for each token;
            (batch, tokens, layers, lobes) for each token and adapted linear layer, in the base's module order.
    """

    lobes: tuple[str, ...]
    weights: Tensor
    last_call: _Call | None = field(default=None, init=False, repr=False, compare=False)
    """What the bank worked out for a token: the next ones of the same chats need the same."""

    def __post_init__(self) -> None:
        if self.weights.ndim not in (1, 2, 3, 4) or self.weights.shape[-1] != len(self.lobes):
            raise ValueError(f"weights have shape {tuple(self.weights.shape)} for {len(self.lobes)} lobes")

    @classmethod
    def of(cls, weights: Mapping[str, float]) -> Mix:
        """One weight a lobe, for the whole batch: {} is the base."""
        return cls(tuple(weights), torch.tensor(list(weights.values()), dtype=torch.float32))

    @classmethod
    def rows(cls, rows: Sequence[Mapping[str, float]]) -> Mix:
        """One set of weights for each row of the batch."""
        lobes = tuple(dict.fromkeys(lobe for row in rows for lobe in row))
        values = [[row.get(lobe, 0.0) for lobe in lobes] for row in rows]
        return cls(lobes, torch.tensor(values, dtype=torch.float32).reshape(len(rows), len(lobes)))

    def active(self) -> Mix:
        """Without the lobes that have no weight anywhere: their delta is not computed at all."""
        return self._active

    @cached_property
    def _active(self) -> Mix:
        """Found once: a chat runs under the same mix for all its tokens."""
        if self.weights.requires_grad or not self.lobes:
            return self
        used = (self.weights != 0).reshape(-1, len(self.lobes)).any(0).tolist()
        if all(used) or (self.weights.ndim == 4 and any(used)):  # a lobe fewer could be a layer fewer: they are counted
            return self
        keep = [i for i, is_used in enumerate(used) if is_used]
        return Mix(tuple(self.lobes[i] for i in keep), self.weights[..., keep])

    @cached_property
    def groups(self) -> _Groups | None:
        """The rows by their lobes, where each has one at most; found once."""
        return _Groups.of(self.weights)


@dataclass(frozen=True)
class _Groups:
    """Rows of one lobe each, put together by lobe: a product of each lobe with its own rows, not of every lobe with every row.

    Attributes:
        size: rows that a lobe has room for.
        order: (lobes * size,) the row at each place, where there is nobody any row; None if the rows lie so already.
        places: (batch,) where each row is; None likewise.
        weights: (lobes, size, 1); None if all are one.
    """

    size: int
    order: Tensor | None
    places: Tensor | None
    weights: Tensor | None

    @classmethod
    def of(cls, weights: Tensor) -> _Groups | None:
        """From (batch, lobes); None where a row has several lobes, or to gather the rows would cost more than it saves."""
        several = weights.ndim == 2 and min(weights.shape) > 1 and not weights.requires_grad
        if not several or bool(((weights != 0).sum(1) > 1).any()):
            return None
        batch, lobes = weights.shape
        lobe, rows = weights.abs().argmax(1), torch.arange(batch)
        counts = lobe.bincount(minlength=lobes)
        size = int(counts.max())
        by_lobe = lobe.argsort(stable=True)
        places = torch.empty_like(lobe)
        places[by_lobe] = rows + (torch.arange(lobes) * size - counts.cumsum(0) + counts)[lobe[by_lobe]]
        in_order = lobes * size == batch and torch.equal(places, rows)
        if not in_order and (lobes < 4 or lobes * size > 2 * batch):
            return None
        order, own = torch.zeros(lobes * size, dtype=torch.long), torch.zeros(lobes * size)
        order[places], own[places] = rows, weights.sum(1)
        all_one = bool((weights.sum(1) == 1).all())
        own_weights = None if all_one else own.view(lobes, size, 1)
        return cls(size, None, None, own_weights) if in_order else cls(size, order, places, own_weights)

    def add(self, stack: _Stack, rows: Tensor, output: Tensor) -> None:
        """Add each row's delta of rows (batch, in) to output (batch, out), in place."""
        a, b = stack.rows
        gathered = rows if self.order is None else rows.index_select(0, self.order)
        hidden = torch.bmm(gathered.view(len(a), self.size, -1), a)
        if self.weights is not None:
            hidden.mul_(self.weights)
        if self.places is None:
            output.view(len(a), self.size, -1).baddbmm_(hidden, b)
        else:
            output.add_(torch.bmm(hidden, b).view(-1, output.shape[1]).index_select(0, self.places))


@dataclass(frozen=True)
class LayerMix:
    """Weights over lobes that each linear layer works out from its own input, while the call runs (Arrow).

    Attributes:
        lobes: ids of the lobes, one for each place in the last dimension of the weights.
        weigh: (module name, its input (batch, tokens, in)) → weights (batch, tokens, lobes). It is asked by adapted layers only.
    """

    lobes: tuple[str, ...]
    weigh: Callable[[str, Tensor], Tensor]

    def active(self) -> LayerMix:
        return self


class LobeBank:
    """LoRA adapters over one backbone; any number registered, those in use in memory.

    Args:
        backbone: the frozen base; the bank serves a twin of it.
        budget_bytes: adapters beyond this leave memory, least recently used first (they are read again when needed), but for
            pinned ones and those that a call is running with; None keeps all. It may be changed at any time.

    Attributes:
        damaged: why lobes had to leave, by their ids: their weights turned out to be no good when they were first read.
    """

    def __init__(self, backbone: Backbone, budget_bytes: int | None = None) -> None:
        self.backbone = backbone
        self.model = backbone.twin()
        fuse_norms(self.model)
        self.features = linear_features(self.model)
        self.damaged: dict[str, str] = {}
        self._budget = budget_bytes
        self._headers: dict[str, AdapterHeader] = {}
        self._promised: dict[str, str] = {}  # sha256 of weights that nobody has read yet
        self._resident: OrderedDict[str, Matrices] = OrderedDict()
        self._sizes: dict[str, int] = {}  # bytes of those in memory
        self._pinned: set[str] = set()
        self._held: Counter[str] = Counter()  # calls that run with a lobe
        self._plans: OrderedDict[tuple[str, ...], _Plan] = OrderedDict()
        self._derived: dict[str, dict[str, Any]] = {}
        self._lock = threading.RLock()
        self._call: ContextVar[_Call | None] = ContextVar("lobe_bank_call", default=None)
        for name in self.features:
            self._listen(self.model.get_submodule(name), name)
        call_directly(self.model)

    # ---- registry ---------------------------------------------------------------------------------------------------------

    def register(self, lobe: str, path: Path, sha256: str = "") -> AdapterHeader:
        """Make an adapter folder available under an id. Its matrices are read at first use, and judged then.

        Args:
            sha256: what its weights file must have; "" takes the file as it is.

        Raises:
            AdapterError: it cannot be run exactly on this base (see `adapter.read_header`, `adapter.check_fits`).
        """
        header = read_header(Path(path))
        check_fits(header, self.features, self.backbone.name)
        with self._lock:
            self.unregister(lobe)
            self._headers[lobe] = header
            if sha256:
                self._promised[lobe] = sha256
        return header

    def unregister(self, lobe: str) -> None:
        """Forget an adapter and give its memory back; calls that already run with it finish undisturbed."""
        with self._lock:
            for known in (self._headers, self._promised, self._derived, self.damaged):
                known.pop(lobe, None)
            self._pinned.discard(lobe)
            self._drop(lobe)

    def run_live(self, lobes: Sequence[Matrices], weights: Tensor, **inputs: Any) -> Any:
        """`run` with lobes that are being trained: gradients reach their matrices and the weights. Nothing of them is kept, so
        those who chat through the same bank do not notice.

        Args:
            lobes: a lobe's (A (r, in), B (out, r) with the scaling folded in) by module, on the base's device.
            weights: in one of the shapes of `Mix`, a place in the last dimension for each lobe.
        """
        inputs = self.backbone.accepted(inputs)
        plan = _Plan(lobes, tuple(self.features))
        how, shape = weights.to(self.backbone.device), inputs["input_ids"].shape[:2]
        token = self._call.set(_Call(plan, how, shape, inputs.get("logits_to_keep", 0)))
        try:
            return self.model(**inputs)
        finally:
            self._call.reset(token)

    def __contains__(self, lobe: object) -> bool:
        return lobe in self._headers

    @property
    def lobes(self) -> tuple[str, ...]:
        return tuple(self._headers)

    @property
    def resident(self) -> tuple[str, ...]:
        """Ids of the lobes whose matrices are in memory, least recently used first."""
        return tuple(self._resident)

    @property
    def resident_bytes(self) -> int:
        """Memory of all adapter matrices: the lobes' own and the stacks that recent mixtures made of them."""
        with self._lock:
            return sum(self._sizes.values()) + sum(plan.extra_bytes for plan in self._plans.values())

    @property
    def budget_bytes(self) -> int | None:
        return self._budget

    @budget_bytes.setter
    def budget_bytes(self, most: int | None) -> None:
        with self._lock:
            self._budget = most
            self._keep_within_budget(())

    @property
    def pinned(self) -> frozenset[str]:
        """Ids of the lobes that stay in memory whatever the budget."""
        return frozenset(self._pinned)

    def pin(self, lobe: str) -> None:
        """Read a lobe in now, and keep it in memory until it is unpinned or unregistered.

        Raises:
            LobeError: no such lobe. AdapterError: its files have gone or are damaged.
        """
        with self._lock:
            self._in_memory(lobe, (lobe,))
            self._pinned.add(lobe)

    def unpin(self, lobe: str) -> None:
        with self._lock:
            self._pinned.discard(lobe)
            self._keep_within_budget(())

    @contextmanager
    def hold(self, lobes: Sequence[str]) -> Iterator[None]:
        """Keep these lobes in memory, once they are, till the block ends, whatever the budget. Every call holds its own."""
        with self._lock:
            self._held.update(lobes)
        try:
            yield
        finally:
            with self._lock:
                self._held.subtract(lobes)
                for lobe in lobes:
                    if not self._held[lobe]:
                        del self._held[lobe]

    def matrices(self, lobe: str) -> Matrices:
        """Per module (A, B) on the base's device, B with the scaling folded in; read from disk if not resident.

        Raises:
            LobeError: no such lobe. AdapterError: its files have gone or are damaged.
        """
        with self._lock:
            return self._in_memory(lobe, (lobe,))

    def layers(self, lobes: Iterable[str]) -> tuple[str, ...]:
        """Names of the linear layers that these lobes adapt, in the base's module order: the layers of 4-D weights.

        Raises:
            LobeError: no such lobe.
        """
        with self._lock:
            touched = {module for lobe in lobes for module in self._header(lobe).shapes}
        return tuple(module for module in self.features if module in touched)

    def derived(self, lobe: str, kind: str, make: Callable[[Matrices], T]) -> T:
        """What `make` works out of a lobe's matrices, under the name `kind`; kept until the lobe is unregistered or replaced. They
        are read if `make` looks into them.

        Raises:
            LobeError: no such lobe. AdapterError: its files have gone or are damaged.
        """
        with self._lock:
            self._header(lobe)
            kept = self._derived.setdefault(lobe, {})
            if kind not in kept:
                with torch.inference_mode(False):
                    kept[kind] = make(_WhenLookedInto(lambda: self.matrices(lobe)))
            return cast(T, kept[kind])

    # ---- running ----------------------------------------------------------------------------------------------------------

    def run(self, mix: Mix | LayerMix | None, **inputs: Any) -> Any:
        """The base's forward under `mix`; None or no weights is the base itself. Arguments and result are transformers'.

        Arguments that this architecture's forward does not have (position_ids, logits_to_keep) are left out.
        """
        inputs = self.backbone.accepted(inputs)
        active = mix.active() if mix is not None else None
        if active is None or not active.lobes:
            return self.model(**inputs)
        rows_tokens = next(
            inputs[key].shape[:2] for key in ("input_ids", "inputs_embeds") if inputs.get(key) is not None
        )
        with self.hold(active.lobes):
            token = self._call.set(self._call_under(active, rows_tokens, inputs.get("logits_to_keep", 0)))
            try:
                return self.model(**inputs)
            finally:
                self._call.reset(token)

    def _call_under(self, mix: Mix | LayerMix, rows_tokens: Sequence[int], logits_to_keep: int | Tensor) -> _Call:
        plan = self._plan(mix.lobes)
        if isinstance(mix, LayerMix):
            return _Call(plan, mix.weigh, rows_tokens, logits_to_keep)
        kept = mix.last_call
        if kept is not None and kept.is_like(plan, rows_tokens, logits_to_keep):
            return kept
        call = _Call(plan, mix.weights.to(self.backbone.device), rows_tokens, logits_to_keep)
        if call.is_quick:
            vars(mix)["last_call"] = call
            if self.backbone.device.type == "cpu":
                call.groups = mix.groups
        return call

    def _listen(self, module: nn.Module, name: str) -> None:
        """Let one linear layer add the delta of the call that is running; without one it is the layer it was.

        Every linear layer gets this once, at the start: hooks that came and went with the lobes would change under the
        feet of calls in other threads.
        """
        base_forward: Callable[..., Tensor] = module.forward
        weight: Any = getattr(module, "weight", None)
        plain = type(module) in (nn.Linear, PackedLinear)
        if plain:  # the same products, without a Python frame and look-ups for every layer and token
            base_forward = _product_of(cast(nn.Linear, module))
        current, mm = self._call, torch.mm

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            call = current.get()
            stack = None if call is None else call.stacks.get(name)
            if call is None or stack is None:
                return base_forward(x, *args, **kwargs)
            quick = call.is_quick and (x.ndim == 3 or not call.by_place)
            if quick and plain and x.dtype is weight.dtype is stack.dtype:
                # every token of every chat: three products, of which the last adds in place, and next to nothing else
                output, rows = base_forward(x), x.reshape(-1, stack.n_in)
                flat = output.view(-1, stack.n_out)
                if call.is_one:
                    flat.addmm_(mm(rows, stack.a), stack.b)
                elif call.groups is not None:
                    call.groups.add(stack, rows, flat)
                else:
                    hidden, scale = mm(rows, stack.a), call.flat_scale(stack)
                    flat.addmm_(hidden if scale is None else hidden.mul_(scale), stack.b)
                return output
            return call.add_delta(name, stack, x, base_forward(x, *args, **kwargs))

        module.forward = forward  # type: ignore[method-assign]

    def _plan(self, lobes: tuple[str, ...]) -> _Plan:
        with self._lock:
            matrices = [self._in_memory(lobe, lobes) for lobe in lobes]
            if lobes in self._plans:
                self._plans.move_to_end(lobes)
                return self._plans[lobes]
            with torch.inference_mode(False):
                plan = _Plan(matrices, tuple(self.features))
            self._plans[lobes] = plan
            self._keep_within_budget(lobes)
            return plan

    def _header(self, lobe: str) -> AdapterHeader:
        if lobe in self.damaged:
            raise AdapterError(self.damaged[lobe])
        if lobe not in self._headers:
            raise LobeError(f"The bank has no lobe {lobe!r}; it has been deleted or was never loaded.")
        return self._headers[lobe]

    def _in_memory(self, lobe: str, in_use: tuple[str, ...]) -> Matrices:
        if lobe not in self._resident:
            header = self._header(lobe)
            device = self.backbone.device
            with torch.inference_mode(False):  # what chat reads first must serve training through the bank as well
                read = self._read(lobe, header)
                matrices = {m: (_turned(a.to(device)), _turned(b.to(device))) for m, (a, b) in read.items()}
            self._resident[lobe] = matrices
            self._sizes[lobe] = _nbytes(matrices)
            self._keep_within_budget(in_use)
        self._resident.move_to_end(lobe)
        return self._resident[lobe]

    def _read(self, lobe: str, header: AdapterHeader) -> Matrices:
        """A lobe's matrices from its file. One that is no good is a lobe no more: the others go on without it."""
        try:
            promised = self._promised.get(lobe)
            if promised and sha256_of(header.path / WEIGHTS_FILE) != promised:
                raise AdapterError(
                    f"{header.path.name}: {WEIGHTS_FILE} is not what was saved (its sha256 differs). Load its bundle again."
                )
            matrices = read_matrices(header)
        except (AdapterError, OSError) as error:
            message = f"{header.path.name}: the adapter's weights cannot be read any more ({error})."
            message = str(error) if isinstance(error, AdapterError) else message
            self.unregister(lobe)
            self.damaged[lobe] = message
            raise AdapterError(message) from error
        self._promised.pop(lobe, None)  # it need not be proved again whenever the lobe comes back into memory
        return matrices

    def _keep_within_budget(self, in_use: tuple[str, ...]) -> None:
        """Lobes in use stay, whatever they take: else every token of a large mixture would read them again."""
        while len(self._plans) > PLANS_KEPT:
            self._plans.popitem(last=False)
        if self._budget is None:
            return
        excess = self.resident_bytes - self._budget
        # stacks leave first: they are made of what is in memory, lobes must be read from the disk
        for lobes in [lobes for lobes, plan in self._plans.items() if plan.extra_bytes]:
            if excess > 0 and lobes != in_use and not all(lobe in self._held for lobe in lobes):
                excess -= self._plans.pop(lobes).extra_bytes
        for lobe in list(self._resident):
            if excess <= 0:
                return
            if lobe not in in_use and lobe not in self._held and lobe not in self._pinned:
                excess -= self._drop(lobe)

    def _drop(self, lobe: str) -> int:
        """Let a lobe's matrices and all stacks with it go; the bytes that were theirs."""
        freed = self._sizes.pop(lobe, 0)
        self._resident.pop(lobe, None)
        for lobes in [key for key in self._plans if lobe in key]:
            freed += self._plans.pop(lobes).extra_bytes
        return freed


def _product_of(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    """What a linear layer computes, with what it is made of at hand. It must stay as it is."""
    weight, bias, packed = layer.weight, layer.bias, getattr(layer, "packed", None)
    plain = partial(nn.functional.linear, weight=weight, bias=bias)
    if packed is None:
        return plain

    def without_gradient(x: Tensor) -> Tensor:
        if x.requires_grad or x.dtype is not torch.float32:
            return plain(x)
        return product(x, packed, bias)

    return without_gradient


class _WhenLookedInto(Mapping[str, tuple[Tensor, Tensor]]):
    """Matrices that are not read before somebody wants one."""

    def __init__(self, read: Callable[[], Matrices]) -> None:
        self._read = read

    def __getitem__(self, module: str) -> tuple[Tensor, Tensor]:
        return self._read()[module]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())


class _Stack:
    """The active lobes' matrices of one linear layer, in the two layouts that calls need.

    wide:  a (in, R), b (R, out): all ranks side by side, `ranks` says whose each is.
    rows:  a (lobes, in, r), b (lobes, r, out): ranks padded to the largest, for batches in which each row has one lobe.
    """

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor] | None], index: int) -> None:
        self.index = index
        self._pairs = pairs
        self._present = [pair for pair in pairs if pair is not None]
        self.ranks = tuple((i, pair[0].shape[0]) for i, pair in enumerate(pairs) if pair is not None)
        a, b = self._present[0]
        self.n_in, self.n_out, self.dtype = a.shape[1], b.shape[0], a.dtype

    @property
    def extra_bytes(self) -> int:
        """Of what is made here, of which one layout at least will be needed; a lobe alone is used as it is."""
        if len(self._present) == 1:
            return _tensor_bytes(*vars(self).get("rows", ()))
        made = vars(self)
        wide = [made[key] for key in ("a", "b") if key in made]
        return max(_tensor_bytes(*wide, *made.get("rows", ())), sum(_tensor_bytes(*pair) for pair in self._present))

    @cached_property
    @torch.inference_mode(False)
    def a(self) -> Tensor:
        matrices = [a.t() for a, _ in self._present]
        return matrices[0] if len(matrices) == 1 else torch.cat(matrices, 1)

    @cached_property
    @torch.inference_mode(False)
    def b(self) -> Tensor:
        matrices = [b.t() for _, b in self._present]
        return matrices[0] if len(matrices) == 1 else torch.cat(matrices)

    @cached_property
    @torch.inference_mode(False)
    def rows(self) -> tuple[Tensor, Tensor]:
        r, lobes, like = max(rank for _, rank in self.ranks), len(self._pairs), self._present[0][0]
        a, b = like.new_zeros(lobes, self.n_in, r), like.new_zeros(lobes, r, self.n_out)
        for i, pair in enumerate(self._pairs):
            if pair is not None:
                rank = pair[0].shape[0]
                a[i, :, :rank] = pair[0].t()
                b[i, :rank] = pair[1].t()
        return a, b


class _Plan:
    """What a set of lobes needs in every layer; made once for the set and kept while it is in use."""

    def __init__(self, lobes: Sequence[Matrices], module_order: Iterable[str]) -> None:
        touched = [m for m in module_order if any(m in matrices for matrices in lobes)]
        self.stacks = {m: _Stack([matrices.get(m) for matrices in lobes], i) for i, m in enumerate(touched)}

    @property
    def extra_bytes(self) -> int:
        return sum(stack.extra_bytes for stack in self.stacks.values())


class _Call:
    """One forward call under weights: adds each layer's delta, and works out each weight layout only once.

    Args:
        how: weights in one of the shapes of `Mix`, or what a `LayerMix` asks each layer.
    """

    def __init__(
        self,
        plan: _Plan,
        how: Tensor | Callable[[str, Tensor], Tensor],
        rows_tokens: Sequence[int],
        logits_to_keep: int | Tensor,
    ) -> None:
        self._plan, self.stacks = plan, plan.stacks
        self._weigh = None if isinstance(how, Tensor) else how
        self._rows_tokens = tuple(rows_tokens)
        self._logits_to_keep = logits_to_keep
        self._kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        self._scales: dict[Any, Tensor | None] = {}
        self._layer_scales: dict[Any, Sequence[Tensor]] = {}
        self._columns: dict[tuple[tuple[int, int], ...], Tensor] = {}
        self._row_lobe: Tensor | None = None
        self.groups: _Groups | None = None
        """For a quick call: its rows by their lobes, where that pays."""
        # weights that differ by row or token need to see the rows and tokens apart
        self.by_place = self._weigh is not None or how.ndim > 1  # type: ignore[union-attr]
        self.is_quick = False
        """Tokens in one long row can be multiplied by `flat_scale`: one token a row, or the same weights for all."""
        self.is_one = False
        """A quick call under one lobe with weight one."""
        if isinstance(how, Tensor):
            self.weights = how[:, 0] if how.ndim == 3 and self._rows_tokens[1] == 1 else how
            self._look_for_rows(how)
            self.is_quick = not how.requires_grad and (how.ndim == 1 or self._rows_tokens[1] == 1)
            self.is_one = self.is_quick and how.shape == (1,) and float(how) == 1

    def is_like(self, plan: _Plan, rows_tokens: Sequence[int], logits_to_keep: int | Tensor) -> bool:
        """Whether another call under the same weights needs what this one did."""
        same_tokens = self._rows_tokens == tuple(rows_tokens) and self._logits_to_keep is logits_to_keep
        return same_tokens and self._plan is plan

    def _look_for_rows(self, weights: Tensor) -> None:
        """Where each row has one lobe, its r columns are enough, not all lobes' lobes * r. But then each row's matrices must be
        gathered, and for a token or two that costs more than it saves."""
        if weights.ndim != 2 or weights.shape[1] < 2 or weights.requires_grad:
            return
        if self._rows_tokens[1] >= MANY_TOKENS and bool(((weights != 0).sum(1) <= 1).all()):
            self._row_lobe = weights.abs().argmax(1)
            self._row_weight = weights.gather(1, self._row_lobe[:, None])[:, :, None]
            self._row_is_place = torch.equal(self._row_lobe.cpu(), torch.arange(weights.shape[1]))

    def add_delta(self, name: str, stack: _Stack, x: Tensor, output: Tensor) -> Tensor:
        """The layer's output (..., out) with its delta of x (..., in): changed in place where that is possible."""
        if x.ndim == 2 and self.by_place:  # some layers see the tokens of all rows in one long row
            if len(x) != math.prod(self._rows_tokens):
                raise AdapterError(
                    f"{name} sees only some tokens (an expert?), so its LoRA cannot be weighted by row or token."
                )
            x, wide = (t.view(*self._rows_tokens, -1) for t in (x, output))
            return self.add_delta(name, stack, x, wide).view(output.shape)
        if self._row_lobe is not None:
            return self._add_by_row(stack, x, output)
        dtype = stack.dtype
        hidden = torch.mm(x.reshape(-1, stack.n_in).to(dtype), stack.a)
        scale = self._scale(name, stack, x)
        if scale is not None:
            hidden = hidden * scale if scale.ndim < 3 else (hidden.view(*x.shape[:-1], -1) * scale).view(hidden.shape)
        if output.dtype is dtype and output.is_contiguous():  # without a temporary of its size
            output.view(-1, stack.n_out).addmm_(hidden, stack.b)
            return output
        return (output.to(dtype) + torch.mm(hidden, stack.b).view(output.shape)).to(output.dtype)

    def _add_by_row(self, stack: _Stack, x: Tensor, output: Tensor) -> Tensor:
        a, b = stack.rows
        if not self._row_is_place:
            a, b = a[self._row_lobe], b[self._row_lobe]
        hidden = torch.bmm(x.to(a.dtype), a) * self._row_weight
        return torch.baddbmm(output.to(b.dtype), hidden, b).to(output.dtype)

    def _scale(self, name: str, stack: _Stack, x: Tensor) -> Tensor | None:
        """Weights stretched over the ranks, broadcastable to (batch, tokens, R), or in two dimensions to (batch * tokens, R); None
        where all are one."""
        if self._weigh is not None:  # from this layer's own input, so it has the tokens that this layer has
            return self._over_ranks(stack, self._weigh(name, x))
        if self.weights.ndim < 4:
            scale = self._stretched(stack)
        elif math.prod(self.weights.shape[:2]) > STRETCHED_AT_ONCE:
            scale = self._over_ranks(stack, self.weights[:, :, stack.index])
        else:
            scale = self._stretched_by_layer(stack)[stack.index]
        if scale is not None and scale.ndim == 3 and scale.shape[1] not in (1, x.shape[1]):
            scale = scale[:, self._kept]  # an output head that runs on some tokens only
        return scale

    def flat_scale(self, stack: _Stack) -> Tensor | None:
        """Weights over the ranks, (R,) or (batch, R), of a quick call; None where all are one."""
        return self._stretched_by_layer(stack)[stack.index] if self.weights.ndim == 4 else self._stretched(stack)

    def _stretched(self, stack: _Stack) -> Tensor | None:
        if stack.ranks not in self._scales:
            scale = self._over_ranks(stack, self.weights)
            scale = scale[:, None, :] if scale.ndim == 2 and self._rows_tokens[1] > 1 else scale
            is_one = not scale.requires_grad and scale.ndim == 1 and bool((scale == 1).all())
            self._scales[stack.ranks] = None if is_one else scale
        return self._scales[stack.ranks]

    def _stretched_by_layer(self, stack: _Stack) -> Sequence[Tensor]:
        """For each layer (batch, tokens, R), or (batch, R) while decoding: stretched for all layers in one go."""
        if stack.ranks not in self._layer_scales:
            scale = self._over_ranks(stack, self.weights)
            self._layer_scales[stack.ranks] = (scale[:, 0] if scale.shape[1] == 1 else scale).unbind(-2)
        return self._layer_scales[stack.ranks]

    def _over_ranks(self, stack: _Stack, weights: Tensor) -> Tensor:
        """(..., lobes) → (..., R): every rank has the weight of its lobe."""
        if stack.ranks not in self._columns:
            columns = [i for i, rank in stack.ranks for _ in range(rank)]
            self._columns[stack.ranks] = torch.tensor(columns, device=weights.device)
        return weights.index_select(-1, self._columns[stack.ranks]).to(stack.dtype)


def _turned(matrix: Tensor) -> Tensor:
    """The same matrix, column after column in memory: what a lobe adds to a token's time is about a fifth less so."""
    return matrix.t().contiguous().t()


def _nbytes(matrices: Matrices) -> int:
    return sum(_tensor_bytes(a, b) for a, b in matrices.values())


def _tensor_bytes(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
