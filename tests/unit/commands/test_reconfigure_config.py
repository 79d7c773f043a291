"""kubeup/commands/reconfigure_config.py: a change of the stored configuration, from the command line to its exit status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from kubeup.cluster import health, membership, probes
from kubeup.cluster.health import Part
from kubeup.doctor import node_files
from kubeup.errors import ClusterError
from kubeup.machine.http import HttpResponse
from kubeup.machine.local_host import LocalHost
from kubeup.phases import upgrade_kubelet
from kubeup.trouble import Trouble
from kubeup.yaml_files import dump_yaml, load_yaml
from tests.fake_cluster import FakeCluster
from tests.fake_control_plane import COMPONENTS, MANIFESTS, SERVER, ControlPlane, Gone, make_control_plane
from tests.fuzz.node import Ended, call
from tests.unit.golden import golden_text
from tests.unit.swap.swap_case import Stage, set_stage, trial

CONFIG = "/api/v1/namespaces/kube-system/configmaps/kubeadm-config"
KUBELETS = "/api/v1/namespaces/kube-system/configmaps/kubelet-config"
CONFIG_YAML = "/var/lib/kubelet/config.yaml"
FORMER = "/api/v1/namespaces/kube-system/configmaps/kb-former-config"
TEXTS = {
    name: golden_text(35, f"manifests/{name}.yaml").replace("10.77.0.11", "10.0.0.11") for name in COMPONENTS
}  # fmt: skip
STORED: dict[str, Any] = load_yaml(golden_text(35, "cluster-configuration.yaml"))


@dataclass
class Node(ControlPlane):
    """A control plane of kubeadm's whose API server has objects."""

    cluster: FakeCluster = field(default_factory=FakeCluster)

    def _api(self, url: str, path: str) -> HttpResponse:
        found = super()._api(url, path)
        return found if found.status != 404 or "/leases/" in path else self.cluster.answer("GET", url, b"", {})

    def http_send(
        self, method: str, url: str, *, body: bytes = b"", tls: Any = None, headers: Any = None, **more: Any
    ) -> HttpResponse:
        if SERVER not in url or "/leases" in url:
            return super().http_send(method, url, body=body, **more)
        self.changes.append(f"{method} {url.partition('?')[0]}")
        answer = self.cluster.answer(method, url, body, headers or {})
        self._changed(self.changes[-1])
        return answer


def make_node(stored: Any = None, **fields: Any) -> Node:
    host = make_control_plane(Node, **fields)
    host.dirs.update(("/etc/ca-certificates", "/usr/share/ca-certificates", "/usr/local/share/ca-certificates"))
    host.files["/etc/kubernetes/pki/ca.key"] = b"key"
    for name, text in TEXTS.items():
        host.files[f"{MANIFESTS}/{name}.yaml"] = text.encode()
    host.files[CONFIG_YAML] = golden_text(35, "kubelet/config.yaml").encode()
    host.sleep(60)
    for noted in (host.changes, host.events, host.violations):
        noted.clear()
    store(host, stored or STORED)
    keep(host, KUBELETS, {"kubelet": golden_text(35, "kubelet/config.yaml")})
    assert isinstance(host, Node)
    return host


def store(host: Any, document: Mapping[str, Any]) -> None:
    keep(host, CONFIG, {"ClusterConfiguration": dump_yaml(dict(document))})


def keep(host: Any, path: str, data: Mapping[str, str]) -> None:
    meta = {"name": path.rpartition("/")[2], "namespace": "kube-system"}
    host.cluster.objects[path] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": dict(data)}


def stored(host: Node, path: str = CONFIG) -> Any:
    return load_yaml(host.cluster.objects[path]["data"]["ClusterConfiguration"])


