"""The world: what sources say in, the smallest difference out, and never dependent on the order of saying."""

from __future__ import annotations

import json
from functools import cache
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egressd import link
from egressd.control import world as world_module
from egressd.control.world import MAX_POLICY, PODS_PER_UPDATE, POLICIES_PER_UPDATE, Step, World, frames
from egressd.link import Frames, PodEntry, Update
from egressd.model import Action, PodIdentity, Policy, Rule
from egressd.names import Name, Pattern
from egressd.policy import select
from egressd.schema import Manifest, read_manifests
from egressd.settings import Dns, Settings, Upstream

SETTINGS = Settings(node="n1", dns=Dns(upstreams=(Upstream(ip_address("192.0.2.53").packed),)))
CLUSTER = SETTINGS.policy_namespace
DOCUMENT = "subject: {podSelector: {matchLabels: {app: web}}}\nallow: [{to: [api.example.com]}]\n"
OTHER = DOCUMENT.replace("api.example.com", "cdn.example")
EVERYONE = "subject: {}\nallow: []\n"
BROKEN = "subject: {}\nallows: []\n"


@cache
def _parsed(text: str, file: str) -> tuple[Manifest, ...]:
    manifests, problems = read_manifests(text, file)
    assert problems == []
    return tuple(manifests)


def read(document: dict[str, Any], file: str = "a.yaml") -> list[Manifest]:
    """Objects as the directory reads them."""
    return list(_parsed(json.dumps(document), file))


def configmap(name: str = "web", namespace: str = "shop", *, label: str = "true", **data: str) -> list[Manifest]:
    """A ConfigMap with documents by key; `policy` stands for `policy.yaml`."""
    texts = {key.replace("_", "-") + ".yaml": text for key, text in data.items()}
    meta = {"name": name, "namespace": namespace, "labels": {"egressd.io/policy": label}}
    return read({"kind": "ConfigMap", "metadata": meta, "data": texts})


def pod(name: str = "web-0", namespace: str = "shop", *ips: str, **fields: Any) -> list[Manifest]:
    """A pod with labels `app: web`, unless `fields` say otherwise."""
    meta = {"name": name, "namespace": namespace, "labels": fields.get("labels", {"app": "web"})}
    meta |= {"creationTimestamp": fields["created"]} if "created" in fields else {}
    meta |= {"uid": fields["uid"]} if "uid" in fields else {}
    spec = fields.get("spec", {"nodeName": "n1"})
    status = {"podIPs": [{"ip": ip} for ip in ips], "phase": fields.get("phase", "Running")}
    return read({"kind": "Pod", "metadata": meta, "spec": spec, "status": status})


def namespace(name: str, **labels: str) -> list[Manifest]:
    return read({"kind": "Namespace", "metadata": {"name": name, "labels": labels}})


