"""Who speaks to which cloud: for each a dialect, which is pure, and a module that alone imports its SDK."""
