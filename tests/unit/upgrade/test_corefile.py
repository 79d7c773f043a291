"""kubeup/upgrade/corefile.py: what CoreDNS no longer reads goes, what people wrote stays to the letter."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeup.cluster import addons
from kubeup.config.types import ClusterConfiguration, Networking
from kubeup.errors import ClusterError
from kubeup.releases import RELEASES
from kubeup.upgrade.corefile import BUILT_IN, Directive, migrate, parse_corefile

MINORS = sorted(RELEASES)
NEXT = list(zip(MINORS, MINORS[1:]))
CLUSTER = ClusterConfiguration("v1.35.6", networking=Networking(dns_domain="cluster.local"))

EDITED = """\
# ours, do not touch
.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa { # the cluster's zone
       pods insecure
       endpoint https://10.0.0.1:6443 https://10.0.0.2:6443
       upstream   # gone since 1.7
       resyncperiod 5m
       fallthrough in-addr.arpa ip6.arpa
       ttl 5
    }
    hosts {
       10.1.2.3 db.example.com
       fallthrough
    }
    template IN A "with a { brace } and \\" quote" {
       match "^x[.]example[.]com[.]$"
       answer "{{ .Name }} 60 IN A 10.9.8.7"
    }
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30
    loop
    reload
    loadbalance
}

(stub) {
    errors
    cache 30
}

