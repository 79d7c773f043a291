"""Kubeconfigs as people have them, whole and not: each with the same server, so that whoever reads one can say that he did."""

from __future__ import annotations

import base64

SERVER = "https://127.0.0.1:1"


def make_forms(ca_pem: str, cert_pem: str, key_pem: str) -> dict[str, str]:
    """By name. Files ca.crt, c.crt, c.key and token lie beside each."""
    ca, cert, key = (base64.b64encode(text.encode()).decode() for text in (ca_pem, cert_pem, key_pem))
    cluster = f'{{server: "{SERVER}", certificate-authority-data: {ca}}}'

    def config(
        *,
        clusters: str = f"[{{name: a, cluster: {cluster}}}]",
        user: str = "{token: t}",
        users: str = "",
        contexts: str = "[{name: c, context: {cluster: a, user: u}}]",
        current: str = "current-context: c\n",
        head: str = "apiVersion: v1\nkind: Config\n",
        more: str = "",
    ) -> str:
        users = users or f"[{{name: u, user: {user}}}]"
        return f"{head}clusters: {clusters}\nusers: {users}\ncontexts: {contexts}\n{current}{more}"

    def with_cluster(text: str) -> str:
        return config(clusters=f"[{{name: a, cluster: {text}}}]")

    def with_server(text: str) -> str:
        return with_cluster(f"{{server: {text}, certificate-authority-data: {ca}}}")

    folded = "\n".join([" " * 8 + ca[at : at + 76] for at in range(0, len(ca), 76)])
    plugin = "apiVersion: client.authentication.k8s.io/v1, command: ./plugin, interactiveMode: Never"
    return {
        "plain": config(),
        "empty": "",
        "blanks": "\n  \n",
        "a comment": "# nothing\n",
        "null": "null\n",
        "empty mapping": "{}\n",
        "a list": "[]\n",
        "a text": "hello\n",
        "not YAML": "a: [\n",
        "tab": config().replace("users: ", "users:\t"),
        "CRLF": config().replace("\n", "\r\n"),
        "mark of the byte order": "\ufeff" + config(),
        "a second document": config() + "---\nkind: Other\n",
        "marker before": "---\n" + config(),
        "empty document before": "---\n---\n" + config(),
        "no kind": config(head="apiVersion: v1\n"),
        "no apiVersion": config(head="kind: Config\n"),
        "neither": config(head=""),
        "another kind": config(head="apiVersion: v1\nkind: Secret\n"),
        "kind in small letters": config(head="apiVersion: v1\nkind: config\n"),
        "another apiVersion": config(head="apiVersion: v2\nkind: Config\n"),
        "apiVersion of a group": config(head="apiVersion: client/v1\nkind: Config\n"),
        "kind null": config(head="apiVersion: v1\nkind:\n"),
        "kind a number": config(head="apiVersion: v1\nkind: 5\n"),
        "apiVersion a number": config(head="apiVersion: 1\nkind: Config\n"),
        "clusters null": config(clusters="null"),
        "clusters empty": config(clusters="[]"),
        "clusters a mapping": config(clusters=f"{{a: {cluster}}}"),
        "a cluster null": config(clusters=f"[null, {{name: a, cluster: {cluster}}}]"),
        "a cluster a text": config(clusters="[a]"),
        "users null": config(users="null"),
        "contexts null": config(contexts="null"),
        "contexts empty": config(contexts="[]"),
        "cluster without a name": config(
            clusters=f"[{{cluster: {cluster}}}]", contexts="[{name: c, context: {user: u}}]"
        ),
        "unnamed cluster alone": config(
            clusters=f"[{{name: '', cluster: {cluster}}}]", users="[]", contexts="[]", current="current-context: ''\n"
        ),
        "name a number": config(clusters=f"[{{name: 5, cluster: {cluster}}}]"),
        "name null": config(clusters=f"[{{name: null, cluster: {cluster}}}]"),
        "entry null": with_cluster("null"),
        "entry missing": config(clusters="[{name: a}]"),
        "entry a text": with_cluster("x"),
        "doubled cluster": config(
            clusters=f"[{{name: a, cluster: {cluster}}}, {{name: a, cluster: {{server: 'https://x'}}}}]"
        ),
        "doubled user": config(users="[{name: u, user: {token: t}}, {name: u, user: {token: s}}]"),
        "doubled context": config(
            contexts="[{name: c, context: {cluster: a, user: u}}, {name: c, context: {cluster: b, user: u}}]"
        ),
        "doubled names, unused": config(
            users="[{name: u, user: {token: t}}, {name: v, user: {}}, {name: v, user: {}}]"
        ),
        "doubled key": config(more="current-context: c\n"),
        "doubled key, the last counts": config(current="current-context: x\n", more="current-context: c\n"),
        "other users and clusters": config(
            users="[{name: u, user: {token: t}}, {name: v, user: {password: 'x'}}]",
            clusters=f"[{{name: a, cluster: {cluster}}}, {{name: b, cluster: {{}}}}]",
        ),
        "no current-context": config(current=""),
        "current-context empty": config(current="current-context: ''\n"),
        "current-context null": config(current="current-context:\n"),
        "current-context of nothing": config(current="current-context: x\n"),
        "current-context a number": config(current="current-context: 5\n"),
        "current-context with a blank": config(current="current-context: 'c '\n"),
        "context of no cluster": config(contexts="[{name: c, context: {cluster: x, user: u}}]"),
        "context of no user": config(contexts="[{name: c, context: {cluster: a, user: x}}]"),
        "context without a cluster": config(contexts="[{name: c, context: {user: u}}]"),
        "context without a user": config(contexts="[{name: c, context: {cluster: a}}]"),
        "context empty": config(contexts="[{name: c}]"),
        "namespace": config(contexts="[{name: c, context: {cluster: a, user: u, namespace: kube-system}}]"),
        "namespace odd": config(contexts="[{name: c, context: {cluster: a, user: u, namespace: A_B}}]"),
        "namespace a number": config(contexts="[{name: c, context: {cluster: a, user: u, namespace: 5}}]"),
        "no server": with_cluster("{}"),
        "server null": with_server("null"),
        "server empty": with_server("''"),
        "server a number": with_server("5"),
        "server in another case of letters": with_cluster(f"{{Server: '{SERVER}', certificate-authority-data: {ca}}}"),
        "server without a scheme": with_server("127.0.0.1:1"),
        "server plain": with_server("http://127.0.0.1:1"),
        "server with a path": with_server(f"{SERVER}/k8s/clusters/c-1"),
        "server with a slash": with_server(f"{SERVER}/"),
        "server of another scheme": with_server("ftp://127.0.0.1:1"),
        "server with a blank": with_server(f"'{SERVER} '"),
        "unknown fields": config(
            clusters=f"[{{name: a, colour: red, cluster: {cluster[:-1]}, colour: red}}}}]", more="colour: red\n"
        ),
        "preferences": config(more="preferences: {colors: true}\n"),
        "preferences null": config(more="preferences: null\n"),
        "preferences a text": config(more="preferences: x\n"),
        "colors a text": config(more="preferences: {colors: 'yes'}\n"),
        "extensions": config(more="extensions: [{name: x, extension: {a: 1}}]\n"),
        "extensions of a cluster": with_cluster(
            cluster[:-1] + ", extensions: [{name: minikube.sigs.k8s.io, extension: {last-update: x}}]}"
        ),
        "extensions doubled": config(more="extensions: [{name: x, extension: {}}, {name: x, extension: {}}]\n"),
        "extensions a text": config(more="extensions: x\n"),
        "extension null": config(more="extensions: [{name: x, extension: null}]\n"),
        "extension a text": config(more="extensions: [{name: x, extension: y}]\n"),
        "no authority": with_cluster(f"{{server: '{SERVER}'}}"),
        "authority by path": with_cluster(f"{{server: '{SERVER}', certificate-authority: ca.crt}}"),
        "authority by path with dots": with_cluster(f"{{server: '{SERVER}', certificate-authority: ./x/../ca.crt}}"),
        "authority's path of nothing": with_cluster(f"{{server: '{SERVER}', certificate-authority: nowhere.crt}}"),
        "authority's path of no PEM": with_cluster(f"{{server: '{SERVER}', certificate-authority: token}}"),
        "authority by both": with_cluster(cluster[:-1] + ", certificate-authority: ca.crt}"),
        "authority by both, path of nothing": with_cluster(cluster[:-1] + ", certificate-authority: nowhere.crt}"),
        "authority's data empty": with_cluster(f"{{server: '{SERVER}', certificate-authority-data: ''}}"),
        "authority's data null": with_cluster(f"{{server: '{SERVER}', certificate-authority-data: null}}"),
        "authority's data a number": with_cluster(f"{{server: '{SERVER}', certificate-authority-data: 5}}"),
        "authority's data a list": with_cluster(f"{{server: '{SERVER}', certificate-authority-data: [1, 2]}}"),
        "authority's data no base64": with_cluster(f"{{server: '{SERVER}', certificate-authority-data: '###'}}"),
        "authority's data PEM": with_cluster(
            f"{{server: '{SERVER}', certificate-authority-data: {ca_pem!r}}}".replace("'", '"')
        ),
        "authority's data no PEM": with_cluster(f"{{server: '{SERVER}', certificate-authority-data: aGVsbG8=}}"),
        "data with newlines": config(
            clusters=f"\n- name: a\n  cluster:\n    server: {SERVER}\n    certificate-authority-data: |\n{folded}\n"
        ),
        "data folded": config(
            clusters=f"\n- name: a\n  cluster:\n    server: {SERVER}\n    certificate-authority-data: >-\n{folded}\n"
        ),
        "data with a tab": with_cluster(f'{{server: "{SERVER}", certificate-authority-data: "{ca[:8]}\\t{ca[8:]}"}}'),
        "data with \\r\\n": with_cluster(
            f'{{server: "{SERVER}", certificate-authority-data: "{ca[:8]}\\r\\n{ca[8:]}"}}'
        ),
        "data without padding": with_cluster(f"{{server: '{SERVER}', certificate-authority-data: {ca.rstrip('=')}A}}"),
        "data padded too much": with_cluster(
            f"{{server: '{SERVER}', certificate-authority-data: {ca.rstrip('=')}====}}"
        ),
        "insecure": with_cluster(f"{{server: '{SERVER}', insecure-skip-tls-verify: true}}"),
        "insecure and authority": with_cluster(cluster[:-1] + ", insecure-skip-tls-verify: true}"),
        "insecure a text": with_cluster(f"{{server: '{SERVER}', insecure-skip-tls-verify: 'true'}}"),
        "insecure yes": with_cluster(f"{{server: '{SERVER}', insecure-skip-tls-verify: yes}}"),
        "tls-server-name": with_cluster(cluster[:-1] + ", tls-server-name: api.example.com}"),
        "proxy": with_cluster(cluster[:-1] + ", proxy-url: 'http://127.0.0.1:2'}"),
        "proxy empty": with_cluster(cluster[:-1] + ", proxy-url: ''}"),
        "proxy without a scheme": with_cluster(cluster[:-1] + ", proxy-url: '127.0.0.1:2'}"),
        "proxy of another scheme": with_cluster(cluster[:-1] + ", proxy-url: 'ftp://127.0.0.1:2'}"),
        "disable-compression": with_cluster(cluster[:-1] + ", disable-compression: true}"),
        "user null": config(user="null"),
        "user empty": config(user="{}"),
        "token empty": config(user="{token: ''}"),
        "token a number": config(user="{token: 5}"),
        "token with a newline": config(user='{token: "t\\n"}'),
        "tokenFile": config(user="{tokenFile: token}"),
        "tokenFile of nothing": config(user="{tokenFile: nowhere}"),
        "token and tokenFile": config(user="{token: t, tokenFile: token}"),
        "token_file": config(user="{token-file: token}"),
        "certificate": config(user=f"{{client-certificate-data: {cert}, client-key-data: {key}}}"),
        "certificate by path": config(user="{client-certificate: c.crt, client-key: c.key}"),
        "certificate by path, key as data": config(user=f"{{client-certificate: c.crt, client-key-data: {key}}}"),
        "certificate's path of nothing": config(user="{client-certificate: nowhere, client-key: c.key}"),
        "key's path of nothing": config(user="{client-certificate: c.crt, client-key: nowhere}"),
        "certificate by both": config(
            user=f"{{client-certificate: c.crt, client-certificate-data: {cert}, client-key-data: {key}}}"
        ),
        "key by both": config(user=f"{{client-certificate-data: {cert}, client-key-data: {key}, client-key: c.key}}"),
        "certificate without a key": config(user=f"{{client-certificate-data: {cert}}}"),
        "key without a certificate": config(user=f"{{client-key-data: {key}}}"),
        "certificate and another's key": config(user=f"{{client-certificate-data: {ca}, client-key-data: {key}}}"),
        "certificate and token": config(user=f"{{client-certificate-data: {cert}, client-key-data: {key}, token: t}}"),
        "name and password": config(user="{username: a, password: b}"),
        "name alone": config(user="{username: a}"),
        "password a number": config(user="{username: a, password: 5}"),
        "token and password": config(user="{token: t, username: a, password: b}"),
        "as another": config(user="{token: t, as: b, as-groups: [g], as-uid: x, as-user-extra: {k: [v]}}"),
        "groups of nobody": config(user="{token: t, as-groups: [g]}"),
        "groups a text": config(user="{token: t, as: b, as-groups: g}"),
        "auth-provider": config(user="{auth-provider: {name: oidc, config: {id-token: x}}}"),
        "auth-provider unknown": config(user="{auth-provider: {name: x}}"),
        "plugin without an apiVersion": config(user="{exec: {command: ./plugin, interactiveMode: Never}}"),
        "plugin without a mode": config(user=f"{{exec: {{{plugin.rpartition(',')[0]}}}}}"),
        "plugin of an odd mode": config(user=f"{{exec: {{{plugin.replace('Never', 'Now')}}}}}"),
        "plugin without a command": config(user=f"{{exec: {{{plugin.replace('./plugin', '')}}}}}"),
        "plugin and auth-provider": config(user=f"{{exec: {{{plugin}}}, auth-provider: {{name: oidc}}}}"),
        "plugin of an unknown apiVersion": config(user=f"{{exec: {{{plugin.replace('/v1', '/v9')}}}}}"),
        "plugin's env without a name": config(user=f"{{exec: {{{plugin}, env: [{{value: x}}]}}}}"),
        "plugin's args a text": config(user=f"{{exec: {{{plugin}, args: x}}}}"),
        "plugin": config(user=f"{{exec: {{{plugin}, args: [x], env: [{{name: A, value: b}}]}}}}"),
        "plugin, older": config(user="{exec: {apiVersion: client.authentication.k8s.io/v1beta1, command: ./plugin}}"),
        "plugin in PATH": config(user=f"{{exec: {{{plugin.replace('./plugin', 'true')}}}}}"),
        "plugin of nothing": config(
            user=f"{{exec: {{{plugin.replace('./plugin', './nowhere')}, installHint: get it}}}}"
        ),
        "plugin and token": config(user=f"{{token: t, exec: {{{plugin}}}}}"),
        "JSON": "",
    }