def entries(world: World) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Who has which address, and what selects them."""
    return {str(ip_address(e.address)): (str(e.identity), e.policies) for e in world.everything().pods}


def news(step: Step) -> list[tuple[str, str]]:
    return [(item.policy, item.change) for item in step.news]


# -------------------------------------------------------------------------------------------------- policies


def test_a_policy_comes_changes_and_goes() -> None:
    """Each step says exactly what differs, and saying the same again says nothing."""
    world = World(SETTINGS)
    step = world.replace({"a": configmap(policy=DOCUMENT)})
    assert news(step) == [("shop/web", "updated")]
    assert step.update is not None
    assert [policy.name for policy in step.update.policies] == ["shop/web"]
    assert world.replace({"a": configmap(policy=DOCUMENT)}) == Step(None)
    step = world.replace({"a": configmap(policy=OTHER, second=DOCUMENT)})
    assert news(step) == [("shop/web", "updated"), ("shop/web/second.yaml", "updated")]
    step = world.replace({"a": []})
    assert step.update == Update(gone_policies=("shop/web", "shop/web/second.yaml"))
    assert news(step) == [("shop/web", "deleted"), ("shop/web/second.yaml", "deleted")]
    assert world.replace({"a": []}) == Step(None)
    assert world.everything() == Update()


def test_a_refused_document_keeps_its_last_good_version() -> None:
    """The refusal is told once, with its place; other documents of the ConfigMap go on."""
    world = World(SETTINGS)
    world.replace({"a": configmap(policy=DOCUMENT, second=DOCUMENT), "p": pod("web-0", "shop", "192.0.2.5")})
    good = dict(world.policies)
    step = world.replace({"a": configmap(policy=BROKEN, second=OTHER)})
    assert news(step) == [("shop/web", "refused"), ("shop/web/second.yaml", "updated")]
    assert "'allow'" in str(step.problems[0])
    assert world.policies["shop/web"] == good["shop/web"]
    assert world.policies["shop/web/second.yaml"] != good["shop/web/second.yaml"]
    assert list(world.refused) == ["shop/web"]
    assert world.replace({"a": configmap(policy=BROKEN, second=OTHER)}) == Step(None)
    assert entries(world)["192.0.2.5"][1] == ("shop/web", "shop/web/second.yaml")


def test_a_document_repaired_is_told() -> None:
    """Even where the repair is the old text again, so that the refusal is seen to be over."""
    world = World(SETTINGS)
    for text, wanted in ((DOCUMENT, "updated"), (BROKEN, "refused"), (DOCUMENT, "updated")):
        assert news(world.replace({"a": configmap(policy=text)})) == [("shop/web", wanted)]
    assert world.refused == {}


def test_a_document_that_never_was_good_selects_nothing() -> None:
    """It is known as refused, and nothing else."""
    world = World(SETTINGS)
    step = world.replace({"a": configmap(policy=BROKEN), "p": pod("web-0", "shop", "192.0.2.5")})
    assert news(step) == [("shop/web", "refused")]
    assert entries(world) == {"192.0.2.5": ("shop/web-0", ())}
    assert world.policies == {}


@pytest.mark.parametrize("gone", [[], configmap(label="false", policy=BROKEN), configmap(second=DOCUMENT)])
def test_what_is_deleted_is_forgotten_good_or_not(gone: list[Manifest]) -> None:
    """Deleting the ConfigMap, its label or the key deletes the policy, its last good version included."""
    before = World(SETTINGS)
    before.replace({"a": configmap(policy=DOCUMENT)})
    world = World(SETTINGS, before.policies)
    world.replace({"a": configmap(policy=DOCUMENT)})
    world.replace({"a": configmap(policy=BROKEN)})
    assert ("shop/web", "deleted") in news(world.replace({"a": gone}))
    assert "shop/web" not in world.policies
    assert world.refused == {}
    world.replace({"a": configmap(policy=BROKEN)})
    assert "shop/web" not in world.policies


def test_a_world_built_anew_remembers_what_was_good() -> None:
    """New settings build a new world; a document that is refused just then stays in force all the same."""
    old = World(SETTINGS)
    old.replace({"a": configmap(policy=DOCUMENT)})
    old.replace({"a": configmap(policy=BROKEN)})
    new = World(SETTINGS, old.policies)
    new.replace(old.sources)
    assert new.policies == old.policies
    assert list(new.refused) == ["shop/web"]


def test_a_policy_too_large_for_the_link_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled, a document can outgrow a frame; it is refused like any other error, and says what to do."""
    monkeypatch.setattr(world_module, "MAX_POLICY", 2000)
    world = World(SETTINGS)
    world.replace({"a": configmap(policy=DOCUMENT)})
    names = ", ".join(f"name{number}.example" for number in range(200))
    step = world.replace({"a": configmap(policy=DOCUMENT.replace("api.example.com", names))})
    assert news(step) == [("shop/web", "refused")]
    assert "too large" in str(step.problems[-1])
    assert [rule.patterns for rule in world.policies["shop/web"].allow] == [(Pattern(Name("api.example.com")),)]


