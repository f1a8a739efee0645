"""The control loops of the operator: kopf intake, cache, scheduling, executor, observer, nodes, queues."""
