"""kubeup/node/pod_trials.py: a manifest that would fail is refused before anything stops, and a good one never is."""

from __future__ import annotations

from typing import Any

import pytest

from kubeup.machine.host import CommandResult
from kubeup.node import static_pods
from kubeup.node.private_keys import generate_key, key_to_pem
from tests.fake_host import FakeHost
from tests.fake_node import make_config
from tests.unit.node.trial_case import (
    CRICTL,
    CTR,
    RELEASE,
    ROOT,
    Programs,
    failed,
    make_node,
    own_container,
    render,
    troubles,
    try_on,
    untried,
    with_flags,
)

PKI = "/etc/kubernetes/pki"
COMPONENTS = ("etcd", *static_pods.CONTROL_PLANE)
ALL = ["image", "flags", "feature gates", "files", "mounts", "host ports", "certificates", "configuration files"]


@pytest.mark.parametrize("component", COMPONENTS)
def test_the_own_manifests_pass(component: str) -> None:
    host = make_node()
    host.ports = dict.fromkeys((2379, 2380, 2381, 6443, 10257, 10259), component)
    found = try_on(host, render(component), running=render(component))
    assert [trial.name for trial in found] == ALL
    assert (troubles(found), untried(found)) == ([], {})
    assert {trial.component for trial in found} == {component}


@pytest.mark.parametrize(
    ("pod", "cause"),
    [
        (None, "the manifest"),
        ([], "the manifest is a list, not a mapping"),
        ({"metadata": {"name": "etcd"}, "spec": 1}, "the manifest.spec is a number, not a mapping"),
        ({"metadata": {"name": "etcd"}, "spec": {}}, "spec.containers is empty"),
        ({"metadata": {"name": "etcd"}, "spec": {"containers": [{"command": "etcd"}]}}, "not a list"),
        ({"metadata": {"name": ["etcd"]}, "spec": {"containers": [{}]}}, "not a text"),
        ({"spec": {"containers": [{}]}}, "metadata.name is empty"),
    ],
)
def test_a_wrong_shape(pod: Any, cause: str) -> None:
    ((name, found),) = troubles(try_on(make_node(), pod))
    assert name == "manifest"
    assert cause in found or pod is None


# ---- image


def test_a_missing_image() -> None:
    pod = render("kube-scheduler")
    own_container(pod)["image"] = "registry.k8s.io/kube-scheduler:v1.99.0"
    found = try_on(make_node(), pod)
    assert [name for name, _ in troubles(found)] == ["image"]
    assert set(untried(found)) == {"flags", "feature gates"}


def test_images_that_cannot_be_listed() -> None:
    host = make_node()
    host.answers[f"{CRICTL} images -o json"] = failed("connection refused")
    found = try_on(host, render("kube-scheduler"))
    assert troubles(found) == []
    assert {"image", "flags", "feature gates"} == set(untried(found))


@pytest.mark.parametrize(("policy", "image"), [("Always", ""), ("", "docker.io/library/haproxy:latest")])
def test_an_image_that_is_always_pulled_is_said(policy: str, image: str) -> None:
    host, pod = make_node(), render("kube-scheduler")
    own_container(pod).update({"imagePullPolicy": policy, **({"image": image} if image else {})})
    host.answers[f"{CRICTL} images -o json"] = f'{{"images": [{{"repoTags": ["{own_container(pod)["image"]}"]}}]}}'
    assert "imagePullPolicy is Always" in untried(try_on(host, pod))["image"]


# ---- flags and feature gates: the words of the real programs of 1.34 to 1.36, and of etcd 3.6


