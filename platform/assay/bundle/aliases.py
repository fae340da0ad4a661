"""Names behind which bundles answer; imports nothing, so that the client needs no registry."""

from typing import Literal, TypeAlias

Alias: TypeAlias = Literal["champion", "challenger"]


ALIASES: tuple[Alias, ...] = ("champion", "challenger")
