"""No network: one bundle, a mirror, and nodes that start from bare Debian (no containerd, no kubelet, no default route)."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from pathlib import Path
from typing import Callable

import pytest

from .lab.bundles import BARE, make_bundle
from .lab.config import lab_config, list_ignored_checks
from .lab.image import SUITE, download_package
from .lab.images import WEB_IMAGE
from .lab.lab import Lab
from .lab.node import Node, wait_until
from .lab.settings import cache_dir, find_release, read_releases
from .lab.shell import Result
from .world.web import apply, check_cluster_serves, render_pod

MakeNode = Callable[..., Node]
KB = "python3 kb.pyz"
IGNORE = "--ignore-preflight-errors=" + ",".join(list_ignored_checks())
PAUSE = "registry.k8s.io/pause"
FILES = "cd / && find etc usr/local opt var/lib/kb -xdev -type f -printf '%p %m %s\\n' 2>/dev/null | sort"


@pytest.fixture(scope="module")
def bundles(lab: Lab, kb_pyz: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The bundle of a minor, made at its first use."""
    folder = tmp_path_factory.mktemp("bundles")
    made: dict[str, Path] = {}

    def give(minor: str) -> Path:
        if minor not in made:
            made[minor] = make_bundle(lab, kb_pyz, find_release(minor), folder / f"kb-{minor}.tar")
        return made[minor]

    return give


def put(node: Node, kb_pyz: Path, bundle: Path) -> None:
    node.scp(kb_pyz, "/root/kb.pyz")
    node.scp(bundle, f"/root/{bundle.name}")
    config = lab_config(node.release.minor, address=node.address, kb={"podNetwork": {"plugin": "bridge"}})
    node.write("/root/init.yaml", config)


def init(node: Node, bundle: Path, words: str = "", *, check: bool = True) -> Result:
    line = f"{KB} init --config init.yaml --bundle {bundle.name} --air-gapped {IGNORE} {words}"
    return node.run(line, check=check, timeout=600)


def join_line(shown: str) -> str:
    """The one line that init prints for a machine with nothing on it."""
    found = re.search(r"^curl .*$", shown, re.MULTILINE)
    assert found, shown
    return f"{found[0]} {IGNORE}"


def asked_outside(lab: Lab) -> list[str]:
    """Every packet that wanted out. CoreDNS asks the name server that /etc/resolv.conf names, which is the sinkhole."""
    return [asked for asked in lab.list_outside() if not asked.endswith(". udp . 53")]


