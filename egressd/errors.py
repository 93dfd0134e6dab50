"""The errors egressd raises on purpose; anything else that escapes is a bug.

Each carries a sentence that says what happened and to what and, where a person
can do something about it, a `remedy` that says what. Parsers raise exactly one
of these for any bytes they refuse.
"""

from __future__ import annotations

__all__ = [
    "BudgetExceeded",
    "EgressError",
    "EnvironmentProblem",
    "InvalidName",
    "KernelError",
    "LinkError",
    "WireError",
]


class EgressError(Exception):
    """Base of all deliberate errors: `message` says what happened, `remedy` what to do about it."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class WireError(EgressError):
    """Bytes that are not the DNS message they claim to be (RFC 1035 section 4).

    `rcode` is what to answer a client that sent them (1 FORMERR, 4 NOTIMP, 16 BADVERS), or None for silence.
    """

    def __init__(self, message: str, rcode: int | None = None) -> None:
        super().__init__(message)
        self.rcode = rcode


class InvalidName(EgressError):
    """Text that is neither a domain name nor a pattern (policy.md, Patterns)."""


class LinkError(EgressError):
    """The other half of the program said something this half does not understand, or hung up."""


class BudgetExceeded(EgressError):
    """A bounded table is full; the request that hit the bound is refused, nothing else is touched."""


class EnvironmentProblem(EgressError):
    """This machine lacks what is needed (rights, kernel support, a free address): exit code 3."""


class KernelError(EgressError):
    """The kernel refused a netlink transaction. `errno` is its positive code (include/uapi/asm-generic/errno.h)."""

    def __init__(self, message: str, errno: int, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.errno = errno
