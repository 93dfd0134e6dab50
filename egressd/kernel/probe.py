"""What a kernel must be able to do, asked by a trial transaction that is never committed.

One chain gets one rule for each feature and a set for each kind of set; the last message is impossible, so that nothing
of it stays. Every message that the kernel refuses is answered on its own, and says which feature is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from pyroute2.netlink import NLM_F_CREATE
from pyroute2.netlink.nfnetlink.nftsocket import NFT_MSG_DELCHAIN, NFT_MSG_NEWCHAIN, NFT_MSG_NEWTABLE

from egressd.errors import EnvironmentProblem
from egressd.kernel.chains import Rule
from egressd.kernel.change import rule_message
from egressd.kernel.expr import (
    ADDRESS_LOCAL,
    COUNTER,
    ELSEWHERE,
    ESTABLISHED,
    IPV4,
    IPV6,
    NOTRACK,
    REJECT,
    RESET,
    UDP,
    dport,
    limit,
    log,
    protocol_is,
    tproxy,
)
from egressd.kernel.netlink import Channel, Message, be32, nested, pack_batch, string
from egressd.kernel.sets import INTERVAL, SetKind, SetSpec, create_set
from egressd.kernel.template import PREROUTING, RAW

__all__ = ["FEATURES", "Feature", "missing", "refuse_kernel"]

TRIAL: Final = "egressd-trial"
"""Table of the trial; it never exists."""


class Feature(NamedTuple):
    """A thing the template needs: its name in nft, the module and option that bring it, expressions that use it."""

    name: str
    module: str
    option: str
    expressions: bytes


FEATURES: Final = (
    Feature("tproxy for IPv4", "nft_tproxy, nf_tproxy_ipv4", "CONFIG_NFT_TPROXY", dport(UDP, 53) + tproxy(IPV4, 53)),
    Feature("tproxy for IPv6", "nft_tproxy, nf_tproxy_ipv6", "CONFIG_NFT_TPROXY", dport(UDP, 53) + tproxy(IPV6, 53)),
    Feature("fib (routes)", "nft_fib_inet", "CONFIG_NFT_FIB_INET", ELSEWHERE),
    Feature("fib (address types)", "nft_fib_inet", "CONFIG_NFT_FIB_INET", ADDRESS_LOCAL),
    Feature("log", "nft_log, nfnetlink_log", "CONFIG_NFT_LOG, CONFIG_NETFILTER_NETLINK_LOG", log("trial", 1)),
    Feature("ct (connection tracking)", "nft_ct", "CONFIG_NFT_CT", ESTABLISHED),
    Feature("notrack", "nft_ct", "CONFIG_NFT_CT", NOTRACK),
    Feature("reject with tcp reset", "nft_reject_inet", "CONFIG_NFT_REJECT_INET", protocol_is(6) + RESET),
    Feature("reject with icmpx", "nft_reject_inet", "CONFIG_NFT_REJECT_INET", REJECT),
    Feature("limit", "nft_limit", "CONFIG_NFT_LIMIT", limit(1, 1)),
    Feature("counter", "nft_counter", "CONFIG_NFT_COUNTER", COUNTER),
)
INTERVALS: Final = "sets of concatenated intervals"


def missing(channel: Channel, features: Sequence[Feature] = FEATURES) -> list[str]:
    """What this kernel lacks, each as `name (module …, option …)`; nothing in the kernel changes."""
    base = (
        Message(NFT_MSG_NEWTABLE, NLM_F_CREATE, string(1, TRIAL), "create a table"),
        Message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, _base_chain(), "create a base chain"),
    )
    interval = SetSpec("intervals", SetKind(("ipv4_addr", "inet_proto", "inet_service"), INTERVAL))
    trials = [rule_message(TRIAL, "trial", Rule("", feature.expressions)) for feature in features]
    impossible = Message(NFT_MSG_DELCHAIN, 0, string(1, TRIAL) + string(3, "there-is-none"), "end the trial")
    messages = (*base, create_set(TRIAL, interval), *trials, impossible)
    refusals = channel.commit(pack_batch((message.kind, message.flags, message.body) for message in messages))
    places = {refusal.place for refusal in refusals}
    lacking = [INTERVALS + " (kernel 5.6)"] if len(base) in places else []
    lacking += [
        f"{feature.name} (module {feature.module}, {feature.option})"
        for place, feature in enumerate(features, len(base) + 1)
        if place in places
    ]
    return lacking


def _base_chain() -> bytes:
    hook = nested(4, be32(1, PREROUTING), be32(2, RAW & 0xFFFFFFFF))
    return string(1, TRIAL) + string(3, "trial") + hook + string(7, "filter")


def refuse_kernel(lacking: Iterable[str]) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"this kernel lacks what egressd's rules need: {'; '.join(lacking)}",
        "load the modules, or run a kernel built with these options (Linux 5.10 or later)",
    )
