"""Every setting of a node, its default and its unit; interface.md gives the public names.

Plain frozen values: `schema` reads and checks the YAML file, the variables and the flags into these, on the control
side, and the data path gets them ready-made. Durations are seconds, sizes are octets, addresses are packed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from egressd.model import Block, LabelSelector
from egressd.names import Name

__all__ = [
    "Admin",
    "Audit",
    "Budgets",
    "Cache",
    "Dns",
    "Events",
    "Exempt",
    "Firewall",
    "Grants",
    "History",
    "Otlp",
    "Settings",
    "Source",
    "Upstream",
]


@dataclass(frozen=True, slots=True)
class Source:
    kind: str = "directory"
    """`directory` or `kubernetes`."""
    path: str = "/etc/egressd/objects"
    """Folder of manifests, for `directory`."""
    kubeconfig: str = ""
    context: str = ""


@dataclass(frozen=True, slots=True)
class Upstream:
    """One resolver to ask. `scheme`: udp (with TCP fallback), tcp, tls or https."""

    address: bytes
    port: int = 53
    scheme: str = "udp"
    host: str = ""
    """Server name to verify (tls, https), else empty."""
    path: str = ""


@dataclass(frozen=True, slots=True)
class Exempt:
    """Pods that serve DNS to us and are never intercepted (dns.md, Never a loop)."""

    namespace: str = "kube-system"
    labels: LabelSelector = LabelSelector(labels=(("k8s-app", "kube-dns"),))


@dataclass(frozen=True, slots=True)
class Cache:
    size: int = 50_000
    """Entries; 0 turns the cache off."""
    bytes: int = 32 * 1024 * 1024
    serve_stale: float = 3600.0
    """Seconds an expired answer may be served while the upstream fails (RFC 8767)."""


@dataclass(frozen=True, slots=True)
class Dns:
    upstreams: tuple[Upstream, ...] = ()
    """Empty: the node's resolv.conf, filled in by `schema.settings`; in Kubernetes the cluster DNS, by `cluster`."""
    servers: tuple[bytes, ...] = ()
    """Addresses pods may ask. Empty: the upstreams' addresses."""
    foreign: str = "Deny"
    """`Deny` or `Answer`: pods that ask other servers."""
    ca_file: str = ""
    """Certificates (PEM) that those of encrypted upstreams must lead to. Empty: the system's."""
    intercept: str = "All"
    """`All` or `Selected`."""
    exempt: Exempt = Exempt()
    deny_rcode: str = "NXDOMAIN"
    """`NXDOMAIN`, `REFUSED` or `NODATA`."""
    when_down: str = "Bypass"
    """`Bypass` or `Block`."""
    cache: Cache = Cache()


@dataclass(frozen=True, slots=True)
class Grants:
    min: float = 60.0
    grace: float = 30.0
    program_timeout: float = 1.0
    per_name: int = 1024
    """Addresses of one name and subject; more only while a look at the connections is due, or finds them in use."""
    total: int = 200_000
    """Grants of the whole node, at every moment."""


@dataclass(frozen=True, slots=True)
class Firewall:
    table: str = "egressd"
    intercept_mark: int = 0x20000
    answer_mark: int = 0x40000
    route_table: int = 20053
    log_group: int = 1986
    reject: bool = True
    owner: bool = True
    """Where the kernel can (6.9), no other tool changes or flushes the table while the daemon lives."""


@dataclass(frozen=True, slots=True)
class Budgets:
    in_flight: int = 4096
    in_flight_per_pod: int = 200
    queries_per_second_per_pod: int = 1000
    burst_per_pod: int = 2000
    denied_names_per_pod_per_minute: int = 200
    tcp_per_pod: int = 32
    tcp_idle: float = 10.0
    answer_records: int = 512


@dataclass(frozen=True, slots=True)
class Audit:
    file: str = "/var/log/egressd/audit.jsonl"
    """Empty: no file."""
    max_size: int = 100 * 1024 * 1024
    keep: int = 10
    stdout: bool = False
    queue: int = 65_536
    flows: str = "Denied"
    """`Denied` or `All`: new connections that are let through are recorded, too."""


@dataclass(frozen=True, slots=True)
class History:
    file: str = "/var/lib/egressd/history.db"
    """Empty: no history."""
    max_rows: int = 1_000_000
    max_bytes: int = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Otlp:
    """Export to an OpenTelemetry collector, over OTLP/HTTP; needs the extra `egressd[otlp]`."""

    endpoint: str = ""
    """Base URL, as in `http://collector.example:4318`; empty: no export."""
    logs: bool = True
    """Audit records as log records."""
    metrics: bool = True
    interval: float = 10.0
    """Seconds between two sets of metrics."""


@dataclass(frozen=True, slots=True)
class Events:
    """Kubernetes Events beside those on refused ConfigMaps."""

    denials: bool = False
    """One per pod and minute at most, on the pod that was denied something."""


@dataclass(frozen=True, slots=True)
class Admin:
    socket: str = "/run/egressd/admin.sock"
    listen: str = "127.0.0.1:9477"


@dataclass(frozen=True, slots=True)
class Settings:
    node: str = ""
    """Empty: NODE_NAME, else the host name; filled in by `schema.settings`."""
    source: Source = Source()
    policy_namespace: str = "egressd-system"
    pod_cidrs: tuple[Block, ...] = ()
    pod_interfaces: tuple[str, ...] = ()
    cluster_cidrs: tuple[Block, ...] = ()
    cluster_domains: tuple[Name, ...] = (Name("cluster.local"),)
    in_cluster: str = "Allow"
    """`Allow` or `Enforce`."""
    unknown_wait: float = 2.0
    dns: Dns = Dns()
    grants: Grants = Grants()
    firewall: Firewall = Firewall()
    budgets: Budgets = Budgets()
    audit: Audit = Audit()
    history: History = History()
    otlp: Otlp = Otlp()
    events: Events = Events()
    admin: Admin = field(default_factory=Admin)
