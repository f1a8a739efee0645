"""The embedded Kubernetes-compatible API on SQLite."""
