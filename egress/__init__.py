"""Egress policies, gateway choice, map entries and attach points. Knows neither Kubernetes, nor YAML, nor BGP."""
