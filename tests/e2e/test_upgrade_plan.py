"""`kb upgrade plan` and `diff` on real nodes: what would change on which node, what stands in the way, and nothing touched by looking."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from .lab.config import lab_config
from .lab.control_planes import KB, code_of, join_control_plane, kubectl, start_cluster
from .lab.lab import Lab
from .lab.node import Node
from .lab.settings import find_release
from .test_init_options import BRIDGE, LISTING, init, put
from .world import web

MakeNode = Callable[..., Node]
NEXT = {"1.34": "1.35", "1.35": "1.36"}
OLD_API = "/apis/storage.k8s.io/v1alpha1/volumeattributesclasses"
"""1.34 serves it if it is told to, and 1.35 lacks it."""
OLD_APIS = {"1.34": (OLD_API, "1.35"), "1.35": ("/apis/storage.k8s.io/v1beta1/volumeattributesclasses", "1.37")}
"""minor -> one that it serves if it is told to, and the first release without it."""
STILL_COUNTED = ("removed-api-in-use", "")
PAUSE = "registry.k8s.io/pause:3.10.1"
SCHEDULER = "/etc/kubernetes/manifests/kube-scheduler.yaml"


@pytest.fixture(params=list(NEXT), scope="module")
def minor(request: pytest.FixtureRequest) -> str:
    found = str(request.param)
    for one in (found, NEXT[found]):
        find_release(one)
    return found


@pytest.fixture(scope="module")
def pair(lab: Lab, kb_pyz: Path, minor: str) -> Iterator[tuple[Node, Node]]:
    """A control plane and a worker, with the next release's images on the first."""
    nodes = [lab.add_node(name, version=minor) for name in ("cp1", "w1")]
    cp1, w1 = nodes
    extra = (
        {"extraArgs": [{"name": "runtime-config", "value": "storage.k8s.io/v1alpha1=true"}]} if minor == "1.34" else {}
    )
    put(cp1, kb_pyz, lab_config(minor, address=cp1.address, cluster={"apiServer": extra}, kb=BRIDGE))
    init(cp1)
    join = cp1.run("python3 kb.pyz token create --print-join-command").stdout.strip().replace("\\\n", " ")
    w1.scp(kb_pyz, "/root/kb.pyz")
    w1.run(f"{join} --ignore-preflight-errors=all --soak 0", timeout=300)
    cp1.wait_node_ready()
    cp1.offer_release(NEXT[minor])
    yield cp1, w1
    for node in nodes:
        lab.remove_node(node)


def look(node: Node, words: str = "", *, status: int = 0) -> dict[str, Any]:
    """The plan, and that looking has touched no file and left no mount and no container. What the kubelet starts meanwhile counts only if
    it does so each time."""
    for _ in range(4):
        before = node.run(f"{LISTING}; crictl ps -q | sort; ls /run").stdout
        answer = node.run(f"python3 kb.pyz upgrade plan {words} -o json", check=False)
        after = node.run(f"{LISTING}; crictl ps -q | sort; ls /run").stdout
        if after == before:
            break
    assert after == before
    found: dict[str, Any] = json.loads(answer.stdout)
    used = named(found) == {STILL_COUNTED}  # by an API server that was asked for it in an earlier test
    assert answer.code == (3 if used else status), answer.output
    return found


def named(plan: dict[str, Any], *, weighs: tuple[str, ...] = ("mandatory", "skippable")) -> set[tuple[str, str]]:
    return {(one["name"], one["node"]) for one in plan["objections"] if one["weighs"] in weighs}


def test_a_cluster_that_is_well(pair: tuple[Node, Node], minor: str) -> None:
    cp1, _ = pair
    wanted = find_release(NEXT[minor]).version
    plan = look(cp1)
    assert named(plan) == set(), plan["objections"]
    assert (plan["target"], plan["drains"], plan["blocks"]) == (wanted, True, False)
    targets = {(one["component"], one["node"]): (one["current"], one["target"]) for one in plan["components"]}
    now = find_release(minor).version
    for component in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet"):
        assert targets[component, "cp1"] == (now, wanted)
    assert targets["kubelet", "w1"] == targets["kube-proxy", ""] == (now, wanted)
    assert [(one["node"], one["command"]) for one in plan["lines"]] == [
        ("cp1", f"kb upgrade apply {wanted}"),
        ("w1", "kb upgrade node"),
    ]


def test_what_stands_in_the_way(pair: tuple[Node, Node], minor: str) -> None:
    cp1, _ = pair
    web.wait_service_account(cp1)
    pod = web.render_pod("guard", node="w1")
    pod["spec"]["containers"] = [{"name": "pause", "image": PAUSE}]  # which no kubelet short of space deletes
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "guard", "namespace": "default"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "guard"}}},
    }
    hook = {
        "name": "pods.guard.example.com",
        "clientConfig": {"service": {"namespace": "default", "name": "guard"}},
        "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "operations": ["CREATE"]}],
        "namespaceSelector": {"matchLabels": {"guarded": "yes"}},
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
    }
    config = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": "guard"},
        "webhooks": [hook],
    }
    web.apply(cp1, pod, web.render_service("guard"), budget, config)
    cp1.wait_pods_ready("default", "app=guard")
    if minor == "1.34":
        cp1.kubectl(f"get --raw {OLD_API}")
    wanted = {("pod-disruption-budget", "w1"), ("webhook-on-one-node", "w1")}
    wanted |= {("removed-api-in-use", "")} if minor == "1.34" else set()
    plan = look(cp1, find_release(NEXT[minor]).version, status=3)
    assert named(plan) == wanted, plan["objections"]
    if minor == "1.34":
        (used,) = plan["removedApis"]
        assert (used["name"], used["removedRelease"]) == ("volumeattributesclasses.storage.k8s.io/v1alpha1", "1.35")
        assert used["requests"] >= 1 and used["since"] and used["servers"] == [f"{cp1.address}:6443"]
    cp1.kubectl("delete validatingwebhookconfiguration/guard pdb/guard service/guard pod/guard")


