"""The pod network (bridge, routes between nodes, stepping aside for another network), and the load balancer of a node."""
