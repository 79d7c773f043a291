"""`kb upgrade rollback` on real nodes, for rows of the table in docs/upgrade.md that test_upgrade_kubelet.py lacks: a patch, with what
people changed since, also when the way back is killed; a node whose kubelet is in the way; etcd of another minor, which stays; and seven
days later."""

from __future__ import annotations

import datetime
import json
import shlex
import time
from pathlib import Path
from typing import Callable

import pytest

from .lab.bundles import make_bundle
from .lab.changes import kill_at_every_change
from .lab.control_planes import KB, check_members, code_of
from .lab.lab import Lab
from .lab.node import Node, wait_until
from .lab.settings import find_release, make_patch
from .lab.static_pods import (
    add_flag,
    argv_of,
    fill_store,
    list_left,
    manifest,
    read_manifests,
    read_running,
    read_stored,
)
from .test_day_two_killed import only, show
from .test_join import join, make_token
from .test_static_pods import told
from .test_upgrade import check_version, edit_config, list_pinned, offer
from .test_upgrade_kubelet import BUNDLE, init, is_open, kubelet_of

MakeNode = Callable[..., Node]
ROLLBACK = f"{KB} upgrade rollback"
SCHEDULER = "kube-scheduler"
KEPT = "/var/lib/kb/upgrade"
LIST_KEPT = f"find {KEPT} -type f | sort"
SEVEN_DAYS = datetime.timedelta(days=7)
EDIT = "--kube-api-qps=61"
BEFORE_STORED = "upload-config,kubeconfig,kubelet-config,bootstrap-token,addon,gate"
"""With these left out, an upgrade stops after the static pods."""


@pytest.mark.k8s_versions("1.35")
def test_a_patch_goes_back_with_what_people_changed(
    make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, tmp_path: Path
) -> None:
    """Anywhere, kubelet and static pods. An edit since the upgrade is named, and then kept; a way back that was killed goes on."""
    former = find_release(k8s_version)
    patch = make_patch(former, tmp_path / "patch")
    node = make_node("cp1", version=k8s_version)
    init(node, kb_pyz)
    node.wait_node_ready()
    node.load_images(patch)
    node.scp(make_bundle(lab, kb_pyz, patch, tmp_path / "new.tar"), BUNDLE)
    fill_store(node)
    texts, stored = read_manifests(node), read_stored(node)
    with_edit = {**texts, SCHEDULER: add_flag(texts[SCHEDULER], EDIT)}

    def runs_with_edit() -> bool:
        running = read_running(node).get(SCHEDULER)
        return running is not None and EDIT in running.argv

    def upgrade() -> None:
        began = time.monotonic()
        done = told(
            node.run(f"{KB} upgrade apply {patch.version} --bundle {BUNDLE} --hand-edits drop --yes", timeout=900)
        )
        print(f"the patch took {time.monotonic() - began:.0f} s", flush=True)
        assert "evicted" not in done
        check_version(node, patch.version)
        assert EDIT not in node.read(manifest(SCHEDULER))
        node.write(manifest(SCHEDULER), add_flag(node.read(manifest(SCHEDULER)), EDIT), mode=0o600)
        wait_until(runs_with_edit, what="the edit to run", timeout_s=60)

    upgrade()
    refused = node.run(f"{ROLLBACK} --yes", check=False, timeout=300)
    assert code_of(refused) == "hand-edits" and "kube-api-qps" in refused.output, told(refused)
    assert kubelet_of(node, "cp1") == patch.version and list_left(node) == []

    def check(moment: str) -> None:
        found = {name: argv_of(text) for name, text in read_manifests(node).items()}
        wanted = {name: sorted(argv_of(text)) for name, text in with_edit.items()}  # the edit may stand elsewhere
        assert {name: sorted(words) for name, words in found.items()} == wanted, moment
        assert {name: one.argv for name, one in read_running(node).items()} == found, moment
        check_version(node, former.version)
        assert former.version in node.run("kubelet --version").stdout, moment
        assert is_open(node, "cp1") and stored <= read_stored(node), moment

    few = only("systemctl stop kubelet", "kube-apiserver.yaml.kb-former")
    argv = shlex.split("kb.pyz upgrade rollback --hand-edits keep --yes")
    show(kill_at_every_change(node, argv, (), check=check, restore=upgrade, wanted=few))


