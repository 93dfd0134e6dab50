"""What the endpoints answer, as types: encoded as they are, and described by the OpenAPI document as they are."""

from __future__ import annotations

from msgspec import Struct

__all__ = [
    "AllowLine",
    "Cache",
    "Condition",
    "Edge",
    "Explained",
    "Fault",
    "Grant",
    "Grants",
    "GrantsStatus",
    "Health",
    "History",
    "Inside",
    "Map",
    "Observation",
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
    "Stale",
    "Status",
    "Unready",
    "Unused",
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


class Inside(Struct):
    """What is inside the cluster, as stated and as found."""

    cidrs: list[str]
    domains: list[str]
    in_cluster: str
    """Allow or Enforce."""


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
    rtt_us: int
    """Smoothed time to its answers, in microseconds; 0 before the first."""


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
    inside: Inside
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
    labels: dict[str, str]
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
    uses: int = 0
    """Queries and flows that it decided, as far as history knows."""
    last_used: str = ""
    """RFC 3339, UTC; empty where history knows of none."""


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


# ---------------------------------------------------------------------------------------------------- history


class Observation(Struct):
    """All that was alike of one workload on one day, UTC. Times are RFC 3339, UTC."""

    day: str
    namespace: str
    workload: str
    """KIND/NAME."""
    service_account: str
    event: str
    """dns or flow."""
    name: str
    """The name; of a flow to an address without one, the address; *.DOMAIN, * or a block where it is `folded`."""
    folded: bool
    """Whether it stands for many names, too many to be kept one by one."""
    port: int
    """-1 where there is none, 0 for many."""
    protocol: str
    verdict: str
    reason: str
    policy: str
    rule: str
    search: bool
    """Noise of a search list."""
    answer: str
    """absent: there was no such name; private: it led to an address that is not ordinary."""
    first_seen: str
    last_seen: str
    count: int
    """Queries, or flow records."""
    packets: int


class History(Struct):
    observations: list[Observation]
    """The newest day first."""
    truncated: bool


class Edge(Struct):
    """What a workload did with a name, under one decision. Without flows it was only asked for."""

    namespace: str
    workload: str
    name: str
    folded: bool
    verdict: str
    reason: str
    policy: str
    rule: str
    queries: int
    flows: int
    packets: int
    ports: list[str]
    """Of its flows, as in 443/TCP."""
    search: bool
    """A step of a search list: it can be no name of the cluster, or is none and begins with another name asked for."""
    first_seen: str
    last_seen: str


class Map(Struct):
    since: str
    """Days are sums: those that reach into the time since then are counted whole."""
    truncated: bool
    edges: list[Edge]


class Unused(Struct):
    """A peer, a rule (no `pattern`) or a policy (no `rule` either)."""

    policy: str
    rule: str
    pattern: str
    state: str
    """unused; shadowed: seen, but something else decided; unobserved: nobody can tell."""
    last_used: str
    note: str


class Stale(Struct):
    """What nothing has used on this node; other nodes have histories of their own."""

    node: str
    since: str
    observed_since: str
    """From here on nothing is missing; later than `since` where history is shorter."""
    unused: list[Unused]