@pytest.mark.parametrize(
    ("component", "words", "cause"),
    [
        ("kube-apiserver", "Error: unknown flag: --auditlog-path\n", "unknown flag: --auditlog-path"),
        ("kube-scheduler", f"Usage:\n{'x' * 99}\n\nError: unknown shorthand flag: 'x' in -x\n", "unknown shorthand flag: 'x' in -x"),
        (
            "kube-controller-manager",
            'Usage:\n\nError: invalid argument "abc" for "-v, --v" flag: strconv.ParseUint: parsing "abc": invalid syntax\n',
            'invalid argument "abc" for "-v, --v" flag: strconv.ParseUint: parsing "abc": invalid syntax',
        ),
        ("kube-apiserver", "Error: flag needs an argument: --etcd-servers\n", "flag needs an argument: --etcd-servers"),
        ("kube-apiserver", "Error: bad flag syntax: --=3\n", "bad flag syntax: --=3"),
        (
            "kube-apiserver",
            'Error: "kube-apiserver" does not take any arguments, got ["stray"]\n',
            '"kube-apiserver" does not take any arguments, got ["stray"]',
        ),
        (
            "kube-apiserver",
            'E1129 20:17:26.763820   27891 run.go:72] "command failed" err="could not parse \\"abc\\" as version"\n',
            'could not parse "abc" as version',
        ),
        ("etcd", "flag provided but not defined: -nope\nUsage:\n", "flag provided but not defined: -nope"),
        ("etcd", 'invalid value "abc" for flag -snapshot-count: parse error\nUsage:\n', 'invalid value "abc" for flag -snapshot-count: parse error'),
        ("etcd", 'invalid boolean value "maybe" for -client-cert-auth: parse error\n', 'invalid boolean value "maybe" for -client-cert-auth: parse error'),
        ("etcd", '{"level":"warn","msg":"failed to verify flags","error":"\\"pos\\" is not a valid flag"}\n', '"pos" is not a valid flag'),
    ],
)  # fmt: skip
def test_a_refused_flag(component: str, words: str, cause: str) -> None:
    found = try_on(make_node(Programs(failed(words, 2))), render(component))
    assert troubles(found) == [("flags", cause)]
    assert untried(found) == {"feature gates": f"{component} stops reading its flags at the first that it refuses"}


@pytest.mark.parametrize(
    ("component", "words", "cause"),
    [
        ("etcd", 'invalid value "Nope=true" for flag -feature-gates: unrecognized feature gate: Nope\nUsage:\n', "unrecognized feature gate: Nope"),
        ("kube-apiserver", 'E1 run.go:72] "command failed" err="unrecognized feature gate: Nope"\n', "unrecognized feature gate: Nope"),
        ("kube-apiserver", 'E1 run.go:72] "command failed" err="missing bool value for Nope"\n', "missing bool value for Nope"),
        ("kube-apiserver", 'E1 run.go:72] "command failed" err="component not registered: foo"\n', "component not registered: foo"),
        (
            "kube-scheduler",
            'E1 run.go:72] "command failed" err="cannot set feature gate A to false, feature is locked to true"\n',
            "cannot set feature gate A to false, feature is locked to true",
        ),
        (
            "kube-scheduler",
            'E1 run.go:72] "command failed" err="invalid value of AllAlpha=maybe, err: strconv.ParseBool: parsing \\"maybe\\": invalid syntax"\n',
            'invalid value of AllAlpha=maybe, err: strconv.ParseBool: parsing "maybe": invalid syntax',
        ),
    ],
)  # fmt: skip
def test_a_refused_gate(component: str, words: str, cause: str) -> None:
    found = try_on(make_node(Programs(failed(words, 1))), render(component))
    assert troubles(found) == [("feature gates", cause)]
    assert set(untried(found)) == {"flags"}


def test_a_gate_that_the_program_only_warns_of() -> None:
    warning = "W1129 20:07:05.143544   23749 feature_gate.go:386] unrecognized feature gate: InPlacePodVerticalScalin\n"
    found = try_on(make_node(Programs(CommandResult((), 0, "v1", warning))), render("kube-apiserver"))
    ((trial,),) = ([one for one in found if one.trouble],)
    assert trial.name == "feature gates"
    assert trial.trouble is not None
    assert trial.trouble.remedy == 'did you mean "InPlacePodVerticalScaling"?'
    assert untried(found) == {}


@pytest.mark.parametrize(
    "warning",
    [
        "Flag --kubelet-port has been deprecated, kubelet-port is deprecated and will be removed.\n",
        "W1 feature_gate.go:409] Setting GA feature gate A=true. It will be removed in a future release.\n",
    ],
)
def test_a_deprecation_is_no_trouble(warning: str) -> None:
    found = try_on(make_node(Programs(CommandResult((), 0, "v1", warning))), render("kube-apiserver"))
    assert (troubles(found), untried(found)) == ([], {})


def test_a_flag_and_a_gate_are_both_told() -> None:
    words = 'W1 feature_gate.go:386] unrecognized feature gate: Nope\nE1 run.go:72] "command failed" err="could not parse"\n'
    found = try_on(make_node(Programs(failed(words))), render("kube-apiserver"))
    assert troubles(found) == [("flags", "could not parse"), ("feature gates", "unrecognized feature gate: Nope")]


