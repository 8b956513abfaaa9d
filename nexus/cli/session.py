"""What all commands share: which manager, and which form of output."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from nexus.client import Client, Connection


@dataclass(frozen=True)
class Session:
    url: str | None
    token_file: Path | None
    data: Path | None
    output: Literal["table", "json", "name"] | None

    def with_output(self, output: Literal["table", "json", "name"] | None) -> "Session":
        """The same, with the output that was asked for after the command's name."""
        return replace(self, output=output or self.output)

    def connection(self) -> "Connection":
        from nexus.client import find_connection

        return find_connection(url=self.url, token_file=self.token_file, data=self.data)

    def client(self) -> "Client":
        from nexus.client import Client

        found = self.connection()
        return Client(found.url, found.token)
