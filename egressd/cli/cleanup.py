"""`egressd cleanup`: remove every trace of egressd from the kernel."""

from __future__ import annotations

import os
import sys

import click

__all__ = ["command"]


@click.command("cleanup", epilog="Example: egressd cleanup", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config", type=click.Path(exists=True, dir_okay=False), help="Settings file, for table and route names."
)
def command(config: str | None) -> None:
    """Remove egressd's table, routing rules and routes from this node's kernel.

    Every pod is then as free as before egressd came. Stop the daemon first, or it puts them back.
    """
    from egressd.errors import EgressError
    from egressd.kernel import Kernel
    from egressd.kernel.routes import remove_routes
    from egressd.schema import load_settings

    if os.geteuid() != 0:
        click.echo("egressd: error: cleanup needs root: it changes nftables and routing; use sudo", err=True)
        sys.exit(3)
    try:
        settings = load_settings(config, os.environ, {})
        kernel = Kernel(settings)
        kernel.remove()
        kernel.close()
        remove_routes(settings)
    except EgressError as error:
        click.echo(f"egressd: error: {error}", err=True)
        sys.exit(3)
    click.echo(f"removed table inet {settings.firewall.table} and the routes of table {settings.firewall.route_table}")
