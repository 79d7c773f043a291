"""What plays the world outside of a node: repositories, hosts of downloads, other networks, workloads."""
