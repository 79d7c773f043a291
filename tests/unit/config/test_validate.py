"""Every rule of validation: one wrong value, one message."""

from __future__ import annotations

import pytest

from kubeup.config.validate_fields import parse_cidr
from tests.unit.config_case import CLUSTER, FLAGS, INIT, KB, load, refuse

ADDRESS = "localAPIEndpoint: {advertiseAddress: 10.0.0.11}\n"
V6 = "localAPIEndpoint: {advertiseAddress: 'fd00::11'}\n"


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("nodeRegistration: {name: a_b}", "nodeRegistration.name: 'a_b' cannot be a node's name; give --node-name a-b"),
        ("nodeRegistration: {name: '-'}", "give a name of a-z, 0-9, - and ."),
        (f"nodeRegistration: {{name: {'a' * 254}}}", "cannot be a node's name"),
        ("nodeRegistration: {criSocket: 'tcp://x'}", "nodeRegistration.criSocket: 'tcp://x' is not a socket"),
        (
            "nodeRegistration: {taints: [{key: a, effect: Never}]}",
            "taints[0].effect: 'Never' is not allowed; choose one of NoSch",
        ),
        ("nodeRegistration: {taints: [{key: a, effect: noschedule}]}", 'did you mean "NoSchedule"?'),
        ("nodeRegistration: {taints: [{key: 'a b', effect: NoSchedule}]}", "taints[0].key: 'a b' is not a taint's key"),
        ("nodeRegistration: {kubeletExtraArgs: [{value: a}]}", "kubeletExtraArgs[0].name: an argument without a name"),
        ("nodeRegistration: {kubeletExtraArgs: [{name: --v=2}]}", "write name: v"),
        (
            "nodeRegistration: {kubeletExtraArgs: [{name: container-runtime, value: remote}]}",
            "kubeletExtraArgs[0].name: kubelets from 1.27 on have no flag --container-runtime; leave it out",
        ),
        (
            "nodeRegistration: {kubeletExtraArgs: [{name: v, value: '2'}, {name: network_plugin, value: cni}]}",
            "kubeletExtraArgs[1].name: kubelets from 1.24 on have no flag --network_plugin; leave it out",
        ),
        (
            "nodeRegistration: {kubeletExtraArgs: [{name: node-labels, value: 'a=b,node-role.kubernetes.io/worker='}]}",
            "kubeletExtraArgs[0].value: a kubelet may not give its node the label node-role.kubernetes.io/worker, and exits; label "
            "the node once it is registered: kubectl label node NAME node-role.kubernetes.io/worker=",
        ),
        (
            "nodeRegistration: {kubeletExtraArgs: [{name: node-labels, value: 'x.k8s.io/a=b'}]}",
            "a kubelet may not give its node the label x.k8s.io/a",
        ),
        (
            "nodeRegistration: {kubeletExtraArgs: [{name: node-labels, value: 'a_=b'}]}",
            "'a_' is not a valid label key, and the kubelet exits; write name or domain/name",
        ),
        (
            "nodeRegistration: {kubeletExtraArgs: [{name: node-labels, value: 'a=b c'}]}",
            "'b c' is not a valid label value, and the kubelet exits; write 63 letters, digits, -, _ and . at most",
        ),
        (
            "nodeRegistration: {imagePullPolicy: Sometimes}",
            "'Sometimes' is not allowed; choose one of Always, IfNotPresent, Never",
        ),
        ("nodeRegistration: {ignorePreflightErrors: [all, Swap]}", "'all' is combined with other checks"),
        ("localAPIEndpoint: {bindPort: 65536}", "localAPIEndpoint.bindPort: port 65536 does not exist"),
        ("localAPIEndpoint: {bindPort: -1}", "port -1 does not exist"),
        ("localAPIEndpoint: {advertiseAddress: here}", "'here' is not an IP address"),
        (
            "localAPIEndpoint: {advertiseAddress: 224.0.0.1}",
            'cannot use "224.0.0.1" as the bind address for the API Server',
        ),
        (
            "localAPIEndpoint: {advertiseAddress: 'fe80::1'}",
            'cannot use "fe80::1" as the bind address for the API Server',
        ),
        ("certificateKey: abc", "certificateKey: not a key of 32 bytes"),
        ("bootstrapTokens: [{token: ABCDEF.0123456789abcdef}]", "bootstrapTokens[0].token: not a bootstrap token"),
        ("bootstrapTokens: [{ttl: -1h}]", "bootstrapTokens[0].ttl: a negative duration"),
        (
            "bootstrapTokens: [{usages: [sign]}]",
            "bootstrapTokens[0].usages[0]: 'sign' is not allowed; did you mean \"signing\"?",
        ),
        ("bootstrapTokens: [{groups: [admins]}]", "'admins' is not a group of bootstrap tokens"),
        (
            "bootstrapTokens: [{usages: [signing], groups: ['system:bootstrappers:a']}]",
            "groups need the usage authentication",
        ),
        ("bootstrapTokens: [{ttl: 1h, expires: '2030-01-01T00:00:00Z'}]", "ttl and expires are mutually exclusive"),
        (
            "bootstrapTokens: [{token: abcdef.0123456789abcdef}, {token: abcdef.0123456789abcdeg}]",
            "bootstrapTokens[1].token: its id is that of bootstrapTokens[0]",
        ),
        ("timeouts: {discovery: -1s}", "timeouts.discovery: a negative duration"),
    ],
)
def test_rules_of_init(body: str, wanted: str) -> None:
    found = refuse(INIT + body + "\n")
    assert len(found) == 1, found
    assert found[0].startswith("init.yaml:3: ")
    assert wanted in found[0]


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("kubernetesVersion: v1.30.0", "kubernetesVersion: Kubernetes version 'v1.30.0': this kb deploys 1.31 to 1.37"),
        ("kubernetesVersion: newest", "'newest' is neither a version nor a label"),
        ("controlPlaneEndpoint: 'a_b:6443'", "'a_b:6443' is not a DNS name or IP address with a port"),
        ("controlPlaneEndpoint: 'https://a:6443'", "'https://a:6443' is a URL; write it without https://: a:6443"),
        ("controlPlaneEndpoint: 'a:0'", "controlPlaneEndpoint: port 0 does not exist"),
        ("controlPlaneEndpoint: 'a:b'", "is not a DNS name or IP address with a port"),
        (
            "networking: {serviceSubnet: 10.96.0.0/11}",
            "10.96.0.0/11 is too large: the API server handles 2^20 addresses; write /12",
        ),
        ("networking: {serviceSubnet: 10.96.0.0/29}", "10.96.0.0/29 has 8 addresses, services need 10 at least"),
        ("networking: {serviceSubnet: 10.96.0.0}", "'10.96.0.0' is not a subnet"),
        ("networking: {serviceSubnet: '10.96.0.0/16, fd00::/112'}", "' fd00::/112' is not a subnet"),
        (
            "networking: {serviceSubnet: '10.96.0.0/16,10.97.0.0/16'}",
            "two IPv4 subnets; dual-stack needs one IPv4 and one IPv6 subnet",
        ),
        ("networking: {serviceSubnet: '10.96.0.0/16,10.97.0.0/16,fd00::/112'}", "3 subnets"),
        ("networking: {serviceSubnet: '10.96.0.0/16,fd00::/107'}", "fd00::/107 is too large"),
        (
            "networking: {serviceSubnet: 'fd00::/112', podSubnet: 'fd01::/56'}",
            "IPv6, the advertise address 10.0.0.11 is not",
        ),
        ("networking: {podSubnet: 10.244.0.0/29}", "10.244.0.0/29 has 8 addresses, pods need 14 at least"),
        ("networking: {podSubnet: 10.244.0.0/25}", "10.244.0.0/25 is smaller than one node's piece of it (/24)"),
        (
            "networking: {podSubnet: 20.0.0.0/7}",
            "20.0.0.0/7 in pieces of /24 makes more than 65536 nodes; write /8 or longer",
        ),
        (
            "networking: {podSubnet: '10.244.0.0/16,fd00::/47'}",
            "fd00::/47 in pieces of /64 makes more than 65536 nodes",
        ),
        (
            "networking: {podSubnet: 'fd00::/56,10.244.0.0/16'}",
            "the first subnet is IPv6, the first service subnet IPv4",
        ),
        ("networking: {dnsDomain: Cluster_Local}", "networking.dnsDomain: 'Cluster_Local' is not a DNS domain"),
        ("certificatesDir: pki", "certificatesDir: 'pki' is not an absolute path"),
        ("imageRepository: https://r.org/k/", "is not the beginning of an image name; write r.org/k"),
        ("imageRepository: r.org/K", "write host[:port][/path] without scheme"),
        ("encryptionAlgorithm: RSA-1024", "'RSA-1024' is not allowed; did you mean"),
        ("{kubernetesVersion: v1.33.1, encryptionAlgorithm: ECDSA-P384}", "'ECDSA-P384' is not allowed"),
        ("certificateValidityPeriod: 0s", "a certificate would be expired when it is issued"),
        ("caCertificateValidityPeriod: -5h", "a certificate would be expired when it is issued"),
        ("featureGates: {Foo: true}", "featureGates.Foo: unrecognized feature-gate key: Foo; known here: Control"),
        (
            "{kubernetesVersion: v1.36.3, featureGates: {ControlPlaneKubeletLocalMode: true}}",
            "Kubernetes 1.36 has no feature gate ControlPlaneKubeletLocalMode (known to 1.31 to 1.35); remove it",
        ),
        ("{kubernetesVersion: v1.35.6, featureGates: {EtcdLearnerMode: true}}", "known to 1.31 to 1.32"),
        ("apiServer: {certSANs: ['a b']}", "apiServer.certSANs[0]: 'a b' is neither an IP address nor a DNS name"),
        ("apiServer: {certSANs: ['https://a:6443']}", "write it without scheme and port"),
        ("apiServer: {extraArgs: [{name: '', value: a}]}", "an argument without a name"),
        ('apiServer: {extraArgs: [{name: a, value: "b\\nc"}]}', "a value with a line break"),
        ("scheduler: {extraVolumes: [{name: A, hostPath: /a, mountPath: /a}]}", "'A' is not a volume's name"),
        (
            "scheduler: {extraVolumes: [{name: a, mountPath: /a}]}",
            "extraVolumes[0].hostPath: '' is not an absolute path",
        ),
        ("scheduler: {extraVolumes: [{name: a, hostPath: /a}]}", "extraVolumes[0].mountPath: '' is not a path"),
        (
            "scheduler: {extraVolumes: [{name: a, hostPath: /a, mountPath: /a, pathType: Dir}]}",
            "pathType: 'Dir' is not allowed",
        ),
        (
            "scheduler: {extraVolumes: [{name: a, hostPath: /a, mountPath: /a}, {name: a, hostPath: /b, mountPath: /b}]}",
            "extraVolumes[1].name: two volumes are called a",
        ),
        ("scheduler: {extraEnvs: [{value: a}]}", "extraEnvs[0].name: '' is not a variable's name"),
        (
            "scheduler: {extraEnvs: [{name: A, value: a, valueFrom: {fieldRef: {}}}]}",
            "value and valueFrom are mutually exclusive",
        ),
        ("dns: {imageTag: 'a b'}", "dns.imageTag: 'a b' is not an image tag"),
        ("dns: {imageRepository: 'A//b'}", "dns.imageRepository: 'A//b' is not the beginning of an image name"),
        ("etcd: {local: {dataDir: data}}", "etcd.local.dataDir: 'data' is not an absolute path"),
        ("etcd: {local: {serverCertSANs: ['_']}}", "etcd.local.serverCertSANs[0]: '_' is neither"),
        (
            "etcd: {local: {}, external: {endpoints: ['http://a:2379']}}",
            "etcd.local and etcd.external are mutually exclusive",
        ),
        ("etcd: {external: {}}", "etcd.external.endpoints: no endpoint"),
        ("etcd: {external: {endpoints: ['a:2379']}}", "endpoints[0]: 'a:2379' is not a URL"),
        (
            "etcd: {external: {endpoints: ['http://a:1'], caFile: /ca}}",
            "endpoints[0]: http, while certificates are given",
        ),
        (
            "etcd: {external: {endpoints: ['https://a:1'], caFile: ca}}",
            "etcd.external.caFile: 'ca' is not an absolute path",
        ),
        (
            "etcd: {external: {endpoints: ['https://a:1'], caFile: /ca, certFile: /c}}",
            "keyFile is missing; give keyFile",
        ),
        ("etcd: {external: {endpoints: ['https://a:1'], keyFile: /k, certFile: /c}}", "without caFile; give caFile"),
    ],
)
def test_rules_of_the_cluster(body: str, wanted: str) -> None:
    found = refuse(INIT + ADDRESS + "---\n" + CLUSTER.replace("\nkind", "\nkind", 1) + _flat(body))
    assert len(found) == 1, found
    assert found[0].startswith("init.yaml:"), found
    assert wanted in found[0]


