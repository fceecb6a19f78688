"""InputGradient: the gradient of a classifier's loss with respect to its input, without a trace on the classifier."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .._support.arithmetic import float32_arithmetic
from .._support.checks import check_bool, check_finite, check_int, check_not_negative, dtype_name
from .._support.model_state import ModelMode, check_mode, check_model, frozen_parameters, model_mode, unwrap
from .._support.state_checks import check_keys
from .._support.tensor_checks import HALF_DTYPES
from ..losses import PerExampleLoss, RelativeLoss, cross_entropy
from .chunking import activation_bytes, automatic_chunk, norm_of_the_batch
from .graph import LoopGraphs
from .guard import PrecisionGuard
from .options import FLOAT32, EngineOptions
from .session import GradientSession, InputGradients, Loop, check_lengths
from .twin import AttackTwin, TwinUnavailable, hooked_module

_PROBE_IMAGES = 2
_COMPARED_IMAGES = 8
_MOST_TWINS_BUILT = 4


class InputGradient:
    """The gradient of a classifier's loss with respect to its input, without a trace on the classifier.

    No weight gradient is computed, ``param.grad`` is not touched, and every module's train/eval mode and every
    parameter's ``requires_grad`` are as before, even after an exception. The one thing that a pass may change is what
    the model itself changes when it runs, such as running statistics with ``model_mode="train"``.

    A call evaluates the gradient once. :meth:`run` is for loops that need it many times with the same weights.

    Args:
        model: images ``[N, C, H, W]`` -> logits ``[N, num_classes]``. (Distributed)DataParallel and ``torch.compile``
            wrappers are taken off.
        loss: the loss of each example, see :mod:`adt_fast.losses`. Default: cross entropy.
        model_mode: ``"eval"`` (default), ``"train"``, or ``"keep"`` for the mode each module is in. Only ``"eval"`` can
            be run by a twin.
        options: see :class:`EngineOptions`. Default: float32.
        radius: how far from the images gradients will be wanted, >= 0. A loss that is relative to the natural images
            has no gradient there: the guard compares 16 bits with float32 at random points so far away.
        check_finite: raise FloatingPointError where a gradient has a NaN or an infinity. It reads the gradient once
            more, and waits for a GPU once a minibatch.

    Raises:
        TypeError, ValueError: for a bad argument, by name.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: PerExampleLoss = cross_entropy,
        model_mode: ModelMode = "eval",
        options: EngineOptions = FLOAT32,
        radius: float = 0.0,
        check_finite: bool = True,
    ) -> None:
        check_model(model)
        check_mode("model_mode", model_mode)
        check_bool("check_finite", check_finite)
        if not callable(loss):
            raise TypeError(f"loss must be callable, (logits, labels) -> losses [N], got {type(loss).__name__}")
        if not isinstance(options, EngineOptions):
            raise TypeError(f"options must be EngineOptions, got {type(options).__name__}")
        check_not_negative("radius", radius)
        if isinstance(options.chunk, int) and model_mode != "eval":
            raise ValueError(f"chunk must be None or 'auto' with model_mode={model_mode!r}: batch statistics would be "
                             "of the chunks")
        if isinstance(options.chunk, int) and (norm := norm_of_the_batch(unwrap(model))):
            raise ValueError("chunk must be None or 'auto' for a model with batch statistics in eval mode "
                             f"({norm} has no running ones): they would be of the chunks")
        self.model = unwrap(model)
        self.loss = loss
        self.model_mode: ModelMode = model_mode
        self.options = options
        self.radius = float(radius)
        self.check_finite = check_finite
        self.guard: PrecisionGuard | None = None
        """Of 16-bit gradients; None where they are not asked for, or before the first minibatch."""
        self.twin: AttackTwin | None = None
        """What ran last, or None if it was the classifier itself."""
        self._twins: dict[torch.dtype | None, AttackTwin] = {}
        self._twins_built = 0
        self._no_twin_because = ""
        self._not_compiled_because = ""
        self._not_half_because = ""
        self._chunks: dict[Hashable, int | None] = {}
        self._graphs = LoopGraphs()
        self._last_session: GradientSession | None = None

    def __call__(self, x: Tensor, labels: Tensor, *, scale: float = 1.0) -> InputGradients:
        """The gradient at x.

        Args:
            x: ``[N, C, H, W]``, floating point; k samples of a batch folded into one, for example.
            labels: int64 ``[N]``, or whatever the loss takes, one per example.
            scale: of the objective, ``scale * sum of the losses``: 1 / N for a batch mean.

        Raises:
            ValueError: if x and labels differ in length, or the loss is not one number per example.
            RuntimeError: if the logits do not depend on x.
            FloatingPointError: if the gradient is not finite and ``check_finite`` is on.
        """
        check_finite("scale", scale)
        loss_scale = 1.0

        def once(session: GradientSession, x: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
            nonlocal loss_scale
            result = session(x, labels, scale=scale)
            loss_scale = result.loss_scale
            return result[:3]

        grad, losses, logits = self.run(once, x, labels)
        return InputGradients(grad, losses, logits, loss_scale)

    def losses(self, x: Tensor, labels: Tensor) -> Tensor:
        """The loss of each example ``[N]``, without a gradient; x and labels as for a call."""
        (losses,) = self.run(lambda session, x, labels: (session.losses(x, labels),), x, labels)
        return losses

    def run(
        self,
        loop: Loop,
        images: Tensor,
        labels: Tensor,
        *,
        reads: tuple[Tensor, ...] = (),
        key: Hashable | None = None,
    ) -> tuple[Tensor, ...]:
        """The results of a loop that evaluates gradients with the weights as they are now.

        The weights are looked at once, at the start. Where 16-bit gradients turn out NaN or infinite, the loop runs
        again in float32.

        Args:
            loop: see :data:`Loop`.
            images: ``[B, C, H, W]``, what the loop is called with.
            labels: ``[B]``, likewise.
            reads: other tensors, of any shape, that the loop reads, in place: the state of its noise.
            key: all settings that the loop depends on. With a key the loop may be captured in a CUDA graph.

        Raises:
            ValueError: if there is no image, or not a label for each.
            FloatingPointError: if a gradient is not finite and ``check_finite`` is on.
        """
        check_lengths(images, labels)
        # Callers may be under inference_mode, where nothing has a gradient: leave it, with ordinary copies.
        with torch.inference_mode(False), float32_arithmetic(images.device, tf32=self.options.precision == "tf32"):
            images, labels = (tensor.clone() if tensor.is_inference() else tensor for tensor in (images, labels))
            with self._session(images, labels) as session:
                try:
                    return self._run(session, loop, images, labels, reads, key)
                except FloatingPointError as error:
                    if not session.is_half or self.guard is None:
                        raise
                    self.guard.fall_back(str(error))
            with self._session(images, labels, allow_half=False) as session:
                return self._run(session, loop, images, labels, reads, key)

    def explain(self) -> str:
        """Which features the last minibatch used, one a line, and why the others were off."""
        return "\n".join(f"{name:<10} {state}" for name, state in self.features().items())

    def features(self) -> dict[str, str]:
        """:meth:`explain` by feature: "on", or "off" and the reason, with a few figures."""
        session = self._last_session
        if session is None:
            return {"engine": "has not run yet"}
        twin, off = self.twin, f"off: {self._no_twin_because}"
        return {
            "precision": self._explain_precision(session),
            "twin": "on, " + self._explain_fusion(twin) if twin else off,
            "compile": self._explain_compile(),
            "graph": self._explain_graph(),
            "chunk": f"{session.chunk} examples at a time" if session.chunk else "off: all examples go through at once",
        }

    def state_dict(self) -> dict[str, Any]:
        """What another process needs to go on with the same decisions: plain values. Twins are made anew."""
        return {
            "guard": None if self.guard is None else self.guard.state_dict(),
            "twins_discarded": self._twins_built - len(self._twins),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave, before the first minibatch as well.

        Raises:
            ValueError: if it is no such state, or of a 16-bit type that there is not; nothing is changed then.
        """
        check_keys("state of the engine", state, self.state_dict())
        check_int("twins_discarded", state["twins_discarded"], 0, 2**63)
        self.guard = None if state["guard"] is None else self._guard_of(state["guard"])
        self._twins.clear()
        self._graphs.forget()
        self._twins_built = state["twins_discarded"]

    def _guard_of(self, state: Mapping[str, Any]) -> PrecisionGuard:
        by_name = {dtype_name(dtype): dtype for dtype in HALF_DTYPES}
        name = state.get("dtype") if isinstance(state, Mapping) else None
        if not isinstance(name, str) or name not in by_name:
            raise ValueError(f"state of the guard must have one of {', '.join(by_name)} as its dtype, got {name!r}")
        guard = PrecisionGuard(self.options, by_name[name])
        guard.load_state_dict(state)
        return guard

    def _run(
        self,
        session: GradientSession,
        loop: Loop,
        images: Tensor,
        labels: Tensor,
        reads: tuple[Tensor, ...],
        key: Hashable | None,
    ) -> tuple[Tensor, ...]:
        def run(images: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
            session.forget_gradients()  # of a capture that failed: they were never computed
            return *loop(session, images, labels), session.take_magnitudes(images.device)

        if key is not None and self._graph_wanted(images.device):
            everything = (key, id(self.twin), session.chunk, _address_free(images), _address_free(labels),
                          *((tensor.data_ptr(), _address_free(tensor)) for tensor in reads))
            *results, magnitudes = self._graphs(run, images, labels, everything)
        else:
            *results, magnitudes = run(images, labels)
        if self.check_finite:
            session.require_finite(magnitudes)
        return tuple(results)

    @contextmanager
    def _session(self, images: Tensor, labels: Tensor, allow_half: bool = True) -> Iterator[GradientSession]:
        """The engine for a minibatch: twin or classifier, precision and chunk are chosen here."""
        half = self._half_dtype(images, labels) if allow_half else None
        self.twin = self._refreshed_twin(half, images)
        if self.twin is None:
            with model_mode(self.model, self.model_mode), frozen_parameters(self.model):
                yield self._new_session(self.model, images, images.dtype)
        else:
            yield self._new_session(self.twin.run, images, half or images.dtype)

    def _new_session(
        self, model: Callable[[Tensor], Tensor], images: Tensor, dtype: torch.dtype
    ) -> GradientSession:
        chunk = self._chunk(model, images, dtype)
        self._last_session = session = GradientSession(model, self, dtype=dtype, chunk=chunk, loss=self.loss)
        return session

    def _half_dtype(self, images: Tensor, labels: Tensor) -> torch.dtype | None:
        """The 16-bit type to use for this minibatch, if any; compares it with float32 when that is due."""
        half = self.options.half_dtype(images.device)
        if half is None or images.dtype != torch.float32 or not self._may_have_twin():
            return None
        if self._too_coarse(half):
            self._not_half_because = ": bfloat16 is too coarse for a loss relative to the natural images"
            return None
        if self.guard is None or self.guard.name != dtype_name(half):  # a state may be of an engine in another type
            self.guard = PrecisionGuard(self.options, half)
        if self.guard.due:
            self._compare(self.guard, half, images[:_COMPARED_IMAGES], labels[:_COMPARED_IMAGES])
        self.guard.minibatches += 1
        return half if self.guard.allowed else None

    def _too_coarse(self, half: torch.dtype) -> bool:
        """Whether the type is not to be chosen by itself: bfloat16, for a loss relative to the natural images.

        Such a loss is a difference of nearly equal logits. Half an epsilon from the images of CIFAR-10, a trained
        WRN-10-1's gradients of the KL divergence have a cosine of 0.8 with float32 in bfloat16, and 0.998 in float16.
        """
        chosen = self.options.precision == "auto" and half is torch.bfloat16
        return chosen and isinstance(self.loss, RelativeLoss)

    def _compare(self, guard: PrecisionGuard, half: torch.dtype, images: Tensor, labels: Tensor) -> None:
        twin = self._refreshed_twin(half, images)
        if twin is None:
            return
        session = GradientSession(twin.run, self, dtype=half, chunk=None, loss=self.loss)
        try:
            approximate = self._gradient_to_compare(session, images, labels)
        except RuntimeError as error:  # a type that this machine or this model cannot do; memory is another matter
            if isinstance(error, torch.OutOfMemoryError):
                raise
            guard.fall_back(f"the model does not run in it ({str(error).splitlines()[0]})", final=True)
            return
        with model_mode(self.model, "eval"), frozen_parameters(self.model), float32_arithmetic(images.device):
            exact_session = GradientSession(self.model, self, dtype=images.dtype, chunk=None, loss=self.loss)
            exact = self._gradient_to_compare(exact_session, images, labels)
        guard.compare(approximate, exact)

    def _gradient_to_compare(self, session: GradientSession, images: Tensor, labels: Tensor) -> Tensor:
        if not isinstance(self.loss, RelativeLoss):
            return session(images, labels).grad
        generator = torch.Generator(images.device).manual_seed(0)
        direction = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype) * 2 - 1
        targets = self.loss.targets(session.logits(images))
        return session(torch.add(images, direction, alpha=self.radius), targets).grad

    def _may_have_twin(self) -> bool:
        if not self.options.twin:
            self._no_twin_because = "twin=False"
        elif self.model_mode != "eval":
            self._no_twin_because = f"model_mode={self.model_mode!r}"
        return not self._no_twin_because

    def _refreshed_twin(self, dtype: torch.dtype | None, images: Tensor) -> AttackTwin | None:
        """The twin for a 16-bit type, or for the classifier's own (None), with the weights of now."""
        if not self._may_have_twin():
            return None
        twin = self._twins.get(dtype)
        if twin is not None and twin.fits(self.model):
            twin.refresh(self.model)
            return twin
        self._twins.pop(dtype, None)
        self._graphs.forget()
        self._twins_built += 1
        if self._twins_built > _MOST_TWINS_BUILT:
            self._give_up_twins("the model's structure or attributes change from one minibatch to the next")
            return None
        try:
            twin = self._twins[dtype] = self._build_twin(dtype, images)
        except TwinUnavailable as reason:
            self._give_up_twins(str(reason))
        return twin

    def _build_twin(self, dtype: torch.dtype | None, images: Tensor) -> AttackTwin:
        probe = images[:_PROBE_IMAGES]
        if self.options.compile and not self._not_compiled_because:
            twin = AttackTwin(self.model, dtype, compile=True, winograd=False, probe=probe)
            try:
                with torch.no_grad():
                    twin.run(probe.to(dtype or probe.dtype))
                return twin
            except Exception as error:  # a compiler may fail in any way: without one, or on a model it cannot do
                self._not_compiled_because = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return AttackTwin(self.model, dtype, compile=False, winograd=self.options.winograd, probe=probe)

    def _give_up_twins(self, reason: str) -> None:
        self._no_twin_because = reason
        self._twins.clear()

    def _chunk(self, model: Callable[[Tensor], Tensor], images: Tensor, dtype: torch.dtype) -> int | None:
        if self.options.chunk != "auto":
            return self.options.chunk
        if images.dim() != 4 or (self.twin is None and (self.model_mode != "eval" or hooked_module(self.model))):
            return None  # there is no measuring that nobody would notice
        if norm_of_the_batch(self.model):
            return None
        key = (dtype, images.shape[1:], images.device, self.twin is None)
        if key not in self._chunks:
            # The plain module: a compiled one would be compiled again for one and two images.
            measured = self.twin.module if self.twin is not None else model
            try:
                chunk = automatic_chunk(activation_bytes(measured, images[:1].to(dtype)), images.device)
            except Exception:  # a model that only takes the batch it was made for
                chunk = None
            self._chunks[key] = chunk
        return self._chunks[key]

    def _graph_wanted(self, device: torch.device) -> bool:
        return self.options.graph is not False and device.type == "cuda" and self.twin is not None

    def _explain_precision(self, session: GradientSession) -> str:
        name = dtype_name(session.dtype)
        if self.guard is None:
            return f"{name} (asked for: {self.options.precision}){self._not_half_because}"
        last = self.guard.history[-1] if self.guard.history else None
        checked = f", last checked at cosine {last.cosine:.4f}, signs {last.sign_agreement:.2%}" if last else ""
        reason = f": {self.guard.name} is off, {self.guard.off_because}" if self.guard.off_because else checked
        return f"{name} (asked for: {self.options.precision}){reason}"

    def _explain_fusion(self, twin: AttackTwin) -> str:
        if twin.unfused_because:
            return f"not fused: {twin.unfused_because}"
        winograd = f", {twin.winograd} convolutions by Winograd's algorithm" if twin.winograd else ""
        return f"fused: {twin.folded} batch norms folded into convolutions, {twin.affine} affine maps{winograd}"

    def _explain_compile(self) -> str:
        if not self.options.compile:
            return "off: compile=False"
        if self._not_compiled_because:
            return f"off: {self._not_compiled_because}"
        return "on" if self.twin is not None else "off: there is no twin to compile"

    def _explain_graph(self) -> str:
        if self.options.graph is False:
            return "off: graph=False"
        if self._graphs.off_because:
            return f"off: {self._graphs.off_because}"
        if self.twin is None:
            return "off: there is no twin to capture"
        return f"on, {self._graphs.captured} captured" if self._graphs.captured else "off: nothing captured" + (
            "" if any(p.is_cuda for p in self.twin.module.parameters()) else ", as the model is not on CUDA"
        )


def _address_free(tensor: Tensor) -> Hashable:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device
