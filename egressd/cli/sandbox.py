"""`egressd sandbox`: run a command that reaches only what is allowed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import click

from egressd.cli import EXIT_USAGE
from egressd.errors import EnvironmentProblem

__all__ = ["command"]


@click.command(
    "sandbox",
    epilog="Example: egressd sandbox --allow api.example.com:443 --allow '*.s3.example' -- curl -sS https://api.example.com",
    context_settings={"help_option_names": ["-h", "--help"], "allow_interspersed_args": False},
)
@click.option(
    "--allow",
    "allows",
    multiple=True,
    metavar="PEER[:PORTS]",
    help="What it may reach: a name, *.name, *, an address or a block; ports like 443, 443/TCP or 80,8000-8100/TCP. "
    "IPv6 with ports in brackets. May be repeated.",
)
@click.option("--allow-private", is_flag=True, help="Names of --allow may lead to private addresses.")
@click.option("--policy", type=click.Path(dir_okay=False), help="A policy document; its subject does not matter.")
@click.option("--audit", type=click.Path(dir_okay=False), help="Append the audit records to this file (JSON Lines).")
@click.option(
    "--dns",
    multiple=True,
    metavar="RESOLVER",
    help="Who is asked for names instead of this machine's resolvers; also tls://ADDRESS#NAME. May be repeated.",
)
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND…")
def command(
    allows: tuple[str, ...],
    allow_private: bool,
    policy: str | None,
    audit: str | None,
    dns: tuple[str, ...],
    argv: tuple[str, ...],
) -> None:
    """Run a command on this machine so that it reaches only what is allowed.

    Without --allow and --policy it reaches nothing. It runs as whoever called, in the same folder and terminal, and
    sees the same files, but for /etc/resolv.conf and a /run of its own; it has no capability to undo any of it. When
    it ends, what it was denied is printed on standard error, with the --allow that would permit it. The exit code is
    the command's (128 + n after signal n, 126 or 127 if it cannot be run). Needs root, and no Kubernetes.

    It filters the network, not files: what runs as root may write files by which others act for it.
    """
    _check_environment()
    policies = _policies(allows, private=allow_private, file=policy)
    from egressd.cli._denials import Denials
    from egressd.cli._resolvers import machine_resolvers, other_lines, stated_resolvers
    from egressd.lab.sandbox import Order, run_sandbox

    resolvers = stated_resolvers(dns) if dns else machine_resolvers()
    denials = Denials()
    order = Order(
        argv,
        policies,
        resolvers,
        resolv_conf=other_lines(),
        on_record=_recorder(denials.take, _opened(audit) if audit else None),
        on_end=lambda: _say(*denials.lines()),
        say=_say,
    )
    sys.exit(run_sandbox(order))


def _check_environment() -> None:
    if os.geteuid() != 0:
        raise EnvironmentProblem("a sandbox is made of network namespaces", "run it as root (sudo egressd sandbox …)")
    if Path.cwd().is_relative_to("/run"):
        raise EnvironmentProblem("a command in a sandbox sees nothing of /run", "start it from another folder")


def _policies(allows: tuple[str, ...], *, private: bool, file: str | None) -> dict[str, str]:
    """Policy documents by name; with a file alone, that is all there is. Ends with its problems told, if it has any."""
    from egressd.cli._allowed import policy_of_allows, policy_of_file
    from egressd.lab.sandbox import NAMESPACE

    found: dict[str, str] = {}
    if allows or not file:
        found["allow"], warnings = policy_of_allows(allows, private=private)
        _say(*(f"warning: {warning}" for warning in warnings))
    if file:
        found["policy"], problems = policy_of_file(file, NAMESPACE)
        for problem in problems:
            click.echo(str(problem), err=True)
        if not found["policy"]:
            sys.exit(EXIT_USAGE)
    return found


def _opened(file: str) -> BinaryIO:
    """The file for records, opened here, where it is what the caller means and with the caller's rights."""
    try:
        return Path(file).open("ab")
    except OSError as error:
        raise EnvironmentProblem(
            f"{file} cannot be written: {error.strerror}", "name another file with --audit"
        ) from None


def _recorder(count: Callable[[bytes], None], audit: BinaryIO | None) -> Callable[[bytes], None]:
    """Keeps and counts records. A file that cannot be written any more is told of once, and the command goes on."""
    files = [audit] if audit is not None else []

    def take(line: bytes) -> None:
        count(line)
        for file in files:
            try:
                file.write(line + b"\n")
                file.flush()
            except OSError as error:
                files.clear()
                _say(f"error: {file.name} cannot be written: {error.strerror}; no more records are kept")

    return take


def _say(*lines: str) -> None:
    for line in lines:
        click.echo(f"egressd: {line}", err=True)
