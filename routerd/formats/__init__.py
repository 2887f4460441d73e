"""Translation at the edge: what users bring (YAML of several families) becomes `routerd.model`, and nothing behind it asks whence."""
