"""What of a finished node, and of its cluster, is not as kb or kubeadm left it."""
