"""The lobe bank: many LoRAs on one frozen base model, run under any weights.

    y = W x + sum over lobes l of  w_l * B_l A_l x * scaling_l

Weights travel with the call, in a context variable that each linear layer reads; nothing of the
model is switched. So requests on different lobes can run at the same time from different threads
without a lock, and without weights the layers are the plain base, bit for bit. The bank knows
adapters and weights; it does not know why somebody chose them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..base.backbone import Backbone
from ..base.fast import Report, for_serving
from ..base.fast.linear import product, product_at_hand
from ..errors import AdapterError, LobeError
from ..files import sha256_of
from .adapter import WEIGHTS_FILE, AdapterHeader, check_fits, linear_features, read_header, read_matrices
from .deltas import Matrices, Plan
from .layouts import Call, Inputs, call_of, call_under
from .memory import Memory
from .weights import LayerMix, Mix

T = TypeVar("T")


class LobeBank:
    """LoRA adapters over one backbone; any number registered, those in use in memory.

    Args:
        backbone: the frozen base; the bank serves a twin of it.
        budget_bytes: see `Memory`.

    Attributes:
        memory: the matrices of lobes in use, and what they may take.
        fast: what was made faster in its tree and in the base's weights.
        damaged: why lobes had to leave, by their ids: their weights turned out to be no good when
            they were first read.
    """

    def __init__(self, backbone: Backbone, budget_bytes: int | None = None) -> None:
        self.backbone = backbone
        self.model = backbone.twin()
        self.features = linear_features(self.model)
        self.damaged: dict[str, str] = {}
        self.memory = Memory(self._read, tuple(self.features), budget_bytes)
        self._headers: dict[str, AdapterHeader] = {}
        self._promised: dict[str, str] = {}  # sha256 of weights that nobody has read yet
        self._derived: dict[str, dict[str, Any]] = {}
        self._call: ContextVar[Call | None] = ContextVar("lobe_bank_call", default=None)
        for name in self.features:
            self._listen(self.model.get_submodule(name), name)
        self.fast: Report = backbone.fast + for_serving(self.model)

    # ---- registry ---------------------------------------------------------------------------------------------------------

    def register(self, lobe: str, path: Path, sha256: str = "") -> AdapterHeader:
        """Make an adapter folder available under an id. Its matrices are read at first use, and judged then.

        Args:
            sha256: what its weights file must have; "" takes the file as it is.

        Raises:
            AdapterError: it cannot be run exactly on this base (see `adapter.read_header`,
                `adapter.check_fits`).
        """
        header = read_header(Path(path))
        check_fits(header, self.features, self.backbone.name)
        with self.memory.lock:
            self.unregister(lobe)
            self._headers[lobe] = header
            if sha256:
                self._promised[lobe] = sha256
        return header

    def unregister(self, lobe: str) -> None:
        """Forget an adapter and give its memory back; calls that already run with it finish undisturbed."""
        with self.memory.lock:
            for known in (self._headers, self._promised, self._derived, self.damaged):
                known.pop(lobe, None)
            self.memory.forget(lobe)

    def run_live(self, lobes: Sequence[Matrices], weights: Tensor, **inputs: Any) -> Any:
        """`run` with lobes that are being trained: gradients reach their matrices and the weights.
        Nothing of them is kept, so those who chat through the same bank do not notice.

        Args:
            lobes: a lobe's (A (r, in), B (out, r) with the scaling folded in) by module, on the
                base's device.
            weights: in one of the shapes of `Mix`, a place in the last dimension for each lobe.
        """
        inputs = self.backbone.accepted(inputs)
        plan = Plan(lobes, tuple(self.features))
        token = self._call.set(call_of(plan, weights.to(self.backbone.device), Inputs.of(inputs)))
        try:
            return self.model(**inputs)
        finally:
            self._call.reset(token)

    def __contains__(self, lobe: object) -> bool:
        return lobe in self._headers

    @property
    def lobes(self) -> tuple[str, ...]:
        return tuple(self._headers)

    def layers(self, lobes: Iterable[str]) -> tuple[str, ...]:
        """Names of the linear layers that these lobes adapt, in the base's module order: the layers
        of 4-D weights.

        Raises:
            LobeError: no such lobe.
        """
        with self.memory.lock:
            touched = {module for lobe in lobes for module in self._header(lobe).shapes}
        return tuple(module for module in self.features if module in touched)

    def derived(self, lobe: str, kind: str, make: Callable[[Matrices], T]) -> T:
        """What `make` works out of a lobe's matrices, under the name `kind`; kept until the lobe is
        unregistered or replaced. They are read if `make` looks into them.

        Raises:
            LobeError: no such lobe. AdapterError: its files have gone or are damaged.
        """
        with self.memory.lock:
            self._header(lobe)
            kept = self._derived.setdefault(lobe, {})
            if kind not in kept:
                with torch.inference_mode(False):
                    kept[kind] = make(_WhenLookedInto(lambda: self.memory.matrices(lobe)))
            return cast(T, kept[kind])

    # ---- running ----------------------------------------------------------------------------------------------------------

    def run(self, mix: Mix | LayerMix | None, **inputs: Any) -> Any:
        """The base's forward under `mix`; None or no weights is the base itself. Arguments and
        result are transformers'.

        Arguments that this architecture's forward does not have (position_ids, logits_to_keep) are left out.
        """
        inputs = self.backbone.accepted(inputs)
        active = mix.active() if mix is not None else None
        if active is None or not active.lobes:
            return self.model(**inputs)
        with self.memory.hold(active.lobes):
            plan = self.memory.plan(active.lobes)
            token = self._call.set(call_under(plan, active, Inputs.of(inputs), self.backbone.device))
            try:
                return self.model(**inputs)
            finally:
                self._call.reset(token)

    def _listen(self, module: nn.Module, name: str) -> None:
        """Let one linear layer add the delta of the call that is running; without one it is the layer it was.

        Every linear layer gets this once, at the start: hooks that came and went with the lobes
        would change under the feet of calls in other threads.
        """
        at_hand = product_at_hand(module)
        base_forward: Callable[..., Tensor] = at_hand or module.forward
        weight: Any = getattr(module, "weight", None)
        packed, bias = getattr(module, "packed", None), getattr(module, "bias", None)
        quick = at_hand is not None and weight.dtype is torch.float32  # as the lobes are
        current, bmm = self._call, torch.bmm

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            call = current.get()
            if call is None:
                return base_forward(x, *args, **kwargs)
            if quick and x.ndim == 3 and (ready := call.products.get(name)) is not None:
                output = base_forward(x) if packed is None else product(x, packed, bias)
                if not call.is_grouped:
                    return call.add_in_groups(ready, x, output)
                a, b, scale = ready
                hidden = bmm(x, a)
                return output.baddbmm_(hidden if scale is None else hidden.mul_(scale), b)
            stack = call.stacks.get(name)
            if stack is None:
                return base_forward(x, *args, **kwargs)
            return call.add_delta(name, stack, x, base_forward(x, *args, **kwargs))

        module.forward = forward  # type: ignore[method-assign]

    def _header(self, lobe: str) -> AdapterHeader:
        if lobe in self.damaged:
            raise AdapterError(self.damaged[lobe])
        if lobe not in self._headers:
            raise LobeError(f"The bank has no lobe {lobe!r}; it has been deleted or was never loaded.")
        return self._headers[lobe]

    def _read(self, lobe: str) -> Matrices:
        """A lobe's matrices from its file. One that is no good is a lobe no more: the others go on
        without it."""
        header, device = self._header(lobe), self.backbone.device
        try:
            promised = self._promised.get(lobe)
            if promised and sha256_of(header.path / WEIGHTS_FILE) != promised:
                raise AdapterError(
                    f"{header.path.name}: {WEIGHTS_FILE} is not what was saved (its sha256 differs). Load its bundle again."
                )
            matrices = read_matrices(header)
        except (AdapterError, OSError) as error:
            message = str(error)
            if not isinstance(error, AdapterError):
                message = f"{header.path.name}: the adapter's weights cannot be read any more ({error})."
            self.unregister(lobe)
            self.damaged[lobe] = message
            raise AdapterError(message) from error
        self._promised.pop(lobe, None)  # it need not be proved again whenever the lobe comes back into memory
        return {name: (_turned(a.to(device)), _turned(b.to(device))) for name, (a, b) in matrices.items()}


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


def _turned(matrix: Tensor) -> Tensor:
    """The same matrix, column after column in memory: what a lobe adds to a token's time is about a
    fifth less so."""
    return matrix.t().contiguous().t()
