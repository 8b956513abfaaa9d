"""How builds and imports say how far they are."""

from collections.abc import Callable

Progress = Callable[[float, str], None]
"""Called with the share that is done, 0.0 to 1.0, and what is being done."""


def quiet(_share: float, _step: str) -> None:
    """Says nothing."""


def part(progress: Progress, start: float, end: float) -> Progress:
    """A progress that runs from 0 to 1 while the whole runs from ``start`` to ``end``."""

    def scaled(share: float, step: str) -> None:
        progress(start + (end - start) * share, step)

    return scaled
