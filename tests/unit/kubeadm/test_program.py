"""kb under the name kubeadm: who is called so, what it has, what it says, how it ends."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kb
from kubeup.cli import parser
from kubeup.cli import program as cli_program
from kubeup.errors import ClusterError, UsageError
from kubeup.kubeadm import program as as_kubeadm
from kubeup.kubeadm.lines import KubeadmReport, went_by
from tests.make_docs import REPO

CONFIG = """\
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {advertiseAddress: 10.9.8.7}
nodeRegistration: {name: cp1}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: v1.35.6
encryptionAlgorithm: ECDSA-P256
certificatesDir: DIR/pki
"""
ROOTLESS = "--ignore-preflight-errors=IsPrivilegedUser"
COMMANDS = as_kubeadm.kubeadm_commands(kb.COMMANDS)
PROGRAM = cli_program.Program("kubeadm", make_report=KubeadmReport, keeps_state=False)


def run(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "kb.py", "--as-kubeadm", *words], cwd=REPO, capture_output=True, text=True, timeout=60, input=stdin
    )  # fmt: skip


def command(name: str) -> cli_program.Command:
    (found,) = [item for item in COMMANDS if item.name == name]
    return found


# ---- the name


@pytest.mark.parametrize(
    ("program", "words", "is_so"),
    [
        ("/usr/bin/kubeadm", [], True),
        ("kubeadm", ["version"], True),
        ("/root/kb.pyz", ["--as-kubeadm", "version"], True),
        ("/root/kb.pyz", ["version"], False),
        ("/opt/kubeadm/kb.pyz", [], False),
    ],
)
def test_the_name_makes_it(program: str, words: list[str], is_so: bool) -> None:
    assert cli_program.is_kubeadm(program, words) is is_so


def test_a_link_is_enough(tmp_path: Path) -> None:
    link = tmp_path / "kubeadm"
    link.symlink_to(REPO / "kb.py")
    done = subprocess.run([sys.executable, str(link), "version", "-o", "short"], capture_output=True, text=True)
    assert re.fullmatch(r"v1\.\d+\.\d+\n", done.stdout), done.stderr


# ---- what it has


def test_it_has_kubeadm_s_phases_in_kubeadm_s_order_and_no_other() -> None:
    parents = list(dict.fromkeys(phase.name.partition("/")[0] for phase in command("init").phases))
    assert parents == list(as_kubeadm.INIT_PHASES)
    assert {"install", "pod-network", "verify"}.isdisjoint(parents)
    names = [phase.name for phase in command("init").phases]
    kubeconfigs = [name.partition("/")[2] for name in names if name.startswith("kubeconfig/")]
    assert kubeconfigs == ["admin", "super-admin", "kubelet", "controller-manager", "scheduler"]
    assert names.index("wait-control-plane/controllers") == names.index("wait-control-plane") + 1
    assert [phase.name for phase in command("reset").phases] == ["preflight", "remove-etcd-member", "cleanup-node"]
    assert {phase.name.partition("/")[0] for phase in command("join").phases} == set(as_kubeadm.JOIN_PHASES)


def test_it_has_none_of_kb_s_own_commands_and_flags() -> None:
    names = {item.name for item in COMMANDS}
    assert {"adopt", "status", "doctor", "support-bundle", "routes"}.isdisjoint(names)
    assert len(names) == len(COMMANDS)
    for name in ("init", "join", "reset", "token create", "upgrade apply", "upgrade node", "upgrade diff"):
        assert set(command(name).options) - {"vmodule", "rootfs"} == set(KUBEADM_FLAGS[name].split())


KUBEADM_FLAGS = {
    "init": "apiserver-advertise-address apiserver-bind-port apiserver-cert-extra-sans cert-dir certificate-key config "
    "control-plane-endpoint cri-socket dry-run feature-gates ignore-preflight-errors image-repository kubernetes-version "
    "node-name patches pod-network-cidr service-cidr service-dns-domain skip-certificate-key-print skip-phases "
    "skip-token-print token token-ttl upload-certs",
    "join": "apiserver-advertise-address apiserver-bind-port certificate-key config control-plane cri-socket discovery-file "
    "discovery-token discovery-token-ca-cert-hash discovery-token-unsafe-skip-ca-verification dry-run "
    "ignore-preflight-errors node-name patches skip-phases tls-bootstrap-token token",
    "reset": "cert-dir cleanup-tmp-dir config cri-socket dry-run force ignore-preflight-errors kubeconfig skip-phases",
    "token create": "certificate-key config description groups print-join-command ttl usages kubeconfig dry-run",
    "token list": "output kubeconfig dry-run",
    "certs check-expiration": "cert-dir config kubeconfig output",
    "certs renew": "cert-dir config kubeconfig",
    "certs generate-csr": "cert-dir config kubeconfig-dir",
    "config images list": "config feature-gates image-repository kubernetes-version output kubeconfig",
    "config images pull": "config cri-socket feature-gates image-repository kubernetes-version kubeconfig",
    "config migrate": "allow-experimental-api new-config old-config kubeconfig",
    "upgrade apply": "allow-experimental-upgrades allow-release-candidate-upgrades certificate-renewal config dry-run "
    "etcd-upgrade force ignore-preflight-errors kubeconfig patches print-config skip-phases yes",
    "upgrade node": "certificate-renewal config dry-run etcd-upgrade ignore-preflight-errors kubeconfig patches skip-phases",
    "upgrade plan": "allow-experimental-upgrades allow-release-candidate-upgrades config etcd-upgrade "
    "ignore-preflight-errors kubeconfig output print-config",
    "upgrade diff": "config context-lines kubeconfig",
    "kubeconfig user": "client-name config org token validity-period",
}
"""kubeadm 1.35's own, by its --help."""


