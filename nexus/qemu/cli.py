"""Firecracker's command line: options, messages and exit codes of 1.12."""

import msgspec

# Firecracker's FcExitCode.
EXIT_OK = 0
EXIT_ERROR = 1
EXIT_BAD_CONFIGURATION = 152
EXIT_BAD_ARGUMENTS = 153

_FLAGS = {
    "boot-timer": "Whether or not to load boot timer device for logging elapsed time since "
    "InstanceStart command.",
    "help": "Show the help message.",
    "no-api": "Optional parameter which allows starting and using a microVM without an active API "
    "socket.",
    "no-seccomp": "Optional parameter which allows starting and using a microVM without seccomp "
    "filtering. Not recommended.",
    "show-level": "Whether or not to output the level in the logs.",
    "show-log-origin": "Whether or not to include the file path and line number of the log's "
    "origin.",
    "snapshot-version": "Print the supported data format version.",
    "version": "Print the binary version number.",
}
_VALUES = {
    "api-sock": "Path to unix domain socket used by the API.",
    "config-file": "Path to a file that contains the microVM configuration in JSON format.",
    "describe-snapshot": "Print the data format version of the provided snapshot state file.",
    "http-api-max-payload-size": "Http API request payload max size, in bytes.",
    "id": "MicroVM unique identifier.",
    "level": "Set the logger level.",
    "log-path": "Path to a fifo or a file used for configuring the logger on startup.",
    "metadata": "Path to a file that contains metadata in JSON format to add to the mmds.",
    "metrics-path": "Path to a fifo or a file used for configuring the metrics on startup.",
    "mmds-size-limit": "Mmds data store limit, in bytes.",
    "module": "Set the logger module filter.",
    "parent-cpu-time-us": "Parent process CPU time (wall clock, microseconds). This parameter is "
    "optional.",
    "seccomp-filter": "Optional parameter which allows specifying the path to a custom seccomp "
    "filter. For advanced users.",
    "start-time-cpu-us": "Process start CPU time (wall clock, microseconds). This parameter is "
    "optional.",
    "start-time-us": "Process start time (wall clock, microseconds). This parameter is optional.",
}
_DEFAULTS = {
    "api-sock": "/run/firecracker.socket",
    "http-api-max-payload-size": "51200",
    "id": "anonymous-instance",
}


class BadArguments(Exception):
    """Arguments that Firecracker refuses, in its words."""


class Options(msgspec.Struct):
    """What was given, over the defaults."""

    flags: set[str] = set()
    values: dict[str, str] = msgspec.field(default_factory=lambda: dict(_DEFAULTS))

    def number(self, name: str) -> int | None:
        """A numeric value; raises BadArguments."""
        text = self.values.get(name)
        if text is None:
            return None
        if not text.isascii() or not text.isdigit():
            raise BadArguments(f"'{name}' parameter expected to be of 'usize' type.")
        return int(text)


def parse(argv: list[str]) -> Options:
    """Reads ``--name value`` and ``--name=value``; raises BadArguments."""
    options = Options()
    given: set[str] = set()
    words = iter(argv)
    for word in words:
        word = "--help" if word == "-h" else word
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or (name not in _FLAGS and name not in _VALUES):
            raise BadArguments(
                f"Found argument '{name}' which wasn't expected, or isn't valid in this context."
            )
        if name in given:
            raise BadArguments(f"The argument '{name}' was provided more than once.")
        given.add(name)
        if name in _FLAGS:
            options.flags.add(name)
            continue
        if not equals:
            value = next(words, "")
        if not value or value.startswith("--"):
            raise BadArguments(f"The argument '{name}' requires a value, but none was supplied.")
        options.values[name] = value
    _check(options, given)
    return options


def _check(options: Options, given: set[str]) -> None:
    if options.flags & {"help", "version", "snapshot-version"}:
        return
    if "no-api" in given and "config-file" not in given:
        raise BadArguments("Argument 'config-file' required, but not found.")
    for one, other in (("no-seccomp", "seccomp-filter"), ("no-api", "api-sock")):
        if one in given and other in given and other != "api-sock":
            raise BadArguments(f"Argument '{one}' cannot be used together with '{other}'.")
    size = options.values["id"]
    if not 0 < len(size) <= 64:
        raise BadArguments("Invalid instance ID: it must have 1 to 64 characters.")
    if not all(char.isascii() and (char.isalnum() or char == "-") for char in size):
        raise BadArguments("Invalid instance ID: only letters, digits and '-' are allowed.")


def help_text(version: str) -> str:
    """``--help``."""
    names = sorted(_FLAGS | _VALUES)
    width = max(2 * len(name) + 5 for name in _VALUES) + 4
    lines = [version, "", "optional arguments:"]
    for name in names:
        usage = f"--{name}" if name in _FLAGS else f"--{name} <{name}>"
        default = f' [default: "{_DEFAULTS[name]}"]' if name in _DEFAULTS else ""
        text = _FLAGS.get(name) or _VALUES[name]
        lines.append(f"  {usage:<{width}}{text}{default}")
    return "\n".join(lines)