def _flat(body: str) -> str:
    """`{a: b, c: d}` stands for two fields on lines of their own."""
    return (body[1:-1].replace(", ", "\n", 1) if body.startswith("{") else body) + "\n"


@pytest.mark.parametrize(
    "body",
    [
        "networking: {podSubnet: 10.244.0.0/25}\ncontrollerManager: {extraArgs: [{name: node-cidr-mask-size-ipv4, value: '26'}]}",
        "networking: {podSubnet: 20.0.0.0/7}\ncontrollerManager: {extraArgs: [{name: allocate-node-cidrs, value: 'false'}]}",
        "networking: {podSubnet: 20.0.0.0/7}\ncontrollerManager: {extraArgs: [{name: node-cidr-mask-size-ipv4, value: '23'}]}",
        "networking: {podSubnet: '10.244.0.0/16,fd00::/48', serviceSubnet: '10.96.0.0/12,fd01::/108'}",
        "controlPlaneEndpoint: '[2001:db8::1]:6443'",
        "imageRepository: localhost:5000/a/b-c/d.e__f",
        "encryptionAlgorithm: ECDSA-P384",
        "apiServer: {certSANs: ['*.example.com', '::1', 10.0.0.1, localhost]}",
        "etcd: {external: {endpoints: ['https://[::1]:2379'], caFile: /ca, certFile: /c, keyFile: /k}}",
        "certificateValidityPeriod: 1h",
    ],
)
def test_what_is_allowed(body: str) -> None:
    assert load(INIT + ADDRESS + "---\n" + CLUSTER + body + "\n").cluster.kubernetes_version == "v1.35.6"


