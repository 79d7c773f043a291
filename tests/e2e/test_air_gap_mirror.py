"""A mirror over the years, without a network: what it has, what may go, its certificate, and its move to another control plane."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Callable

import pytest

from .lab.bundles import BARE
from .lab.changes import kill_after_each_change_in_turn
from .lab.config import lab_config
from .lab.control_planes import ENDPOINT, KEY, code_of, lead_endpoint
from .lab.images import WEB_IMAGE
from .lab.lab import Lab
from .lab.node import Node, wait_until
from .lab.settings import find_release, read_releases
from .test_air_gap import IGNORE, KB, MakeNode, asked_outside, bundles, expire_mirror, join_line, read_metric  # noqa: F401
from .world.web import apply, render_pod


def pull_again(server: Node, node: Node, *, name: str) -> None:
    """What the node has lost comes back for a new pod."""
    node.run(f"crictl rmi {WEB_IMAGE}", check=False)
    apply(server, render_pod(name, node=node.name))
    server.wait_pods_ready("default", f"app={name}")
    server.kubectl(f"delete pod {name} --wait=true", timeout=120)


def read_list(node: Node) -> Any:
    return json.loads(node.run(f"{KB} mirror list -o json").stdout)


def presented(node: Node) -> str:
    """The serial of the certificate that the node's mirror presents."""
    return node.run(
        f"echo | openssl s_client -connect {node.address}:5000 2>/dev/null | openssl x509 -noout -serial"
    ).stdout


