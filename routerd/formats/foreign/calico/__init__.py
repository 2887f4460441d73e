"""Calico's kinds (projectcalico.org/v3, kept as crd.projectcalico.org/v1): pools, peers, filters of routes. Pure."""
