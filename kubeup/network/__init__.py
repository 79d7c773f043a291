"""The pods' network: the bridge, the routes between nodes, the load balancer, stepping aside for another network."""
