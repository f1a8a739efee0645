"""Docker Swarm: one service per attempt."""