def words_of(host: Node, component: str = "kube-apiserver") -> list[str]:
    pod = load_yaml(host.files[f"{MANIFESTS}/{component}.yaml"].decode())
    found: list[str] = pod["spec"]["containers"][0]["command"]
    return found


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    access = SimpleNamespace(server=f"https://{SERVER}", ca_pem="CA")
    monkeypatch.setattr(membership, "find_member_access", lambda host, path: access)
    monkeypatch.setattr(node_files, "read_cert_node_name", lambda host, paths: "cp1")
    made = set_stage(monkeypatch)
    made.kubelets = []  # type: ignore[attr-defined]
    made.bad = ""  # type: ignore[attr-defined]

    def start(run: Any, *, version: str, since: object, needs_ready: bool = True) -> float:
        text = run.host.read_text(run.paths.kubelet_config)
        made.kubelets.append(load_yaml(text))  # type: ignore[attr-defined]
        if made.bad and made.bad in text:  # type: ignore[attr-defined]
            raise ClusterError("it does not work", cause="it ends", remedy="look", code="not-healthy")
        return 3.0

    monkeypatch.setattr(upgrade_kubelet, "start_and_watch", start)
    monkeypatch.setattr(upgrade_kubelet, "is_ready", lambda run: True)
    return made


def kb(host: Node, *words: str) -> Ended:
    def make() -> LocalHost:
        return host  # type: ignore[return-value]

    ended = call(["reconfigure", *words], make, limit_s=120)
    assert not ended.bug, ended.bug
    return ended


def done(host: Node, *words: str) -> Ended:
    ended = kb(host, *words)
    assert ended.status == 0, ended.err
    return ended


def refused(host: Node, *words: str, code: str) -> Ended:
    before = {path: data for path, data in host.files.items() if not path.startswith("/var/lib/kb/")}
    objects = json.dumps(host.cluster.objects)
    ended = kb(host, *words)
    assert ended.status != 0
    assert f"code:   {code}\n" in ended.err, ended.err
    assert {path: data for path, data in host.files.items() if not path.startswith("/var/lib/kb/")} == before
    assert json.dumps(host.cluster.objects) == objects
    assert not host.events
    return ended


SCHEDULER = ("scheduler", "--set", "v=4")
APISERVER = ("apiserver", "--set", "v=4", "--yes")


# ---- a change


def test_a_flag_is_set_and_unset(stage: Stage) -> None:
    host = make_node()
    ended = done(host, *APISERVER)
    assert words_of(host)[-1] == "--v=4"
    assert stored(host)["apiServer"] == {"extraArgs": [{"name": "v", "value": "4"}]}
    assert stored(host, FORMER) == STORED
    assert "+    - --v=4" in ended.out
    assert "+    - name: v" in ended.out or "+  - name: v" in ended.out
    assert stage.tried == ["kube-apiserver"]
    done(host, "apiserver", "--unset", "v", "--yes")
    assert not [word for word in words_of(host) if word.startswith("--v=")]
    assert stored(host) == STORED
    assert not host.violations


def test_the_difference_comes_before_the_first_change(stage: Stage) -> None:
    host = make_node()
    ended = refused(host, "apiserver", "--set", "v=4", code="not-confirmed")
    assert "+    - --v=4" in ended.out


def test_the_same_again_is_nothing_to_do(stage: Stage) -> None:
    host = make_node()
    done(host, *SCHEDULER)
    events, objects = len(host.events), json.dumps(host.cluster.objects)
    ended = done(host, *SCHEDULER)
    assert (len(host.events), json.dumps(host.cluster.objects)) == (events, objects)
    assert "nothing to do" in ended.err


def test_the_same_flag_twice(stage: Stage) -> None:
    host = make_node()
    done(
        host,
        "apiserver",
        "--set",
        "service-account-issuer=https://b",
        "--set",
        "service-account-issuer=https://a",
        "--yes",
    )
    told = [word for word in words_of(host) if word.startswith("--service-account-issuer=")]
    assert told == ["--service-account-issuer=https://b", "--service-account-issuer=https://a"]