def test_a_near_name() -> None:
    found = try_on(make_node(Programs(failed("Error: unknown flag: --audit-log-pat\n"))), render("kube-apiserver"))
    assert [one.trouble.remedy for one in found if one.trouble] == ['did you mean "--audit-log-path"?']


def test_an_end_for_another_reason_proves_nothing() -> None:
    found = try_on(make_node(Programs(failed("runtime: out of memory\n", 2))), render("kube-apiserver"))
    assert troubles(found) == []
    assert untried(found)["flags"] == "kube-apiserver --version exits with 2: runtime: out of memory"


def test_the_program_is_never_started() -> None:
    """--version comes first: at the end it would be the value of a flag that lacks one. A shell would not pass it on."""
    programs = Programs()
    try_on(make_node(programs), with_flags("kube-apiserver", "--etcd-servers"))
    assert [command[1] for command in programs.ran] == ["--version"]
    programs = Programs()
    pod = render("kube-apiserver")
    own_container(pod)["command"] = ["/bin/sh", "-c", "exec kube-apiserver"]
    found = try_on(make_node(programs), pod)
    assert programs.ran == []
    assert untried(found)["flags"] == "the command is /bin/sh, not kube-apiserver"


def test_variables_in_the_command() -> None:
    programs, pod = Programs(), with_flags("kube-apiserver", "--v=$(LEVEL)", "--vmodule=$$(LEVEL)$(NONE)")
    own_container(pod)["env"] = [{"name": "LEVEL", "value": "4"}]
    try_on(make_node(programs), pod)
    assert programs.ran[0][-2:] == ("--v=4", "--vmodule=$$(LEVEL)$$(NONE)")
    own_container(pod)["env"] = [{"name": "LEVEL", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}]
    found = untried(try_on(make_node(), pod))
    assert found["flags"] == "the value of $(LEVEL) in the command is known only when the pod runs"
    assert set(found) == {"flags", "feature gates", "files", "certificates", "configuration files"}


def test_a_foreign_pod_is_tried_for_what_all_pods_have() -> None:
    programs, pod = Programs(), render("kube-scheduler")
    pod["metadata"]["name"] = "kube-vip"
    found = try_on(make_node(programs), pod)
    assert [trial.name for trial in found] == ["image", "mounts", "host ports"]
    assert programs.ran == []


# ---- files and mounts


def test_a_missing_mount() -> None:
    host = make_node()
    host.files["/etc/kubernetes/audit.yaml"] = b"on the host, and not in the pod"
    found = try_on(host, with_flags("kube-apiserver", "--audit-policy-file=/etc/kubernetes/audit.yaml"))
    cause = "a mount is missing: neither a volume nor the image holds /etc/kubernetes/audit.yaml"
    assert troubles(found) == [("files", cause)]


def test_a_file_in_the_image() -> None:
    host = make_node()
    host.files[f"{ROOT}/etc/tokens.csv"] = b""
    pod = with_flags("kube-apiserver", "--token-auth-file=/etc/tokens.csv")
    assert troubles(try_on(host, pod)) == []
    host.answers[f"{CTR} images mount"] = failed("operation not permitted")
    found = try_on(host, pod)
    assert troubles(found) == []
    assert "whether the image has it is unknown" in untried(found)["files"]


def test_a_missing_file() -> None:
    found = try_on(make_node(), with_flags("etcd", f"--cert-file={PKI}/etcd/none.crt"))
    assert troubles(found) == [("files", f"{PKI}/etcd/none.crt does not exist")]


@pytest.mark.parametrize(
    ("component", "flag"),
    [
        ("kube-apiserver", "--audit-log-path=/var/log/kubernetes/audit.log"),
        ("kube-apiserver", "--service-account-signing-endpoint=/run/signer.sock"),
        ("kube-apiserver", "--cert-dir=/var/run/kubernetes"),
        ("kube-controller-manager", "--flex-volume-plugin-dir=/usr/libexec/none"),
        ("kube-scheduler", "--write-config-to=/tmp/x"),
        ("etcd", "--data-dir=/var/lib/other"),
        ("etcd", "--wal-dir=/var/lib/wal"),
        ("etcd", "--log-outputs=/var/log/etcd"),
    ],
)
def test_what_the_program_makes_is_not_missed(component: str, flag: str) -> None:
    assert troubles(try_on(make_node(), with_flags(component, flag))) == []


