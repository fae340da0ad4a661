"""How one work on many pieces is shared out: in this process one piece after another, or as the caller says."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

from assay.progress import progress_bar


@runtime_checkable
class Spread(Protocol):
    """Does one work on many pieces, anywhere."""

    def __call__(
        self, work: Callable[[Any, Any], Any], shared: Any, pieces: Sequence[Any], label: str
    ) -> Iterator[Any]:
        """Yield `work(shared, piece)` of each piece in order, with progress under a label.

        Args:
            work: a function that can be pickled.
            shared: what every piece needs.
            pieces: what one is done with at a time.
            label: what it is called on the terminal; empty: nothing is shown.
        """
        ...


def one_by_one(
    work: Callable[[Any, Any], Any], shared: Any, pieces: Sequence[Any], label: str
) -> Iterator[Any]:
    """Do the pieces one after another in this process; see `Spread`."""
    bar = progress_bar(len(pieces), label)
    for piece in pieces:
        yield work(shared, piece)
        bar.update()
    bar.close()