def test_a_value_with_commas_and_signs_stays_whole(stage: Stage) -> None:
    host = make_node()
    done(host, "scheduler", "--set", "feature-gates=A=true,B=false")
    assert "--feature-gates=A=true,B=false" in words_of(host, "kube-scheduler")


def test_a_hand_edit_is_kept_and_said(stage: Stage) -> None:
    host = make_node()
    edited = TEXTS["kube-scheduler"].replace(
        "    - kube-scheduler\n", "    - kube-scheduler\n    - --profiling=false\n"
    )
    host.files[f"{MANIFESTS}/kube-scheduler.yaml"] = edited.encode()
    host.sleep(30)
    ended = done(host, *SCHEDULER)
    assert {"--v=4", "--profiling=false"} <= set(words_of(host, "kube-scheduler"))
    assert "--profiling is false, not unset; kept" in ended.err


def test_what_kubeadm_sets_itself_cannot_be_unset(stage: Stage) -> None:
    host = make_node()
    ended = done(host, "scheduler", "--unset", "leader-elect")
    assert "--leader-elect of kube-scheduler is its default here, and stays" in ended.err
    assert "sets no --nothing of kube-scheduler" in done(host, "scheduler", "--unset", "nothing").err
    assert stored(host) == STORED


def test_a_file(stage: Stage) -> None:
    host = make_node()
    document = {
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "kind": "ClusterConfiguration",
        "kubernetesVersion": "stable-1.35",
        "scheduler": {
            "extraArgs": [{"name": "v", "value": "4"}],
            "extraVolumes": [{"name": "a", "hostPath": "/etc/a", "mountPath": "/a", "readOnly": True}],
            "extraEnvs": [{"name": "GOGC", "value": "50"}],
        },
    }
    host.files["/root/c.yaml"] = dump_yaml(document).encode()
    done(host, "--config", "/root/c.yaml")
    pod = load_yaml(host.files[f"{MANIFESTS}/kube-scheduler.yaml"].decode())
    assert pod["spec"]["containers"][0]["env"] == [{"name": "GOGC", "value": "50"}]
    assert "a" in [one["name"] for one in pod["spec"]["volumes"]]
    assert stored(host) == {**STORED, "scheduler": document["scheduler"]}


def test_a_file_of_v1beta3(stage: Stage) -> None:
    host = make_node()
    document = {
        "apiVersion": "kubeadm.k8s.io/v1beta3",
        "kind": "ClusterConfiguration",
        "scheduler": {"extraArgs": {"v": "4"}},
    }
    host.files["/root/c.yaml"] = dump_yaml(document).encode()
    ended = done(host, "--config", "/root/c.yaml")
    assert "--v=4" in words_of(host, "kube-scheduler")
    assert stored(host)["scheduler"] == {"extraArgs": [{"name": "v", "value": "4"}]}
    assert "v1beta3 is deprecated" in ended.err


def test_as_json(stage: Stage) -> None:
    host = make_node()
    value = json.loads(done(host, *SCHEDULER, "-o", "json").out)
    assert [one["name"] for one in value["differences"]] == [
        "ConfigMap kube-system/kubeadm-config",
        f"{MANIFESTS}/kube-scheduler.yaml",
    ]
    assert value["remaining"] == []


# ---- refused


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), "usage"),
        (("apisrver", "--set", "v=4"), "usage"),
        (("apiserver",), "usage"),
        (("apiserver", "scheduler", "--set", "v=4"), "usage"),
        (("apiserver", "--set", "v"), "bad-setting"),
        (("apiserver", "--set", "v=4", "--unset", "v"), "bad-setting"),
        (("apiserver", "--set", "v=4", "--config", "/root/x.yaml"), "usage"),
        (("--config", "/root/x.yaml"), "config-not-readable"),
        (("apiserver", "--set", "service-cluster-ip-range=10.97.0.0/16"), "not-changeable"),
        (("etcd", "--set", "data-dir=/data"), "not-changeable"),
    ],
)
def test_what_is_refused(stage: Stage, words: tuple[str, ...], code: str) -> None:
    refused(make_node(), *words, "--yes", code=code)


