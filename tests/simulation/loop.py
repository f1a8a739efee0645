"""An event loop on virtual time: one thread, one order of everything, decided by a seed.

Used by `world` alone. `time()` is the virtual clock; when nothing is ready the clock jumps to the next timer, so a run never waits.
What is ready at the same moment may run in any order, as tasks may on a real loop; the seed chooses. Callbacks belong to a
*generation*, inherited by everything that they start: an operator is one generation, and killing it takes away every callback and
task of it at once, as `kill -9` does, while the world around it goes on. Knows nothing of what runs on it.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from typing import Any

GENERATION: ContextVar[int] = ContextVar("generation", default=0)
"""0 is the world itself."""
FIRST_PRUNING = 2_000


class Stalled(RuntimeError):
    """Nothing is ready and no timer is set: whoever still waits, waits for ever."""


class Livelock(RuntimeError):
    """More steps than any run needs: something goes round in circles."""


class Buried(BaseException):
    """What the frames of a killed generation see last."""


def _unwind(coro: Any) -> None:
    """End a coroutine that will never run again. `close` alone would leave a suspended async generator inside it half open, so a
    foreign exception is thrown in; whoever awaits on his way out gets it again."""
    for _ in range(20):
        try:
            coro.throw(Buried())
        except BaseException:
            return
    with suppress(RuntimeError):  # it awaits without end; its frames are garbage now
        coro.close()


class SimLoop(asyncio.BaseEventLoop):
    """See the module.

    Args:
        rng: chooses the order of what is ready together; None keeps asyncio's own order.
        max_steps: after so many iterations the run counts as a livelock.
    """

    def __init__(self, rng: random.Random | None, *, max_steps: int = 5_000_000) -> None:
        super().__init__()
        # Private to asyncio, named here once: the queue of what is ready, and the heap of timers.
        self._ready: deque[Any]
        self._scheduled: list[Any]
        self._timer_cancelled_count: int
        self._stopping: bool
        self._now_s = 0.0
        self._order = rng
        self._max_steps = max_steps
        self._dead: set[int] = set()
        self._paused: dict[int, list[asyncio.Handle]] = {}
        self._members: dict[int, list[asyncio.Task[Any]]] = {}
        self._buried: set[asyncio.Task[Any]] = set()
        self._prune_at = FIRST_PRUNING
        self.steps = 0

    # --- what BaseEventLoop asks of a real loop ---

    def time(self) -> float:
        return self._now_s

    def _write_to_self(self) -> None:
        """There is no other thread that could have to wake this one."""

    def _run_once(self) -> None:
        """One iteration: jump to the next timer if nothing is ready, then run what is ready, in the order that the seed gives."""
        self.steps += 1
        if self.steps > self._max_steps:
            raise Livelock(f"still busy after {self.steps} steps, at {self._now_s:.3f} s")
        ready, timers = self._ready, self._scheduled
        if self._timer_cancelled_count > 100 and 2 * self._timer_cancelled_count > len(timers):
            self._drop_cancelled_timers()
            timers = self._scheduled
        while timers and timers[0]._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(timers)._scheduled = False
        if not ready and not self._stopping:
            if not timers:
                raise Stalled(f"everything waits at {self._now_s:.3f} s and nothing will ever happen")
            self._now_s = max(self._now_s, timers[0]._when)
        while timers and timers[0]._when <= self._now_s:
            handle = heapq.heappop(timers)
            handle._scheduled = False
            if handle._cancelled:
                self._timer_cancelled_count -= 1
            else:
                ready.append(handle)
        if self._dead or self._paused:
            self._sort_out(ready)
        batch = list(ready)
        ready.clear()
        if len(batch) > 1 and self._order is not None:
            self._order.shuffle(batch)
        for handle in batch:
            if not handle._cancelled and (not self._dead or handle._context.get(GENERATION, 0) not in self._dead):
                handle._run()

    def _drop_cancelled_timers(self) -> None:
        alive = []
        for handle in self._scheduled:
            if handle._cancelled:
                handle._scheduled = False
            else:
                alive.append(handle)
        heapq.heapify(alive)
        self._scheduled = alive
        self._timer_cancelled_count = 0

    def _sort_out(self, ready: Any) -> None:
        """Drop what belongs to the dead, hold back what belongs to the stopped."""
        items = list(ready)
        ready.clear()
        for handle in items:
            generation = handle._context.get(GENERATION, 0)
            if generation in self._dead:
                continue
            held = self._paused.get(generation)
            if held is not None:
                held.append(handle)
            else:
                ready.append(handle)

    # --- generations ---

    def create_task(self, coro: Coroutine[Any, Any, Any], *, name: str | None = None, context: Context | None = None) -> Any:
        task = super().create_task(coro, name=name, context=context)
        generation = GENERATION.get() if context is None else context.get(GENERATION, 0)
        if generation:
            self._members.setdefault(generation, []).append(task)
            if len(self._members[generation]) > self._prune_at:
                # One that has failed and whose waiter has not looked yet stays too: the waiter may be killed before it does.
                alive = self._members[generation] = [
                    member for member in self._members[generation] if not member.done() or member._log_traceback
                ]
                self._prune_at = max(FIRST_PRUNING, 2 * len(alive))
        return task

    def begin(self, generation: int, make: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
        """Start the first task of a generation."""
        context = copy_context()
        context.run(GENERATION.set, generation)
        return context.run(lambda: self.create_task(make(), context=context))

    def kill(self, generation: int) -> None:
        """From this moment nothing of the generation runs any more. Safe to call from within it."""
        self._dead.add(generation)
        self._paused.pop(generation, None)

    def bury(self, generation: int) -> None:
        """Let go of what a killed generation left, from outside of it. Its frames are unwound, yet none gets to await again."""
        assert generation in self._dead, "only what was killed is buried"
        members = self._members.pop(generation, [])
        self._buried.update(member for member in members if not member.done())
        for task in reversed(members):  # what was started last first: nobody is left who waits for it
            if task.done():
                if not task.cancelled():
                    task.exception()  # seen: it is not an error that nobody looks at
                continue
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            _unwind(task.get_coro())

    def bury_the_dead(self) -> None:
        """Every killed generation, also one whose burial was still to come when the run ended."""
        for generation in sorted(self._dead):
            self.bury(generation)

    def living(self) -> list[asyncio.Task[Any]]:
        """Tasks that are not done and can still run."""
        return [task for task in asyncio.all_tasks(self) if task not in self._buried]

    def pause(self, generation: int) -> None:
        """Stop a generation as SIGSTOP does: time goes on, its callbacks wait."""
        if generation not in self._dead:
            self._paused.setdefault(generation, [])

    def resume(self, generation: int) -> None:
        """Go on as after SIGCONT."""
        for handle in self._paused.pop(generation, ()):
            self._ready.append(handle)
