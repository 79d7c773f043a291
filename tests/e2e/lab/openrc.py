"""What a node of OpenRC has in the place of systemd's units: the scripts of its services, and which of them start at boot.

The scripts of the runtime and the kubelet are those that a distribution with OpenRC brings with its packages (Alpine's, shortened).
"""

from __future__ import annotations

from pathlib import Path

_CGROUPS = """\
#!/sbin/openrc-run
# Test node: OpenRC mounts another /sys over nspawn's, which mounts cgroup v1 read-only.
start() {
    [ "$(grep -c ' /sys sysfs ' /proc/mounts)" -lt 2 ] || umount /sys
    for c in /sys/fs/cgroup /sys/fs/cgroup/*; do ! mountpoint -q $c || mount -o remount,bind,rw $c; done
}
"""
_SSHD = """\
#!/sbin/openrc-run
command=/usr/sbin/sshd
command_args=-D
command_background=true
pidfile=/run/sshd.pid
start_pre() {
    mkdir -p /run/sshd
}
"""
_CONTAINERD = """\
#!/sbin/openrc-run
supervisor=supervise-daemon
command=/usr/bin/containerd
pidfile=/run/containerd.pid
output_log=/var/log/containerd.log
error_log=/var/log/containerd.log
depend() {
    after e2e-cgroups
}
"""
_KUBELET = """\
#!/sbin/openrc-run
description="Kubelet, a Kubernetes node agent"
supervisor=supervise-daemon
command=/usr/bin/kubelet
pidfile=/run/kubelet.pid
output_log=/var/log/kubelet/kubelet.log
error_log=/var/log/kubelet/kubelet.log
if [ -e /var/lib/kubelet/kubeadm-flags.env ]; then
    . /var/lib/kubelet/kubeadm-flags.env
fi
command_args="$command_args $KUBELET_KUBEADM_ARGS"
depend() {
    after containerd
}
start_pre() {
    mkdir -p /var/log/kubelet
}
"""
_KUBELET_CONF = (
    'command_args="--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf '
    '--config=/var/lib/kubelet/config.yaml"\n'
)
FILES = {
    "etc/init.d/e2e-cgroups": _CGROUPS,
    "etc/init.d/e2e-sshd": _SSHD,
    "etc/init.d/containerd": _CONTAINERD,
    "etc/init.d/kubelet": _KUBELET,
    "etc/conf.d/kubelet": _KUBELET_CONF,
}
AT_BOOT = ("e2e-cgroups", "e2e-sshd", "containerd")


def write_services(root: Path) -> None:
    """The scripts, and a default runlevel of nothing but AT_BOOT."""
    for name, text in FILES.items():
        place = root / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(0o755 if "/init.d/" in f"/{name}" else 0o644)
    for level in ("sysinit", "boot", "default"):
        folder = root / "etc/runlevels" / level
        folder.mkdir(parents=True, exist_ok=True)
        for link in folder.iterdir():
            link.unlink()
    for name in AT_BOOT:
        (root / "etc/runlevels/default" / name).symlink_to(f"/etc/init.d/{name}")
