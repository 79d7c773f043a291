"""`kb doctor` on a real node at work: nothing to tell while it is well, and each thing that is broken is told, with
its remedy, while nothing is changed by looking."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from .lab.config import lab_config
from .lab.lab import Lab
from .lab.node import Node, wait_until
from .lab.settings import read_releases
from .test_init_options import BRIDGE, LISTING, init, put

MakeNode = Callable[..., Node]
MINORS = ("1.35", "1.36")
SCHEDULER = "/etc/kubernetes/manifests/kube-scheduler.yaml"
FLAGS = "/var/lib/kubelet/kubeadm-flags.env"


@pytest.fixture(scope="module", params=MINORS)
def cp1(request: pytest.FixtureRequest, lab: Lab, kb_pyz: Path) -> Iterator[Node]:
    minor: str = request.param
    if minor not in read_releases():
        pytest.skip(f"KB_E2E_BIN has no Kubernetes {minor}")
    node = lab.add_node("cp1", version=minor)
    put(node, kb_pyz, lab_config(minor, address=node.address, kb=BRIDGE))
    init(node)
    node.wait_node_ready()
    yield node
    lab.remove_node(node)


def examine(node: Node) -> dict[str, list[dict[str, str]]]:
    """look -> what it found that is not well."""
    answer = node.run("python3 kb.pyz doctor -o json", check=False)
    notes = json.loads(answer.stdout)["notes"]
    found: dict[str, list[dict[str, str]]] = {}
    for note in notes:
        if note["level"] != "ok":
            found.setdefault(note["look"], []).append(note)
    errors = [note for note in notes if note["level"] == "error"]
    assert answer.code == (3 if errors else 0), answer.output
    return found


def only_error(found: dict[str, list[dict[str, str]]], look: str) -> dict[str, str]:
    errors = [note for notes in found.values() for note in notes if note["level"] == "error"]
    assert [note["look"] for note in errors] == [look], errors
    assert errors[0]["remedy"]
    return errors[0]


def test_a_node_that_is_well(cp1: Node) -> None:
    containers = "crictl ps -aq | sort; ip route; nft list tables"
    before = cp1.run(f"{LISTING}; {containers}").stdout
    found = examine(cp1)
    assert cp1.run(f"{LISTING}; {containers}").stdout == before
    assert [note for notes in found.values() for note in notes if note["level"] == "error"] == []
    assert set(found) <= {"SystemVerification", "disk", "ContainerRuntimeVersion", "Hostname"}, found
    told = cp1.run("python3 kb.pyz doctor").stdout
    assert f"node cp1, control plane, Kubernetes {cp1.release.version}" in told
    assert "0 errors" in told and "nothing was changed" in told


@contextlib.contextmanager
def replaced(node: Node, path: str, change: Callable[[str], str]) -> Iterator[None]:
    good = node.read(path)
    bad = change(good)
    assert bad != good
    node.write(path, bad)
    try:
        yield
    finally:
        node.write(path, good, mode=0o600)


def test_drift_of_the_kubelet_s_flags_and_configuration(cp1: Node) -> None:
    with replaced(cp1, FLAGS, lambda text: text.replace('ARGS="', 'ARGS="--v=4 ')):
        (note,) = examine(cp1)["kubelet-drift"]
    assert "the kubelet runs without --v=4" in note["text"] and note["remedy"] == "systemctl restart kubelet"
    time.sleep(1.1)  # a file's time counts from one second on
    cp1.run("touch /var/lib/kubelet/config.yaml")
    (note,) = examine(cp1)["kubelet-drift"]
    assert "/var/lib/kubelet/config.yaml was changed after the kubelet was started" in note["text"]
    cp1.run("systemctl restart kubelet")
    wait_until(
        lambda: "kubelet-drift" not in examine(cp1), what="the drift to go by its remedy", timeout_s=60, every_s=2
    )


def test_a_certificate_that_is_not_the_served_one(cp1: Node) -> None:
    """The API server takes a new certificate at once, but not one that its key does not fit: it goes on with the old."""
    path = "/etc/kubernetes/pki/apiserver.crt"
    cp1.run(f"cp -a {path} /root/apiserver.crt")
    try:
        cp1.run(
            f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=other -days 9 -keyout /root/other.key -out {path}"
        )
        found = examine(cp1)
        (note,) = found["served-certificates"]
        assert f"kube-apiserver still presents another certificate than {path}" in note["text"]
        assert any(path in note["text"] for note in found["certificates"])
    finally:
        cp1.run(f"mv /root/apiserver.crt {path} && rm /root/other.key")
    assert "served-certificates" not in examine(cp1)


def test_a_key_that_is_not_the_certificate_s(cp1: Node) -> None:
    key = "/etc/kubernetes/pki/front-proxy-client.key"
    cp1.run(f"cp -a {key} /root/key && openssl genrsa -out {key} 2048")
    try:
        note = only_error(examine(cp1), "certificates")
        assert "front-proxy-client.crt" in note["text"] and key in note["text"]
    finally:
        cp1.run(f"mv /root/key {key}")


def test_an_image_that_is_gone(cp1: Node) -> None:
    image = f"registry.k8s.io/kube-scheduler:{cp1.release.version}"
    cp1.run(f"ctr -n k8s.io images export /root/image.tar {image} && crictl rmi {image}")
    try:
        note = only_error(examine(cp1), "images")
        assert image in note["text"] and note["remedy"] == f"crictl pull {image}"
    finally:
        cp1.run("ctr -n k8s.io images import /root/image.tar && rm /root/image.tar")


def test_a_copy_beside_a_manifest(cp1: Node) -> None:
    """The kubelet reads every file of the folder that is not hidden."""
    copy = "/etc/kubernetes/manifests/kube-scheduler.yaml.bak"
    cp1.run(f"cp /etc/kubernetes/manifests/kube-scheduler.yaml {copy}")
    try:
        told = only_error(examine(cp1), "manifests/kube-scheduler")
        assert copy in told["text"] and f"mv {copy} " in told["remedy"]
    finally:
        cp1.run(f"rm {copy}")
    wait_until(lambda: not errors_of(cp1), what="the scheduler to be well again", timeout_s=120, every_s=3)


def test_a_cni_configuration_that_is_gone(cp1: Node) -> None:
    """The node is NotReady, and the DNS of its pods silent, because of that."""
    cp1.run("mkdir /root/cni && mv /etc/cni/net.d/* /root/cni/ && systemctl restart containerd")
    try:
        wait_until(lambda: "node" in examine(cp1), what="the node to be NotReady", timeout_s=60, every_s=2)
        found = examine(cp1)
        told = only_error(found, "pod-network")
        assert "no CNI configuration in /etc/cni/net.d" in told["text"]
        assert [note["level"] for note in found["node"]] == ["follows"]
        assert told["remedy"].endswith("init phase pod-network")
        cp1.run("python3 kb.pyz init phase pod-network")
        cp1.run("diff -r /root/cni /etc/cni/net.d")
    finally:
        cp1.run("cp -a /root/cni/* /etc/cni/net.d/ && rm -r /root/cni")
    cp1.wait_node_ready()


def test_a_firewall_that_drops_what_pods_forward(cp1: Node) -> None:
    """As an installation of Docker leaves it, or whoever loads rules of his own: kb's keeper puts its own back."""
    cp1.run("iptables -P FORWARD DROP && iptables -F FORWARD")
    try:
        told = only_error(examine(cp1), "pod-network")
        assert "chain FORWARD of iptables" in told["text"] and "systemctl restart kb-routes.service" in told["remedy"]
        wait_until(lambda: "pod-network" not in examine(cp1), what="the rules to come back", timeout_s=60, every_s=2)
    finally:
        cp1.run("iptables -P FORWARD ACCEPT")


