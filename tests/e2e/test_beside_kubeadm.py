"""kb's node is a drop-in for kubeadm's: equal field by field, accepted by real kubeadm, and the reverse.

Every comparison takes place on real nodes of one name and one address, one after the other.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import pytest
import yaml

from .lab import compare
from .lab.compare import Difference, Snapshot
from .lab.config import lab_config, list_ignored_checks, render_documents
from .lab.lab import Lab
from .lab.node import Node
from .lab.shell import Result
from .world.podnet import CONFLIST, render_conflist
from .world.web import check_cluster_serves

MakeNode = Callable[..., Node]
CERTIFICATE_KEY = "ab" * 32
TOKEN = "abcdef.0123456789abcdef"
IGNORE = "--ignore-preflight-errors=" + ",".join(list_ignored_checks())
KB, KUBEADM = "python3 kb.pyz", "kubeadm"


@dataclass(frozen=True)
class Allowed:
    """A difference that is meant: where, why, and with which pod network it is seen."""

    where: str
    why: str
    plugins: Sequence[str] = ("none", "bridge")


ALLOWED = (
    Allowed(r"file /var/lib/kb( |/)", "what kb did here: to go on, to show, to undo; kubeadm keeps no account"),
    Allowed(r"file /etc/sysctl\.d/90-kb\.conf ", "forwarding that outlives a reboot; kubeadm leaves it to the operator"),
    Allowed(r"object ConfigMap kube-system/kb-config ", "KbConfiguration, for nodes that join, beside kubeadm-config"),
    Allowed(r"object Role(Binding)?\.\S+ kube-system/kb:nodes-kb-config ", "their right to read it"),
    Allowed(r"file /etc/systemd/system/(timers\.target\.wants(/kb-certs\.timer)?|kb-certs\.(service|timer)) ", "renews certificates before they end"),
    Allowed(r"file /usr/local(/lib(/kb(/kb\.pyz)?)?)? ", "the program of that service"),
    # the rest is what kubeadm's operator does by hand, and kb by itself on a plain node
    Allowed(r"file /etc/cni/net\.d/", "the pod network's configuration: the harness' own, or kb's", ("bridge",)),
    Allowed(r"file /etc/systemd/system/(multi-user\.target\.wants/)?kb-routes\.service ", "keeps the routes", ("bridge",)),
    Allowed(r"object ClusterRole(Binding)?\.\S+ -/kb:node-routes ", "its right to see all nodes' addresses", ("bridge",)),
    Allowed(r"file /(etc|usr/lib)/systemd/system/(\S+/)?kubelet\.service", "kb's unit, or the package's", ("bridge",)),
    Allowed(r"file /usr/lib/systemd(/system)? ", "the package's unit lies there", ("bridge",)),
    Allowed(r"file /etc/sysctl\.d/e2e\.conf ", "forwarding as the operator set it", ("bridge",)),
)  # fmt: skip

PHASES_ALWAYS_CHANGE = (
    r"Secret kube-system/bootstrap-token-TOKEN\(Proxy"  # each upload of certificates has a token that ends with it
    r"|Deployment\.apps kube-system/coredns :\.metadata\.generation"  # the controller's annotation goes, and comes back
)
"""What kubeadm's phases change when they are run again, whoever made the node."""

_references: dict[str, Snapshot] = {}
"""What real kubeadm left, by minor: made once in a run."""


# ---------------------------------------------------------------------------------------------------- nodes


def make_kubeadm_node(make_node: MakeNode, version: str) -> Node:
    """A node on which real kubeadm has run init."""
    node = make_prepared_node(make_node, version)
    node.write("/root/init.yaml", render_config(node))
    node.run(f"kubeadm init --config init.yaml --upload-certs {IGNORE}", timeout=600)
    return node


def make_prepared_node(make_node: MakeNode, version: str) -> Node:
    """A node with kubeadm on it, and what its manual asks of the operator."""
    node = make_node("cp1", version=version, kubeadm=True)
    node.write(CONFLIST, render_conflist())
    return node


def render_config(node: Node, plugin: Optional[str] = None, **init: Any) -> str:
    """The same documents for both tools; kb's own one is added where a plugin is named."""
    kb = None if plugin is None else {"podNetwork": {"plugin": plugin}}
    wishes = {"certificateKey": CERTIFICATE_KEY, **init}
    return lab_config(node.release.minor, address=node.address, init=wishes, kb=kb)


