"""How the task that owns a machine is woken, and how others wait until it has looked."""

import anyio


class Attention:
    """Of one owner. A poke that comes while the owner is busy is not lost: it looks once more."""

    def __init__(self) -> None:
        self._poked = False
        self._wake = anyio.Event()
        self._waiting: list[anyio.Event] = []

    def poke(self) -> None:
        """Has the owner look again."""
        self._poked = True
        self._wake.set()

    async def attended(self) -> None:
        """Returns when a look that began after this call has ended."""
        done = anyio.Event()
        self._waiting.append(done)
        self.poke()
        await done.wait()

    # -- for the owner ---------------------------------------------------------------------

    def begin(self) -> list[anyio.Event]:
        """The start of a look; at its end the owner sets the events it was given."""
        self._poked = False
        waiting, self._waiting = self._waiting, []
        return waiting

    async def poked(self, timeout_s: float | None = None) -> None:
        """Until somebody pokes, or at once when somebody has since ``begin``; or the time-out."""
        if not self._poked:
            self._wake = anyio.Event()
            with anyio.move_on_after(timeout_s):
                await self._wake.wait()

    async def next_poke(self, timeout_s: float) -> bool:
        """Until a poke that comes from now on, or the time-out; whether there was a poke."""
        self._wake = anyio.Event()
        with anyio.move_on_after(timeout_s):
            await self._wake.wait()
        return self._wake.is_set()

    def dismiss(self) -> None:
        """The owner ends; nobody waits any longer."""
        for done in self._waiting:
            done.set()
