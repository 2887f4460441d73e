"""The fake cloud as Azure: Resource Manager and the metadata service."""
