"""The label trie: which patterns match a name, in as many steps as the name has labels that any pattern shares.

Names are read from the right, one label a step. Where no pattern goes on, the walk stops; so a look-up costs what the
policies' own names are deep, not how many they are nor how long the question is. All names that stop at the same place
are matched by the same patterns, so the place is a key under which what follows from a name can be remembered, in
memory bounded by the policies and not by what pods ask. `Pattern.matches` is the reference.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from egressd.names import ROOT, Name, Pattern

__all__ = ["LabelTrie", "Node"]

V = TypeVar("V")


class Node(Generic[V]):
    """One name that patterns end at or pass through: `exact` is of that name alone, `wild` of every name below it."""

    __slots__ = ("children", "exact", "wild")

    def __init__(self) -> None:
        self.children: dict[str, Node[V]] | None = None
        self.exact: tuple[V, ...] = ()
        self.wild: tuple[V, ...] = ()


class LabelTrie(Generic[V]):
    """Values under patterns. Filled once by `add`, then only read."""

    __slots__ = ("_root",)

    def __init__(self) -> None:
        self._root: Node[V] = Node()

    def add(self, pattern: Pattern, value: tuple[V, ...]) -> None:
        """Put the values under the pattern. Handed a tuple so that the many patterns of one rule can share it."""
        node = self.node(pattern.name)
        if pattern.wildcard:
            node.wild = (*node.wild, *value) if node.wild else value
        else:
            node.exact = (*node.exact, *value) if node.exact else value

    def node(self, name: Name) -> Node[V]:
        """The node of the name, made where it is missing; names at and below it then stop at places of their own."""
        node = self._root
        for label in _labels(name):
            children = node.children
            if children is None:
                children = node.children = {}
            child = children.get(label)
            if child is None:
                child = children[label] = Node()
            node = child
        return node

    def place(self, name: Name) -> tuple[Node[V], bool]:
        """Where the name stops, and whether all of it was used up (else it lies below that node)."""
        node = self._root
        for label in _labels(name):
            if node.children is None:
                return node, False
            child = node.children.get(label)
            if child is None:
                return node, False
            node = child
        return node, True

    def levels(self, name: Name) -> list[tuple[V, ...]]:
        """The values under all patterns that match, most specific pattern first: the name itself, then from the longest
        wildcard to `*`. Levels without values are left out."""
        node = self._root
        found = [node.wild]  # `*` matches every name, the root too; any other wildcard needs a label in front
        labels = _labels(name)
        for position, label in enumerate(labels):
            child = node.children.get(label) if node.children is not None else None
            if child is None:
                break
            node = child
            if position < len(labels) - 1:
                found.append(node.wild)
        else:
            found.append(node.exact)
        return [values for values in reversed(found) if values]


def _labels(name: Name) -> list[str]:
    """Labels from the right; none for the root."""
    if name == ROOT:
        return []
    labels = name.split(".")
    labels.reverse()
    return labels