def test_the_mask_of_a_node_must_be_a_number() -> None:
    args = "controllerManager: {extraArgs: [{name: node-cidr-mask-size-ipv4, value: wide}]}\n"
    found = refuse(INIT + ADDRESS + "---\n" + CLUSTER + args)
    assert len(found) == 1
    assert "node-cidr-mask-size-ipv4='wide' is not a prefix length; write 24" in found[0]


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("certificateValidityPeriod: 9000h", "longer than a year"),
        ("caCertificateValidityPeriod: 90000h", "longer than ten years"),
        ("caCertificateValidityPeriod: 100h", "the CA expires before its certificates"),
        ("networking: {serviceSubnet: 10.96.0.5/12}", "10.96.0.5/12 has bits after its prefix: it means 10.96.0.0/12"),
        (
            "networking: {serviceSubnet: '10.96.0.0/16,fd00::/112', podSubnet: 10.244.0.0/16}",
            "services are dual-stack, pods are not",
        ),
    ],
)
def test_what_works_but_should_be_known(body: str, wanted: str) -> None:
    warnings = load(INIT + ADDRESS + "---\n" + CLUSTER + body + "\n").warnings
    assert len(warnings) == 1
    assert warnings[0].startswith("init.yaml:7: ")
    assert wanted in warnings[0]


