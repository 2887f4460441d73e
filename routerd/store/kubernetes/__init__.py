"""The store on an API server. Nothing outside this room imports a Kubernetes client or speaks HTTP to the server."""
