"""The processes that share the steps of a run: what each computes, and what they tell each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
import torch.distributed as collective
from torch import Tensor

from banel_pyro.batches import Rows
from banel_pyro.capture.flat import CaptureError
from banel_pyro.capture.operators import add_up
from banel_pyro.streams import OwnNoise, stream_states
from banel_pyro.terms import LossTerms
from banel_pyro.training.rollback import FAULTS

if TYPE_CHECKING:
    from banel_pyro.training.parameters import Parameters

__all__ = ["Processes", "is_first", "leave"]

_Result = TypeVar("_Result")


@dataclass
class Processes:
    """The processes that share the steps of a run, and the device of this one; by default one, where torch puts it.

    All of them hold all rows, go through the same steps with the same parameters, and draw the same numbers where
    nothing else is said. In a step each computes its share of the rows, and :meth:`add_up` makes one of the shares.

    Args:
        rank: number of this process, from 0.
        count: how many there are.
        device: where data and parameters are, or None for where they were given.
        precision: by Fabric's name, or None.
    """

    parted: ClassVar[bool] = False
    """Whether the processes of this program have left each other: they cannot meet again."""

    rank: int = 0
    count: int = 1
    device: torch.device | None = None
    precision: str | None = None
    _agreed: set[Tensor] = field(default_factory=set)
    _moved: set[Tensor] = field(default_factory=set)
    _sites: list[str] | None = None

    @property
    def config(self) -> dict[str, Any]:
        """What a config says of them: nothing where nothing was asked for."""
        if self.device is None:
            return {}
        return {"accelerator": self.device.type, "processes": self.count, "precision": self.precision}

    # ---- what each of them computes ----------------------------------------------------------

    def each(self, rows: int) -> int:
        """The largest share of so many rows."""
        return -(-rows // self.count)

    def parts(self, size: int, batch: int) -> list[slice]:
        """This process's share of a step's rows, in batches of at most ``batch``; every row is in one share.

        Shares differ by one row at most. Of fewer rows than processes some get none: an empty slice.
        """
        start, stop = (size * r // self.count for r in (self.rank, self.rank + 1))
        return [slice(i, min(i + batch, stop)) for i in range(start, stop, batch)] or [slice(start, start)]

    def streams(self, seed: int | str, step: int) -> list[Tensor]:
        """Where the noise of this process's rows starts in a step; nothing if there is one process."""
        return [] if self.count == 1 else stream_states(f"{seed}/{step}/{self.rank}", self.device)

    def noise(self, plate: str | None, streams: Sequence[Tensor]) -> AbstractContextManager[Any]:
        """In the block, rows of this process have noise of their own; latents outside the data plate stay shared."""
        return nullcontext() if self.count == 1 else OwnNoise(plate, streams, self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        """The block in which a loss is computed: matrix products are in bfloat16 under ``"bf16-mixed"``."""
        if self.precision != "bf16-mixed" or self.device is None:
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    # ---- what they tell each other -----------------------------------------------------------

    @torch.no_grad()
    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all processes, in place, in one all-reduce.

        This is the only thing that happens between the gradients of a step and its optimiser. Each process has
        weighted its gradients and terms with its share of the rows before.

        Args:
            tensors: floating-point, of the same shapes in the same order on every process.
        """
        if self.count > 1:
            self._in_one(tensors, add_up)

    @torch.no_grad()
    def take_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of process 0, in place."""
        if self.count > 1 and tensors:
            self._in_one(tensors, lambda flat: collective.broadcast(flat, 0))

    def _in_one(self, tensors: Sequence[Tensor], exchange: Callable[[Tensor], Any]) -> None:
        dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
        flat = torch.cat([t.detach().reshape(-1).to(dtype) for t in tensors])
        exchange(flat)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def on_first(self, function: Callable[[], _Result]) -> _Result:
        """What a function returns on process 0, where alone it is called.

        Raises:
            Exception: what it raises, on process 0; on the others a RuntimeError that says so.
        """
        if self.count == 1:
            return function()
        told: list[Any] = [None, None]
        error: Exception | None = None
        if self.rank == 0:
            try:
                told[0] = function()
            except Exception as raised:
                error, told[1] = raised, f"{type(raised).__name__}: {raised}"
        collective.broadcast_object_list(told, 0)
        if error is not None:
            raise error
        if told[1] is not None:
            raise RuntimeError(f"process 0 of {self.count} stopped. {told[1]}")
        return told[0]  # type: ignore[no-any-return]

    def gathered(self, item: _Result) -> list[_Result]:
        """What each process has, on all of them."""
        if self.count == 1:
            return [item]
        found: list[Any] = [None] * self.count
        collective.all_gather_object(found, item)
        return found

    def add_up_step(
        self, parameters: Parameters, terms: LossTerms, entropies: Mapping[str, Tensor], *, known: bool = False
    ) -> tuple[LossTerms, dict[str, Tensor]]:
        """The gradients and terms of a whole step, from those of its shares.

        A parameter without a gradient on every process stays without; running means of modules are process 0's.

        Args:
            parameters: those of this process, with the gradients of its share.
            terms: of its share.
            entropies: of its share.
            known: whether parameters, and which of them have gradients, are as in the last step: for a graph, which
                cannot look.

        Raises:
            ValueError: on every process, for sites or parameters that only some of them have.
            CaptureError: for ``known``, if they are others.
        """
        if self.count == 1:
            return terms, dict(entropies)
        names = [name for name, value in vars(terms).items() if name != "lam" and value is not None]
        self._check_sites([*names, *entropies])
        trained, running = list(parameters.trained().values()), parameters.running()
        device = trained[0].device if trained else self.device
        values = [*(getattr(terms, name) for name in names), *entropies.values()]
        numbers = [torch.as_tensor(value, device=device).clone() for value in values]
        firsts = [buffer.clone() if self.rank == 0 else torch.zeros_like(buffer) for buffer in running]
        if known:
            self._add_up_known(trained, [*numbers, *firsts])
        else:
            self._add_up_new(parameters, trained, [*numbers, *firsts])
        for buffer, first in zip(running, firsts, strict=True):
            buffer.copy_(first)
        found = dict(zip(names, numbers, strict=False))
        return LossTerms(**found, lam=terms.lam), dict(zip(entropies, numbers[len(names) :], strict=True))

    def moved_of(self, parameters: Parameters) -> list[str]:
        """Names of the parameters that had a gradient, on any process, in the last step that was not a graph's."""
        return [name for name, tensor in parameters.trained().items() if tensor in self._moved]

    def set_moved(self, parameters: Parameters, names: Sequence[str]) -> None:
        """Take over what :meth:`moved_of` gave in a run that goes on."""
        trained = parameters.trained()
        self._moved = {trained[name] for name in names}

    def _add_up_known(self, trained: list[Tensor], numbers: list[Tensor]) -> None:
        """Add up gradients of the parameters that had one in the last step, and numbers, in place."""
        if any(parameter.grad is not None and parameter not in self._moved for parameter in trained):
            raise CaptureError("a parameter has a gradient that had none before. Use capture=False.")
        moved = [parameter for parameter in trained if parameter in self._moved]
        for parameter in moved:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        self.add_up([*(torch.as_tensor(parameter.grad) for parameter in moved), *numbers])

    def _add_up_new(self, parameters: Parameters, trained: list[Tensor], numbers: list[Tensor]) -> None:
        """The same in a step that may have new parameters, on which the processes agree first."""
        agreed, late = ([p for p in trained if (p in self._agreed) == known] for known in (True, False))
        self._moved = set()
        if self._add_up_gradients(agreed, numbers, new=bool(late)):
            self.agree(parameters)
            self._add_up_gradients(late, [])

    def _add_up_gradients(self, trained: list[Tensor], numbers: list[Tensor], *, new: bool = False) -> bool:
        """Add up gradients and numbers, in place; True if a process has parameters that are new."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        device = (gradients or numbers)[0].device
        flags = torch.tensor([*(p.grad is not None for p in trained), new], dtype=torch.get_default_dtype())
        flags = flags.to(device)
        self.add_up([*gradients, *numbers, flags])
        *seen, fresh = flags.tolist()
        for parameter, gradient, count in zip(trained, gradients, seen, strict=True):
            parameter.grad = gradient if count else None
            self._moved |= {parameter} if count else set()
        return bool(fresh)

    def agree(self, parameters: Parameters) -> None:
        """Give all processes the values that process 0 has of parameters that they have not yet in common.

        Raises:
            ValueError: on every process, for parameters that only some of them have.
        """
        if self.count == 1:
            return
        new = {name: tensor for name, tensor in parameters.trained().items() if tensor not in self._agreed}
        self._check_same("parameters", list(new))
        self.take_from_first([*new.values(), *parameters.running()])
        self._agreed |= set(new.values())

    def _check_sites(self, names: list[str]) -> None:
        """Refuse sites that only some processes have: at once where they come and go, at the first step for all."""
        if self._sites is None:
            self._check_same("sites", names)
            self._sites = names
        elif names != self._sites:
            raise ValueError(f"terms and sites were {self._sites} and are {names}: expected the same at every step.")

    def _check_same(self, what: str, names: list[str]) -> None:
        found = self.gathered(names)
        if any(other != names for other in found):
            told = "; ".join(f"process {rank} has {other}" for rank, other in enumerate(found))
            raise ValueError(
                f"the processes have different {what} ({told}): expected the same at every step. Let model and guide "
                "use the same ones for any rows."
            )

    # ---- where things are --------------------------------------------------------------------

    @contextmanager
    def on_device(self, parameters: Parameters) -> Iterator[None]:
        """In the block, modules, parameters and all that is made are on the device; afterwards on the CPU."""
        if self.device is None:
            yield
            return
        parameters.move(self.device)
        try:  # for a CPU the context would only cost every function a call
            with nullcontext() if self.device.type == "cpu" else self.device:
                yield
        finally:
            parameters.move(torch.device("cpu"))

    def moved(self, rows: Rows, *, home: bool = False) -> Rows:
        """Rows on the device, or back on the CPU, where results are."""
        device = torch.device("cpu") if home else self.device
        return rows if self.device is None else tuple(row.to(device) for row in rows)

    # ---- what goes wrong ---------------------------------------------------------------------

    def check_alike(self, config: Mapping[str, Any]) -> None:
        """Refuse processes that were given other data, seeds or options than process 0, naming what differs."""
        if self.count == 1:
            return
        mine = {name: value for name, value in config.items() if name not in ("created", "threads")}
        first = self.gathered(mine)[0]
        other = sorted(name for name in mine if mine[name] != first.get(name))
        different = [f"{name}: {first.get(name)!r} there, {mine[name]!r} here" for name in other]
        if any(self.gathered(bool(different))):
            told = f" ({'; '.join(different)})" if different else ""
            raise ValueError(
                f"the {self.count} processes were given different runs{told}: expected the same rows and options in "
                "each. Give seed=, and make the data from a seed."
            )

    def check_rows(self, size: int, batch_size: int | None, per_step: int) -> None:
        """Refuse data with fewer rows in a step than processes."""
        if self.count > 1 and min(size, per_step) < self.count:
            what = f"data has {size} rows" if size < self.count else f"batch_size={batch_size} gives {per_step} rows"
            raise ValueError(
                f"{what} a step, but devices= and num_nodes= ask for {self.count} processes: expected a row for each. "
                "Use fewer devices, or larger batches."
            )

    @contextmanager
    def sharing(self) -> Iterator[None]:
        """Say in refusals of plates that the batch is one process's share."""
        try:
            yield
        except ValueError as error:
            if self.count > 1:
                raise ValueError(f"{self.count} processes share the rows of a step, and {error}") from error
            raise

    @contextmanager
    def together(self) -> Iterator[None]:
        """Leave the others when this process fails alone, so that they fail at once and do not wait for it."""
        try:
            yield
        except (*FAULTS, CaptureError):  # all see the same numbers, and raise the same
            raise
        except BaseException as error:
            if self.count > 1:
                error.add_note(
                    f"This was process {self.rank} of {self.count}. Where it speaks of a connection or a timeout, "
                    "another one has failed: see there."
                )
                leave()
            raise


def is_first() -> bool:
    """Whether this process is the one that writes files and prints."""
    return not (collective.is_available() and collective.is_initialized()) or collective.get_rank() == 0


def leave() -> None:
    """Part with the other processes, if there are any."""
    if collective.is_available() and collective.is_initialized():
        Processes.parted = True
        collective.destroy_process_group()
