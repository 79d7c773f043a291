"""What lies on a node: keys and certificates, kubeconfigs, static pods, the kubelet's files, the runtime."""
