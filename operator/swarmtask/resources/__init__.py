"""The kinds: one pydantic model each, the only source of CRDs, validation, defaults and documentation."""