def test_a_link_is_followed_inside_the_pod() -> None:
    class Linked(FakeHost):
        def read_link(self, path: Any) -> Any:
            return "/srv/keys/apiserver.crt" if str(path) == f"{PKI}/apiserver.crt" else None

    host = make_node()
    linked = Linked(**{name: getattr(host, name) for name in host.__dataclass_fields__})
    ((name, cause),) = troubles(try_on(linked, render("kube-apiserver")))
    assert name == "files"
    assert cause == (
        "a mount is missing: neither a volume nor the image holds /srv/keys/apiserver.crt, "
        f"where {PKI}/apiserver.crt leads"
    )


@pytest.mark.parametrize(
    ("path", "kind", "cause"),
    [
        (PKI, "Directory", ""),
        ("/none", "Directory", "/none does not exist, and the type is Directory"),
        ("/none", "DirectoryOrCreate", ""),
        ("/none", "", ""),
        (f"{PKI}/ca.crt", "DirectoryOrCreate", f"{PKI}/ca.crt is not a folder, and the type is DirectoryOrCreate"),
        ("/none", "File", "/none does not exist, and the type is File"),
        (PKI, "File", f"{PKI} is a folder, and the type is File"),
        (f"{PKI}/none", "FileOrCreate", ""),
        ("/none/x", "FileOrCreate", "the folder of /none/x does not exist, and the type is FileOrCreate"),
        (f"{PKI}/ca.crt", "Socket", f"{PKI}/ca.crt is no Socket"),
        (PKI, "Folder", "there is no type of hostPath Folder"),
    ],
)
def test_volumes_as_the_kubelet_sees_them(path: str, kind: str, cause: str) -> None:
    pod = render("kube-scheduler")
    pod["spec"]["volumes"].append({"name": "more", "hostPath": {"path": path, "type": kind}})
    assert troubles(try_on(make_node(), pod)) == ([("mounts", cause)] if cause else [])


def test_a_mount_of_no_volume() -> None:
    pod = render("kube-scheduler")
    own_container(pod)["volumeMounts"].append({"name": "nothing", "mountPath": "/x"})
    found = try_on(make_node(), pod)
    assert troubles(found) == [("mounts", "spec.volumes has no nothing, so the kubelet refuses the pod")]


def test_files_in_a_folder_that_the_pod_brings() -> None:
    pod = with_flags("kube-apiserver", "--token-auth-file=/own/tokens.csv")
    pod["spec"]["volumes"].append({"name": "own", "emptyDir": {}})
    own_container(pod)["volumeMounts"].append({"name": "own", "mountPath": "/own"})
    assert untried(try_on(make_node(), pod)) == {"files": "/own/tokens.csv is in a volume that is not on the host"}


def test_a_path_that_no_machine_can_look_at() -> None:
    class Strict(FakeHost):
        def exists(self, path: Any) -> bool:
            if "\0" in str(path):
                raise ValueError("embedded null byte")
            return super().exists(path)

    host = make_node()
    strict = Strict(**{name: getattr(host, name) for name in host.__dataclass_fields__})
    found = try_on(strict, with_flags("etcd", f"--trusted-ca-file={PKI}/etcd/\0"))
    assert untried(found) == {"files": "embedded null byte"}


# ---- host ports


def test_a_port_that_another_process_holds() -> None:
    host = make_node()
    host.ports = {10250: "kubelet (pid 371)", 10259: "kube-scheduler (pid 9)"}
    pod = with_flags("kube-scheduler", "--secure-port=10250")
    found = try_on(host, pod, running=render("kube-scheduler"))
    assert troubles(found) == [("host ports", "kubelet (pid 371) listens there")]
    assert troubles(try_on(host, render("kube-scheduler"), running=render("kube-scheduler"))) == []
    assert troubles(try_on(host, render("kube-scheduler"))) == [("host ports", "kube-scheduler (pid 9) listens there")]


def test_the_ports_of_etcd_are_those_of_its_urls() -> None:
    host = make_node()
    host.ports = {2479: "x"}
    pod = with_flags("etcd", "--listen-client-urls=https://127.0.0.1:2479,https://10.77.0.11:2379")
    assert troubles(try_on(host, pod)) == [("host ports", "x listens there")]
    pod["spec"]["hostNetwork"] = False
    assert troubles(try_on(host, pod)) == []