def test_a_configmap_that_moves_between_files_is_no_change() -> None:
    """One change of several sources is one step: no moment in which the policy is gone."""
    world = World(SETTINGS)
    world.replace({"a": configmap(policy=DOCUMENT)})
    assert world.replace({"a": [], "b": configmap(policy=DOCUMENT)}).update is None
    assert list(world.policies) == ["shop/web"]


def test_of_two_sources_of_one_configmap_one_counts_and_it_is_said() -> None:
    """The greater key counts, in whichever order they came; when it goes, the other takes its place."""
    first, second = configmap(policy=DOCUMENT), configmap(policy=OTHER)
    for order in (("a", "b"), ("b", "a")):
        world = World(SETTINGS)
        steps = [world.replace({key: {"a": first, "b": second}[key]}) for key in order]
        assert world.policies["shop/web"].allow[0].patterns == (Pattern(Name("cdn.example")),)
        assert "ConfigMap shop/web is in b too" in str(steps[-1].problems[0])
        world.replace({"b": []})
        assert world.policies["shop/web"].allow[0].patterns == (Pattern(Name("api.example.com")),)


# ------------------------------------------------------------------------------------------------------ pods


@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        ({}, True),
        ({"spec": {}}, True),
        ({"spec": {"nodeName": "n2"}}, False),
        ({"spec": {"nodeName": "n1", "hostNetwork": True}}, False),
        ({"phase": "Pending"}, True),
        ({"phase": "Succeeded"}, False),
        ({"phase": "Failed"}, False),
    ],
)
def test_which_pods_count(fields: dict[str, Any], counts: bool) -> None:
    """Pods of this node with an address of their own, until they are finished."""
    world = World(SETTINGS)
    step = world.replace({"p": pod("web-0", "shop", "192.0.2.5", "2001:db8::5", **fields)})
    addresses = tuple(ip_address(text).packed for text in ("2001:db8::5", "192.0.2.5")) if counts else ()
    assert (step.update is not None) == counts
    assert tuple(entry.address for entry in world.everything().pods) == addresses
    gone = world.replace({"p": pod("web-0", "shop", phase="Running")}).update
    assert gone == (Update(gone_pods=addresses) if counts else None)


def test_an_address_belongs_to_the_pod_created_later() -> None:
    """The elder loses it at once, whoever was heard of first, and has it back when the younger goes."""
    elder = pod("web-0", "shop", "192.0.2.5", "192.0.2.6", created="2026-11-22T13:00:00Z")
    younger = pod("web-1", "shop", "192.0.2.5", created="2026-11-22T15:30:00+02:00", labels={})
    for order in (("e", "y"), ("y", "e")):
        world = World(SETTINGS)
        world.replace({"a": configmap(policy=DOCUMENT)})
        for key in order:
            world.replace({key: {"e": elder, "y": younger}[key]})
        assert entries(world) == {
            "192.0.2.5": ("shop/web-1", ()),
            "192.0.2.6": ("shop/web-0", ("shop/web",)),
        }
        step = world.replace({"y": []})
        assert step.update is not None
        assert [(str(e.identity), e.policies) for e in step.update.pods] == [("shop/web-0", ("shop/web",))]
        assert step.update.gone_pods == ()


def test_a_pod_replaced_under_its_name_is_told_anew() -> None:
    """A StatefulSet's next pod of the same name and address has another uid."""
    world = World(SETTINGS)
    world.replace({"p": pod("web-0", "shop", "192.0.2.5", uid="one")})
    step = world.replace({"p": pod("web-0", "shop", "192.0.2.5", uid="two")})
    assert step.update is not None
    assert [entry.identity.uid for entry in step.update.pods] == ["two"]