_FLAG = "correct or remove it in the manifest"


@pytest.mark.parametrize(
    ("setting", "cause", "advice", "remedy"),
    [
        ("max-request-inflight=5", "unknown flag: --max-request-inflight", 'did you mean "--max-requests-inflight"?',
         'did you mean "--max-requests-inflight"? Then: kb reconfigure apiserver --set max-requests-inflight=5'),
        ("feature-gates=NodeSwop=true", "unrecognized feature gate: NodeSwop", 'did you mean "NodeSwap"?',
         'did you mean "NodeSwap"? Then: kb reconfigure apiserver --set feature-gates=NodeSwap=true'),
        ("no-such=1", "unknown flag: --no-such", _FLAG,
         "see which ones it has: kubectl -n kube-system exec kube-apiserver-cp1 -- kube-apiserver --help"),
        ("feature-gates=No=true", "unrecognized feature gate: No", "remove it from --feature-gates: this version does not have it",
         "see which ones it has: kubectl -n kube-system exec kube-apiserver-cp1 -- kube-apiserver --help"),
        ("v=x", 'invalid argument "x" for "-v, --v" flag: strconv.ParseInt: parsing "x": invalid syntax', _FLAG,
         "give it another value: kb reconfigure apiserver --set v=VALUE"),
        ("anonymous-auth=false", "the kubelet restarts it", probes.CLOSED_PROBES_REMEDY, probes.CLOSED_PROBES_REMEDY),
        ("audit-policy-file=/x", "/x is not there", "put it there, or correct the flag",
         "put it there, or correct the flag; then: kb reconfigure apiserver --set audit-policy-file=/x"),
    ],
)  # fmt: skip
def test_the_remedy_of_a_refused_pod_is_the_next_command(
    stage: Stage, setting: str, cause: str, advice: str, remedy: str
) -> None:
    stage.trials["kube-apiserver"] = [trial("flags", Trouble("kube-apiserver does not accept it", cause, advice))]
    ended = refused(make_node(), "apiserver", "--set", setting, "--yes", code="static-pod-refused")
    assert f"remedy: {remedy}\n" in ended.err, ended.err


def test_the_remedy_of_a_refused_file_names_it(stage: Stage) -> None:
    host = make_node()
    text = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nscheduler: {extraArgs: [{name: vv, value: '1'}]}\n"
    host.files["/root/c.yaml"] = text.encode()
    stage.trials["kube-scheduler"] = [
        trial("flags", Trouble("it does not accept its flags", "unknown flag: --vv", _FLAG))
    ]
    ended = refused(host, "--config", "/root/c.yaml", code="static-pod-refused")
    assert "remedy: correct or remove it in /root/c.yaml; then: kb reconfigure --config /root/c.yaml\n" in ended.err


def test_subnets_in_a_file_are_refused_by_name(stage: Stage) -> None:
    host = make_node()
    text = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nnetworking: {serviceSubnet: 10.97.0.0/16, podSubnet: 10.245.0.0/16}\n"
    host.files["/root/c.yaml"] = text.encode()
    ended = refused(host, "--config", "/root/c.yaml", code="not-changeable")
    assert "networking.serviceSubnet cannot be changed from 10.96.0.0/12 to 10.97.0.0/16" in ended.err
    assert "networking.podSubnet" in ended.err


def test_an_unknown_field_of_a_file_is_refused_with_its_line(stage: Stage) -> None:
    host = make_node()
    host.files["/root/c.yaml"] = b"apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nscheduller: {}\n"
    ended = refused(host, "--config", "/root/c.yaml", code="invalid-config")
    assert "/root/c.yaml:3" in ended.err