def test_what_the_next_version_lacks(pair: tuple[Node, Node], minor: str) -> None:
    """A flag of the kubelet, by the table; a two-minor leap; going back."""
    cp1, _ = pair
    cp1.write("/etc/default/kubelet", 'KUBELET_EXTRA_ARGS="--pod-infra-container-image=registry.k8s.io/pause:3.10"\n')
    plan = look(cp1, find_release(NEXT[minor]).version, status=3)
    assert ("kubelet-flag-refused", "cp1") in named(plan)
    cp1.run("rm /etc/default/kubelet")
    leap = look(cp1, f"v1.{int(minor[2:]) + 2}.0", status=3)
    assert ("version-too-high", "") in named(leap)
    back = look(cp1, f"v1.{int(minor[2:]) - 1}.0", status=3)
    assert ("downgrade", "") in named(back)


def test_a_change_by_hand(pair: tuple[Node, Node], minor: str) -> None:
    """It is named by its field, and the difference shows what would run."""
    cp1, _ = pair
    wanted = find_release(NEXT[minor]).version
    cp1.run(f"cp {SCHEDULER} /root/scheduler.yaml && sed -i 's/- kube-scheduler$/&\\n    - --v=3/' {SCHEDULER}")
    plan = look(cp1, wanted, status=3)
    assert ("hand-edits", "cp1") in named(plan), plan["objections"]
    edits = [one for one in plan["differences"] if one["manifest"] == "kube-scheduler"]
    assert [(one["found"], one["isConflict"]) for one in edits] == [("3", False)], plan["differences"]
    shown = cp1.run(f"python3 kb.pyz upgrade diff {wanted}").stdout
    assert f"--- {SCHEDULER}" in shown and f":{wanted}" in shown and "--v=3" in shown
    cp1.run(f"cp /root/scheduler.yaml {SCHEDULER}")
    assert named(look(cp1, wanted)) <= {STILL_COUNTED}


def test_a_plan_that_is_kept(pair: tuple[Node, Node], minor: str) -> None:
    cp1, _ = pair
    wanted = find_release(NEXT[minor]).version
    made = cp1.run(f"python3 kb.pyz upgrade plan {wanted} --out /root/plan.json", check=False)
    assert made.code in (0, 3), made.output  # 3: an API of an earlier test still counts
    assert cp1.run("stat -c %a /root/plan.json").stdout.strip() == "600"
    kept = json.loads(cp1.read("/root/plan.json"))
    assert kept["seen"] == look(cp1, wanted)["seen"]

    # it is good until something moves, and changes nothing then
    cp1.run(f"cp {SCHEDULER} /root/scheduler.yaml && sed -i 's/- kube-scheduler$/&\\n    - --v=3/' {SCHEDULER}")
    refused = cp1.run("python3 kb.pyz upgrade apply /root/plan.json --yes", check=False, timeout=300)
    assert code_of(refused) == "plan-outdated" and "kube-scheduler" in refused.output, refused.output
    assert cp1.read(SCHEDULER).count("--v=3") == 1 and not cp1.exists("/var/lib/kb/upgrade/upgrade.json")
    cp1.run(f"cp /root/scheduler.yaml {SCHEDULER}")


@pytest.mark.parametrize("former", ["1.34", "1.35"])
def test_old_apis_are_summed_over_all_api_servers(make_node: MakeNode, kb_pyz: Path, former: str) -> None:
    """Each counts what it was asked itself. Two control planes; what the next minor lacks blocks, what a later one lacks is only shown."""
    api, gone = OLD_APIS[former]
    group, version, resource = api.split("/")[2:]
    served = [{"name": "runtime-config", "value": f"{group}/{version}=true"}]
    first, second = start_cluster(
        make_node, kb_pyz, former, names=["c1", "c2"], cluster={"apiServer": {"extraArgs": served}}
    )
    join_control_plane(second, first)
    first.wait_node_ready("c2")
    wanted = find_release(NEXT[former]).version

    def plan() -> dict[str, Any]:
        answer = first.run(f"{KB} upgrade plan {wanted} -o json", check=False, timeout=300)
        assert answer.code in (0, 3), answer.output
        found: dict[str, Any] = json.loads(answer.stdout)
        return found

    def find(found: dict[str, Any]) -> dict[str, Any]:
        (one,) = [row for row in found["removedApis"] if row["name"] == f"{resource}.{group}/{version}"]
        assert one["removedRelease"] == gone
        return dict(one)

    for _ in range(3):
        kubectl(first, f"get --raw {api}", f"{second.address}:6443")
    only_second = find(plan())
    assert only_second["servers"] == [f"{second.address}:6443"] and only_second["requests"] >= 3, only_second
    for _ in range(5):
        kubectl(first, f"get --raw {api}", f"{first.address}:6443")
    found = plan()
    both = find(found)
    assert both["servers"] == [f"{node.address}:6443" for node in (first, second)], both
    assert both["requests"] >= only_second["requests"] + 5, both
    assert (("removed-api-in-use", "") in named(found)) == (gone == NEXT[former]), found["objections"]
    started = first.get("pod kube-apiserver-c1 -n kube-system")["status"]["containerStatuses"][0]["state"]["running"]
    since, start = (
        datetime.datetime.strptime(one, "%Y-%m-%dT%H:%M:%SZ") for one in (both["since"], started["startedAt"])
    )
    assert abs(since - start) < datetime.timedelta(seconds=30)
