"""What of the world is told: pods, and the policies that select them."""

from __future__ import annotations

import json

from egressd.control.telling import Telling
from egressd.control.world import World
from egressd.link import Update
from egressd.model import PodIdentity
from egressd.schema import POLICY_LABEL, ConfigMapObject, PodObject
from egressd.settings import Settings

ADDRESS = bytes((192, 0, 2, 5))


def configmap(name: str, app: str, peer: str = "api.example.com") -> ConfigMapObject:
    subject = {"podSelector": {"matchLabels": {"app": app}}}
    text = json.dumps({"subject": subject, "allow": [{"to": [peer]}]})
    return ConfigMapObject("shop", name, {POLICY_LABEL: "true"}, {"policy.yaml": text})


def pod(app: str) -> PodObject:
    identity = PodIdentity("shop", "web-0", "uid")
    return PodObject(identity, {"app": app}, (ADDRESS,), "", host_network=False, finished=False, created="")


def told(update: Update) -> tuple[list[str], tuple[str, ...], list[tuple[str, ...]]]:
    return [policy.name for policy in update.policies], update.gone_policies, [e.policies for e in update.pods]


def test_only_what_selects_a_pod_is_told() -> None:
    """An edit of any other policy says nothing; one that comes to select the pod is told with it, and then gone."""
    world, telling = World(Settings()), Telling()
    world.replace({"a": [configmap("web", "web")], "b": [configmap("api", "api")], "pod": [pod("web")]})
    assert told(telling.everything(world)) == (["shop/web"], (), [("shop/web",)])
    step = world.replace({"b": [configmap("api", "api", "other.example")]})
    assert step.update is not None
    assert telling.change(world, step.update) == Update()
    step = world.replace({"pod": [pod("api")]})
    assert step.update is not None
    change = telling.change(world, step.update)
    assert told(change) == (["shop/api"], ("shop/web",), [("shop/api",)])
    assert change.policies == (world.policies["shop/api"],), "as it is now, with the edit that was not told"


def test_a_policy_that_is_deleted_is_gone() -> None:
    """Once, and only if it was told."""
    world, telling = World(Settings()), Telling()
    world.replace({"a": [configmap("web", "web")], "b": [configmap("api", "api")], "pod": [pod("web")]})
    telling.everything(world)
    step = world.replace({"a": [], "b": []})
    assert step.update is not None
    assert told(telling.change(world, step.update)) == ([], ("shop/web",), [()])
