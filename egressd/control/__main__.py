"""`python -m egressd.control --fd N`: how the data path starts its control side. Not for people."""

from __future__ import annotations

import argparse
import sys

from egressd.control import main


def _pair(text: str) -> tuple[str, str]:
    """A setting by its dotted name, as in `dns.upstreams=192.0.2.53`."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not SETTING=VALUE")
    return name, value


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="egressd.control", description="The control side of egressd run.")
    parser.add_argument("--fd", type=int, required=True, help="descriptor of the link")
    parser.add_argument("--config", help="settings file")
    parser.add_argument("--set", type=_pair, action="append", default=[], metavar="SETTING=VALUE", dest="settings")
    return parser.parse_args()


if __name__ == "__main__":
    given = _arguments()
    sys.exit(main(given.fd, given.config, dict(given.settings)))
