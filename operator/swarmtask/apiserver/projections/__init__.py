"""What is served and not stored: SwarmNodes as Nodes, attempts as Pods, their metrics, logs and Events."""