@pytest.mark.parametrize(
    ("made", "exempt"),
    [
        (pod("dns-0", "kube-system", "192.0.2.5", labels={"k8s-app": "kube-dns"}), True),
        (pod("dns-0", "shop", "192.0.2.5", labels={"k8s-app": "kube-dns"}), False),
        (pod("proxy", "kube-system", "192.0.2.5"), False),
        (pod("resolver", "shop", "192.0.2.53"), True),
    ],
    ids=["kube-dns", "other namespace", "other labels", "an upstream"],
)
def test_pods_that_serve_dns_to_us_are_exempt(made: list[Manifest], exempt: bool) -> None:
    """By `dns.exempt`, or because their address is an upstream's."""
    world = World(SETTINGS)
    world.replace({"p": made})
    assert [entry.exempt for entry in world.everything().pods] == [exempt]


# ------------------------------------------------------------------------------------------------- selection


def test_pods_behind_a_service_are_exempt_for_as_long_as_they_are() -> None:
    """The source says which addresses serve DNS; a world built anew is told the same."""
    world = World(SETTINGS)
    address = ip_address("192.0.2.5").packed
    step = world.replace({"a": pod("dns-0", "shop", "192.0.2.5")}, frozenset({address}))
    assert step.update is not None
    assert step.update.pods[0].exempt
    assert world.replace({}, frozenset({address})).update is None
    assert world.replace({}).update is None
    step = world.replace({}, frozenset())
    assert step.update is not None
    assert not step.update.pods[0].exempt


def test_labels_of_pods_and_namespaces_select() -> None:
    """A change of any of them re-points exactly the pods that it concerns."""
    world = World(SETTINGS)
    world.replace(
        {
            "own": configmap(policy=DOCUMENT),
            "cluster": configmap("base", CLUSTER, policy="subject: {namespaceSelector: {matchLabels: {env: prod}}}\n"),
            "p": pod("web-0", "shop", "192.0.2.5"),
            "q": pod("web-0", "blog", "192.0.2.6"),
        }
    )
    assert entries(world) == {"192.0.2.5": ("shop/web-0", ("shop/web",)), "192.0.2.6": ("blog/web-0", ())}
    step = world.replace({"n": namespace("shop", env="prod")})
    shop = PodEntry(
        ip_address("192.0.2.5").packed,
        PodIdentity("shop", "web-0", service_account="default"),
        (f"{CLUSTER}/base", "shop/web"),
    )
    assert step.update == Update(pods=(shop,))
    step = world.replace({"p": pod("web-0", "shop", "192.0.2.5", labels={"app": "db"})})
    assert entries(world)["192.0.2.5"] == ("shop/web-0", (f"{CLUSTER}/base",))
    world.replace({"n": []})
    assert entries(world)["192.0.2.5"] == ("shop/web-0", ())


def test_a_namespace_nobody_described_has_its_name() -> None:
    """`kubernetes.io/metadata.name` is there without a Namespace object, as in a cluster."""
    world = World(SETTINGS)
    chosen = "subject: {namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shop}}}\n"
    world.replace({"c": configmap("base", CLUSTER, policy=chosen)})
    world.replace({"p": pod("web-0", "shop", "192.0.2.5"), "q": pod("web-0", "blog", "192.0.2.6")})
    assert [policies for _, policies in entries(world).values()] == [(f"{CLUSTER}/base",), ()]


def test_an_edit_of_rules_leaves_pods_alone() -> None:
    """Only the policy is said again: who is selected has not changed."""
    world = World(SETTINGS)
    world.replace({"a": configmap(policy=DOCUMENT), "p": pod("web-0", "shop", "192.0.2.5")})
    update = world.replace({"a": configmap(policy=OTHER)}).update
    assert update is not None
    assert ([policy.name for policy in update.policies], update.pods) == (["shop/web"], ())


def test_a_policy_and_the_pods_it_selects_come_in_one_update() -> None:
    """And go in one, the pods named without it."""
    world = World(SETTINGS)
    world.replace({"p": pod("web-0", "shop", "192.0.2.5")})
    update = world.replace({"a": configmap(policy=DOCUMENT)}).update
    assert update is not None
    assert [entry.policies for entry in update.pods] == [("shop/web",)]
    update = world.replace({"a": []}).update
    assert update is not None
    assert ([entry.policies for entry in update.pods], update.gone_policies) == ([()], ("shop/web",))


