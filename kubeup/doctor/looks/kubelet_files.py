"""The check of the files from which a kubelet starts: one that is lost, empty or another cluster's shows at its next start only."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

from kubeup.diagnosis import kubelet_trouble, signs
from kubeup.diagnosis.checks import facts
from kubeup.diagnosis.checks.facts import ERROR, Finding, Findings
from kubeup.doctor.node_files import Patient, parse_first, read_called_name, read_cert_node_name, read_kubelet_flags
from kubeup.errors import KbError
from kubeup.machine import services
from kubeup.machine.host import Host
from kubeup.node import certificates, kubeconfig

NAME, NO_STATIC_PODS = "kubelet-files", "kubelet-files/static-pods"


def look_at_kubelet_files(patient: Patient) -> Findings:
    """The kubelet's configuration, its identity, the authority of its clients, and the unit that names the two."""
    if not patient.is_member:
        return
    lost = _find_lost(patient)
    if lost is not None:
        yield lost
        return
    yield from _judge_called(patient)
    yield from _judge_identity(patient)
    yield from _judge_client_authority(patient)
    yield from _judge_unit(patient)
    yield from _judge_static_pods(patient)
    yield from _judge_mounts(patient.host)


def _judge_called(patient: Patient) -> Findings:
    """A machine that was renamed: its kubelet has the certificate of the former name, and makes its static pods a second time, under the new one."""
    host, paths = patient.host, patient.paths
    name = read_cert_node_name(host, paths)
    called = read_called_name(host, read_kubelet_flags(host, paths))
    if name and called != name:
        yield Finding(
            NAME,
            ERROR,
            f"this machine is called {called} now, and its node is {name}: the kubelet cannot register, since its certificate "
            f"is system:node:{name}'s",
            f"hostnamectl set-hostname {name} (or add --hostname-override={name} to KUBELET_KUBEADM_ARGS in "
            f"{paths.kubelet_flags_env}), then: {signs.say_restart(host, 'kubelet')}",
        )


def _judge_static_pods(patient: Patient) -> Findings:
    """Whether the kubelet looks where this node's manifests are: the flag of the same name counts no more than its configuration."""
    host, folder = patient.host, patient.paths.manifests
    told = str(
        patient.config.kubelet.get("staticPodPath")
        or read_kubelet_flags(host, patient.paths).get("pod-manifest-path")
        or ""
    )
    names = [name for name in host.list_dir(folder) if name.endswith(".yaml")] if host.exists(folder) else []
    if not names or (told and host.real_path(Path(told)) == host.real_path(folder)):
        return
    where = f"looks for static pods in {told}" if told else "looks for no static pods"
    text = f"the kubelet {where} (staticPodPath in {patient.paths.kubelet_config}), so it does not run {', '.join(sorted(names))} of {folder}"
    yield Finding(
        NO_STATIC_PODS,
        ERROR,
        text,
        f"put it back (staticPodPath: {folder}); then: {signs.say_restart(host, 'kubelet')}",
    )


def _say_again(patient: Patient) -> str:
    return f"kb {'init' if patient.is_control_plane else 'join'} phase kubelet-start"


def _find_lost(patient: Patient) -> Optional[Finding]:
    """The kubelet's configuration or its kubeconfig, if one is not there. Before a node has its own kubeconfig, it has that of its bootstrap."""
    host, paths = patient.host, patient.paths
    config, own = paths.kubelet_config, paths.kubeconfig("kubelet.conf")
    if not host.exists(config):
        text = f"{config} is not there: the kubelet does not start without it"
        stored = f"kubectl -n kube-system get configmap kubelet-config -o jsonpath={{.data.kubelet}} >{config}"
        again = f"put it back, from a backup or as the cluster has it ({stored}); then: {signs.say_restart(host, 'kubelet')}"
        return Finding(NAME, ERROR, text, again)
    if not host.exists(own) and not host.exists(paths.kubeconfig("bootstrap-kubelet.conf")):
        text = f"{own} is not there: the kubelet has no identity, and does not start without one"
        return Finding(NAME, ERROR, text, f"put it back, or: {signs.say_new_identity(host)}")
    return None


def _judge_identity(patient: Patient) -> Findings:
    """The certificate that the kubeconfig names. A power failure while it was renewed leaves an empty file."""
    host, path = patient.host, patient.paths.kubeconfig("kubelet.conf")
    if not host.exists(path):
        return
    try:
        named = kubeconfig.parse_kubeconfig(host.read_text(path), source=str(path))
    except KbError as error:
        yield Finding(NAME, ERROR, str(error), f"put {path} back, or: {signs.say_new_identity(host)}")
        return
    if not named.client_cert_file:
        return
    pem = Path(named.client_cert_file)
    if pem.is_absolute() and not any(parse_first(pem, facts.read_or_empty(host, str(pem)))):
        lack = "holds no certificate" if host.exists(pem) else "is not there"
        text = f"{pem}, which {path} names, {lack}: the kubelet has no identity"
        dated = [name for name in host.list_dir(pem.parent) if _is_former(pem, name)]
        former = [name for name in dated if any(parse_first(pem, facts.read_or_empty(host, pem.parent / name)))]
        remedy = f"put a former one back (ln -sf {pem.parent}/{max(former)} {pem}), or: " if former else ""
        yield Finding(NAME, ERROR, text, f"{remedy}{signs.say_new_identity(host)}")


