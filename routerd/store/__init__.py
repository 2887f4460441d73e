"""Stores: where desired objects come from and where allocations go. Nothing else knows which store is in use."""