def test_one_edit_among_many_policies_is_judged_for_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 200 policies and 50 pods of a namespace, a changed selector is matched 50 times, not 10,000 times."""
    world = World(SETTINGS)
    world.replace({f"c{number}": configmap(f"c{number}", policy=DOCUMENT) for number in range(200)})
    world.replace({f"p{number}": pod(f"web-{number}", "shop", f"192.0.2.{number}") for number in range(50)})
    judged = 0

    def counted(policies: list[Policy], *rest: Any) -> tuple[Policy, ...]:
        nonlocal judged
        judged += len(policies)
        return select(policies, *rest)

    monkeypatch.setattr(world_module, "select", counted)
    update = world.replace({"c7": configmap("c7", policy=EVERYONE)}).update
    assert update is not None
    assert judged == 50
    world.replace({"blog": configmap("other", "blog", policy=EVERYONE)})
    assert judged == 50


# ---------------------------------------------------------------------------------------------- as properties

KEYS = st.sampled_from(["a", "b", "c"])
NAMES = st.sampled_from(["web", "db"])
SPACES = st.sampled_from(["shop", "blog", CLUSTER])
IPS = st.lists(st.sampled_from(["192.0.2.1", "192.0.2.2", "2001:db8::1"]), max_size=2, unique=True)
LABELS = st.dictionaries(st.sampled_from(["app", "env"]), NAMES, max_size=2)
TEXTS = st.sampled_from([DOCUMENT, OTHER, EVERYONE])
OBJECTS = (
    st.builds(lambda name, where, text: configmap(name, where, policy=text), NAMES, SPACES, TEXTS)
    | st.builds(
        lambda name, where, ips, labels, created, uid: pod(
            name, where, *ips, labels=labels, created=f"2026-11-22T13:00:0{created}Z", uid=uid
        ),
        NAMES,
        SPACES,
        IPS,
        LABELS,
        st.integers(0, 2),
        NAMES,
    )
    | st.builds(lambda name, labels: namespace(name, **labels), SPACES, LABELS)
)
FILES = st.lists(OBJECTS, max_size=4).map(lambda several: [thing for some in several for thing in some])
CHANGES = st.lists(st.dictionaries(KEYS, FILES, min_size=1), max_size=8)


class Told:
    """A data path: what it knows after the updates it was told."""

    def __init__(self) -> None:
        self.policies: dict[str, Policy] = {}
        self.pods: dict[bytes, PodEntry] = {}

    def hear(self, update: Update) -> None:
        self.policies |= {policy.name: policy for policy in update.policies}
        self.pods |= {entry.address: entry for entry in update.pods}
        assert all(name in self.policies for entry in update.pods for name in entry.policies)
        for name in update.gone_policies:
            del self.policies[name]
        for address in update.gone_pods:
            del self.pods[address]
        assert all(name in self.policies for entry in self.pods.values() for name in entry.policies)

    def all(self) -> Update:
        return Update(
            policies=tuple(self.policies[name] for name in sorted(self.policies)),
            pods=tuple(self.pods[address] for address in sorted(self.pods)),
        )


@settings(max_examples=200, deadline=None)
@given(CHANGES)
def test_history_leaves_no_trace(changes: list[dict[str, list[Manifest]]]) -> None:
    """After any changes the world, and what the data path was told, equal a world built from the last state alone."""
    world, told, last = World(SETTINGS), Told(), dict[str, list[Manifest]]()
    for change in changes:
        step = world.replace(change)
        last |= change
        if step.update is not None:
            for frame in frames(step.update):
                for update in Frames(link.Down).feed(frame):
                    told.hear(update)
        assert told.all() == world.everything()
    for order in (sorted(last), sorted(last, reverse=True)):
        fresh = World(SETTINGS)
        for key in order:
            fresh.replace({key: last[key]})
        assert fresh.everything() == world.everything()


@settings(max_examples=100, deadline=None)
@given(CHANGES)
def test_selection_is_that_of_select(changes: list[dict[str, list[Manifest]]]) -> None:
    """However a pod's policies came about, they are what `policy.select` finds among all policies."""
    world = World(SETTINGS)
    for change in changes:
        world.replace(change)
    for identity, pod_object in world._pods.items():
        where = identity.namespace
        found = select(
            world.policies.values(),
            where,
            world._labels.get(where, {}),
            pod_object.labels,
            pod_object.identity.service_account,
            CLUSTER,
        )
        assert world._selected[identity] == tuple(policy.name for policy in found)


