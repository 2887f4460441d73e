"""What the operator shows in the status of objects, from published allocations: values in, merge patches out. Pure."""