def test_a_component_that_ends(cp1: Node) -> None:
    def find_named() -> Any:
        note = first_error(cp1, "chain/container")
        return note if note and "unknown flag: --nonsense" in note["text"] else None

    with replaced(
        cp1, SCHEDULER, lambda text: text.replace("- kube-scheduler\n", "- kube-scheduler\n    - --nonsense\n")
    ):
        # the container that goes in order is seen first
        note = wait_until(find_named, what="the broken link", timeout_s=60, every_s=2)
    assert "kube-scheduler exited" in note["text"]
    wait_until(lambda: not errors_of(cp1), what="the node to be well again", timeout_s=120, every_s=3)


def errors_of(node: Node) -> list[dict[str, str]]:
    return [note for notes in examine(node).values() for note in notes if note["level"] == "error"]


def first_error(node: Node, look: str) -> Any:
    return next((note for note in errors_of(node) if note["look"] == look), None)


def test_a_dns_that_does_not_answer(cp1: Node) -> None:
    cp1.kubectl("scale deployment -n kube-system coredns --replicas=0")
    try:
        note = wait_until(lambda: first_error(cp1, "dns"), what="the DNS to be missed", timeout_s=60, every_s=2)
        assert "10.96.0.10 does not answer for kubernetes.default.svc.cluster.local" in note["text"]
    finally:
        cp1.kubectl("scale deployment -n kube-system coredns --replicas=2")
    wait_until(lambda: not errors_of(cp1), what="the node to be well again", timeout_s=120, every_s=3)


