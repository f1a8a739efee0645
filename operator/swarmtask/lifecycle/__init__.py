"""The state machine of a task: events in, status and commands out. Pure: values and `now` in, values out."""
