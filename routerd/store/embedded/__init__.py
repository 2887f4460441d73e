"""The store without Kubernetes: a directory of manifests, documents on disk, the operator's SQLite ledger."""
