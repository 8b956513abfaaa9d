"""``python -m nexus.manager``: the manager as a process."""

import sys

import uvloop

from nexus import httpd
from nexus.manager.app import create_app
from nexus.manager.config import BadSetting, Settings


def main() -> int:
    """Serves until SIGTERM or SIGINT. 1 when it could not or its background work failed; 2 for a
    setting that means nothing."""
    httpd.configure_logging()
    try:
        settings = Settings.from_env()
        app = create_app(settings)
        listener = httpd.listen(settings.bind)
    except (BadSetting, ValueError, OSError) as error:
        print(f"nexus.manager: {error}", file=sys.stderr)
        return 2
    server = httpd.server(app, drain_s=2)
    httpd.keep_what_is_there()
    uvloop.run(server.serve(sockets=[listener]))
    return 1 if server.failed else 0


if __name__ == "__main__":
    sys.exit(main())
