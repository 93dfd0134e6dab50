"""What the tour says before its first chapter and after its last, and how to look into the node from outside."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Final

from egressd.cli.tour.cast import PODS, WEB
from egressd.cli.tour.guide import Guide
from egressd.cli.tour.page import VERDICT_STYLES, Page
from egressd.cli.tour.stage import Stage
from egressd.lab import Space

__all__ = ["hints", "introduction", "kernel_view", "summary"]

LOG_LINES: Final = 10
_SUBJECT: Final = re.compile(r'\tchain subject-(\d+) {\n\t\tcomment "[^"]*shop/web.*?\n\t}', re.DOTALL)


def introduction(page: Page) -> None:
    page.title("egressd demo")
    page.say(
        "Each pod reaches the names that its policies allow, and nothing else. What follows happens on one node of a"
        " cluster, made of network namespaces on this machine: the real daemon, the real kernel, and curl and dig as"
        " the pods' programs. Each mark is set by what they printed and what the audit log says."
    )
    page.blank()
    page.table(("pod", "workload", "policies"), [(role.name, role.workload, role.policies) for role in PODS])
    page.blank()
    page.say("This is policy shop/web:")
    page.blank()
    page.policy("shop/web", WEB)


def kernel_view(guide: Guide) -> None:
    """A few lines of the table as the reader's own nft prints it; nothing where nft is not installed."""
    if shutil.which("nft") is None:
        return
    listing = guide.stage.node.run(["nft", "list", "table", "inet", "egressd"]).stdout
    chain = _SUBJECT.search(listing)
    grants = re.search(rf"\tset grant4-{chain[1] if chain else 0} {{.*?\n\t}}", listing, re.DOTALL)
    guide.page.chapter(
        "What the kernel knows",
        "egressd speaks netlink and needs no nft; yours can read along. This is what judges shop/web-0 (its lines of"
        " IPv6 are left out here).",
    )
    guide.page.command("node", "nft list table inet egressd")
    for found in (grants, chain):
        lines = (found[0] if found else "").splitlines()
        guide.page.output(line.removeprefix("\t") for line in lines if "ip6" not in line)
    elements = grants[0] if grants else ""
    kept = all(f'comment "{name}"' in elements for name in ("api.example.com", "www.example.com"))
    guide.check("each address is there with the name it was opened for", kept)
    guide.check("that of live.example.com went with its rule", elements and "live.example.com" not in elements)


def summary(guide: Guide) -> None:
    page = guide.page
    page.blank()
    page.title("Summary")
    rows = [("✓" if each.right else "✗", each.pod, each.to, each.verdict, each.reason) for each in guide.findings]
    page.table(("", "pod", "reached for", "verdict", "reason"), rows, {**VERDICT_STYLES, "✓": "green", "✗": "red"})
    page.blank()
    if not guide.surprises:
        page.say(f"All {guide.checks} checks went as told.", "bold green")
        return
    page.say(f"{len(guide.surprises)} of {guide.checks} checks went differently than told:", "bold red")
    for sentence in guide.surprises:
        page.check(sentence, right=False)
    page.say("The daemon's log ends with:")
    page.output(guide.stage.daemon.log().splitlines()[-LOG_LINES:])


def hints(page: Page, stage: Stage, processes: int, url: str) -> None:
    """What to try from a browser, at `url`, and from another terminal. `processes` is a descriptor of the /proc that
    the reader sees."""
    page.blank()
    page.title("The node stays up until Ctrl-C.")
    if url:
        page.hint("See all of it in a browser on this machine", url)
    node, web = (_outside(_resident(space), processes) for space in (stage.node, stage.pod("shop/web-0")))
    if not (node and web):
        return
    root = f"/proc/{node}/root"
    page.say("As root in another terminal, you can …")
    page.hint("ask the daemon", f"export EGRESSD_ADMIN__SOCKET={root}{stage.daemon.settings['admin']['socket']}")
    if shutil.which("egressd") is None:
        page.hint("", f"alias egressd={shlex.quote(f'{sys.executable} -m egressd')}")
    page.hint("", "egressd status")
    page.hint("find out why a name was denied", "egressd audit --verdict denied")
    page.hint("", "egressd explain --pod shop/web-0 --to paste.example:80")
    page.hint("allow it, in force as soon as it is saved", f"${{EDITOR:-vi}} {root}{stage.policy_file('shop/web')}")
    page.hint("run programs as shop/web-0", f"nsenter -a -t {web} curl -sS http://paste.example/")
    page.hint("read the firewall", f"nsenter -a -t {node} nft list table inet egressd")


def _resident(space: Space) -> int:
    """A process that stays in a space, for nsenter(1) to find it by."""
    return space.popen(["sleep", "infinity"]).pid


def _outside(pid: int, processes: int) -> int:
    """The PID that a process of ours has outside (proc(5), NSpid); 0 if it is not to be seen there."""
    ours = str(Path("/proc/self/ns/pid").readlink())
    for name in sorted(filter(str.isdigit, os.listdir(processes)), key=int, reverse=True):
        try:
            if os.readlink(f"{name}/ns/pid", dir_fd=processes) != ours:
                continue
            with os.fdopen(os.open(f"{name}/status", os.O_RDONLY, dir_fd=processes)) as status:
                found = any(line.startswith("NSpid:") and line.split()[-1] == str(pid) for line in status)
        except OSError:  # it ended meanwhile
            continue
        if found:
            return int(name)
    return 0
