"""The paths on a node: kubeadm's, and kb's own below /var/lib/kb and /usr/local/lib/kb.

Paths are as the node sees them; Host prepends --root. Source: cmd/kubeadm/app/constants/constants.go
"""

from __future__ import annotations

from pathlib import Path

from kubeup.frozen_values import frozen

RESOLVED_CONF = "/run/systemd/resolve/resolv.conf"
"""The upstream servers behind systemd-resolved: its stub on 127.0.0.53 is useless in a pod."""
WORKPLACES = (
    Path("/etc/apt/keyrings"),
    Path("/etc/apt/sources.list.d"),
    Path("/etc/cni"),
    Path("/etc/containerd"),
    Path("/etc/crictl.yaml"),
    Path("/etc/hosts"),
    Path("/etc/kubernetes"),
    Path("/etc/modules-load.d"),
    Path("/etc/runlevels"),
    Path("/etc/sysctl.d"),
    Path("/etc/systemd/system"),
    Path("/etc/yum.repos.d"),
    Path("/opt/cni"),
    Path("/opt/containerd"),
    Path("/opt/kb"),
    Path("/run/kb"),
    Path("/usr/local/bin"),
    Path("/usr/local/lib/kb"),
    Path("/usr/local/sbin"),
    Path("/var/lib/etcd"),
    Path("/var/lib/kb"),
    Path("/var/lib/kubelet"),
)
"""Where kb creates and changes files. Folders that a configuration moves elsewhere are recorded in the state
(State.folders)."""


@frozen
class Paths:
    """Every path that kb reads or writes. The folders that kubeadm lets users move are fields."""

    pki: Path = Path("/etc/kubernetes/pki")
    """certificatesDir"""
    kubeconfigs: Path = Path("/etc/kubernetes")
    """--kubeconfig-dir of the phase commands"""
    etcd_data: Path = Path("/var/lib/etcd")
    """etcd.local.dataDir"""

    kubernetes = Path("/etc/kubernetes")
    manifests = Path("/etc/kubernetes/manifests")
    kubelet = Path("/var/lib/kubelet")
    kubelet_config = Path("/var/lib/kubelet/config.yaml")
    kubelet_instance_config = Path("/var/lib/kubelet/instance-config.yaml")
    kubelet_flags_env = Path("/var/lib/kubelet/kubeadm-flags.env")
    kubelet_client_pem = Path("/var/lib/kubelet/pki/kubelet-client-current.pem")
    cni_conf = Path("/etc/cni/net.d")
    cni_bin = Path("/opt/cni/bin")
    systemd = Path("/etc/systemd/system")
    """Units written by kb: this is an admin's folder, so a package's unit of the same name is never overwritten."""

    state_dir = Path("/var/lib/kb")
    state = Path("/var/lib/kb/state.json")
    lock = Path("/var/lib/kb/lock")
    backups = Path("/var/lib/kb/backups")
    records = Path("/var/lib/kb/records")
    """The state of each item of this node after it was last applied."""
    upgrade: Path = Path("/var/lib/kb/upgrade")
    upgrade_runtime = Path("/var/lib/kb/upgrade-runtime")
    """What is kept of a node as it was before an upgrade of Kubernetes, and of its runtime."""
    former_certs = Path("/var/lib/kb/former-certs")
    """What renewals of certificates replaced."""
    recovery = Path("/var/lib/kb/recovery.json")
    """While expired certificates are replaced: which, so that what was cut off goes on."""
    installed_kb = Path("/usr/local/lib/kb/kb.pyz")
    """The copy of kb that systemd units run."""
    spare_installed_kb = Path("/opt/kb/kb.pyz")
    """The same on a machine with a read-only /usr."""

    def kubeconfig(self, name: str) -> Path:
        """The kubeconfig file `name` ("admin.conf")."""
        return self.kubeconfigs / name

    def manifest(self, component: str) -> Path:
        """The static pod manifest of `component` ("kube-apiserver")."""
        return self.manifests / f"{component}.yaml"

    def adopted(self, workflow: str) -> Path:
        """The documents of a node that kb adopted, which kb init or kb join uses there."""
        return self.state_dir / f"adopted-{workflow}.yaml"

    @property
    def admin_conf(self) -> Path:
        return self.kubeconfigs / "admin.conf"