@pytest.mark.k8s_versions("1.35")
def test_what_is_kept_goes_after_seven_days(
    make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, tmp_path: Path
) -> None:
    """The date at which the upgrade ended is moved back. The timer removes what is kept, and lets the images go; so does the next command of
    a node without that timer, which then has nothing to go back to, and says so."""
    former = find_release(k8s_version)
    patch = make_patch(former, tmp_path / "patch")
    node = make_node("cp1", version=k8s_version, containerd="2.1")
    init(node, kb_pyz)
    node.wait_node_ready()
    node.load_images(patch)
    node.scp(make_bundle(lab, kb_pyz, patch, tmp_path / "new.tar"), BUNDLE)
    apply = f"{KB} upgrade apply {patch.version} --bundle {BUNDLE} --yes"
    told(node.run(apply, timeout=900))
    check_version(node, patch.version)
    kept = node.run(LIST_KEPT).stdout
    assert "upgrade/former/" in kept and f"before-{patch.version}.tar" in kept
    assert list_pinned(node) == {former.version}
    node.run(f"cp -a {KEPT} /root/kept")

    set_ended(node, ago=SEVEN_DAYS - datetime.timedelta(hours=1))
    node.run("systemctl start kb-certs", timeout=180)
    assert node.run(LIST_KEPT).stdout == kept and list_pinned(node) == {former.version}
    told(node.run(f"{ROLLBACK} --dry-run --yes", timeout=300))

    set_ended(node, ago=SEVEN_DAYS + datetime.timedelta(hours=1))
    node.run("systemctl start kb-certs", timeout=180)
    assert not node.exists(KEPT) and list_pinned(node) == set()

    node.run(f"cp -a /root/kept {KEPT}")
    set_ended(node, ago=SEVEN_DAYS + datetime.timedelta(hours=1))
    refused = node.run(f"{ROLLBACK} --yes", check=False, timeout=300)
    assert code_of(refused) == "nothing-kept", told(refused)
    assert not node.exists(KEPT)
    check_version(node, patch.version)
    again = told(node.run(apply, timeout=300))
    assert "run with these manifests already" in again


def set_ended(node: Node, *, ago: datetime.timedelta) -> None:
    """When this node's upgrade ended, by its record."""
    path = f"{KEPT}/upgrade.json"
    found = json.loads(node.read(path))
    assert found["status"] == "done" and found["ended"]
    moment = datetime.datetime.now(datetime.timezone.utc) - ago
    node.write(path, json.dumps({**found, "ended": moment.strftime("%Y-%m-%dT%H:%M:%SZ")}), mode=0o600)


@pytest.mark.k8s_versions("1.35")
def test_a_newer_kubelet_elsewhere_is_in_the_way(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """It must not be newer than an API server: it is named, and goes back first."""
    cp1, w1 = make_node("cp1", version=k8s_version), make_node("w1", version=k8s_version)
    init(cp1, kb_pyz)
    w1.scp(kb_pyz, "/root/kb.pyz")
    join(w1, cp1, *make_token(cp1))
    cp1.load_images("1.36")  # and no program: its kubelet stays
    version, former = find_release("1.36").version, find_release(k8s_version)
    told(cp1.run(f"{KB} upgrade apply {version} --yes --skip-phases {BEFORE_STORED}", timeout=900))
    texts = read_manifests(cp1)

    def have_kubelet(wanted: str, source: str) -> None:
        w1.run(f"p=$(command -v kubelet); cp {source} $p.new && mv $p.new $p && systemctl restart kubelet")
        wait_until(lambda: kubelet_of(cp1, "w1") == wanted, what=f"kubelet {wanted} of w1", timeout_s=60)

    w1.run("cp $(command -v kubelet) /root/kubelet.former")
    w1.scp(find_release("1.36").binary("kubelet"), "/root/kubelet.new")
    have_kubelet(version, "/root/kubelet.new")
    refused = cp1.run(f"{ROLLBACK} --yes", check=False, timeout=300)
    assert code_of(refused) == "rollback-unsafe" and "w1" in refused.output, told(refused)
    assert read_manifests(cp1) == texts
    have_kubelet(former.version, "/root/kubelet.former")
    told(cp1.run(f"{ROLLBACK} --yes", timeout=600))
    assert all(f":{former.version}" in text for name, text in read_manifests(cp1).items() if name != "etcd")


@pytest.mark.k8s_versions("1.33")
def test_etcd_of_another_minor_stays(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """The former API server works with it, and the upgrade can be done again."""
    node = make_node("cp1", version=k8s_version)
    init(node, kb_pyz, cluster={"etcd": {"local": {"imageTag": "3.5.32-0"}}})
    node.wait_node_ready()
    fill_store(node)
    stored, former = read_stored(node), find_release(k8s_version)
    edit_config(node, "/imageTag: 3.5.32-0/d")
    node.load_images("1.34")
    version = find_release("1.34").version
    apply = f"{KB} upgrade apply {version} --yes"
    told(node.run(f"{apply} --skip-phases {BEFORE_STORED}", timeout=900))
    etcd = read_manifests(node)["etcd"]
    assert "etcd:3.6." in etcd
    back = told(node.run(f"{ROLLBACK} --yes", timeout=600))
    assert "etcd stays as it is" in back
    texts = read_manifests(node)
    assert texts["etcd"] == etcd
    assert all(f":{former.version}" in text for name, text in texts.items() if name != "etcd")
    check_members(node, ["cp1"])
    assert stored <= read_stored(node) and list_left(node) == []
    offer(node, "1.34")
    told(node.run(apply, timeout=900))
    check_version(node, version)
    assert stored <= read_stored(node)
