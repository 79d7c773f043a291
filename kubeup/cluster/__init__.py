"""What the Kubernetes API and etcd hold, and the clients for both."""