example.com:53,
example.org:53 {
    import stub
    forward . 10.0.0.53
}
"""


def default(minor: int, domain: str = "cluster.local") -> str:
    cluster = ClusterConfiguration("v1.35.6", networking=Networking(dns_domain=domain))
    return addons.render_corefile(cluster, RELEASES[minor])


def shape(found: tuple[Directive, ...]) -> list[object]:
    return [(one.name, one.args, shape(one.options)) for one in found]


@pytest.mark.parametrize(("minor", "following"), NEXT)
def test_a_default_corefile_becomes_the_default_of_the_next_minor(minor: int, following: int) -> None:
    """It is migrated to itself, and since it is a default, it is replaced by the new one."""
    former, wanted = RELEASES[minor].coredns_tag, RELEASES[following].coredns_tag
    found = migrate(default(minor), former=former, wanted=wanted)
    assert found.text == default(minor) and found.changes == ()
    assert addons.is_default_corefile(found.text, CLUSTER)


@given(st.sampled_from(NEXT), st.integers(0, 40), st.sampled_from(["", "  ", "\t", " # x"]), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_default_corefile_that_is_only_spelled_otherwise_becomes_the_next_default_too(
    minors: tuple[int, int], at: int, spaces: str, is_indented: bool
) -> None:
    lines = default(minors[0]).splitlines()
    lines.insert(at % (len(lines) + 1), spaces)
    text = "\n".join("  " + line if is_indented else line for line in lines)
    found = migrate(text, former=RELEASES[minors[0]].coredns_tag, wanted=RELEASES[minors[1]].coredns_tag)
    assert found.text == text and addons.is_default_corefile(found.text, CLUSTER)


WORDS: st.SearchStrategy[str] = st.from_regex(r"[a-z0-9_.:/{}$#-]{1,8}", fullmatch=True).filter(
    lambda word: word not in ("{", "}", "import") and not word.startswith(("#", "("))
)
QUOTED = st.from_regex(r'"[a-z {}#]{0,6}"', fullmatch=True)
OPTION = st.lists(st.one_of(WORDS, QUOTED), min_size=1, max_size=4).map(" ".join)
PLUGIN = st.tuples(
    st.sampled_from(sorted(BUILT_IN - {"kubernetes", "health", "forward"})),
    st.lists(WORDS, max_size=2),
    st.lists(OPTION, max_size=3),
)
SERVER = st.tuples(WORDS, st.lists(PLUGIN, max_size=4))


def spell(servers: list[tuple[str, list[tuple[str, list[str], list[str]]]]]) -> str:
    text = ""
    for name, plugins in servers:
        text += f"{name} {{ # a comment\n"
        for plugin, args, options in plugins:
            inner = "".join(f"        {one}\n" for one in options)
            text += f"    {' '.join([plugin, *args])}" + (f" {{\n{inner}    }}\n" if options else "\n")
        text += "}\n"
    return text


@given(st.lists(SERVER, max_size=3), st.sampled_from(NEXT))
@settings(max_examples=200, deadline=None)
def test_what_needs_no_change_stays_to_the_letter(
    servers: list[tuple[str, list[tuple[str, list[str], list[str]]]]], minors: tuple[int, int]
) -> None:
    text = spell(servers)
    found = migrate(text, former=RELEASES[minors[0]].coredns_tag, wanted=RELEASES[minors[1]].coredns_tag)
    assert found.text == text and not found.changes
    read = parse_corefile(text)
    assert [one.name for one in read] == [name for name, _ in servers]
    assert [[one.name for one in server.options] for server in read] == [
        [plugin for plugin, _, _ in plugins] for _, plugins in servers
    ]
    assert [[len(one.options) for one in server.options] for server in read] == [
        [len(options) for _, _, options in plugins] for _, plugins in servers
    ]


def test_an_edited_corefile_keeps_its_edits_and_loses_what_coredns_lacks() -> None:
    found = migrate(EDITED, former="v1.12.1", wanted="v1.13.1")
    expected = EDITED.replace("       upstream   # gone since 1.7\n", "").replace("       resyncperiod 5m\n", "")
    expected = expected.replace(" https://10.0.0.2:6443", "")
    assert found.text == expected
    assert found.changes == (
        "kubernetes: resyncperiod was removed in CoreDNS 1.7.0: taken out",
        "kubernetes: upstream was removed in CoreDNS 1.7.0: taken out",
        "kubernetes: endpoint: CoreDNS has used the first argument alone since 1.4.0",
    )
    assert found.unread == ()
    assert migrate(found.text, former="v1.13.1", wanted="v1.14.2").text == found.text


@pytest.mark.parametrize(
    "written", ["health", "health {\n    }", "health {\n       # none\n    }", "health :8081 { }", "health {}"]
)
def test_what_is_new_by_default_is_added_where_it_became_the_default(written: str) -> None:
    text = f".:53 {{\n    {written}\n    kubernetes cluster.local\n    forward . 1.1.1.1 # up\n}}\n"
    if written == "health {}":
        text = text.replace("{}\n", "{\n    }\n")
    found = migrate(text, former="v1.4.0", wanted="v1.11.3")
    (server,) = parse_corefile(found.text)
    plugins = {one.name: one for one in server.options}
    assert list(plugins) == ["health", "kubernetes", "forward", "ready"]
    assert shape(plugins["health"].options) == [("lameduck", ("5s",), [])]
    assert shape(plugins["forward"].options) == [("max_concurrent", ("1000",), [])]
    assert len(found.changes) == 3
    again = migrate(found.text, former="v1.4.0", wanted="v1.11.3")
    assert again.text == found.text and again.changes == ()
    assert migrate(text, former="v1.11.3", wanted="v1.14.2").text == text, "somebody may have removed it on purpose"


def test_an_unknown_plugin_is_named() -> None:
    text = ".:53 {\n    errors\n    fanout . 1.1.1.1\n    ocp_dnsnameresolver\n}\n"
    with pytest.raises(ClusterError) as caught:
        migrate(text, former="v1.12.1", wanted="v1.13.1")
    assert caught.value.code == "corefile-plugin-unknown"
    assert "the plugins fanout, ocp_dnsnameresolver" in str(caught.value)
    assert "kubectl -n kube-system edit configmap coredns" in caught.value.remedy


def test_a_newer_coredns_is_not_taken_back() -> None:
    with pytest.raises(ClusterError) as caught:
        migrate(default(35), former="v1.14.3", wanted="v1.13.1")
    assert caught.value.code == "coredns-newer" and "v1.14.3" in caught.value.remedy


@pytest.mark.parametrize("tag", ["", "latest", "v1.13.1-custom"])
def test_a_tag_that_is_no_version_of_coredns_s_changes_nothing_by_default(tag: str) -> None:
    assert migrate(default(34), former=tag, wanted="v1.13.1").text == default(34)


def test_files_that_it_imports_are_named() -> None:
    text = "import /etc/coredns/custom/*.server\n.:53 {\n    errors\n    import /etc/coredns/custom/*.override\n}\n"
    found = migrate(text, former="v1.12.1", wanted="v1.13.1")
    assert found.unread == ("/etc/coredns/custom/*.server", "/etc/coredns/custom/*.override")


@pytest.mark.parametrize("text", [".:53 {\n    errors\n", "errors\nlog\n", "}\n", ".:53 {\n  kubernetes {\n}\n"])
def test_a_broken_corefile_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(ClusterError, match=r"line \d+ of the Corefile") as caught:
        parse_corefile(text)
    assert caught.value.code == "corefile-unreadable"


def test_a_block_on_one_line_loses_only_the_option() -> None:
    text = ".:53 {\n    kubernetes cluster.local {\n        upstream\n        ttl 5 }\n    errors }\n"
    found = migrate(text, former="v1.12.1", wanted="v1.13.1")
    assert re.sub(r"\s+", " ", found.text).strip() == ".:53 { kubernetes cluster.local { ttl 5 } errors }"
