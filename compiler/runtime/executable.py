"""The object a user holds: call it, generate with it, save it, ask it what it is."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from qfuse.compiler.runtime.device import Device
from qfuse.compiler.runtime.plan import KernelStep, TensorType
from qfuse.compiler.runtime.program import Program
from qfuse.compiler.runtime.report import Report
from qfuse.compiler.runtime.session import Session
from qfuse.dialects.errors import QfuseError

IDS, POSITION, LOGITS = "input_ids", "position", "logits"
"""Inputs and output of a program that generates text: int64 [1, T], int64 [T], [1, ?, V]."""


class Executable:
    """A compiled program, ready to run.

        exe = qfuse.compiler.load("model.qfuse")
        tokens = exe.generate([1, 2, 3], max_new_tokens=32)

    It has one session of its own, for one user at a time; `session()` makes more, which share
    the weights.  A program for a GPU is loaded, described and saved without one; what runs it
    takes torch's current CUDA device.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self._session: Session | None = None

    @staticmethod
    def load(path: str | Path) -> "Executable":
        """Read what `save` wrote; raises QfuseError if that cannot run here."""
        return Executable(Program.load(path))

    def save(self, path: str | Path) -> None:
        """Write the program, its weights and its kernels to one file."""
        self.program.save(path)

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        """Run the program once; returns all outputs as a tuple, which belongs to the caller.

        Inputs have to be, and outputs are, where the program runs: on the GPU it was compiled for.
        """
        return self._own_session(*inputs)

    def session(
        self,
        *,
        cache_len: int | None = None,
        batch: int = 1,
        device: torch.device | str | None = None,
        graphs: bool = True,
    ) -> Session:
        """Another independent user of the program, with caches of its own.

        `device` is which GPU to run a GPU program on; `graphs` lets it capture decoding into CUDA
        graphs.
        """
        return Session(self.program, cache_len=cache_len, batch=batch, device=device, graphs=graphs)

    @property
    def is_language_model(self) -> bool:
        """Whether the program turns tokens into logits, with caches for what came before."""
        plan = self.program.plan
        names = [a.name for a in plan.inputs]
        return names == [IDS, POSITION] and any(o.name == LOGITS for o in plan.outputs)

    @property
    def max_len(self) -> int | None:
        """How many tokens the caches hold; None for a program without caches."""
        lengths = [cache.shape[-2] for cache in self._own_session.caches.values()]
        return min(lengths, default=None)

    def generate(
        self,
        input_ids: Sequence[int] | torch.Tensor,
        max_new_tokens: int,
        eos: int | Iterable[int] | None = None,
    ) -> list[int]:
        """The likeliest continuation of a prompt, token by token, without the prompt.

        Stops after `max_new_tokens`, or after a token of `eos`, which is by default what the
        model says; pass () to go on regardless.  Raises QfuseError if a token is not in the
        vocabulary or all of it does not fit in the caches.
        """
        return list(self.stream(input_ids, max_new_tokens, eos))

    def stream(
        self,
        input_ids: Sequence[int] | torch.Tensor,
        max_new_tokens: int,
        eos: int | Iterable[int] | None = None,
    ) -> Iterator[int]:
        """`generate`, one token at a time."""
        prompt = self._prompt(input_ids)
        if max_new_tokens < 0:
            raise QfuseError(f"max_new_tokens is {max_new_tokens}; it cannot be negative")
        # the last token generated is never written to a cache
        self._check_fits(prompt.shape[1], max(0, max_new_tokens - 1))
        if eos is None:
            eos = self.program.info.get("eos_token_ids") or ()
        stop = {eos} if isinstance(eos, int) else set(eos)
        return self._tokens(prompt, max_new_tokens, stop)

    def _tokens(self, ids: torch.Tensor, count: int, stop: set[int]) -> Iterator[int]:
        session = self._own_session
        session.reset()
        which = [o.name for o in self.program.plan.outputs].index(LOGITS)
        device, waiting = session.device, deque[Callable[[], int]]()
        ids, position = ids.to(device.place), self._positions(ids)
        for i in range(count + device.ahead):
            if i < count:
                logits = session(ids, position)[which]
                likeliest = logits[0, -1].argmax()
                waiting.append(device.reading(likeliest))
                ids, position = likeliest.view(1, 1), position[-1:] + 1
            if i >= device.ahead:
                token = _read(waiting.popleft(), device)
                yield token
                if token in stop:
                    return

    def logits(self, input_ids: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """Logits after a prompt: [1, 1, V] for its last token, or [1, T, V] for all of them.

        Which of the two was chosen when the model was compiled.  Clears the caches first.
        """
        ids = self._prompt(input_ids)
        self._check_fits(ids.shape[1], 0)
        session = self._own_session
        session.reset()
        ids = ids.to(session.device.place)
        return session.run({IDS: ids, POSITION: self._positions(ids)})[LOGITS]

    def _positions(self, ids: torch.Tensor) -> torch.Tensor:
        """Places of the tokens [1, T] of a prompt, int64 [T], on the session's device."""
        return torch.arange(ids.shape[1], device=self._own_session.device.place)

    def report(self) -> Report:
        """What fusion did to the program."""
        return Report.from_json(self.program.report)

    def inspect(self) -> dict[str, Any]:
        """Operators, kernels and sizes, as plain data."""
        program, plan = self.program, self.program.plan
        steps: dict[str, int] = {}
        for step in plan.single_steps:
            name = step.kernel if isinstance(step, KernelStep) else step.op
            steps[name] = steps.get(name, 0) + 1
        return {
            "target": program.target,
            "model": {k: v for k, v in program.info.items() if k != "config"},
            "inputs": {a.name: str(a.type) for a in plan.inputs},
            "caches": {a.name: str(a.type) for a in plan.caches},
            "outputs": [o.name for o in plan.outputs],
            "sizes": program.sizes(),
            "steps": steps,
            "kernels": {
                name: {**kernel.describe(), "calls": steps.get(name, 0)}
                for name, kernel in program.kernels.items()
            },
        }

    @property
    def _own_session(self) -> Session:
        if self._session is None:
            self._session = self.session(cache_len=self._open_cache_len())
        return self._session

    def _open_cache_len(self) -> int | None:
        """How long to make caches whose length the program leaves open."""
        types = [a.type for a in self.program.plan.caches]
        still_open = any(isinstance(t, TensorType) and t.shape[-2] < 0 for t in types)
        return self.program.info.get("max_len") if still_open else None

    def _prompt(self, input_ids: Sequence[int] | torch.Tensor) -> torch.Tensor:
        """The prompt as int64 [1, T], checked."""
        if not self.is_language_model:
            names = ", ".join(a.name for a in self.program.plan.inputs)
            raise QfuseError(f"this program is no language model; call it with its inputs: {names}")
        try:
            ids = torch.as_tensor(input_ids)
        except (TypeError, ValueError, RuntimeError) as error:
            raise QfuseError(f"input_ids are not whole numbers: {error}") from error
        if ids.numel() == 0:
            raise QfuseError("the prompt is empty; it needs at least one token")
        if ids.dtype.is_floating_point or ids.dtype.is_complex or ids.dtype is torch.bool:
            raise QfuseError(f"input_ids are {ids.dtype}; tokens are whole numbers")
        if ids.dim() == 1:
            ids = ids[None]
        if ids.dim() != 2 or ids.shape[0] != 1:
            raise QfuseError(f"input_ids have shape {list(ids.shape)}; one prompt is [T] or [1, T]")
        ids = ids.to(torch.int64)
        vocabulary = self.program.info.get("vocab_size")
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or (vocabulary is not None and high >= vocabulary):
            bad = low if low < 0 else high
            last = "" if vocabulary is None else f"; tokens are 0 to {vocabulary - 1}"
            raise QfuseError(f"token {bad} is not in the vocabulary{last}")
        return ids

    def _check_fits(self, prompt: int, more: int) -> None:
        room = self.max_len
        if room is None or prompt + more <= room:
            return
        if prompt > room:
            raise QfuseError(f"the prompt has {prompt} tokens, but the caches hold {room}")
        raise QfuseError(
            f"a prompt of {prompt} tokens and {more + 1} new ones need {prompt + more} places, but "
            f"the caches hold {room}; ask for at most {room - prompt + 1} new tokens"
        )


def _read(read: Callable[[], int], device: Device) -> int:
    """The one number that is read from the device for each token, when all before it is done."""
    try:
        return read()
    except RuntimeError as error:
        text = str(error).strip().partition("\n")[0]
        raise QfuseError(f"the program failed on {device.place}: {text}") from error