def test_a_worker_is_refused(stage: Stage) -> None:
    host = make_node()
    for name in COMPONENTS:
        del host.files[f"{MANIFESTS}/{name}.yaml"]
    host.sleep(30)
    host.events.clear()
    refused(host, *APISERVER, code="not-a-control-plane")


def test_what_does_not_work_comes_back_and_is_not_stored(stage: Stage) -> None:
    host = make_node(mood=lambda name, text: "exits" if "--v=4" in text else "")
    ended = kb(host, *APISERVER)
    assert "code:   static-pod-not-working" in ended.err
    assert words_of(host) == load_yaml(TEXTS["kube-apiserver"])["spec"]["containers"][0]["command"]
    assert stored(host) == STORED
    assert FORMER not in host.cluster.objects


# ---- a cluster that does not live with it


LOST = Part("node", "w1", Trouble("node w1 is not Ready", "its kubelet says nothing", "look at it"))


def refused_by_gate(host: Node) -> Ended:
    """It runs on this node, and nowhere else."""
    ended = kb(host, *APISERVER)
    assert "code:   cluster-not-well\n" in ended.err, ended.err
    assert words_of(host)[-1] == "--v=4" and stored(host) == STORED and FORMER not in host.cluster.objects
    return ended


def test_what_the_cluster_does_not_live_with_is_not_stored(stage: Stage) -> None:
    host = make_node()
    stage.parts = [LOST]
    ended = refused_by_gate(host)
    assert "this node runs with the change, and the cluster has not stored it" in ended.err
    assert "look at it; then: kb reconfigure apiserver --set v=4; or take the change back:" in ended.err
    refused_by_gate(host)  # the same again, now that nothing is to be swapped
    stage.parts = []
    done(host, *APISERVER)
    assert stored(host)["apiServer"] == {"extraArgs": [{"name": "v", "value": "4"}]}


def test_what_was_in_trouble_before_keeps_nothing_from_being_stored(stage: Stage) -> None:
    """It may be what the change is to put right."""
    host = make_node()
    stage.parts = stage.parts_before = [LOST]
    ended = kb(host, *APISERVER)
    assert "code:   cluster-not-well\n" in ended.err and "before the next control plane follows" in ended.err
    assert stored(host)["apiServer"] == {"extraArgs": [{"name": "v", "value": "4"}]}


def test_the_cluster_is_looked_at_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    def gate(*_: Any, **__: Any) -> list[Part]:
        looks.append(1)
        return []

    monkeypatch.setattr(health, "gate", gate)
    done(make_node(), *APISERVER)
    assert len(looks) == 1


# ---- the kubelet


def test_a_field_of_the_kubelet(stage: Any) -> None:
    host = make_node()
    ended = done(host, "kubelet", "--set", "maxPods=200")
    (started,) = stage.kubelets
    assert started["maxPods"] == 200
    assert load_yaml(host.cluster.objects[KUBELETS]["data"]["kubelet"])["maxPods"] == 200
    assert "+maxPods: 200" in ended.out
    assert not host.events
    assert not [path for path in host.files if "reconfigure/" in path]
    done(host, "kubelet", "--unset", "maxPods")
    assert len(stage.kubelets) == 2
    assert load_yaml(host.files[CONFIG_YAML].decode()) == load_yaml(golden_text(35, "kubelet/config.yaml"))
    assert "maxPods" not in host.cluster.objects[KUBELETS]["data"]["kubelet"]


def test_the_same_value_does_not_restart_the_kubelet(stage: Any) -> None:
    host = make_node()
    done(host, "kubelet", "--set", "maxPods=200")
    assert "nothing to do" in done(host, "kubelet", "--set", "maxPods=200").err
    assert len(stage.kubelets) == 1