@settings(max_examples=100, deadline=None)
@given(CHANGES)
def test_saying_the_same_again_says_nothing(changes: list[dict[str, list[Manifest]]]) -> None:
    """An update is told only where something differs."""
    world = World(SETTINGS)
    for change in changes:
        world.replace(change)
        assert world.replace(change) == Step(None)


# ---------------------------------------------------------------------------------------------------- frames


def _update(policies: int, pods: int) -> Update:
    return Update(
        policies=tuple(Policy(f"shop/p{number:04}", "shop") for number in range(policies)),
        pods=tuple(
            PodEntry(
                number.to_bytes(4, "big"), PodIdentity("shop", f"web-{number}"), (f"shop/p{number % policies:04}",)
            )
            for number in range(pods)
        ),
        gone_policies=("shop/gone",),
        gone_pods=(b"\xc0\x00\x02\x01",),
    )


def test_a_small_change_is_one_frame() -> None:
    """So that it becomes one kernel transaction."""
    update = _update(POLICIES_PER_UPDATE, PODS_PER_UPDATE)
    assert Frames(link.Down).feed(b"".join(frames(update))) == [update]
    assert list(frames(Update())) == []


def test_a_large_change_is_cut_policies_first_what_is_gone_last() -> None:
    """No pod ever names a policy that was not said before, or is gone already."""
    update = _update(POLICIES_PER_UPDATE * 2 + 1, PODS_PER_UPDATE * 2 + 1)
    parts = Frames(link.Down).feed(b"".join(frames(update)))
    assert [(len(p.policies), len(p.pods), len(p.gone_policies)) for p in parts] == [
        (POLICIES_PER_UPDATE, 0, 0),
        (POLICIES_PER_UPDATE, 0, 0),
        (1, 0, 0),
        (0, PODS_PER_UPDATE, 0),
        (0, PODS_PER_UPDATE, 0),
        (0, 1, 0),
        (0, 0, 1),
    ]
    assert tuple(policy for part in parts for policy in part.policies) == update.policies
    assert tuple(entry for part in parts for entry in part.pods) == update.pods


def test_frames_of_large_policies_stay_within_the_bound() -> None:
    """Fifty policies of half a megabyte are not one frame."""
    patterns = tuple(Pattern(Name(f"name{number}.example")) for number in range(20_000))
    rule = Rule("allow[0]", Action.ALLOW, patterns)
    policies = tuple(Policy(f"shop/p{number}", "shop", allow=(rule,)) for number in range(12))
    cut = list(frames(Update(policies=policies)))
    assert max(map(len, cut)) <= MAX_POLICY
    assert len(cut) > 1
    parts = Frames(link.Down).feed(b"".join(cut))
    assert tuple(policy for part in parts for policy in part.policies) == policies


def test_frames_of_pods_with_many_policies_stay_within_the_bound() -> None:
    """Five hundred pods that a thousand policies select are not one frame."""
    names = tuple(f"shop/a-policy-with-quite-a-long-name-{number:04}" for number in range(1000))
    pods = tuple(PodEntry(n.to_bytes(4, "big"), PodIdentity("shop", f"web-{n}"), names) for n in range(PODS_PER_UPDATE))
    cut = list(frames(Update(pods=pods)))
    assert max(map(len, cut)) <= MAX_POLICY
    parts = Frames(link.Down).feed(b"".join(cut))
    assert tuple(entry for part in parts for entry in part.pods) == pods
