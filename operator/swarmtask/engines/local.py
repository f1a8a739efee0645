"""Local processes: one child process group per attempt."""