def read_metric(node: Node, name: str) -> int:
    text = node.run(f"curl -fsS --cacert /etc/kubernetes/pki/ca.crt https://{node.address}:5000/metrics").stdout
    return sum(int(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def expire_mirror(node: Node) -> None:
    """Have the node's mirror present a certificate that ended yesterday, from the right authority and for the same names."""
    node.run(
        "cd /etc/kubernetes/pki && openssl req -new -key kb-mirror.key -subj /CN=kb-mirror -out /tmp/m.csr && "
        "openssl x509 -in kb-mirror.crt -noout -ext subjectAltName | sed -n '2s/IP Address:/IP:/g; 2s/^ */subjectAltName=/p' >/tmp/m.ext && "
        "openssl x509 -req -in /tmp/m.csr -CA ca.crt -CAkey ca.key -days -1 -extfile /tmp/m.ext -out kb-mirror.crt && "
        "systemctl restart kb-mirror"
    )


# ---- the whole way


@pytest.mark.k8s_versions("1.35", "1.36")
def test_bare_machines_become_a_cluster(
    make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, bundles: Callable[[str], Path], tmp_path: Path
) -> None:
    """init, two joins at once, a pod, images removed and pulled again, a restart, a further bundle, reset: and not one
    packet for the outside."""
    bundle = bundles(k8s_version)
    cp1, w1, w2 = (make_node(name, version=k8s_version, **BARE) for name in ("cp1", "w1", "w2"))
    before = w1.run(FILES).stdout
    lab.clear_outside()
    put(cp1, kb_pyz, bundle)
    done = init(cp1, bundle)
    assert re.search(rf"{PAUSE}\S+ was pulled through the CRI, and {cp1.address}:5000 served it", done.stderr)
    line = join_line(done.stdout)
    again = init(cp1, bundle)
    outcomes = re.findall(r"^\[ *\d+/\d+\] (\S+) .* (\S+)$", again.stderr, re.MULTILINE)
    assert {end for name, end in outcomes if name.startswith("install/")} == {"unchanged"}, again.stderr

    ends: dict[str, Result] = {}
    workers = [
        threading.Thread(target=lambda n=node: ends.update({n.name: n.run(line, timeout=600)})) for node in (w1, w2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(ends) == ["w1", "w2"]
    for node in (w1, w2):
        assert f"{cp1.address}:5000 served it" in ends[node.name].stderr
        assert "gave it no answer" not in ends[node.name].stderr
        cp1.wait_node_ready(node.name)
        for unit in ("containerd", "kubelet"):
            assert node.run(f"systemctl is-enabled {unit}").stdout.strip() == "enabled"
    check_cluster_serves(cp1, server="w1", client="w2")
    cp1.kubectl("delete pod web client --wait=true", timeout=120)

    # what the kubelet's garbage collection takes comes back by itself
    w1.run(f"crictl rmi {WEB_IMAGE}")
    apply(cp1, render_pod("web", node="w1"))
    cp1.wait_pods_ready("default", "app=web")

    # what no bundle has is asked of the mirror alone
    refused = w1.run("crictl pull quay.io/nobody/nothing:1", check=False)
    assert not refused.ok and "not found" in refused.output, refused.output

    # a node that restarts
    w2.reboot()
    cp1.wait_node_ready("w2")
    cp1.kubectl("delete pod web --wait=true", timeout=120)
    check_cluster_serves(cp1, server="w2", client="w1")
    assert asked_outside(lab) == []

    # a further bundle, in the gap: only what the first lacks
    delta = tmp_path / "delta.tar"
    lab.exec(
        f"python3 {kb_pyz} bundle create -o {delta} --kubernetes-version {find_release(k8s_version).version} --since {bundle}"
        f" --from {bundle} --image docker.io/library/e2e-web:1 --file /etc/hostname=extra/hostname"
    )
    assert delta.stat().st_size < 2**20
    cp1.scp(delta, "/root/delta.tar")
    cp1.run(f"{KB} mirror add delta.tar")
    fetch = f"curl -fsSk https://{cp1.address}:5000/files/extra/hostname"
    wait_until(lambda: w1.run(fetch, check=False).ok, what="the mirror to serve the further bundle", timeout_s=15)

    # and back to bare
    w1.run(f"{KB} reset --force", timeout=300)
    left = set(w1.run(FILES).stdout.splitlines()) - set(before.splitlines())
    assert left == set(), left
    assert not w1.run("command -v containerd kubelet crictl runc", check=False).ok
    assert w1.run("find /var/lib/containerd /etc/containerd -mindepth 1", check=False).stdout == ""
    assert asked_outside(lab) == []


@pytest.mark.k8s_versions("1.35")
def test_a_node_as_ubuntu_has_it(
    make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, bundles: Callable[[str], Path]
) -> None:
    """Its name in os-release, and systemd-resolved's stub as the machine's name server, which is none for a pod; beside it a
    worker of Debian, without one."""
    bundle = bundles(k8s_version)
    cp1, w1 = make_node("cp1", version=k8s_version, **BARE), make_node("w1", version=k8s_version, **BARE)
    cp1.write("/etc/os-release", 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\nPRETTY_NAME="Ubuntu 24.04.3 LTS"\n')
    for node in (cp1, w1):  # as an installer writes it: the name leads nowhere, and no default route tells the address
        node.run(f"sed -i '/[[:space:]]{node.name}$/d' /etc/hosts && echo 127.0.1.1 {node.name} >>/etc/hosts")
    package = download_package("systemd-resolved", SUITE, cache_dir() / "apt" / f"{SUITE}-resolved")
    cp1.scp(package, "/root/resolved.deb")
    servers = re.findall(r"^nameserver (\S+)", cp1.read("/etc/resolv.conf"), re.MULTILINE)
    cp1.run(
        "rm -f /etc/systemd/system/systemd-resolved.service && systemctl daemon-reload && dpkg --force-depends -i resolved.deb"
        f" && echo '[Resolve]\nDNS={' '.join(servers)}' >/etc/systemd/resolved.conf && systemctl restart systemd-resolved"
        " && ln -sfn /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf"
    )
    assert "nameserver 127.0.0.53" in cp1.read("/etc/resolv.conf")
    put(cp1, kb_pyz, bundle)
    done = init(cp1, bundle)
    cp1.wait_node_ready()
    assert "resolvConf: /run/systemd/resolve/resolv.conf" in cp1.read("/var/lib/kubelet/config.yaml")
    assert "Ubuntu 24.04" in cp1.get("node cp1")["status"]["nodeInfo"]["osImage"]
    w1.run(join_line(done.stdout), timeout=600)
    cp1.wait_node_ready("w1")
    for node in (cp1, w1):
        found = cp1.get(f"node {node.name}")["status"]["addresses"]
        assert {"type": "InternalIP", "address": node.address} in found, found
    check_cluster_serves(cp1, server="w1", client="cp1")
    pod = cp1.get("pods -n kube-system -l k8s-app=kube-dns")["items"][0]
    here = cp1 if pod["spec"]["nodeName"] == "cp1" else w1
    sandbox = here.run(f"crictl pods -q --name {pod['metadata']['name']}").stdout.split()[0]
    shown = json.loads(here.run(f"crictl inspectp {sandbox}").stdout)["info"]["config"]["dns_config"]["servers"]
    assert shown == servers, "CoreDNS would query itself"
    assert cp1.run(f"{KB} doctor", check=False).code == 0


@pytest.mark.k8s_versions("1.35")
def test_next_minor_is_synced_in_the_gap(
    make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, bundles: Callable[[str], Path]
) -> None:
    """A mirror of one minor takes the bundle of the next; a node pulls an image of it by its upstream name."""
    if "1.36" not in read_releases():
        pytest.skip("KB_E2E_BIN has no 1.36")
    cp1 = make_node("cp1", version=k8s_version, **BARE)
    bundle, following = bundles(k8s_version), bundles("1.36")
    put(cp1, kb_pyz, bundle)
    init(cp1, bundle)
    cp1.scp(following, "/root/next.tar")
    cp1.run(f"{KB} mirror add next.tar", timeout=120)
    name = f"registry.k8s.io/kube-apiserver:{find_release('1.36').version}"
    wait_until(lambda: cp1.run(f"crictl pull {name}", check=False, timeout=120).ok, what=name, timeout_s=120)
    assert asked_outside(lab) == []


@pytest.mark.k8s_versions("1.35")
@pytest.mark.parametrize(
    ("containerd", "config"), [("1.6", "default"), ("1.7", "debian"), ("2.1", "default"), ("2.1", "none")]
)
def test_a_runtime_that_is_there_is_pointed_to_the_mirror(
    make_node: MakeNode,
    lab: Lab,
    kb_pyz: Path,
    k8s_version: str,
    bundles: Callable[[str], Path],
    containerd: str,
    config: str,
) -> None:
    """Whatever containerd and configuration: the pull goes to the mirror, reset puts back what was there, and ctr reads
    the bundle by itself."""
    node = make_node(
        "cp1", version=k8s_version, containerd=containerd, containerd_config=config, images=False, default_route=False
    )
    node.scp(kb_pyz, "/root/kb.pyz")
    listing = "cd /etc && find containerd -type f -exec md5sum {} + 2>/dev/null | sort"
    before = node.run(listing).stdout
    serve = ["python3", str(kb_pyz), "mirror", "serve", str(bundles(k8s_version)), "--listen", f"{lab.gateway}:5002"]
    server = subprocess.Popen([*lab.enter_argv(), *serve], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://{lab.gateway}:5002"
        wait_until(lambda: lab.exec(f"curl -fsS {url}/healthz", check=False).ok, what="the mirror", timeout_s=30)
        words = f"--mirror {url} --kubernetes-version {find_release(k8s_version).version} {IGNORE}"
        done = node.run(f"{KB} init phase install/registries {words}", timeout=120)
        assert f"{lab.gateway}:5002 served it" in done.stderr
        assert PAUSE in node.run("crictl images").stdout
        again = node.run(f"{KB} init phase install/registries {words}", timeout=120)
        assert "0 changes" in again.stderr or "nothing to do" in again.stderr, again.stderr
    finally:
        server.kill()
        server.wait()
    node.run(f"{KB} reset --force", timeout=120)
    assert node.run(listing).stdout == before
    assert node.run("systemctl is-active containerd").stdout.strip() == "active"
    assert asked_outside(lab) == []
    check_ctr_reads(node, kb_pyz, bundles(k8s_version))


def check_ctr_reads(node: Node, kb_pyz: Path, bundle: Path) -> None:
    """`ctr images import`, as it stands in containerd's manual: every image by its upstream name, whole for this machine."""
    node.scp(kb_pyz, "/root/kb.pyz")
    node.scp(bundle, "/root/bundle.tar")
    node.run("ctr -n imported images import /root/bundle.tar", timeout=120)
    shown = json.loads(node.run(f"{KB} bundle show bundle.tar -o json").stdout)
    names = {entry["name"] for entry in shown["images"]}
    assert names and names <= set(node.run("ctr -n imported images ls -q").stdout.split())
    rows = node.run("ctr -n imported images check").stdout.splitlines()[1:]
    incomplete = [row for row in rows if row.split()[0] in names and not re.search(r"\scomplete \(", row)]
    assert incomplete == [], rows
    node.run("ctr -n imported images rm $(ctr -n imported images ls -q)")


# ---- what goes wrong


@pytest.mark.k8s_versions("1.35")
def test_unfit_bundles_change_nothing(
    make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, bundles: Callable[[str], Path], tmp_path: Path
) -> None:
    """Truncated, one byte flipped, another signature, another architecture, a full disk: each said by name, and the
    machine is as it was."""
    node = make_node("cp1", version=k8s_version, **BARE)
    bundle = bundles(k8s_version)
    put(node, kb_pyz, bundle)
    before = node.run(FILES).stdout
    name = f"/root/{bundle.name}"

    def refused(code: str, words: str = "", *, file: str = name) -> str:
        line = f"{KB} init --config init.yaml --bundle {file} --air-gapped {IGNORE} {words}"
        ended = node.run(line, check=False, timeout=300)
        assert f"code:   {code}" in ended.stderr and ended.code == 4, ended.output
        assert "so far: nothing was changed" in ended.stderr or "error execution phase" not in ended.stderr, (
            ended.stderr
        )
        left = [entry for entry in node.run(FILES).stdout.splitlines() if not entry.startswith("var/lib/kb/")]
        assert left == before.splitlines()
        return ended.stderr

    node.run(f"head -c 100000000 {name} >/root/short.tar")
    assert "copying it did not finish" in refused("bundle-truncated", file="/root/short.tar")
    node.run(
        f"cp {name} /root/flipped.tar && printf '\\377' | dd of=/root/flipped.tar bs=1 seek=200000001 conv=notrunc"
    )
    assert "is damaged" in refused("bundle-not-fit", file="/root/flipped.tar")
    node.run("rm /root/flipped.tar /root/short.tar")

    node.run("openssl genpkey -algorithm ed25519 -out /root/k && openssl pkey -in /root/k -pubout -out /root/k.pub")
    refused("signature-missing", "--verify-key /root/k.pub")

    foreign = tmp_path / "foreign.tar"
    elf = tmp_path / "kubelet"
    elf.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xb7\x00" + bytes(64))
    lab.exec(
        f"python3 {kb_pyz} bundle create -o {foreign} --kubernetes-version {find_release(k8s_version).version}"
        f" --from {bundle} --without files --file {elf}=arm64/kubelet"
    )
    node.scp(foreign, "/root/foreign.tar")
    assert "a bundle for arm64" in refused("wrong-architecture", file="/root/foreign.tar")

    node.run("mkdir -p /var/lib/kb && mount -t tmpfs -o size=64m tmpfs /var/lib/kb")
    refused("disk-full")
    node.run("umount /var/lib/kb")

    # the same machine, with the whole bundle: first what would be done, then it
    planned = init(node, bundle, "--dry-run")
    assert "would write: /usr/local/bin/kubelet" in planned.stdout
    assert [entry for entry in node.run(FILES).stdout.splitlines() if "var/lib/kb/" not in entry] == before.splitlines()
    init(node, bundle)
    node.wait_node_ready()
    assert asked_outside(lab) == []


@pytest.mark.k8s_versions("1.35")
def test_mirror_dies_and_expires(
    make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, bundles: Callable[[str], Path]
) -> None:
    """A mirror that is killed during a pull: the pod runs in the end. An expired certificate is named by kb, not
    believed by containerd, and renewed by init."""
    cp1, w1, w2 = (make_node(name, version=k8s_version, **BARE) for name in ("cp1", "w1", "w2"))
    bundle = bundles(k8s_version)
    put(cp1, kb_pyz, bundle)
    line = join_line(init(cp1, bundle).stdout)
    w1.run(line, timeout=600)
    cp1.wait_node_ready("w1")

    # so slow that the pull of the image (some MB) takes seconds; whoever pulls tries again, as the kubelet does
    image = f"registry.k8s.io/etcd:{find_release(k8s_version).facts.etcd[-1]}"  # which no worker has
    cp1.run("tc qdisc add dev eth0 root tbf rate 20mbit burst 64kb latency 100ms")
    pull = w1.popen(f"for n in $(seq 30); do crictl pull {image} && exit; sleep 2; done; exit 1")
    wait_until(lambda: w1.run("ls /var/lib/containerd/io.containerd.content.v1.content/ingest", check=False).stdout.strip(),
               what="the pull to begin", timeout_s=30, every_s=0.05)  # fmt: skip
    cp1.run("systemctl kill -s KILL kb-mirror")
    shown, _ = pull.communicate(timeout=300)
    assert pull.returncode == 0, shown
    cp1.run("tc qdisc del dev eth0 root")
    assert cp1.run("systemctl is-active kb-mirror").stdout.strip() == "active"
    assert int(cp1.run("systemctl show -p NRestarts --value kb-mirror").stdout) >= 1
    assert read_metric(cp1, "kb_mirror_sent_bytes_total") > 0

    # an expired certificate, from the right authority
    expire_mirror(cp1)
    w2.scp(kb_pyz, "/root/kb.pyz")
    plain = line.partition("sha256sum -c - && ")[2]
    refused = wait_until(
        lambda: (ended := w2.run(plain, check=False, timeout=300)) and "mirror-not-trusted" in ended.stderr and ended,
        what="the mirror with its expired certificate", timeout_s=60,
    )  # fmt: skip
    assert "expired" in refused.stderr, refused.stderr
    doubting = w1.run(f"crictl rmi {image}; crictl pull {image}", check=False)
    assert not doubting.ok and "expired" in doubting.output, doubting.output
    renewed = init(cp1, bundle)
    assert "install/mirror: drift" in renewed.stderr
    w2.run(plain, timeout=600)
    cp1.wait_node_ready("w2")
    w1.run(f"crictl pull {image}")
    assert asked_outside(lab) == []


@pytest.mark.k8s_versions("1.35")
def test_air_gapped_refuses_the_outside(make_node: MakeNode, kb_pyz: Path, k8s_version: str, lab: Lab) -> None:
    """A version label would be looked up, a manifest fetched: kb says which connection it was, and makes none."""
    node = make_node("cp1", version=k8s_version)
    node.scp(kb_pyz, "/root/kb.pyz")
    lab.clear_outside()
    guessed = node.run(f"{KB} init --air-gapped --dry-run --kubernetes-version stable-1.35 {IGNORE}", timeout=300)
    assert "kb was about to connect to dl.k8s.io" in guessed.stderr
    for words, name in (
        ("--pod-network-manifest https://example.com/net.yaml", "example.com"),
        ("--packages mirror --mirror http://203.0.113.9:5000 --kubernetes-version stable-1", "dl.k8s.io"),
    ):
        ended = node.run(f"{KB} init --air-gapped {words} {IGNORE}", check=False, timeout=300)
        assert f"kb was about to connect to {name}" in ended.stderr, ended.output
    refused = node.run(f"{KB} init --air-gapped --pod-network-manifest https://example.com/net.yaml", check=False)
    assert "code:   air-gap" in refused.stderr and refused.code == 4
    assert [asked for asked in lab.list_outside() if "203.0.113.9" not in asked] == []
