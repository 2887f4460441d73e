"""Translation at the edge: what users bring (YAML of several families) becomes `routerd.model`."""