# ---- what only the cluster shows

WEBHOOK = {
    "apiVersion": "admissionregistration.k8s.io/v1",
    "kind": "ValidatingWebhookConfiguration",
    "metadata": {"name": "nobody-answers"},
    "webhooks": [
        {
            "name": "pods.example.org",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "timeoutSeconds": 2,
            "clientConfig": {"url": "https://127.0.0.1:1/"},
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
        }
    ],
}


def test_a_webhook_that_does_not_answer(cp1: Node) -> None:
    cp1.kubectl("create -f -", stdin=json.dumps(WEBHOOK))
    try:
        note = only_error(wait_until(lambda: examine(cp1), what="an answer", timeout_s=60), "cluster")
        assert note["text"].startswith("no pod can be created: ") and "pods.example.org" in note["text"]
        assert "kubectl delete validatingwebhookconfiguration" in note["remedy"]
    finally:
        cp1.kubectl("delete validatingwebhookconfiguration nobody-answers")
    assert "cluster" not in examine(cp1)
    assert cp1.get("pods -n default")["items"] == []  # a trial leaves nothing behind


def test_a_node_that_went_away_and_a_controller_manager_that_does_not_lead(cp1: Node) -> None:
    """w1 has a Node object and no machine; the controller-manager is stopped in its tracks: it runs, and does nothing."""
    cp1.kubectl("create -f -", stdin=json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "w1"}}))
    pid = cp1.run("pgrep -o kube-controller").stdout.strip()
    try:
        (note,) = [note for note in examine(cp1)["cluster"] if "w1" in note["text"]]
        assert note["level"] == "warning" and note["text"].startswith("node w1 is not Ready: ")
        cp1.run(f"kill -STOP {pid}")
        found = examine(cp1)
        assert "kube-controller-manager is not healthy" in only_error(found, "chain/probe")["text"]
        told = [note["text"] for note in found["cluster"]]
        follows = "because of that: no kube-controller-manager leads: cp1 has not renewed its lease"
        assert any(text.startswith(follows) for text in told), told
    finally:
        cp1.run(f"kill -CONT {pid}", check=False)
        cp1.kubectl("delete node w1")
    wait_until(lambda: "cluster" not in examine(cp1), what="a cluster that is well", timeout_s=90, every_s=3)


def only_warning(node: Node, look: str) -> dict[str, str]:
    """The one finding of a look, which is a warning; another error there is would be its consequence."""
    found = examine(node)
    assert [note["level"] for note in found.get(look, ())] == ["warning"], found
    assert not any(note["level"] == "error" for notes in found.values() for note in notes), found
    return found[look][0]


