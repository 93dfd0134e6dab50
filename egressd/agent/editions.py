"""A large change as many small ones, none of which a pod can tell from the whole: the parts of an edition.

What must change together is what a pod's move ties together: all addresses of the pod, the subject it comes from and
the one it goes to. Everything else comes apart, a subject at a time. Values in, values out.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from egressd.link import PodEntry

__all__ = ["Key", "Move", "Part", "divided", "whole"]

Key = tuple[str, ...]
"""A subject: names of the policies that select its pods, sorted."""


class Part(NamedTuple):
    """What one change of tables and kernel takes in. `subjects` are to be judged by policies that were edited."""

    pods: tuple[PodEntry, ...] = ()
    gone: tuple[bytes, ...] = ()
    subjects: tuple[Key, ...] = ()


class Move(NamedTuple):
    """One address: what it ties together (subjects, pods), and what becomes of it (None: it goes)."""

    address: bytes
    ties: tuple[Hashable, ...]
    entry: PodEntry | None


def divided(moves: Iterable[Move], subjects: Iterable[Key]) -> list[Part]:
    """The parts of a change, as small as can be: no address, pod or subject is in two of them."""
    roots: dict[Hashable, Hashable] = {}
    moves = list(moves)
    for move in moves:
        for tie in move.ties:
            mine, other = _root(roots, move.address), _root(roots, tie)
            if mine != other:
                roots[mine] = other
    groups: dict[Hashable, tuple[list[Move], list[Key]]] = {}
    for move in moves:
        groups.setdefault(_root(roots, move.address), ([], []))[0].append(move)
    for key in subjects:
        groups.setdefault(_root(roots, key), ([], []))[1].append(key)
    return [_part(moved, keys) for moved, keys in groups.values()]


def whole(parts: Iterable[Part]) -> Part:
    """All parts as one."""
    parts = list(parts)
    return Part(
        tuple(entry for part in parts for entry in part.pods),
        tuple(address for part in parts for address in part.gone),
        tuple(key for part in parts for key in part.subjects),
    )


def _root(roots: Mapping[Hashable, Hashable], item: Hashable) -> Hashable:
    while (above := roots.get(item, item)) != item:
        item = above
    return item


def _part(moves: list[Move], subjects: list[Key]) -> Part:
    return Part(
        pods=tuple(move.entry for move in moves if move.entry is not None),
        gone=tuple(move.address for move in moves if move.entry is None),
        subjects=tuple(subjects),
    )