def _is_former(pem: Path, name: str) -> bool:
    """Whether it is one of the dated files to which the current name points. Source: client-go, util/certificate/certificate_store.go"""
    stem = pem.stem.removesuffix("current")
    return name.startswith(stem) and name.endswith(pem.suffix) and name != pem.name


def _judge_client_authority(patient: Patient) -> Findings:
    """Whether the kubelet asks its clients, the API servers, for certificates of the authority that has signed its own."""
    host = patient.host
    path = (patient.config.kubelet.get("authentication") or {}).get("x509") or {}
    trusted = Path(str(path.get("clientCAFile") or patient.paths.pki / "ca.crt"))
    (own, _), authorities = _read_own(patient), _read_certs(host, trusted)
    if own is None or not authorities or any(certificates.is_issued_by(own, one) for one in authorities):
        return
    text = f"{trusted} is not the authority that signed this node's own certificate: the kubelet turns the API servers away (kubectl logs and exec)"
    remedy = f"put the cluster's back (on a control plane it is /etc/kubernetes/pki/ca.crt); then: {signs.say_restart(host, 'kubelet')}"
    yield Finding(NAME, ERROR, text, remedy)


def trusts_another_cluster(patient: Patient) -> bool:
    """Whether the authority in the kubeconfig did not sign the kubelet's own certificate. In a cluster whose servers have an authority of their
    own that is no fault, so it explains a handshake that fails, and proves nothing by itself."""
    own, ca_pem = _read_own(patient)
    try:
        authorities = certificates.parse_certs(ca_pem)
    except ValueError:
        return False
    return own is not None and not any(certificates.is_issued_by(own, one) for one in authorities)


def _read_own(patient: Patient) -> tuple[Optional[Any], str]:
    """The kubelet's certificate, None if it cannot be read, and the authorities in its kubeconfig (PEM)."""
    path = patient.paths.kubeconfig("kubelet.conf")
    try:
        found = kubeconfig.read_kubeconfig(patient.host.read_text(path), host=patient.host, path=path)
    except KbError:
        return None, ""
    return next((cert for _, cert in parse_first(path, found.client_cert_pem)), None), found.ca_pem


def _read_certs(host: Any, path: Path) -> tuple[Any, ...]:
    try:
        return certificates.parse_certs(facts.read_or_empty(host, str(path)))
    except ValueError:
        return ()


_OWN_MOUNTS = "PrivateTmp,ProtectSystem,ProtectHome,PrivateMounts,ReadOnlyPaths,ReadOnlyDirectories,InaccessiblePaths,BindPaths,MountFlags,PrivateDevices,ProtectKernelTunables"
"""Settings of systemd that give a service mounts of its own. Source: systemd.exec(5)"""
_UNSET = ("", "no", "shared")


def _judge_mounts(host: Host) -> Findings:
    """Whether the kubelet mounts volumes where the runtime sees them: in a mount namespace of its own they stay there, and containers find empty folders."""
    unit = kubelet_trouble.read_kubelet_unit(host)
    own, others = (
        host.read_link(Path(f"/proc/{pid}/ns/mnt")) for pid in (unit.pid if unit and unit.pid else "self", 1)
    )
    if unit is None or not unit.pid or not own or not others or own == others:
        return
    told = dict(
        line.partition("=")[::2]
        for line in host.query(["systemctl", "show", "kubelet", "-p", _OWN_MOUNTS]).stdout.splitlines()
    )
    named = ", ".join(f"{name}={value}" for name, value in told.items() if value not in _UNSET)
    text = "the kubelet has mounts of its own, so volumes of pods do not reach their containers" + f" ({named})" * bool(
        named
    )
    remedy = (
        f"take that out of its unit's drop-ins ({signs.say_unit_change(host)}); {signs.say_restart(host, 'kubelet')}"
    )
    yield Finding(NAME, ERROR, text, remedy)


def _judge_unit(patient: Patient) -> Findings:
    """Whether the unit gives the kubelet its files: without --kubeconfig it runs alone, and knows no cluster. A package's upgrade, or
    somebody who tidied up, takes the drop-in away that names them."""
    host = patient.host
    if services.spoken_of(host) is not services.SYSTEMD:
        return
    unit = host.query(["systemctl", "cat", "kubelet.service"], timeout_s=10)
    if not unit.ok or "ExecStart=" not in unit.stdout or "kubeconfig" in unit.stdout:
        return
    text = "nothing gives the kubelet --kubeconfig and --config: the drop-in of kubelet.service that names them (10-kubeadm.conf) is gone"
    remedy = f"have it written again: {_say_again(patient)}; or install the kubelet's package again"
    yield Finding(NAME, ERROR, text, remedy)