@pytest.mark.parametrize("name", KUBEADM_FLAGS)
def test_it_takes_all_of_kubeadm_s_flags(name: str) -> None:
    assert set(KUBEADM_FLAGS[name].split()) <= set(command(name).options)


# ---- the command line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--v=5", "token", "--kubeconfig", "x", "create"], ["token", "create", "--v=5", "--kubeconfig=x"]),
        (["join", "a:1", "--token", "t", "-v", "5"], ["join", "a:1", "--token=t", "--v=5"]),
        (["init", "--pod_network_cidr=10.0.0.0/8"], ["init", "--pod-network-cidr=10.0.0.0/8"]),
        (["version", "-o=json"], ["version", "-ojson"]),
        (["token", "delete", "a", "--dry-run", "b"], ["token", "delete", "a", "b", "--dry-run"]),
        (["reset", "-f", "-v"], ["reset", "--force", "--v"]),
        (["reset", "-f=false", "--", "-x"], ["reset", "-x", "--force=false"]),
    ],
)
def test_flags_may_stand_anywhere(words: list[str], expected: list[str]) -> None:
    assert parser.words_first(words) == expected


@pytest.mark.parametrize(
    ("name", "there", "not_there"),
    [
        ("init", "upload-config", "cleanup-node"),
        ("join", "control-plane-prepare", "upload-config"),
        ("reset", "cleanup-node", "certs"),
    ],
)
def test_a_workflow_s_own_phases_are_listed(name: str, there: str, not_there: str) -> None:
    done = run(name, "phase")
    listed = done.stderr.partition("takes one of:")[2].split()
    assert done.returncode == 1
    assert f"{there}," in listed or there in listed
    assert f"{not_there}," not in listed


@pytest.mark.parametrize("words", [["init", "phase"], ["init", "phase", "certs"], ["init", "phase", "etcd"]])
def test_a_parent_alone_is_refused(words: list[str]) -> None:
    call = parser.parse_command_line(COMMANDS, words, program=PROGRAM)
    with pytest.raises(UsageError, match="subcommand is required"):
        call.command.run(call)


# ---- how it ends


@pytest.mark.parametrize(
    "words",
    [
        ["nothing"],
        ["config"],
        ["init", "--nothing"],
        ["init", "phase", "nothing"],
        ["join"],
        ["token", "create", "abc"],
        ["upgrade", "apply", "v1.36.0", "--yes"],
        ["version", "-o", "nothing"],
        ["init", "--rootfs", "/mnt"],
    ],
)
def test_every_mistake_ends_with_1(words: list[str]) -> None:
    done = run(*words)
    assert done.returncode == 1, done
    assert "error: " in done.stderr or words == ["config"]


def test_help_is_no_mistake() -> None:
    assert (run().returncode, run("--help").returncode, run("alpha").returncode) == (0, 0, 0)


def test_an_upgrade_of_what_is_no_control_plane_says_so() -> None:
    done = run("upgrade", "plan")
    assert done.returncode == 1 and "this node is not a control plane" in done.stderr
    assert run("upgrade", "nothing").returncode == run("upgrade").returncode == 1


def test_an_error_of_a_phase_has_kubeadm_s_head(capsys: pytest.CaptureFixture[str]) -> None:
    error = ClusterError("it broke", cause="for a reason", remedy="kb init phase x; kb reset; kb doctor", code="broken")
    error.phase = "upload-certs"
    report = KubeadmReport()
    report.spell = as_kubeadm.make_spelling(kb.COMMANDS, as_kubeadm.kubeadm_commands(kb.COMMANDS)).spell
    assert as_kubeadm.end_with_error(error, report) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: error execution phase upload-certs: it broke: for a reason\n")
    assert "kubeadm init phase x; kubeadm reset; kb doctor\n" in told


# ---- what it says


