"""What the API and etcd hold, and how both are asked."""