def test_names_and_waits_that_work_but_should_be_known() -> None:
    warnings = load(
        INIT + "nodeRegistration: {name: localhost}\ntimeouts: {controlPlaneComponentHealthCheck: 0s}\n"
    ).warnings
    assert [warning.partition(": ")[0] for warning in warnings] == ["init.yaml:3", "init.yaml:4"]


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("podNetwork: {plugin: bridges}", "podNetwork.plugin: 'bridges' is not allowed; did you mean \"bridge\"?"),
        ("podNetwork: {plugin: manifest}", "podNetwork.manifest: plugin manifest without a manifest"),
        ("podNetwork: {manifest: /a}", "podNetwork.manifest: a manifest beside plugin bridge"),
        ("podNetwork: {backend: ipip}", "podNetwork.backend: 'ipip' is not allowed"),
        ("podNetwork: {imageRepository: a.b/c}", "podNetwork.imageRepository: plugin bridge has no images"),
        (
            "podNetwork: {plugin: manifest, manifest: /a, imageRepository: 'http://a.b/c'}",
            "podNetwork.imageRepository: 'http://a.b/c' is not the beginning of an image name; write a.b/c",
        ),
        ("podNetwork: {mtu: 100}", "podNetwork.mtu: 100 cannot be an MTU"),
        ("mirror: {endpoint: '10.0.0.5:5000'}", "mirror.endpoint: '10.0.0.5:5000' is not a URL"),
        ("loadBalancer: {mode: lokal}", "loadBalancer.mode: 'lokal' is not allowed; did you mean \"local\"?"),
        ("loadBalancer: {mode: local, image: 'a b'}", "loadBalancer.image: 'a b' is not an image name"),
        (
            "loadBalancer: {mode: local, healthPort: 6443}",
            "loadBalancer.healthPort: 6443 is the port of the API server",
        ),
        ("loadBalancer: {mode: local, healthPort: 70000}", "loadBalancer.healthPort: port 70000 does not exist"),
        ("soak: 2h", "soak: the soak lasts from 0s to 1h"),
        ("bundel: x.tar", 'unknown field "bundel"'),
        ("verifyKey: /k.pub", "a key without a bundle"),
        ("packages: {source: bundle}", "bundle, and no bundle is named"),
        ("packages: {source: mirror}", "mirror, and no mirror is named"),
        ("packages: {source: here}", "here"),
        ("packages: {preset: nowhere}", "there is no preset"),
        ("packages: {source: download}\nairGapped: true", "download beside airGapped"),
        ("mirror: {endpoint: 'https://m', caHash: 'sha256:12'}", "is not a pin of a CA"),
        ("mirror: {endpoint: 'http://m', caHash: 'sha256:" + "0" * 64 + "'}", "a pin without an https mirror"),
    ],
)
def test_rules_of_kbs_own_document(body: str, wanted: str) -> None:
    found = refuse(INIT + ADDRESS + "---\n" + KB + body + "\n")
    assert len(found) == 1, found
    assert found[0].startswith("init.yaml:7: ")
    assert wanted in found[0]


