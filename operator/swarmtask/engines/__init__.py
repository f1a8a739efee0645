"""Engines: what runs attempts. `base` is the contract; each other module adapts one system to it."""
