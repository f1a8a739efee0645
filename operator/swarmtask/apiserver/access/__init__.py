"""Who may do what: identities, roles, tokens, the audit log, Secrets at rest. Called by application, object service and store."""