# ---- certificates


@pytest.mark.parametrize(
    ("component", "flag", "cause"),
    [
        ("kube-apiserver", f"--tls-private-key-file={PKI}/front-proxy-client.key", "the certificate is for another key"),
        ("kube-apiserver", f"--etcd-keyfile={PKI}/front-proxy-client.key", "the certificate is for another key"),
        ("kube-apiserver", f"--kubelet-client-key={PKI}/apiserver.key", "the certificate is for another key"),
        ("etcd", f"--key-file={PKI}/etcd/peer.key", "the certificate is for another key"),
        ("etcd", f"--peer-key-file={PKI}/etcd/server.key", "the certificate is for another key"),
        ("etcd", f"--trusted-ca-file={PKI}/etcd/ca.key", "it holds no certificate, but EC PRIVATE KEY"),
        ("kube-controller-manager", f"--cluster-signing-key-file={PKI}/front-proxy-ca.key", "the certificate is for another key"),
        ("kube-controller-manager", f"--service-account-private-key-file={PKI}/sa.pub", "it holds no private key, but PUBLIC KEY"),
        ("kube-apiserver", f"--service-account-signing-key-file={PKI}/apiserver.key", f"no --service-account-key-file holds the public half of {PKI}/apiserver.key"),
        ("kube-apiserver", f"--proxy-client-cert-file={PKI}/sa.pub", "it holds no certificate, but PUBLIC KEY"),
    ],
)  # fmt: skip
def test_what_does_not_fit(component: str, flag: str, cause: str) -> None:
    assert troubles(try_on(make_node(), with_flags(component, flag))) == [("certificates", cause)]


def test_a_pair_of_the_wrong_use() -> None:
    pod = with_flags(
        "kube-apiserver",
        f"--tls-cert-file={PKI}/front-proxy-client.crt",
        f"--tls-private-key-file={PKI}/front-proxy-client.key",
    )
    ((_, cause),) = troubles(try_on(make_node(), pod))
    assert "serverAuth" in cause


def test_a_peer_that_nobody_asks_for_a_client_certificate() -> None:
    def pod(asks: str) -> dict[str, Any]:
        flags = (f"--peer-cert-file={PKI}/apiserver.crt", f"--peer-key-file={PKI}/apiserver.key")
        own = with_flags("etcd", *flags, f"--peer-client-cert-auth={asks}")
        own["spec"]["volumes"].append({"name": "pki", "hostPath": {"path": PKI, "type": "Directory"}})
        own_container(own)["volumeMounts"].append({"name": "pki", "mountPath": PKI})
        return own

    ((_, cause),) = troubles(try_on(make_node(), pod("true")))
    assert "clientAuth" in cause
    assert troubles(try_on(make_node(), pod("false"))) == []


def test_a_certificate_without_its_key() -> None:
    pod = render("kube-apiserver")
    command = own_container(pod)["command"]
    own_container(pod)["command"] = [word for word in command if "etcd-keyfile" not in word]
    assert troubles(try_on(make_node(), pod)) == [("certificates", "--etcd-certfile is given without --etcd-keyfile")]


def test_an_expired_certificate() -> None:
    host = make_node()
    host.clock = host.clock.replace(year=host.clock.year + 2)
    names = [cause for _, cause in troubles(try_on(host, render("kube-apiserver")))]
    assert len(names) == 4
    assert all("expired" in cause for cause in names)


def test_a_clock_that_is_behind() -> None:
    """Certificates that are not valid yet speak against the clock, not against themselves."""
    host = make_node()
    host.clock = host.clock.replace(year=host.clock.year - 2)
    found = [trial for trial in try_on(host, render("kube-apiserver")) if trial.trouble]
    assert found
    for trial in found:
        assert trial.trouble is not None
        assert "is valid only from" in trial.trouble.cause
        assert f"set this machine's clock, which says {host.clock:%Y-%m-%d %H:%M} UTC" in trial.trouble.remedy


def test_a_signer_is_one_certificate() -> None:
    host = make_node()
    host.files[f"{PKI}/two.crt"] = host.files[f"{PKI}/ca.crt"] + host.files[f"{PKI}/front-proxy-ca.crt"]
    found = try_on(host, with_flags("kube-controller-manager", f"--cluster-signing-cert-file={PKI}/two.crt"))
    assert troubles(found) == [("certificates", "it holds 2 certificates, and must hold one")]
    bundle = with_flags("kube-controller-manager", f"--client-ca-file={PKI}/two.crt", f"--root-ca-file={PKI}/two.crt")
    assert troubles(try_on(host, bundle)) == []


