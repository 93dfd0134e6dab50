"""The control side: the child process without privileges that does what is large, slow or talkative.

It reads the settings and the objects, works out who is selected by what, tells the data path over the link, and
writes the audit records that come back. It says `Ready`, the whole world, `Synced`, and then every change; or
`Refused`. The data path ends it by closing the link. Should it die instead, it is started again, and the data path
goes on with what it knows.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress

from egressd import export
from egressd.control import privileges
from egressd.control.service import Service, serve
from egressd.control.sources import open_source
from egressd.errors import EnvironmentProblem
from egressd.link import Refused, encode
from egressd.schema import SettingsError, load_settings
from egressd.settings import Settings

__all__ = ["main"]

NICE = 5
"""Where both want the same core, answers come first: of three turns the data path gets two."""
WRONG_USAGE = 2
ENVIRONMENT = 3
"""Exit codes of interface.md (Command line)."""


def main(fd: int, config: str | None, flags: Mapping[str, object]) -> int:
    """Serve the link at `fd`, one end of a stream socket pair, until its other end is closed; returns the exit code.

    `config` is the settings file, or None for its default; `flags` are settings from the command line.
    """
    with socket.socket(fileno=fd) as link:
        try:
            privileges.drop()
            privileges.follow_parent()
            os.nice(NICE)

            def read() -> Settings:
                settings = load_settings(config, os.environ, flags)
                export.check(settings.otlp, os.environ)
                return settings

            settings = read()
            service = Service(settings, open_source(settings), read)
        except SettingsError as error:
            return _refuse(link, str(error), WRONG_USAGE)
        except EnvironmentProblem as error:
            return _refuse(link, f"egressd: {error}", ENVIRONMENT)
        return serve(service, link)


def _refuse(link: socket.socket, text: str, code: int) -> int:
    print(text, file=sys.stderr, flush=True)
    with suppress(OSError):  # nobody is left to be told
        link.sendall(encode(Refused(code)))
    return code