def test_what_follows_from_a_wrong_type_is_not_said_again() -> None:
    found = refuse(CLUSTER + "networking: {serviceSubnet: 5}\napiServer: {extraArgs: [{name: 7, value: a}]}\n")
    assert len(found) == 2


@pytest.mark.parametrize(
    "text", ["", "/8", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/255.0.0.0", "fe80::1%a/64", "010.0.0.0/8", "a/1"]
)
def test_what_is_no_cidr(text: str) -> None:
    assert parse_cidr(text) is None


@pytest.mark.parametrize("length", [53, 62, 63])
def test_a_node_s_name_of_up_to_63_characters_is_good(length: int) -> None:
    assert load(flags={**FLAGS, "node-name": "n" * length}).node.name == "n" * length


@pytest.mark.parametrize(
    ("name", "shorter"),
    [
        ("my-long-instance-name-0001.c.my-project-id-123456.internal.example", "my-long-instance-name-0001"),
        ("n" * 64, "n" * 54 + "-"),
        ("n" * 70 + ".example", "n" * 54 + "-"),
    ],
)
def test_a_longer_one_is_refused_with_a_shorter_proposal(name: str, shorter: str) -> None:
    (detail,) = refuse(flags={**FLAGS, "node-name": name})
    assert f"has {len(name)} characters" in detail and f"--node-name {shorter}" in detail
    proposal = detail.rpartition("--node-name ")[2].split()[0].rstrip(")")
    assert len(proposal) <= 63 and load(flags={**FLAGS, "node-name": proposal}).node.name == proposal


@pytest.mark.parametrize("name", ["{{ .Hostname }}", "${HOSTNAME}", "$(hostname)", "<node name>", "%NODE%"])
def test_a_template_that_nobody_filled_in_gets_no_proposal_made_of_it(name: str) -> None:
    (detail,) = refuse(flags={**FLAGS, "node-name": name})
    assert "template" in detail and "--node-name NAME" in detail


@pytest.mark.parametrize(
    ("networking", "told"),
    [
        ("serviceSubnet: 10.0.0.0/16", "10.0.0.0/16 holds this node's own address 10.0.0.11"),
        ("podSubnet: 10.0.0.0/16", "10.0.0.0/16 holds this node's own address 10.0.0.11"),
        ("podSubnet: 10.100.0.0/16", "10.100.0.0/16 overlaps the service subnet 10.96.0.0/12"),
    ],
)
def test_ranges_that_meet_are_told_and_taken(networking: str, told: str) -> None:
    """As kubeadm takes them: clusters run like this in great number."""
    config = load(f"{CLUSTER}networking: {{{networking}}}\n")
    assert any(told in warning for warning in config.warnings)


@pytest.mark.parametrize(
    ("endpoint", "told"),
    [
        (
            "https://api.example.com:6443",
            "'https://api.example.com:6443' is a URL; write it without https://: api.example.com:6443",
        ),
        ("https://api.example.com", "write it without https://: api.example.com"),
        ("http://10.0.0.1:6443/path", "write it without http://: 10.0.0.1:6443"),
        ("API.Example.com:6443", "write api.example.com"),
    ],
)
def test_an_endpoint_is_refused_with_the_form_that_would_be_right(endpoint: str, told: str) -> None:
    (detail,) = refuse(f"{CLUSTER}controlPlaneEndpoint: {endpoint}\n")
    assert told in detail


@pytest.mark.parametrize(
    ("socket", "taken"),
    [
        ("unix:///run/x.sock", "unix:///run/x.sock"),
        ("unix:/run/containerd/containerd.sock", "unix:///run/containerd/containerd.sock"),
        ("UNIX:///run/x.sock", "unix:///run/x.sock"),
        ("/run/x.sock", "unix:///run/x.sock"),
        ("unix:///run/x.sock ", "unix:///run/x.sock"),
    ],
)
def test_a_socket_in_every_form_that_kubeadm_takes(socket: str, taken: str) -> None:
    assert load(flags={**FLAGS, "cri-socket": socket}).node.cri_socket == taken


@pytest.mark.parametrize(
    "socket", ["unix:///run/x.sock/", "unix://", "unix:run/x.sock", "tcp://127.0.0.1:1", "unix:///a b"]
)
def test_what_is_no_socket_is_refused(socket: str) -> None:
    assert any("is not a socket" in detail for detail in refuse(flags={**FLAGS, "cri-socket": socket}))


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("::ffff:192.0.2.10", "192.0.2.10"),
        ("192.0.02.010", "192.0.2.10"),
        ("FD00::0010", "fd00::10"),
        ("fd00:0:0:0:0:0:0:10", "fd00::10"),
    ],
)
def test_an_address_is_taken_in_its_usual_form(given: str, taken: str) -> None:
    config = load(flags={"apiserver-advertise-address": given})
    assert config.local_api_endpoint.advertise_address == taken
    assert (":" in config.cluster.service_cidrs()[0]) is (":" in taken)


