"""The `swarmtask` command: commands without logic of their own."""