def test_versions_have_kubeadm_s_form() -> None:
    info = as_kubeadm.describe_version("v1.35.6", "x86_64")
    assert (info["major"], info["minor"], info["gitVersion"], info["platform"]) == ("1", "35", "v1.35.6", "linux/amd64")
    told = json.loads(run("version", "-o", "json").stdout)
    assert list(told) == ["clientVersion"] and list(told["clientVersion"]) == list(info)
    assert re.match(
        r'kubeadm version: &version\.Info\{Major:"1", Minor:"\d+", .*GitVersion:"v1\.', run("version").stdout
    )


def test_certificates_and_kubeconfigs_are_told_in_kubeadm_s_lines(tmp_path: Path) -> None:
    config = tmp_path / "init.yaml"
    config.write_text(CONFIG.replace("DIR", str(tmp_path)))
    pki = tmp_path / "pki"
    names = "kubernetes kubernetes.default kubernetes.default.svc kubernetes.default.svc.cluster.local"
    first = run("init", "phase", "certs", "all", "--config", str(config), ROOTLESS)
    assert first.stdout.splitlines() == [
        f'[certs] Using certificateDir folder "{pki}"',
        '[certs] Generating "ca" certificate and key',
        '[certs] Generating "apiserver" certificate and key',
        f"[certs] apiserver serving cert is signed for DNS names [cp1 {names}] and IPs [10.96.0.1 10.9.8.7]",
        '[certs] Generating "apiserver-kubelet-client" certificate and key',
        '[certs] Generating "front-proxy-ca" certificate and key',
        '[certs] Generating "front-proxy-client" certificate and key',
        '[certs] Generating "etcd/ca" certificate and key',
        '[certs] Generating "etcd/server" certificate and key',
        "[certs] etcd/server serving cert is signed for DNS names [cp1 localhost] and IPs [10.9.8.7 127.0.0.1 ::1]",
        '[certs] Generating "etcd/peer" certificate and key',
        "[certs] etcd/peer serving cert is signed for DNS names [cp1 localhost] and IPs [10.9.8.7 127.0.0.1 ::1]",
        '[certs] Generating "etcd/healthcheck-client" certificate and key',
        '[certs] Generating "apiserver-etcd-client" certificate and key',
        '[certs] Generating "sa" key and public key',
    ], first.stderr
    again = run("init", "phase", "certs", "ca", "--config", str(config), ROOTLESS)
    assert again.stdout == "[certs] Using existing ca certificate authority\n"
    leaf = run("init", "phase", "certs/apiserver", "--config", str(config), ROOTLESS)
    assert leaf.stdout == "[certs] Using existing apiserver certificate and key on disk\n"
    for line in ('[kubeconfig] Writing "admin.conf" kubeconfig file',
                 f'[kubeconfig] Using existing kubeconfig file: "{tmp_path}/admin.conf"'):  # fmt: skip
        told = run(
            "init", "phase", "kubeconfig", "admin", "--config", str(config), "--kubeconfig-dir", str(tmp_path), ROOTLESS
        )
        assert told.stdout == f"{line}\n"


def test_notes_stay_out_of_what_scripts_read(capsys: pytest.CaptureFixture[str]) -> None:
    report = KubeadmReport()
    report.note("chosen for you")
    report.warn("[WARNING Swap]: swap is on. Remedy: swapoff")
    report.phase(1, 2, name="certs/ca", does="Make it", outcome="0.1s")
    report.say("[certs] a line")
    told = capsys.readouterr()
    assert told.out == "[certs] a line\n"
    assert told.err == "\t[WARNING Swap]: swap is on. Remedy: swapoff\n"


def test_spans_have_go_s_form() -> None:
    assert (went_by(0.0042), went_by(3.5)) == ("4.2ms", "3.5s")


LENIENT = {
    "a field of kind's": "metadata: {name: config}\n",
    "a field of before": "dns: {type: CoreDNS}\n",
    "a timeout that moved": "apiServer: {timeoutForControlPlane: 4m0s}\n",
    "a field given twice": "clusterName: one\nclusterName: two\n",
    "a document of a wrong group": "---\napiVersion: kubeadm.k8s.io/v1beta4\nkind: KubeletConfiguration\n",
    "another document": "---\napiVersion: example.org/v1\nkind: Thing\n",
}


@pytest.mark.parametrize("name", LENIENT)
def test_what_kubeadm_only_warns_of_is_a_warning(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At run time; config validate and migrate refuse it, as kubeadm's do, and so does kb under its own name."""
    path = tmp_path / "init.yaml"
    head = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nkubernetesVersion: v1.35.6\n"
    path.write_text(head + LENIENT[name])
    assert kb.main(["--as-kubeadm", "config", "images", "list", "--config", str(path)]) == 0
    told = capsys.readouterr()
    assert "kube-apiserver:v1.35.6" in told.out and f"{path}:" in told.err
    if "another" not in name:
        assert kb.main(["--as-kubeadm", "config", "validate", "--config", str(path)]) == 1
        assert kb.main(["config", "images", "list", "--config", str(path)]) == 2
