"""The eBPF datapath: C sources, the mirrors of their types, and the loader. Imports no other room."""
