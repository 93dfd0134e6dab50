"""`egressd run`: the daemon of one node, in the foreground."""

from __future__ import annotations

import sys

import click

__all__ = ["command"]


@click.command(
    "run",
    epilog="Example: egressd run --config /etc/egressd/egressd.yaml",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option(
    "--config", type=click.Path(dir_okay=False), help="Settings file (config/egressd.yaml shows all of them)."
)
@click.option("--node", help="Name of this node; default: NODE_NAME, else the host name.")
@click.option("--objects", type=click.Path(file_okay=False), help="Folder of manifests to watch (source.path).")
@click.option("--upstream", multiple=True, help="DNS server to ask (dns.upstreams); may be repeated.")
def command(config: str | None, node: str | None, objects: str | None, upstream: tuple[str, ...]) -> None:
    """Filter the egress of this node's pods until SIGTERM.

    Needs root with CAP_NET_ADMIN. SIGTERM stops asking and answering; what the kernel was told stays in force.
    SIGHUP reads the settings again and reopens the audit file.
    """
    from egressd.agent import main

    arguments: list[str] = ["--config", config] if config else []
    flags = {"node": node, "source.path": objects, "dns.upstreams": ",".join(upstream)}
    for name, value in flags.items():
        if value:
            arguments += ["--set", f"{name}={value}"]
    sys.exit(main(arguments))
