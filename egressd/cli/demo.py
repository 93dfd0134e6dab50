"""`egressd demo`: a whole node on this machine, told and shown."""

from __future__ import annotations

import os
import shutil
import sys

import click

from egressd.errors import EnvironmentProblem

__all__ = ["command"]

PROGRAMS = {"curl": "curl", "dig": "bind9-dnsutils"}
"""What the pods run, and the Debian and Ubuntu package it comes in."""


@click.command("demo", epilog="Example: egressd demo --exit", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--exit", "leave", is_flag=True, help="End after the tour instead of keeping the node up until Ctrl-C.")
def command(leave: bool) -> None:
    """Show a node that filters, on this machine.

    Makes a node of network namespaces (pods, a small internet with DNS and HTTP), starts the real daemon in it, lets
    pods run curl and dig, and says what each reached and why. Every sentence is checked: exit code 1 if anything went
    differently than told. Until Ctrl-C, the node's web page can be opened in a browser on this machine. Needs root;
    changes nothing on this machine, and leaves nothing behind.
    """
    _check_environment()
    from egressd.cli.tour import tour, window
    from egressd.lab import run_private

    processes = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    page = None if leave else window.listen()
    sys.exit(run_private(lambda: tour(stay=not leave, processes=processes, page_socket=page)))


def _check_environment() -> None:
    if os.geteuid() != 0:
        raise EnvironmentProblem("the demo makes network namespaces", "run it as root (sudo egressd demo)")
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        packages = " ".join(PROGRAMS[program] for program in missing)
        raise EnvironmentProblem(f"the demo's pods run {' and '.join(missing)}", f"apt-get install {packages}")
