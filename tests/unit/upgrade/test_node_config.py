from __future__ import annotations

import json
from typing import Any

import pytest

from kubeup.cluster.api import Api, Identity
from kubeup.config.types import Arg, Join, LoadBalancer, PodNetwork
from kubeup.errors import ClusterError
from kubeup.machine.http import Tls
from kubeup.node.kubelet import component_config_hash
from kubeup.paths import Paths
from kubeup.upgrade.node_config import Stored, make_node_config, read_stored
from kubeup.yaml_files import dump_yaml
from tests.fake_cluster import FakeCluster
from tests.fake_host import FakeHost
from tests.unit.golden import golden_config, golden_text

PATHS = Paths()
STORED = golden_text(35, "cluster-configuration.yaml")


def stored(**changes: Any) -> Stored:
    fields = {"kubelet": {}, "kube_proxy": {}, "pod_network": PodNetwork("none"), "load_balancer": LoadBalancer()}
    return Stored(STORED, **{**fields, **changes})


class Asked(FakeHost):
    """A machine whose cluster answers."""

    cluster = FakeCluster()

    def http_get(self, url: str, **_: Any) -> Any:
        return self.cluster.answer("GET", url, b"", {})


def read(*, is_control_plane: bool = True, **config_maps: dict[str, Any]) -> Stored:
    host = Asked()
    host.cluster = FakeCluster()
    host.cluster.is_up = True
    for name, fields in config_maps.items():
        shown = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}, **fields}
        host.cluster.objects[f"/api/v1/namespaces/kube-system/configmaps/{name.replace('_', '-')}"] = shown
    api = Api(host, Identity("https://10.0.0.11:6443", Tls(None)), retry_s=0)
    return read_stored(api, is_control_plane=is_control_plane)


def test_the_node_is_what_the_cluster_stores_with_its_own_name_and_address() -> None:
    own = golden_config(35)
    config = make_node_config(FakeHost(), PATHS, own=own, stored=stored(kubelet={"maxPods": 50}), version="v1.36.3")
    assert config.cluster.kubernetes_version == "v1.36.3"
    assert config.cluster.networking.pod_subnet == "10.244.0.0/16"
    assert (config.node.name, config.local_api_endpoint.advertise_address) == ("cp1", "10.77.0.11")
    assert config.kubelet == {"maxPods": 50}
    assert config.is_control_plane
    assert config.patches_directory == ""


def test_without_a_version_it_is_the_stored_one() -> None:
    config = make_node_config(FakeHost(), PATHS, own=golden_config(36), stored=stored())
    assert config.cluster.kubernetes_version == "v1.35.6"


def test_a_worker_is_none_of_the_control_planes() -> None:
    join = Join("https://api.local:6443", "CA")
    config = make_node_config(FakeHost(), PATHS, own=golden_config(35), stored=stored(), join=join)
    assert not config.is_control_plane
    assert config.joined.server == "https://api.local:6443"


def test_flags_that_somebody_gave_the_kubelet() -> None:
    text = (
        'KUBELET_KUBEADM_ARGS="--pod-infra-container-image=registry.k8s.io/pause:3.10.1 --node-ip=10.77.0.11 --v=4"\n'
    )
    host = FakeHost(files={str(PATHS.kubelet_flags_env): text.encode()})
    config = make_node_config(host, PATHS, own=golden_config(35), stored=stored())
    assert config.node.kubelet_extra_args == (Arg("node-ip", "10.77.0.11"), Arg("v", "4"))


def test_the_patches_with_which_kb_made_a_node() -> None:
    kept = {
        "schema": 1,
        "kb": "0.1.0",
        "machine_id": "",
        "node": "cp1",
        "cluster": "kubernetes",
        "cri_socket": "",
        "adopted": [],
        "phases": {},
    }
    host = FakeHost(
        files={str(PATHS.state): json.dumps({**kept, "patches": "/root/patches"}).encode()}, dirs={"/root/patches"}
    )
    assert make_node_config(host, PATHS, own=golden_config(35), stored=stored()).patches_directory == "/root/patches"
    host.dirs.clear()
    gone = make_node_config(host, PATHS, own=golden_config(35), stored=stored())
    assert gone.patches_directory == "" and "/root/patches, which is gone" in gone.warnings[-1]


def test_the_patches_of_an_adopted_node() -> None:
    text = "kind: InitConfiguration\npatches: {directory: /etc/kubernetes/patches}\n---\nkind: ClusterConfiguration\n"
    host = FakeHost(files={str(PATHS.adopted("init")): text.encode()}, dirs={"/etc/kubernetes/patches"})
    assert (
        make_node_config(host, PATHS, own=golden_config(35), stored=stored()).patches_directory
        == "/etc/kubernetes/patches"
    )
    config = make_node_config(host, PATHS, own=golden_config(35), stored=stored(), patches="/root/patches")
    assert config.patches_directory == "/root/patches"


def test_the_proxies_of_the_running_api_server_stay() -> None:
    pod = {
        "spec": {
            "containers": [
                {"env": [{"name": "HTTPS_PROXY", "value": "http://p:3128"}, {"name": "GOGC", "value": "50"}]}
            ]
        }
    }
    host = FakeHost(files={str(PATHS.manifest("kube-apiserver")): dump_yaml(pod).encode()})
    config = make_node_config(host, PATHS, own=golden_config(35), stored=stored())
    assert config.proxy_env == {"HTTPS_PROXY": "http://p:3128"}


# ---- what the cluster stores


def test_a_generated_document_is_generated_again_and_a_users_is_kept() -> None:
    data = {"kubelet": "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nmaxPods: 50\n"}
    own = {"data": data, "metadata": {"annotations": {"kubeadm.kubernetes.io/component-config.hash": "sha256:00"}}}
    made = {
        "data": data,
        "metadata": {
            "annotations": {"kubeadm.kubernetes.io/component-config.hash": component_config_hash(data)},
        },
    }
    config = {"data": {"ClusterConfiguration": STORED}}
    assert read(kubeadm_config=config, kubelet_config=own).kubelet == {"maxPods": 50}
    assert read(kubeadm_config=config, kubelet_config=made).kubelet == {}
    # a worker generates none: it takes what is stored
    assert read(kubeadm_config=config, kubelet_config=made, is_control_plane=False).kubelet == {"maxPods": 50}


def test_a_cluster_of_neither_tool() -> None:
    with pytest.raises(ClusterError) as caught:
        read()
    assert caught.value.code == "not-kubeadms-cluster"
