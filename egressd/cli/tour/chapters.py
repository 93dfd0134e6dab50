"""The story: each chapter is a heading, a sentence, programs that pods run, and claims about what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from egressd.cli.tour.cast import GUARDRAIL, HARD_CODED, STORAGE_TTL_S
from egressd.cli.tour.edit import edit_while_downloading
from egressd.cli.tour.guide import Guide

__all__ = ["CHAPTERS", "Chapter"]

COULD_NOT_RESOLVE: Final = 6
COULD_NOT_CONNECT: Final = 7
"""Exit codes of curl."""
MARGIN_S: Final = 0.5
"""After a TTL has ended, so that no cache has it any more."""
DENIAL: Final = ("status:", "EDE:")
"""The lines of dig's output that tell a denial."""


class Chapter(NamedTuple):
    title: str
    text: str
    tell: Callable[[Guide], None]


def allowed_name(guide: Guide) -> None:
    curl = guide.run("shop/web-0", "curl -sS http://api.example.com/")
    guide.check("the page arrives", curl.code == 0 and curl.says("api.example.com is 203.0.113.10"))
    record = guide.why(curl, "api.example.com", "allowed", "rule", "shop/web web", whole=True)
    guide.check("its address is opened for this workload", record.get("granted") == ["203.0.113.10"])
    guide.check("the record knows the pod's owner", record.get("pod", {}).get("workload") == "Deployment/web")


def denied_name(guide: Guide) -> None:
    dig = guide.run("shop/web-0", "dig paste.example", keep=DENIAL)
    guide.check("it does not exist, and the answer itself says why", dig.says("NXDOMAIN", "EDE: 17", "shop/web"))
    guide.check("the question never left the node", not guide.asked_upstream("paste.example"))
    guide.why(dig, "paste.example", "denied", "no-rule")


def hard_coded_address(guide: Guide) -> None:
    curl = guide.run("shop/web-0", f"curl -sS http://{HARD_CODED}/")
    guide.check("refused at once, no waiting for a timeout", curl.code == COULD_NOT_CONNECT)
    guide.check("not one packet got there", not guide.arrived(HARD_CODED, "shop/web-0"))
    guide.why(curl, HARD_CODED, "denied", "no-rule")


def borrowed_grant(guide: Guide) -> None:
    own = guide.run("shop/web-0", "curl -sS http://203.0.113.10/")
    guide.check("shop/web-0 asked for the name before, so it may", own.code == 0)
    other = guide.run("payments/api-0", "curl -sS http://203.0.113.10/")
    refused = other.code == COULD_NOT_CONNECT and not guide.arrived("203.0.113.10", "payments/api-0")
    guide.check("payments/api-0 may not: grants are not shared between identities", refused)
    guide.why(other, "203.0.113.10", "denied", "no-rule")


def storage(guide: Guide) -> None:
    curl = guide.run("shop/report-x7k2p", "curl -sS http://objects.s3.example/")
    record = guide.why(curl, "objects.s3.example", "allowed", "rule", "shop/report object-storage")
    guide.check("connected to an address just granted", curl.code == 0 and curl.says(*record.get("granted", ["?"])[:1]))
    guide.kept["storage"] = curl


def storage_again(guide: Guide) -> None:
    before = guide.kept["storage"]
    time.sleep(max(0.0, before.at + STORAGE_TTL_S + MARGIN_S - time.monotonic()))
    curl = guide.run("shop/report-x7k2p", "curl -sS http://objects.s3.example/")
    moved = curl.code == 0 and curl.output != before.output
    guide.check("another address, open before the program knew it", moved)
    guide.why(curl, "objects.s3.example", "allowed", "rule", "shop/report object-storage")


