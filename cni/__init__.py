"""The chained CNI plugin: the program (C), how it speaks with the agent, and its place in a node's configuration."""