def test_a_kubelet_that_does_not_work_comes_back_and_nothing_is_stored(stage: Any) -> None:
    host = make_node()
    stage.bad = "maxPods: 200"
    before, objects = host.files[CONFIG_YAML], json.dumps(host.cluster.objects)
    ended = kb(host, "kubelet", "--set", "maxPods=200")
    assert "code:   kubelet-not-changed\n" in ended.err
    assert host.files[CONFIG_YAML] == before
    assert json.dumps(host.cluster.objects) == objects
    assert "maxPods" not in stage.kubelets[1]


@pytest.mark.parametrize(("wanted", "is_refused"), [("2", True), ("3", False), ("120", False)])
def test_a_kubelet_that_would_have_no_place_for_its_pods_is_not_started(
    stage: Any, wanted: str, is_refused: bool
) -> None:
    """It would end those that it does not take."""
    host = make_node()
    for index, phase in enumerate(("Running", "Pending", "Running", "Succeeded", "Failed")):
        meta = {"name": f"p{index}", "namespace": "default"}
        pod = {"metadata": meta, "spec": {"nodeName": "cp1"}, "status": {"phase": phase}}
        host.cluster.objects[f"/api/v1/pods/p{index}"] = pod
    if not is_refused:
        done(host, "kubelet", "--set", f"maxPods={wanted}")
        return
    before = host.files[CONFIG_YAML]
    ended = kb(host, "kubelet", "--set", f"maxPods={wanted}")
    assert "code:   kubelet-not-changed\n" in ended.err and "node cp1 has 3 pods" in ended.err, ended.err
    assert not stage.kubelets and host.files[CONFIG_YAML] == before
    assert "maxPods" not in host.cluster.objects[KUBELETS]["data"]["kubelet"]


@pytest.mark.parametrize(("before", "is_refused"), [("False", True), ("True", False)])
def test_a_kubelet_that_evicts_pods_with_it_comes_back(
    stage: Any, monkeypatch: pytest.MonkeyPatch, before: str, is_refused: bool
) -> None:
    """A threshold of 95 % where 5 % were meant: it starts, and its node is Ready."""
    host, start = make_node(), upgrade_kubelet.start_and_watch
    conditions = [{"type": "Ready", "status": "True"}, {"type": "MemoryPressure", "status": before}]
    host.cluster.objects["/api/v1/nodes/cp1"] = {"metadata": {"name": "cp1"}, "status": {"conditions": conditions}}

    def evict(run: Any, **more: Any) -> float:
        conditions[1]["status"] = "True" if "95%" in run.host.read_text(run.paths.kubelet_config) else before
        return start(run, **more)

    monkeypatch.setattr(upgrade_kubelet, "start_and_watch", evict)
    config = host.files[CONFIG_YAML]
    ended = kb(host, "kubelet", "--set", "evictionHard.memory.available=95%")
    assert (ended.status == 0) is not is_refused, ended.err
    if is_refused:
        assert "code:   kubelet-not-changed\n" in ended.err and "under MemoryPressure" in ended.err
        assert host.files[CONFIG_YAML] == config and len(stage.kubelets) == 2


def test_a_change_of_the_kubelet_that_was_cut_off_goes_on_and_can_come_back(stage: Any) -> None:
    host = make_node()
    before = host.files[CONFIG_YAML]
    cut_off(host, "kubelet", "--set", "maxPods=200", at=f"write {CONFIG_YAML}")
    stage.bad = "maxPods: 200"
    ended = kb(host, "kubelet", "--set", "maxPods=200")
    assert "code:   kubelet-not-changed\n" in ended.err
    assert host.files[CONFIG_YAML] == before
    stage.bad = ""
    done(host, "kubelet", "--set", "maxPods=200")
    assert load_yaml(host.files[CONFIG_YAML].decode())["maxPods"] == 200


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("kubelet", "--set", "maxPod=200"), "bad-setting"),
        (("kubelet", "--set", "maxPods=many"), "invalid-config"),
        (("kubelet", "--set", "cgroupDriver=cgroupfs"), "not-changeable"),
        (("kube-proxy", "--set", "mode=nftables"), "addon-not-here"),
        (("coredns", "--set", "replicas=none"), "bad-setting"),
        (("coredns", "--unset", "replicas"), "bad-setting"),
        (("coredns", "--set", "corefile=/root/Corefile"), "file-unreadable"),
    ],
)
def test_what_is_refused_of_the_others(stage: Stage, words: tuple[str, ...], code: str) -> None:
    refused(make_node(), *words, code=code)


