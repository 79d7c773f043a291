"""The mask: kb under the name kubeadm."""
