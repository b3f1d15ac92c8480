"""SVI in a loop of the user's own, captured: what ``pyro.infer.SVI.step`` does, as one call into compiled code."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from banel_pyro.capture.flat import CaptureError, patched
from banel_pyro.capture.step import Captured
from banel_pyro.objectives import Objective
from banel_pyro.terms import LossTerms
from banel_pyro.training.optimizers import OptimizerFactory
from banel_pyro.training.options import optimizer as optimizer_option
from banel_pyro.training.options import positive
from banel_pyro.training.parameters import Parameters

__all__ = ["CapturedSVI"]

LOOK_EVERY = 100
"""Steps between looks at what a graph takes for constant."""


class CapturedSVI:
    """A step of SVI as a compiled graph, optimiser included, for a loop of your own.

    The first step runs eagerly: it makes the parameters and the optimiser's state. The second one, and the first
    of each further shape of the batch (at most a few, please), is captured, held against the eager step, and compiled.
    Draws are those of torch's generator, as in an eager step. :func:`banel_pyro.fit` does all this by itself.

    Between steps you may change λ, learning rates, ``train()`` and ``eval()``, ``requires_grad``. Other numbers that
    model and guide read belong into tensors that you change in place: every hundredth step looks whether one has
    changed elsewhere, and refuses it.

    Args:
        objective: an objective of this library, or an ELBO of Pyro's that has a ``differentiable_loss`` without
            branches on values: ``Trace_ELBO``, ``TraceMeanField_ELBO``.
        model: the model.
        guide: its guide.
        optim: a ``torch.optim`` class, or a callable from parameters to an optimiser; fused Adam by default. Adam,
            AdamW, SGD and Pyro's ClippedAdam become part of the graph; any other makes its step outside.
        lr: learning rate of an optimiser given as a class, 1e-3 by default.
        clip_norm: largest norm of the gradient (of the total loss, nats per unit of parameter).
        compile: whether the graph is compiled, or run operation by operation.

    Raises:
        TypeError, ValueError: for bad options.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from banel_pyro import BaNEL_ELBO
        >>> def model(x):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
        >>> svi = CapturedSVI(BaNEL_ELBO(lam=0.2), model, AutoNormal(model), lr=0.01, compile=False)
        >>> with pyro.get_param_store().scope():
        ...     losses = [float(svi.step(torch.ones(5)).loss) for _ in range(3)]
        >>> len(losses)
        3
    """

    def __init__(
        self,
        objective: ELBO,
        model: Any,
        guide: Any,
        *,
        optim: OptimizerFactory | None = None,
        lr: float | None = None,
        clip_norm: float | None = None,
        compile: bool = True,
    ) -> None:
        if not isinstance(objective, ELBO) or not hasattr(objective, "differentiable_loss"):
            kind = type(objective).__name__
            raise TypeError(
                f"objective is a {kind}: expected a banel_pyro objective, such as BaNEL_ELBO(), or an ELBO of Pyro's "
                "with a differentiable_loss, such as Trace_ELBO()."
            )
        self.objective, self.model, self.guide = objective, model, guide
        factory, options = optimizer_option(optim, lr)
        self._parameters = Parameters(model, guide, factory, options)
        self._clip_norm, self._compile = positive("clip_norm", clip_norm), compile
        self._captured: Captured | None = None
        self._steps, self._is_whole, self._on_cpu = 0, False, True

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser, its state up to date; its learning rate may be changed between steps.

        Raises:
            RuntimeError: before the first step.
        """
        if self._parameters.optimizer is None:
            raise RuntimeError("there is no optimizer before the first step: call step(...) once.")
        if self._captured is not None:
            self._captured.push()
        return self._parameters.optimizer

    def step(self, *batch: Tensor) -> LossTerms | Tensor:
        """One step.

        Args:
            *batch: what model and guide are called with: tensors.

        Returns:
            The terms of the loss as tensors (nats), or the loss of one of Pyro's ELBOs; not synchronised.

        Raises:
            CaptureError: if the step cannot be captured.
            FloatingPointError: if the loss or the gradient of an earlier step was not finite: parameters and
                optimiser are those before it, and further steps may be made. Off the CPU it is looked for at every
                hundredth step only.
        """
        if self._captured is None:
            return self._first(batch)
        # elsewhere a look at the last step waits for the device
        if (self._on_cpu or self._steps % LOOK_EVERY == 0) and self._captured.bad is not None:
            self._captured.forget()
            raise FloatingPointError(
                "the loss or the gradient of an earlier step is not finite. The parameters are those before it. Try a "
                "smaller lr, or clip_norm=."
            )
        if self._steps % LOOK_EVERY == 0:
            self._captured.check_surroundings()
        found = self._captured(self._captured.step_of(batch, self._lams(), kind=self._kind()))
        self._steps += 1
        return self._as_terms(found[1:])

    def _first(self, batch: tuple[Tensor, ...]) -> LossTerms | Tensor:
        loss, found = self._differentiate(*batch)
        optimizer = self._parameters.optimizer
        if optimizer is None:
            raise CaptureError("neither model nor guide has parameters: there is nothing to train.")
        norm = self._parameters.clip(self._clip_norm)
        if not bool(torch.isfinite(loss) & torch.isfinite(norm)):
            optimizer.zero_grad()
            raise FloatingPointError("the loss or the gradient of the first step is not finite. It was not made.")
        self._parameters.step()
        self._captured = Captured(
            self._differentiate, optimizer, clip_norm=self._clip_norm, compile=self._compile, options_change=True,
            watched={"model": self.model, "guide": self.guide},
        )  # fmt: skip
        self._steps, self._on_cpu = 1, loss.is_cpu
        return self._as_terms(found)

    def _kind(self) -> Any:
        """What else a graph depends on: the sites of λ, training modes, and which parameters are trained."""
        lam = getattr(self.objective, "lam", None)
        modes = [part.training for part in (self.model, self.guide) if isinstance(part, nn.Module)]
        trained = [parameter.requires_grad for parameter in self._parameters.names().values()]
        return tuple(lam) if isinstance(lam, Mapping) else None, *modes, *trained

    def _lams(self) -> list[float]:
        """λ as numbers that may change between steps; none at λ = 0, which needs no penalty in the graph."""
        lam = getattr(self.objective, "lam", 0.0)
        if isinstance(lam, Mapping):
            return [float(value) for value in lam.values()]
        return [float(lam)] if lam != 0 else []

    def _differentiate(self, *inputs: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Leaves gradients at the parameters; gives what :meth:`_as_terms` takes."""
        if not isinstance(self.objective, Objective):
            with self._parameters.watch(), _without_values():
                loss = self.objective.differentiable_loss(self.model, self.guide, *inputs)
            loss.backward()
            return loss.detach(), [loss.detach()]
        lam, count = self.objective.lam, 0 if self._captured is None else len(self._lams())
        batch, numbers = inputs[: len(inputs) - count], inputs[len(inputs) - count :]
        lams = [number.to(torch.get_default_dtype()) for number in numbers]
        if lams:
            self.objective.lam = dict(zip(lam, lams, strict=True)) if isinstance(lam, Mapping) else lams[0]
        try:
            with self._parameters.watch():
                loss, terms, _ = self.objective.loss_and_terms(self.model, self.guide, *batch)
        finally:
            self.objective.lam = lam
        loss.backward()
        self._is_whole = terms.whole is not None
        parts = [terms.log_likelihood, terms.kl, terms.entropy, terms.penalty, terms.elbo]
        return torch.as_tensor(terms.loss).detach(), [torch.as_tensor(part).detach() for part in parts]

    def _as_terms(self, found: Any) -> LossTerms | Tensor:
        if not isinstance(self.objective, Objective):
            return found[0]  # type: ignore[no-any-return]
        log_likelihood, kl, entropy, penalty, elbo = found
        return LossTerms(log_likelihood, kl, entropy, self.objective.lam, penalty, elbo if self._is_whole else None)


@contextmanager
def _without_values() -> Iterator[None]:
    """Keep Pyro's ELBOs from asking for the value of their loss, which they do for a warning and to add it back."""
    modules = [m for name, m in list(sys.modules.items()) if name.startswith("pyro.infer") and hasattr(m, "torch_item")]
    with ExitStack() as stack:
        for module in modules:
            changes: dict[str, Any] = {"torch_item": _detached}
            if hasattr(module, "warn_if_nan"):
                changes["warn_if_nan"] = lambda value, *args, **kwargs: value
            stack.enter_context(patched(module, **changes))
        yield


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