def test_a_node_takes_the_kubelets_stored_configuration(stage: Any) -> None:
    host = make_node()
    keep(host, KUBELETS, {"kubelet": golden_text(35, "kubelet/config.yaml") + "maxPods: 200\n"})
    done(host, "node")
    assert load_yaml(host.files[CONFIG_YAML].decode())["maxPods"] == 200
    assert not host.events
    assert "nothing to do" in done(host, "node").err


# ---- proxies

PROXY = "http://user:geheim99x@proxy.example.com:3128"
DROP_IN = "/etc/systemd/system/kubelet.service.d/20-kb-proxy.conf"


def add_node(host: Node, name: str, address: str) -> None:
    status = {"addresses": [{"type": "InternalIP", "address": address}]}
    host.cluster.objects[f"/api/v1/nodes/{name}"] = {"metadata": {"name": name}, "status": status}


def test_proxies_of_pods_and_services(stage: Any) -> None:
    host = make_node()
    host.accepts = frozenset(("systemctl daemon-reload", "systemctl restart containerd"))
    add_node(host, "cp1", "10.0.0.11")
    add_node(host, "w1", "10.0.0.21")
    ended = done(host, "proxy", "--set", f"HTTPS_PROXY={PROXY}", "--yes")
    pod = load_yaml(host.files[f"{MANIFESTS}/kube-scheduler.yaml"].decode())
    env = {one["name"]: one["value"] for one in pod["spec"]["containers"][0]["env"]}
    assert env["HTTPS_PROXY"] == PROXY
    assert {"10.96.0.0/12", "10.244.0.0/16", "10.0.0.11", "10.0.0.21", ".svc"} <= set(env["NO_PROXY"].split(","))
    for unit in ("kubelet", "containerd"):
        text = host.files[f"/etc/systemd/system/{unit}.service.d/20-kb-proxy.conf"].decode()
        assert f'Environment="HTTPS_PROXY={PROXY}"' in text
    assert host.modes[DROP_IN] == 0o600
    assert "run systemctl restart containerd" in host.changes
    assert len(stage.kubelets) == 1
    assert "on node w1: kb reconfigure proxy, with the same flags" in ended.out
    said = (
        ended.out
        + ended.err
        + "".join(
            data.decode()
            for path, data in host.files.items()
            if path.startswith("/var/lib/kb/") and "swap/" not in path
        )
    )
    assert "geheim99x" not in said
    assert stored(host) == STORED

    assert "nothing to do" in done(host, "proxy", "--set", f"HTTPS_PROXY={PROXY}", "--yes").err
    done(host, "proxy", "--unset", "HTTPS_PROXY", "--yes")
    assert load_yaml(host.files[f"{MANIFESTS}/kube-scheduler.yaml"].decode()) == load_yaml(TEXTS["kube-scheduler"])
    assert "HTTPS_PROXY" not in host.files[DROP_IN].decode()


def test_without_systemd_nothing_is_swapped(stage: Stage) -> None:
    host = make_node()
    host.dirs.remove("/run/systemd/system")
    refused(host, "proxy", "--set", f"HTTPS_PROXY={PROXY}", "--yes", code="no-systemd")


def test_what_is_no_proxy(stage: Stage) -> None:
    refused(make_node(), "proxy", "--set", "HTTPS_PROXY=proxy:3128", code="bad-setting")


# ---- cut off


