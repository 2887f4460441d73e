"""Pools and the allocator. Knows neither Kubernetes, nor YAML, nor what its addresses are used for."""
