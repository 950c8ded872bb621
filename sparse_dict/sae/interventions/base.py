"""What an intervention can do: at the beginning, in the loss, between steps."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from sparse_dict.annotations import Activations, Generator, State, Tensor
from sparse_dict.config import SAEConfig
from sparse_dict.sae.loss import Params, Term

C = TypeVar("C", bound=SAEConfig)


@dataclass
class Moment:
    """Where a training is after an optimiser step."""

    step: int  # counted from one
    last_step: int
    seen: int  # rows
    x: Tensor  # the step's batch, (batch, d_in), scaled
    y: Tensor  # what it was to become, (batch, d_out)
    before: Callable[[int], Iterator[Tensor]]  # batches of at least the last so many rows read


class Intervention(Generic[C]):
    """Something that is done to one dictionary. What a subclass does not override does nothing.

    It is imported while Hydra composes the config, so its module imports neither numpy nor torch.
    """

    Config: ClassVar[type[SAEConfig]]  # `SAEConfig` with the keys that it alone reads
    others: ClassVar[int] = 0  # dictionaries that it trains beside the one it is for
    last: ClassVar[bool] = False  # whether it acts after all that are not

    def __init__(self, sae: C, lm_dir: Path, activations: Activations) -> None:
        """`activations` are what the dictionary reads, of the language model in `lm_dir`."""
        self.sae, self.lm_dir, self.activations = sae, lm_dir, activations

    @staticmethod
    def asked(sae: C) -> bool:
        raise NotImplementedError

    def check(self) -> None:
        """Raise `UserError` if it cannot be done; quick, without torch, writes nothing."""

    def begin(self, p: Params, generator: Generator) -> None:
        """Change initial values `p` in place; the generator is the one they were drawn by."""

    @property
    def term(self) -> Term | None:
        """What it adds to the loss, which autograd then trains; equal ones are the same object."""
        return None

    def beside(self, state: State, begun: Callable[[int], State]) -> list[State]:
        """The other dictionaries that it trains beside `state`; begun(seed) makes one like it."""
        return []

    def after_step(self, states: list[State], at: Moment) -> None:
        """Change the dictionary and those trained beside it, in place."""

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        return {}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take what `tensors` gave; the dictionary's own were taken before."""
