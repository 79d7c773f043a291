"""What is on a node: keys and certificates, kubeconfigs, static pods, the kubelet's files, the container runtime."""