def chain(guide: Guide) -> None:
    dig = guide.run("shop/web-0", "dig +noall +answer www.example.com")
    guide.check("the chain is followed to its end", dig.says("www.cdn.example.", "edge-7.pop.example.", "203.0.113.77"))
    record = guide.why(dig, "www.example.com", "allowed", "rule", "shop/web web")
    guide.check("the address at its end is opened", record.get("granted") == ["203.0.113.77"])
    direct = guide.run("shop/web-0", "dig edge-7.pop.example", keep=DENIAL)
    guide.check("asked for by itself, the last name of the chain is a stranger", direct.says("NXDOMAIN", "EDE: 17"))
    guide.why(direct, "edge-7.pop.example", "denied", "no-rule")


def rebinding(guide: Guide) -> None:
    curl = guide.run("shop/web-0", "curl -sS http://imds.partner.example/latest/meta-data/")
    guide.check("the answer is withheld", curl.code == COULD_NOT_RESOLVE)
    guide.check("the metadata server saw nothing", not guide.arrived("169.254.169.254", "shop/web-0"))
    guide.why(curl, "imds.partner.example", "denied", "rebinding", "shop/web web")


def guardrail(guide: Guide) -> None:
    guide.page.policy("egressd-system/guardrail", GUARDRAIL.partition("deny:")[1] + GUARDRAIL.partition("deny:")[2])
    guide.page.blank()
    dig = guide.run("shop/report-x7k2p", "dig uploads.s3.example", keep=DENIAL)
    guide.check("denied, and the answer names the rule", dig.says("NXDOMAIN", "no-uploads of egressd-system/guardrail"))
    guide.why(dig, "uploads.s3.example", "denied", "deny-rule", "egressd-system/guardrail no-uploads")


def without_enforcement(guide: Guide) -> None:
    trial = guide.run("dev/trial-0", "curl -sS http://paste.example/")
    guide.check("dev/trial-0 gets through: its policy is in mode Audit", trial.code == 0)
    guide.why(trial, "paste.example", "would-deny", "no-rule")
    batch = guide.run("legacy/batch-0", "curl -sS http://paste.example/")
    guide.check("legacy/batch-0 gets through: no policy selects it", batch.code == 0)
    guide.why(batch, "paste.example", "allowed", "unselected")


CHAPTERS: Final = (
    Chapter(
        "An allowed name",
        "shop/web may reach api.example.com. The address in the answer is opened in the kernel before the pod"
        " gets to see it. This is the whole audit record; later ones are shortened.",
        allowed_name,
    ),
    Chapter("A name without a rule", "No rule of shop/web mentions paste.example.", denied_name),
    Chapter(
        "A hard-coded address",
        f"A program may try {HARD_CODED} without asking for any name.",
        hard_coded_address,
    ),
    Chapter(
        "Somebody else's address",
        "203.0.113.10 was opened for shop/web-0 a moment ago. Another workload tries it, too.",
        borrowed_grant,
    ),
    Chapter(
        "Storage that moves",
        f"shop/report may reach *.s3.example, whose addresses change every {STORAGE_TTL_S} seconds. No list of"
        " addresses could keep up.",
        storage,
    ),
    Chapter(
        "A chain of names",
        "www.example.com is an alias of an alias. Only the name at its beginning is in the policy.",
        chain,
    ),
    Chapter(
        "An allowed name that lies",
        "*.partner.example is allowed, but this one answers 169.254.169.254: a cloud's metadata server, where"
        " credentials live (DNS rebinding).",
        rebinding,
    ),
    Chapter(
        "A guardrail",
        "shop/report allows *.s3.example. A cluster policy denies one name of it, and no team can lift that.",
        guardrail,
    ),
    Chapter(
        "A policy on trial, and none at all",
        "Neither of these two is filtered; both are on record.",
        without_enforcement,
    ),
    Chapter(
        "A policy edit",
        "Two pods download from live.example.com without end. Then rule live is taken out of shop/web: what is no"
        " longer allowed ends within a second, and nothing else notices.",
        edit_while_downloading,
    ),
    Chapter(
        "Storage that has moved",
        f"More than {STORAGE_TTL_S} seconds have passed since chapter 5: new addresses.",
        storage_again,
    ),
)