def cut_off(host: Node, *words: str, at: str) -> None:
    def kill(change: str) -> None:
        if at in change:
            host.dies_after = len(host.changes)

    host.at_change = kill
    with pytest.raises(Gone):
        kb(host, *words)
    host.at_change = lambda change: None
    host.revive()


@pytest.mark.parametrize("at", [f"move {MANIFESTS}/.kube-apiserver.yaml.kb-former", "configmaps/kb-former-config"])
def test_the_same_command_continues_what_was_cut_off(stage: Stage, at: str) -> None:
    host = make_node()
    cut_off(host, *APISERVER, at=at)
    done(host, *APISERVER)
    assert words_of(host)[-1] == "--v=4"
    assert stored(host)["apiServer"] == {"extraArgs": [{"name": "v", "value": "4"}]}
    assert not host.violations


def test_a_swap_that_went_on_is_stored_once_the_cluster_is_well(stage: Stage) -> None:
    """What was in trouble before it, nobody knows any more."""
    host = make_node()
    cut_off(host, *APISERVER, at=f"move {MANIFESTS}/.kube-apiserver.yaml.kb-former")
    stage.parts = stage.parts_before = [LOST]
    refused_by_gate(host)
    stage.parts = []
    done(host, *APISERVER)
    assert stored(host)["apiServer"] == {"extraArgs": [{"name": "v", "value": "4"}]}


def test_another_command_has_to_wait(stage: Stage) -> None:
    host = make_node()
    cut_off(host, *APISERVER, at=f"move {MANIFESTS}/.kube-apiserver.yaml.kb-former")
    ended = kb(host, "apiserver", "--set", "v=5", "--yes")
    assert "code:   swap-cut-off\n" in ended.err
    ended = kb(host, *APISERVER, "--dry-run")
    assert "code:   swap-cut-off\n" in ended.err


# ---- another control plane


def test_another_control_plane_takes_what_is_stored(stage: Stage) -> None:
    """This one was changed before, and has what was stored then."""
    former = {**STORED, "apiServer": {"extraArgs": [{"name": "v", "value": "4"}]}}
    host = make_node(former)
    done(host, *APISERVER)
    assert words_of(host)[-1] == "--v=4"
    host.cluster.objects[FORMER] = {
        **host.cluster.objects[CONFIG],
        "metadata": {"name": "kb-former-config", "namespace": "kube-system"},
    }
    store(host, {**STORED, "apiServer": {"extraArgs": [{"name": "profiling", "value": "false"}]}})
    done(host, "node", "--yes")
    assert words_of(host)[-1] == "--profiling=false"
    assert not [word for word in words_of(host) if word.startswith("--v=")]


def test_who_is_left(stage: Stage) -> None:
    host = make_node()
    for name, text in (
        ("cp2", TEXTS["kube-scheduler"]),
        ("cp3", TEXTS["kube-scheduler"].replace("- kube-scheduler\n", "- kube-scheduler\n    - --v=4\n")),
    ):
        pod = load_yaml(text)
        pod["metadata"]["name"] = f"kube-scheduler-{name}"
        pod["spec"]["nodeName"] = name
        host.cluster.objects[f"/api/v1/namespaces/kube-system/pods/kube-scheduler-{name}"] = pod
    ended = done(host, *SCHEDULER)
    assert "on control plane cp2: kb reconfigure node" in ended.out
    assert "cp3" not in ended.out
    assert "on control plane cp2: kb reconfigure node" in done(host, *SCHEDULER).out


def test_a_dry_run_changes_nothing(stage: Stage) -> None:
    host = make_node()
    before, objects = dict(host.files), json.dumps(host.cluster.objects)
    ended = done(host, *SCHEDULER, "--dry-run")
    assert (host.files, json.dumps(host.cluster.objects), host.events) == (before, objects, [])
    assert ended.out.count("+    - --v=4") == 1
    assert "would write: /etc/kubernetes/manifests/kube-scheduler.yaml" in ended.out
    assert "ConfigMap kube-system/kubeadm-config (now)" in ended.out