@pytest.mark.k8s_versions("1.35", "1.36")
def test_a_mirror_over_the_years(
    make_node: MakeNode,
    lab: Lab,
    kb_pyz: Path,
    k8s_version: str,
    bundles: Callable[[str], Path],  # noqa: F811
) -> None:
    before_it = f"1.{int(k8s_version.partition('.')[2]) - 1}"
    if before_it not in read_releases():
        pytest.skip(f"KB_E2E_BIN has no {before_it}")
    bundle, former = bundles(k8s_version), bundles(before_it)
    cp1, cp2, w1 = (make_node(name, version=k8s_version, **BARE) for name in ("cp1", "cp2", "w1"))
    lab.clear_outside()
    lead_endpoint(cp1)
    cp1.scp(kb_pyz, "/root/kb.pyz")
    for one in (bundle, former):
        cp1.scp(one, f"/root/{one.name}")
    words: Any = {"init": {"certificateKey": KEY}, "kb": {"podNetwork": {"plugin": "bridge"}}}
    cp1.write("/root/init.yaml", lab_config(k8s_version, address=cp1.address, endpoint=ENDPOINT, **words))
    done = cp1.run(
        f"{KB} init --config init.yaml --bundle {bundle.name} --air-gapped --upload-certs {IGNORE}", timeout=600
    )
    line = join_line(done.stdout)
    cp2.run(f"{line} --control-plane --certificate-key {KEY}", timeout=600)
    w1.run(line, timeout=600)
    for name in ("cp2", "w1"):
        cp1.wait_node_ready(name)

    # what is there, what may go, and what not
    cp1.run(f"{KB} mirror add {former.name}", timeout=300)
    print(cp1.run(f"{KB} mirror list").stdout, flush=True)
    told = read_list(cp1)
    assert told["notNeeded"] == [f"v{before_it}"] and len(told["bundles"]) == 2 and told["unnamedBytes"] == 0
    old = f"registry.k8s.io/kube-apiserver:{find_release(before_it).version}"
    wait_until(lambda: w1.run(f"crictl pull {old}", check=False, timeout=120).ok, what=old, timeout_s=60)
    refused = cp1.run(f"{KB} mirror remove v{k8s_version}", check=False)
    assert code_of(refused) == "mirror-needed" and "node cp1, node cp2, node w1" in refused.stderr, refused.stderr
    own = f"registry.k8s.io/kube-proxy:{find_release(k8s_version).version}"  # no other name has its content, as a pause image's may
    assert code_of(cp1.run(f"{KB} mirror remove {own}", check=False)) == "mirror-needed"

    # an image that nobody needs, out of the middle of a bundle, while the mirror serves; one that is another one too is refused
    same = cp1.run(f"{KB} mirror remove docker.io/library/e2e-web:1", check=False)
    assert code_of(same) == "mirror-same-image" and WEB_IMAGE in same.stderr, same.stderr
    nobody = next(
        one["name"] for one in told["images"] if one["name"].startswith("registry.k8s.io/etcd:") and not one["neededBy"]
    )
    print(cp1.run(f"{KB} mirror remove {nobody}").output, cp1.run(f"{KB} mirror gc").output, flush=True)
    wait_until(lambda: not w1.run(f"crictl pull {nobody}", check=False).ok, what=f"{nobody} to be gone", timeout_s=15)
    w1.run(f"crictl rmi {old}")
    assert w1.run(f"crictl pull {old}", timeout=120).ok, "the rest of its bundle is served"
    pull_again(cp1, w1, name="after-gc")

    killed = kill_after_each_change_in_turn(cp1, ["kb.pyz", "mirror", "remove", f"v{before_it}"])
    assert killed and "nothing" in cp1.run(f"{KB} mirror gc").output, killed
    assert [one["name"] for one in read_list(cp1)["bundles"]] == [bundle.name]
    w1.run(f"crictl rmi {old}")
    wait_until(lambda: not w1.run(f"crictl pull {old}", check=False).ok, what=f"{old} to be gone", timeout_s=15)
    pull_again(cp1, w1, name="after-remove")

    # its certificate, by name and by the timer once a renewal was cut off before the restart
    before = presented(cp1)
    print(cp1.run(f"{KB} certs renew kb-mirror").output, flush=True)
    assert presented(cp1) != before
    pull_again(cp1, w1, name="after-renewal")
    cp1.run("rm /etc/kubernetes/pki/kb-mirror.crt")
    before = presented(cp1)
    assert "certificate of this node's mirror renewed" in cp1.run(f"{KB} certs renew all --expiring").stdout
    assert presented(cp1) != before and "kb-mirror" in cp1.run(f"{KB} certs check-expiration").stdout

    # it was off for so long that its certificate has expired: no node believes it, and the same timer renews it
    expire_mirror(cp1)
    wait_until(lambda: "serial=" in presented(cp1), what="the mirror", timeout_s=30)
    assert not w1.run(f"crictl rmi {WEB_IMAGE}; crictl pull {WEB_IMAGE}", check=False, timeout=120).ok
    before = presented(cp1)
    print(cp1.run(f"{KB} certs renew all --expiring").output, flush=True)
    assert presented(cp1) != before
    pull_again(cp1, w1, name="after-expiry")

    # to another control plane
    cp2.scp(kb_pyz, "/root/kb.pyz")
    killed = kill_after_each_change_in_turn(cp2, ["kb.pyz", "mirror", "move"])
    assert any("kb-mirror.service" in change for _, change in killed), killed
    done = cp2.run(f"{KB} mirror move", timeout=300)
    print(done.output, flush=True)
    url = f"https://{cp2.address}:5000"
    assert f"on cp1, w1: kb mirror use {url}" in done.stdout.replace("python3 kb.pyz", "kb"), done.stdout
    again = cp2.run(f"{KB} mirror move", timeout=300)
    assert "still to be done" in again.stdout, again.output
    pull_again(cp1, w1, name="meanwhile")
    assert code_of(cp1.run(f"{KB} mirror stop --yes", check=False)) == "mirror-in-use"
    for node in (cp1, w1):
        node.scp(kb_pyz, "/root/kb.pyz")
        print(node.run(f"{KB} mirror use {url}", timeout=120).output, flush=True)
    served = read_metric(cp1, "kb_mirror_client_requests_total")
    pull_again(cp1, w1, name="moved")
    assert read_metric(cp1, "kb_mirror_client_requests_total") == served
    print(cp1.run(f"{KB} mirror stop --yes").output, flush=True)
    assert not cp1.exists("/var/lib/kb/mirror") and not cp1.run("systemctl is-active kb-mirror", check=False).ok
    for node in (cp1, w1):
        pull_again(cp1, node, name=f"stopped-{node.name}")
    files = w1.run("cat /etc/containerd/certs.d/*/hosts.toml").stdout
    assert url in files and cp1.address not in files and re.search(rf'server = "{url}"', files)
    print(cp1.run(f"{KB} drift", check=False).output, cp2.run(f"{KB} drift", check=False).output, flush=True)

    # and a machine that has nothing joins by the new one, which the join command names
    w2 = make_node("w2", version=k8s_version, **BARE)
    shown = cp2.run(f"{KB} token create --print-join-command").stdout.strip()
    assert f" --mirror {url} --air-gapped" in f"{shown} ", shown
    w2.scp(kb_pyz, "/root/kb.pyz")
    w2.run(f"{shown} {IGNORE}", timeout=600)
    cp1.wait_node_ready("w2")
    pull_again(cp1, w2, name="w2")
    assert asked_outside(lab) == []