def kb_init(node: Node, *, words: str = "") -> dict[str, Any]:
    """Run `kb init -o json` and read its result."""
    done = node.run(f"{KB} init --config init.yaml --upload-certs {IGNORE} -o json {words}", timeout=600)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def statuses(result: dict[str, Any]) -> dict[str, str]:
    return {phase["name"]: phase["status"] for phase in result["phases"]}


def read_reference(make_node: MakeNode, lab: Lab, version: str) -> Snapshot:
    """What kubeadm makes of a node; its name and address are free again afterwards."""
    if version not in _references:
        node = make_kubeadm_node(make_node, version)
        _references[version] = compare.read_node(node, certificate_key=CERTIFICATE_KEY)
        lab.remove_node(node)
    return _references[version]


# ---------------------------------------------------------------------------------------------------- field by field


@pytest.mark.parametrize("plugin", ["none", "bridge"])
def test_kb_s_node_equals_kubeadm_s_field_by_field(
    make_node: MakeNode, lab: Lab, kb_pyz: Path, k8s_version: str, plugin: str
) -> None:
    """Files (content, mode, owner), certificates' fields and every object of the cluster, but for what ALLOWED names."""
    expected = read_reference(make_node, lab, k8s_version)
    is_plain = plugin == "bridge"
    node = make_node("cp1", version=k8s_version) if is_plain else make_prepared_node(make_node, k8s_version)
    node.scp(kb_pyz, "/root/kb.pyz")
    node.write("/root/init.yaml", render_config(node, plugin))
    node.run(f"{KB} init --config init.yaml --upload-certs {IGNORE}", timeout=600)
    actual = compare.read_node(node, certificate_key=CERTIFICATE_KEY)
    assert len(expected.files) > 60 and len(expected.objects) > 200, "the reference is too small to be whole"

    differences = compare.list_differences(expected, actual)
    rows = [row for row in ALLOWED if plugin in row.plugins]
    left = [found for found in differences if not any(re.match(row.where, found.where) for row in rows)]
    assert not left, render_differences(left)
    unused = [row.where for row in rows if not any(re.match(row.where, found.where) for found in differences)]
    assert not unused, f"these rows of ALLOWED allow nothing any more: {unused}"


def render_differences(differences: Sequence[Difference]) -> str:
    """For the report of a failed test."""
    return f"{len(differences)} differences:\n" + "\n".join(f"  {difference}" for difference in differences)


# ---------------------------------------------------------------------------------------------------- kubeadm on kb's node


