"""KubeletConfiguration and KubeProxyConfiguration have the types of their Go structs, all the way down."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubeup.cluster.addons import render_kube_proxy_config
from kubeup.commands import config_documents as config_commands
from kubeup.config import schema
from kubeup.config.documents import parse_documents
from kubeup.config.problems import Problems
from kubeup.errors import UsageError
from kubeup.machine.local_host import LocalHost
from kubeup.node.kubelet import render_kubelet_config
from kubeup.releases import RELEASES
from kubeup.yaml_files import dump_yaml
from tests.unit.config_case import CLUSTER, FLAGS, load, refuse
from tests.unit.golden import golden_config

KUBELET = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n"
PROXY = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


def problems_of(text: str) -> list[str]:
    problems = Problems()
    parse_documents(text, "init.yaml", problems=problems)
    return [problem.text for problem in problems.items]


def warnings_of(text: str) -> list[str]:
    problems = Problems()
    parse_documents(text, "init.yaml", problems=problems)
    assert not problems.items
    return problems.warnings


WRONG = [
    ("kubeReserved: {cpu: 1}", 'kubeReserved.cpu: must be a text, not the number 1; put it in quotes: "1"'),
    ("systemReserved: {memory: 129e6}", "systemReserved.memory: must be a text, not the number 129e6"),
    ("evictionHard: {memory.available: 5}", "evictionHard.memory.available: must be a text, not the number 5"),
    ("evictionSoftGracePeriod: {memory.available: 90}", "must be a text, not the number 90"),
    ("qosReserved: {memory: [a]}", "qosReserved.memory: must be a text, not a list"),
    ('featureGates: {X: "true"}', 'featureGates.X: must be true or false, not the text "true"; write true without quotes'),
    ("featureGates: [X]", "featureGates: must be a mapping, not a list"),
    ("authentication: {anonymous: {enabled: 0}}", "authentication.anonymous.enabled: must be true or false, not the number 0"),
    ("authentication: {webhook: {cacheTTL: 120}}", 'must be a duration such as 90s, 4m0s or 24h, not the number 120; give the unit: "120s"'),
    ("authentication: {x509: ca.crt}", "authentication.x509: must be a mapping, not the text"),
    ("authorization: {mode: [Webhook]}", "authorization.mode: must be a text, not a list"),
    ("logging: {verbosity: -1}", "logging.verbosity: must be a whole number from 0 to 4294967295, not the number -1"),
    ("logging: {vmodule: [{filePattern: a, verbosity: '2'}]}", "logging.vmodule[0].verbosity: must be a whole number"),
    ("logging: {flushFrequency: soon}", "logging.flushFrequency: must be a duration such as 5s, or a whole number"),
    ("logging: {options: {json: {infoBufferSize: many}}}", "logging.options.json.infoBufferSize: must be a quantity"),
    ("logging: {options: {text: {splitStream: 1}}}", "logging.options.text.splitStream: must be true or false"),
    ("memorySwap: {swapBehavior: true}", "memorySwap.swapBehavior: must be a text, not the truth value"),
    ("reservedMemory: [{numaNode: a, limits: {memory: 1Gi}}]", "reservedMemory[0].numaNode: must be a whole number"),
    ("reservedMemory: [{numaNode: 0, limits: {memory: 1 Gi}}]", "reservedMemory[0].limits.memory: must be a quantity"),
    ("shutdownGracePeriodByPodPriority: [{priority: high}]", "shutdownGracePeriodByPodPriority[0].priority: must be a whole"),
    ("shutdownGracePeriodByPodPriority: {priority: 1}", "must be a list, not a mapping"),
    ("registerWithTaints: [{key: a, effect: 1}]", "registerWithTaints[0].effect: must be a text"),
    ("crashLoopBackOff: {maxContainerRestartPeriod: 30}", "crashLoopBackOff.maxContainerRestartPeriod: must be a duration"),
    ("tracing: {samplingRatePerMillion: 1.5}", "tracing.samplingRatePerMillion: must be a whole number"),
    ("userNamespaces: {idsPerPod: '65536'}", "userNamespaces.idsPerPod: must be a whole number of 64 bits"),
    ("staticPodURLHeader: {Accept: a}", "staticPodURLHeader.Accept: must be a list, not the text"),
    ("staticPodURLHeader: {Accept: [1]}", "staticPodURLHeader.Accept[0]: must be a text, not the number 1"),
    ("tlsCipherSuites: [1]", "tlsCipherSuites[0]: must be a text"),
    ("maxPods: 2147483648", "maxPods: must be a whole number from -2147483648 to 2147483647, not the number 2147483648"),
    ("maxPods: 110.5", "maxPods: must be a whole number"),
    ("clusterDNS: 10.96.0.10", "clusterDNS: must be a list, not the text"),
    ("syncFrequency: ''", "syncFrequency: must be a duration"),
]  # fmt: skip
WRONG_PROXY = [
    ('ipvs: {strictARP: "true"}', "ipvs.strictARP: must be true or false"),
    ("ipvs: {syncPeriod: 30}", 'ipvs.syncPeriod: must be a duration such as 90s, 4m0s or 24h, not the number 30; give the unit: "30s"'),
    ("ipvs: {excludeCIDRs: 10.0.0.0/8}", "ipvs.excludeCIDRs: must be a list"),
    ("iptables: {masqueradeBit: '14'}", "iptables.masqueradeBit: must be a whole number"),
    ("nftables: {masqueradeAll: 1}", "nftables.masqueradeAll: must be true or false"),
    ("conntrack: {min: 1.5}", "conntrack.min: must be a whole number"),
    ("conntrack: {tcpEstablishedTimeout: 0}", "conntrack.tcpEstablishedTimeout: must be a duration"),
    ("clientConnection: {qps: fast}", "clientConnection.qps: must be a number"),
    ("detectLocal: {bridgeInterface: 1}", "detectLocal.bridgeInterface: must be a text"),
    ("winkernel: {enableDSR: y'}", "winkernel.enableDSR: must be true or false"),
    ("featureGates: {A: 1}", "featureGates.A: must be true or false"),
    ("nodePortAddresses: primary", "nodePortAddresses: must be a list"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("head", "body", "problem"),
    [(KUBELET, *row) for row in WRONG] + [(PROXY, *row) for row in WRONG_PROXY],
)
def test_a_value_of_another_type_is_named_with_its_line_and_path(head: str, body: str, problem: str) -> None:
    [found] = problems_of(head + body + "\n")
    assert found.startswith("init.yaml:3: ")
    assert problem in found


RIGHT = """\
featureGates: {X: true, Z: off}
kubeReserved: {cpu: "1", memory: 1Gi}
logging: {flushFrequency: 5000000000, verbosity: 0, options: {json: {infoBufferSize: 0}, text: {infoBufferSize: 1.5Ki}}}
reservedMemory: [{numaNode: 0, limits: {memory: 1Gi, hugepages-2Mi: 2, x: 1e3, z: 1.5}}]
authentication: {webhook: {cacheTTL: 2m0s}, anonymous: {enabled: }}
maxPods: 1e2
memoryThrottlingFactor: 1
registerWithTaints: [{key: a, effect: NoSchedule, timeAdded: 2030-01-31T12:00:00Z}]
staticPodURLHeader: {Accept: [a]}
clusterDNS:
"""


def test_what_go_takes_passes_through_as_it_is() -> None:
    assert (
        warnings_of(KUBELET + RIGHT + "---\n" + PROXY + "clientConnection: {qps: 5, burst: 10}\nconntrack: {min: }\n")
        == []
    )
    config = load(CLUSTER + "---\n" + KUBELET + RIGHT)
    assert config.kubelet["featureGates"] == {"X": True, "Z": False}
    assert config.kubelet["reservedMemory"] == [
        {"numaNode": 0, "limits": {"memory": "1Gi", "hugepages-2Mi": 2, "x": 1000, "z": 1.5}}
    ]
    assert config.kubelet["maxPods"] == 100


def test_all_wrong_values_end_an_init_at_once() -> None:
    found = refuse(CLUSTER + "---\n" + KUBELET + "\n".join(row[0] for row in WRONG[:1] + WRONG[4:6]) + "\n---\n" + PROXY + WRONG_PROXY[0][0])  # fmt: skip
    assert [line.split(": ")[1] for line in found] == ["kubeReserved.cpu", "qosReserved.memory", "featureGates.X", "ipvs.strictARP"]  # fmt: skip


def test_an_unknown_field_below_the_top_is_a_warning() -> None:
    [warning] = warnings_of(KUBELET + "authentication:\n  anonymous: {enabld: true}\n")
    assert warning.startswith("init.yaml:4: KubeletConfiguration has no field")
    assert 'did you mean "enabled"?' in warning


@pytest.mark.parametrize(("version", "count"), [("v1.31.9", 3), ("v1.32.9", 1), ("v1.33.9", 0)])
def test_a_field_that_the_minor_does_not_have_yet_is_told(version: str, count: int) -> None:
    body = "crashLoopBackOff: {maxContainerRestartPeriod: 30s}\nsingleProcessOOMKill: true\nuserNamespaces: {idsPerPod: 65536}\n"
    flags = {**FLAGS, "kubernetes-version": version}
    text = CLUSTER + f"kubernetesVersion: {version}\n---\n" + KUBELET + body
    del flags["kubernetes-version"], flags["apiserver-advertise-address"]
    warnings = [line for line in load(text, flags=flags).warnings if "has no such field" in line]
    assert len(warnings) == count
    assert all(line.startswith("init.yaml:") and version in line for line in warnings)


@pytest.mark.parametrize("minor", RELEASES)
def test_what_kb_itself_writes_has_these_types(minor: int) -> None:
    config, release = golden_config(minor), RELEASES[minor]
    for document in (
        render_kubelet_config(config, release, resolv_conf="/r").document,
        render_kube_proxy_config(config),
    ):
        assert warnings_of(dump_yaml(dict(document))) == []
        body = {name: value for name, value in document.items() if name not in ("apiVersion", "kind")}
        assert schema.find_newer_fields(str(document["kind"]), body, minor=minor) == []


KUBELET_WOULD_NOT_START = [
    ('kubeReserved: {memory: "1 Gi"}', "kubeReserved.memory: '1 Gi' is no quantity", 'write "1Gi"'),
    ('systemReserved: {memory: "1GB"}', "systemReserved.memory: '1GB' is no quantity", 'write "1Gi"'),
    ('kubeReserved: {cpu: "-1"}', "kubeReserved.cpu: a negative amount", "0 or more"),
    ("kubeReserved: {storage: 1Gi}", "kubeReserved.storage: the kubelet knows no storage", "ephemeral-storage"),
    ('evictionHard: {memory.available: "100 Mi"}', "evictionHard.memory.available: '100 Mi' is no quantity", 'write "100Mi"'),
    ('evictionHard: {memory.available: "5 %"}', "'5 %' is not a percentage", "no blank"),
    ('evictionHard: {memory.available: "101%"}', "'101%' is not a percentage", "from 0 to 100"),
    ('evictionHard: {memory.available: "0"}', "a threshold of nothing", '"0%"'),
    ("evictionHard: {memory.free: 5%}", "the kubelet knows no memory.free", "memory.available"),
    ("evictionSoft: {memory.available: 5%}", "a soft threshold without a grace period", "evictionSoftGracePeriod"),
    ('evictionSoftGracePeriod: {memory.available: "90"}', "'90' is no duration", '"90s"'),
    ("evictionMinimumReclaim: {nodefs.available: some}", "'some' is no quantity", "512Mi"),
    ('qosReserved: {memory: "50"}', "'50' is not a percentage", '"10%"'),
    ("hairpinMode: hairpin", "hairpinMode: 'hairpin' is none of", "hairpin-veth"),
    ("memorySwap: {swapBehavior: limitedSwap}", "memorySwap.swapBehavior: 'limitedSwap' is none of", "LimitedSwap"),
    ("topologyManagerPolicy: restrict", "is none of none, best-effort", "restricted"),
    ("maxPods: -1", "maxPods: -1 is out of range", "0 or more"),
    ("containerLogMaxFiles: 1", "containerLogMaxFiles: 1 is out of range", "2 or more"),
    ("readOnlyPort: 70000", "readOnlyPort: 70000 is out of range", "from 0 to 65535"),
    ("imageGCHighThresholdPercent: 60", "images are cleaned from 60 percent down to 80", "below the high one"),
    ("enforceNodeAllocatable: [pod]", "enforceNodeAllocatable[0]: 'pod' cannot be enforced", "pods"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "what", "remedy"), KUBELET_WOULD_NOT_START)
def test_a_value_with_which_the_kubelet_does_not_start_is_told(line: str, what: str, remedy: str) -> None:
    """Each was given to a kubelet of 1.35, or stands in its sources; kubeadm says nothing and waits."""
    text = f"{CLUSTER}---\n{KUBELET}{line}\n"
    (found,) = refuse(text)
    assert what in found and remedy in found and "the kubelet does not start" in found
    assert load(text, flags={"only-kubeadm": True}).kubelet


@pytest.mark.parametrize(
    "line",
    [
        "kubeReserved: {cpu: 100m, memory: 1.5Gi, ephemeral-storage: '1e9', pid: '100'}",
        "evictionHard: {memory.available: 0%, nodefs.available: 100%, imagefs.inodesFree: 5.5%, pid.available: '10'}",
        "evictionSoft: {memory.available: 500Mi}\nevictionSoftGracePeriod: {memory.available: 1m30s}",
        "imageGCHighThresholdPercent: 70\nimageGCLowThresholdPercent: 60\nmaxPods: 0\nnodeStatusMaxImages: -1",
        "enforceNodeAllocatable: [pods, kube-reserved]\nkubeReservedCgroup: /a\nmemorySwap: {swapBehavior: ''}",
        'reservedMemory: [{numaNode: 0, limits: {memory: " 1Gi "}}]',
    ],
)
def test_a_value_that_the_kubelet_takes_is_taken(line: str) -> None:
    assert load(f"{CLUSTER}---\n{KUBELET}{line}\n").kubelet


def test_config_validate_as_kubeadm_is_as_strict_as_kubeadm_and_no_stricter(tmp_path: Path) -> None:
    def validate(line: str) -> list[str]:
        (tmp_path / "init.yaml").write_text(f"{CLUSTER}---\n{KUBELET}{line}\n")
        return config_commands.validate_config_file(LocalHost(), tmp_path / "init.yaml", as_kubeadm=True)

    with pytest.raises(UsageError, match="a problem") as caught:
        validate("registerWithTaints: [{key: a, effect: NoSchedule, foo: b}]")
    assert "unknown field" in str(caught.value.details)
    assert any("the kubelet does not start" in line for line in validate("maxPods: -1"))
