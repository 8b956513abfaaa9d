"""``nexus-qemu``: parses the command line, starts serving, ends as Firecracker ends."""

import os
import signal
import sys
import time

from nexus.qemu import FIRECRACKER_VERSION, cli
from nexus.qemu.api import Api
from nexus.qemu.configfile import start_from_file
from nexus.qemu.faults import Fault, os_error
from nexus.qemu.host import look
from nexus.qemu.instance import Instance
from nexus.qemu.log import Log, is_level
from nexus.qemu.metrics import Metrics
from nexus.qemu.mmds import DEFAULT_LIMIT_BYTES, DataStore
from nexus.qemu.server import Server
from nexus.qemu.snapshot import FORMAT_VERSION, read_state
from nexus.qemu.terminal import Terminal


class _Failure(Exception):
    """A start that failed: what the log says, and the exit code."""

    def __init__(self, message: str, code: int = cli.EXIT_ERROR) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


def main() -> None:
    """The command; ends the process with Firecracker's exit code."""
    log = Log("anonymous-instance")
    try:
        code = _run(log)
    except cli.BadArguments as error:
        log.error(f"Arguments parsing error: {error} \\n\\nFor more information try --help.")
        print(f"Error: {error}", file=sys.stderr)
        code = cli.EXIT_BAD_ARGUMENTS
    except _Failure as error:
        log.error(error.message)
        print(f"Error: {error.message}", file=sys.stderr)
        code = error.code
    if code == cli.EXIT_OK:
        log.info("Firecracker exiting successfully. exit_code=0")
    else:
        log.error(f"Firecracker exiting with error. exit_code={code}")
    sys.exit(code)


def _run(log: Log) -> int:
    options = cli.parse(sys.argv[1:])
    log.instance_id = options.values["id"]
    if _answered(options):
        return cli.EXIT_OK
    metrics = Metrics()
    _configure(options, log, metrics)
    log.info(f"Running Firecracker v{FIRECRACKER_VERSION}")
    mmds = DataStore(options.number("mmds-size-limit") or DEFAULT_LIMIT_BYTES)
    if "metadata" in options.values:
        _load_metadata(options.values["metadata"], mmds)
    max_payload = options.number("http-api-max-payload-size") or 0
    host = look(sandbox="no-seccomp" not in options.flags)
    if host.kvm:
        log.debug("QEMU runs the guest on hardware KVM.")
    instance = Instance(log.instance_id, host, log, metrics)
    server = Server(instance, Api(instance, mmds, log, metrics), log, max_payload)
    terminal = Terminal()
    try:
        return _serve(options, instance, server, log, metrics)
    finally:
        instance.close()
        terminal.restore()
        if server.signal is not None:
            # Die of the signal itself, as Firecracker does.
            signal.signal(server.signal, signal.SIG_DFL)
            os.kill(os.getpid(), server.signal)


def _serve(
    options: cli.Options, instance: Instance, server: Server, log: Log, metrics: Metrics
) -> int:
    with_api = "no-api" not in options.flags
    if with_api:
        path = options.values["api-sock"]
        try:
            server.listen(path)
        except OSError as error:
            if os.path.lexists(path):
                raise _Failure(
                    f"RunWithApiError error: Failed to open the API socket at: {path}. Check that "
                    "it is not already used."
                ) from error
            raise _Failure(
                "RunWithApiError error: Failed to bind and run the HTTP server: IO error: "
                f"{os_error(error)}"
            ) from error
    if "boot-timer" in options.flags:
        log.warning("QEMU's microvm has no boot timer device; --boot-timer reports nothing.")
    if "config-file" in options.values:
        kind = "RunWithApiError" if with_api else "RunWithoutApiError"
        try:
            start_from_file(options.values["config-file"], instance, log, metrics)
        except Fault as fault:
            text = f"{kind} error: Failed to build MicroVM from Json: {fault.message}"
            raise _Failure(text) from fault
        log.info("Successfully started microvm that was configured from one single json")
    return server.run()


def _configure(options: cli.Options, log: Log, metrics: Metrics) -> None:
    level = options.values.get("level")
    if level is not None and not is_level(level):
        raise _Failure(
            "Invalid value for logger level: Failed to parse string to level filter: "
            f"{level}.Possible values: [Error, Warning, Info, Debug]",
            cli.EXIT_BAD_CONFIGURATION,
        )
    try:
        log.configure(
            path=options.values.get("log-path"),
            level=level,
            show_level="show-level" in options.flags or None,
            show_origin="show-log-origin" in options.flags or None,
        )
    except Fault as fault:
        raise _Failure(f"Could not initialize logger: {fault.message}") from fault
    if "metrics-path" in options.values:
        try:
            metrics.open(options.values["metrics-path"])
        except Fault as fault:
            raise _Failure(f"Could not initialize metrics: {fault.message}") from fault
    started_us = options.number("start-time-us")
    if started_us is not None:
        now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        metrics.store("api_server", "process_startup_time_us", max(0, now_us - started_us))


def _answered(options: cli.Options) -> bool:
    """Serves the options that only print something."""
    version = f"Firecracker v{FIRECRACKER_VERSION}"
    if "help" in options.flags:
        print(cli.help_text(version), flush=True)
    elif "version" in options.flags:
        print(f"{version}\n", flush=True)
    elif "snapshot-version" in options.flags:
        print(FORMAT_VERSION, flush=True)
    elif "describe-snapshot" in options.values:
        try:
            read_state(options.values["describe-snapshot"])
        except Fault as fault:
            raise _Failure(f"When printing Snapshot Data format: {fault.message}") from fault
        print(FORMAT_VERSION, flush=True)
    else:
        return False
    return True


def _load_metadata(path: str, mmds: DataStore) -> None:
    from nexus.qemu.bodies import decode
    from nexus.vmm.types import MmdsContents

    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib is not imported otherwise
            mmds.put(decode(file.read(), MmdsContents))
    except OSError as error:
        raise _Failure(f"Cannot read the metadata file: {os_error(error)}") from error
    except Fault as fault:
        raise _Failure(f"Cannot use the metadata file: {fault.message}") from fault


if __name__ == "__main__":
    main()
