"""What a sandboxed command may reach: `--allow` and `--policy` read into policy documents that select it.

The same words as in a policy, read by the same code: whatever is refused there is refused here, and says what to write
instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from egressd.errors import InvalidName
from egressd.names import Pattern
from egressd.schema import Problem, has_errors, read_policy
from egressd.schema.tree import Mapping, compose, plain
from egressd.schema.words import read_peer, read_spans, suffix_warning

__all__ = ["policy_of_allows", "policy_of_file", "rule_of"]

_BRACKETED: Final = re.compile(r"\[(?P<peer>[^\]]*)\](?::(?P<ports>.*))?\Z")


def rule_of(text: str) -> dict[str, Any]:
    """An allow rule out of PEER[:PORTS]; IPv6 with ports in brackets. Raises `click.BadParameter`."""
    if found := _BRACKETED.match(text):
        peer, ports = found["peer"], found["ports"]
    elif text.count(":") > 1:
        peer, ports = text, None
    else:
        peer, _, written = text.partition(":")
        ports = written if ":" in text else None
    entries = [] if ports is None else ports.split(",")
    try:
        read_peer(text if "://" in text else peer)  # of a URL, it says which part is the name
        for entry in entries:
            read_spans(entry)
    except (ValueError, InvalidName) as error:
        raise click.BadParameter(f"{error}", param_hint="--allow") from None
    return {"to": [peer], **({"ports": entries} if entries else {})}


def policy_of_allows(allows: Sequence[str], *, private: bool) -> tuple[str, list[str]]:
    """A policy document of what the options allow, and what to warn of. Raises `click.BadParameter`."""
    rules = [rule_of(text) for text in allows]
    peers = [read_peer(rule["to"][0]) for rule in rules]
    warnings = [warning for peer in peers if isinstance(peer, Pattern) and (warning := suffix_warning(peer))]
    if private:
        rules = [{**rule, "allowPrivate": True} for rule in rules]
    return json.dumps({"allow": rules}), warnings


def policy_of_file(file: str, namespace: str) -> tuple[str, list[Problem]]:
    """A file's policy document as one that selects the command, whatever its `subject` selects; empty with an error.

    `subject` is left out, so that what is written for pods can be tried with a command.
    """
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except OSError as error:
        return "", [Problem(file, 0, 0, "error", f"cannot be read: {error.strerror}")]
    except UnicodeDecodeError:
        return "", [Problem(file, 0, 0, "error", "is not UTF-8 text; save the file as UTF-8")]
    policy, problems = read_policy(text, name=file, namespace=namespace, policy_namespace=namespace, file=file)
    if policy is None or has_errors(problems):
        return "", problems
    documents, faults = compose(text)
    assert isinstance(documents[0], Mapping)  # noqa: S101 - it was read as a policy a moment ago
    value, _ = plain(documents[0], faults, size=len(text))
    value.pop("subject", None)
    return json.dumps(value, default=str), problems
