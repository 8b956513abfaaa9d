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
    output: Literal["table", "json", "yaml", "name"] | None

    def with_output(self, output: Literal["table", "json", "yaml", "name"] | None) -> "Session":
        """The same, with the output that was asked for after the command's name.

        YAML is JSON written differently: commands know only the latter.
        """
        chosen = output or self.output
        if chosen != "yaml":
            return replace(self, output=chosen)
        from nexus.cli.output import Form

        Form.yaml = True
        return replace(self, output="json")

    def connection(self) -> "Connection":
        from nexus.client import find_connection

        return find_connection(url=self.url, token_file=self.token_file, data=self.data)

    def client(self) -> "Client":
        from nexus.client import Client

        found = self.connection()
        return Client(found.url, found.token)