def test_kubeadm_goes_on_with_kb_s_node(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Its commands accept the node, its phases find everything as they would make it, and kb sees nothing amiss after."""
    node = make_prepared_node(make_node, k8s_version)
    node.scp(kb_pyz, "/root/kb.pyz")
    tokens = [{"token": TOKEN}]
    node.write("/root/init.yaml", render_config(node, "none", bootstrapTokens=tokens))
    node.write("/root/kubeadm.yaml", render_config(node, bootstrapTokens=tokens))
    node.run(f"{KB} init --config init.yaml --upload-certs {IGNORE}", timeout=600)
    compare.wait_settled(node)

    check_kubeadm_reads_the_node(node)
    check_kubeadm_s_phases_change_nothing(node)
    check_renewed_certificates_are_kept(node)
    check_kubeadm_s_reset_is_noticed(node)


def check_kubeadm_reads_the_node(node: Node) -> None:
    """check-expiration, tokens, a plan of the next patch release."""
    listing = node.run("kubeadm certs check-expiration -o json").stdout
    expiration = json.loads(listing)
    assert [c["name"] for c in expiration["certificates"]] == [
        "admin.conf", "apiserver", "apiserver-etcd-client", "apiserver-kubelet-client", "controller-manager.conf",
        "etcd-healthcheck-client", "etcd-peer", "etcd-server", "front-proxy-client", "scheduler.conf", "super-admin.conf",
    ]  # fmt: skip
    assert [a["name"] for a in expiration["certificateAuthorities"]] == ["ca", "etcd-ca", "front-proxy-ca"]
    for entry in [*expiration["certificates"], *expiration["certificateAuthorities"]]:
        assert not entry.get("missing") and not entry.get("externallyManaged"), entry

    tokens = node.run("kubeadm token list").stdout
    assert re.search(rf"^{TOKEN} +23h .* authentication,signing .* system:bootstrappers:kubeadm:default-node-token *$",
                     tokens, re.MULTILINE), tokens  # fmt: skip
    assert re.search(r"^\S+ +1h .* Proxy for managing TTL for the kubeadm-certs secret ", tokens, re.MULTILINE), tokens
    made = node.run("kubeadm token create --print-join-command").stdout
    shown = node.run(f"{KB} init --config init.yaml --upload-certs {IGNORE}").stdout
    assert " ".join(made.split()[5:]) in shown  # --discovery-token-ca-cert-hash sha256:...
    assert f"{KB} join {node.address}:6443 --token {TOKEN} \\\n\t--discovery-token-ca-cert-hash sha256:" in shown
    node.run(["kubeadm", "token", "delete", made.split()[4]])

    version = node.release.version
    major_minor, _, patch = version.rpartition(".")
    following = f"{major_minor}.{int(patch) + 1}"
    plan = node.run(f"kubeadm upgrade plan {following} {IGNORE}").stdout
    for component in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet"):
        assert re.search(rf"^{component} +cp1 +{version} +{following}$", plan, re.MULTILINE), plan
    assert re.search(rf"^kube-proxy +{version.lstrip('v')} +{following}$", plan, re.MULTILINE), plan
    assert f"kubeadm upgrade apply {following}" in plan
    assert re.findall(r"^\S+\.config\.k8s\.io .* (\S+) *$", plan, re.MULTILINE) == ["no", "no"], plan


def check_kubeadm_s_phases_change_nothing(node: Node) -> None:
    """Every phase of kubeadm's init upon kb's result: no file and no object becomes another one."""
    before = compare.read_node(node, certificate_key=CERTIFICATE_KEY)
    for phase in ("certs all", "kubeconfig all", "etcd local", "control-plane all", "upload-config all", "mark-control-plane",
                  "bootstrap-token", "kubelet-finalize all", "addon all", "upload-certs --upload-certs"):  # fmt: skip
        node.run(f"kubeadm init phase {phase} --config kubeadm.yaml")
    compare.wait_settled(node)  # kubeadm restarted the kubelet, which tells of its pods a moment later
    after = compare.read_node(node, certificate_key=CERTIFICATE_KEY)
    differences = [d for d in compare.list_differences(before, after) if not re.search(PHASES_ALWAYS_CHANGE, d.where)]
    assert not differences, render_differences(differences)
    assert set(statuses(kb_init(node)).values()) == {"unchanged"}


def check_renewed_certificates_are_kept(node: Node) -> None:
    """kb sees that renewed certificates are as good, and makes none anew."""
    for what in ("apiserver", "all"):
        node.run(f"kubeadm certs renew {what}")
        listing = "cd /etc/kubernetes && sha256sum *.conf pki/*.* pki/etcd/*.*"
        renewed = node.run(listing).stdout
        assert set(statuses(kb_init(node)).values()) == {"unchanged"}
        assert node.run(listing).stdout == renewed


def check_kubeadm_s_reset_is_noticed(node: Node) -> None:
    """kb's state outlives kubeadm's reset; kb says what is gone, makes it again, and does not call it proven unseen."""
    node.run("kubeadm reset --force", timeout=300)
    assert node.run("find /etc/kubernetes /var/lib/kubelet /var/lib/etcd -type f").stdout == ""
    done = node.run(f"{KB} init --config init.yaml --upload-certs {IGNORE}", timeout=600)
    assert re.search(r"certs/ca: drift: .+: applying it again", done.stderr), done.stderr
    for phase in ("certs/sa", "etcd/local", "kubelet-start", "addon/coredns", "verify"):
        assert f"{phase}: drift: " in done.stderr
    compare.wait_settled(node)
    check_cluster_serves(node)
    assert set(statuses(kb_init(node)).values()) == {"unchanged"}


# ---------------------------------------------------------------------------------------------------- kb on kubeadm's node


def test_kubeadm_s_node_is_refused_and_left_alone(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """kb names what lies there by the names of kubeadm's checks, and not even its reset touches it."""
    node = make_kubeadm_node(make_node, k8s_version)
    _references[k8s_version] = compare.read_node(node, certificate_key=CERTIFICATE_KEY)
    node.scp(kb_pyz, "/root/kb.pyz")
    node.write("/root/kb.yaml", render_config(node, "none"))
    before = read_living(node)

    refused = node.run(f"{KB} init --config kb.yaml {IGNORE}", check=False)
    assert refused.code == 3, refused.output
    by_kubeadm = node.run(f"kubeadm init --config init.yaml {IGNORE}", check=False)
    names = failed_checks(by_kubeadm)
    assert "FileAvailable--etc-kubernetes-manifests-etcd.yaml" in names
    assert failed_checks(refused) == names
    assert "kubeadm made this node part of a cluster" in refused.stderr
    assert "kubeadm reset" in refused.stderr and "kb reset" not in refused.stderr
    assert "nothing was changed" in refused.stderr

    reset = node.run(f"{KB} reset --force", check=False)
    assert (reset.code, "nothing-to-reset" in reset.stderr) == (4, True), reset.output
    assert read_living(node) == before
    node.wait_node_ready()

    # kubeadm's names of checks, in any case of letters
    ignore = ",".join([*list_ignored_checks(), *names])
    for given in (ignore, ignore.lower(), "all"):
        passed = node.run(f"{KB} init phase preflight --config kb.yaml --ignore-preflight-errors={given}")
        assert set(re.findall(r"\[WARNING (\S+)\]", passed.stderr)) >= set(names)
    assert node.run(f"{KB} init --no-such-flag", check=False).code == 2
    assert read_living(node) == before
    check_users_kubeconfig(node)


def failed_checks(result: Result) -> list[str]:
    """The names of the checks that failed, as both tools write them."""
    return sorted(re.findall(r"\[ERROR (\S+)\]", result.output))


def read_living(node: Node) -> str:
    """What must not change: every file of the node's configuration, and every container that runs."""
    files = "find /etc /var/lib/kubelet/*.* /usr/local /usr/lib/systemd -type f -printf '%p %T@ %m\\n' | sort"
    return node.run(
        f"{files}; crictl ps -q 2>/dev/null | sort; systemctl is-active kubelet; systemctl is-enabled kubelet"
    ).stdout


def check_users_kubeconfig(node: Node) -> None:
    """kubeadm's command and kb's give kubeconfigs of one form, and a real kubectl gets the same rights with both."""
    described, rights = [], []
    for program in (KUBEADM, KB):
        command = f"{program} kubeconfig user --client-name jane --org team --org system:masters --config init.yaml"
        text = node.run(command).stdout
        described.append(compare.describe_content(text.rstrip("\n").encode(), is_yaml=True))
        node.write("/root/user.conf", text)
        kubectl = "kubectl --kubeconfig user.conf"
        rights.append(yaml.safe_load(node.run(f"{kubectl} auth whoami -o yaml").stdout)["status"]["userInfo"])
        assert node.run(f"{kubectl} get nodes -o name").stdout == "node/cp1\n"
    assert described[0] == described[1]
    for user in rights:
        user.get("extra", {}).pop("authentication.kubernetes.io/credential-id", None)
    assert rights[0] == rights[1]
    assert rights[0]["groups"] == ["team", "system:masters", "system:authenticated"]


# ---------------------------------------------------------------------------------------------------- documents

V1BETA3 = {
    "init": render_documents(
        {
            "apiVersion": "kubeadm.k8s.io/v1beta3", "kind": "InitConfiguration",
            "localAPIEndpoint": {"advertiseAddress": "10.77.0.11"}, "bootstrapTokens": [{"token": TOKEN, "ttl": "5h"}],
            "nodeRegistration": {"name": "cp1", "kubeletExtraArgs": {"v": "3", "node-labels": "a=b"}},
        },
        {
            "apiVersion": "kubeadm.k8s.io/v1beta3", "kind": "ClusterConfiguration", "kubernetesVersion": "VERSION",
            "controlPlaneEndpoint": "cp.lab:6443", "networking": {"podSubnet": "10.244.0.0/16"},
            "apiServer": {"timeoutForControlPlane": "3m", "certSANs": ["a.b"], "extraArgs": {"v": "2", "audit-log-maxage": "3"}},
            "etcd": {"local": {"dataDir": "/var/lib/etcd", "extraArgs": {"quota-backend-bytes": "8589934592"}}},
        },
    ),
    "join": render_documents(
        {
            "apiVersion": "kubeadm.k8s.io/v1beta3", "kind": "JoinConfiguration",
            "discovery": {
                "bootstrapToken": {"token": TOKEN, "apiServerEndpoint": "10.77.0.11:6443", "unsafeSkipCAVerification": True},
                "timeout": "2m", "tlsBootstrapToken": TOKEN,
            },
            "nodeRegistration": {"name": "w1", "kubeletExtraArgs": {"v": "3"}},
            "controlPlane": {"localAPIEndpoint": {"advertiseAddress": "10.77.0.12"}},
        }
    ),
}  # fmt: skip


def test_documents_go_both_ways(make_node: MakeNode, kb_pyz: Path, k8s_version: str) -> None:
    """Defaults, migrated documents and lists of images are kubeadm's."""
    node = make_node("cp1", version=k8s_version, kubeadm=True, images=False)
    node.scp(kb_pyz, "/root/kb.pyz")
    version = node.release.version
    for words in (f"--kubernetes-version {version}", f"--kubernetes-version {version} --image-repository a.b/c"):
        by_kubeadm, by_kb = (node.run(f"{program} config images list {words}").stdout for program in (KUBEADM, KB))
        assert by_kb == by_kubeadm
        assert len(by_kb.splitlines()) == 7
    for form in ("json", "yaml"):
        command = f"config images list --kubernetes-version {version} -o {form}"
        by_kubeadm, by_kb = (yaml.safe_load(node.run(f"{program} {command}").stdout) for program in (KUBEADM, KB))
        assert by_kb == by_kubeadm

    for kind in ("init", "join", "reset", "upgrade"):
        check_defaults(node, kind)
    check_defaults(node, "init", "--component-configs KubeletConfiguration,KubeProxyConfiguration")
    for name, text in V1BETA3.items():
        check_migration(node, name, text.replace("VERSION", version))


def check_defaults(node: Node, kind: str, words: str = "") -> None:
    """Each tool accepts the other's defaults, and they are equal but for the version and the name of the node."""
    documents = []
    for program, judge in ((KUBEADM, KB), (KB, KUBEADM)):
        text = node.run(f"{program} config print {kind}-defaults {words}").stdout
        # the newest version that kb knows may be one that this kubeadm does not
        text = re.sub(r"(?m)^kubernetesVersion: .*$", f"kubernetesVersion: {node.release.version}", text)
        node.write("/root/defaults.yaml", text)
        assert node.run(f"{judge} config validate --config defaults.yaml").stdout == "ok\n"
        documents.append(list(yaml.safe_load_all(text)))
    for document in documents[0]:
        if kind == "join":  # kubeadm puts this machine's name there, kb the same word as in init-defaults
            document["nodeRegistration"]["name"] = "node"
    assert documents[0] == documents[1]


def check_migration(node: Node, name: str, text: str) -> None:
    """kb's migration is valid to kubeadm, and means what kubeadm's own migration means."""
    node.write("/root/old.yaml", text)
    migrated = []
    for program in (KUBEADM, KB):
        node.run(f"{program} config migrate --old-config old.yaml >{shlex.quote(name)}.yaml")
        assert node.run(f"kubeadm config validate --config {name}.yaml").stdout == "ok\n"
        migrated.append(list(yaml.safe_load_all(node.read(f"/root/{name}.yaml"))))
    registration = next(d["nodeRegistration"] for d in migrated[0] if "nodeRegistration" in d)
    # kubeadm writes down what it found on the machine that migrates; kb leaves that to the machine that is set up
    assert registration.pop("criSocket") == "unix:///var/run/containerd/containerd.sock"
    assert registration["taints"] == [{"effect": "NoSchedule", "key": "node-role.kubernetes.io/control-plane"}]
    registration["taints"] = None
    assert migrated[0] == migrated[1]
