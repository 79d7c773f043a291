"""The checks of a node: one module per subject, and one table (table.py) that preflight and doctor share.

Own the definition of a fit node: what each check examines, what is an error and what a warning, and the one thing to
do. A check only reads; ImagePull alone changes the node. Mirror cmd/kubeadm/app/preflight/checks.go and
k8s.io/system-validators.

kb is stricter than kubeadm where kubeadm only warns of something that then fails (Swap, a missing kubelet unit, a
cgroup driver mismatch), and tolerates what its own unfinished run left behind.
"""
