"""What the endpoints answer, as types: encoded as they are, and described by the OpenAPI document as they are."""

from __future__ import annotations

from msgspec import Struct

__all__ = [
    "AllowLine",
    "Cache",
    "Condition",
    "Explained",
    "Fault",
    "Grant",
    "Grants",
    "GrantsStatus",
    "Health",
    "Pod",
    "Pods",
    "Policies",
    "PoliciesStatus",
    "Policy",
    "Readiness",
    "Records",
    "Rule",
    "Sharer",
    "Source",
    "Status",
    "Unready",
    "Upstream",
    "Verdicts",
]


class Health(Struct):
    alive: bool


class Unready(Struct):
    """One reason why the daemon is not ready."""

    reason: str
    detail: str


class Readiness(Struct):
    ready: bool


class Source(Struct):
    """Where pods and policies come from."""

    kind: str
    up: bool
    ailments: list[str]
    """Why what is known may be old."""
    facts: list[str]
    """What the source told of the cluster, one sentence each."""


class PoliciesStatus(Struct):
    in_force: int
    refused: int
    """Documents whose latest text is refused; their last good version, if there was one, is in force."""


class GrantsStatus(Struct):
    alive: int
    limit: int
    evicted: int


class Verdicts(Struct):
    """Counts since the data path started."""

    total: int
    allowed: int
    denied: int
    would_deny: int
    would_allow: int


class Cache(Struct):
    entries: int
    bytes: int
    hits: int
    misses: int


class Upstream(Struct):
    upstream: str
    healthy: bool
    failures: int
    """In a row, since its last answer."""


class Records(Struct):
    """Audit records."""

    written: int
    dropped: int
    queued: int


class Status(Struct):
    version: str
    node: str
    started: str
    """RFC 3339, UTC."""
    ready: bool
    reasons: list[Unready]
    source: Source
    pods: int
    pods_selected: int
    subjects: int
    policies: PoliciesStatus
    grants: GrantsStatus
    queries: Verdicts
    flows: Verdicts
    cache: Cache
    upstreams: list[Upstream]
    audit: Records
    control_restarts: int


class Pod(Struct):
    namespace: str
    name: str
    uid: str
    service_account: str
    workload: str
    """KIND/NAME of the owner, or empty."""
    addresses: list[str]
    policies: list[str]
    """Those that select it."""
    enforced: bool
    """Whether any of them closes anything; false: all is open, or only reported."""
    exempt: bool
    """Whether its DNS is left alone because it serves DNS to us."""
    in_flight: int
    """Queries of it that wait for an upstream."""


class Pods(Struct):
    pods: list[Pod]
    truncated: bool
    """Whether there are more than `limit`."""


class Condition(Struct):
    type: str
    """Accepted or Programmed."""
    status: str
    """True, False or Unknown."""
    reason: str
    message: str
    since: str
    """RFC 3339, UTC."""


class Fault(Struct):
    """What is wrong with a policy's text; `line` and `column` from 1, 0 where there is none."""

    file: str
    line: int
    column: int
    severity: str
    message: str


class Rule(Struct):
    name: str
    action: str
    to: list[str]
    ports: str
    allow_private: bool
    line: int
    """Line in the policy's text, from 1; 0 where it is not known."""


class Policy(Struct):
    name: str
    mode: str
    """Enforce or Audit; empty where no version was ever good."""
    dns: str
    on_revoke: str
    pods: int
    """Pods of this node that it selects."""
    conditions: list[Condition]
    problems: list[Fault]
    rules: list[Rule]


class Policies(Struct):
    policies: list[Policy]
    truncated: bool


class Grant(Struct):
    name: str
    """The name that led to the address."""
    address: str
    ports: str
    remaining_s: float
    policies: list[str]
    """Of the subject that has it: all pods that exactly these policies select share it."""


class Grants(Struct):
    grants: list[Grant]
    truncated: bool


class Sharer(Struct):
    """Another pod that knows the address, or the same pod by other names."""

    address: str
    pod: str
    names: list[str]


class AllowLine(Struct):
    """What to write so that it is allowed; `yaml` is empty where no line would do."""

    policy: str
    yaml: str
    note: str


class Explained(Struct):
    verdict: str
    reason: str
    policy: str
    rule: str
    steps: list[str]
    grants: list[Grant]
    shared: list[Sharer]
    allow: AllowLine | None
