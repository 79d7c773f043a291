"""The checks of a node: one module a subject, and one table (table.py) that preflight and doctor share.

Own what a fit node is: what each check looks at, what is an error and what a warning, and the one thing to do. A check only
looks; ImagePull alone changes the node. Mirror cmd/kubeadm/app/preflight/checks.go and k8s.io/system-validators.

kb is stricter than kubeadm where kubeadm warns of what then fails (Swap, a missing kubelet unit, a cgroup driver
mismatch), and forgiving towards what an unfinished run of its own left behind.
"""
