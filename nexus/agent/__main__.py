"""``python -m nexus.agent``: the host daemon. ``--teardown`` removes all that it made."""

import argparse
import os
import resource
import socket
import sys

import anyio
import structlog
import uvicorn

from nexus import httpd
from nexus.agent.app import make_app
from nexus.agent.errors import SettingsInvalid
from nexus.agent.events import Feed
from nexus.agent.firewall import check_host
from nexus.agent.home import HomeNetwork
from nexus.agent.layout import Layout
from nexus.agent.links import Links
from nexus.agent.networks import Networks
from nexus.agent.settings import Settings
from nexus.agent.teardown import only_one, teardown
from nexus.agent.tools import find_tools
from nexus.api.errors import NexusError

STOP_POLL_S = 0.1

log = structlog.get_logger("agent")


def main() -> int:
    """Returns the exit status: 0 after a clean end, 1 with a reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m nexus.agent", description=__doc__)
    parser.add_argument("--teardown", action="store_true", help="remove all VMs and networks")
    arguments = parser.parse_args()
    httpd.configure_logging(os.environ.get("NEXUS_LOG_LEVEL", "INFO"))
    try:
        settings = Settings.from_environment()
        if os.geteuid() != 0:
            raise SettingsInvalid("the agent makes TAPs and bridges: run it as root")
        if arguments.teardown:
            teardown(settings)
        elif not run(settings):
            return 1
    except (SettingsInvalid, NexusError, OSError, TimeoutError) as error:
        cure = getattr(error, "suggestion", None)
        sys.stderr.write(f"nexus agent: {error}\n" + (f"  {cure}\n" if cure else ""))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def run(settings: Settings) -> bool:
    """Serves until SIGTERM or SIGINT; VMs keep running. False when that ended by a failure, which
    is in the log."""
    settings.check_bind()
    _raise_file_limit()
    layout = Layout(settings.run_dir)
    with only_one(settings):
        # Before anything is made: a bridge is never up without rules.
        check_host()
        layout.prepare()
        links = Links()
        try:
            home = HomeNetwork.ensure(settings, links, has_vms=bool(layout.vm_ids()))
            network = Networks(home, links, layout, own_port=settings.tcp_port)
            tools = find_tools(settings, network)
            feed = Feed()
            server = httpd.server(make_app(settings, tools, feed))
            httpd.keep_what_is_there()
            with httpd.listen(settings.bind) as listener:
                log.info("agent ready", bind=settings.bind, engine=tools.engine)
                anyio.run(_serve, server, listener, feed, backend_options={"use_uvloop": True})
            return not server.failed
        finally:
            links.close()


async def _serve(server: uvicorn.Server, listener: socket.socket, feed: Feed) -> None:
    async with anyio.create_task_group() as tasks:

        async def end_streams() -> None:
            # When uvicorn stops it waits for open streams to end.
            while not server.should_exit:  # noqa: ASYNC110 - uvicorn offers no event for it
                await anyio.sleep(STOP_POLL_S)
            feed.close()

        tasks.start_soon(end_streams)
        await server.serve(sockets=[listener])
        tasks.cancel_scope.cancel()


def _raise_file_limit() -> None:
    """A pidfd for each VM, and a few descriptors for each request."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
