"""What of a backup a machine gets, and how what was written for another machine becomes right for this one.

Three things in a control plane's files name the machine: certificates, kubeconfigs and static pods. The first two are made anew by the
restored authorities; the pods are those of the backup, with this machine's name and addresses in them, so that what was edited in them
by hand (an encryption configuration, an audit policy) is there again. Decides only; changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kubeup import releases
from kubeup.addresses import join_host_port, replace_address
from kubeup.backup import node_content
from kubeup.backup.archive import FILES, OBJECTS, SNAPSHOT, About, Backup, Entry, file_name
from kubeup.cluster import amid_rotation, objects
from kubeup.errors import HostError
from kubeup.frozen_values import frozen
from kubeup.yaml_files import (
    YAMLError,
    commands_of_pod,
    containers_of_pod,
    dump_yaml,
    flags_of,
    load_mapping,
    load_yaml,
)

COMPONENTS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
BUMP = 1_000_000_000
"""By how much the revision is raised."""
_AUTHORITIES = ("ca", "front-proxy-ca", "etcd/ca")
_OF_A_MACHINE = (
    "/etc/kubernetes/manifests",
    "/etc/containerd",
    "/etc/crictl.yaml",
    "/etc/cni",
    "/etc/default/kubelet",
    "/etc/modules-load.d",
    "/etc/sysconfig/kubelet",
    "/etc/sysctl.d",
    "/etc/systemd",
    "/var/lib/kb",
    "/var/lib/kubelet",
)
"""What the steps of init make for each machine."""


@frozen
class Place:
    """A machine as its cluster knows it: the name of its node, and the address of its API server and its etcd."""

    name: str
    address: str


def former_place(about: About) -> Place:
    return Place(about.node, about.address)


# ---- what is refused


def check_backup(backup: Backup, *, what: str) -> None:
    """Raises HostError: backup-without-data, backup-external-etcd, backup-without-manifests, release-unsupported."""
    about = backup.about
    if not backup.has(SNAPSHOT):
        raise HostError(
            f"{what} holds no data of etcd",
            cause="; ".join(about.missing) or "its etcd was external, and gave no snapshot",
            remedy="restore the external etcd where it runs; its control planes only have to reach it again",
            code="backup-without-data",
        )
    if about.etcd_kind == "external":
        urls = ", ".join(url for member in about.members for url in member.client_urls) or "its operator's machines"
        raise HostError(
            f"{what} is of a cluster with an external etcd",
            cause=f"its data belong to the etcd at {urls}, which kb has not made and does not change",
            remedy=f"restore them as its operator: tar -xf {what} {SNAPSHOT}; etcdutl snapshot restore {SNAPSHOT} --data-dir NEW "
            f"--bump-revision {BUMP} --mark-compacted; the control planes only have to reach that etcd again",
            code="backup-external-etcd",
        )
    lacking = [name for name in COMPONENTS if not backup.has(_manifest_name(name))]
    if lacking:
        raise HostError(
            f"{what} lacks the static pods of a control plane",
            cause=f"{', '.join(lacking)} did not run on {about.node} as static pods when it was made",
            remedy="take a backup of a control plane that runs all of them",
            code="backup-without-manifests",
        )
    found = releases.parse_version(about.kubernetes)
    if found is None or found.minor not in releases.RELEASES:
        raise HostError(
            f"{what} is of Kubernetes {about.kubernetes or 'of an unknown version'}",
            cause=f"this kb knows 1.{min(releases.RELEASES)} to 1.{max(releases.RELEASES)}",
            remedy="restore it with the kb that made it",
            code="release-unsupported",
        )


def check_version(about: About, wanted: str) -> None:
    """Raises HostError (restore-older-version, restore-newer-version) if another minor version is asked for than the backup's: an older
    API server does not know the objects of a newer one; a newer one comes after the restore."""
    asked, has = releases.parse_version(wanted), releases.parse_version(about.kubernetes)
    if asked is None or has is None or asked.minor == has.minor:
        return
    is_older = asked.minor < has.minor
    raise HostError(
        f"the backup is of Kubernetes {about.kubernetes}, and cannot be restored as {wanted}",
        cause="an older API server cannot read what a newer one has stored"
        if is_older
        else "a restore brings back what was there; the new version comes after it",
        remedy=f"leave --kubernetes-version out, or give one of 1.{has.minor}",
        code="restore-older-version" if is_older else "restore-newer-version",
    )


def has_external_ca(backup: Backup) -> bool:
    """Whether one of the authorities signs elsewhere, so that kb can make no certificates for another machine."""
    pki = Path(backup.about.pki)
    return any(
        backup.has(file_name(pki / f"{name}.crt")) and not backup.has(file_name(pki / f"{name}.key"))
        for name in _AUTHORITIES
    )


# ---- the configuration


def render_config(backup: Backup, *, place: Place) -> str:
    """The documents of a configuration that makes this machine a control plane of the cluster: what the cluster had stored, and this
    machine's place in it."""
    about = backup.about
    init: dict[str, Any] = {"apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "InitConfiguration"}
    init["nodeRegistration"] = {"name": place.name}
    port = int(_flags(backup, "kube-apiserver").get("secure-port") or 6443)
    init["localAPIEndpoint"] = {"advertiseAddress": place.address, "bindPort": port}
    documents = [init, _read_cluster(backup, place=place)]
    for name, key in (("kubelet-config", "kubelet"), ("kube-proxy", "config.conf")):
        text = _read_key(backup, name, key=key)
        if text:
            documents.append(load_mapping(text, name))
    stored = _read_object(backup, "kb-config")
    network, balancer = objects.parse_kb_config(stored), objects.parse_load_balancer(stored)
    kb: dict[str, Any] = {"apiVersion": "kb/v1alpha1", "kind": "KbConfiguration"}
    kb["podNetwork"] = {"plugin": network.plugin if network.plugin == "bridge" else "none"}
    if network.plugin == "bridge":
        kb["podNetwork"].update(backend=network.backend, **({"mtu": network.mtu} if network.mtu else {}))
    if balancer.is_local:
        kb["loadBalancer"] = {"mode": "local", "image": balancer.image, "healthPort": balancer.health_port}
    documents.append(kb)
    return "---\n".join(dump_yaml(document) for document in documents if document) + f"# {about.made}\n"


def _read_cluster(backup: Backup, *, place: Place) -> dict[str, Any]:
    """The stored ClusterConfiguration; without one, what the static pods say."""
    about = backup.about
    text = _read_key(backup, "kubeadm-config", key="ClusterConfiguration")
    found = load_mapping(text, "ClusterConfiguration") if text else {}
    if not found:
        server, manager = _flags(backup, "kube-apiserver"), _flags(backup, "kube-controller-manager")
        networking = {
            "serviceSubnet": server.get("service-cluster-ip-range", ""),
            "podSubnet": manager.get("cluster-cidr", ""),
        }
        found = {"apiVersion": "kubeadm.k8s.io/v1beta4", "kind": "ClusterConfiguration"}
        found["networking"] = {name: value for name, value in networking.items() if value}
        found["controlPlaneEndpoint"] = about.endpoint
        found["etcd"] = {"local": {"dataDir": about.etcd_data}}
    found["kubernetesVersion"], found["certificatesDir"] = about.kubernetes, about.pki
    endpoint = str(found.get("controlPlaneEndpoint") or "")
    if about.address and place.address != about.address:
        found["controlPlaneEndpoint"] = replace_address(endpoint, about.address, new=place.address)
    return found


def _read_object(backup: Backup, name: str) -> dict[str, Any]:
    member = f"{OBJECTS}{name}.yaml"
    try:
        found = load_yaml(backup.read(member).decode()) if backup.has(member) else None
    except (YAMLError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _read_key(backup: Backup, name: str, *, key: str) -> str:
    data = _read_object(backup, name).get("data")
    return str(data.get(key) or "") if isinstance(data, dict) else ""


# ---- the static pods


def _manifest_name(component: str) -> str:
    return file_name(Path(f"/etc/kubernetes/manifests/{component}.yaml"))


def read_manifest(backup: Backup, component: str) -> dict[str, Any]:
    return load_mapping(backup.read(_manifest_name(component)).decode(), f"the backup's {component}.yaml")


def _flags(backup: Backup, component: str) -> dict[str, str]:
    command, *_ = [*commands_of_pod(read_manifest(backup, component)), []]
    return flags_of(command)


def list_other_pods(backup: Backup) -> tuple[Entry, ...]:
    """The static pods beside those of a control plane: a KMS plugin, whoever holds a virtual address. kb's load balancer is made anew."""
    own = {_manifest_name(name) for name in (*COMPONENTS, "kb-load-balancer")}
    folder = Path(_manifest_name("any")).parent
    found = [one for one in backup.entries if Path(one.name).parent == folder and one.name not in own]
    return tuple(one for one in found if not Path(one.name).name.startswith("."))  # the kubelet passes over these


def find_kms(backup: Backup) -> list[str]:
    """The sockets of the KMS plugins without which the API server does not become ready."""

    def read(path: Path) -> str:
        name = file_name(path)
        return backup.read(name).decode(errors="replace") if backup.has(name) else ""

    return node_content.find_kms(read_manifest(backup, "kube-apiserver"), read)


def etcd_image(backup: Backup) -> str:
    return str(containers_of_pod(read_manifest(backup, "etcd"))[0].get("image") or "")


def move_manifest(backup: Backup, component: str, *, place: Place) -> str:
    """A static pod of the backup for this machine: its addresses, and etcd's name and members, are this machine's."""
    old = former_place(backup.about)
    pod = _replace_in(read_manifest(backup, component), old=old, new=place)
    if component == "etcd":
        container = containers_of_pod(pod)[0]
        container["command"] = list(_as_only_member(container.get("command") or [], place))
    return dump_yaml(pod)


def _as_only_member(command: list[str], place: Place) -> Iterator[str]:
    peer = f"{place.name}=https://{join_host_port(place.address, 2380)}"
    for word in command:
        name = str(word).partition("=")[0]
        if name == "--name":
            yield f"--name={place.name}"
        elif name == "--initial-cluster":
            yield f"--initial-cluster={peer}"
        elif name not in ("--initial-cluster-state", "--force-new-cluster"):
            yield word
    # with data that are there etcd does not read it; without, it would begin a new cluster without any objects
    yield "--initial-cluster-state=existing"


def _replace_in(value: Any, *, old: Place, new: Place) -> Any:
    if isinstance(value, Mapping):
        return {key: _replace_in(item, old=old, new=new) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace_in(item, old=old, new=new) for item in value]
    return replace_address(value, old.address, new=new.address) if isinstance(value, str) else value


# ---- the files


def select_files(backup: Backup, *, is_same: bool) -> tuple[Entry, ...]:
    """The files that are laid down: the authorities, the service accounts' key, and what the static pods read beside. is_same: this is
    the machine of the backup, by its name and its address; then its certificates and its other static pods too, and with an external CA
    its kubeconfigs."""
    keeps_all = is_same and has_external_ca(backup)
    others = list_other_pods(backup) if is_same else ()
    return tuple(
        entry
        for entry in backup.entries
        if entry.name.startswith(FILES)
        and (
            entry in others
            or _is_wanted(entry.path, backup.about, is_same=is_same)
            or (keeps_all and _is_identity(entry.path))
        )
    )


def _is_wanted(path: Path, about: About, *, is_same: bool) -> bool:
    pki = Path(about.pki)
    if pki in path.parents:
        name = str(path.relative_to(pki).with_suffix(""))
        is_shared = name in (*_AUTHORITIES, "sa", amid_rotation.SIGNING.partition(".")[0])
        is_pair = path.suffix in (".crt", ".key", ".pub", ".csr")
        return is_shared or is_same or not is_pair
    is_kubeconfig = str(path.parent) == "/etc/kubernetes" and path.suffix == ".conf"
    return not is_kubeconfig and not any(place in _OF_A_MACHINE for place in map(str, (path, *path.parents)))


def _is_identity(path: Path) -> bool:
    is_kubeconfig = str(path.parent) == "/etc/kubernetes" and path.suffix == ".conf"
    return is_kubeconfig or Path("/var/lib/kubelet/pki") in path.parents