def test_extra_args_are_split_as_kubeadm_splits_them() -> None:
    given = "enable-admission-plugins=A,B,v=2,v=4"
    found = load(flags={**FLAGS, "apiserver-extra-args": given}).cluster.api_server.extra_args
    assert [(arg.name, arg.value) for arg in found] == [("enable-admission-plugins", "A,B"), ("v", "2"), ("v", "4")]
    for bad in ("feature-gates=A=true,B=false", "'v'=2", "=2"):
        (detail,) = refuse(flags={**FLAGS, "apiserver-extra-args": bad})
        assert "malformed key=value pair in flag value" in detail and "--config" in detail


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (
            "node-labels",
            "node.kubernetes.io/pool=a,my.kubelet.kubernetes.io/b=c,topology.kubernetes.io/zone=z,plain=,bare",
        ),
        ("node-labels", "kubernetes.io/hostname=a,beta.kubernetes.io/os=linux,example.com/k8s.io=1"),
        ("max-pods", "120"),
        ("application-metrics-count-limit", "10"),
    ],
)
def test_what_a_kubelet_takes_is_not_complained_about(name: str, value: str) -> None:
    config = load(INIT + f"nodeRegistration: {{kubeletExtraArgs: [{{name: {name}, value: '{value}'}}]}}\n")
    assert not [text for text in config.warnings if "kubeletExtraArgs" in text]


def test_a_flag_that_only_older_kubelets_of_the_cluster_have_is_told() -> None:
    """An older kubelet may run under a newer control plane: the check of the node decides."""
    body = "nodeRegistration: {kubeletExtraArgs: [{name: pod-infra-container-image, value: x}]}\n"
    (told,) = [text for text in load(INIT + body).warnings if "kubeletExtraArgs" in text]
    assert told.startswith("init.yaml:3: ")
    assert "kubelets from 1.35 on have no flag --pod-infra-container-image; leave it out" in told
    older = load(INIT + body + f"---\n{CLUSTER}kubernetesVersion: v1.34.2\n")
    assert not [text for text in older.warnings if "kubeletExtraArgs" in text]


def test_under_the_name_kubeadm_flags_of_the_kubelet_are_a_warning() -> None:
    body = "nodeRegistration: {kubeletExtraArgs: [{name: node-labels, value: node-role.kubernetes.io/worker=}]}\n"
    (told,) = [text for text in load(INIT + body, flags={"only-kubeadm": True}).warnings if "kubeletExtraArgs" in text]
    assert "may not give its node the label" in told