def test_a_signer_elsewhere() -> None:
    pod = static_pods.render_pod(
        "kube-controller-manager",
        make_config(),
        release=RELEASE,
        node=static_pods.NodeFacts(has_external_ca=True),
    )
    assert troubles(try_on(make_node(), pod)) == []


def test_two_keys_of_service_accounts() -> None:
    host = make_node()
    host.files[f"{PKI}/new.key"] = key_to_pem(generate_key("ECDSA-P256")).reveal().encode()
    pod = with_flags("kube-apiserver", f"--service-account-signing-key-file={PKI}/new.key")
    assert len(troubles(try_on(host, pod))) == 1
    own_container(pod)["command"].append(f"--service-account-key-file={PKI}/new.key")
    assert troubles(try_on(host, pod)) == []


@pytest.mark.parametrize("text", ["", "kind: Config\n", "{"])
def test_a_broken_kubeconfig(text: str) -> None:
    host = make_node()
    host.files["/etc/kubernetes/scheduler.conf"] = text.encode()
    ((name, _),) = troubles(try_on(host, render("kube-scheduler")))
    assert name == "certificates"


def test_a_kubeconfig_with_the_key_of_another() -> None:
    host, files = make_node(), []
    for name in ("scheduler", "controller-manager"):
        files.append(host.files[f"/etc/kubernetes/{name}.conf"].decode().splitlines())
    mixed = [line for line in files[0] if "client-key-data" not in line]
    at = next(index for index, line in enumerate(mixed) if "client-certificate-data" in line)
    mixed.insert(at, next(line for line in files[1] if "client-key-data" in line))
    host.files["/etc/kubernetes/scheduler.conf"] = "\n".join(mixed).encode()
    found = troubles(try_on(host, render("kube-scheduler")))
    assert found == [("certificates", "its client certificate: the certificate is for another key")]


# ---- configuration files


@pytest.mark.parametrize(
    ("flag", "text", "cause"),
    [
        ("audit-policy-file", "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None}]", ""),
        ("audit-policy-file", "apiVersion: audit.k8s.io/v1\nkind: Policy", "it has no rules"),
        ("audit-policy-file", "kind: Policy\nrules: [{level: None}]", "it has no apiVersion"),
        ("audit-policy-file", "apiVersion: v1\nkind: Config", "its kind is Config"),
        ("audit-policy-file", "- a", "it holds no mapping of fields to values"),
        ("audit-policy-file", "", "it holds no mapping of fields to values"),
        ("audit-policy-file", "a: [", "it is not YAML"),
        ("encryption-provider-config", "apiVersion: v1\nkind: EncryptionConfig", ""),
        ("encryption-provider-config", "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration", ""),
        ("encryption-provider-config", "apiVersion: v1\nkind: EncryptionConfiguration", "its apiVersion is v1"),
        ("authorization-config", "apiVersion: apiserver.config.k8s.io/v1beta1\nkind: AuthorizationConfiguration", ""),
        ("authentication-config", "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration", ""),
        ("admission-control-config-file", "apiVersion: apiserver.k8s.io/v1alpha1\nkind: AdmissionConfiguration", ""),
        ("egress-selector-config-file", "apiVersion: apiserver.k8s.io/v1beta1\nkind: EgressSelectorConfiguration", ""),
        ("tracing-config-file", "apiVersion: apiserver.config.k8s.io/v1\nkind: TracingConfiguration", ""),
    ],
)
def test_kinds_of_configuration(flag: str, text: str, cause: str) -> None:
    host = make_node()
    host.files[f"{PKI}/x.yaml"] = text.encode()
    found = troubles(try_on(host, with_flags("kube-apiserver", f"--{flag}={PKI}/x.yaml")))
    assert [(name, words.partition(" (")[0]) for name, words in found] == (
        [("configuration files", cause)] if cause else []
    )


def test_the_configuration_of_the_scheduler() -> None:
    host, pod = make_node(), with_flags("kube-scheduler", "--config=/etc/kubernetes/scheduler.conf")
    assert ("configuration files", "its kind is Config") in troubles(try_on(host, pod))