def test_a_kubelet_that_the_api_server_does_not_reach(cp1: Node) -> None:
    """The node stays Ready: its kubelet calls the API server."""
    rule = "INPUT -p tcp --dport 10250 -j DROP"
    cp1.run(f"iptables -I {rule}")
    try:
        note = only_warning(cp1, "cluster")
        assert "does not reach the kubelet of node cp1" in note["text"] and "TCP port 10250" in note["remedy"]
    finally:
        cp1.run(f"iptables -D {rule}")


def test_an_aggregated_api_whose_service_is_gone(cp1: Node) -> None:
    service = {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": "v1beta1.metrics.k8s.io"},
        "spec": {
            "group": "metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100,
            "insecureSkipTLSVerify": True, "service": {"namespace": "kube-system", "name": "metrics-server"},
        },
    }  # fmt: skip
    cp1.kubectl("create -f -", stdin=json.dumps(service))
    try:
        wait_until(lambda: "cluster" in examine(cp1), what="doctor to name the API", timeout_s=60, every_s=2)
        note = only_warning(cp1, "cluster")
        assert "the aggregated API v1beta1.metrics.k8s.io does not answer" in note["text"]
    finally:
        cp1.kubectl("delete apiservice v1beta1.metrics.k8s.io")


def test_a_folder_that_became_read_only(cp1: Node) -> None:
    cp1.run("mount --bind /etc/kubernetes /etc/kubernetes && mount -o remount,bind,ro /etc/kubernetes")
    try:
        note = only_error(examine(cp1), "machine/mounts")
        assert note["text"].startswith("/etc/kubernetes is mounted read-only")
    finally:
        cp1.run("umount /etc/kubernetes")


def test_a_service_that_failed_a_node_that_is_cordoned_and_their_metrics(cp1: Node) -> None:
    cp1.run("systemd-run --unit=kb-mirror.service false; mkdir -p /root/metrics", check=False)
    cp1.kubectl("cordon cp1")
    try:
        found = examine(cp1)
        assert [note["text"] for note in found["events/units"]] == ["kb-mirror.service has failed"]
        assert [note["remedy"] for note in found["node"]] == ["kb node uncordon cp1"]
        cp1.run("python3 kb.pyz doctor --textfile /root/metrics", check=False)
        metrics = cp1.read("/root/metrics/kb_doctor.prom")
        assert 'kb_doctor_finding{check="events/units",level="warning"} 1\n' in metrics
        assert 'kb_doctor_findings{level="error"} 0\n' in metrics
    finally:
        cp1.kubectl("uncordon cp1")
        cp1.run("systemctl reset-failed kb-mirror.service")
    told = cp1.run("timeout 15 python3 kb.pyz doctor --watch", check=False).stdout
    assert told.startswith("node cp1, control plane") and "kb-mirror" not in told


def test_the_cluster_as_a_control_plane_knows_it(cp1: Node) -> None:
    """A pod that no registry has an image for, and one that no node takes."""
    well = cp1.run("python3 kb.pyz doctor --cluster").stdout
    assert "0 errors, 0 warnings" in well, well
    assert all(line.startswith("ok") for line in well.splitlines()[1:-1]), well
    for name, more in (("no-image", {}), ("no-node", {"nodeSelector": {"nobody": "has-it"}})):
        containers = [{"name": "it", "image": "registry.invalid/nothing:1"}]
        spec = {"containers": containers, "tolerations": [{"operator": "Exists"}], **more}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "kube-system"}, "spec": spec}
        cp1.kubectl("create -f -", stdin=json.dumps(pod))
    try:

        def read_stuck() -> set[str]:
            answer = cp1.run("python3 kb.pyz doctor --cluster -o json", check=False)
            return {
                note["text"].partition(":")[0] for note in json.loads(answer.stdout)["notes"] if note["look"] == "pods"
            }

        image = "container it of pod kube-system/no-image on node cp1 does not run (ErrImagePull)"
        wanted = (
            {image, "no node takes pod kube-system/no-node"},
            {image.replace("ErrImagePull", "ImagePullBackOff"), "no node takes pod kube-system/no-node"},
        )
        wait_until(lambda: read_stuck() in wanted, what="both pods to be named", timeout_s=120, every_s=3)
    finally:
        cp1.kubectl("-n kube-system delete pod no-image no-node --now")
